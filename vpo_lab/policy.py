"""Load a policy and sample from it: tiny from scratch, plain transformers, Unsloth with vLLM."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

from vpo_lab.chains import answer_prompt, join_chain
from vpo_lab.errors import LabError
from vpo_lab.processes import say, world_size
from vpo_lab.profiles import Profile
from vpo_lab.scalarization import draw_goal
from vpo_lab.tasks import Task


def render_prompt(tokenizer, messages: list[dict], m: int, goal: dict[str, int] | None = None) -> str:
    """The text that a completion continues: chat template, thinking off, a request for `m` answers.

    `goal` is stated there too, see `chains.answer_prompt`.

    Prompts and completions travel as text from here on: Qwen3's template cuts an assistant message
    at its last </think>, which would destroy a chain of answers that each have a think block.
    """
    return tokenizer.apply_chat_template(
        answer_prompt(messages, m, goal), tokenize=False, add_generation_prompt=True, enable_thinking=False
    )


def load_rows(profile: Profile, task: Task, split: str, tokenizer, limit: int = 0) -> list[dict]:
    """Rows of a split whose prompt fits the profile's window, the first `limit` of them (0: all)."""
    rows = task.load(profile.data or None, split)
    longest = profile.policy.max_prompt_tokens
    texts = [render_prompt(tokenizer, row["prompt"], profile.rl.candidates) for row in rows]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length <= longest]
    if not fitting:
        raise LabError(
            f"no {split} prompt of {task.name} fits policy.max_prompt_tokens = {longest} "
            f"(the shortest has {min(lengths)}): raise it"
        )
    if len(fitting) < len(rows):
        say(f"{len(rows) - len(fitting)} of {len(rows)} {split} prompts are longer than {longest} tokens: left out")
    return fitting[:limit] if limit else fitting


BACKENDS = ("scratch", "transformers", "vllm", "unsloth")
NEEDS = {"vllm": ("vllm",), "unsloth": ("unsloth", "vllm")}  # what the first two have is always installed
# A prompt may state a goal, and a warmup's answer be a little longer than the policy's own may get.
SLACK = 128


def window(profile: Profile, m: int) -> int:
    """Tokens of the longest prompt with M answers: what the model and vLLM make room for."""
    return profile.policy.max_prompt_tokens + profile.policy.max_answer_tokens * m + SLACK


