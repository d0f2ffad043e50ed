"""The tasks: prompts, splits, objectives and a score. Nothing here knows about training."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

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
    """The task of that name; LabError that lists the known ones if there is none."""
    if name not in _TASKS:
        raise LabError(f"unknown task {name!r}: choose one of {', '.join(_TASKS)}")
    module, _, cls = _TASKS[name].partition(":")
    return getattr(import_module(module), cls)()
