"""Reward vectors under preference weights: the simplex, w.r, the set reward, the winners. numpy only.

Axes: M candidates of a set, D objectives, K weight draws; `...` is any number of leading axes.
"""

from __future__ import annotations

import numpy as np

from vpo_lab.errors import LabError


def dirichlet_weights(
    n: int, d: int, alpha: float = 1.0, method: str = "sobol", seed: int | np.random.Generator = 0
) -> np.ndarray:
    """Draw `n` weight vectors for `d` objectives from the symmetric Dirichlet(alpha).

    `method` "iid" draws them independently; "sobol" maps a scrambled Sobol sequence through the
    gamma quantile, which spreads the draws evenly and lowers the noise of their mean. alpha = inf
    is its limit, the plain mean.

    Returns (n, d) float64, non-negative, rows sum to 1. Raises LabError on n < 1, d < 1,
    alpha <= 0 or an unknown method. Source: VPO (arXiv 2605.22817), R(S) = E_{w~Dir(alpha)}[...].
    """
    if n < 1:
        raise LabError(f"K = {n} weight draws: at least 1 is needed (raise n / rl.weight_draws)")
    if d < 1:
        raise LabError(f"D = {d} objectives: at least 1 is needed")
    if not alpha > 0:
        raise LabError(f"Dirichlet alpha = {alpha}: it must be positive (1 is uniform)")
    if method not in ("sobol", "iid"):
        raise LabError(f"unknown weight sampler {method!r}: choose 'sobol' or 'iid'")
    rng = np.random.default_rng(seed)
    if d == 1 or alpha == np.inf:
        return np.full((n, d), 1 / d)
    if method == "iid":
        gammas = rng.standard_gamma(alpha, size=(n, d))
    else:
        gammas = _sobol_gammas(n, d, alpha, rng)
    totals = gammas.sum(axis=1, keepdims=True)
    # For tiny alpha every gamma draw can underflow to 0: the limit is a random corner.
    corners = np.eye(d)[rng.integers(d, size=n)]
    return np.where(totals > 0, gammas / np.where(totals > 0, totals, 1.0), corners)


def _sobol_gammas(n: int, d: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    from scipy.stats import qmc

    power = max(n - 1, 1).bit_length()
    uniform = qmc.Sobol(d, scramble=True, rng=rng).random_base2(power)[:n]
    uniform = np.clip(uniform, 1e-12, 1 - 1e-12)
    if alpha == 1.0:
        return -np.log1p(-uniform)  # Gamma(1) is the exponential: no special function needed
    from scipy.special import gammaincinv

    return gammaincinv(alpha, uniform)


def draw_goal(d: int, rng: np.random.Generator) -> np.ndarray:
    """Draw weights in whole tenths, uniform on that grid of the simplex: (d,) integers that sum to 10.

    For prompts that state it: what a policy is told is then exactly what it is paid for.
    """
    return rng.multinomial(10, rng.dirichlet(np.ones(d)))


def restrict(weights: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the weights on the asked objectives alone, rows summing to 1 again; 0 elsewhere.

    weights (..., D), asked bool (..., D) that broadcasts. Dirichlet(alpha) weights stay Dirichlet(alpha) on
    the asked objectives. Where nothing is left of a row, the asked objectives share it equally.
    """
    if np.all(asked):
        return weights
    kept = np.where(asked, weights, 0.0)
    kept = np.where(kept.sum(axis=-1, keepdims=True) > 0, kept, np.broadcast_to(asked, kept.shape))
    return kept / np.maximum(kept.sum(axis=-1, keepdims=True), np.finfo(float).tiny)


def scalarize(rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return w.r of every candidate under every weight vector: (..., M, D), (..., K, D) -> (..., K, M).

    An objective that is NaN for all M candidates was not asked: the weights are restricted to the others.
    Any other NaN counts as 0.
    """
    rewards, weights = np.asarray(rewards, dtype=float), np.asarray(weights, dtype=float)
    rewards, weights = _asked_only(rewards, weights)
    return weights @ np.swapaxes(rewards, -1, -2)


def _asked_only(rewards: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both without NaN: the weights on what was asked, 0 for any other reward."""
    if not np.isnan(rewards).any():
        return rewards, weights
    return np.nan_to_num(rewards, nan=0.0), restrict(weights, ~np.isnan(rewards).all(axis=-2, keepdims=True))


def set_reward(rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the set reward of VPO: the mean over K weight vectors of the best w.r among M candidates.

    rewards (..., M, D), weights (K, D) or with leading axes that broadcast -> (...), in the range
    of the rewards. NaN means what it does in `scalarize`. Raises LabError on shapes that do not fit.
    Source: R(S) = E_{w~Dir(alpha)}[max_{y in S} w.r(y)], arXiv 2605.22817.
    """
    rewards, weights = np.asarray(rewards, dtype=float), np.asarray(weights, dtype=float)
    if rewards.ndim < 2 or rewards.shape[-2] < 1:
        raise LabError(f"rewards of shape {rewards.shape}: expected (..., M, D) with M >= 1")
    if weights.ndim < 2 or weights.shape[-2] < 1:
        raise LabError(f"weights of shape {weights.shape}: expected (K, D) with K >= 1")
    if rewards.shape[-1] != weights.shape[-1]:
        raise LabError(f"rewards have D = {rewards.shape[-1]} objectives, weights {weights.shape[-1]}: make them equal")
    rewards, weights = _asked_only(rewards, weights)
    # K last: a maximum over a short last axis is several times slower.
    return (rewards @ np.swapaxes(weights, -1, -2)).max(axis=-2).mean(axis=-1)


def winners(rewards: np.ndarray, weights: np.ndarray, tolerance: float = 1e-9) -> np.ndarray:
    """Tell which candidates are best under each weight vector, ties all True: (M, D), (K, D) -> bool (K, M)."""
    scores_KM = scalarize(rewards, weights)
    return scores_KM >= scores_KM.max(axis=-1, keepdims=True) - tolerance
