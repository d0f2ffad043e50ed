"""Do what Unsloth and vLLM need of us."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vpo_lab.config import Profile
from vpo_lab.errors import LabError
from vpo_lab.files import cache_folder
from vpo_lab.processes import RENDEZVOUS, _quiet_libraries, environment_kept, rank, world_size
from vpo_lab.tasks import Task
from vpo_lab.train.prompts import _with_pad_and_eos, window
from vpo_lab.train.sampling import _free_gpu
from vpo_lab.train.stage import keywords

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.lora.request import LoRARequest

BACKENDS = ("scratch", "transformers", "vllm", "unsloth")

NEEDS = {"vllm": ("vllm",), "unsloth": ("unsloth", "vllm")}  # what the first two have is always installed


def schedules_itself(profile: Profile) -> bool:
    """Return True if rollouts are by vLLM, which schedules whatever it is given."""
    return profile.policy.backend in NEEDS


def rollouts_at_once(profile: Profile) -> int:
    """Return how many rollouts vLLM is to decode side by side: all of a generation, whatever the method.

    At most 255: Unsloth takes 256 for "as you like", and then allows 32 where the cache has 8 GB.
    """
    rl = profile.rl
    return min(255, rl.rollouts * rl.steps_per_generation * (rl.candidates if rl.equal == "answers" else 1))


def check_backend(profile: Profile) -> None:
    """Raise a LabError, before anything is loaded, if this machine cannot run the profile's backend."""
    backend, server = profile.policy.backend, profile.policy.vllm_server
    if backend not in BACKENDS:
        raise LabError(f"unknown policy.backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if server and backend != "vllm":
        raise LabError(f"policy.vllm_server is for policy.backend = 'vllm', this is {backend!r}: leave one of them out")
    if backend not in NEEDS:
        return
    import torch

    if backend == "unsloth":  # before the first look at CUDA, which does not read it again
        _one_gpu_in_sight()
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
    from urllib.parse import urlsplit
    from urllib.request import urlopen

    host = urlsplit(address).hostname or ""
    if host == "localhost" or host.startswith("127."):  # a proxy could not reach it; TRL's client reads this too
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), host]))
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
            max_num_seqs=rollouts_at_once(profile),
            use_exact_model_name=True,
        )
        check_window(model, policy.gpu_share, longest)
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


