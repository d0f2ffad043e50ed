"""Everything that may differ between a smoke test, the tiny run and the full run, in one place."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from functools import reduce

from vpo_lab.errors import LabError


@dataclass(frozen=True)
class Policy:
    """Say which model is trained, and how it is loaded."""

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
    """Set the warmup: half single answers, half chains of M."""

    steps: int  # 0: no warmup, RL starts from the untouched model
    batch_rows: int
    learning_rate: float
    micro_rows: int = 0  # rows per forward pass; 0: the whole batch at once
    schedule: str = "cosine"
    warmup_share: float = 0.1
    train_rows: int = 0  # how many train rows feed it; 0: all
    chains: str = "task"  # beside the gold, a chain shows the task's demonstrations, or the policy's "own" samples
    own_samples: int = 8  # per row, from which chains of "own" are packed
    # On golds alone, before own samples are drawn; 0: these are drawn from the untouched model, and imitated.
    gold_steps: int = 30
    least_share: float = 0.0  # of the rows that must have enough distinct own samples for a chain; 0: no matter


@dataclass(frozen=True)
class RL:
    """Set the RL stage, the same numbers for every method."""

    steps: int
    rollouts: int  # B: rollouts per optimizer step
    group_size: int  # G: rollouts per prompt
    learning_rate: float
    candidates: int = 3  # M, for multi-answer methods
    equal: str = "answers"  # what methods have as many of in a step: GRPO's group is G x M, or "rollouts": G
    steps_per_generation: int = 1  # optimizer steps that share a batch of rollouts; the later ones are off-policy
    weight_draws: int = 128  # K
    alpha: float = 1.0
    diversity: float = 0.0  # factor of the pairwise-L1 bonus of vpo_credit and vpo_search
    search_k: int = 4  # vpo_search scores a chain for what it adds to a search over this many
    at_k: int = 0  # k of max_at_k; 0: half of the group
    kl: float = 0.0  # beta: the price of a nat between the policy and its warmup, in every token
    scale_rewards: bool = True  # grpo, best_of_set and vpo: divide by the spread of a group, as GRPO does
    schedule: str = "constant_with_warmup"  # of the learning rate
    temperature: float = 1.0
    micro_rollouts: int = 0  # rollouts per forward pass; 0: all at once
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    checkpoint_every: int = 50
    train_rows: int = 0
    drop_solved: int = 0  # own samples per row; rows that are solved in all of them are left out; 0: none is


@dataclass(frozen=True)
class Evaluation:
    """Set the pools of candidates on requests that nothing was trained on."""

    requests: int  # at most so many of the test split and then of the rows held out; 0: all
    held_out: int = 0  # train rows that neither warmup nor RL meets: for pools, beside the test split, and for looks
    candidates: int = 24  # n: per request and method
    budgets: tuple[int, ...] = (1, 3, 6, 12, 24)  # k
    temperature: float = 1.0
    top_p: float = 1.0
    batch: int = 600  # completions sampled at once
    bootstrap: int = 2000
    every: int = 0  # RL steps between two looks at held-out rows while training; 0: none
    watch_requests: int = 16  # held-out rows of such a look


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
    maze: str = ""  # the profile of the second world of notebooks 02 to 05; "": they show the task alone
    code: str = ""  # the profile that notebook 06 trains; "": `vpo-lab run` leaves 06 out
    judges: str = ""  # the same for notebook 07
    track: bool = False  # Weights & Biases, when a key is there
    patience: float = 0.0  # minutes without a step or an answer after which a process is ended and goes on; 0: no limit
    minutes: str = field(default="", compare=False)  # what a reader should expect, for the display

    def with_overrides(self, overrides: dict | None) -> Profile:
        """Return a copy with dotted fields replaced, e.g. {"rl.steps": 2}; LabError on an unknown field."""
        profile = self
        for path, value in (overrides or {}).items():
            profile = _replace_path(profile, path, path.split("."), value)
        return profile.checked()

    def checked(self, rules: tuple[str, ...] = ()) -> Profile:
        """Return itself, if it keeps the rules (or all `RULES`); LabError that names the first broken one."""
        for rule in rules or RULES:
            rule, _, advice = rule.partition("  # ")
            if not eval(rule, {"__builtins__": {"max": max, "min": min}}, vars(self)):
                values = ", ".join(f"{path} = {reduce(getattr, path.split('.'), self)!r}" for path in _paths_in(rule))
                raise LabError(f"profile {self.name!r}: {rule} does not hold ({values}){': ' * bool(advice)}{advice}")
        return self

    def settings(self) -> dict:
        """Return what results depend on, as JSON holds it: {"rl.steps": 400, ...}."""
        values = json.loads(json.dumps(_flat(asdict(self))))
        return {path: value for path, value in values.items() if path not in NEUTRAL}

    def fingerprint(self) -> str:
        """Return 12 hex digits that change when any setting that affects results changes."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()[:12]


