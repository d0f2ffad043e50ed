"""Check a user's task: is it sound?"""

from __future__ import annotations

from pathlib import Path
from traceback import extract_tb
from typing import Any

import numpy as np

from vpo_lab.errors import LabError

ROUNDING = 1e-9  # so far a reward may lie outside [0, 1]: a mean of ones can be 1.0000000000000002
_METHODS = ("score", "load", "demonstrations")
_MEMBERS = ("name", "objectives", *_METHODS)


class OwnTask:
    """A user's task, held to the contract: what it returns is checked, and a breach is a LabError.

    `name` is the spec that it was loaded by, so that a saved pool finds its task again. Whatever else
    the task offers, such as `front` or `ceiling`, is passed through.
    """

    def __init__(self, name: str, cls: type):
        """LabError if the class needs arguments, lacks a member of `Task` or names no objectives."""
        try:
            task = cls()
        except Exception as error:
            raise LabError(f"{name} cannot be made ({_line(error)}): make {cls.__name__}() work") from error
        missing = [member for member in _MEMBERS if getattr(task, member, None) is None]
        missing += [method for method in _METHODS if not callable(getattr(task, method, callable))]
        if missing:
            raise LabError(f"{name} has no {', '.join(missing)}: a task needs {', '.join(_MEMBERS)}")
        names = task.objectives
        texts = isinstance(names, tuple) and all(isinstance(objective, str) for objective in names)
        if not texts or not names or len(set(names)) < len(names):
            raise LabError(f"{name}: objectives is {_short(names)}: write a tuple of different names, ('a', 'b')")
        self._task, self.name, self.objectives = task, name, names

    def __getattr__(self, attribute: str) -> Any:
        return getattr(object.__getattribute__(self, "_task"), attribute)

    def score(self, answer: str, gold: str) -> np.ndarray:
        """The task's score: (D,) in [0, 1]. LabError if it raises, or has another shape or range."""
        rewards = self._call("score", answer, gold)
        try:
            rewards_D = np.asarray(rewards, dtype=float)
        except (TypeError, ValueError):
            rewards_D = np.array(np.nan)
        shape = (len(self.objectives),)
        if rewards_D.shape != shape:
            raise LabError(
                f"{self.name}: score gives {_short(rewards)} for {_short(answer)}: return an array of shape {shape}, "
                f"a number for each of {', '.join(self.objectives)}"
            )
        if not ((rewards_D >= -ROUNDING) & (rewards_D <= 1 + ROUNDING)).all():  # NaN is neither
            shown = _short(rewards_D.tolist())
            raise LabError(f"{self.name}: score gives {shown} for {_short(answer)}: scale each number to [0, 1]")
        return np.clip(rewards_D, 0.0, 1.0)

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """The task's rows. LabError if they are none, or two share an id.

        Answers to the first, and none, are scored here, so that a mistake ends a run before it trains.
        """
        rows = self._call("load", path, split)
        if not isinstance(rows, list) or not rows:
            raise LabError(f"{self.name}: load gives {_short(rows)} for {split!r}: return a list of rows, one at least")
        ids = set()
        for number, row in enumerate(rows):
            if not _is_row(row):
                wanted = "{'id': text, 'prompt': [{'role': 'user', 'content': text}], 'gold': text}"
                raise LabError(f"{self.name}: {split} row {number} is {_short(row)}: write {wanted}")
            if row["id"] in ids:
                raise LabError(
                    f"{self.name}: {split} row {number} has an earlier row's id, {_short(row['id'])}: change it"
                )
            ids.add(row["id"])
        for answer in [*self.demonstrations(rows[0], 3, np.random.default_rng(0)), ""]:
            self.score(answer, rows[0]["gold"])
        return rows

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """The task's `n` answers. LabError if they are not n texts, or one holds the tag of a chain."""
        answers = self._call("demonstrations", row, n, rng)
        if not isinstance(answers, list) or len(answers) != n or not all(isinstance(a, str) for a in answers):
            raise LabError(f"{self.name}: demonstrations gives {_short(answers)} for n = {n}: return a list of n texts")
        if tagged := [answer for answer in answers if "<answer_" in answer]:
            raise LabError(f"{self.name}: a demonstration is {_short(tagged[0])}: leave '<answer_' to the chains")
        return answers

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._task, method)(*arguments)
        except LabError:
            raise
        except Exception as error:
            what = f"{method} raised {_line(error)} for {_short(arguments[0])}"
            advice = "any text may come, return zeros" if method == "score" else "correct it"
            raise LabError(f"{self.name}: {what}: {advice}") from error


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), list) or not row["prompt"]:
        return False
    texts = [row.get("id"), row.get("gold")]
    for message in row["prompt"]:
        texts += [message.get("role"), message.get("content")] if isinstance(message, dict) else [None]
    return all(isinstance(text, str) for text in texts)


def _line(error: BaseException) -> str:
    """What was raised, and where in the user's code, in one line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if isinstance(error, SyntaxError):  # it says so itself
        return text
    frames = [(Path(frame.filename), frame.lineno) for frame in extract_tb(error.__traceback__)]
    users = [f for f in frames if f[0] != Path(__file__) and f[0].is_file() and "site-packages" not in f[0].parts]
    return f"{text}, {users[-1][0].name} line {users[-1][1]}" if users else text


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"
