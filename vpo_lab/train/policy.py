"""Load a policy and sample from it: tiny from scratch, plain transformers, Unsloth with vLLM."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from vpo_lab.chains import join_chain
from vpo_lab.config import Policy, Profile
from vpo_lab.errors import LabError
from vpo_lab.processes import _quiet_libraries
from vpo_lab.tasks import Task
from vpo_lab.train.decoding import decode_by_graph
from vpo_lab.train.gpu import _load_unsloth, check_backend, vllm_of_its_own
from vpo_lab.train.prompts import _with_pad_and_eos, render_prompt
from vpo_lab.train.sampling import _free_gpu
from vpo_lab.weights import draw_goal


def load_policy(profile: Profile, task: Task, source: Path | None, seed: int):
    """Return (model, tokenizer) to train or sample: from an earlier stage's folder `source`, or the start.

    Raises LabError when the hardware, a package or the model's files are missing.
    """
    check_backend(profile)
    loaders = {
        "scratch": _load_scratch,
        "transformers": _load_transformers,
        "vllm": _load_transformers,  # rollouts are TRL's business, see `trl_arguments`
        "unsloth": _load_unsloth,
    }
    if source is not None and not (source / "config.json").exists() and not (source / "adapter_config.json").exists():
        raise LabError(f"no policy in {source}: run the stage that trains it first")
    _free_gpu()
    without_cudnn_attention()
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


def without_cudnn_attention() -> None:
    """Leave attention to the other kernels: on H100 and H200, torch 2.11 and later prefer cuDNN's, whose backward pass
    gives NaN at some lengths with a mask (pytorch issue 196678). Seen here after 5 to 65 steps, with a finite loss."""
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def _load_scratch(profile: Profile, task: Task, source: Path | None, seed: int):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from vpo_lab.train.tiny_model import build_model

    _quiet_libraries()
    # More OpenMP threads than cores to spare make a tiny model many times slower, not faster.
    torch.set_num_threads(1)
    if source is not None:
        return AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    tokenizer = scratch_tokenizer(profile, task)
    return build_model(profile.policy, tokenizer, seed), tokenizer


def scratch_tokenizer(profile: Profile, task: Task):
    """Return the tokenizer of a from-scratch policy, trained on prompts and answers of the train split."""
    import numpy as np

    from vpo_lab.train.tiny_model import train_tokenizer

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


def _dtype(policy: Policy):
    """Return the torch type of the weights: the profile's, but float32 on a CPU that computes bfloat16 slowly.

    With LoRA these are the frozen weights; peft keeps the trained ones in float32.
    """
    import torch

    can = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not say
    slow = policy.dtype == "bfloat16" and not (can.get("avx512_bf16") or can.get("amx_bf16"))
    return torch.float32 if slow and not torch.cuda.is_available() else getattr(torch, policy.dtype)


def _load_transformers(profile: Profile, task: Task, source: Path | None, seed: int):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _quiet_libraries()
    policy = profile.policy
    start = policy.model if source is None or policy.lora_rank else str(source)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=_dtype(policy))
    if torch.cuda.is_available():  # samples are drawn before a trainer moves it there
        model = model.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    tokenizer = _with_pad_and_eos(AutoTokenizer.from_pretrained(source or policy.model))
    if policy.lora_rank:
        from peft import LoraConfig, PeftModel, get_peft_model

        torch.manual_seed(seed)
        lora = LoraConfig(
            r=policy.lora_rank,
            lora_alpha=policy.lora_alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        is_new = source is None
        model = get_peft_model(model, lora) if is_new else PeftModel.from_pretrained(model, source, is_trainable=True)
    if torch.cuda.is_available():
        decode_by_graph(model)
    if policy.backend == "vllm":
        model.start_vllm = partial(vllm_of_its_own, profile, model, tokenizer)
    return model, tokenizer
