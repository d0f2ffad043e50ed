"""What a full-size run needs, before a GPU is rented: memory, batch shape and time. Estimates, from formulas.

Each formula says what it counts; tests/unit/test_plan.py holds them against allocations measured on a CPU.
Nothing here was measured on a GPU. GB are 10^9 bytes, and a card of N GB counts as N x 10^9 bytes.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from vpo_lab.config import Profile
from vpo_lab.errors import LabError
from vpo_lab.train.gpu import BACKENDS

# Estimates, in bytes. RESERVE: CUDA context, workspaces of cuBLAS and Triton, fragmentation. VLLM_WORK: activations
# of the 4,096 tokens that vLLM batches, fp32 logits of its sampler, CUDA graphs, its copies of the adapter.
RESERVE, VLLM_WORK = 2.0e9, 1.5e9
# Shares of the card's peak that decoding (memory) and training (bf16 arithmetic) reach; estimates too.
BANDWIDTH_USE, COMPUTE_USE = 0.6, 0.3
TYPICAL = {"toolrl": (950, 83)}  # tokens of a mean prompt and of one answer; other tasks count at their longest
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
SCRATCH_VOCABULARY = 512  # the tokenizer is trained when a run starts; the tiny world's has 439 tokens

NOTES = (
    "All numbers are estimates: formulas held against allocations on a CPU, none measured on a GPU. Memory: GB are "
    "10^9 bytes, policy.gpu_share = {share:g}, rl.micro_rollouts the largest that fits; {reserve:g} GB for CUDA and "
    "fragmentation and {work:g} GB for vLLM's work are guesses. Time: decoding at {bandwidth:.0%} of the card's "
    "bandwidth, training at {compute:.0%} of its bf16 peak, all rollouts at one length: the longest is the profile's, "
    "the typical one the task's mean. Not counted: warmup, loading, weight transfer, rewards, evaluation."
)


@dataclass(frozen=True)
class Shape:
    """A dense decoder with grouped attention and a gated MLP: Qwen3, Llama and their like."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int = 151936
    tied: bool = True  # the head is the embedding

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """h, i, q, kv: widths of hidden states, MLP, queries, keys."""
        return self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's matrices: q, k, v, o, gate, up, down."""
        h, i, q, kv = self.sides
        return [(h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h)]


@dataclass(frozen=True)
class Card:
    """A GPU; the speeds are the maker's, dense, and 0 where unknown."""

    name: str
    gb: float
    bandwidth: float = 0.0  # GB/s
    tflops: float = 0.0  # bf16 with fp32 accumulation


@dataclass(frozen=True)
class Work:
    """One optimizer step of one GPU with all rollouts at one length, in tokens."""

    rollouts: int
    prompt: int
    completion: int
    at_once: int  # rollouts that decode together
    decode_seconds: float = math.nan  # where the card's speed is unknown or nothing fits
    train_seconds: float = math.nan


@dataclass(frozen=True)
class Plan:
    card: Card
    items: dict[str, float]  # bytes of one GPU, with `micro` rollouts (1 if nothing fits) in a forward pass
    total: float  # their peak in bytes; below their sum, see `peak`
    micro: int  # 0: not even one rollout fits
    kv_tokens: int  # that the KV cache holds
    gpu_share: float  # suggested; 0: vLLM has no place on this card, or takes none
    work: dict[str, Work]


SHAPES = (
    Shape("Qwen3-0.6B", 1024, 3072, 28, 16, 8, 128),
    Shape("Qwen3-1.7B", 2048, 6144, 28, 16, 8, 128),
    Shape("Qwen3-4B", 2560, 9728, 36, 32, 8, 128),
    Shape("Qwen3-8B", 4096, 12288, 36, 32, 8, 128, tied=False),
)
CARDS = (
    Card("L4", 24, 300, 121),
    Card("A10", 24, 600, 125),
    Card("RTX 3090", 24, 936, 71),
    Card("RTX 4090", 24, 1008, 165),
    Card("A100-40", 40, 1555, 312),
    Card("A100-80", 80, 2039, 312),
    Card("H100", 80, 3350, 989),
    Card("H200", 141, 4800, 989),
)
TOO_OLD = {"t4": "7.5", "v100": "7.0"}  # compute capability