# What a run may be continued with another value of: none of these changes what is trained or measured.
NEUTRAL = (
    "name", "minutes", "maze", "code", "judges", "track", "patience", "policy.gpu_share", "policy.vllm_server",
    "sft.micro_rows", "rl.micro_rollouts", "rl.checkpoint_every", "evaluation.batch",
)  # fmt: skip

# What has to hold, read from left to right; behind "#" what to do.
RULES = (
    "rl.candidates >= 1",
    "rl.weight_draws >= 1",
    "rl.alpha > 0",
    "rl.diversity >= 0",
    "rl.kl >= 0",
    "rl.learning_rate > 0",
    "rl.temperature > 0",
    "rl.steps >= 1",
    "rl.checkpoint_every >= 1",
    "rl.equal in ('answers', 'rollouts')",
    "rl.steps_per_generation >= 1 and rl.steps % rl.steps_per_generation == 0",
    "rl.checkpoint_every % rl.steps_per_generation == 0  # else a resumed run would sample those steps anew",
    "rl.train_rows >= 0",
    "rl.drop_solved >= 0",
    "rl.group_size >= 2  # one rollout would be compared with nothing",
    "rl.rollouts >= rl.group_size and rl.rollouts % rl.group_size == 0",
    "rl.micro_rollouts >= 0 and rl.rollouts % (rl.micro_rollouts or 1) == 0",
    "1 <= rl.search_k and ('vpo_search' not in methods or rl.search_k <= rl.group_size)",
    "0 <= rl.at_k < rl.group_size * (rl.candidates if rl.equal == 'answers' else 1)  # 0: half of the group",
    "sft.steps >= 0",
    "sft.steps >= 1 or policy.backend != 'scratch'  # an untrained model has nothing to start from",
    "sft.gold_steps >= 0",
    "sft.gold_steps >= 1 or sft.chains == 'task' or policy.backend != 'scratch'  # it has no answers of its own yet",
    "0 <= sft.least_share <= 1",
    "sft.batch_rows >= 1",
    "sft.micro_rows >= 0 and sft.batch_rows % (sft.micro_rows or 1) == 0",
    "sft.learning_rate > 0",
    "sft.train_rows >= 0",
    "sft.chains in ('task', 'own')",
    "sft.chains == 'task' or sft.own_samples >= rl.candidates",
    "policy.max_answer_tokens >= 1",
    "0 < policy.gpu_share < 1",
    "policy.vllm_server == '' or '://' in policy.vllm_server  # write an address such as http://127.0.0.1:8000",
    "policy.lora_rank > 0 or policy.backend != 'unsloth'  # set policy.backend = transformers or vllm",
    "policy.lora_rank > 0 or policy.backend == 'scratch' or policy.dtype == 'float32'"
    "  # set policy.dtype = float32: bfloat16 weights are too coarse for small steps",
    "patience >= 0",
    "evaluation.requests >= 0",
    "evaluation.batch >= 1",
    "evaluation.bootstrap >= 1",
    "evaluation.every >= 0",
    "evaluation.watch_requests >= 1",
    "evaluation.held_out >= 0",
    "evaluation.every == 0 or evaluation.held_out >= evaluation.watch_requests  # looks are at train rows held out",
    "evaluation.temperature > 0",
    "0 < evaluation.top_p <= 1",
    "evaluation.candidates % rl.candidates == 0",
    "evaluation.budgets and 1 <= min(evaluation.budgets) and max(evaluation.budgets) <= evaluation.candidates",
)


