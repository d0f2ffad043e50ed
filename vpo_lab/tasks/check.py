"""Check once, before a run, that a task is sound, and whether its objectives differ."""

from __future__ import annotations

from typing import Any

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.metrics import objective_collinearity
from vpo_lab.processes import print0
from vpo_lab.tasks import Task, describe

ROUNDING = 1e-9  # a reward may lie so far outside [0, 1]: a mean of ones can be 1.0000000000000002
ROWS = 8  # how many rows of a split are answered and scored
COLLINEAR, CLOSE = 0.8, 0.5  # mean correlation of objectives: above these VPO gains little, and less
SAMPLED = 200  # rows whose demonstrations are compared, where a task has no reference answers
_METHODS = ("score", "load", "demonstrations")
_MEMBERS = ("name", "objectives", *_METHODS)


def check_task(task: Task, path: str | None = None) -> dict[str, int]:
    """Load both splits, answer some rows and score the answers; LabError for the first mistake.

    Returns how many rows each split has.

    `path` is what `load` is given. Checked: the members of `Task`, unique row ids, n texts for n
    demonstrations, one reward vector per answer in [0, 1] or NaN, NaN for the same objectives in every
    answer to a row, and that a batch scores as its answers do one by one. If the task has reference answers, a line
    says how its objectives correlate on them.
    """
    missing = [member for member in _MEMBERS if getattr(task, member, None) is None]
    missing += [method for method in _METHODS if not callable(getattr(task, method, callable))]
    if missing:
        raise LabError(f"task {_name(task)} has no {', '.join(missing)}: a task needs {', '.join(_MEMBERS)}")
    names = task.objectives
    if not isinstance(names, tuple) or not names or not all(isinstance(n, str) for n in names):
        raise LabError(f"{task.name}: objectives is {_short(names)}: write a tuple of names, ('a', 'b')")
    if len(set(names)) < len(names):
        raise LabError(f"{task.name}: objectives {_short(names)} has a name twice: make them different")
    counts = {}
    for split in ("train", "test"):
        rows = _call(task, "load", path, split)
        _check_rows(task, rows, split)
        counts[split] = len(rows)
        for row in rows[:ROWS]:
            _check_answers(task, row)
    if hasattr(task, "references"):
        print0(collinearity(task, path)[1])
    return counts


def collinearity(task: Task, path: str | None = None) -> tuple[np.ndarray, str]:
    """Return how the objectives correlate before anything is trained: (D, D), and what that means in a line.

    Measured on the task's `references(path)`, (answers, rows), else on three demonstrations of SAMPLED train rows.
    LabError if there are fewer than two answers.
    """
    if (references := getattr(task, "references", None)) is not None:
        answers, rows = references(path)
    else:
        rng, sampled = np.random.default_rng(0), task.load(path, "train")[:SAMPLED]
        pairs = [(answer, row) for row in sampled for answer in task.demonstrations(row, 3, rng)]
        answers, rows = [answer for answer, _ in pairs], [row for _, row in pairs]
    correlation_DD = objective_collinearity(task.score(answers, rows))
    return correlation_DD, f"{task.name}, {len(answers)} answers: {_verdict(task.objectives, correlation_DD)}"


def _verdict(names: tuple[str, ...], correlation_DD: np.ndarray) -> str:
    first_P, second_P = np.triu_indices(len(names), 1)
    values_P = correlation_DD[first_P, second_P]
    constant = [name for name, row in zip(names, correlation_DD, strict=True) if np.isnan(row).sum() == len(names) - 1]
    if not np.isfinite(values_P).any():
        return "one objective that varies: there is no vector, use grpo"
    mean, top = float(np.nanmean(values_P)), int(np.nanargmax(values_P))
    pair = f"{names[first_P[top]]} and {names[second_P[top]]}"
    said = f"mean correlation of the objectives {mean:.2f}, largest {values_P[top]:.2f} ({pair})"
    if mean > COLLINEAR:
        said += ": collinear, one number under several names: the vector adds little"
    elif values_P[top] > COLLINEAR:
        said += ": these two are collinear, drop one"
    else:
        said += ": close, expect little of a vector" if mean > CLOSE else ": they differ"
    return said + (f"; {', '.join(constant)} never varies, drop it" if constant and len(names) > 1 else "")


