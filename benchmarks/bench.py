"""How fast the parts are that run at every step: `python benchmarks/bench.py [--json FILE]`.

Each figure is the median of 5 runs after one that is not counted; those of training are medians over
its steps. Where a comparison helps, both sides are measured in the same run: a ratio carries over to
another machine, milliseconds do not.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np

from vpo_lab.methods import METHODS
from vpo_lab.runs import Run
from vpo_lab.tasks import get_task
from vpo_lab.tasks.tool_calls.reward import score
from vpo_lab.weights import dirichlet_weights, set_reward

REPEATS = 5
ROLLOUTS, GROUP_SIZE = 1024, 8
SIZES = [(m, d, k) for m in (3, 8) for d in (4, 16) for k in (128, 1024)]
LIGHT_MODULES = ("chains", "config", "methods", "metrics", "set_reward", "tasks", "weights")


@dataclass(frozen=True)
class Row:
    """One figure: what was measured, at which size, and against what."""

    part: str
    size: str
    value: float
    unit: str
    note: str = ""


def median_seconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median wall time of `run`, after one call that pays for imports and caches."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


# --- The scorer -------------------------------------------------------------------------------


def scorer_rows() -> tuple[str, list[tuple[str, str]]]:
    """(where from, (answer, gold) pairs): ToolRL's test rows where they are, else the tiny world's."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "toolrl"
    if beside.exists():
        task, rows, source = get_task("toolrl"), get_task("toolrl").load(beside, "test"), "ToolRL's test rows"
    else:
        task, rows, source = (
            get_task("tiny_tools"),
            get_task("tiny_tools").load(split="test"),
            "tiny_tools rows",
        )
    rng = np.random.default_rng(0)
    pairs = [(answer, row["gold"]) for row in rows for answer in task.demonstrations(row, 3, rng)]
    return source, pairs


def bench_scorer() -> list[Row]:
    source, pairs = scorer_rows()
    seconds = median_seconds(lambda: [score(answer, gold) for answer, gold in pairs])
    return [Row("scorer", f"{len(pairs)} answers", len(pairs) / seconds, "answers/s", source)]


# --- Set rewards and advantages ---------------------------------------------------------------


def loop_set_reward(rewards_BMD: np.ndarray, weights_KD: np.ndarray) -> list[float]:
    """The set reward in plain Python, the yardstick for numpy's."""
    weights, result = weights_KD.tolist(), []
    for answers in rewards_BMD.tolist():
        bests = [max(sum(wd * rd for wd, rd in zip(w, r, strict=True)) for r in answers) for w in weights]
        result.append(sum(bests) / len(bests))
    return result


def bench_rewards() -> list[Row]:
    rng, result = np.random.default_rng(0), []
    for m, d, k in SIZES:
        size = f"B={ROLLOUTS} M={m} D={d} K={k}"
        rewards_BMD, weights_KD = rng.random((ROLLOUTS, m, d)), dirichlet_weights(k, d)
        few = rewards_BMD[:4]  # the loop is slow: its time per rollout is what counts
        seconds = median_seconds(lambda r=rewards_BMD, w=weights_KD: set_reward(r, w))
        slow = median_seconds(lambda r=few, w=weights_KD: loop_set_reward(r, w)) * ROLLOUTS / len(few)
        note = f"{slow / seconds:,.0f} x a Python loop's speed"
        result.append(Row("set_reward", size, 1e3 * seconds, "ms", note))
        method = METHODS["vpo"].with_options(weight_draws=k)
        seconds = median_seconds(lambda r=rewards_BMD, v=method: v.advantages(r, GROUP_SIZE, rng))
        result.append(
            Row(
                "advantages of vpo",
                f"{size} G={GROUP_SIZE}",
                1e3 * seconds,
                "ms",
                "fresh draws for each group",
            )
        )
    return result


# --- Imports ----------------------------------------------------------------------------------


def bench_sandboxes() -> list[Row]:
    """One step's answers to a coding task, 144 of them with 16 tests each, asked for from a thread per core."""
    from vpo_lab.tasks.code.sandbox import available, open_sandbox

    answers, tests = 144, [json.dumps([list(range(n, -1, -1))]) for n in range(16)]
    rows = []
    for backend in [name for name in ("fork", "monty") if not available()[name]]:
        with open_sandbox(backend) as sandbox, ThreadPoolExecutor(os.cpu_count()) as threads:

            def run(sandbox=sandbox, threads=threads) -> None:
                programs = [f"def solve(x):\n    return sorted(x)[{n}:]" for n in range(answers)]
                found = list(threads.map(lambda program: sandbox.call(program, "solve", tests), programs))
                assert found[0][2] == "[0, 1, 2]" and all(None not in one for one in found)

            rows.append(Row(f"sandbox {backend}", f"{answers} answers x 16 tests", median_seconds(run), "s"))
    return rows


