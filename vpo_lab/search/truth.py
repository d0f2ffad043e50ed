"""Measure a pool by its task's truth, where the task knows more than it scores: `truth` and `hacked` of the task."""

from __future__ import annotations

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.metrics import _max_shares
from vpo_lab.search.pool import Pool
from vpo_lab.tasks import get_task
from vpo_lab.weights import dirichlet_weights

WEIGHTS = 128  # preference weights, the same as those of EUM


def truths_of(pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """Return what a pool's candidates are really worth, (N, C, M, D), and which of them hold a flaw, (N, C, M).

    LabError if the task knows no truth.
    """
    task = get_task(pool.task)
    truth, hacked = getattr(task, "truth", None), getattr(task, "hacked", None)
    if truth is None or hacked is None:
        raise LabError(f"{pool.task} knows no truth: give the task methods truth and hacked (answers, rows)")
    by_id = {row["id"]: row for row in task.load(None, "test")}
    size = pool.rewards_NCMD[0, ..., 0].size
    rows = [by_id[name] for name in pool.ids for _ in range(size)]
    answers = [answer for request in pool.answers for chain in request for answer in chain]
    truths_nD = np.asarray(truth(answers, rows), dtype=float)
    hacked_n = np.asarray(hacked(answers, rows), dtype=float)
    return truths_nD.reshape(pool.rewards_NCMD.shape), hacked_n.reshape(pool.rewards_NCMD.shape[:3])


def truth_at_k(pool: Pool, k: int, truths: tuple[np.ndarray, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Return what k candidates are worth to random people, by request: name -> (N,), each in [0, 1].

    "proxy": the score of the candidate that scores best under w; "truth": what that one is really worth; "best": the
    best of the k by the truth, which a judge without a flaw would pick; "hacked": how often the picked one holds a
    flaw. k buys k / M whole chains; the mean over all choices of them is exact. `truths` is what `truths_of` returned.
    LabError unless M divides k.
    """
    chains, rest = divmod(k, pool.m)
    if rest or not 1 <= chains <= pool.rewards_NCMD.shape[1]:
        raise LabError(f"k = {k}: a multiple of {pool.m}, at most {pool.rewards_NCMD[0, ..., 0].size}")
    truths_NCMD, hacked_NCM = truths or truths_of(pool)
    weights_DK = dirichlet_weights(WEIGHTS, len(pool.objectives), seed=0).T
    proxy_NCMK, truth_NCMK = pool.rewards_NCMD @ weights_DK, truths_NCMD @ weights_DK
    hacked_NCMK = np.broadcast_to(hacked_NCM[..., None], proxy_NCMK.shape)
    return {
        "proxy": _of_picked(proxy_NCMK, proxy_NCMK, chains),
        "truth": _of_picked(proxy_NCMK, truth_NCMK, chains),
        "best": _of_picked(truth_NCMK, truth_NCMK, chains),
        "hacked": _of_picked(proxy_NCMK, hacked_NCMK, chains),
    }


def _of_picked(chosen_by_NCMK: np.ndarray, values_NCMK: np.ndarray, chains: int) -> np.ndarray:
    """The mean value of the candidate that is best by another number, over all choices of so many chains: (N,)."""
    best_NC1K = chosen_by_NCMK.argmax(axis=2)[:, :, None]
    bests_NCK = np.take_along_axis(chosen_by_NCMK, best_NC1K, axis=2)[:, :, 0]
    values_NCK = np.take_along_axis(values_NCMK, best_NC1K, axis=2)[:, :, 0]
    order_NCK = np.argsort(bests_NCK, axis=1, kind="stable")
    shares_C = _max_shares(order_NCK.shape[1], chains)
    return np.einsum("nck,c->n", np.take_along_axis(values_NCK, order_NCK, axis=1), shares_C) / order_NCK.shape[2]