def _paths_in(rule: str) -> dict[str, None]:
    return dict.fromkeys(re.findall(r"\b(?:rl|sft|policy|evaluation)\.\w+|\bmethods\b", rule))


def checked_seed(seed: int) -> int:
    """Return the seed; LabError unless it is from 0 to 2**31 - 1, which every generator here takes."""
    if not 0 <= seed < 2**31:
        raise LabError(f"seed = {seed}: choose one from 0 to {2**31 - 1}")
    return seed


def differences(theirs: dict, mine: dict) -> dict[str, tuple]:
    """Return {field: (their value, mine)} where two `settings` differ; a field that one lacks has its default there."""
    theirs, mine = _flat(theirs), _flat(mine)
    defaults = {f"{name}.{f.name}": f.default for name, part in SECTIONS.items() for f in fields(part)}
    defaults |= {f.name: f.default for f in fields(Profile)}
    defaults = json.loads(json.dumps({path: None if value is MISSING else value for path, value in defaults.items()}))
    found = {path: tuple(side.get(path, defaults.get(path)) for side in (theirs, mine)) for path in {**theirs, **mine}}
    return {path: pair for path, pair in found.items() if pair[0] != pair[1] and path not in NEUTRAL}


SECTIONS = {"policy": Policy, "sft": SFT, "rl": RL, "evaluation": Evaluation}