def shape_of(profile: Profile) -> Shape:
    """The profile's model: its own shape for "scratch", else a local folder's config.json or the table.

    Raises LabError for a model whose shape is unknown, or that is not dense.
    """
    policy = profile.policy
    if policy.backend == "scratch":
        sizes = (policy.hidden_size, policy.intermediate_size, policy.layers, policy.heads, policy.heads)
        return Shape(policy.model, *sizes, policy.hidden_size // policy.heads, SCRATCH_VOCABULARY)
    if Path(policy.model).is_dir():
        return _shape_in(Path(policy.model))
    name = policy.model.rsplit("/", 1)[-1].lower()
    for shape in SHAPES:
        if shape.name.lower() == name:
            return shape
    known = ", ".join(shape.name for shape in SHAPES)
    raise LabError(f"policy.model = {policy.model!r}: shape unknown; pass a local folder with config.json, or {known}")


def _shape_in(folder: Path) -> Shape:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        sizes = (hidden, config["intermediate_size"], config["num_hidden_layers"], heads)
        attention = (config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads)
        shape = Shape(folder.name, *sizes, *attention, config["vocab_size"], bool(config.get("tie_word_embeddings")))
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}; point policy.model at a model's folder or a hub id") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise LabError(f"{path}: not a causal language model's ({reason}); point policy.model at one") from error
    if config.get("num_experts") or config.get("num_local_experts"):
        raise LabError(f"{path}: a mixture of experts, and the formulas are for dense models; plan another model")
    return shape


def card_of(text: str) -> Card:
    """A card by its name, or by GB: the slowest known card of that size, without speed if there is none.

    Raises LabError for an unknown name and for cards without bf16.
    """
    known = ", ".join(card.name for card in CARDS)
    name = re.sub(r"nvidia|geforce|tesla|rtx|gb|[^a-z0-9.]", "", text.lower())
    for card in CARDS:
        own = re.sub(r"rtx|[^a-z0-9]", "", card.name.lower())
        if name in (own, f"{own}{card.gb}"):
            return card
    for old, capability in TOO_OLD.items():
        if name in (old, f"{old}16", f"{old}32"):
            raise LabError(f"--gpu {text}: compute capability {capability}, below 8.0, and no bf16; use one of {known}")
    try:
        gb = float(text.lower().removesuffix("gb"))
    except ValueError:
        gb = math.nan
    if not 0 < gb < 1000:
        raise LabError(f"--gpu {text}: not a known card; pass its memory in GB or one of {known}")
    same = min((card for card in CARDS if card.gb == gb), key=lambda card: card.bandwidth, default=Card("", gb))
    return Card(f"{gb:g} GB" + (f"\n({same.name})" if same.name else ""), gb, same.bandwidth, same.tflops)


# --- Counts -----------------------------------------------------------------------------------


def weights(shape: Shape) -> int:
    """Parameters: embedding (twice if untied) + layers x (matrices + 2 norms of h and 2 of a head) + the last norm."""
    layer = sum(a * b for a, b in shape.linears) + 2 * shape.hidden + 2 * shape.head_dim
    return shape.vocabulary * shape.hidden * (1 if shape.tied else 2) + shape.layers * layer + shape.hidden


def lora_parameters(shape: Shape, rank: int) -> int:
    """Parameters of adapters on all matrices of all layers: rank x (inputs + outputs) each."""
    return shape.layers * rank * sum(a + b for a, b in shape.linears)