def bench_imports() -> list[Row]:
    """Seconds inside a fresh interpreter, taken in turns, so that a busy moment hits all of them."""
    statements = {
        "numpy": "import numpy",
        "vpo_lab": "import vpo_lab",
        "vpo_lab and its light modules": "import " + ", ".join(f"vpo_lab.{name}" for name in LIGHT_MODULES),
    }
    seconds = {name: [] for name in statements}
    for turn in range(REPEATS + 1):
        for name, statement in statements.items():
            code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            if turn:  # the first turn reads from the disk
                seconds[name].append(float(done.stdout))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        Row("import", name, value, "s", f"{value / medians['numpy']:.2f} x the time of import numpy")
        for name, value in medians.items()
    ]


# --- A training step --------------------------------------------------------------------------

UNCOUNTED, BLOCKS = 4, 6  # the first steps pay for caches; then blocks of two steps, and one step to end on
TRAINING_STEPS = UNCOUNTED + 2 * BLOCKS + 1
# So small a rate changes no weight: every step is taken with the same policy, by both sides.
FROZEN = {"rl.learning_rate": 1e-12, "rl.steps": TRAINING_STEPS, "rl.checkpoint_every": TRAINING_STEPS}


@dataclass(frozen=True)
class Step:
    """One training step: wall time, CPU time, and the tokens of its prompts and completions without padding."""

    seconds: float
    cpu_seconds: float
    tokens: int


class Turns:
    """Threads of which one runs at a time: whoever calls `hand_over` sleeps until all others had a turn."""

    def __init__(self, count: int):
        self.waiting, self.changed = deque(range(count)), threading.Condition()

    def run(self, work: list[Callable[[], object]]) -> None:
        """Run all of `work`, the first one first; the first exception is raised when all have ended."""
        with ThreadPoolExecutor(len(work)) as pool:
            futures = [pool.submit(self._take_part, number, one) for number, one in enumerate(work)]
        for future in futures:
            future.result()

    def hand_over(self, number: int) -> None:
        with self.changed:
            self.waiting.rotate(-1)
            self.changed.notify_all()
        self._wait(number)

    def _wait(self, number: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.waiting[0] == number)

    def _take_part(self, number: int, work: Callable[[], object]) -> None:
        self._wait(number)
        try:
            work()
        finally:
            with self.changed:
                self.waiting.remove(number)
                self.changed.notify_all()


def step_clock(turns: Turns, number: int, steps: list[Step]):
    """A Trainer callback that times whole steps, log and callbacks included, and takes turns between them.

    Trainer 0 begins with one step, then it is two steps each, 0 11 00 11 ...: being the first to take a
    step can cost something by itself, so each is the first in every other one.
    """
    import torch
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):
        start = None

        def on_step_begin(self, args, state, control, **_):
            now = (time.perf_counter(), time.process_time(), state.num_input_tokens_seen)
            if self.start is not None:
                steps.append(Step(*(after - before for after, before in zip(now, self.start, strict=True))))
            if state.global_step and (state.global_step + number) % 2:
                turns.hand_over(number)
            torch.set_num_threads(1)  # holds for one thread only, and this one is not the main one
            torch.manual_seed(state.global_step)  # the same rollouts on both sides
            self.start = (time.perf_counter(), time.process_time(), state.num_input_tokens_seen)

    return StepClock()


def constant_reward(completions, **_) -> list[float]:
    return [0.0] * len(completions)