def _flat(values: dict, above: str = "") -> dict:
    """{"rl": {"steps": 2}} as {"rl.steps": 2}."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat


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
        form = f"a list such as '{json.dumps(current)}'" if isinstance(current, tuple) else type(current).__name__
        raise LabError(f"override {path}={value!r}: expected {form}, now it is {current!r}")
    return replace(node, **{head: value})


# Without the notebooks that train profiles of their own: what the other small profiles are made of.
SMALL = Profile(
    name="tiny",
    task="tiny_tools",
    policy=Policy(backend="scratch", model="tiny-qwen3"),
    sft=SFT(steps=600, batch_rows=64, learning_rate=4e-3),
    rl=RL(steps=400, rollouts=64, group_size=4, learning_rate=4e-4, schedule="cosine"),
    evaluation=Evaluation(requests=0),
    minutes="about 17 minutes on two quiet CPU cores",
)

TINY = replace(SMALL, maze="maze", code="tiny_code", judges="tiny_judges")

SMOKE = replace(
    TINY,
    name="smoke",
    # Enough warmup that rewards differ: without them nothing would be trained, nor tested.
    sft=replace(TINY.sft, steps=60, batch_rows=32, train_rows=256),
    rl=replace(TINY.rl, steps=4, rollouts=16, group_size=4, checkpoint_every=2, train_rows=64),
    evaluation=replace(TINY.evaluation, requests=6, candidates=6, budgets=(1, 3, 6), bootstrap=200),
    maze="smoke_maze",
    code="smoke_code",
    judges="smoke_judges",
    minutes="one to two minutes; it shows that everything runs and teaches the policy next to nothing",
)

TINY_CODE = replace(
    SMALL,
    name="tiny_code",
    task="tiny_code",
    sft=replace(TINY.sft, steps=900, learning_rate=2e-3),
    # Only drafts are trained, see tasks/code/tiny.py.
    rl=replace(TINY.rl, steps=250, schedule="constant_with_warmup", warmup_steps=40, train_rows=1024),
    minutes="5 to 10 minutes on two CPU cores",
)

TINY_CHAIN = replace(
    SMALL,
    name="tiny_chain",
    task="tiny_chain",
    sft=replace(TINY.sft, steps=400, learning_rate=2e-3),
    # At 4e-4 VPO got worse in a pilot on one seed.
    rl=replace(TINY.rl, steps=200, learning_rate=2e-4, schedule="constant_with_warmup", warmup_steps=20),
    minutes="5 to 10 minutes on two CPU cores",
)

TINY_HOPS = replace(
    TINY_CHAIN,
    name="tiny_hops",
    task="tiny_hops",
    sft=replace(TINY_CHAIN.sft, steps=1500, batch_rows=32, learning_rate=3e-3),
    rl=replace(TINY_CHAIN.rl, train_rows=2048),  # long questions only, see tasks/musique/tiny.py
)

MAZE = replace(
    SMALL,
    name="maze",
    task="maze",
    policy=replace(TINY.policy, hidden_size=96, intermediate_size=288, layers=3, max_answer_tokens=13),
    sft=replace(TINY.sft, steps=500),
    rl=replace(TINY.rl, steps=250, learning_rate=2e-4),
    minutes="an estimated 10 minutes on two CPU cores",
)

TINY_JUDGES = replace(
    SMALL,
    name="tiny_judges",
    task="tiny_judges",
    policy=replace(TINY.policy, max_answer_tokens=11),
    methods=("grpo", "best_of_set", "vpo"),
    sft=replace(TINY.sft, learning_rate=3e-3),
    # Pairs, because their exact optima are known, see tasks/judges/optimum.py. Rewards are not divided by their spread:
    # divided, a price on KL has no exact meaning.
    rl=replace(
        TINY.rl,
        steps=300,
        rollouts=96,
        group_size=6,
        candidates=2,
        learning_rate=1e-3,
        kl=0.01,
        schedule="cosine",
        warmup_steps=10,
        scale_rewards=False,
    ),
    evaluation=replace(TINY.evaluation, budgets=(1, 2, 6, 12, 24)),
    minutes="about 5 minutes for each method on a quiet CPU core",
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
    # ToolRL's golds hold two fixed thoughts: shown to a model that can think, they take that away before RL begins.
    sft=SFT(
        steps=60,
        batch_rows=16,
        micro_rows=2,
        learning_rate=2e-4,
        train_rows=480,
        chains="own",
        gold_steps=0,
        least_share=0.5,
    ),
    # 16,000 rollouts, eight groups a step: with two, one step in five has no gradient, and Adam follows the noise. An
    # adapter wants about ten times the rate of all weights.
    rl=RL(
        steps=250,
        rollouts=64,
        group_size=8,
        learning_rate=1e-5,
        micro_rollouts=4,
        warmup_steps=10,
        max_grad_norm=1.0,
        checkpoint_every=10,
        drop_solved=8,
    ),
    # 80 test rows alone cannot decide: the paper's own gap is about one and a half standard errors of them.
    evaluation=Evaluation(requests=0, temperature=0.7, top_p=0.95, batch=48, every=25, held_out=320),
    track=True,
    patience=30.0,  # several times the longest step on the slowest card
    minutes="an estimated 4-15 hours on one 24 GB GPU; not yet run",
)

QWEN_TEMPLATE = replace(
    QWEN,
    name="qwen3-1.7b-template",
    sft=replace(QWEN.sft, gold_steps=30, least_share=0.0),
    rl=replace(
        QWEN.rl,
        steps=1000,
        rollouts=16,
        learning_rate=5e-6,
        warmup_steps=20,
        max_grad_norm=0.2,
        checkpoint_every=50,
        drop_solved=0,
    ),
    evaluation=replace(QWEN.evaluation, every=100),
    minutes="an estimated 4-17 hours on one 24 GB GPU; not yet run",
)

CODER = Profile(
    name="qwen2.5-coder-0.5b",
    task="code",
    policy=Policy(
        backend="transformers",
        model="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        lora_rank=16,
        lora_alpha=32,
        dtype="bfloat16",
        max_prompt_tokens=400,
        max_answer_tokens=256,
    ),
    # It follows the format of a chain from few examples; more of the data set's own solutions would change its style.
    sft=SFT(steps=20, batch_rows=16, micro_rows=4, learning_rate=1e-4, train_rows=64, chains="own", gold_steps=1),
    # At a learning rate of 1e-4 GRPO's entropy fell from .73 to .13 in 19 steps, see results/gpu.
    rl=RL(
        steps=100,
        rollouts=64,
        group_size=8,
        learning_rate=3e-5,
        micro_rollouts=8,
        warmup_steps=2,
        checkpoint_every=10,
    ),
    evaluation=Evaluation(requests=0, candidates=12, budgets=(1, 3, 6, 12), temperature=0.8, top_p=0.95, batch=256),
    minutes="an estimated 20 minutes on an H100, where a step took 3 to 13 s; an hour or two on a smaller card",
)

SMOLLM = Profile(
    name="smollm2-135m",
    task="judges",
    policy=replace(
        CODER.policy, model="HuggingFaceTB/SmolLM2-135M-Instruct", max_prompt_tokens=160, max_answer_tokens=40
    ),
    # Chains are whole after 20 steps of 4 rows at 1e-3 already; the rest is for replies that differ and fit.
    sft=SFT(steps=100, batch_rows=8, learning_rate=5e-4),
    rl=RL(
        steps=100,
        rollouts=16,
        group_size=4,
        equal="rollouts",  # as in the paper; with equal answers GRPO's step would take twice as long as VPO's
        learning_rate=1e-4,
        micro_rollouts=8,
        temperature=0.8,
        warmup_steps=5,
        max_grad_norm=0.5,
        checkpoint_every=5,
    ),
    evaluation=Evaluation(requests=60, temperature=0.8, batch=72),
    methods=("grpo", "best_of_set", "vpo"),
    minutes="about an hour for a method with sets, half of it for GRPO, on a CPU core with bfloat16, else twice that",
)

ALONE = {"maze": "", "code": "", "judges": ""}

PROFILES = {
    profile.name: profile
    for profile in (
        TINY,
        SMOKE,
        MAZE,
        replace(
            SMOKE, name="smoke_maze", task="maze", policy=MAZE.policy, rl=replace(SMOKE.rl, learning_rate=2e-4), **ALONE
        ),
        TINY_CODE,
        replace(TINY_CODE, name="tiny_repair", task="tiny_repair"),
        TINY_HOPS,
        TINY_CHAIN,
        replace(
            SMOKE,
            name="smoke_code",
            task="tiny_code",
            sft=replace(SMOKE.sft, train_rows=0),
            **ALONE,
        ),
        TINY_JUDGES,
        replace(
            TINY_JUDGES,
            name="smoke_judges",
            sft=replace(TINY_JUDGES.sft, steps=60, batch_rows=32),
            rl=replace(TINY_JUDGES.rl, steps=4, rollouts=24, group_size=6, checkpoint_every=2),
            evaluation=replace(TINY_JUDGES.evaluation, requests=6, candidates=6, budgets=(1, 2, 6), bootstrap=200),
        ),
        *(
            replace(TINY_JUDGES, name=f"tiny_judges_{world}", task=f"tiny_judges_{world}")
            for world in ("one_taste", "opposed", "flawed", "own_flaws", "opposed_own_flaws")
        ),
        QWEN,
        QWEN_TEMPLATE,
        CODER,
        SMOLLM,
        replace(
            QWEN,
            name="qwen3-0.6b",
            policy=replace(QWEN.policy, model="unsloth/Qwen3-0.6B"),
            minutes="an estimated 4-10 hours on one 16 GB GPU; not yet run",
        ),
    )
}


def get_profile(name: str, overrides: dict | None = None) -> Profile:
    """Return the profile of that name with dotted overrides; LabError if the name or a field is unknown."""
    if name not in PROFILES:
        raise LabError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[name].with_overrides(overrides)