def kv_bytes_per_token(shape: Shape, width: int = 2) -> int:
    """Bytes of a token's keys and values in all layers: 2 x layers x kv_heads x head_dim x width."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * width


def trained(profile: Profile, shape: Shape) -> tuple[int, int]:
    """(parameters that are trained, bytes of each); the gradient and each of AdamW's two moments take the same.

    peft (`autocast_adapter_dtype`) and Unsloth keep the adapters of a bf16 base in fp32. Without LoRA all
    weights are trained in policy.dtype, and torch's AdamW makes its moments in the dtype of the weights.
    """
    rank = profile.policy.lora_rank
    return (lora_parameters(shape, rank), 4) if rank else (weights(shape), WIDTH[profile.policy.dtype])


def activations(shape: Shape, rank: int, rows: int, tokens: int, width: int = 2) -> tuple[float, float]:
    """(bytes kept for the backward pass, bytes on top of them while it goes through a layer), of rows x tokens.

    t: tokens of a row; h, i, q, kv: `Shape.sides`. In bf16 autocast and with a padding mask a layer saves, per token,
    S = 18h + 14q + 4kv + 8i + 14 rank + 2t bytes with LoRA, 16h + 14q + 6kv + 8i + 2t without; its backward pass works
    on 6h + 6i more. With LoRA there is gradient checkpointing: 2h a layer is kept and one layer's S recomputed.
    Without it all S are kept. The last norm keeps 4h and the mask t. fp32 takes at most twice that. Unsloth moves what
    is kept to the host; it is counted all the same.
    """
    h, i, q, kv = shape.sides
    saved = (18 * h + 4 * kv + 14 * rank if rank else 16 * h + 6 * kv) + 14 * q + 8 * i + 2 * tokens
    kept = shape.layers * (2 * h if rank else saved) + 4 * h + tokens
    layer = (saved if rank else 0) + 6 * h + 6 * i
    return rows * tokens * kept * width / 2, rows * tokens * layer * width / 2


def logits(shape: Shape, backend: str, rows: int, completion: int) -> float:
    """Bytes of the logits of a micro batch at their peak; those of prompts are never computed.

    TRL 1.14.2 without Liger: accelerate copies them to fp32, the loss's fused kernel reads that copy, and its backward
    pass writes another: 8 bytes a logit. Unsloth computes 4 chunks a row: torch.compile keeps 2 bytes a logit for
    the backward pass, and 12 a logit of the chunk in hand (`unsloth_num_chunks` is ignored). That is its packed path;
    the padded one, its fallback, adds to each row what its prompt falls short of the longest.
    """
    if backend == "unsloth":
        return (2 * rows + 12 / 4) * completion * shape.vocabulary
    return 8 * rows * (completion + 1) * shape.vocabulary


# --- The plan ---------------------------------------------------------------------------------


def uses_vllm(profile: Profile) -> bool:
    """Does vLLM sit on the training GPU?"""
    return profile.policy.backend == "unsloth" or (profile.policy.backend == "vllm" and not profile.policy.vllm_server)


def kv_room(profile: Profile, shape: Shape, card: Card) -> float:
    """Bytes for vLLM's KV cache: what the weights and its working memory leave of policy.gpu_share of the card."""
    taken = weights(shape) * WIDTH[profile.policy.dtype] + VLLM_WORK
    return max(0.0, profile.policy.gpu_share * card.gb * 1e9 - taken)


def memory(profile: Profile, shape: Shape, cache: float, micro: int) -> dict[str, float]:
    """Bytes of one training GPU at the longest prompts and answers, `micro` rollouts in a forward pass."""
    policy = profile.policy
    completion = policy.max_answer_tokens * profile.rl.candidates
    own, (count, width) = weights(shape) * WIDTH[policy.dtype], trained(profile, shape)
    tokens = policy.max_prompt_tokens + completion
    kept, layer = activations(shape, policy.lora_rank, micro, tokens, WIDTH[policy.dtype])
    beside = policy.backend == "vllm" and uses_vllm(profile)
    return {
        "weights": own,
        "copy of the weights to sample with": own if policy.backend == "transformers" or beside else 0.0,
        "vLLM's working memory": VLLM_WORK if uses_vllm(profile) else 0.0,
        "KV cache": cache if uses_vllm(profile) or policy.backend != "vllm" else 0.0,
        "LoRA parameters": count * width if policy.lora_rank else 0.0,
        "gradients": count * width,
        "optimizer state (AdamW)": 2 * count * width,
        "activations kept": kept,
        "logits of a micro batch": logits(shape, policy.backend, micro, completion),
        "backward pass of a layer": layer,
        "CUDA context, fragmentation": RESERVE,
    }


def peak(profile: Profile, items: dict[str, float]) -> float:
    """Bytes at the worst moment: logits are freed before the layers' backward pass, and the cache of `generate`
    before training; of each pair the larger counts."""
    kept, cache = items["activations kept"], items["KV cache"]
    logits, layer = items["logits of a micro batch"], items["backward pass of a layer"]
    training = kept + max(logits, layer)
    lasting = sum(items.values()) - kept - cache - logits - layer
    return lasting + (training + cache if uses_vllm(profile) else max(training, cache))


