"""Load a policy and sample from it: tiny from scratch, plain transformers, Unsloth with vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from vpo_lab.chains import answer_prompt, join_chain
from vpo_lab.errors import LabError
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


BACKENDS = ("scratch", "transformers", "unsloth")


def check_backend(profile: Profile) -> None:
    """LabError, before anything is loaded, if this machine cannot run the profile's backend."""
    backend = profile.policy.backend
    if backend not in BACKENDS:
        raise LabError(f"unknown policy.backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend != "unsloth":
        return
    import torch

    if not torch.cuda.is_available():
        raise LabError(
            f"profile {profile.name!r} needs a CUDA GPU of 24 GB or more and none is visible: run it on one, "
            "use --profile tiny, or rehearse with --set policy.backend=transformers --set policy.model=FOLDER"
        )


def load_policy(profile: Profile, task: Task, source: Path | None, seed: int):
    """(model, tokenizer) to train or sample: from an earlier stage's folder `source`, or the start.

    Raises LabError when the hardware, a package or the model's files are missing.
    """
    check_backend(profile)
    _quiet_libraries()
    loaders = {"scratch": _load_scratch, "transformers": _load_transformers, "unsloth": _load_unsloth}
    if source is not None and not (source / "config.json").exists() and not (source / "adapter_config.json").exists():
        raise LabError(f"no policy in {source}: run the stage that trains it first")
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

    policy = profile.policy
    # bfloat16 kernels are slow or missing on most CPUs; a rehearsal there runs in float32.
    dtype = getattr(torch, policy.dtype) if torch.cuda.is_available() else torch.float32
    start = policy.model if source is None or policy.lora_rank else str(source)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=dtype)
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


def _load_unsloth(profile: Profile, task: Task, source: Path | None, seed: int):
    import torch

    # Before trl, or its trainers stay unpatched.
    from unsloth import FastLanguageModel

    policy = profile.policy
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(source) if source is not None else policy.model,
        max_seq_length=policy.max_prompt_tokens + policy.max_answer_tokens * profile.rl.candidates,
        dtype=getattr(torch, policy.dtype),
        load_in_4bit=False,
        fast_inference=True,
        max_lora_rank=policy.lora_rank,
        gpu_memory_utilization=0.5,
    )
    if source is None:
        model = FastLanguageModel.get_peft_model(
            model,
            r=policy.lora_rank,
            lora_alpha=policy.lora_alpha,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            use_gradient_checkpointing="unsloth",
            random_state=seed,
        )
    return model, _with_pad_and_eos(tokenizer)


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

    Raises LabError if temperature is not positive. The same seed, prompts and batch give the same.
    """
    import torch

    if not temperature > 0:
        raise LabError(f"temperature = {temperature}: sampling needs a positive one (0.7 to 1 is usual)")
    torch.manual_seed(seed)
    model.eval()
    texts, lengths = [], []
    for chunk in _batches(prompts, batch):
        inputs = tokenizer(chunk, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        inputs = {key: value.to(model.device) for key, value in inputs.items() if key != "token_type_ids"}
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
        for ids in output[:, inputs["input_ids"].shape[1] :].tolist():
            end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
            lengths.append(end)
            texts.append(tokenizer.decode(ids[:end], skip_special_tokens=True))
        if on_progress:
            on_progress(len(texts))
    return texts, lengths


def _batches(items: list, size: int) -> Iterable[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
