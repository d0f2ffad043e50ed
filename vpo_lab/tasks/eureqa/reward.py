"""Score an answer to an EUREQA riddle as VPO's authors do: a reward per masked entity, exact match.

An answer names the entities in tags, `<entity_A>Ada_Example</entity_A>` to `<entity_E>`; of each tag the first counts,
in upper or lower case. Two names are the same if they are so without underscores, case, articles and punctuation.
Their scalar for GRPO is the plain mean, as in this lab.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vpo_lab.tasks.short_answers import first_tag, normalize

LETTERS = "ABCDE"
MEANINGS = {
    "entity_A": "names the entity that is asked for",
    **{f"entity_{letter}": f"names entity {letter} of the chain" for letter in LETTERS[1:]},
}
OBJECTIVES = tuple(MEANINGS)


def parse_answer(text: str) -> list[str]:
    """Return the five names of an answer, A to E; "" for one that is missing."""
    return [first_tag(text, f"entity_{letter}", any_case=True) or "" for letter in LETTERS]


def same_name(answer: str, wanted: str) -> bool:
    """Return whether two names mean the same entity; an empty one means none."""
    return bool(answer and wanted) and _plain(answer) == _plain(wanted)


def _plain(name: str) -> str:
    return normalize(name.replace("_", " "))


def score(text: str, gold: str) -> np.ndarray:
    """Return (5,): 1 for each entity that is named right, A to E; NaN for those that a shorter riddle lacks.

    `gold` is the JSON list of the masked entities' names. Never raises, whatever the text; linear in its length.
    """
    wanted = _gold(gold)
    rewards_D = np.full(len(OBJECTIVES), np.nan)
    pairs = zip(parse_answer(text), wanted, strict=False)
    rewards_D[: len(wanted)] = [same_name(*pair) for pair in pairs]
    return rewards_D


@lru_cache(maxsize=8192)
def _gold(gold: str) -> Sequence[str]:
    return json.loads(gold)