def _check_rows(task: Task, rows: Any, split: str) -> None:
    if not isinstance(rows, list) or not rows:
        raise LabError(f"{task.name}: load gives {_short(rows)} for {split!r}: return a list of rows, one at least")
    seen = set()
    for number, row in enumerate(rows):
        if not _is_row(row):
            wanted = "{'id': text, 'prompt': [{'role': 'user', 'content': text}], 'gold': text}"
            raise LabError(f"{task.name}: {split} row {number} is {_short(row)}: write {wanted}")
        if row["id"] in seen:
            raise LabError(f"{task.name}: {split} row {number} has the id of an earlier row, {row['id']!r}: change it")
        seen.add(row["id"])


def _check_answers(task: Task, row: dict) -> None:
    answers = _call(task, "demonstrations", row, 3, np.random.default_rng(0))
    if not isinstance(answers, list) or len(answers) != 3 or not all(isinstance(a, str) for a in answers):
        raise LabError(f"{task.name}: demonstrations gives {_short(answers)} for n = 3: return a list of n texts")
    if tagged := [answer for answer in answers if "<answer_" in answer]:
        raise LabError(f"{task.name}: a demonstration is {_short(tagged[0])}: leave '<answer_' to the chains")
    answers = [*answers, "", "no answer"]
    rewards_nD = _rewards(task, answers, row)
    outside = ~np.isnan(rewards_nD) & ~((rewards_nD >= -ROUNDING) & (rewards_nD <= 1 + ROUNDING))
    if outside.any():
        n = int(outside.any(axis=1).argmax())
        shown = _short(rewards_nD[n].tolist())
        raise LabError(f"{task.name}: score gives {shown} for {_short(answers[n])}: scale each number to [0, 1]")
    asked_nD = ~np.isnan(rewards_nD)
    if not asked_nD.any() or (asked_nD != asked_nD[0]).any():
        raise LabError(
            f"{task.name}: score asks for other objectives from answer to answer of row {row['id']!r}: NaN means that "
            "the row does not ask, give 0 to a bad answer"
        )
    alone_nD = np.concatenate([_rewards(task, [answer], row) for answer in answers])
    if not np.array_equal(alone_nD, rewards_nD, equal_nan=True):
        raise LabError(f"{task.name}: score gives other rewards to an answer alone than in a batch: make them equal")


def _rewards(task: Task, answers: list[str], row: dict) -> np.ndarray:
    rewards = _call(task, "score", answers, [row] * len(answers))
    try:
        rewards_nD = np.asarray(rewards, dtype=float)
    except (TypeError, ValueError):
        rewards_nD = np.empty(0)
    shape = (len(answers), len(task.objectives))
    if rewards_nD.shape != shape:
        raise LabError(
            f"{task.name}: score gives {_short(rewards)} for {len(answers)} answers: return an array of shape {shape}, "
            f"a number for each of {', '.join(task.objectives)} (tasks.each wraps a function that scores one answer)"
        )
    return rewards_nD


def _call(task: Task, method: str, *arguments: Any) -> Any:
    try:
        return getattr(task, method)(*arguments)
    except LabError:
        raise
    except Exception as error:
        raise LabError(
            f"{task.name}: {method} raised {describe(error)} for {_short(arguments[0])}: correct it"
            + (", any text may come" if method == "score" else "")
        ) from error


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), list) or not row["prompt"]:
        return False
    texts = [row.get("id"), row.get("gold")]
    for message in row["prompt"]:
        texts += [message.get("role"), message.get("content")] if isinstance(message, dict) else [None]
    return all(isinstance(text, str) for text in texts)


def _name(task: Any) -> str:
    return str(getattr(task, "name", None) or type(task).__name__)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"
