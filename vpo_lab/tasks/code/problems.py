"""Coding problems as tasks: every hidden test is an objective of its own.

An answer is text with one fenced program in it. It runs in a sandbox, which gets the inputs; what comes out is compared
here. Equal programs for one problem run once.
"""

from __future__ import annotations

import atexit
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.processes import print0
from vpo_lab.tasks.code import data
from vpo_lab.tasks.code.answers import program_in, same_output, same_value
from vpo_lab.tasks.code.data import TESTS, Problem
from vpo_lab.tasks.code.sandbox import Sandbox, open_sandbox

SECONDS = 2.0  # of one test
CONTEST_SECONDS = 6.0  # of one test of a programming contest: LiveCodeBench's rule
KNOWN = 50_000  # scores that are kept
FUNCTION_FORMAT = "Output format: the complete function with its imports, in one ```python block."
PROGRAM_FORMAT = (
    "Output format: a complete program that reads standard input and prints the answer, in one ```python block."
)
# What LiveCodeBench's problems may use without an import, as its own checker has it.
LIBRARIES = """import bisect, collections, functools, heapq, itertools, math, operator, random, re, string
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
from builtins import *
"""
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)


# --- Running ----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _sandbox() -> Sandbox:
    """Return the one sandbox of this process, opened when first needed."""
    sandbox = open_sandbox()
    atexit.register(sandbox.close)
    return sandbox


def _together(work: Callable, items: Sequence) -> list:
    """Return `work` of all items, on as many threads as there are cores: the sandbox does the work."""
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as threads:
        return list(threads.map(work, items))


def gold_of(problem: Problem) -> str:
    """Write as JSON how answers to a problem are run and what should come out."""
    how = dict(
        function=problem.function,
        given=problem.given,
        literal=problem.literal,
        wrap=problem.wrap,
        in_class=problem.in_class,
        as_set=problem.as_set,
        tolerance=problem.tolerance,
        seconds=CONTEST_SECONDS if problem.in_class or not problem.function else SECONDS,
        tests=problem.tests,
    )
    return json.dumps({key: value for key, value in how.items() if value not in ("", False)})


def run_program(program: str, how: dict[str, Any], sandbox: Sandbox) -> list[str | None]:
    """Run a program as a gold says, on the input of each test; None where nothing came out in time."""
    inputs, seconds = [given for given, _ in how["tests"]], how["seconds"]
    # `from __future__` has to stand first, before what is given.
    code = "".join(found[0].rstrip("\n") + "\n" for found in _FUTURE.finditer(program))
    code += f"{how.get('given', '')}\n\n{_FUTURE.sub('', program)}\n"
    function = how.get("function")
    if not function:
        return sandbox.run(code, inputs, seconds)
    wrap, literal, in_class = how.get("wrap", ""), how.get("literal"), how.get("in_class")
    if wrap or literal or in_class:
        found = f'(Solution().{function} if "Solution" in globals() else {function})' if in_class else function
        call = f"{found}(*{'eval(given[0])' if literal else 'given'})"
        function, code = "_asked", f"{code}\n\ndef _asked(*given):\n    return {wrap}({call})\n"
    return sandbox.call(code, function, inputs, seconds)


def passed(program: str, gold: str, sandbox: Sandbox) -> tuple[bool, ...]:
    """Return which tests of a problem a program passes; none without a program."""
    how = json.loads(gold)
    if not program.strip():
        return (False,) * len(how["tests"])
    outputs = run_program(program, how, sandbox)
    same = (
        partial(same_value, tolerance=how.get("tolerance", 0.0), as_set=how.get("as_set", False))
        if how.get("function")
        else same_output
    )
    return tuple(same(wanted, got) for (_, wanted), got in zip(how["tests"], outputs, strict=True))


def solve(problems: Sequence[Problem]) -> list[list[str | None]]:
    """Return what the problems' own solutions give for their tests, run in a new sandbox."""
    print0(f"computing what {len(problems)} solutions return: once, then kept in the cache")
    with open_sandbox() as sandbox:
        return _together(lambda p: run_program(p.solution, json.loads(gold_of(p)), sandbox), problems)


# --- The tasks --------------------------------------------------------------------------------