def training_in_turns(profile, method: str, run: Run, *, name: str, ours_first: bool) -> tuple[list[Step], list[Step]]:
    """(steps of `train_rl` as the stage `name`, steps of TRL's own trainer), a few of each in turn.

    The bare GRPOTrainer has the same arguments, prompts and policy, a constant reward, and nothing of ours.
    """
    # Late: Unsloth rebinds trl.GRPOTrainer.
    from transformers import PrinterCallback
    from trl import GRPOTrainer

    from vpo_lab.train import rl as training

    built = []
    with patch.object(training, "run_stage", lambda *arguments: built.append(arguments)):
        training.train_rl(profile, method, run, seed=0, name=name)  # up to the trainer: it trains below
    [(ours, *rest)] = built
    arguments = copy.copy(ours.args)
    arguments.output_dir = str(run / f"{name}-bare")
    bare = GRPOTrainer(
        # The same object: one policy for both, and nothing depends on where its weights lie in memory.
        model=ours.model,
        args=arguments,
        processing_class=ours.processing_class,
        reward_funcs=constant_reward,
        train_dataset=ours.train_dataset,
    )
    bare.remove_callback(PrinterCallback)
    work = [lambda: training.run_stage(ours, *rest), bare.train]
    turns, steps = Turns(2), ([], [])
    for number, trainer in enumerate((ours, bare) if ours_first else (bare, ours)):
        trainer.add_callback(step_clock(turns, number, steps[trainer is bare]))
    turns.run(work if ours_first else work[::-1])
    if [step.tokens for step in steps[0]] != [step.tokens for step in steps[1]]:
        raise RuntimeError(f"{method}: the two trainers sampled different rollouts, their times do not compare")
    return steps


def ratios(ours: list[float], bare: list[float]) -> list[float]:
    """Our time over the bare time for each block of two steps: in one of them we went first, in one second."""
    return [sum(ours[i : i + 2]) / sum(bare[i : i + 2]) for i in range(UNCOUNTED, len(ours) - 1, 2)]


def bench_training_step() -> list[Row]:
    """A tiny training step beside that of a bare trl.GRPOTrainer, and the share of it that the reward takes."""
    # Heavy, and only needed here.
    from vpo_lab.config import get_profile
    from vpo_lab.train.prompts import rollouts_per_prompt
    from vpo_lab.train.sft import train_sft

    profile = get_profile("tiny", {"sft.steps": 150, **FROZEN})
    rl, rows = profile.rl, []
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        run = Run(Path(folder))
        train_sft(profile, run, seed=0)
        for method in profile.methods:
            speeds, cpu, wall, log = ([], []), [], [], []
            # Twice, with either side as the first to start: runs differ by a percent or two as a whole.
            for ours_first in (True, False):
                name = f"{method}-{ours_first}"
                sides = training_in_turns(profile, method, run, name=name, ours_first=ours_first)
                cpu.append(ratios(*([step.cpu_seconds for step in steps] for steps in sides)))
                wall.append(ratios(*([step.seconds for step in steps] for steps in sides)))
                log += run.log(name)[UNCOUNTED:]
                for speed, steps in zip(speeds, sides, strict=True):
                    speed += [step.tokens / step.seconds for step in steps[UNCOUNTED:]]
            ours, bare = map(statistics.median, speeds)
            cpu_runs, wall_runs = ([statistics.median(part) for part in parts] for parts in (cpu, wall))
            blocks = sorted(cpu[0] + cpu[1])
            share = statistics.median(entry["reward_seconds"] / entry["step_time"] for entry in log)
            seconds = statistics.median(entry["step_time"] for entry in log)
            group_size = rollouts_per_prompt(profile, method)
            size = f"B={rl.rollouts // rl.group_size * group_size} G={group_size} K={rl.weight_draws}"
            note = (
                f"CPU time per token, the same tokens; {cpu_runs[0]:.3f} started first, {cpu_runs[1]:.3f} second; "
                f"{blocks[0]:.2f} to {blocks[-1]:.2f}; wall time {statistics.mean(wall_runs):.2f}; aim: at most 1.03"
            )
            rows += [
                Row(f"{method} training", size, ours, "tokens/s", f"bare TRL: {bare:,.0f}; without padding"),
                Row(f"{method} step / bare TRL step", size, statistics.mean(cpu_runs), "x", note),
                Row(f"reward share of a {method} step", size, 100 * share, "%", f"of {seconds:.2f} s"),
            ]
    return rows


def bench() -> list[Row]:
    """Every figure, in the order of the table. Under two minutes on one CPU core."""
    return [*bench_scorer(), *bench_rewards(), *bench_sandboxes(), *bench_imports(), *bench_training_step()]


def main(arguments: list[str] | None = None) -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(prog="python benchmarks/bench.py", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args(arguments)
    rows = bench()
    versions = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()}
    table = Table(title="VPO Lab, median of 5 | " + " | ".join(f"{k} {v}" for k, v in versions.items()))
    for name, side in (
        ("part", "left"),
        ("size", "left"),
        ("value", "right"),
        ("unit", "left"),
        ("note", "left"),
    ):
        table.add_column(name, justify=side)
    for row in rows:
        value = f"{row.value:,.0f}" if row.value >= 100 else f"{row.value:.3g}"
        table.add_row(row.part, row.size, value, row.unit, row.note)
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    if options.json:
        report = {**versions, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
