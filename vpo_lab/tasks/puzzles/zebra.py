"""Zebra puzzles: who lives in which house, drinks what and keeps which animal.

Three or four houses in a row; for each a person, a drink, an animal and sometimes a colour, all different. The clues
fit one arrangement and no other, and each of them is needed; all arrangements are tried. There is an objective per
place in the table: "house_2_drink" is 1 if the drink of house 2 is right. Smaller puzzles do not ask for the rest.

PUZZLE_SEED fixes the puzzles. No puzzle of the train split is in the test split, under other names either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations, product

import numpy as np

from vpo_lab.tasks import check_generated, each
from vpo_lab.tasks.puzzles.lines import draw_splits, labelled

PUZZLE_SEED = 20261130
ROWS = {"test": 200, "train": 512}
VALUES = {
    "person": ("Anna", "Boris", "Clara", "David", "Elena", "Felix"),
    "drink": ("tea", "milk", "juice", "water", "cocoa", "coffee"),
    "animal": ("cat", "dog", "horse", "zebra", "parrot", "rabbit"),
    "colour": ("red", "blue", "green", "white", "yellow", "black"),
}
_KIND_OF = {value.casefold(): kind for kind, values in VALUES.items() for value in values}
SIZES = ((3, 3), (3, 4), (4, 3), (4, 4))  # (houses, kinds of things)
HOUSES = 4  # at most
MEANINGS = {f"house_{h}_{kind}": f"the {kind} of house {h}" for h in range(1, HOUSES + 1) for kind in VALUES}
_NAMED = {
    "person": "{}",
    "drink": "the {} drinker",
    "animal": "the {} owner",
    "colour": "the owner of the {} house",
}

Thing = tuple[int, int]  # (kind, the house in which it is)


@dataclass(frozen=True)
class Clue:
    """Hold a clue about one thing or two, which are named by where they are in the solution."""

    form: str  # "house", "end", "with", "without", "left", "beside"
    things: tuple[Thing, ...]

    def holds(self, at: int, other: int, houses: int) -> bool:
        """Return whether it is true with its things in the houses `at` and `other` (counted from 0)."""
        if self.form == "house":
            return at == self.things[0][1]
        if self.form == "end":
            return at in (0, houses - 1)
        if self.form in ("with", "without"):
            return (at == other) == (self.form == "with")
        return at == other - 1 or (self.form == "beside" and at == other + 1)

    def text(self, table: tuple[tuple[str, ...], ...]) -> str:
        """Return the clue in words. `table` holds the values of each kind, by house."""
        names = [list(_NAMED.values())[kind].format(table[kind][house]) for kind, house in self.things]
        said = {
            "house": f"lives in house {self.things[0][1] + 1}",
            "end": "lives in the first house or in the last",
            "with": f"is {names[-1]}",
            "without": f"is not {names[-1]}",
            "left": f"lives directly left of {names[-1]}",
            "beside": f"lives beside {names[-1]}",
        }[self.form]
        return f"{names[0][0].upper()}{names[0][1:]} {said}."


@dataclass(frozen=True)
class Puzzle:
    """Hold the solution, the values of each kind by house, and the clues."""

    table: tuple[tuple[str, ...], ...]
    clues: tuple[Clue, ...]

    @property
    def houses(self) -> int:
        return len(self.table[0])

    def gold(self) -> dict[str, str]:
        """Return the value of every place in the table, by its objective."""
        places = product(range(self.houses), zip(VALUES, self.table, strict=False))
        return {f"house_{h + 1}_{kind}": values[h] for h, (kind, values) in places}


def draw_puzzle(rng: np.random.Generator) -> Puzzle:
    """Draw a puzzle with exactly one solution and no clue to spare."""
    houses, kinds = SIZES[rng.integers(len(SIZES))]
    table = tuple(tuple(rng.choice(v, houses, replace=False).tolist()) for v in list(VALUES.values())[:kinds])
    clues = _true_clues(houses, kinds)
    # There are many of these, and they say too little, or too much.
    late = rng.random(len(clues)) + [{"without": 0.15, "left": 0.2}.get(clue.form, 0.0) for clue in clues]
    order = [clues[i] for i in np.argsort(late)]
    fits = [_fits(clue, houses, kinds) for clue in order]
    so_far = [np.ones([math.factorial(houses)] * kinds, dtype=bool)]
    for fit in fits:
        if np.count_nonzero(so_far[-1]) == 1:
            break
        so_far.append(so_far[-1] & fit)
    needed, kept = [], np.ones_like(so_far[0])
    for i in range(len(so_far) - 2, -1, -1):  # so_far[i]: what fits the clues before i
        if np.count_nonzero(so_far[i] & kept) > 1:
            needed.append(order[i])
            kept = kept & fits[i]
    return Puzzle(table, tuple(needed[i] for i in rng.permutation(len(needed))))


@lru_cache
def _true_clues(houses: int, kinds: int) -> tuple[Clue, ...]:
    """Return all clues that hold where thing (kind, h) is in house h."""
    things = list(product(range(kinds), range(houses)))
    clues = [Clue("house", (thing,)) for thing in things]
    clues += [Clue("end", (thing,)) for thing in things if houses > 3 and thing[1] in (0, houses - 1)]
    for a, b in combinations(things, 2):
        if a[0] != b[0]:
            clues.append(Clue("with" if a[1] == b[1] else "without", (a, b)))
        if abs(a[1] - b[1]) == 1:
            clues += [Clue("left", (a, b) if a[1] < b[1] else (b, a)), Clue("beside", (a, b))]
    return tuple(clues)


@lru_cache(maxsize=4096)
def _fits(clue: Clue, houses: int, kinds: int) -> np.ndarray:
    """Return which arrangements a clue fits: an axis per kind, of length houses!, or 1 where the clue does not care."""
    ways = list(permutations(range(houses)))  # way[h]: where the thing of house h is instead
    (kind, house), (other_kind, other_house) = clue.things[0], clue.things[-1]
    shape = [1] * kinds
    if kind == other_kind:
        shape[kind] = len(ways)
        return np.array([clue.holds(w[house], w[other_house], houses) for w in ways]).reshape(shape)
    shape[kind] = shape[other_kind] = len(ways)
    table = np.array([[clue.holds(w[house], v[other_house], houses) for v in ways] for w in ways])
    return (table if kind < other_kind else table.T).reshape(shape)


@lru_cache
def puzzles(split: str) -> tuple[Puzzle, ...]:
    """Return the puzzles of a split; two with the same clues about the same places are one."""
    return draw_splits(draw_puzzle, lambda puzzle: frozenset(puzzle.clues), ROWS, PUZZLE_SEED)[split]


def score(answer: str, gold: str) -> np.ndarray:
    """Return (16,): 1 for each place of the table that is right, NaN for those that the puzzle lacks.

    A line of the answer is "House 2: Anna, tea, cat". A place is right if its line has this value and no other of
    the same kind. `gold` is the JSON of {objective: value}.
    """
    found, wanted = labelled(answer), json.loads(gold)
    rewards_D = np.full(len(MEANINGS), np.nan)
    for d, place in enumerate(MEANINGS):
        if place in wanted:
            rewards_D[d] = _right(found, *place.split("_")[1:], wanted[place])
    return rewards_D


def _right(found: Mapping[str, str], house: str, kind: str, value: str) -> bool:
    said = [item.strip(" \t*.") for item in found.get(f"house {house}", "").split(",")]
    return [item for item in said if _KIND_OF.get(item) == kind] == [value.casefold()]


class Zebra:
    """Offer the puzzles as a task."""

    name = "zebra"
    objectives = tuple(MEANINGS)
    meanings = MEANINGS
    about = "The clues fit one arrangement of the houses. An objective per place in the table."

    score = staticmethod(each(score))

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """Return 512 train or 200 test rows, the same on every machine. LabError for a path or another split."""
        check_generated(self.name, path, split)
        return [
            {
                "id": f"{self.name}-{split}-{number}",
                "prompt": _prompt(puzzle),
                "gold": json.dumps(puzzle.gold()),
                "answer": _answer(puzzle.gold()),
            }
            for number, puzzle in enumerate(puzzles(split))
        ]

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` answers, shuffled and distinct where they can be: the gold, and two values exchanged."""
        gold = json.loads(row["gold"])
        pairs = [(a, b) for a, b in combinations(gold, 2) if a.split("_")[2] == b.split("_")[2]]
        slips = [gold | {a: gold[b], b: gold[a]} for a, b in pairs]
        chosen = ([row["answer"], *(_answer(slips[i]) for i in rng.permutation(len(slips)))] * n)[:n]
        return [chosen[i] for i in rng.permutation(n)]


def _prompt(puzzle: Puzzle) -> list[dict]:
    kinds = list(VALUES)[: len(puzzle.table)]
    things = "\n".join(f"{kind}: {', '.join(sorted(v))}" for kind, v in zip(kinds, puzzle.table, strict=True))
    clues = "\n".join(f"{n}. {clue.text(puzzle.table)}" for n, clue in enumerate(puzzle.clues, 1))
    content = (
        f"{puzzle.houses} houses stand in a row, numbered from left to right. For each there is one of these:\n"
        f"{things}\n\n{clues}\n\nWhat belongs to each house?\n\n"
        f"Output format: a line for each house, such as\nHouse 1: {', '.join(kinds)}"
    )
    return [{"role": "user", "content": content}]


def _answer(gold: Mapping[str, str]) -> str:
    houses: dict[str, list[str]] = {}
    for place, value in gold.items():
        houses.setdefault(place.split("_")[1], []).append(value)
    return "\n".join(f"House {house}: {', '.join(values)}" for house, values in houses.items())
