"""Pools of candidates on held-out requests, and the summary that compares them.

A pool holds what one policy answered: C chains of M candidates for each of N requests. Everything
that is reported is computed from pools, so figures and tables never need the policies again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vpo_lab.config import Profile
from vpo_lab.errors import LabError
from vpo_lab.files import write_json
from vpo_lab.metrics import (
    METRICS,
    best_at_k,
    bootstrap_interval,
    chain_best_at_k,
    chain_expected_utility_at_k,
    distinct_share,
    hypervolume,
    objective_collinearity,
    paired_bootstrap,
    reward_diversity,
)
from vpo_lab.runs import Run, commit, versions
from vpo_lab.search.pool import Pool, pool_names
from vpo_lab.tasks import get_task
from vpo_lab.weights import dirichlet_weights

# --- What is reported -------------------------------------------------------------------------


def at_k(pool: Pool, metric: str, k: int) -> np.ndarray:
    """Return one metric per request at a budget of k candidates: (N,).

    `metric` "best" (mean of the objectives), "pass" (all objectives 1), "eum" (expected utility under uniform
    weightings) or "covered" (the best of k candidates in each objective, averaged; for tests: the share
    that one of them passes). For chains k counts candidates, see `metrics.chain_best_at_k`; "bag" is "best" without
    regard to chains, for candidates mixed in one bag, as in the paper.
    """
    if metric == "best":
        return chain_best_at_k(pool.scalar_NCM, k)
    if metric == "bag":
        return best_at_k(pool.scalar_NCM.reshape(len(pool.ids), -1), k)
    if metric == "pass":
        return chain_best_at_k(pool.solved_NCM, k)
    if metric == "eum":
        weights_KD = dirichlet_weights(128, len(pool.objectives), seed=0)
        return chain_expected_utility_at_k(pool.rewards_NCMD, weights_KD, k)
    if metric == "covered":
        asked_ND = ~np.isnan(pool.rewards_NCMD).any(axis=(1, 2))
        rewards_NDCM = np.moveaxis(np.nan_to_num(pool.rewards_NCMD), 3, 1)
        return np.average(chain_best_at_k(rewards_NDCM, k), axis=1, weights=asked_ND)
    if metric == "hypervolume":
        return _hypervolume_ratio_at_k(pool, k)
    raise LabError(f"unknown metric {metric!r}: choose one of {', '.join(METRICS)}")


REPORTED = ("best", "pass", "eum")  # of every pool


def metrics_of(pool: Pool) -> tuple[str, ...]:
    """Name the metrics that `at_k` can compute: the hypervolume ratio too where the task knows the exact front."""
    return (*reported(pool), *["hypervolume"] * hasattr(get_task(pool.task), "front"))


def reported(pool: Pool) -> tuple[str, ...]:
    """Name the metrics that every summary holds: where the objectives are tests, covered@k among them."""
    return (*REPORTED, *["covered"] * all(name.startswith("test_") for name in pool.objectives))


def _hypervolume_ratio_at_k(pool: Pool, k: int) -> np.ndarray:
    """Hypervolume of k candidates over that of the exact Pareto front, a mean over disjoint sets: (N,).

    The pool is cut into sets of k in the order in which it was sampled: ceil(k / M) chains each, of
    the last one only what the budget still pays for. Above the task's `reference` in every objective.
    """
    task = get_task(pool.task)
    if not hasattr(task, "front"):
        raise LabError(f"no hypervolume ratio for {pool.task}: the task does not know its Pareto fronts")
    golds = {row["id"]: row["gold"] for row in task.load(None, "test")}
    if not golds.keys() >= {*pool.ids}:  # some train rows were held out
        golds |= {row["id"]: row["gold"] for row in task.load(None, "train")}
    reference_D = np.full(len(pool.objectives), task.reference)
    chains = math.ceil(k / pool.m)
    sets = pool.rewards_NCMD.shape[1] // chains
    if k < 1 or not sets:
        raise LabError(f"k = {k}: between 1 and the {pool.rewards_NCMD[0, :, :, 0].size} candidates of the pool")
    ratios = np.zeros((len(pool.ids), sets))
    for n, row_id in enumerate(pool.ids):
        front_PD = task.front(golds[row_id])
        unasked_D = np.isnan(pool.rewards_NCMD[n]).all(axis=(0, 1))
        whole = hypervolume(np.where(unasked_D, np.nan, front_PD), reference_D)
        for s in range(sets):
            points_kD = pool.rewards_NCMD[n, s * chains : (s + 1) * chains].reshape(-1, len(pool.objectives))[:k]
            ratios[n, s] = hypervolume(np.unique(points_kD, axis=0), reference_D) / whole
    return ratios.mean(axis=1)


def tokens_at_k(pool: Pool, k: int) -> float:
    """Return the mean tokens of k candidates. Chains come whole: the budget pays for ceil(k / M) of them."""
    return round(float(pool.tokens_NC.mean() * math.ceil(k / pool.m)), 2)


def collinearity(pool: Pool, over: Callable = np.nanmean) -> float | None:
    """Return the mean correlation of two objectives over all candidates; None where no objective varies.

    over: np.nanmin for the pair that competes most. A mean hides it where signs differ.
    """
    correlation_DD = objective_collinearity(pool.rewards_NCMD.reshape(-1, len(pool.objectives)))
    off_diagonal = correlation_DD[~np.eye(len(correlation_DD), dtype=bool)]
    return None if np.isnan(off_diagonal).all() else round(float(over(off_diagonal)), 4)


def distinct_answers(pool: Pool) -> np.ndarray:
    """Return the share of different answers among all candidates for a request: (N,), in (0, 1]."""
    return np.array([distinct_share([answer for chain in row for answer in chain]) for row in pool.answers])


def describe(pool: Pool, budgets: tuple[int, ...], resamples: int = 2000) -> dict:
    """Return everything that is reported of one pool; every figure is [mean, low, high] over requests, 95%."""

    def interval(values_N: np.ndarray) -> list[float]:
        return [round(x, 5) for x in bootstrap_interval(values_N, resamples=resamples)]

    flat_NnD = pool.rewards_NCMD.reshape(len(pool.ids), -1, len(pool.objectives))
    texts_N = [[answer for chain in row for answer in chain] for row in pool.answers]
    return {
        "candidates_per_rollout": pool.m,
        "k": {
            str(k): {**{m: interval(at_k(pool, m, k)) for m in metrics_of(pool)}, "tokens": tokens_at_k(pool, k)}
            for k in budgets
        },
        "objectives": {
            name: interval(asked)
            for d, name in enumerate(pool.objectives)
            if len(asked := _asked(flat_NnD[:, :, d]))  # else no request asks for it
        },
        # An answer was found for this share of the candidates: what damaged tags cost.
        "parse_rate": interval(np.array([np.mean([text != "" for text in texts]) for texts in texts_N])),
        "set_diversity": interval(reward_diversity(flat_NnD)),
        "distinct_answers": interval(distinct_answers(pool)),
        "quality_by_position": [interval(pool.scalar_NCM[:, :, j].mean(axis=1)) for j in range(pool.m)],
    }


def _asked(rewards_Nn: np.ndarray) -> np.ndarray:
    """Return the mean of one objective for each request that asks for it."""
    return rewards_Nn[~np.isnan(rewards_Nn).any(axis=1)].mean(axis=1)


def summarize(profile: Profile, run: Run, seed: int) -> dict:
    """Compare all pools of a run and write `summary.json`; returns what it wrote."""
    budgets, resamples = profile.evaluation.budgets, profile.evaluation.bootstrap
    pools = {name: Pool.load(run.pool(name)) for name in pool_names(profile)}
    vpo = next((name for name in profile.methods if name.startswith("vpo")), "")  # the method that all are held against
    pairs = [(vpo, other) for other in pools if other != vpo] if vpo else []
    task = get_task(profile.task)
    stopped = {name: run.stage(name).stopped for name in profile.methods}
    summary = {
        "profile": profile.name,
        "fingerprint": profile.fingerprint(),
        "seed": seed,
        "requests": len(pools["sft"].ids),
        "versions": versions(),
        "commit": commit(),
        "interval": "95% percentile bootstrap over requests, one training seed",
        # Methods whose training was ended by --max-hours, with the step after which it was.
        "stopped": {name: f"{at['step']} of {at['steps']} steps" for name, at in stopped.items() if at},
        "methods": {name: describe(pool, budgets, resamples) for name, pool in pools.items()},
        "paired_differences": {
            f"{a} - {b}": {
                str(k): {
                    metric: [
                        round(x, 5)
                        for x in paired_bootstrap(
                            at_k(pools[a], metric, k), at_k(pools[b], metric, k), resamples=resamples
                        )
                    ]
                    for metric in REPORTED
                }
                for k in budgets
            }
            for a, b in pairs
        },
        # Measured on the SFT start: where it is above about .8 a vector says little more than a scalar.
        "objective_correlation": collinearity(pools["sft"]),
        "ceiling": {str(k): task.ceiling(k) for k in budgets} if hasattr(task, "ceiling") else None,
    }
    write_json(run.summary, summary)
    return summary
