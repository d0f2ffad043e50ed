"""Read answers of the form "Anna: knight", a line each, and draw puzzles that no other split has."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np

Puzzle = TypeVar("Puzzle")


def labelled(text: str) -> dict[str, str]:
    """Return what stands behind the colon of each line, by what stands before it, trimmed and in lower case.

    Of two lines with one label the first counts. Linear in the text.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        label, colon, value = line.partition(":")
        if colon:
            found.setdefault(_plain(label), _plain(value))
    return found


def _plain(text: str) -> str:
    return text.strip(" \t*-.").casefold()


def draw_splits(
    draw: Callable[[np.random.Generator], Puzzle],
    key: Callable[[Puzzle], Hashable],
    counts: Mapping[str, int],
    seed: int,
) -> dict[str, tuple[Puzzle, ...]]:
    """Return puzzles for each split, {split: puzzles}, drawn with a seed; no two of them have the same key."""
    rng, seen, found = np.random.default_rng(seed), set(), {}
    for split, count in counts.items():
        puzzles = []
        while len(puzzles) < count:
            puzzle = draw(rng)
            if key(puzzle) not in seen:
                seen.add(key(puzzle))
                puzzles.append(puzzle)
        found[split] = tuple(puzzles)
    return found
