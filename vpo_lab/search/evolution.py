"""Hold what a search for a program found: which programs, from which parents, after how many candidates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_json
from vpo_lab.metrics import SOLVED, mean_reward

BUDGETS = (12, 24, 48, 96, 192, 384)  # candidates


@dataclass(frozen=True)
class Evolution:
    """Hold the programs that the search for one problem accepted. Axes: P programs, D objectives.

    Program 0 is the start. A candidate that changes nothing costs its place in the budget and leaves no program.
    """

    id: str
    objectives: tuple[str, ...]
    candidates: int  # how many were tried
    texts: tuple[str, ...]  # (P,)
    parents: tuple[int, ...]  # (P,) the program that each was made from; -1 for the start
    found: tuple[int, ...]  # (P,) at which candidate, from 1; 0 for the start
    rewards_PD: np.ndarray

    @property
    def scores_P(self) -> np.ndarray:
        """Return the mean of the asked objectives of each program: (P,)."""
        return mean_reward(self.rewards_PD)

    @property
    def solved_at(self) -> float:
        """Return after how many candidates a program passes everything that is asked; infinity if none does."""
        pairs = zip(self.found, self.rewards_PD, strict=True)
        return min((n for n, rewards_D in pairs if solved(rewards_D)), default=math.inf)

    def best(self, candidates: int) -> float:
        """Return the best score among the start and the first so many candidates."""
        return float(self.scores_P[np.array(self.found) <= candidates].max())

    def until(self, candidates: float) -> Evolution:
        """Return what was found within so many candidates."""
        kept = sum(found <= candidates for found in self.found)
        lists = {name: getattr(self, name)[:kept] for name in ("texts", "parents", "found", "rewards_PD")}
        return replace(self, candidates=int(min(self.candidates, candidates)), **lists)

    def lineage(self, program: int | None = None) -> list[int]:
        """Return the programs from the start to one of them (None: the best, the first of equals)."""
        line = [int(self.scores_P.argmax()) if program is None else program]
        while (parent := self.parents[line[0]]) >= 0:
            line.insert(0, parent)
        return line

    def as_json(self) -> dict:
        """Return what `from_json` reads; an objective that is not asked is null."""
        rewards = np.where(np.isnan(self.rewards_PD), None, np.round(self.rewards_PD, 6)).tolist()
        return {name: value for name, value in vars(self).items() if name != "rewards_PD"} | {"rewards": rewards}

    @classmethod
    def from_json(cls, data: dict) -> Evolution:
        """Return the evolution that `as_json` described."""
        lists = {name: tuple(data[name]) for name in ("objectives", "texts", "parents", "found")}
        return cls(
            data["id"], candidates=data["candidates"], rewards_PD=np.array(data["rewards"], dtype=float), **lists
        )


def save_evolutions(path: Path, evolutions: Iterable[Evolution]) -> None:
    """Write evolutions to one file, atomically; gzipped where the name ends in .gz."""
    write_json(path, [evolution.as_json() for evolution in evolutions])


def load_evolutions(path: Path) -> list[Evolution]:
    """Read what `save_evolutions` wrote; LabError if the file is missing or damaged."""
    data = read_json(path)
    try:
        return [Evolution.from_json(one) for one in data]
    except (KeyError, TypeError, ValueError) as error:
        raise LabError(f"{path} holds no evolutions ({error}): delete it and run again") from error


def solved(rewards_D: np.ndarray) -> bool:
    """Return True if every asked objective is 1 (there must be one)."""
    asked = rewards_D[~np.isnan(rewards_D)]
    return bool(len(asked) and (asked >= SOLVED).all())


def solved_within(evolutions: Sequence[Evolution], budget: int) -> np.ndarray:
    """Return 1.0 for each problem that is solved within so many candidates, else 0.0: (N,)."""
    return np.array([float(evolution.solved_at <= budget) for evolution in evolutions])
