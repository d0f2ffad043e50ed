"""Methods x seeds x worlds: train them all, resume after a kill, write small CSV files.

A job is one variant of one world under one seed, in a process of its own. All variants of a world and seed start
from the same SFT policy, train for as many steps and sample as many answers. Most of them draw the same prompts in
the same order; variants with larger groups draw fewer prompts (see VARIANTS). What a job has done is kept as the
notebooks keep theirs, so the same command continues where it was.
"""

from __future__ import annotations

import gzip
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np

from vpo_lab.config import PROFILES, Profile, checked_seed, differences, get_profile
from vpo_lab.course.tastes import PRICES, exact_rows, truth_rows
from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_bytes, write_json
from vpo_lab.metrics import crossed_bootstrap, reward_diversity
from vpo_lab.processes import without_launcher
from vpo_lab.runs import Run, Stage, only_one_in
from vpo_lab.search.evolution import BUDGETS as SEARCH_BUDGETS
from vpo_lab.search.pool import Pool, evaluate
from vpo_lab.search.study import study, study_file
from vpo_lab.search.summary import at_k, collinearity, distinct_answers, metrics_of, tokens_at_k
from vpo_lab.show.live import duration
from vpo_lab.show.style import method_label
from vpo_lab.tasks import get_task
from vpo_lab.tasks.judges.optimum import METHODS as PRICED
from vpo_lab.train.prompts import rollouts_per_step
from vpo_lab.train.rl import train_rl
from vpo_lab.train.sft import train_sft
from vpo_lab.weights import dirichlet_weights, set_reward

WORLDS = ("tiny", "maze")  # the profiles that are run unless others are named
CODE = ("tiny_code", "tiny_repair")  # the worlds of notebook 06: vpo-lab experiment --world tiny_code
JUDGES = ("tiny_judges", "tiny_judges_opposed")  # the worlds of KL and hacking, see course/tastes.py
FLAWED = ("tiny_judges_flawed", "tiny_judges_own_flaws")
JUDGED = JUDGES + FLAWED
KNOWN = WORLDS + CODE + JUDGED  # the worlds whose variants are chosen for them
SEEDS = 5
BUDGETS = (1, 3, 6, 12, 24)
SETTINGS = "settings.json"
EXAMPLES = "examples.json"
# The main variants are sampled at other temperatures too, into pools NAME@T: a search may choose its own.
OTHER_TEMPERATURES = {world: (0.5, 0.7, 1.5) for world in WORLDS} | {world: (1.5,) for world in CODE}
YARDSTICKS = ("sft", "sft_chain", "grpo", "max_at_k", "best_of_set", "vpo")  # what every variant is compared with


@dataclass(frozen=True)
class Variant:
    """Name a method and what it changes in the profile; method "sft" is a start that others are trained from.

    `label` is for figures, the method's own if empty. `changes` says what tells it from `control`, as the heading
    of its row among the ablations; without a heading it stands among the methods. `control` is the variant that
    differs from it in this alone.
    """

    method: str
    overrides: dict = field(default_factory=dict)
    start: str = "sft"
    worlds: tuple[str, ...] = WORLDS
    seeds: int = SEEDS
    label: str = ""
    changes: str = ""
    control: str = "vpo"


def _three(
    method: str,
    label: str = "",
    changes: str = "",
    worlds: tuple[str, ...] = WORLDS,
    start: str = "sft",
    control: str = "vpo",
    **rl,
) -> Variant:
    """A variant on three seeds."""
    return Variant(method, {f"rl.{key}": value for key, value in rl.items()}, start, worlds, 3, label, changes, control)


def _priced(method: str, price: float) -> Variant:
    """A method with a price on KL in the worlds of judges; two prices are enough where judges have flaws."""
    worlds = JUDGES + FLAWED * (price in PRICES[::2])
    return Variant(method, {"rl.kl": price}, worlds=worlds)


