"""What a full-size run needs, before a GPU is rented: memory, batch shape, time and price. Estimates, from formulas.

Each formula says what it counts; tests/unit/test_plan.py holds them against allocations measured on a CPU.
Nothing here was measured on a GPU. GB are 10^9 bytes, and a card of N GB counts as N x 10^9 bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

from vpo_lab.config import Profile
from vpo_lab.errors import LabError
from vpo_lab.metrics import power
from vpo_lab.train.gpu import BACKENDS, rollouts_at_once, schedules_itself
from vpo_lab.train.prompts import answers_per_rollout, rollouts_per_prompt, rollouts_per_step
from vpo_lab.train.rl import rollouts_of_a_look

# Estimates, in bytes. RESERVE: CUDA context, workspaces of cuBLAS and Triton, fragmentation. VLLM_WORK: activations
# of the 4,096 tokens that vLLM batches, fp32 logits of its sampler, CUDA graphs, its copies of the adapter.
RESERVE, VLLM_WORK = 2.0e9, 1.5e9
# Estimates too: the share of the card's bandwidth that decoding reaches, and what a token costs besides (launches,
# adapters); what a step costs besides decoding and training: adapter to vLLM, rewards, optimizer; a start of vLLM.
BANDWIDTH_USE, TOKEN_SECONDS, STEP_SECONDS, START_SECONDS = 0.8, 3e-3, 1.0, 150.0
PREFILL_USE = 0.4  # of the card's peak, while vLLM reads prompts
ERROR = 0.4  # of every time and price
TYPICAL = {"toolrl": (950, 83)}  # tokens of a mean prompt and of one answer; other tasks count at their longest
TAGS = 12  # tokens around an answer of a chain
SPREAD = {True: 0.33, False: 0.5}  # standard deviation of the lengths of chains and of singles, as a share of the mean
TRAIN_ROWS, TEST_ROWS = {"toolrl": 3920}, {"toolrl": 80}
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
SCRATCH_VOCABULARY = 512  # the tokenizer is trained when a run starts; the tiny world's has 439 tokens

NOTES = (
    "All numbers are estimates: formulas held against allocations on a CPU, none measured on a GPU. Memory: GB are "
    "10^9 bytes, policy.gpu_share = {share:g}, rl.micro_rollouts the largest that fits; {reserve:g} GB for CUDA and "
    "fragmentation and {work:g} GB for vLLM's work are guesses. Time: +-{error:.0%}. Decoding at {bandwidth:.0%} of "
    "the card's bandwidth and {token:g} ms a token besides, until the longest rollout has ended; training at a fifth "
    "to a quarter of its bf16 peak; {rest:g} s a step for the adapter, rewards and the optimizer. 'longest' is the "
    "profile's limit, 'typical' the task's mean. A policy that thinks at length writes two or three times as much: "
    "decoding takes as many times longer, training 20% to 50%. vpo-lab run --price P tells after 20 steps what it "
    "really costs."
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
    price: float = 0.0  # dollars an hour, an assumption; 0 where none is at hand
    use: float = 0.25  # the share of tflops that training reaches with micro batches of this size; an estimate


@dataclass(frozen=True)
class Work:
    """One optimizer step of one GPU, in tokens."""

    rollouts: int
    prompt: int
    completion: int
    at_once: int  # rollouts of a generation that decode together
    decode_seconds: float = math.nan  # where the card's speed is unknown or nothing fits
    train_seconds: float = math.nan

    @property
    def seconds(self) -> float:
        return self.decode_seconds + self.train_seconds + STEP_SECONDS


@dataclass(frozen=True)
class Plan:
    card: Card
    items: dict[str, float]  # bytes of one GPU, with `micro` rollouts (1 if nothing fits) in a forward pass
    total: float  # their peak in bytes; below their sum, see `peak`
    micro: int  # 0: not even one rollout fits
    kv_tokens: int  # that the KV cache holds
    gpu_share: float  # suggested; 0: vLLM has no place on this card, or takes none
    work: dict[str, Work]
    parts: dict[str, float]  # hours of the whole run, part by part, with typical lengths


SHAPES = (
    Shape("Qwen3-0.6B", 1024, 3072, 28, 16, 8, 128),
    Shape("Qwen3-1.7B", 2048, 6144, 28, 16, 8, 128),
    Shape("Qwen3-4B", 2560, 9728, 36, 32, 8, 128),
    Shape("Qwen3-8B", 4096, 12288, 36, 32, 8, 128, tied=False),
)
CARDS = (
    Card("L4", 24, 300, 121, 0.8),
    Card("A10", 24, 600, 125),
    Card("RTX 3090", 24, 936, 71),
    Card("RTX 4090", 24, 1008, 165, 0.45),
    Card("A100-40", 40, 1555, 312),
    Card("A100-80", 80, 2039, 312, 1.6),
    Card("H100", 80, 3350, 989, 2.6, use=0.2),
    Card("H200", 141, 4800, 989, use=0.2),
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
    name = f"{gb:g} GB" + (f"\n({same.name})" if same.name else "")
    return replace(same, name=name, gb=gb)


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
    lengths = {"longest": longest} | ({"typical": typical(profile)} if profile.task in TYPICAL else {})
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

    def at_once(prompt: int, completion: int, wanted: int) -> int:
        """How many rollouts decode together: what is wanted, allowed, and cached."""
        if not micro or not served:
            return wanted if micro else 0
        limit = rollouts_at_once(profile) if policy.backend == "unsloth" else 256
        return min(wanted, int(cache // (prompt + completion) // token), limit)

    def worked(answers: int, prompt: int, answer: int, spread: float) -> Work:
        n = rollouts * m // answers if rl.equal == "answers" else rollouts
        completion = answer * answers + (TAGS * answers if spread and answers > 1 else 0)
        prompts = math.ceil(rollouts / rl.group_size) if served else n
        together = at_once(prompt, completion, n * rl.steps_per_generation)
        return _work(profile, shape, card, Work(n, prompt, completion, together), prompts, spread)

    work = {}
    for answers in sorted({m, 1}, reverse=True):
        for name, (prompt, answer) in lengths.items():
            kind = f"chains of {answers}, {name}" if answers > 1 else f"singles, {name}"
            work[kind] = worked(answers, prompt, answer, SPREAD[answers > 1] if name == "typical" else 0.0)
    parts = _parts(profile, shape, card, at_once) if micro and card.bandwidth and profile.task in TYPICAL else {}
    return Plan(card, items, total, micro, int(cache // token), share, work, {k: v / gpus for k, v in parts.items()})


def typical(profile: Profile) -> tuple[int, int]:
    """Tokens of a mean prompt and of a mean answer."""
    prompt, answer = TYPICAL[profile.task]
    return min(profile.policy.max_prompt_tokens, prompt), min(profile.policy.max_answer_tokens, answer)


def longest_of(n: int, mean: float, spread: float) -> float:
    """Tokens of the longest of n rollouts whose lengths are lognormal: decoding goes on until it has ended."""
    sigma = math.sqrt(math.log(1 + spread**2))
    place = NormalDist().inv_cdf((n - 0.375) / (n + 0.25))  # of the largest of n, by Blom
    return mean * math.exp(sigma * place - sigma**2 / 2)


def decoding(profile: Profile, shape: Shape, card: Card, work: Work, prompts: int, spread: float) -> float:
    """Seconds to sample the rollouts of `work`: weights are read once a token, and the caches of all; vLLM reads each
    of the `prompts` once.

    vLLM puts the next rollout in the place of one that has ended, and waits for the longest only at the end; `generate`
    waits for it in each turn.
    """
    width = WIDTH[profile.policy.dtype]
    matrices, head = shape.layers * sum(a * b for a, b in shape.linears), shape.vocabulary * shape.hidden
    speed = card.bandwidth * 1e9 * BANDWIDTH_USE
    cached = work.rollouts * (work.prompt + work.completion / 2) * kv_bytes_per_token(shape, width)
    longest = longest_of(min(work.rollouts, work.at_once), work.completion, spread)
    if schedules_itself(profile):
        tokens = max(0.0, work.rollouts / work.at_once - 1) * work.completion + longest
    else:
        tokens = math.ceil(work.rollouts / work.at_once) * longest
    reading = 2 * matrices * work.prompt * prompts / (card.tflops * 1e12 * PREFILL_USE)
    return tokens * ((matrices + head) * width / speed + TOKEN_SECONDS) + work.completion * cached / speed + reading


def training(profile: Profile, shape: Shape, card: Card, rows: float, prompt: float, completion: float) -> float:
    """Seconds to train on so many rows: 2 FLOPs a matrix parameter and token, three times: forward, backward to the
    inputs and, with LoRA, the recomputation (frozen matrices get no weight gradients), else the weight gradients: 6N.
    TRL with vLLM, and steps that share a generation, score once more: 8N. The head counts for completions only;
    attention adds 2 layers q t^2 a pass; the adapters' own 2% are left out.
    """
    policy, tokens = profile.policy, prompt + completion
    again = 1 if policy.backend == "vllm" or profile.rl.steps_per_generation > 1 else 0
    matrices, head = shape.layers * sum(a * b for a, b in shape.linears), shape.vocabulary * shape.hidden
    flops = 2 * (3 + again) * (matrices * tokens + head * completion)
    flops += (again + (4 if policy.lora_rank else 3)) * 2 * shape.layers * shape.sides[2] * tokens**2
    return rows * flops / (card.tflops * 1e12 * card.use)


def _work(profile: Profile, shape: Shape, card: Card, work: Work, prompts: int, spread: float) -> Work:
    if not (card.bandwidth and work.at_once):
        return work
    shared = profile.rl.steps_per_generation
    generation = replace(work, rollouts=work.rollouts * shared)
    decode = decoding(profile, shape, card, generation, prompts * shared, spread) / shared
    train = training(profile, shape, card, work.rollouts, work.prompt, work.completion)
    return replace(work, decode_seconds=decode, train_seconds=train)


def _parts(profile: Profile, shape: Shape, card: Card, at_once: Callable[[int, int, int], int]) -> dict[str, float]:
    """Hours of each part of a run on one card, with typical lengths."""
    sft, rl, evaluation = profile.sft, profile.rl, profile.evaluation
    prompt, answer = typical(profile)
    mean = {1: answer} | ({rl.candidates: (answer + TAGS) * rl.candidates} if rl.candidates > 1 else {})

    def sampled(n: int, answers: int, batch: int, prompts: int) -> float:
        """Seconds for n rollouts; those who cannot schedule take a batch at a time."""
        wanted = n if schedules_itself(profile) else min(n, batch)
        work = Work(n, prompt, mean[answers], at_once(prompt, mean[answers], wanted))
        return decoding(profile, shape, card, work, prompts, SPREAD[answers > 1])

    requests = requests_of(profile)
    rows = sft.train_rows or TRAIN_ROWS[profile.task]
    singles = lambda n, rows: sampled(n * rows, 1, evaluation.batch, rows) if n else 0.0  # noqa: E731
    steps = sft.steps + (sft.gold_steps if sft.chains == "own" else 0)
    warmup = training(profile, shape, card, steps * sft.batch_rows, prompt, sum(mean.values()) / len(mean))
    parts = {
        "warmup": warmup + 0.5 * steps + (singles(sft.own_samples, rows) if steps and sft.chains == "own" else 0.0),
        "which rows are solved": singles(
            rl.drop_solved, rl.train_rows or TRAIN_ROWS[profile.task] - evaluation.held_out
        ),
    }
    for method in profile.methods:
        m, group = answers_per_rollout(profile, method), rollouts_per_prompt(profile, method)
        n, shared = rollouts_per_step(profile, method), rl.steps_per_generation
        decode = sampled(n * shared, m, n * shared, n // group * shared) / shared
        step = decode + training(profile, shape, card, n, prompt, mean[m]) + STEP_SECONDS
        parts[f"{method}, {rl.steps:,} steps"] = rl.steps * step
        if evaluation.every:
            watched, at_a_time = evaluation.watch_requests, rollouts_of_a_look(profile, group)
            look = sampled(group * watched, m, at_a_time, watched) + STEP_SECONDS * group * watched / at_a_time
            parts[f"looks of {method}"] = rl.steps // evaluation.every * look
    pools = [1, rl.candidates, *(answers_per_rollout(profile, method) for method in profile.methods)]
    parts["pools"] = sum(
        sampled(requests * math.ceil(evaluation.candidates / m), m, evaluation.batch, requests) for m in pools
    )
    parts["starts"] = 3 * START_SECONDS  # notebooks 02 to 04 each load the model
    return {name: seconds / 3600 for name, seconds in parts.items() if seconds}


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


def print_plan(profile: Profile, gpus: list[str] | tuple[str, ...] = (), count: int = 1, price: float = 0.0) -> None:
    """Print the plan for cards given by name or GB (default 24, 40, 80), `count` of each; LabError as its parts.

    `price` is that of a card and hour; 0: the assumption in `CARDS`.
    """
    from rich.console import Console
    from rich.table import Table

    shape, policy, steps, shared = shape_of(profile), profile.policy, profile.rl.steps, profile.rl.steps_per_generation
    plans = [plan(profile, shape, card_of(text), count) for text in gpus or ("24", "40", "80")]
    trains = f"LoRA rank {policy.lora_rank}" if policy.lora_rank else "all weights trained"
    title = f"{profile.name}: {shape.name}, {weights(shape) / 1e9:.2f} B parameters, {policy.backend}, {trains}"
    space = Table(title=f"{title}\nEstimated memory of one GPU in RL at the longest lengths, in GB")
    time = Table(title=f"Estimated time of an RL step, decoding + training + {STEP_SECONDS:g} s, and of {steps:,}")
    whole = Table(title=f"Estimated hours of the whole run at typical lengths, +-{ERROR:.0%}")
    for table, heading in ((space, "item"), (time, "prompt + completion"), (whole, "part")):
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
        space.add_row(f"at once, {name}", *(f"{p.work[name].at_once} of {w.rollouts * shared}" for p in plans))
        prompts, completions = (count * w.rollouts * tokens for tokens in (w.prompt, w.completion))
        label = f"{name}\n{w.rollouts} x ({w.prompt:,} + {w.completion:,})\n{prompts:,} + {completions:,} a step"
        cells = []
        for each in (p.work[name] for p in plans):
            pair = f"{each.decode_seconds:.3g} + {each.train_seconds:.3g} s"
            cells.append("?" if math.isnan(each.seconds) else f"{pair}\n{each.seconds * steps / 3600:.1f} h")
        time.add_row(label, *cells, end_section=True)
    for name in max((p.parts for p in plans), key=len):
        whole.add_row(name, *(f"{p.parts[name]:.2f}" if p.parts else "?" for p in plans))
    whole.add_section()
    hours = [sum(p.parts.values()) for p in plans]
    whole.add_row("all", *(between(hour, " h") for hour in hours))
    prices = [price or p.card.price for p in plans]
    bills = [between(hour * each * count, "") for hour, each in zip(hours, prices, strict=True)]
    whole.add_row("price", *(f"{bill}\n({each:g} an hour)" for bill, each in zip(bills, prices, strict=True)))
    console = Console()
    console.print(space, time, *([whole] if any(hours) else []))
    if profile.task in TYPICAL:
        console.print(repeated_prompts(profile), markup=False)
    if profile.task in TEST_ROWS:
        console.print(f"What it can decide: {power(requests_of(profile))}.", markup=False)
    for p in plans:
        if not p.micro:
            helps = remedies(profile, shape, p.card, count) or ["a larger card"]
            console.print(f"{p.card.gb:g} GB: not one rollout fits. What helps, the most first:", *helps, sep="\n  ")
    guesses = dict(reserve=RESERVE / 1e9, work=VLLM_WORK / 1e9, bandwidth=BANDWIDTH_USE, error=ERROR)
    guesses |= dict(token=1e3 * TOKEN_SECONDS, rest=STEP_SECONDS)
    console.print(NOTES.format(share=policy.gpu_share, **guesses), markup=False)


def repeated_prompts(profile: Profile) -> str:
    """Say how many prompt tokens a training step computes for each method, at typical lengths.

    A trainer reads the prompt again for each rollout, and no token of it carries loss. Where answers are equal, GRPO
    has M times as many rollouts.
    """
    prompt, answer = typical(profile)
    told = []
    for method in profile.methods:
        m, n = answers_per_rollout(profile, method), rollouts_per_step(profile, method)
        written = n * (answer * m + (TAGS * m if m > 1 else 0))
        told.append(
            f"{method} {n} x {prompt:,} = {n * prompt:,}, {n * prompt / (n * prompt + written):.0%} of its tokens, "
            f"for {n * m} answers"
        )
    line = f"Prompt tokens in a training step, once for each rollout: {'; '.join(told)}."
    if profile.rl.equal == "answers":
        line += " --set rl.equal=rollouts gives GRPO as many rollouts instead of as many answers."
    return line


def requests_of(profile: Profile) -> int:
    """How many requests a pool has."""
    found = TEST_ROWS[profile.task] + profile.evaluation.held_out
    return min(profile.evaluation.requests or found, found)


def between(value: float, unit: str) -> str:
    """A number with its error, as a range; "?" where it is not known."""
    return f"{value * (1 - ERROR):.1f}-{value * (1 + ERROR):.1f}{unit}" if value else "?"


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
    parser.add_argument("--price", type=float, default=0.0, help="of a card and hour; default: an assumption")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a profile field")
    chosen = parser.parse_args()
    try:
        print_plan(get_profile(chosen.profile, assignments(chosen.set, "--set")), chosen.gpu, chosen.gpus, chosen.price)
    except LabError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
