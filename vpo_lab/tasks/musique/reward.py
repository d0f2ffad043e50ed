"""Score an answer to a MuSiQue question as VPO's authors do: a reward per hop, and the F1 of the answer.

An answer holds `<support>3, 7</support>` and `<answer>...</answer>`; of each tag the first counts. Hop i is 1 if the
gold paragraph of step i is among the first four different cited numbers, in any order. The answer's F1 is the best
one over the gold and its aliases. Without an answer everything is 0, so that citing alone earns nothing.

Two things differ from the authors' code. A question has two to four hops; the hops that it lacks are NaN, not asked,
where they count 1 (`absent` = 1 does the same, for a comparison). And any text scores: their code stops at a cited
"²" and at a number of thousands of digits.
"""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np

from vpo_lab.tasks.short_answers import best_f1, first_tag

HOPS = 4  # of a question, at most
CITED = 4  # so many different paragraphs of an answer count
MEANINGS = {
    **{f"hop_{i}": f"cites the paragraph of step {i}" for i in range(1, HOPS + 1)},
    "answer_f1": "shares words with the answer",
}
OBJECTIVES = tuple(MEANINGS)
_LONGEST = 4000  # digits, of numbers that Python reads; longer ones are paragraphs that do not exist


def parse_answer(text: str) -> tuple[list[int], str]:
    """Return the cited paragraphs, CITED different ones at most and in order, and the answer ("" if there is none)."""
    cited: dict[int | str, None] = {}
    for item in (first_tag(text, "support") or "").split(","):
        number = item.strip()
        if number.isdecimal():
            cited[int(number) if len(number) <= _LONGEST else number] = None
            if len(cited) == CITED:
                break
    return [-1 if isinstance(number, str) else number for number in cited], first_tag(text, "answer") or ""


def score(text: str, gold: str, absent: float = np.nan) -> np.ndarray:
    """Return (5,): hop_1 to hop_4 and answer_f1, in [0, 1]; `absent` for the hops that the question lacks.

    `gold` is the JSON of {"support": [paragraph of each step], "answer": text, "aliases": [texts]}. Never raises,
    whatever the text; linear in its length. Without an answer also `absent` = 1 is 0, as the authors have it.
    """
    wanted = _gold(gold)
    steps = wanted["support"]
    cited, answer = parse_answer(text)
    rewards_D = np.zeros(len(OBJECTIVES))
    if answer:
        rewards_D[: len(steps)] = [step in cited for step in steps]
        rewards_D[len(steps) : HOPS] = absent
        rewards_D[-1] = best_f1(answer, [wanted["answer"], *wanted["aliases"]])
    elif np.isnan(absent):
        rewards_D[len(steps) : HOPS] = absent
    return rewards_D


@lru_cache(maxsize=8192)
def _gold(gold: str) -> dict:
    return json.loads(gold)


def authors_scalar(rewards: np.ndarray) -> np.ndarray:
    """Return the authors' scalar for GRPO, (sum of the hops + 3 F1) / (hops + 3): (..., 5) -> (...), in [0, 1].

    With hops that count 1 where they are absent it is theirs, /7. Hops that are not asked (NaN) are left out of both
    sums. The methods of this lab take the plain mean (`metrics.mean_reward`) instead.
    """
    rewards = np.asarray(rewards, dtype=float)
    hops = rewards[..., :HOPS]
    asked = (~np.isnan(hops)).sum(axis=-1)
    return (np.nansum(hops, axis=-1) + 3 * rewards[..., HOPS]) / (asked + 3)