class Problems:
    """Offer coding problems as a task.

    Rows also hold `answer`, a right one where the data set has it, and `left_out`: why tests are no objectives.
    """

    name = ""
    objectives = tuple(f"test_{number:02d}" for number in range(1, TESTS + 1))

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[bool, ...]] = {}

    def problems(self, path: str | None, split: str) -> list[Problem]:
        """Return the problems of a split, those without tests included."""
        raise NotImplementedError

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """Return the rows of a split. Problems without a test that is data are left out, and counted.

        path: the data set's file, or a folder with it; None: downloaded into the cache. LabError for a wrong split,
        file or download.
        """
        if split not in ("train", "test"):
            raise LabError(f"unknown split {split!r} of {self.name}: choose 'train' or 'test'")
        problems = self.problems(path, split)
        rows = [_row(problem) for problem in problems if problem.tests]
        if not rows:
            raise LabError(
                f"no {split} problem of {self.name} has tests{f' in {path}' if path else ''}: check the file"
            )
        if missing := [problem.id for problem in problems if not problem.tests]:
            shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            count = f"{len(missing)} of {len(problems)} problems of {self.name}"
            print0(f"{count} have no test that is data ({shown}): left out")
        return rows

    def score(self, answers: Sequence[str], rows: Sequence[dict]) -> np.ndarray:
        """Return (n, 16): 1 for each hidden test that an answer's program passes, NaN where a problem has fewer."""
        asked = [(program_in(answer), row["gold"]) for answer, row in zip(answers, rows, strict=True)]
        new = [pair for pair in dict.fromkeys(asked) if pair not in self._known]
        sandbox = _sandbox()
        found = dict(zip(new, _together(lambda pair: passed(*pair, sandbox), new), strict=True))
        known = {pair: found[pair] if pair in found else self._known[pair] for pair in asked}
        if len(self._known) + len(found) > KNOWN:
            self._known.clear()
        self._known.update(found)
        rewards_ND = np.full((len(asked), TESTS), np.nan)
        for rewards_D, pair in zip(rewards_ND, asked, strict=True):
            rewards_D[: len(known[pair])] = known[pair]
        return rewards_ND

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` times the data set's own solution in a fence; where it has none, the signature."""
        return [row["answer"]] * n

    def prompt(self, row: dict, parent: str, rewards_D: np.ndarray) -> list[dict]:
        """Return the request with a parent's program and the numbers of the hidden tests that it fails."""
        (message,), program = row["prompt"], program_in(parent)
        failing = ", ".join(str(number) for number, reward in enumerate(rewards_D, start=1) if reward == 0)
        told = f"\n\nThis program fails hidden tests {failing}:\n\n{fenced(program)}\n\nWrite a correct one."
        return [{**message, "content": message["content"] + (told if program else "")}]


def fenced(program: str) -> str:
    """Return a program in a block, as an answer holds it."""
    return f"```python\n{program.strip()}\n```"


def _row(problem: Problem) -> dict:
    request = problem.request
    if problem.function and problem.function not in request:
        request += f"\n\nThe function is called {problem.function}."
    if problem.in_class and problem.signature:
        request += f"\n\nBegin with:\n\n```python\n{problem.signature.rstrip()}\n```"
    return {
        "id": problem.id,
        "prompt": [
            {"role": "user", "content": f"{request}\n\n{FUNCTION_FORMAT if problem.function else PROGRAM_FORMAT}"}
        ],
        "gold": gold_of(problem),
        "answer": fenced(problem.solution or problem.signature or "print()"),
        "left_out": problem.left_out,
    }


class HumanEval(Problems):
    """HumanEval: 164 functions from docstrings. A test set: it has no train split."""

    name = "humaneval"

    def problems(self, path: str | None, split: str) -> list[Problem]:
        if split == "train":
            raise LabError("humaneval is a test set: train on task 'code' (MBPP+) or 'mbppplus'")
        return data.human_eval(path)


class MbppPlus(Problems):
    """MBPP+: 378 short functions, split as MBPP is: numbers up to 510 are its test."""

    name = "mbppplus"

    def problems(self, path: str | None, split: str) -> list[Problem]:
        problems = data.mbpp_plus(path, solve)
        return [problem for problem in problems if (int(problem.id.rpartition("/")[2]) <= 510) == (split == "test")]


class Coder(Problems):
    """Train on all of MBPP+, test on HumanEval: what the profile qwen2.5-coder-0.5b does."""

    name = "code"

    def problems(self, path: str | None, split: str) -> list[Problem]:
        return data.mbpp_plus(path, solve) if split == "train" else data.human_eval(path)


class LiveCodeBench(Problems):
    """LiveCodeBench: contest problems, split by date; functions and programs."""

    name = "livecodebench"

    def problems(self, path: str | None, split: str) -> list[Problem]:
        return [_with_libraries(problem) for problem in data.live_code_bench(path, split)]


class DeepCoder(Problems):
    """DeepCoder's collection: what the paper trained its code policy on."""

    name = "deepcoder"

    def problems(self, path: str | None, split: str) -> list[Problem]:
        return [_with_libraries(problem) for problem in data.deep_coder(path, split)]


def _with_libraries(problem: Problem) -> Problem:
    return replace(problem, given=LIBRARIES)
