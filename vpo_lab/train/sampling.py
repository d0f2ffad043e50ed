"""Sample one completion per prompt."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from vpo_lab.errors import LabError

if TYPE_CHECKING:
    from vllm import RequestOutput


def _free_gpu() -> None:
    """Drop what an earlier stage of this process left there: models and optimizers sit in reference cycles."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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

    Raises LabError if temperature is not positive. The same seed, prompts and batch give the same (with
    vLLM nearly so: its arithmetic depends on what runs beside).
    """
    import torch

    if not temperature > 0:
        raise LabError(f"temperature = {temperature}: sampling needs a positive one (0.7 to 1 is usual)")
    torch.manual_seed(seed)
    model.eval()
    texts, lengths = [], []
    settings = dict(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    with _vllm_sampler(model) if hasattr(model, "fast_generate") else nullcontext(_generate) as generate:
        for start in range(0, len(prompts), batch):
            chunk = prompts[start : start + batch]
            for ids in generate(model, tokenizer, chunk, seed=seed + start, **settings):
                end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
                lengths.append(end)
                texts.append(tokenizer.decode(ids[:end], skip_special_tokens=True))
            if on_progress:
                on_progress(len(texts))
    return texts, lengths


def _generate(model, tokenizer, prompts: list[str], *, seed, max_new_tokens, temperature, top_p) -> list[list[int]]:
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
    settings = dict(seed=seed, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    half = len(prompts) // 2
    return [ids for part in (prompts[:half], prompts[half:]) for ids in _generate(model, tokenizer, part, **settings)]


@contextmanager
def _vllm_sampler(model) -> Iterator[Callable[..., list[list[int]]]]:
    """The same by the vLLM that Unsloth keeps beside the model, with the adapter that the model has now."""
    from tempfile import TemporaryDirectory

    from vllm import SamplingParams

    with TemporaryDirectory() as folder:
        adapter = model.load_lora(folder, load_tensors=True)  # without it vLLM would answer as the base model

        def generate(model, tokenizer, prompts: list[str], *, seed, max_new_tokens, temperature, top_p):
            prompts_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
            outputs: list[RequestOutput] = model.fast_generate(
                [{"prompt_token_ids": ids} for ids in prompts_ids],
                # A seed each: with one for all, equal prompts would get equal answers.
                sampling_params=[
                    SamplingParams(
                        max_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed + i, detokenize=False
                    )
                    for i in range(len(prompts_ids))
                ],
                lora_request=adapter,
                use_tqdm=False,
            )
            return [list(output.outputs[0].token_ids) for output in outputs]

        yield generate
