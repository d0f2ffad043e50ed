"""Define what a task is, and find tasks by name: prompts, splits, objectives and a score, no training.

A task of your own needs no line here: `get_task("path/to/file.py:Class")`, see docs/own-task.md.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
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

    Where the score is only a proxy: `truth(answers, rows)`, as `score`, what answers are really worth, and
    `hacked(answers, rows)`, (n,) bool, which of them hold a flaw. They are measured (`search.truth`), never trained.

    For a search (`search.loop`): `start(row)`, the program it starts from; `child(parent, answer, row)`, what an answer
    makes of a program, the parent itself if it is not valid; `evaluate(programs, rows)`, as `score`; and
    `prompt(row, parent, rewards_D)`, the messages that show a parent and the tests that it fails. Where answers are
    patches, `search.closure` asks for `patch(answer)` and `lines(program)`, {field: line} (None: not valid), and
    `solution(row)`.
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
    """Return the batched `score(answers, rows)` of a function that scores one answer: (answer, gold) -> (D,).

    Equal pairs of answer and gold are scored once, because a small policy often repeats itself.
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


def check_generated(name: str, path: str | None, split: str) -> None:
    """Raise LabError if a generated task is given a file, or another split than "train" and "test"."""
    if path:
        raise LabError(f"{name} is generated and reads no file: drop the data path {str(path)!r}")
    if split not in ("train", "test"):
        raise LabError(f"unknown split {split!r} of {name}: choose 'train' or 'test'")


_TASKS = {
    "tiny_tools": "vpo_lab.tasks.tool_calls.tiny:TinyTools",
    "toolrl": "vpo_lab.tasks.tool_calls.toolrl:ToolRL",
    "code": "vpo_lab.tasks.code.problems:Coder",
    "humaneval": "vpo_lab.tasks.code.problems:HumanEval",
    "mbppplus": "vpo_lab.tasks.code.problems:MbppPlus",
    "livecodebench": "vpo_lab.tasks.code.problems:LiveCodeBench",
    "deepcoder": "vpo_lab.tasks.code.problems:DeepCoder",
    "maze": "vpo_lab.tasks.maze.world:MazeTask",
    "tiny_code": "vpo_lab.tasks.code.tiny:TinyCode",
    "tiny_repair": "vpo_lab.tasks.code.tiny:TinyRepair",
    "musique": "vpo_lab.tasks.musique.task:MuSiQue",
    "musique_all_hops": "vpo_lab.tasks.musique.task:MuSiQueAllHops",
    "eureqa": "vpo_lab.tasks.eureqa.task:Eureqa",
    "knights": "vpo_lab.tasks.puzzles.knights:Knights",
    "zebra": "vpo_lab.tasks.puzzles.zebra:Zebra",
    "tiny_hops": "vpo_lab.tasks.musique.tiny:TinyHops",
    "tiny_chain": "vpo_lab.tasks.eureqa.tiny:TinyChain",
    "tiny_judges": "vpo_lab.tasks.judges.tiny:TinyJudges",
    "tiny_judges_one_taste": "vpo_lab.tasks.judges.tiny:TinyJudgesOneTaste",
    "tiny_judges_opposed": "vpo_lab.tasks.judges.tiny:TinyJudgesOpposed",
    "tiny_judges_flawed": "vpo_lab.tasks.judges.tiny:TinyJudgesFlawed",
    "tiny_judges_own_flaws": "vpo_lab.tasks.judges.tiny:TinyJudgesOwnFlaws",
    "tiny_judges_opposed_own_flaws": "vpo_lab.tasks.judges.tiny:TinyJudgesOpposedOwnFlaws",
    "tiny_judges_own_flaws_doubted": "vpo_lab.tasks.judges.tiny:TinyJudgesOwnFlawsDoubted",
    "maze_9x9": "vpo_lab.tasks.maze.world:MazeTask9x9",
    "judges": "vpo_lab.tasks.judges.task:Judges",
    "helpsteer2": "vpo_lab.tasks.judges.task:HelpSteer2",
    "ultrafeedback": "vpo_lab.tasks.judges.task:UltraFeedback",
}


