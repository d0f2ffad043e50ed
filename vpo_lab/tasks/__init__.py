"""The tasks: prompts, splits, objectives and a score. Nothing here knows about training.

A task of yours needs no line here: `get_task("path/to/file.py:Class")`, see docs/own-task.md.
"""

from __future__ import annotations

import importlib
import os
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from vpo_lab.errors import LabError


class Task(Protocol):
    """What a task offers. A row is {"id": str, "prompt": [messages], "gold": str}."""

    name: str
    objectives: tuple[str, ...]  # D names

    def score(self, answer: str, gold: str) -> np.ndarray:
        """The reward vector of one answer: (D,), each in [0, 1]. Never raises, whatever the text."""

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """The rows of "train" or "test"; `path` overrides the task's own source."""

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """`n` imperfect answers that a warmup may imitate, distinct where the task allows."""


_TASKS = {
    "tiny_tools": "vpo_lab.tasks.tiny_tools:TinyTools",
    "toolrl": "vpo_lab.tasks.toolrl:ToolRL",
    "maze": "vpo_lab.tasks.maze:MazeTask",
    "maze_9x9": "vpo_lab.tasks.maze:MazeTask9x9",
}


def get_task(name: str) -> Task:
    """The task of that name, or a class of yours as "path/to/file.py:Class" or "module:Class", see `OwnTask`.

    A relative path is looked for in the current folder (or TASK_FOLDER), then in the repository; a module
    where Python looks, then there. LabError that lists the known tasks, or says what a class lacks.
    """
    if name in _TASKS:
        module, _, cls = _TASKS[name].partition(":")
        return getattr(importlib.import_module(module), cls)()
    where, _, cls = name.rpartition(":")
    if not where or not cls:
        raise LabError(
            f"unknown task {name!r}: choose one of {', '.join(_TASKS)}, or a class of your own as FILE.py:CLASS"
        )
    return OwnTask(name, _load_class(where, cls))


# --- A task of your own -----------------------------------------------------------------------

# Notebooks run in a folder of their own; a path is meant from where the command was started, which is put here.
TASK_FOLDER = "VPO_LAB_TASK_FOLDER"
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


# --- Finding it -------------------------------------------------------------------------------


def _folders() -> tuple[Path, Path]:
    """Where what a user names is looked for: where they are, then in the repository."""
    return Path(os.environ.get(TASK_FOLDER) or Path.cwd()), Path(__file__).resolve().parents[2]


def _load_class(where: str, name: str) -> type:
    is_file = where.endswith(".py") or "/" in where
    try:
        module = _load_file(where) if is_file else _load_module(where)
    except LabError:
        raise
    except Exception as error:
        raise LabError(f"{where} cannot be imported ({_line(error)}): correct it, or install what it needs") from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        own = [key for key, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
        raise LabError(f"no class {name!r} in {where} (it has: {', '.join(own) or 'none'}): write {where}:CLASS")
    return found


def _load_file(where: str) -> ModuleType:
    path, folders = Path(where).expanduser(), _folders()
    file = next((folder / path for folder in folders if path.suffix == ".py" and (folder / path).is_file()), None)
    if file is None:
        looked = "" if path.is_absolute() else f" in {' or '.join(map(str, folders))}"
        raise LabError(f"no task file {where}{looked}: write the path of a .py file")
    return _run_file(file.resolve(), file.stat().st_mtime_ns)


@lru_cache
def _run_file(file: Path, changed: int) -> ModuleType:
    """The module of a file. One that has changed is read anew, so that a notebook needs no restart."""
    _add_to_path(file.parent)  # as `python FILE` does: it may import its neighbours
    module = ModuleType(f"own_task_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where dataclasses look their module up
    exec(compile(file.read_bytes(), file, "exec"), vars(module))
    return module


def _load_module(where: str) -> ModuleType:
    if not all(part.isidentifier() for part in where.split(".")):
        raise LabError(f"{where!r} is neither a module nor a file: write MODULE:CLASS or FILE.py:CLASS")
    top, folders = where.partition(".")[0], _folders()
    importlib.invalidate_caches()  # the file may be a moment old
    if top not in sys.modules and find_spec(top) is None:
        holders = [folder for folder in folders if (folder / top).is_dir() or (folder / f"{top}.py").is_file()]
        for folder in holders[:1]:
            _add_to_path(folder)
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # it is there, and a package that it needs is not
        looked = " or ".join(map(str, folders))
        raise LabError(f"no module {where!r} where Python looks or in {looked}: check name and PYTHONPATH") from error


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that it hides nothing


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
