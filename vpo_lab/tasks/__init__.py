"""The tasks: prompts, splits, objectives and a score. Nothing here knows about training.

A task of yours needs no line here: `get_task("path/to/file.py:Class")`, see docs/own-task.md.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Protocol

import numpy as np

from vpo_lab.chains import split_chain
from vpo_lab.errors import LabError
from vpo_lab.processes import session


class Task(Protocol):
    """Say what a task offers. A row is {"id": str, "prompt": [messages], "gold": str, ...}.

    Optional: `ceiling(k)`, `front(gold)` and `reference`; for `show.Explorer`: `short(answer)`, `title(row)`,
    `picture(gold, answers)`, `picture_key`, `meanings` and `about`.
    """

    name: str
    objectives: tuple[str, ...]  # D names

    def score(self, answers: Sequence[str], rows: Sequence[dict]) -> np.ndarray:
        """Return the reward vectors of n answers to n rows: (n, D), each in [0, 1].

        NaN where a row does not ask for an objective, the same for every answer to it. Never raises,
        whatever the texts. `each` makes this of a function that scores one answer.
        """

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """Return the rows of "train" or "test"; `path` overrides the task's own source."""

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` imperfect answers that a warmup may imitate, distinct where the task allows."""


def each(score_one: Callable[[str, str], np.ndarray]) -> Callable[[Sequence[str], Sequence[dict]], np.ndarray]:
    """Make the batched `score(answers, rows)` of a function that scores one answer: (answer, gold) -> (D,).

    A small policy repeats itself: equal pairs of answer and gold are scored once.
    """

    def score(answers: Sequence[str], rows: Sequence[dict]) -> np.ndarray:
        pairs = [(answer, row["gold"]) for answer, row in zip(answers, rows, strict=True)]
        known = {pair: score_one(*pair) for pair in dict.fromkeys(pairs)}
        return np.array([known[pair] for pair in pairs], dtype=float)

    return score


def score_chains(task: Task, completions: Sequence[str], rows: Sequence[dict], m: int) -> np.ndarray:
    """Return the reward vectors of B completions of M answers to B rows: (B, M, D), NaN where not asked.

    A missing answer is worth 0 in every objective that its row asks for.
    """
    chains = [split_chain(completion, m) for completion in completions]
    flat = [answer for chain in chains for answer in chain]
    rewards_ND = np.asarray(task.score(flat, [row for row in rows for _ in range(m)]), dtype=float)
    missing_N = np.array([not answer for answer in flat])
    rewards_ND[missing_N[:, None] & ~np.isnan(rewards_ND)] = 0.0
    return rewards_ND.reshape(len(chains), m, len(task.objectives))


_TASKS = {
    "tiny_tools": "vpo_lab.tasks.tool_calls.tiny:TinyTools",
    "toolrl": "vpo_lab.tasks.tool_calls.toolrl:ToolRL",
    "maze": "vpo_lab.tasks.maze.world:MazeTask",
    "maze_9x9": "vpo_lab.tasks.maze.world:MazeTask9x9",
}


def get_task(name: str) -> Task:
    """Return the task of that name, or a class of yours as "path/to/file.py:Class" or "module:Class".

    A relative path is looked for in the current folder (that of `vpo-lab run`), then in the repository; a module
    where Python looks, then there. Your task is named by what it was loaded by, so that a saved pool finds
    it again. LabError that lists the known tasks, or says why a class cannot be made; whether a task is
    sound is asked once, by `check.check_task`.
    """
    if name in _TASKS:
        module, _, cls = _TASKS[name].partition(":")
        return getattr(importlib.import_module(module), cls)()
    where, _, cls = name.rpartition(":")
    if not where or not cls:
        raise LabError(
            f"unknown task {name!r}: choose one of {', '.join(_TASKS)}, or a class of your own as FILE.py:CLASS"
        )
    own = _load_class(where, cls)
    try:
        task = own()
        object.__setattr__(task, "name", name)  # a frozen dataclass may be a task too
    except Exception as error:
        raise LabError(f"{name} cannot be made ({describe(error)}): make {cls}() work") from error
    return task


# --- Finding a class of your own -------------------------------------------------------------------------------


def _folders() -> tuple[Path, Path]:
    """Return where a user's task is looked for: where the command was started, then in the repository."""
    return Path(session().task_folder or Path.cwd()), Path(__file__).resolve().parents[2]


def _load_class(where: str, name: str) -> type:
    is_file = where.endswith(".py") or "/" in where
    try:
        module = _load_file(where) if is_file else _load_module(where)
    except LabError:
        raise
    except Exception as error:
        raise LabError(
            f"{where} cannot be imported ({describe(error)}): correct it, or install what it needs"
        ) from error
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


def describe(error: BaseException) -> str:
    """Say what was raised, and where in the user's code, in one line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if isinstance(error, SyntaxError):  # it says so itself
        return text
    frames = [(Path(frame.filename), frame.lineno) for frame in extract_tb(error.__traceback__)]
    users = [
        f
        for f in frames
        if Path(__file__).parents[1] not in f[0].parents and f[0].is_file() and "site-packages" not in f[0].parts
    ]
    return f"{text}, {users[-1][0].name} line {users[-1][1]}" if users else text
