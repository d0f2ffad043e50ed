"""A task of one letter per answer: after a few steps of warmup a policy writes chains that earn something."""

from itertools import permutations

import numpy as np

from vpo_lab.tasks import each

ALPHABET = "αβγδεζηθ"
PAIRS = ["".join(pair) for pair in permutations(ALPHABET, 2)]


def score_letter(answer: str, gold: str) -> np.ndarray:
    """Score any text: early in the alphabet, late in it, one of the two that were asked for."""
    place = ALPHABET.find(answer.strip()[:1] or "-") / (len(ALPHABET) - 1)
    return np.zeros(3) if place < 0 else np.array([1 - place, place, float(answer.strip()[:1] in gold)])


class Letters:
    name = "letters"
    objectives = ("early", "late", "asked")
    score = staticmethod(each(score_letter))

    def load(self, path=None, split="train"):
        """Return 48 or 8 rows; gold is the two letters."""
        golds = PAIRS[::7] if split == "test" else [pair for n, pair in enumerate(PAIRS) if n % 7]
        return [{"id": g, "prompt": [{"role": "user", "content": f"{g[0]} or {g[1]}?"}], "gold": g} for g in golds]

    def demonstrations(self, row, n, rng):
        """Return n letters, no hint which is good."""
        return [ALPHABET[i] for i in rng.choice(len(ALPHABET), size=n, replace=False)]
