"""Compute what k answers can reach at best when one of a few golds is meant: the ceilings of tiny worlds."""

from __future__ import annotations

import numpy as np

from vpo_lab.errors import LabError


def subsets(golds: int) -> np.ndarray:
    """Return all sets of golds as rows of 0 and 1: (2**golds, golds); row s holds the bits of s."""
    return np.arange(1 << golds)[:, None] >> np.arange(golds) & 1


def best_cover(worth_NS: np.ndarray, k: int) -> np.ndarray:
    """Return the most that k answers earn together, for each of N requests: (N,).

    `worth_NS[n, s]` is what the best single answer earns for the golds in the set s (see `subsets`), each weighted with
    its probability. Every gold is served by the best of the k answers for it, so k answers cut the golds into k sets:
    exact dynamic programming over sets. LabError for k < 1.
    """
    if k < 1:
        raise LabError(f"k = {k}: at least 1 is needed")
    worth_SN = np.ascontiguousarray(worth_NS.T)
    everything = len(worth_SN) - 1
    best_SN = worth_SN
    for _ in range(1, min(k, everything.bit_length())):
        further_SN = best_SN.copy()
        for whole in range(1, everything + 1):
            lowest = whole & -whole
            rest = part = whole ^ lowest
            while part:  # the set of the last answer: the lowest gold and all but `part` of the rest
                np.maximum(further_SN[whole], worth_SN[lowest | rest ^ part] + best_SN[part], out=further_SN[whole])
                part = (part - 1) & rest
        best_SN = further_SN
    return best_SN[everything]


def top_share(probabilities_NG: np.ndarray, k: int) -> np.ndarray:
    """Return the summed probability of the k likeliest golds of each request: (N, G) -> (N,)."""
    return np.sort(probabilities_NG, axis=1)[:, ::-1][:, :k].sum(axis=1)
