"""Measure what a pool of candidates is worth: best@k, pass@k, expected utility, hypervolume, intervals.

Axes: N requests, C chains, M candidates per chain, D objectives, K weights, S training seeds; n is a
pool of candidates, `...` any number of leading axes. k is a budget of candidates, never of rollouts.
numpy only; `hypervolume` and `pareto_optimal` load moocore when they are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.weights import restrict, set_reward

METRICS = {  # name -> label
    "best": "best@k",
    "bag": "best@k, chains mixed",
    "pass": "pass@k",
    "eum": "EUM",
    "covered": "covered@k",
    "hypervolume": "hypervolume ratio",
}
METRIC_TITLES = {  # the same in more words, over a panel of a figure
    "best": "best@k: mean of the objectives",
    "bag": "best@k of candidates mixed from all chains",
    "pass": "pass@k: every objective right",
    "eum": "expected utility of k candidates",
    "covered": "covered@k: tests that one of k candidates passes",
    "hypervolume": "share of the best possible hypervolume",
}

# --- Budgets: the best of k candidates --------------------------------------------------------


def best_at_k(scores: np.ndarray, k: int) -> float | np.ndarray:
    """Return the mean of the maximum over all subsets of `k` scores, exactly and without sampling.

    scores (n,) -> float, (..., n) -> (...), in the range of the scores. With the scores ascending it is
    sum_j s_(j) C(j-1, k-1) / C(n, k). It assumes independent candidates; for chains, use
    `chain_best_at_k`. Raises LabError unless 1 <= k <= n and all scores are finite.
    """
    scores = _finite(scores, "scores", ("n",))
    k = _budget(k, scores.shape[-1], f"the {scores.shape[-1]} candidates of the pool")
    return _plain(np.sort(scores, axis=-1) @ _max_shares(scores.shape[-1], k))


def pass_at_k(solved: np.ndarray, k: int) -> float | np.ndarray:
    """Return the share of subsets of `k` candidates with a solved one: 1 - C(n-c, k)/C(n, k), c of n solved.

    solved (n,) bool or 0/1 -> float, (..., n) -> (...), in [0, 1]. It is `best_at_k` of the 0/1 scores.
    Raises LabError as `best_at_k` does, and on values besides 0 and 1. Source: Codex (arXiv 2107.03374).
    """
    solved = _finite(solved, "solved", ("n",))
    if not np.isin(solved, (0.0, 1.0)).all():
        raise LabError("solved holds values besides 0 and 1: compare the scores with 1 first")
    return best_at_k(solved, k)


def chain_best_at_k(scores: np.ndarray, k: int) -> float | np.ndarray:
    """Return best@k for chains of M candidates: a budget of k buys whole chains, then the start of one more.

    scores (C, M) -> float, (..., C, M) -> (...), in the range of the scores. Candidates of one chain
    are not independent draws. So the mean is over all choices of floor(k/M) whole chains and, if M does
    not divide k, of one more chain that gives its first k mod M candidates. It is exact, M = 1 is
    `best_at_k`, and 0/1 scores give pass@k. Raises LabError unless 1 <= k <= C M and all scores are finite.
    """
    scores = _finite(scores, "scores", ("C", "M"))
    chains, m = scores.shape[-2:]
    k = _budget(k, chains * m, f"{chains} chains of {m} candidates")
    whole, rest = divmod(k, m)
    bests = scores.max(axis=-1)
    if rest == 0:
        return best_at_k(bests, whole)
    prefixes = scores[..., :rest].max(axis=-1)
    if whole == 0:
        return _plain(prefixes.mean(axis=-1))
    order = np.argsort(bests, axis=-1)
    bests, prefixes = np.take_along_axis(bests, order, -1), np.take_along_axis(prefixes, order, -1)
    shares = _max_shares(chains - 1, whole)
    total = np.zeros(bests.shape[:-1])
    for chain in range(chains):
        # max(prefix, best of the subset) is best@k of the others raised to the prefix: the order stays.
        others = np.delete(bests, chain, axis=-1)
        total += np.maximum(others, prefixes[..., chain, None]) @ shares
    return _plain(total / chains)


@lru_cache(maxsize=256)
def _max_shares(n: int, k: int) -> np.ndarray:
    """Return the share of the k-subsets of n ascending scores in which score j is the maximum: (n,)."""
    j = np.arange(n, 1, -1)
    # From the top down every factor lies in [0, 1]: nothing overflows, small shares fade to 0.
    shares = k / n * np.cumprod(np.concatenate([[1.0], np.maximum(j - k, 0) / (j - 1)]))[::-1]
    shares.setflags(write=False)
    return shares


# --- Vectors: utility, fronts, diversity ------------------------------------------------------


def expected_utility(rewards: np.ndarray, weights: np.ndarray) -> float | np.ndarray:
    """Return the expected utility (EUM), VPO's own objective: the best candidate's w.r, averaged over the weights.

    rewards (n, D), weights (K, D) -> float, (..., n, D) -> (...), in the range of the rewards. NaN in
    all candidates marks an objective that is not asked. Raises LabError on shapes that do not fit and on
    infinite or partly missing rewards. Source: Zintgraf et al., 2015.
    """
    rewards, weights = _vectors(rewards, ("n", "D")), _finite(weights, "weights", ("K", "D"))
    return _plain(set_reward(rewards, weights))


def chain_expected_utility_at_k(rewards: np.ndarray, weights: np.ndarray, k: int) -> float | np.ndarray:
    """Return the expected utility of a budget of k: `chain_best_at_k` of w.r, averaged over the weights.

    rewards (C, M, D), weights (K, D) -> float, (..., C, M, D) -> (...), in the range of the rewards.
    Single answers are M = 1; NaN as in `expected_utility`. Raises LabError as these two do.
    """
    rewards = _vectors(rewards, ("C", "M", "D"))
    weights_KD = _finite(weights, "weights", ("K", "D"))
    if weights_KD.ndim != 2 or rewards.shape[-1] != weights_KD.shape[-1]:
        raise LabError(f"weights of shape {weights_KD.shape}: expected (K, {rewards.shape[-1]})")
    asked = ~np.isnan(rewards).all(axis=(-3, -2))  # (..., D)
    weights = restrict(weights_KD, asked[..., None, :])  # (K, D), or (..., K, D) where requests ask for different ones
    rewards = np.nan_to_num(rewards, nan=0.0)
    scores = np.moveaxis(rewards @ np.swapaxes(weights, -1, -2)[..., None, :, :], -1, -3)  # (..., K, C, M)
    return _plain(np.mean(chain_best_at_k(scores, k), axis=-1))


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Return the volume between the reference and the points that dominate it; all objectives are maximised.

    points (n, D), reference (D,) -> float >= 0. A point adds 0 unless it beats the reference in every
    objective. Fix the reference beforehand and report it. Objectives that are NaN in all points are left
    out. Exact, and slow above D = 8. Raises LabError on wrong shapes or infinite values. Source: moocore.
    """
    points, reference = _vectors(points, ("n", "D")), _finite(reference, "reference", ("D",))
    if points.ndim != 2 or reference.shape != points.shape[-1:]:
        raise LabError(f"points of shape {points.shape}, reference {reference.shape}: expected (n, D), (D,)")
    import moocore

    asked_D = ~np.isnan(points).all(axis=0)
    return float(moocore.hypervolume(_filled(points)[:, asked_D], ref=reference[asked_D], maximise=True))