def _doubted(method: str, price: float = PRICES[2]) -> Variant:
    """The same where every person has a second judge, and the lower score counts."""
    changes = {"rl.kl": price, "task": "tiny_judges_own_flaws_doubted"}
    return Variant(method, changes, worlds=FLAWED[1:2], label=f"{method_label(method)}, two judges")


# In `tiny` and `maze`: 164 jobs, an estimated 9 core-hours with their pools. A step samples 192 answers to 16 prompts,
# but for two cases: groups of 8 chains take 8 prompts (`group8`, `vpo_search`), chains of five 10 (`m5`, 200 answers).
VARIANTS = {
    "sft": Variant("sft", worlds=KNOWN),
    "grpo": Variant("grpo", worlds=WORLDS + CODE),
    # GRPO's own remedies against collapse: a price on leaving the SFT policy, a hotter training.
    "grpo_kl0.05": _three("grpo", kl=0.05),
    "grpo_kl0.2": Variant("grpo", {"rl.kl": 0.2}, worlds=WORLDS + CODE[:1]),
    "grpo_hot": _three("grpo", "GRPO trained at T = 1.3", temperature=1.3),
    "gdpo": _three("gdpo"),
    "max_at_k": Variant("max_at_k", worlds=WORLDS + CODE[:1]),  # for k = 6, half of a prompt's 12 answers
    "max_at_k3": _three("max_at_k", "max@k for k = 3", at_k=3),
    "random_weights": _three("random_weights"),
    "multi_rlvr": _three("multi_rlvr", changes="what a set is paid for"),
    "best_of_set": Variant("best_of_set", worlds=WORLDS + CODE, changes="what a set is paid for"),
    "vpo": Variant("vpo", worlds=WORLDS + CODE),
    "vpo_credit": Variant("vpo_credit", worlds=WORLDS + CODE[:1], changes="credit per answer"),
    # Credit per answer has one scale for the whole batch. This tells how much of its effect that alone is: for the
    # optimizer a common scale is no matter.
    "unscaled": _three("vpo", "VPO, not divided by the std", "credit per answer", scale_rewards=False),
    # The search is over 4 of 8 chains, so its control has groups of 8 too.
    "vpo_search": Variant(
        "vpo_search", {"rl.group_size": 8}, worlds=WORLDS + CODE[:1], changes="search over chains", control="group8"
    ),
    "group8": _three("vpo", "VPO, groups of 8", "group size", group_size=8),
    # Only a prefix of answers can be paid for diversity, so its control has credit per answer too.
    "diversity0.1": _three(
        "vpo_credit", "diversity bonus 0.1", "what a set is paid for", control="vpo_credit", diversity=0.1
    ),
    "k1": _three("vpo", "K = 1 weighting", "weightings", weight_draws=1),
    "alpha0.3": _three("vpo", "α = 0.3", "weightings", alpha=0.3),
    "alpha3": _three("vpo", "α = 3", "weightings", alpha=3.0),
    # Chains of another length need a start that has seen them.
    "sft_m2": _three("sft", worlds=WORLDS[:1], candidates=2),
    "m2": _three(
        "vpo", "M = 2 answers", "answers in a set", WORLDS[:1], "sft_m2", candidates=2, group_size=6, rollouts=96
    ),
    "sft_m5": _three("sft", worlds=WORLDS[:1], candidates=5),
    "m5": _three(
        "vpo", "M = 5 answers", "answers in a set", WORLDS[:1], "sft_m5", candidates=5, group_size=4, rollouts=40
    ),
    **{f"{method}_kl{price:g}": _priced(method, price) for method, price in product(PRICED, PRICES)},
    **{f"{method}_doubted": _doubted(method) for method in PRICED},
}


def label(name: str) -> str:
    """Return what to call a variant in a figure: its own label, else that of its method."""
    return (name in VARIANTS and VARIANTS[name].label) or method_label(name)