def get_task(name: str) -> Task:
    """Return the task of that name, or a class of your own as "path/to/file.py:Class" or "module:Class".

    "verifiers:NAME" is a task set of the verifiers library, see `train.verifiers`.

    Files are searched for in the folder where `vpo-lab run` was started, then in the repository; modules first on
    Python's path. Your task gets `name` as its name, so that a saved pool finds it again. LabError if there is no
    such task or its class cannot be made. `check.check_task` checks the rest, once.
    """
    if name in _TASKS:
        module, _, cls = _TASKS[name].partition(":")
        return getattr(importlib.import_module(module), cls)()
    if name.startswith("verifiers:"):
        return importlib.import_module("vpo_lab.train.verifiers").lab_task(name.removeprefix("verifiers:"))
    where, _, cls = name.rpartition(":")
    if not where or not cls:
        known = ", ".join(_TASKS)
        raise LabError(f"unknown task {name!r}: choose one of {known}, or a class of your own as FILE.py:CLASS")
    try:
        module = _load_file(where) if where.endswith(".py") or "/" in where else _load_module(where)
    except LabError:
        raise
    except Exception as error:
        raise LabError(
            f"{where} cannot be imported ({describe(error)}): correct it or install what it needs"
        ) from error
    own = getattr(module, cls, None)
    if not isinstance(own, type):
        found = [key for key, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
        raise LabError(f"no class {cls!r} in {where} (it has: {', '.join(found) or 'none'}): write {where}:CLASS")
    try:
        task = own()
        object.__setattr__(task, "name", name)  # a frozen dataclass may be a task too
    except Exception as error:
        raise LabError(f"{name} cannot be made ({describe(error)}): make {cls}() work") from error
    return task


# --- Finding a class of your own --------------------------------------------------------------


def _folders() -> tuple[Path, Path]:
    """Return the folders to search: where the command was started, and the repository."""
    return Path(session().task_folder or Path.cwd()), Path(__file__).resolve().parents[2]


def _load_file(where: str) -> ModuleType:
    path, folders = Path(where).expanduser(), _folders()
    files = [folder / path for folder in folders if path.suffix == ".py" and (folder / path).is_file()]
    if not files:
        raise LabError(f"no task file {where} in {' or '.join(map(str, folders))}: write the path of a .py file")
    return _run_file(files[0].resolve(), files[0].stat().st_mtime_ns)


@lru_cache
def _run_file(file: Path, changed: int) -> ModuleType:
    """Return the module of a file, read again if it has changed, so that a notebook needs no restart."""
    _add_to_path(file.parent)  # as `python FILE` does, so that it can import files beside it
    module = ModuleType(f"own_task_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses look up their module here
    exec(compile(file.read_bytes(), file, "exec"), vars(module))
    return module


def _load_module(where: str) -> ModuleType:
    if not all(part.isidentifier() for part in where.split(".")):
        raise LabError(f"{where!r} is neither a module nor a file: write MODULE:CLASS or FILE.py:CLASS")
    for folder in _folders():
        _add_to_path(folder)
    importlib.invalidate_caches()  # finds files written a moment ago
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # the module exists; a package that it needs does not
        looked = " or ".join(map(str, _folders()))
        raise LabError(f"no module {where!r} where Python looks or in {looked}: check name and PYTHONPATH") from error


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that it hides nothing


def describe(error: BaseException) -> str:
    """Say what was raised, and where in the user's code, in one line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if isinstance(error, SyntaxError):  # its text names the line
        return text
    for frame in reversed(extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and "site-packages" not in file.parts and Path(__file__).parents[1] not in file.parents:
            return f"{text}, {file.name} line {frame.lineno}"
    return text
