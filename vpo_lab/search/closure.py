"""Find which programs a policy can reach in any number of steps: the closure of the steps that it was seen to take."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.search.evolution import solved
from vpo_lab.search.loop import child_of, rewards_of, start_of
from vpo_lab.tasks import Task


@dataclass(frozen=True)
class Closure:
    """Say what a policy can reach on one problem by the steps that it was seen to take."""

    programs: int  # different ones that were reached, the start included
    solved: bool | None  # is one among them that passes everything? None: too many to tell


def reachable(task: Any, row: dict, answers: Sequence[str], *, at_least: float = 0.0, limit: int = 20_000) -> Closure:
    """Search all programs that repeated steps reach from the start, each as often as needed.

    `answers`: n independent answers of the policy to the row. Every step among them counts, unless its share is below
    `at_least`; a step is all answers that make the same child of the same parent. A step of probability 3 / n is
    among n answers in 95 of 100 cases. Rarer steps may be missed: at a temperature no answer is impossible.

    Where the task has `patch(answer)`, `lines(program)` and `solution(row)`, programs are sets of lines, {field:
    line}. The search is exact where lines do not influence one another, as in the tiny world. It solves when every
    field has a line that passes in the place of the solution's. A patch may overwrite right lines with wrong ones,
    so order matters, and all orders are followed, the most promising programs first. Else an answer is a whole
    program, and one step reaches all that can be reached. Raises LabError without answers.
    """
    if not answers:
        raise LabError(f"no answers to {row['id']}: sample some thousand before asking what they reach")
    if not hasattr(task, "patch"):
        return _one_step(task, row, answers, at_least)
    patches = Counter(frozenset((task.patch(answer) or {}).items()) for answer in answers)
    start, wanted = task.lines(start_of(task, row)), task.lines(task.solution(row))
    fields = sorted({*start, *wanted, *(name for patch in patches for name, _ in patch)})
    right = _right_lines(task, row, {line for patch in patches for line in patch})
    codes = [{None: 0} for _ in fields]  # the lines of each field -> numbers; right ones share that of the wanted line

    def code(f: int, line: str | None) -> int:
        line = wanted.get(fields[f]) if (fields[f], line) in right else line
        return codes[f].setdefault(line, len(codes[f]))

    start_F = np.array([code(f, start.get(name)) for f, name in enumerate(fields)])
    target_F = np.array([code(f, wanted.get(name)) for f, name in enumerate(fields)])
    steps_AF = np.array([[code(f, dict(p)[x]) if x in dict(p) else -1 for f, x in enumerate(fields)] for p in patches])
    shares_A = np.array(list(patches.values())) / len(answers)
    return closure(start_F, target_F, steps_AF, shares_A, at_least, limit)


def closure(
    start_F: np.ndarray, target_F: np.ndarray, steps_AF: np.ndarray, shares_A: np.ndarray, at_least: float, limit: int
) -> Closure:
    """Search from one setting of F fields to another by A steps, each of which sets some fields (-1: leaves it).

    Settings are numbers from 0. Returns after `limit` settings with `solved` None.
    """
    sizes_F = np.concatenate([steps_AF, [start_F, target_F]]).max(axis=0) + 1
    radix_F = np.cumprod([1, *sizes_F[:-1]])  # a setting as one number
    if not (start_F - target_F).any():
        return Closure(1, True)
    heap, seen = [(0, 0, start_F)], {int(start_F @ radix_F)}
    while heap:
        setting_F = heapq.heappop(heap)[2]
        children_AF = np.where(steps_AF >= 0, steps_AF, setting_F)
        keys_A = children_AF @ radix_F
        keys, first, group_A = np.unique(keys_A, return_index=True, return_inverse=True)
        shares = np.bincount(group_A, weights=shares_A)
        for key, a, share in zip(keys.tolist(), first, shares, strict=True):
            if share < at_least * (1 - 1e-9) or key in seen:
                continue
            wrong = int((children_AF[a] != target_F).sum())
            seen.add(key)
            if not wrong:
                return Closure(len(seen), True)
            if len(seen) >= limit:
                return Closure(len(seen), None)
            heapq.heappush(heap, (wrong, len(seen), children_AF[a]))
    return Closure(len(seen), False)


def _one_step(task: Task, row: dict, answers: Sequence[str], at_least: float) -> Closure:
    """The closure where a child does not depend on its parent."""
    start = start_of(task, row)
    children = Counter(child_of(task, start, answer, row) for answer in answers)
    likely = [text for text, n in children.items() if n >= at_least * len(answers) * (1 - 1e-9)]
    texts = [start, *(text for text in likely if text != start)]
    return Closure(len(texts), any(map(solved, rewards_of(task, texts, [row] * len(texts)))))


def _right_lines(task: Any, row: dict, lines: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the lines, (field, line), with which the solution still passes everything."""
    solution = task.solution(row)
    found = sorted(lines)
    texts = [child_of(task, solution, line, row) for _, line in found]
    rewards_ND = rewards_of(task, texts, [row] * len(texts))
    return {
        (field, line)
        for (field, line), text, rewards_D in zip(found, texts, rewards_ND, strict=True)
        if solved(rewards_D) and task.lines(text).get(field) == line
    }
