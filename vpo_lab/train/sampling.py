"""Sample one completion per prompt."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from vpo_lab.errors import LabError
from vpo_lab.runs import Stage
from vpo_lab.show.live import StageProgress

if TYPE_CHECKING:
    from vllm import RequestOutput


def _free_gpu() -> None:
    """Drop what an earlier stage of this process left there: models and optimizers sit in reference cycles."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def shown(title: str, total: int, stage: Stage) -> Iterator[Callable[[int], None]]:
    """Show how many of `total` answers are drawn, and leave a sign of life in the stage's folder, see `watch`."""
    progress = StageProgress(title, total)
    with stage.sampling() as beat:

        def tell(done: int) -> None:
            beat()
            progress.update(done)

        yield tell
    progress.close()


def sample(
    model,
    tokenizer,
    prompts: list[str],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    batch: int,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[list[str], list[int]]:
    """Sample one completion per prompt text, and how many tokens each has (its end included).

    vLLM, where the model has it, is given all prompts in one call: it schedules them itself, and would stand idle at
    the end of each part. Without it `batch` completions are sampled at once. Raises LabError if temperature is not
    positive. The same seed, prompts and batch give the same (with vLLM nearly so: its arithmetic depends on what runs
    beside).
    """
    import torch

    if not temperature > 0:
        raise LabError(f"temperature = {temperature}: sampling needs a positive one (0.7 to 1 is usual)")
    torch.manual_seed(seed)
    model.eval()
    texts, lengths = [], []
    settings = dict(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    with _engine(model, len(prompts)) as engine:
        at_once = batch if engine is None else max(1, len(prompts))
        for start in range(0, len(prompts), at_once):
            chunk = prompts[start : start + at_once]
            if engine is None:
                made = _generate(model, tokenizer, chunk, **settings)
            else:
                made = _serve(engine, tokenizer, chunk, seed, on_progress, **settings)
            for ids in made:
                end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
                lengths.append(end)
                texts.append(tokenizer.decode(ids[:end], skip_special_tokens=True))
            if on_progress:
                on_progress(len(texts))
    return texts, lengths


def _generate(model, tokenizer, prompts: list[str], *, max_new_tokens, temperature, top_p) -> list[list[int]]:
    """The token ids of one completion per prompt by transformers, from torch's random state.

    A batch that does not fit on the GPU is halved: how long completions get is not known before.
    """
    import torch

    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    inputs = {key: value.to(model.device) for key, value in inputs.items() if key != "token_type_ids"}
    try:
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                do_sample=True,
                temperature=temperature,
                top_p=top_p,
                top_k=0,
                repetition_penalty=1.0,  # some models' own settings punish it; rollouts of the training do not
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        return output[:, inputs["input_ids"].shape[1] :].tolist()
    except torch.OutOfMemoryError:
        if len(prompts) == 1:
            raise
    _free_gpu()
    settings = dict(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    half = len(prompts) // 2
    return [ids for part in (prompts[:half], prompts[half:]) for ids in _generate(model, tokenizer, part, **settings)]


ENGINE_PAYS = 1000  # prompts: a vLLM of one's own takes a minute or two to start


@contextmanager
def _engine(model, prompts: int) -> Iterator[Callable[..., list[RequestOutput]] | None]:
    """The `generate` of the vLLM that answers as the model does now; None where transformers sample.

    That is the one which Unsloth keeps beside the model, or, for many prompts, one that is started for them: see
    `gpu.vllm_of_its_own`.
    """
    if hasattr(model, "fast_generate"):
        with TemporaryDirectory() as folder:  # without the adapter vLLM would answer as the base model
            yield partial(model.fast_generate, lora_request=model.load_lora(folder, load_tensors=True))
    elif prompts >= ENGINE_PAYS and hasattr(model, "start_vllm"):
        with model.start_vllm() as (engine, adapter):
            yield partial(engine.generate, lora_request=adapter)
    else:
        yield None


def _serve(
    engine, tokenizer, prompts: list[str], seed: int, on_progress, *, max_new_tokens, temperature, top_p
) -> list[list[int]]:
    """The token ids of one completion per prompt by vLLM."""
    from vllm import SamplingParams

    prompts_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    outputs: list[RequestOutput] = engine(
        [{"prompt_token_ids": ids} for ids in prompts_ids],
        # A seed each: with one for all, equal prompts would get equal answers.
        sampling_params=[
            SamplingParams(
                max_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed + i, detokenize=False
            )
            for i in range(len(prompts_ids))
        ],
        use_tqdm=_told(on_progress) if on_progress else False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


def _told(on_progress: Callable[[int], None]) -> type:
    """A bar that shows nothing and tells how many requests are done: vLLM draws one for all of a call."""
    from tqdm import tqdm

    class Told(tqdm):
        def __init__(self, iterable=None, **settings):
            super().__init__(iterable, **{**settings, "file": io.StringIO()})

        def update(self, n=1):
            shown = super().update(n)
            if self.iterable is None:  # else requests are being handed over
                on_progress(int(self.n))
            return shown

    return Told