def plan(profile: Profile, shape: Shape, card: Card, gpus: int = 1) -> Plan:
    """Memory at the longest lengths, the largest micro batch that fits, and the time of a step on one such card.

    With several `gpus` each trains its part of the rollouts. Raises LabError where they cannot be split.
    """
    policy, rl, room = profile.policy, profile.rl, card.gb * 1e9
    if policy.backend not in BACKENDS or policy.dtype not in WIDTH:
        raise LabError(f"policy.backend {policy.backend!r} with policy.dtype {policy.dtype!r}: no plan for it")
    if gpus < 1 or rl.rollouts % gpus:
        raise LabError(f"--gpus {gpus}: rl.rollouts = {rl.rollouts} cannot be split evenly; change one of them")
    if gpus > 1 and policy.backend == "unsloth":
        raise LabError(f"--gpus {gpus}: unsloth trains on one GPU; for several add --set policy.backend=vllm")
    rollouts, m = rl.rollouts // gpus, rl.candidates
    longest = (policy.max_prompt_tokens, policy.max_answer_tokens)
    lengths = {"longest": longest}
    if profile.task in TYPICAL:
        lengths["typical"] = tuple(map(min, longest, TYPICAL[profile.task]))
    token = kv_bytes_per_token(shape, WIDTH[policy.dtype])
    whole = (longest[0] + longest[1] * m) * token
    served = policy.backend in ("vllm", "unsloth")
    # `generate` caches all at once, and most where each answer has a prompt of its own.
    cache = kv_room(profile, shape, card) if served else float(rollouts * m * sum(longest) * token)
    micro, rows = 0, rollouts if cache >= whole else 0
    while rows and not micro:
        if rollouts % rows == 0 and peak(profile, memory(profile, shape, cache, rows)) <= room:
            micro = rows
        rows -= 1
    items = memory(profile, shape, cache, micro or 1)
    total, share = peak(profile, items), 0.0
    if uses_vllm(profile):  # what caches all rollouts at their longest, or what training leaves
        base = weights(shape) * WIDTH[policy.dtype] + VLLM_WORK
        left = room - (total - items["KV cache"] - base)
        share = min(math.ceil(100 * (base + rollouts * whole) / room), math.floor(100 * left / room)) / 100
        share = share if share * room - base >= whole else 0.0
    work = {}
    for answers in sorted({m, 1}, reverse=True):
        for name, (prompt, answer) in lengths.items():
            load = (rollouts * m // answers, prompt, answer * answers)
            at_once = min(load[0], int(cache // (prompt + load[2]) // token)) if served else load[0]
            prompts = math.ceil(rollouts / rl.group_size) if served else load[0]
            kind = f"chains of {answers}, {name}" if answers > 1 else f"singles, {name}"
            work[kind] = _work(profile, shape, card, Work(*load, at_once if micro else 0), prompts)
    return Plan(card, items, total, micro, int(cache // token), share, work)


def _work(profile: Profile, shape: Shape, card: Card, work: Work, prompts: int) -> Work:
    """Decoding reads the weights once a token and the caches of all; vLLM reads a prompt once a group. Training takes
    2 FLOPs a matrix parameter and token, three times: forward, backward to the inputs and, with LoRA, the recomputation
    (frozen matrices get no weight gradients), else the weight gradients: 6N. TRL with vLLM scores once more: 8N. The
    head counts for completions only; attention adds 2 layers q t^2 a pass; the adapters' own 2% are left out.
    """
    if not (card.bandwidth and work.at_once):
        return work
    policy, n = profile.policy, work.rollouts
    width, tokens = WIDTH[policy.dtype], work.prompt + work.completion
    matrices, head = shape.layers * sum(a * b for a, b in shape.linears), shape.vocabulary * shape.hidden
    cached = n * (work.prompt + work.completion / 2) * kv_bytes_per_token(shape, width)
    read = work.completion * (math.ceil(n / work.at_once) * (matrices + head) * width + cached)
    again = 1 if policy.backend == "vllm" else 0
    attention = 2 * shape.layers * shape.sides[2] * tokens**2
    flops = 2 * (3 + again) * (matrices * tokens + head * work.completion)
    flops += (again + (4 if policy.lora_rank else 3)) * attention
    speed = card.tflops * 1e12 * COMPUTE_USE
    decode = read / (card.bandwidth * 1e9 * BANDWIDTH_USE) + 2 * matrices * work.prompt * prompts / speed
    return Work(n, work.prompt, work.completion, work.at_once, decode, n * flops / speed)


def remedies(profile: Profile, shape: Shape, card: Card, gpus: int = 1) -> list[str]:
    """Settings that need less memory on a card where nothing fits, the one that helps most first."""
    policy = profile.policy
    length = policy.max_prompt_tokens + policy.max_answer_tokens * profile.rl.candidates
    needed = weights(shape) * WIDTH[policy.dtype] + VLLM_WORK + length * kv_bytes_per_token(shape, WIDTH[policy.dtype])
    share = math.ceil(needed / card.gb / 1e7) / 100
    smaller = [s for s in SHAPES if shape in SHAPES and weights(s) < weights(shape)]
    knobs = [
        ("policy.max_prompt_tokens", policy.max_prompt_tokens // 2, True),
        ("policy.max_answer_tokens", policy.max_answer_tokens // 2, policy.max_answer_tokens > 1),
        ("policy.gpu_share", share, uses_vllm(profile) and share < 1),
        ("policy.lora_rank", 32, not policy.lora_rank),
        ("policy.backend", "unsloth", policy.backend in ("vllm", "transformers") and policy.lora_rank),
        ("policy.vllm_server", "http://HOST:8000", policy.backend == "vllm" and not policy.vllm_server),
        ("policy.model", smaller and "/".join([*policy.model.split("/")[:-1], smaller[-1].name]), smaller),
    ]
    present, tried = plan(profile, shape, card, gpus), []
    for field, value, applies in knobs:
        if applies:
            changed = profile.with_overrides({field: value})
            result = plan(changed, smaller[-1] if field == "policy.model" else shape, card, gpus)
            if result.micro or result.total < present.total:
                text = f"--set {field}={value}: {result.total / 1e9:.1f} GB"
                tried.append((not result.micro, result.total, text + (", fits" if result.micro else "")))
    return [text for *_, text in sorted(tried)]


def print_plan(profile: Profile, gpus: list[str] | tuple[str, ...] = (), count: int = 1) -> None:
    """Print the plan for cards given by name or GB (default 24, 40, 80), `count` of each; LabError as its parts."""
    from rich.console import Console
    from rich.table import Table

    shape, policy, steps = shape_of(profile), profile.policy, profile.rl.steps
    plans = [plan(profile, shape, card_of(text), count) for text in gpus or ("24", "40", "80")]
    trains = f"LoRA rank {policy.lora_rank}" if policy.lora_rank else "all weights trained"
    title = f"{profile.name}: {shape.name}, {weights(shape) / 1e9:.2f} B parameters, {policy.backend}, {trains}"
    space = Table(title=f"{title}\nEstimated memory of one GPU in RL at the longest lengths, in GB")
    time = Table(title=f"Estimated time of an RL step, decoding + training, and of {steps:,}")
    for table, heading in ((space, "item"), (time, "prompt + completion")):
        for text in (heading, *(p.card.name for p in plans)):
            table.add_column(text, justify="left" if text == heading else "right", no_wrap=True)
    for name in plans[0].items:
        space.add_row(name, *(f"{p.items[name] / 1e9:.2f}" for p in plans))
    space.add_section()
    space.add_row("peak (logits or layer)", *(f"{p.total / 1e9:.1f}" for p in plans))
    space.add_row("fits", *("yes" if p.micro else "no" for p in plans), end_section=True)
    space.add_row("rl.micro_rollouts to set", *(str(p.micro or "-") for p in plans))
    space.add_row("policy.gpu_share to set", *(f"{p.gpu_share:.2f}" if p.gpu_share else "-" for p in plans))
    space.add_row("tokens in the KV cache", *(f"{p.kv_tokens:,}" for p in plans))
    for name, w in plans[0].work.items():
        space.add_row(f"at once, {name}", *(f"{p.work[name].at_once} of {w.rollouts}" for p in plans))
        prompts, completions = (count * w.rollouts * tokens for tokens in (w.prompt, w.completion))
        label = f"{name}\n{w.rollouts} x ({w.prompt:,} + {w.completion:,})\n{prompts:,} + {completions:,} a step"
        pairs = [(p.work[name].decode_seconds, p.work[name].train_seconds) for p in plans]
        cells = ["?" if math.isnan(a) else f"{a:.1f} + {b:.1f} s\n{(a + b) * steps / 3600:.1f} h" for a, b in pairs]
        time.add_row(label, *cells, end_section=True)
    console = Console()
    console.print(space, time)
    for p in plans:
        if not p.micro:
            helps = remedies(profile, shape, p.card, count) or ["a larger card"]
            console.print(f"{p.card.gb:g} GB: not one rollout fits. What helps, the most first:", *helps, sep="\n  ")
    guesses = dict(reserve=RESERVE / 1e9, work=VLLM_WORK / 1e9, bandwidth=BANDWIDTH_USE, compute=COMPUTE_USE)
    console.print(NOTES.format(share=policy.gpu_share, **guesses), markup=False)


def main() -> None:
    """Print the estimate for a profile and cards named on the command line."""
    import argparse
    import sys

    from vpo_lab.cli import assignments
    from vpo_lab.config import get_profile

    parser = argparse.ArgumentParser(description="Estimate memory and time of a full-size run, before renting a GPU.")
    parser.add_argument("--profile", default="qwen3-1.7b")
    parser.add_argument("--gpu", action="append", default=[], help="a card's name or its GB; default 24, 40 and 80")
    parser.add_argument("--gpus", type=int, default=1, help="how many such cards share the rollouts of a step")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a profile field")
    chosen = parser.parse_args()
    try:
        print_plan(get_profile(chosen.profile, assignments(chosen.set, "--set")), chosen.gpu, chosen.gpus)
    except LabError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