def budgets_of(world: str) -> tuple[int, ...]:
    """Return the budgets k at which a world is measured: where chains hold two answers, multiples of two."""
    return get_profile(world).evaluation.budgets if world in JUDGED else BUDGETS


@dataclass(frozen=True)
class Job:
    """Train and evaluate one variant under one seed, in `folder` = root/world/seed-S."""

    root: Path
    world: str
    variant: str
    seed: int

    @property
    def folder(self) -> Run:
        return Run(self.root / self.world / f"seed-{self.seed}")

    @property
    def stage(self) -> Stage:
        return self.folder.stage(self.variant)

    @property
    def start(self) -> Job | None:
        """Return the job whose policy this one is trained from; None for a start."""
        variant = VARIANTS[self.variant]
        return None if variant.method == "sft" else Job(self.root, self.world, variant.start, self.seed)

    @property
    def profile(self) -> Profile:
        overrides = VARIANTS[self.variant].overrides
        m = overrides.get("rl.candidates", get_profile(self.world).rl.candidates)
        whole_chains = math.ceil(BUDGETS[-1] / m) * m
        return get_profile(self.world, {**overrides, "evaluation.candidates": whole_chains})

    @property
    def pools(self) -> tuple[str, ...]:
        """Name the candidate pools it leaves: the usual start and VPO are asked for single answers and for chains."""
        names = ("sft", "sft_chain") if self.variant == "sft" else () if self.start is None else (self.variant,)
        main = VARIANTS[self.variant].seeds == SEEDS and self.world not in JUDGED
        others = OTHER_TEMPERATURES.get(self.world, (0.7,)) if main else ()
        single = ("vpo_single",) if self.variant == "vpo" and self.world in WORLDS else ()
        return (*names, *single, *(f"{name}@{temperature}" for temperature in others for name in names))

    @property
    def searched(self) -> tuple[str, ...]:
        """Name the pools whose policies search, too: in the worlds of code, and of the hotter ones only GRPO's."""
        usual = [name for name in self.pools if "@" not in name or self.variant == "grpo"]
        return tuple(usual) if self.world in CODE else ()

    @property
    def settings(self) -> dict:
        """Return what its results depend on."""
        settings = self.profile.settings()
        if self.start is None:  # how others go on from it is no matter to a start
            settings = {name: v for name, v in settings.items() if name == "rl.candidates" or name[:3] != "rl."}
        return {"method": VARIANTS[self.variant].method, **settings}

    @property
    def is_done(self) -> bool:
        """Tell whether its policy and pools are there. LabError if its folder was made with other settings."""
        kept = self.stage / SETTINGS
        found = differences(read_json(kept), self.settings) if kept.exists() else {}
        found.pop("methods", None)  # what a run of the profile trains is no matter to a job
        if found:
            line = "; ".join(f"{name} {a!r}, now {b!r}" for name, (a, b) in found.items())
            raise LabError(f"{self.stage} was made with {line}: choose another --folder")
        pools = all(self.folder.pool(name).exists() for name in self.pools)
        searched = all(study_file(self.folder, name).exists() for name in self.searched)
        return pools and searched and self.stage.policy.exists()

    def run(self) -> None:
        """Train or resume it, then sample its pools; LabError if another process is at it."""
        run, stage, profile = self.folder, self.stage, self.profile
        method = "" if self.start is None else VARIANTS[self.variant].method
        with only_one_in(stage.folder, "job.lock"):  # the child of a killed experiment may still be at work
            if self.is_done:
                return
            write_json(stage / SETTINGS, self.settings)
            if self.start is None:
                train_sft(profile, run, self.seed, name=self.variant)
            else:
                train_rl(profile, method, run, self.seed, name=self.variant, start=self.start.variant)
            for pool in self.pools:
                name, at, temperature = pool.partition("@")
                asked = profile.with_overrides({"evaluation.temperature": float(temperature)} if at else {})
                for measure in (evaluate, study) if pool in self.searched else (evaluate,):
                    measure(asked, name, run, self.seed, method=method, suffix=pool[len(name) :])