def check_backend(profile: Profile) -> None:
    """LabError, before anything is loaded, if this machine cannot run the profile's backend."""
    backend, server = profile.policy.backend, profile.policy.vllm_server
    if backend not in BACKENDS:
        raise LabError(f"unknown policy.backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if server and backend != "vllm":
        raise LabError(f"policy.vllm_server is for policy.backend = 'vllm', this is {backend!r}: leave one of them out")
    if backend not in NEEDS:
        return
    import torch

    if not torch.cuda.is_available():
        raise LabError(
            f"profile {profile.name!r} needs a CUDA GPU of 24 GB or more and none is visible: run it on one, "
            "use --profile tiny, or rehearse with --set policy.backend=transformers --set policy.model=FOLDER"
        )
    if too_old := _too_old_gpu():
        raise LabError(
            f"{too_old}: bfloat16 and the pinned packages want compute capability 8.0 or newer "
            "(L4, A10, 3090, 4090, A100, H100)"
        )
    missing = [package for package in NEEDS[backend] if find_spec(package) is None]
    if missing:
        raise LabError(
            f"profile {profile.name!r} needs the package {missing[0]!r}: pip install -e '.[gpu]' on the GPU machine"
        )
    if backend == "unsloth" and world_size() > 1:
        raise LabError(
            "unsloth trains on one GPU: for several add --set policy.backend=vllm, or run one process per seed, "
            "each with its own CUDA_VISIBLE_DEVICES"
        )
    if server:
        _check_server(server)


def _too_old_gpu() -> str:
    """Name and capability of the best GPU if that is below 8.0, else "". Asks the driver: torch would claim memory."""
    query = ["nvidia-smi", "--query-gpu=compute_cap,name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout
        capability, name = max((float(line.split(",")[0]), line.split(",")[1].strip()) for line in answer.splitlines())
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return ""
    return f"{name} has compute capability {capability}" if capability < 8.0 else ""


def _check_server(address: str) -> None:
    """LabError unless a vLLM server answers there; TRL's own check waits for ever on another one."""
    from urllib.request import urlopen

    try:
        with urlopen(f"{address.rstrip('/')}/health", timeout=10) as answer:
            status = answer.status
    except (OSError, ValueError) as error:
        status = error
    if status != 200:
        raise LabError(
            f"no vLLM server at {address} ({status}): start one with `trl vllm-serve --model MODEL` on another GPU, "
            "or leave policy.vllm_server out"
        )


def load_policy(profile: Profile, task: Task, source: Path | None, seed: int):
    """(model, tokenizer) to train or sample: from an earlier stage's folder `source`, or the start.

    Raises LabError when the hardware, a package or the model's files are missing.
    """
    check_backend(profile)
    loaders = {
        "scratch": _load_scratch,
        "transformers": _load_transformers,
        "vllm": _load_transformers,  # vLLM is TRL's business, see `trl_arguments`
        "unsloth": _load_unsloth,
    }
    if source is not None and not (source / "config.json").exists() and not (source / "adapter_config.json").exists():
        raise LabError(f"no policy in {source}: run the stage that trains it first")
    _free_gpu()
    try:
        return loaders[profile.policy.backend](profile, task, source, seed)
    except ImportError as error:
        raise LabError(
            f"profile {profile.name!r} needs the package {error.name!r}: pip install -e '.[gpu]' on the GPU machine"
        ) from error
    except OSError as error:
        where = source or profile.policy.model
        raise LabError(
            f"cannot load the model {where} ({str(error).splitlines()[0]}): "
            "check the network or point policy.model at a local folder"
        ) from error


def _free_gpu() -> None:
    """Drop what an earlier stage of this process left there: models and optimizers sit in reference cycles."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _quiet_libraries() -> None:
    """One progress line is enough: bars and notices of loading and saving would bury it."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _load_scratch(profile: Profile, task: Task, source: Path | None, seed: int):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from vpo_lab.tiny_model import build_model

    _quiet_libraries()
    # More OpenMP threads than cores to spare make a tiny model many times slower, not faster.
    torch.set_num_threads(1)
    if source is not None:
        return AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    tokenizer = scratch_tokenizer(profile, task)
    return build_model(profile.policy, tokenizer, seed), tokenizer


def scratch_tokenizer(profile: Profile, task: Task):
    """The tokenizer of a from-scratch policy, trained on prompts and answers of the train split."""
    import numpy as np

    from vpo_lab.tiny_model import train_tokenizer

    # The template is needed to render the text that the tokenizer is then trained on.
    template_only = train_tokenizer([])
    rng, m = np.random.default_rng(0), profile.rl.candidates
    texts = []
    for row in task.load(profile.data or None, "train"):
        goal = dict(zip(task.objectives, draw_goal(len(task.objectives), rng).tolist(), strict=True))
        texts.append(render_prompt(template_only, row["prompt"], 1, goal))
        for answers in {1, m}:
            texts.append(render_prompt(template_only, row["prompt"], answers))
            texts.append(join_chain(task.demonstrations(row, answers, rng)))
    return train_tokenizer(texts)


def _load_transformers(profile: Profile, task: Task, source: Path | None, seed: int):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _quiet_libraries()
    policy = profile.policy
    # bfloat16 kernels are slow or missing on most CPUs; a rehearsal there runs in float32.
    dtype = getattr(torch, policy.dtype) if torch.cuda.is_available() else torch.float32
    start = policy.model if source is None or policy.lora_rank else str(source)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=dtype)
    if torch.cuda.is_available():  # samples are drawn before a trainer moves it there
        model = model.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    tokenizer = _with_pad_and_eos(AutoTokenizer.from_pretrained(source or policy.model))
    if policy.lora_rank:
        from peft import LoraConfig, PeftModel, get_peft_model

        if source is not None:
            return PeftModel.from_pretrained(model, source, is_trainable=True), tokenizer
        torch.manual_seed(seed)
        lora = LoraConfig(
            r=policy.lora_rank,
            lora_alpha=policy.lora_alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, lora)
    return model, tokenizer


_engine: dict[tuple, tuple] = {}  # Unsloth's model and vLLM share one copy of the weights; a second would not fit


def _load_unsloth(profile: Profile, task: Task, source: Path | None, seed: int):
    """The model of this process, loaded once, with the adapter of `source` or a fresh one."""
    policy, longest = profile.policy, window(profile, profile.rl.candidates)
    key = (policy.model, policy.lora_rank, policy.lora_alpha, policy.dtype, policy.gpu_share, longest)
    if not _engine:
        _unsloth_environment()
        # Before transformers, trl and peft, or their trainers stay unpatched.
        import torch
        from unsloth import FastLanguageModel

        _quiet_libraries()
        model, tokenizer = FastLanguageModel.from_pretrained(
            model_name=policy.model,
            max_seq_length=longest,
            dtype=getattr(torch, policy.dtype),
            load_in_4bit=False,
            fast_inference=True,
            max_lora_rank=policy.lora_rank,
            gpu_memory_utilization=policy.gpu_share,
            use_exact_model_name=True,
        )
        model = FastLanguageModel.get_peft_model(
            model,
            r=policy.lora_rank,
            lora_alpha=policy.lora_alpha,
            lora_dropout=0.0,
            bias="none",
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            use_gradient_checkpointing="unsloth",
            random_state=seed,
        )
        _engine[key] = model, _with_pad_and_eos(tokenizer)
    if key not in _engine:
        raise LabError("this process holds a model with other settings, and a second would not fit: restart the kernel")
    model, tokenizer = _engine[key]
    set_adapter(model, source, seed)
    return model, tokenizer


def set_adapter(model, source: Path | None, seed: int) -> None:
    """Give a LoRA model the adapter saved in `source`, or a fresh one; LabError if it does not fit."""
    from peft import load_peft_weights, set_peft_model_state_dict
    from transformers import set_seed

    if source is None:
        set_seed(seed)
        for module in model.modules():
            if "default" in getattr(module, "lora_A", {}):
                module.reset_lora_parameters("default", True)
        return
    weights = load_peft_weights(str(source), device="cpu")
    result = set_peft_model_state_dict(model, weights)
    lost = [name for name in result.missing_keys if "lora_" in name]
    if result.unexpected_keys or lost:
        raise LabError(
            f"the adapter in {source} is not one of this model ({[*result.unexpected_keys, *lost][0]}): delete it"
        )


def _unsloth_environment() -> None:
    """No calls home, generated code in the cache instead of the current folder, vLLM's notices off."""
    from vpo_lab.tasks.toolrl import cache_folder

    defaults = {
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": str(cache_folder().parent / "unsloth_compiled_cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # With more than one in sight, transformers would believe that all of them train.
        "CUDA_VISIBLE_DEVICES": "0",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _with_pad_and_eos(tokenizer):
    """Left padding, and a pad token that is not the end token, or the end is never learned."""
    tokenizer.padding_side = "left"
    if tokenizer.eos_token_id is None:
        raise LabError("the tokenizer has no eos token: choose a chat model such as unsloth/Qwen3-1.7B")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        if "<|endoftext|>" not in tokenizer.get_vocab() or tokenizer.eos_token == "<|endoftext|>":
            raise LabError("the tokenizer has no pad token besides its eos token: set tokenizer.pad_token first")
        tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


def trl_arguments(profile: Profile, m: int) -> dict:
    """The GRPOConfig fields by which TRL samples rollouts of M answers with this backend.

    vLLM's probabilities differ a little from the trained model's. With plain TRL each token is weighted
    by their ratio; TRL's default would weight, or drop, a rollout by the product over all its tokens,
    which punishes long chains. Unsloth's vLLM holds the same weights and runs the same adapter: no weighting.
    """
    policy = profile.policy
    if policy.backend in ("scratch", "transformers"):
        return dict(use_vllm=False)
    if policy.backend == "unsloth":
        return dict(use_vllm=True, vllm_importance_sampling_correction=False)
    where = (
        dict(vllm_mode="server", vllm_server_base_url=policy.vllm_server)
        if policy.vllm_server
        else dict(
            vllm_mode="colocate",
            vllm_gpu_memory_utilization=policy.gpu_share,
            vllm_max_model_length=window(profile, m),
            vllm_tensor_parallel_size=1,
        )
    )
    return dict(
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=2.0,
        **where,
    )


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
    """One sampled completion per prompt text, and how many tokens each has (its end included).

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
            outputs = model.fast_generate(
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