def pareto_optimal(points: np.ndarray) -> np.ndarray:
    """Mark the points that no other point dominates, all objectives maximised: (n, D) -> bool (n,).

    Copies of an optimal point are all True. It finds more points than `weights.winners`: one in a concave
    part of the front is optimal, but wins under no weights. Raises LabError as `hypervolume` does.
    """
    points = _vectors(points, ("n", "D"))
    if points.ndim != 2:
        raise LabError(f"points of shape {points.shape}: expected (n, D)")
    import moocore

    return np.asarray(moocore.is_nondominated(_filled(points), maximise=True, keep_weakly=True), dtype=bool)


def reward_diversity(rewards: np.ndarray) -> float | np.ndarray:
    """Return the mean L1 distance between the reward vectors of two candidates of a set, 0 if n = 1.

    rewards (n, D) -> float, (..., n, D) -> (...), in [0, D] for rewards in [0, 1]; an objective that is
    not asked (NaN) adds 0. Raises LabError as `expected_utility` does.
    """
    rewards = _filled(_vectors(rewards, ("n", "D")))
    n = rewards.shape[-2]
    ascending = np.sort(rewards, axis=-2)
    # sum_{i<j} |x_i - x_j| = sum_j (2j-n-1) x_(j), folded in half so that equal values give exactly 0.
    signs = np.arange(1 - n, n, 2)[:, None] / 2
    pairs = (signs * (ascending - ascending[..., ::-1, :])).sum(axis=(-2, -1))
    return _plain(pairs / max(n * (n - 1) / 2, 1))


