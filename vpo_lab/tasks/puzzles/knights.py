"""Knights, who always tell the truth, and knaves, who always lie: logic that needs no knowledge and no download.

Three to five people each say one sentence about themselves and others. Every sentence of a knight is true and every one
of a knave is false. Exactly one assignment fits; all 2**n are tried. There is an objective per person: does the answer
say what they are? Puzzles with fewer people do not ask for the rest (NaN). A guess is right in half of the cases.

PUZZLE_SEED fixes the puzzles. No puzzle of the train split is in the test split, under other names either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from vpo_lab.tasks import check_generated, each
from vpo_lab.tasks.puzzles.lines import draw_splits, labelled

PUZZLE_SEED = 20261129
ROWS = {"test": 200, "train": 1024}
NAMES = tuple("Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas".split())
FEWEST, MOST = 3, 5  # people
KINDS = ("knave", "knight")
FORMS = ("is", "both", "or", "same", "different")
MEANINGS = {f"person_{i}": f"says what person {i} is" for i in range(1, MOST + 1)}


@dataclass(frozen=True)
class Statement:
    """Hold a sentence about one person or two: {form, people, and of which kind they are said to be}."""

    form: str  # of FORMS
    people: tuple[int, ...]
    kinds: tuple[bool, ...]  # True: a knight; none for "same" and "different"

    def holds(self, knights: Sequence[bool]) -> bool:
        """Return whether it is true if the people are knights (True) or knaves as given."""
        are = [knights[person] for person in self.people]
        if self.form in ("same", "different"):
            return (are[0] == are[1]) == (self.form == "same")
        said = [a == kind for a, kind in zip(are, self.kinds, strict=True)]
        return any(said) if self.form == "or" else all(said)

    def text(self, names: Sequence[str], speaker: int) -> str:
        """Return the sentence as its speaker says it."""
        who = ["I" if person == speaker else names[person] for person in self.people]
        if self.form in ("same", "different"):
            return f"{' and '.join(who)} are {'the same' if self.form == 'same' else 'different'}."
        if self.form == "both":
            return f"{' and '.join(who)} are both {KINDS[self.kinds[0]]}s."
        parts = [
            f"{name} {'am' if name == 'I' else 'is'} a {KINDS[kind]}"
            for name, kind in zip(who, self.kinds, strict=True)
        ]
        return f"{' or '.join(parts)}."


@dataclass(frozen=True)
class Puzzle:
    """Hold what each person says; person i says statement i."""

    names: tuple[str, ...]
    statements: tuple[Statement, ...]

    def solutions(self) -> list[tuple[bool, ...]]:
        """Return all ways in which it fits: who is a knight."""
        people, fitting = len(self.names), -1
        for speaker, statement in enumerate(self.statements):
            fitting &= _fits(statement, speaker, people)
        return [way for i, way in enumerate(_ways(people)) if fitting >> i & 1]

    def text(self) -> str:
        """Return what a prompt shows."""
        pairs = enumerate(zip(self.names, self.statements, strict=True))
        return "\n".join(f'{name} says: "{said.text(self.names, i)}"' for i, (name, said) in pairs)


@lru_cache
def _ways(people: int) -> tuple[tuple[bool, ...], ...]:
    return tuple(product((False, True), repeat=people))


@lru_cache(maxsize=4096)
def _fits(statement: Statement, speaker: int, people: int) -> int:
    """Return the ways in which a statement fits its speaker, as bits: true of a knight, false of a knave."""
    return sum(1 << i for i, way in enumerate(_ways(people)) if statement.holds(way) == way[speaker])


def draw_puzzle(rng: np.random.Generator) -> Puzzle:
    """Draw a puzzle with exactly one solution."""
    people = int(rng.integers(FEWEST, MOST + 1))
    names = tuple(rng.choice(NAMES, size=people, replace=False).tolist())
    while True:
        puzzle = Puzzle(names, tuple(_draw_statement(people, speaker, rng) for speaker in range(people)))
        if len(puzzle.solutions()) == 1:
            return puzzle


def _draw_statement(people: int, speaker: int, rng: np.random.Generator) -> Statement:
    form = FORMS[rng.integers(len(FORMS))]
    first = int(rng.integers(people - 1))
    first += first >= speaker  # of the others; the second may be the speaker, who is named last
    kinds = (rng.integers(2, size=2) == 1).tolist()
    if form == "is":
        return Statement(form, (first,), (kinds[0],))
    second = int(rng.integers(people - 1))
    second += second >= first
    pair = (first, second) if second == speaker else (min(first, second), max(first, second))
    return Statement(form, pair, () if form in ("same", "different") else (kinds[0], kinds[form == "or"]))


@lru_cache
def puzzles(split: str) -> tuple[Puzzle, ...]:
    """Return the puzzles of a split."""
    return draw_splits(draw_puzzle, lambda puzzle: puzzle.statements, ROWS, PUZZLE_SEED)[split]


def score(answer: str, gold: str) -> np.ndarray:
    """Return (5,): 1 for each person who is said to be what they are, NaN for people that the puzzle lacks.

    `gold` is the JSON of {name: "knight" or "knave"}, in the order of the people.
    """
    found, wanted = labelled(answer), json.loads(gold)
    rewards_D = np.full(MOST, np.nan)
    rewards_D[: len(wanted)] = [found.get(name.casefold()) == kind for name, kind in wanted.items()]
    return rewards_D


class Knights:
    """Offer the puzzles as a task."""

    name = "knights"
    objectives = tuple(MEANINGS)
    meanings = MEANINGS
    about = "Who says the truth? There is one way in which all fits, and an objective per person."

    score = staticmethod(each(score))

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """Return 1,024 train or 200 test rows, the same on every machine. LabError for a path or another split."""
        check_generated(self.name, path, split)
        rows = []
        for number, puzzle in enumerate(puzzles(split)):
            (solution,) = puzzle.solutions()
            gold = dict(zip(puzzle.names, (KINDS[knight] for knight in solution), strict=True))
            rows.append({"id": f"{self.name}-{split}-{number}", "prompt": _prompt(puzzle), "gold": json.dumps(gold)})
            rows[-1]["answer"] = _answer(gold)
        return rows

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` answers, shuffled and distinct where they can be: the gold, and golds with one or two wrong."""
        gold = json.loads(row["gold"])
        names, answers = list(gold), [row["answer"]]
        slips = [{first, second} for first in names for second in names]
        for i in rng.permutation(len(slips)):
            answers.append(_answer({who: KINDS[(kind == "knight") ^ (who in slips[i])] for who, kind in gold.items()}))
        chosen = (list(dict.fromkeys(answers)) * n)[:n]
        return [chosen[i] for i in rng.permutation(n)]


def _prompt(puzzle: Puzzle) -> list[dict]:
    content = (
        "Everybody here is a knight, who always tells the truth, or a knave, who always lies.\n\n"
        f"{puzzle.text()}\n\nWhat is each of them?\n\nOutput format: a line for each, such as\n"
        f"{puzzle.names[0]}: {' or '.join(KINDS[::-1])}"
    )
    return [{"role": "user", "content": content}]


def _answer(kinds: dict[str, str]) -> str:
    return "\n".join(f"{name}: {kind}" for name, kind in kinds.items())
