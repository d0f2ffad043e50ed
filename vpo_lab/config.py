"""Everything that may differ between a smoke test, the tiny run and the full run, in one place."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass, field, fields, is_dataclass, replace

from vpo_lab.errors import LabError


@dataclass(frozen=True)
class Policy:
    """Which model, and how it is loaded."""

    backend: str  # one of policy.BACKENDS: "scratch", "transformers", "vllm", "unsloth"
    model: str  # a hub id or folder; for "scratch" only a label
    lora_rank: int = 0  # 0: all weights are trained
    lora_alpha: int = 32
    dtype: str = "float32"
    max_prompt_tokens: int = 256
    max_answer_tokens: int = 15  # of one answer; a chain gets M times as many
    gpu_share: float = 0.5  # of a GPU's memory that vLLM may take, its copy of the weights included
    vllm_server: str = ""  # "vllm" only: the address of a `trl vllm-serve`; "": vLLM runs beside the training
    # Shape of a "scratch" model (Qwen3 architecture).
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 2
    heads: int = 4


@dataclass(frozen=True)
class SFT:
    """Warmup on single answers and on M-answer chains, half of each."""

    steps: int
    batch_rows: int
    learning_rate: float
    micro_rows: int = 0  # rows per forward pass; 0: the whole batch at once
    schedule: str = "cosine"
    warmup_share: float = 0.1
    train_rows: int = 0  # how many train rows feed it; 0: all
    chains: str = "task"  # beside the gold, a chain shows the task's demonstrations, or the policy's "own" samples
    own_samples: int = 8  # per row, from which chains of "own" are packed
    gold_steps: int = 30  # on golds alone, before own samples are drawn


@dataclass(frozen=True)
class RL:
    """The GRPO-family stage, the same numbers for every method."""

    steps: int
    rollouts: int  # B: rollouts per optimizer step
    group_size: int  # G: rollouts per prompt
    learning_rate: float
    candidates: int = 3  # M, for multi-answer methods
    weight_draws: int = 128  # K
    alpha: float = 1.0
    sampler: str = "sobol"
    shared_draws: bool = True  # one set of K weightings per group, else per rollout
    diversity: float = 0.0  # factor of the pairwise-L1 bonus
    duplicates: str = "keep"  # or "drop": how the bonus counts equal candidates
    credit: str = "answer"  # one advantage per answer, or per "set"
    pool: int = 1  # k of the search over rollouts that a chain is scored for
    at_k: int = 0  # k of max_at_k; 0: half of the group
    schedule: str = "constant_with_warmup"  # of the learning rate
    temperature: float = 1.0
    micro_rollouts: int = 0  # rollouts per forward pass; 0: all at once
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    checkpoint_every: int = 50
    train_rows: int = 0


@dataclass(frozen=True)
class Evaluation:
    """Pools of candidates on held-out requests."""

    requests: int  # 0: the whole test split
    candidates: int = 24  # n: per request and method
    budgets: tuple[int, ...] = (1, 3, 6, 12, 24)  # k
    temperature: float = 1.0
    top_p: float = 1.0
    batch: int = 600  # completions sampled at once
    bootstrap: int = 2000
    every: int = 0  # RL steps between two evaluations on held-out requests while training; 0: none
    watch_requests: int = 16  # held-out requests of such an evaluation


@dataclass(frozen=True)
class Profile:
    name: str
    task: str
    policy: Policy
    sft: SFT
    rl: RL
    evaluation: Evaluation
    methods: tuple[str, ...] = ("grpo", "vpo")
    data: str = ""  # a parquet file or folder; "": the task's own source
    track: bool = False  # Weights & Biases, when a key is there
    minutes: str = field(default="", compare=False)  # what a reader should expect, for the display

    def with_overrides(self, overrides: dict | None) -> Profile:
        """A copy with dotted fields replaced, e.g. {"rl.steps": 2}; LabError on an unknown field."""
        profile = self
        for path, value in (overrides or {}).items():
            profile = _replace_path(profile, path, path.split("."), value)
        return profile.checked()

    def checked(self) -> Profile:
        """Itself, if it can be run; a LabError that names the first field that cannot."""
        rl, evaluation = self.rl, self.evaluation
        rules = [
            (rl.candidates >= 1, f"rl.candidates (M) = {rl.candidates}: at least 1"),
            (rl.weight_draws >= 1, f"rl.weight_draws (K) = {rl.weight_draws}: at least 1"),
            (rl.alpha > 0, f"rl.alpha = {rl.alpha}: must be positive"),
            (rl.sampler in ("sobol", "iid"), f"rl.sampler = {rl.sampler!r}: 'sobol' or 'iid'"),
            (self.sft.chains in ("task", "own"), f"sft.chains = {self.sft.chains!r}: 'task' or 'own'"),
            (
                self.sft.chains == "task" or self.sft.own_samples >= rl.candidates,
                f"sft.own_samples = {self.sft.own_samples}: at least rl.candidates (M) = {rl.candidates}",
            ),
            (0 < self.policy.gpu_share < 1, f"policy.gpu_share = {self.policy.gpu_share}: between 0 and 1"),
            (
                evaluation.every >= 0 and evaluation.watch_requests >= 1,
                f"evaluation.every = {evaluation.every}: 0 (never) or more; evaluation.watch_requests: at least 1",
            ),
            (
                self.policy.backend == "scratch" or self.policy.lora_rank > 0 or self.policy.dtype == "float32",
                "policy.lora_rank = 0 trains all weights, and bfloat16 ones are too coarse for small steps: "
                "set policy.dtype = float32 too",
            ),
            (
                self.policy.backend != "unsloth" or self.policy.lora_rank > 0,
                "policy.lora_rank = 0: unsloth trains adapters here; set policy.backend = transformers or vllm",
            ),
            (
                not self.policy.vllm_server or "://" in self.policy.vllm_server,
                f"policy.vllm_server = {self.policy.vllm_server!r}: write an address such as http://127.0.0.1:8000",
            ),
            (rl.credit in ("set", "answer"), f"rl.credit = {rl.credit!r}: 'set' or 'answer'"),
            (rl.duplicates in ("keep", "drop"), f"rl.duplicates = {rl.duplicates!r}: 'keep' or 'drop'"),
            (rl.diversity >= 0, f"rl.diversity = {rl.diversity}: 0 (none) or more"),
            (rl.micro_rollouts >= 0 and self.sft.micro_rows >= 0, "micro_rollouts, micro_rows: 0 or more"),
            (rl.learning_rate > 0 and self.sft.learning_rate > 0, "learning rates must be positive"),
            (rl.temperature > 0 and evaluation.temperature > 0, "temperatures must be positive"),
            (self.sft.batch_rows >= 1 and evaluation.bootstrap >= 1, "sft.batch_rows and bootstrap: at least 1"),
            (rl.group_size >= 2, f"rl.group_size (G) = {rl.group_size}: at least 2, or nothing is compared"),
            (
                rl.rollouts >= rl.group_size and rl.rollouts % max(rl.group_size, 1) == 0,
                f"rl.rollouts (B) = {rl.rollouts}: must be a multiple of rl.group_size = {rl.group_size}",
            ),
            (
                1 <= rl.pool <= rl.group_size - (rl.credit == "set") and (rl.pool == 1 or rl.shared_draws),
                f"rl.pool = {rl.pool}: 1 to rl.group_size = {rl.group_size}, below it with credit 'set' (all rollouts "
                "would earn the same), and above 1 only with rl.shared_draws",
            ),
            (
                0 <= rl.at_k < rl.group_size * rl.candidates,
                f"rl.at_k = {rl.at_k}: 0 (half of the group) or below its {rl.group_size * rl.candidates} answers",
            ),
            (
                rl.micro_rollouts <= 0 or rl.rollouts % rl.micro_rollouts == 0,
                f"rl.micro_rollouts = {rl.micro_rollouts}: must divide rl.rollouts = {rl.rollouts}",
            ),
            (
                self.sft.micro_rows <= 0 or self.sft.batch_rows % self.sft.micro_rows == 0,
                f"sft.micro_rows = {self.sft.micro_rows}: must divide sft.batch_rows = {self.sft.batch_rows}",
            ),
            (
                min(self.sft.steps, self.sft.gold_steps, rl.steps) >= 1,
                "sft.steps, sft.gold_steps, rl.steps: at least 1",
            ),
            (rl.checkpoint_every >= 1, f"rl.checkpoint_every = {rl.checkpoint_every}: at least 1"),
            (
                min(evaluation.requests, rl.train_rows, self.sft.train_rows) >= 0,
                "evaluation.requests, rl.train_rows and sft.train_rows: 0 (all) or more",
            ),
            (evaluation.batch >= 1 and self.policy.max_answer_tokens >= 1, "batch, max_answer_tokens: at least 1"),
            (0 < evaluation.top_p <= 1, f"evaluation.top_p = {evaluation.top_p}: above 0, at most 1"),
            (
                evaluation.candidates % max(rl.candidates, 1) == 0,
                f"evaluation.candidates = {evaluation.candidates}: must be a multiple of M = {rl.candidates}",
            ),
            (
                max(evaluation.budgets, default=0) <= evaluation.candidates and min(evaluation.budgets, default=0) >= 1,
                f"evaluation.budgets = {evaluation.budgets}: each between 1 and {evaluation.candidates}",
            ),
        ]
        for holds, message in rules:
            if not holds:
                raise LabError(f"profile {self.name!r}: {message}")
        return self

    def settings(self) -> dict:
        """What results depend on, as JSON holds it. A field at its default is left out: new fields change nothing."""
        settings = {k: v for k, v in _unusual(self).items() if k not in ("minutes", "track")}
        return json.loads(json.dumps(settings))

    def fingerprint(self) -> str:
        """12 hex digits that change when any setting that affects results changes."""
        settings = self.settings()
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _unusual(node) -> dict:
    """The fields of a dataclass that have no default, or another value than it."""
    values = {f.name: getattr(node, f.name) for f in fields(node) if getattr(node, f.name) != f.default}
    return {name: _unusual(value) if is_dataclass(value) else value for name, value in values.items()}


def _replace_path(node, path: str, parts: list[str], value):
    names = [f.name for f in fields(node)]
    head, *rest = parts
    if head not in names:
        close = difflib.get_close_matches(head, names, n=1)
        hint = f", did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
        raise LabError(f"override {path!r}: no field {head!r}{hint}")
    current = getattr(node, head)
    if rest:
        if not is_dataclass(current):
            raise LabError(f"override {path!r}: {head!r} has no fields of its own")
        return replace(node, **{head: _replace_path(current, path, rest, value)})
    if is_dataclass(current):
        raise LabError(f"override {path!r}: name a field of it, e.g. {path}.{fields(current)[0].name}")
    if isinstance(current, tuple) and isinstance(value, (list, tuple)):
        value = tuple(value)
        if any(type(item) is not type(current[0]) for item in value):
            raise LabError(f"override {path}={list(value)!r}: expected items such as {current[0]!r}")
    elif isinstance(current, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(current):
        raise LabError(f"override {path}={value!r}: expected {type(current).__name__}, as in the present {current!r}")
    return replace(node, **{head: value})


TINY = Profile(
    name="tiny",
    task="tiny_tools",
    policy=Policy(backend="scratch", model="tiny-qwen3"),
    sft=SFT(steps=600, batch_rows=64, learning_rate=4e-3),
    rl=RL(steps=600, rollouts=64, group_size=4, learning_rate=4e-4, schedule="cosine"),
    evaluation=Evaluation(requests=0),
    minutes="10 to 15 minutes on two CPU cores",
)

QWEN = Profile(
    name="qwen3-1.7b",
    task="toolrl",
    policy=Policy(
        backend="unsloth",
        model="unsloth/Qwen3-1.7B",
        lora_rank=32,
        lora_alpha=32,
        dtype="bfloat16",
        max_prompt_tokens=4096,
        max_answer_tokens=512,
    ),
    sft=SFT(steps=60, batch_rows=16, micro_rows=2, learning_rate=2e-4, train_rows=480, chains="own"),
    rl=RL(
        steps=1000,
        rollouts=16,
        group_size=8,
        learning_rate=5e-6,
        credit="set",  # the paper's: two groups are too few to fit a baseline on
        micro_rollouts=4,
        warmup_steps=20,
        max_grad_norm=0.2,
    ),
    evaluation=Evaluation(requests=0, temperature=0.7, top_p=0.95, batch=48, every=100),
    track=True,
    minutes="an estimated 10-20 hours on one 24 GB GPU; not yet run",
)

PROFILES = {
    profile.name: profile
    for profile in (
        TINY,
        replace(
            TINY,
            name="smoke",
            # Enough warmup that rewards differ: without them nothing would be trained, nor tested.
            sft=replace(TINY.sft, steps=60, batch_rows=32, train_rows=256),
            rl=replace(TINY.rl, steps=4, rollouts=16, group_size=4, checkpoint_every=2, train_rows=64),
            evaluation=replace(TINY.evaluation, requests=6, candidates=6, budgets=(1, 3, 6), bootstrap=200),
            minutes="about a minute; it shows that everything runs and teaches the policy next to nothing",
        ),
        replace(
            TINY,
            name="maze",
            task="maze",
            policy=replace(TINY.policy, hidden_size=96, intermediate_size=288, layers=3, max_answer_tokens=13),
            sft=replace(TINY.sft, steps=500),
            rl=replace(TINY.rl, steps=400, learning_rate=2e-4),
            minutes="10 to 15 minutes on two CPU cores",
        ),
        QWEN,
        replace(
            QWEN,
            name="qwen3-0.6b",
            policy=replace(QWEN.policy, model="unsloth/Qwen3-0.6B"),
            minutes="an estimated 6-12 hours on one 16 GB GPU; not yet run",
        ),
    )
}


def get_profile(name: str, overrides: dict | None = None) -> Profile:
    """The profile of that name with dotted overrides; LabError if the name or a field is unknown."""
    if name not in PROFILES:
        raise LabError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[name].with_overrides(overrides)