def distinct_share(texts: Sequence[str]) -> float:
    """Return the number of distinct texts / n, in (0, 1]. Raises LabError if there are no texts."""
    if not len(texts):
        raise LabError("no texts: the share of distinct ones is undefined")
    return len(set(texts)) / len(texts)


def objective_collinearity(rewards: np.ndarray) -> np.ndarray:
    """Return the Pearson correlation of the objectives: (n, D) -> (D, D) in [-1, 1], 1 on the diagonal.

    A constant objective gets nan off the diagonal. If rows leave objectives out (NaN), each pair uses the
    rows that ask for both. With a mean above about .8 the vector adds little; a set may still help.
    Raises LabError if n < 2 or if a reward is infinite.
    """
    rewards_nD = _vectors(rewards, ("n", "D"), whole=False)
    if rewards_nD.ndim != 2 or len(rewards_nD) < 2:
        raise LabError(f"rewards of shape {rewards_nD.shape}: expected (n, D) with n >= 2")
    if np.isnan(rewards_nD).any():
        return _pairwise_correlation(rewards_nD)
    spread_D = np.ptp(rewards_nD, axis=0)  # exactly 0 for a constant, as a computed deviation is not
    centered_nD = (rewards_nD - rewards_nD.mean(axis=0)) / np.where(spread_D == 0, np.nan, spread_D)
    unit_nD = centered_nD / np.sqrt((centered_nD**2).sum(axis=0))
    correlation_DD = np.clip(unit_nD.T @ unit_nD, -1.0, 1.0)
    np.fill_diagonal(correlation_DD, 1.0)
    return correlation_DD


def _pairwise_correlation(rewards_nD: np.ndarray) -> np.ndarray:
    """Correlate each two objectives over the rows that ask for both, nan where fewer than two do."""
    d = rewards_nD.shape[1]
    correlation_DD = np.eye(d)
    for i, j in combinations(range(d), 2):
        both = rewards_nD[~np.isnan(rewards_nD[:, [i, j]]).any(axis=1)][:, [i, j]]
        pair = objective_collinearity(both)[0, 1] if len(both) > 1 else np.nan
        correlation_DD[i, j] = correlation_DD[j, i] = pair
    return correlation_DD


def mean_reward(rewards: np.ndarray) -> np.ndarray:
    """Return the plain mean of the objectives that are asked (not NaN), the scalar of GRPO: (..., D) -> (...)."""
    rewards = np.asarray(rewards, dtype=float)
    asked = ~np.isnan(rewards)
    return rewards.mean(axis=-1) if asked.all() else _filled(rewards).sum(axis=-1) / np.maximum(asked.sum(axis=-1), 1)


SOLVED = 1 - 1e-9


def solved(rewards: np.ndarray) -> np.ndarray:
    """Return where every asked objective is 1, over the last axis: (..., D) -> (...,) bool; NaN is not asked."""
    return ((rewards >= SOLVED) | np.isnan(rewards)).all(axis=-1)


# --- Intervals --------------------------------------------------------------------------------


