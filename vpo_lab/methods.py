"""The methods side by side. VPO is `vpo` below: read it first, then its neighbours.

Every method is a pure function of the reward vectors of one batch:

    METHODS[name].advantages(rewards_BMD, group_size, rng) -> advantages_B (or advantages_BM)

B rollouts, stored in P groups (the `group_size` = G rollouts of one prompt are neighbours), M
candidate answers in a rollout, D objectives in [0, 1], K weight draws. The policy gradient then
weighs every token of rollout b with advantage b; with credit per answer, the tokens of its answer m
with advantage b, m. numpy only; nothing here knows about models or text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import signature
from itertools import combinations

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.weights import dirichlet_weights

EPSILON = 1e-6

RIDGE = 0.1  # about the noise of a set reward over that of the coefficients: rewards lie in [0, 1]


def group_normalize(scores_B: np.ndarray, group_size: int) -> np.ndarray:
    """GRPO's advantage: (score - group mean) / (group std + 1e-6), 0 where the group is constant.

    (B,) -> (B,), population std. Source: DeepSeekMath (arXiv 2402.03300); the constants are VPO's.
    """
    scores_PG = scores_B.reshape(-1, group_size)
    centered_PG = scores_PG - scores_PG.mean(axis=1, keepdims=True)
    std_P1 = scores_PG.std(axis=1, keepdims=True)
    return np.where(std_P1 < EPSILON, 0.0, centered_PG / (std_P1 + EPSILON)).reshape(-1)


# --- VPO --------------------------------------------------------------------------------------


def vpo(
    rewards_BMD,
    group_size,
    rng,
    *,
    weight_draws=128,
    alpha=1.0,
    sampler="sobol",
    shared_draws=True,
    diversity=0.0,
    duplicates="keep",
    pool=1,
    credit="set",
    void_B=None,
):
    """Vector Policy Optimization: score the *set*, then do what GRPO does.

    1. Draw K weightings of the objectives, w ~ Dirichlet(alpha), shared by the group's rollouts:
       with shared draws their noise cancels in the comparison.
    2. R(S) = mean over w of max over the M candidates of w.r: a candidate pays if it is the best
       under *some* weightings, so a set that spans the trade-offs beats M copies of a compromise.
    3. Normalise R within the group.

    Source: arXiv 2605.22817, K = 100 and alpha = 1 there. Beyond the paper, each off by default here:
    `pool` = k scores a chain for what it adds to a search over k chains (`max_at_k_credit` under
    every weighting), `credit="answer"` gives every answer its own advantage (`answer_advantages`),
    `diversity` adds that much of the candidates' mean L1 distance (`pairwise_l1`) to R.
    """
    if credit not in ("set", "answer") or duplicates not in ("keep", "drop"):
        raise LabError(f"credit {credit!r} is 'set' or 'answer', duplicates {duplicates!r} 'keep' or 'drop'")
    n_groups, objectives = len(rewards_BMD) // group_size, rewards_BMD.shape[-1]
    rewards_PGMD = rewards_BMD.reshape(n_groups, group_size, *rewards_BMD.shape[1:])
    own = 1 if shared_draws else group_size  # blocks of K draws in a group
    # One sequence cut into blocks: fresh draws for each group at one call's cost.
    weights_CD = dirichlet_weights(n_groups * own * weight_draws, objectives, alpha=alpha, method=sampler, seed=rng)
    weights_PgKD = weights_CD.reshape(n_groups, own, weight_draws, objectives)
    utility_PGMK = rewards_PGMD @ weights_PgKD.swapaxes(-1, -2)
    if credit == "set" and pool == 1 and not diversity and void_B is None:  # the paper's VPO
        set_reward_PG = utility_PGMK.max(axis=2).mean(axis=2)  # as `scalarization.set_reward`
        return group_normalize(set_reward_PG.reshape(-1), group_size)

    # Beyond the paper: the best of the first m answers, m = 0..M (N of them), so that every prefix has a reward.
    best_PGNK = np.insert(np.maximum.accumulate(utility_PGMK, axis=2), 0, 0.0, axis=2)
    if diversity:
        best_PGNK[:, :, 1:] += diversity * pairwise_l1(rewards_PGMD, duplicates)[..., None]
    if void_B is not None:  # rollouts worth nothing as a whole: what their first answers earned stays
        best_PGNK[:, :, -1][np.reshape(void_B, (n_groups, group_size))] = 0.0
    best_PGK = best_PGNK[:, :, -1]
    if pool > 1:
        if not shared_draws:
            raise LabError("pool > 1 compares rollouts under the same weightings: it needs shared_draws")
        best_PGNK = max_at_k_credit(best_PGNK, pool)
    prefix_reward_PGN = best_PGNK.mean(axis=3)
    if credit == "answer":
        others_PG = best_of_others(best_PGK, min(pool, group_size - 1)).mean(axis=2)
        return answer_advantages(prefix_reward_PGN, others_PG).reshape(rewards_BMD.shape[:2])
    return group_normalize(prefix_reward_PGN[:, :, -1].reshape(-1), group_size)


def answer_advantages(prefix_reward_PGN: np.ndarray, others_PG: np.ndarray) -> np.ndarray:
    """One advantage per answer: (P, G, M + 1) rewards of the first 0..M answers -> (P, G, M).

    Scaled to a mean square of 1 over the batch: with a scale of its own for every group and answer,
    those would explode where all sets of a group earn the same.
    """
    advantages_PGM = answer_credit(prefix_reward_PGN, others_PG)
    scale = np.sqrt((advantages_PGM**2).mean())
    return advantages_PGM / scale if scale > EPSILON else np.zeros_like(advantages_PGM)


def answer_credit(prefix_reward_PGN: np.ndarray, others_PG: np.ndarray) -> np.ndarray:
    """The reward of the set less the best guess of it that does not know the answer: (P, G, M).

    The tokens of answer m cannot change what the answers before it earned, nor what other rollouts
    did, so both may be subtracted without a bias:

        A_m = R(S) - (a_m + b_m R(S_<m) + c_m R(the others of the group))

    with `others_PG` for the last term. The coefficients are least squares over the *other* groups of
    the batch (fitted on its own, the baseline would know the answer it is subtracted from), drawn
    gently to (0, 0, 1), the usual leave-one-out baseline: all that is left with a single group.
    """
    rest_PG = prefix_reward_PGN[:, :, -1] - others_PG  # of R(S), after that usual baseline
    columns = np.broadcast_arrays(1.0, prefix_reward_PGN[:, :, :-1], others_PG[..., None])
    features_MPGF = np.moveaxis(np.stack(columns, axis=-1), 2, 0)
    gram_MPFF = features_MPGF.swapaxes(-1, -2) @ features_MPGF
    target_MPF1 = features_MPGF.swapaxes(-1, -2) @ rest_PG[..., None]
    of_others = [total.sum(axis=1, keepdims=True) - total for total in (gram_MPFF, target_MPF1)]
    coefficients_MPF1 = np.linalg.solve(of_others[0] + RIDGE * np.eye(3), of_others[1])
    return np.moveaxis(rest_PG - (features_MPGF @ coefficients_MPF1)[..., 0], 0, -1)


def best_of_others(best_PGK: np.ndarray, k: int) -> np.ndarray:
    """For every rollout the mean best of k *other* rollouts of its group: (P, G, K) -> (P, G, K), exact."""
    return np.einsum("pgok,o->pgk", _others(best_PGK), _best_shares(best_PGK.shape[1] - 1, k))


def max_at_k_credit(best_PGNK: np.ndarray, k: int) -> np.ndarray:
    """The best of k rollouts of a group that a rollout can expect to be part of, under every weighting.

    (P, G, N, K) -> (P, G, N, K): the mean, over all (k-1)-subsets of the other rollouts, of
    max(x, best of the subset), for every value x of a rollout along N; the others are worth their
    last entry. For x the rollout's own last entry this is G/k times the unbiased max@k credit
    s_i = [C(i-1, k-1) g_i + sum_{j>i} C(j-2, k-2) g_j] / C(G, k) of PKPO (arXiv 2505.15201,
    2510.23393), g ascending. k = 1 is the utility itself.
    """
    group_size = best_PGNK.shape[1]
    if not 1 <= k <= group_size:
        raise LabError(f"a pool of {k} rollouts: between 1 and the group size {group_size}")
    if k == 1:
        return best_PGNK
    others_PGOK = _others(best_PGNK[:, :, -1])
    share_O = _best_shares(group_size - 1, k - 1)
    credit_PGNK = np.empty_like(best_PGNK)
    for n in range(best_PGNK.shape[2]):
        pooled_PGOK = np.maximum(best_PGNK[:, :, n, None], others_PGOK)
        credit_PGNK[:, :, n] = np.einsum("pgok,o->pgk", pooled_PGOK, share_O)
    return credit_PGNK


def _others(best_PGK: np.ndarray) -> np.ndarray:
    """For every rollout the values of the others of its group, ascending: (P, G, G - 1, K)."""
    group_size = best_PGK.shape[1]
    others_GO = np.array([[j for j in range(group_size) if j != i] for i in range(group_size)])
    return np.sort(best_PGK[:, others_GO], axis=2)


def _best_shares(n: int, k: int) -> np.ndarray:
    """(n,): the share of the k-subsets of n ascending values in which each is the best."""
    return np.array([math.comb(i, k - 1) for i in range(n)]) / math.comb(n, k)


def pairwise_l1(rewards_PGMD: np.ndarray, duplicates: str = "keep") -> np.ndarray:
    """Mean L1 distance / D over the pairs of the first m candidates' vectors: (P, G, M, D) -> (P, G, M).

    The last entry is the bonus of the set. `duplicates="drop"` takes the mean over distinct vectors:
    repeating one costs nothing, with "keep" it counts as pairs of distance 0. In [0, 1].
    """
    m = rewards_PGMD.shape[2]
    total_PGM = np.zeros(rewards_PGMD.shape[:3])
    pairs_PGM = np.zeros(rewards_PGMD.shape[:3])
    new_PGM = np.ones(rewards_PGMD.shape[:3], dtype=bool)
    for i, j in combinations(range(m), 2):
        if duplicates == "drop":
            new_PGM[:, :, j] &= np.abs(rewards_PGMD[:, :, i] - rewards_PGMD[:, :, j]).max(axis=-1) > EPSILON
    for i, j in combinations(range(m), 2):
        counts_PG = new_PGM[:, :, i] & new_PGM[:, :, j]
        distance_PG = np.abs(rewards_PGMD[:, :, i] - rewards_PGMD[:, :, j]).mean(axis=-1)
        total_PGM[:, :, j:] += (distance_PG * counts_PG)[..., None]
        pairs_PGM[:, :, j:] += counts_PG[..., None]
    return total_PGM / np.maximum(pairs_PGM, 1)


# --- Its neighbours ---------------------------------------------------------------------------


def grpo(rewards_BMD, group_size, rng):
    """GRPO on one number: the plain mean of the objectives (and of the answers, if there are several)."""
    return group_normalize(rewards_BMD.mean(axis=(1, 2)), group_size)


def gdpo(rewards_BMD, group_size, rng):
    """GDPO (arXiv 2601.05242): z-score every objective in its group, sum, whiten over the batch."""
    z_DB = [group_normalize(rewards_B, group_size) for rewards_B in rewards_BMD.mean(axis=1).T]
    total_B = np.sum(z_DB, axis=0)
    return total_B / (total_B.std() + EPSILON) if total_B.std() > EPSILON else np.zeros(len(total_B))


def maxrl(rewards_BMD, group_size, rng):
    """MaxRL (arXiv 2602.02710): divide by the group's mean, so that rare successes weigh more."""
    scores_PG = rewards_BMD.mean(axis=(1, 2)).reshape(-1, group_size)
    mean_P1 = scores_PG.mean(axis=1, keepdims=True)
    return ((scores_PG - mean_P1) / (mean_P1 + EPSILON)).reshape(-1)