def plan(root: Path, worlds: Iterable[str], variants: Iterable[str], seeds: Iterable[int]) -> list[Job]:
    """Return the jobs in the order in which they are run: the main comparison seed by seed, then the ablations.

    Empty arguments mean all; the starts that are needed are included. Raises LabError on an unknown name.
    A world that is not in KNOWN may be any profile: it then runs every variant that is asked for.
    """
    worlds, variants, seeds = list(worlds) or list(WORLDS), list(variants) or list(VARIANTS), list(seeds)
    for kind, names, known in (("variant", variants, VARIANTS), ("world", worlds, PROFILES)):
        for name in names:
            if name not in known:
                raise LabError(f"unknown {kind} {name!r}: choose from {', '.join(known)}")
    jobs: dict[Job, None] = {}
    for seed in seeds:
        checked_seed(seed)
    for ablations, seed, world, name in product((False, True), seeds or range(SEEDS), worlds, variants):
        variant = VARIANTS[name]
        wanted = (world in variant.worlds or world not in KNOWN) and (seeds or seed < variant.seeds)
        if wanted and (variant.seeds < SEEDS) == ablations:
            job = Job(root, world, name, seed)
            jobs.update({job.start: None} if job.start else {})
            jobs[job] = None
    return list(jobs)


def finished(root: Path) -> list[Job]:
    """Return all jobs that are done below a folder, by seed and in the order of VARIANTS."""
    folders = {(path.parent.parent.name, path.parent.name) for path in Path(root).glob("*/seed-*/*/")}
    seeds = sorted((int(seed.partition("-")[2]), world) for world, seed in folders if seed[5:].isdigit())
    jobs = [Job(root, world, variant, seed) for seed, world in seeds if world in PROFILES for variant in VARIANTS]
    return [job for job in jobs if job.is_done]


# --- All jobs ---------------------------------------------------------------------------------


def run_experiment(jobs: list[Job], workers: int = 0) -> list[Job]:
    """Run the jobs, `workers` processes at a time (0: one per core), under a live table.

    Returns the jobs that are not done at the end: they failed, or their start did; each has a `job.log`.
    """
    from rich.live import Live

    workers = workers or os.cpu_count() or 1
    done = {job for job in jobs if job.is_done}
    waiting = [job for job in jobs if job not in done]
    running: dict[Job, subprocess.Popen] = {}
    board = _Board(jobs, done_before=len(done))
    with Live(board.table(running, done), refresh_per_second=1) as live:
        try:
            while waiting or running:
                for job in [job for job, process in running.items() if process.poll() is not None]:
                    running.pop(job)
                    done |= {job} if job.is_done else set()
                ready = [job for job in waiting if job.start is None or job.start in done]
                for job in ready[: workers - len(running)]:
                    waiting.remove(job)
                    running[job] = _launch(job)
                if not running:
                    break  # what still waits needs a start that failed
                live.update(board.table(running, done))
                time.sleep(1)
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
        live.update(board.table(running, done))
    return [job for job in jobs if job not in done]