def bootstrap_interval(
    values: np.ndarray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Return (mean, low, high) by the percentile bootstrap over requests.

    values (N,), one per request, or (S, N), one row per training seed on the same N requests. A resample
    draws N requests, the same ones for every seed, and averages all S seeds. Seeds are not resampled:
    the interval is about another test set, not about another training. (`crossed_bootstrap` resamples both.)
    Report S; with 3 seeds or fewer, draw each one. Raises LabError on values that are empty or not finite,
    a level outside (0, 1), or resamples < 1. Source: rliable (arXiv 2108.13264), whose strata are tasks.
    """
    values_N = _per_request(values, "values")
    if not 0 < level < 1:
        raise LabError(f"level = {level}: expected a share between 0 and 1, e.g. 0.95")
    if resamples < 1:
        raise LabError(f"resamples = {resamples}: at least 1 is needed")
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(values_N), size=(resamples, len(values_N)), dtype=np.int32)
    low, high = np.quantile(values_N[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(values_N.mean()), float(low), float(high)


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Return (mean, low, high) of a - b on the same requests; what both share cancels, so the interval is narrower.

    a (N,) or (S, N), b (N,) or (S', N): each is averaged over its seeds, then `bootstrap_interval` takes
    the differences. Raises LabError as it does, and if the numbers of requests differ.
    """
    a_N, b_N = _per_request(a, "a"), _per_request(b, "b")
    if a_N.shape != b_N.shape:
        raise LabError(f"a has {len(a_N)} requests, b {len(b_N)}: a pair needs the same ones, in one order")
    return bootstrap_interval(a_N - b_N, level=level, resamples=resamples, seed=seed)


def power(requests: int, spread: float = 0.16) -> str:
    """Say in one line what a comparison of two policies on so many requests can decide.

    `spread` is the standard deviation of the paired difference of one request; 0.16 is an assumption, of best@k on
    ToolRL. A true difference of 2.8 standard errors is found to differ from 0, at 5%, four times in five.
    """
    error = spread / np.sqrt(requests)
    return (
        f"{requests} requests: paired standard error of a difference about {error:.3f} (if requests vary by "
        f"{spread:g}); a true difference below {2.8 * error:.3f} is likely to stay undecided"
    )


def _per_request(values: np.ndarray, name: str) -> np.ndarray:
    values = _finite(values, name, ("N",))
    if values.ndim > 2:
        raise LabError(f"{name} of shape {values.shape}: expected (N,) or (S, N)")
    return values.mean(axis=0) if values.ndim == 2 else values


def crossed_bootstrap(values_SN: np.ndarray, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Return (mean, low, high) at 95% of values by training seed and request, (S, N).

    Seeds and requests are both drawn anew, so the interval covers another training too.
    """
    counts_RS, counts_RN = _crossed_counts(*values_SN.shape, resamples, seed)
    means_R = np.einsum("rs,sn,rn->r", counts_RS, values_SN, counts_RN, optimize=True)
    low, high = np.quantile(means_R, [0.025, 0.975])
    return float(values_SN.mean()), float(low), float(high)


@lru_cache(maxsize=8)  # to draw them takes nearly all of the time
def _crossed_counts(n_seeds: int, n_requests: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each resample holds each seed and each request, as shares: (R, S) and (R, N)."""
    rng = np.random.default_rng(seed)
    seeds_RS, requests_RN = (rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n for n in (n_seeds, n_requests))
    return seeds_RS, requests_RN


def verdict(low: float, high: float, tolerance: float = 1e-9) -> str:
    """Return "ahead" or "behind" if the interval of a difference lies above or below 0, else "undecided".

    Bounds within the tolerance count as 0: equal policies differ by rounding noise.
    """
    return "ahead" if low > tolerance else "behind" if high < -tolerance else "undecided"


# --- Checks -----------------------------------------------------------------------------------


def _finite(values: np.ndarray, name: str, axes: tuple[str, ...]) -> np.ndarray:
    """Return a float array with at least these last axes, none empty, all finite. Raises LabError otherwise."""
    expected = f"expected numbers of shape ({', '.join(['...', *axes])}), none of them 0"
    try:
        values = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise LabError(f"{name} is not an array: {expected}") from None
    if values.ndim < len(axes) or 0 in values.shape:
        raise LabError(f"{name} of shape {values.shape}: {expected}")
    if not np.isfinite(values).all():
        raise LabError(f"{name} contain NaN or infinity: every candidate needs a finite score")
    return values


def _vectors(values: np.ndarray, axes: tuple[str, ...], whole: bool = True) -> np.ndarray:
    """Return reward vectors as a float array with at least these axes; NaN in all of them: an objective not asked."""
    values = np.asarray(values, dtype=float)
    missing = np.isnan(values)
    _finite(np.where(missing, 0.0, values), "rewards", axes)
    if missing.all(axis=tuple(range(-len(axes), 0))).any():
        raise LabError("rewards are NaN in every objective: a request has to ask for one at least")
    over = tuple(range(-len(axes), -1))
    if whole and (missing.any(axis=over) != missing.all(axis=over)).any():
        raise LabError("rewards contain NaN for some candidates only: NaN means not asked, give 0 to a bad answer")
    return values


def _filled(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values, nan=0.0)


def _budget(k: int, limit: int, pool: str) -> int:
    if not isinstance(k, (int, np.integer)) or not 1 <= k <= limit:
        raise LabError(f"k = {k} is not a budget between 1 and {limit}, what {pool} allow")
    return int(k)


def _plain(values: np.ndarray) -> float | np.ndarray:
    return float(values) if np.ndim(values) == 0 else values