def max_at_k(rewards_BMD, group_size, rng, *, at_k=0):
    """Max@k training (PKPO, arXiv 2505.15201, 2510.23393): what a sample adds to the best of k samples.

    The scalar is the plain mean, `at_k` 0 means half of the group: max(2, G // 2).
    """
    scores_PG11 = rewards_BMD.mean(axis=(1, 2)).reshape(-1, group_size, 1, 1)
    credit_PG11 = max_at_k_credit(scores_PG11, at_k or max(2, group_size // 2))
    return group_normalize(credit_PG11.reshape(-1), group_size)


def multi_rlvr(rewards_BMD, group_size, rng):
    """Multi-RLVR (arXiv 2603.24844): several answers, a fixed scalar, summed over the answers."""
    return group_normalize(rewards_BMD.mean(axis=2).sum(axis=1), group_size)


def random_weights(rewards_BMD, group_size, rng):
    """One answer, one w ~ Dirichlet(1) per group in the reward only: an ablation of VPO.

    The control that asks whether random weights alone, without sets, keep a policy diverse.
    """
    weights_PD = rng.dirichlet(np.ones(rewards_BMD.shape[-1]), size=len(rewards_BMD) // group_size)
    return goal_conditioned(rewards_BMD, group_size, rng, goals_PD=weights_PD)


def goal_conditioned(rewards_BMD, group_size, rng, *, goals_PD=None):
    """One answer, one w ~ Dirichlet(1) per group that the prompt states too: a policy to be steered.

    `goals_PD` are the weightings that the prompts of the P groups name.
    """
    if goals_PD is None:
        raise LabError("goal_conditioned needs the weightings in the prompts: goals_PD of shape (P, D)")
    weights_BD = np.repeat(goals_PD, group_size, axis=0)
    return group_normalize((rewards_BMD.mean(axis=1) * weights_BD).sum(axis=1), group_size)


@dataclass(frozen=True)
class Method:
    """A named way to turn reward vectors into advantages.

    `multi_answer`: M answers in a rollout; `states_goal`: the prompt names the weighting.
    """

    name: str
    estimator: Callable
    multi_answer: bool
    options: tuple[tuple[str, object], ...] = ()
    states_goal: bool = False

    def advantages(self, rewards: np.ndarray, group_size: int, rng: np.random.Generator) -> np.ndarray:
        """(B, M, D) -> (B,), or (B, M) with credit per answer.

        Raises LabError on a wrong shape or on values that are not finite.
        """
        rewards = np.asarray(rewards, dtype=float)
        if rewards.ndim != 3 or 0 in rewards.shape:
            raise LabError(f"rewards of shape {rewards.shape}: expected (B, M, D), none of them 0")
        if group_size < 1 or len(rewards) % group_size:
            raise LabError(
                f"{len(rewards)} rollouts cannot be cut into groups of {group_size}: "
                "make the batch a multiple of the group size"
            )
        if not np.isfinite(rewards).all():
            raise LabError("rewards contain NaN or infinity: a task's score() must be finite")
        return self.estimator(rewards, group_size, rng, **dict(self.options))

    @property
    def option_names(self) -> list[str]:
        """The options of the estimator, e.g. "weight_draws" of VPO."""
        return [p.name for p in signature(self.estimator).parameters.values() if p.kind is p.KEYWORD_ONLY]

    def with_options(self, **options) -> Method:
        """The same method with options of its estimator fixed, e.g. `weight_draws=8` for VPO.

        Raises LabError on an option that the estimator does not have.
        """
        for name in options:
            if name not in self.option_names:
                known = ", ".join(self.option_names) or "none"
                raise LabError(f"method {self.name!r} has no option {name!r}; it has: {known}")
        return replace(self, options=tuple({**dict(self.options), **options}.items()))


METHODS = {
    method.name: method
    for method in (
        Method("vpo", vpo, multi_answer=True),
        Method("vpo_pool", vpo, multi_answer=True, options=(("pool", 4),)),
        # The cell of the 2x2 that is neither: M answers, a fixed scalar. All weightings are the mean.
        Method("best_of_set", vpo, multi_answer=True, options=(("alpha", math.inf), ("weight_draws", 1))),
        Method("multi_rlvr", multi_rlvr, multi_answer=True),
        Method("grpo", grpo, multi_answer=False),
        Method("gdpo", gdpo, multi_answer=False),
        Method("maxrl", maxrl, multi_answer=False),
        Method("max_at_k", max_at_k, multi_answer=False),
        Method("random_weights", random_weights, multi_answer=False),
        Method("goal_conditioned", goal_conditioned, multi_answer=False, states_goal=True),
    )
}


def get_method(name: str) -> Method:
    """The method of that name; LabError that lists the known ones if there is none."""
    if name not in METHODS:
        raise LabError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