def _launch(job: Job) -> subprocess.Popen:
    job.stage.folder.mkdir(parents=True, exist_ok=True)
    code = (
        "from pathlib import Path; from vpo_lab.course.experiment import Job; "
        f"Job(Path({str(job.root)!r}), {job.world!r}, {job.variant!r}, {job.seed}).run()"
    )
    with open(job.stage / "job.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=log,
            stderr=subprocess.STDOUT,
            # A core each: more threads than cores to spare make a tiny model many times slower.
            env={**without_launcher(os.environ), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )


class _Board:
    """The live table: variants down, seeds across, and when everything will be done."""

    def __init__(self, jobs: list[Job], done_before: int):
        self.jobs, self.done_before, self.begin = jobs, done_before, time.monotonic()

    def table(self, running: Iterable[Job], done: set[Job]):
        from rich.table import Table

        spent = time.monotonic() - self.begin
        new = len(done) - self.done_before + sum(_progress(job) for job in running)
        eta = f"ETA {duration(spent / new * (len(self.jobs) - self.done_before - new))}" if new > 0 else "ETA --"
        table = Table(title=f"{len(done)} of {len(self.jobs)} jobs, {duration(spent)}, {eta}")
        seeds = sorted({job.seed for job in self.jobs})
        table.add_column("world")
        table.add_column("variant")
        for seed in seeds:
            table.add_column(f"seed {seed}", justify="right")
        by_name = {(job.world, job.variant, job.seed): job for job in self.jobs}
        for world, variant in dict.fromkeys((job.world, job.variant) for job in self.jobs):
            cells = [self._cell(by_name.get((world, variant, seed)), running, done) for seed in seeds]
            table.add_row(world, variant, *cells)
        return table

    @staticmethod
    def _cell(job: Job | None, running: Iterable[Job], done: set[Job]) -> str:
        if job is None:
            return ""
        if job in running:
            return f"{_progress(job):.0%}"
        return "done" if job in done else "failed" if (job.stage / "job.log").exists() else "."


def _progress(job: Job) -> float:
    """The share of its training steps that a job has logged, in [0, 1]."""
    steps = job.profile.sft.steps if job.start is None else job.profile.rl.steps
    return min(1.0, job.stage.last_step() / steps)


# --- CSV --------------------------------------------------------------------------------------

PROFILED = ("set_reward", "mean_reward", "best_of_rollout", "best_of_group", "distinct_rollouts", "entropy")
TRUTHS = ("kl_answer", "truth", "mean_truth", "hacked")  # logged where there is a price on KL, and a truth


def collect(done: list[Job], out: Path) -> list[Path]:
    """Write what finished jobs say: examples.json, runs.csv, budgets.csv, curves.csv.gz and intervals.csv.gz.

    One row per job; per job and budget; per job and logged step (means over 10 steps); and per
    variant and budget, with 95% intervals over seeds and requests. The examples are the first sets of
    a few requests. Where policies searched: search.csv, a row per job and problem. Where the task knows the truth:
    truths.csv, a row per pool and budget, and exact.csv, the optimal policies. What is there already of worlds that
    these jobs do not touch is kept. Returns the paths.

    A policy that was sampled at several temperatures has rows NAME@best among the intervals: the answers to each half
    of the requests at the temperature that is best on the other half, by metric and budget.
    """
    runs, budgets, curves, searches, truths, examples = [], [], [], [], [], {}
    values: dict[tuple, dict[int, np.ndarray]] = {}  # (world, pool, metric, k) -> seed -> (N,)
    for job in sorted(done, key=lambda job: job.seed):
        log = job.stage.log()
        if job.start is not None:
            curves += _curve(job, log)
        for name in job.pools:
            pool = Pool.load(job.folder.pool(name))
            key = {"world": job.world, "variant": name, "seed": job.seed}
            runs.append({**key, **_describe(job, pool, log)})
            if VARIANTS[job.variant].seeds == SEEDS and "@" not in name:
                _add_examples(examples, job, pool)
            truths += [{**key, **row} for row in truth_rows(pool, log if job.start else [], budgets_of(job.world))]
            for k in budgets_of(job.world):
                row = {**key, "k": k, "tokens": tokens_at_k(pool, k)}
                for metric in (*metrics_of(pool), "bag"):
                    values_N = at_k(pool, metric, k)
                    values.setdefault((job.world, name, metric, k), {})[job.seed] = values_N
                    row[metric] = round(float(values_N.mean()), 5)
                budgets.append(row)
        for name in job.searched:
            key = {"world": job.world, "variant": name, "seed": job.seed}
            for problem in read_json(study_file(job.folder, name)):
                best = dict(zip((f"best_{budget}" for budget in SEARCH_BUDGETS), problem.pop("best"), strict=True))
                searches.append({**key, **problem, **best})
    values |= _at_best_temperature(values)
    mine = {job.world for job in done}
    kept: dict = read_json(out / EXAMPLES) if (out / EXAMPLES).exists() else {}  # pyright: ignore
    write_json(out / EXAMPLES, {world: sets for world, sets in kept.items() if world not in mine} | examples)
    tables = {"runs.csv": runs, "budgets.csv": budgets, "curves.csv.gz": curves, "intervals.csv.gz": _intervals(values)}
    tables |= {"search.csv": searches, "truths.csv": truths}
    tables["exact.csv"] = [row for world in sorted(mine & {*JUDGED}) for row in exact_rows(world)]
    return [out / EXAMPLES, *(_write_csv(out / name, rows, mine) for name, rows in tables.items() if rows)]


def _at_best_temperature(values: Mapping[tuple, dict[int, np.ndarray]]) -> dict[tuple, dict[int, np.ndarray]]:
    """The values of NAME@best, made of those of NAME and NAME@T; (world, pool, metric, k) -> seed -> (N,)."""
    tried: dict[tuple, list[dict[int, np.ndarray]]] = {}
    for (world, name, *at), by_seed in values.items():
        tried.setdefault((world, name.partition("@")[0], *at), []).append(by_seed)
    best = {}
    for (world, name, *at), pools in tried.items():
        if len(pools) > 1:
            seeds = sorted(set.intersection(*map(set, pools)))
            values_TSN = np.array([[by_seed[seed] for seed in seeds] for by_seed in pools])
            picked_SN = values_TSN[0].copy()
            for half, other in ((0, 1), (1, 0)):
                chosen = values_TSN[..., other::2].mean(axis=(1, 2)).argmax()
                picked_SN[:, half::2] = values_TSN[chosen, :, half::2]
            best[world, f"{name}@best", *at] = dict(zip(seeds, picked_SN, strict=True))
    return best


def _write_csv(path: Path, rows: list[dict], mine: set[str]) -> Path:
    """Write the rows, after those of other worlds that the file holds; gzipped where the name ends in .gz.

    The same rows give the same bytes.
    """
    import pandas as pd

    table = pd.DataFrame(rows, dtype=object)
    if path.exists():
        kept = pd.read_csv(path, dtype=object, keep_default_na=False)
        table = pd.concat([kept[~kept.world.isin(mine)], table], ignore_index=True)
    data = table.to_csv(index=False, lineterminator="\n").encode()
    write_bytes(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def _add_examples(examples: dict, job: Job, pool: Pool, size: int = 3) -> None:
    """The first set of a few requests, of each main variant's first seed: world -> request -> variant."""
    requests = 12 if job.world == "maze" else 4  # the explorer is about mazes
    for n in range(min(requests, len(pool.ids))):
        sets = examples.setdefault(job.world, {}).setdefault(pool.ids[n], {})
        answers, rewards_nD = pool.first(n, size)
        sets.setdefault(pool.name, {"answers": answers, "rewards": rewards_nD.round(4).tolist()})


def read_examples(folder: Path, world: str) -> dict[str, dict[str, dict]]:
    """Return request -> variant -> {"answers", "rewards"} of a world, as `collect` wrote them; {} if there are none."""
    path = Path(folder) / EXAMPLES
    return read_json(path).get(world, {}) if path.exists() else {}


def typical_first(examples: Mapping[str, Mapping[str, dict]], objective: int) -> dict[str, Mapping[str, dict]]:
    """Return the examples, first a typical one in which weights matter.

    Of those in which GRPO's set earns nothing in the objective it is that where VPO's set reward leads GRPO's by the
    median; of an even number the lower one counts. Where one of the two policies is missing, the order stays.
    """

    def rewards_MD(request: str, name: str) -> np.ndarray:
        return np.array(examples[request][name]["rewards"])

    def lead(request: str) -> float:
        vpo, grpo = rewards_MD(request, "vpo"), rewards_MD(request, "grpo")
        weights_KD = dirichlet_weights(4096, vpo.shape[1])
        return set_reward(vpo, weights_KD) - set_reward(grpo, weights_KD)

    both = [request for request, sets in examples.items() if {"grpo", "vpo"} <= sets.keys()]
    lacking = sorted((one for one in both if not rewards_MD(one, "grpo")[:, objective].any()), key=lead)
    first = lacking[(len(lacking) - 1) // 2 :][:1]
    return {request: examples[request] for request in (*first, *examples)}


def read_mazes(folder: Path) -> dict[str, Mapping[str, dict]]:
    """Return the examples of the maze, first a typical one of those where GRPO brings no gold."""
    return typical_first(read_examples(folder, "maze"), get_task("maze").objectives.index("gold"))


def final_entropy(log: list[dict]) -> float:
    """Return a token's entropy at the end of a training, in nats: the mean of the last 20 entries of its log."""
    return float(np.mean([entry["entropy"] for entry in log[-20:]]))


def _describe(job: Job, pool: Pool, log: list[dict]) -> dict:
    """What one job cost and how its candidates look."""
    profile, method = job.profile, VARIANTS[job.variant].method
    flat_NnD = pool.rewards_NCMD.reshape(len(pool.ids), -1, len(pool.objectives))
    trained = {}
    if job.start is not None:
        tokens = sum(e["completions/mean_length"] for e in log) * rollouts_per_step(profile, method)
        trained = {
            "minutes": round(sum(e["step_time"] for e in log) / 60, 2),
            "generated_tokens": round(tokens),
            "entropy": round(final_entropy(log), 4),
        }
    return {
        "method": method,
        "m": pool.m,
        "steps": log[-1]["step"],
        **trained,
        "distinct_answers": round(float(distinct_answers(pool).mean()), 4),
        "reward_diversity": round(float(np.mean(reward_diversity(flat_NnD))), 4),
        "correlation": collinearity(pool),
        "least_correlation": collinearity(pool, np.nanmin),
        **{f"mean_{name}": round(float(flat_NnD[..., d].mean()), 4) for d, name in enumerate(pool.objectives)},
    }


def _curve(job: Job, log: list[dict], width: int = 10) -> list[dict]:
    key = {"world": job.world, "variant": job.variant, "seed": job.seed}
    logged = PROFILED + tuple(name for name in TRUTHS if name in log[0])
    blocks = [log[end - width : end] for end in range(width, len(log) + 1, width)]
    return [
        {**key, "step": block[-1]["step"], **{m: round(float(np.mean([e[m] for e in block])), 5) for m in logged}}
        for block in blocks
    ]


def _intervals(values: dict[tuple, dict[int, np.ndarray]]) -> list[dict]:
    """Mean and 95% interval of every variant, and of its paired differences to the yardsticks."""
    rows = []
    for (world, name, metric, k), by_seed in values.items():
        at = "".join(name.partition("@")[1:])
        yardsticks = ("sft", *(f"grpo_kl{price:g}" for price in PRICES)) if world in JUDGED else YARDSTICKS
        control = VARIANTS[name].control if name in VARIANTS and VARIANTS[name].changes else ""
        yardsticks = dict.fromkeys((*yardsticks, *([control] if control else [])))
        for other in ("", *(yardstick + at for yardstick in yardsticks)):
            rest = values.get((world, other, metric, k), {}) if other != name else {}
            seeds = [seed for seed in by_seed if not other or seed in rest]
            if seeds:
                values_SN = np.stack([by_seed[seed] - (rest[seed] if other else 0.0) for seed in seeds])
                mean, low, high = (round(number, 4) for number in crossed_bootstrap(values_SN))
                row = {"world": world, "variant": name, "metric": metric, "k": k, "minus": other, "seeds": len(seeds)}
                rows.append({**row, "mean": mean, "low": low, "high": high})
    return rows