def check_window(model, share: float, longest: int) -> None:
    """Raise a LabError if Unsloth has shortened vLLM's window, because `share` of the GPU has no room for its cache.

    It only prints so; the run would end at the first long prompt, hours later.
    """
    import torch

    room = model.vllm_engine.llm_engine.vllm_config.model_config.max_model_len
    if room >= longest:
        return
    config = model.config
    token = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim  # keys, values, bfloat16
    total = torch.cuda.get_device_properties(0).total_memory
    wanted = math.ceil(round(100 * (share + (longest - room) * token / total), 3) + 1) / 100  # a hundredth to spare
    raise LabError(
        f"policy.gpu_share = {share:g}: vLLM has room for {room} tokens, a prompt with its answers may have {longest}: "
        + (f"set policy.gpu_share={wanted:g}" if wanted < 0.95 else "take a larger card, or fewer tokens in policy")
    )


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
    defaults = {
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": str(cache_folder("unsloth_compiled_cache")),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _one_gpu_in_sight() -> None:
    """With more than one, transformers would believe that all of them train."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


def trl_arguments(profile: Profile, m: int) -> dict[str, Any]:
    """Return the GRPOConfig fields by which TRL samples rollouts of M answers with this backend.

    vLLM's probabilities differ a little from the trained model's. With plain TRL each token is weighted
    by their ratio; TRL's default would weight, or drop, a rollout by the product over all its tokens,
    which punishes long chains. Unsloth's vLLM holds the same weights and runs the same adapter: no weighting.
    """
    # Import here, not at the top: Unsloth replaces this class when it loads the model.
    from trl import GRPOConfig

    policy = profile.policy
    if policy.backend in ("scratch", "transformers"):
        return keywords(GRPOConfig, use_vllm=False)
    if policy.backend == "unsloth":
        return keywords(GRPOConfig, use_vllm=True, vllm_importance_sampling_correction=False)
    if policy.vllm_server:
        where = keywords(GRPOConfig, vllm_mode="server", vllm_server_base_url=policy.vllm_server)
    else:
        where = keywords(
            GRPOConfig,
            vllm_mode="colocate",
            vllm_gpu_memory_utilization=policy.gpu_share,
            vllm_max_model_length=window(profile, m),
            vllm_tensor_parallel_size=1,
        )
    weighting = keywords(
        GRPOConfig,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=2.0,
    )
    return {**weighting, **where}


def check_engine(trainer) -> None:
    """Raise a LabError unless rollouts come from Unsloth's vLLM, with the weights and the adapter that are trained.

    With some versions they came from the base model, without a word.
    """
    generation, engine = trainer.vllm_generation, getattr(trainer.model, "vllm_engine", None)
    wanted = {
        "rollouts are not by the vLLM of the model": engine is not None and generation.llm is engine,
        "that vLLM has weights of its own": getattr(engine, "shared_weights", False),
        "rollouts are sampled without the adapter": getattr(generation.generate, GENERATES_WITH_ADAPTER, False)
        and getattr(generation, "_unsloth_load_lora", None) is not None,
    }
    _refuse_unless(wanted)


def check_plain_engine(trainer) -> None:
    """Raise a LabError unless rollouts come from TRL's own vLLM, and it is sent the weights that are trained."""
    generation = getattr(trainer, "vllm_generation", None)
    engine = getattr(generation, "llm" if trainer.args.vllm_mode == "colocate" else "vllm_client", None)
    wanted = {
        "rollouts are not by vLLM": trainer.use_vllm and type(generation).__name__ == "VLLMGeneration",
        # With a server, the first of several processes alone speaks to it.
        "rollouts are by another engine": type(engine).__name__ in PLAIN_ENGINES or (engine is None and rank() > 0),
        "Unsloth has changed how rollouts are made": not hasattr(
            getattr(generation, "generate", None), GENERATES_WITH_ADAPTER
        ),
        "vLLM would be sent other weights": getattr(generation, "model", None) is trainer.model
        and hasattr(generation, "_iter_named_params"),
    }
    _refuse_unless(wanted)


def _refuse_unless(wanted: dict[str, bool]) -> None:
    for what, is_right in wanted.items():
        if not is_right:
            raise LabError(f"{what}: install the versions of Unsloth, TRL and vLLM that requirements/gpu.lock names")


PLAIN_ENGINES = ("LLM", "VLLMClient")  # of vllm, beside the training; of trl, for a server

# What unsloth 2026.10.7 sets on VLLMGeneration.generate when it has wrapped it (models/rl_replacements.py).
GENERATES_WITH_ADAPTER = "_unsloth_vllm_generation_lora_wrapped"


def left_packed(inputs: dict, pad_token_id: int):
    """Move (B, T) advantages to where Unsloth's loss has the tokens: (B, T + the most padding of a prompt).

    It moves the padding of prompts behind the completions, for each micro-batch anew (unsloth_zoo
    2026.10.7, rl_replacements.grpo_accumulated_loss), so that completions begin at different columns.
    """
    import torch

    advantages_BT = inputs["advantages"]
    rows, width = advantages_BT.shape
    padding_B = (inputs["prompt_ids"] == pad_token_id).sum(dim=1)
    scored = inputs.get("old_per_token_logps")
    widest = int(padding_B.max()) if scored is None else scored.shape[1] - width
    columns_BT = (widest - padding_B).unsqueeze(1) + torch.arange(width, device=padding_B.device)
    return advantages_BT.new_zeros(rows, width + widest).scatter_(1, columns_BT, advantages_BT)


@contextmanager
def vllm_of_its_own(profile: Profile, model, tokenizer) -> Iterator[tuple[LLM, LoRARequest | None]]:
    """Start a vLLM that answers as a model of plain TRL does now: yields it, and what to ask it with (the adapter).

    TRL's own is part of a trainer: it starts when that is built and ends with it, while the warmup's own samples,
    `rl.drop_solved` and pools are drawn without a trainer. This one has `policy.gpu_share` while the block runs.
    """
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    policy = profile.policy
    with TemporaryDirectory() as folder, environment_kept(*RENDEZVOUS):
        model.save_pretrained(folder)  # the adapter, or without one all weights
        tokenizer.save_pretrained(folder)
        llm = LLM(
            model=policy.model if policy.lora_rank else folder,
            tokenizer=folder,
            dtype=policy.dtype,
            gpu_memory_utilization=policy.gpu_share,
            max_model_len=window(profile, profile.rl.candidates),
            enable_lora=bool(policy.lora_rank),
            max_lora_rank=policy.lora_rank or 16,
            # Each of several processes has one on its own GPU, as TRL starts them.
            distributed_executor_backend="external_launcher" if world_size() > 1 else None,
        )
        try:
            yield llm, LoRARequest("policy", 1, folder) if policy.lora_rank else None
        finally:
            _shut_down(llm)
            del llm
            _free_gpu()


def _shut_down(llm: LLM) -> None:
    # The whole engine takes the process group with it, which other processes still train in.
    engine = llm.llm_engine
    (engine.engine_core if world_size() == 1 else engine.model_executor).shutdown()


def close_vllm(trainer) -> None:
    """Give back the GPU memory or the ports that TRL's vLLM holds: notebooks train and evaluate in one process."""
    generation = trainer.vllm_generation
    if generation.mode == "colocate":
        _shut_down(generation.llm)
        del generation.llm
    elif rank() == 0:
        generation.vllm_client.close_communicator()
