"""The methods side by side. VPO is `vpo` below: read it first, then its neighbours.

A method is a pure function of one batch of reward vectors:

    METHODS[name].advantages(rewards_BMD, group_size, rng) -> advantages_B (or advantages_BM)

Axes: B rollouts in P groups (the `group_size` = G rollouts of one prompt are neighbours), M candidate
answers in a rollout, D objectives, K weight draws. The policy gradient weighs every token of rollout b
with advantage b; with credit per answer, the tokens of its answer m with advantage b, m. An objective
that a prompt does not ask for is NaN in all rollouts of its group, and no method looks at it.
numpy only; nothing here knows about models or text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from itertools import combinations

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.weights import dirichlet_weights, restrict

EPSILON = 1e-6
# Ridge penalty of the baseline regression: noise variance of a set reward divided by the prior variance of the
# coefficients, for rewards in [0, 1].
RIDGE = 0.1
# Weight vectors drawn for one batch. Groups beyond MAX_DRAWS / K share blocks of K draws: their noise is far below
# that of the rollouts, and drawing for each would take longer than the rest of the estimator.
MAX_DRAWS = 2048


@dataclass(frozen=True)
class Batch:
    """Hold what a method may look at: the reward vectors of one optimizer step.

    `rewards_BMD` may hold NaN: an objective that is NaN in a whole group was not asked there; any other
    NaN counts as 0. `truncated_B` marks rollouts that never came to an end and earn nothing as a whole;
    `goals_PD` holds the preference weights that the prompts of the P groups state.
    Raises LabError on a wrong shape, a group size that does not divide B, or infinite rewards.
    """

    rewards_BMD: np.ndarray
    group_size: int
    truncated_B: np.ndarray | None = None
    goals_PD: np.ndarray | None = None

    def __post_init__(self):
        shape = self.rewards_BMD.shape
        if len(shape) != 3 or 0 in shape:
            raise LabError(f"rewards of shape {shape}: expected (B, M, D), none of them 0")
        if self.group_size < 1 or shape[0] % self.group_size:
            raise LabError(
                f"{shape[0]} rollouts cannot be cut into groups of {self.group_size}: "
                "make the batch a multiple of the group size"
            )
        if np.isinf(self.rewards_BMD).any():
            raise LabError("rewards contain infinity: a task's score() must be finite, or NaN where nothing is asked")

    @property
    def groups(self) -> int:
        """Return P, the number of prompts."""
        return len(self.rewards_BMD) // self.group_size

    @cached_property
    def asked_PD(self) -> np.ndarray:
        """Return which objectives the prompt of each group asks for: (P, D) bool."""
        return ~np.isnan(self.rewards_BMD.reshape(self.groups, -1, self.rewards_BMD.shape[-1])).all(axis=1)

    @cached_property
    def answers_PGMD(self) -> np.ndarray:
        """Return the reward vectors of all answers, 0 where not asked; those of truncated rollouts too."""
        rewards_BMD = np.nan_to_num(self.rewards_BMD, nan=0.0)
        return rewards_BMD.reshape(self.groups, self.group_size, *rewards_BMD.shape[1:])

    @cached_property
    def rewards_PGMD(self) -> np.ndarray:
        """Return the same, with nothing for truncated rollouts."""
        if self.truncated_B is None:
            return self.answers_PGMD
        truncated_PG = np.reshape(self.truncated_B, self.answers_PGMD.shape[:2])
        return np.where(truncated_PG[..., None, None], 0.0, self.answers_PGMD)

    @property
    def means_PGM(self) -> np.ndarray:
        """Return the plain mean of the asked objectives of every answer: the scalar of GRPO."""
        return self.rewards_PGMD.sum(axis=-1) / np.maximum(self.asked_PD.sum(axis=-1), 1)[:, None, None]

    def draw_weights(self, draws: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
        """Draw K preference weights per group on its asked objectives: (P, K, D).

        The rollouts of a group share them, so that their noise cancels in the comparison.
        """
        groups, objectives = self.asked_PD.shape
        blocks = min(groups, max(1, MAX_DRAWS // max(draws, 1)))
        # One sequence cut into blocks: draws of its own for each group, up to MAX_DRAWS, at one call's cost.
        weights_CD = dirichlet_weights(blocks * draws, objectives, alpha=alpha, seed=rng)
        weights_PKD = np.resize(weights_CD.reshape(blocks, draws, objectives), (groups, draws, objectives))
        return restrict(weights_PKD, self.asked_PD[:, None])


def utilities(rewards_PGMD: np.ndarray, weights_PKD: np.ndarray) -> np.ndarray:
    """Return w.r of every answer under the weights of its group: (P, G, M, D), (P, K, D) -> (P, G, M, K)."""
    groups, group_size, answers, objectives = rewards_PGMD.shape
    utility_PNK = rewards_PGMD.reshape(groups, -1, objectives) @ weights_PKD.swapaxes(-1, -2)
    return utility_PNK.reshape(groups, group_size, answers, -1)


def group_normalize(scores_PG: np.ndarray, scale_rewards: bool = True) -> np.ndarray:
    """Return GRPO's advantage: (score - group mean) / (group std + 1e-6), 0 where the group is constant.

    (P, G) -> (P, G), population std. Source: DeepSeekMath (arXiv 2402.03300); the constants are VPO's. Without
    `scale_rewards` the mean alone is taken off, as in Dr. GRPO (arXiv 2503.20783).
    """
    centered_PG = scores_PG - scores_PG.mean(axis=1, keepdims=True)
    if not scale_rewards:
        return centered_PG
    std_P1 = scores_PG.std(axis=1, keepdims=True)
    return np.where(std_P1 < EPSILON, 0.0, centered_PG / (std_P1 + EPSILON))


# --- VPO --------------------------------------------------------------------------------------


def vpo(batch, rng, *, weight_draws=128, alpha=1.0, scale_rewards=True):
    """Score every *set* of answers by its best one under random weights, then do what GRPO does: (P, G).

    R(S) = mean over w ~ Dirichlet(alpha) of max over the M answers of w.r: an answer pays if it is the
    best under *some* weights, so a set that spans the trade-offs can beat M copies of a compromise.
    Source: arXiv 2605.22817, K = 100 and alpha = 1 there.
    """
    weights_PKD = batch.draw_weights(weight_draws, alpha, rng)
    utility_PGMK = utilities(batch.rewards_PGMD, weights_PKD)
    return group_normalize(utility_PGMK.max(axis=2).mean(axis=2), scale_rewards)


# --- Beyond the paper: an advantage per answer, and a search over several chains ----------------


def vpo_answers(batch, rng, *, search_k=4, weight_draws=128, alpha=1.0, diversity=0.0):
    """Give every answer of a set its own advantage: (P, G, M). With `search_k` = 1 for R(S) itself.

    `search_k` = k above 1 scores a chain for what it adds to a search over k chains, under every weight
    vector (`max_at_k_credit`). `diversity` adds that much of the answers' mean L1 distance to R(S).
    Ours, not the paper's; derived in notebook 04.
    """
    return answer_advantages(*prefix_rewards(batch, rng, search_k, weight_draws, alpha, diversity))


def prefix_rewards(batch, rng, search_k, weight_draws, alpha, diversity) -> tuple[np.ndarray, np.ndarray]:
    """Return what the first 0..M answers of every rollout earn, (P, G, M + 1), and what others do, (P, G)."""
    weights_PKD = batch.draw_weights(weight_draws, alpha, rng)
    utility_PGMK = utilities(batch.answers_PGMD, weights_PKD)
    # The best of the first n answers, n = 0..M (axis N), so that every prefix has a reward.
    best_PGNK = np.insert(np.maximum.accumulate(utility_PGMK, axis=2), 0, 0.0, axis=2)
    if diversity:
        best_PGNK[:, :, 1:] += diversity * pairwise_l1(batch)[..., None]
    if batch.truncated_B is not None:  # worth nothing as a whole: what their first answers earned stays
        best_PGNK[:, :, -1][np.reshape(batch.truncated_B, best_PGNK.shape[:2])] = 0.0
    prefix_reward_PGN = max_at_k_credit(best_PGNK, search_k).mean(axis=3)
    others_PG = best_of_others(best_PGNK[:, :, -1], min(search_k, batch.group_size - 1)).mean(axis=2)
    return prefix_reward_PGN, others_PG


def answer_advantages(prefix_reward_PGN: np.ndarray, others_PG: np.ndarray) -> np.ndarray:
    """Scale the credit of every answer: (P, G, M + 1) rewards of the first 0..M answers -> (P, G, M).

    One scale for the batch gives a mean square of 1. A scale per group and answer would
    explode where all sets of a group earn the same.
    """
    advantages_PGM = answer_credit(prefix_reward_PGN, others_PG)
    scale = np.sqrt((advantages_PGM**2).mean())
    return advantages_PGM / scale if scale > EPSILON else np.zeros_like(advantages_PGM)


def answer_credit(prefix_reward_PGN: np.ndarray, others_PG: np.ndarray) -> np.ndarray:
    """Return the set's reward minus the best guess of it that does not know the answer: (P, G, M).

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
    """Return for every rollout the mean best of k *other* rollouts of its group: (P, G, K) -> (P, G, K), exact."""
    return np.einsum("pgok,o->pgk", _others(best_PGK), _best_shares(best_PGK.shape[1] - 1, k))


def max_at_k_credit(best_PGNK: np.ndarray, k: int) -> np.ndarray:
    """Return the best of k rollouts of a group that a rollout can expect to be part of, for every weight vector.

    (P, G, N, K) -> (P, G, N, K): the mean, over all (k-1)-subsets of the other rollouts, of
    max(x, best of the subset), for every value x of a rollout along N; the others are worth their
    last entry. For x the rollout's own last entry this is G/k times the unbiased max@k credit
    s_i = [C(i-1, k-1) g_i + sum_{j>i} C(j-2, k-2) g_j] / C(G, k) of PKPO (arXiv 2505.15201,
    2510.23393), g ascending. k = 1 is the utility itself.
    """
    group_size = best_PGNK.shape[1]
    if not 1 <= k <= group_size:
        raise LabError(f"search_k or at_k = {k} rollouts: between 1 and the group size {group_size}")
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


def pairwise_l1(batch: Batch) -> np.ndarray:
    """Return the mean L1 distance / D over the pairs of the first m answers' reward vectors: (P, G, M) in [0, 1].

    The last entry is the bonus of the set; D counts the asked objectives.
    """
    rewards_PGMD = batch.answers_PGMD
    asked_P11 = np.maximum(batch.asked_PD.sum(axis=-1), 1)[:, None]
    total_PGM = np.zeros(rewards_PGMD.shape[:3])
    for i, j in combinations(range(rewards_PGMD.shape[2]), 2):
        distance_PG = np.abs(rewards_PGMD[:, :, i] - rewards_PGMD[:, :, j]).sum(axis=-1) / asked_P11
        total_PGM[:, :, j:] += distance_PG[..., None]
    pairs_M = np.arange(rewards_PGMD.shape[2]) * np.arange(1, rewards_PGMD.shape[2] + 1) / 2
    return total_PGM / np.maximum(pairs_M, 1)


# --- Its neighbours ---------------------------------------------------------------------------


def grpo(batch, rng, *, scale_rewards=True):
    """Compare single numbers, the plain mean of objectives and answers: GRPO (arXiv 2402.03300), (P, G)."""
    return group_normalize(batch.means_PGM.mean(axis=2), scale_rewards)


def gdpo(batch, rng):
    """Z-score every objective in its group, sum, whiten over the batch: GDPO (arXiv 2601.05242), (P, G)."""
    total_PG = sum(group_normalize(scores_PG) for scores_PG in np.moveaxis(batch.rewards_PGMD.mean(axis=2), -1, 0))
    return total_PG / (total_PG.std() + EPSILON) if total_PG.std() > EPSILON else np.zeros_like(total_PG)


def maxrl(batch, rng):
    """Divide by the group's mean, so that rare successes weigh more: MaxRL (arXiv 2602.02710), (P, G)."""
    scores_PG = batch.means_PGM.mean(axis=2)
    mean_P1 = scores_PG.mean(axis=1, keepdims=True)
    return (scores_PG - mean_P1) / (mean_P1 + EPSILON)


def max_at_k(batch, rng, *, at_k=0):
    """Pay a sample the best of k samples that it can expect to be part of: PKPO (arXiv 2505.15201, 2510.23393), (P, G).

    The scalar is the plain mean, `at_k` 0 means half of the group: max(2, G // 2).
    """
    scores_PG11 = batch.means_PGM.mean(axis=2)[..., None, None]
    return group_normalize(max_at_k_credit(scores_PG11, at_k or max(2, batch.group_size // 2))[..., 0, 0])


def multi_rlvr(batch, rng):
    """Sum a fixed scalar over several answers: Multi-RLVR (arXiv 2603.24844), (P, G)."""
    return group_normalize(batch.means_PGM.sum(axis=2))


def random_weights(batch, rng):
    """Draw one w ~ Dirichlet(1) per group for the reward of single answers: an ablation of VPO, (P, G).

    The control that asks whether random weights alone, without sets, keep a policy diverse.
    """
    return goal_conditioned(replace(batch, goals_PD=rng.dirichlet(np.ones(batch.asked_PD.shape[1]), batch.groups)), rng)


def goal_conditioned(batch, rng):
    """Weigh the objectives as the prompt says, one answer per rollout: a policy to be steered, (P, G)."""
    if batch.goals_PD is None:
        raise LabError("goal_conditioned needs the weights in the prompts: goals_PD of shape (P, D)")
    weights_PD = restrict(np.asarray(batch.goals_PD, dtype=float), batch.asked_PD)
    return group_normalize((batch.rewards_PGMD.mean(axis=2) * weights_PD[:, None]).sum(axis=-1))


@dataclass(frozen=True)
class Method:
    """Name a way to turn reward vectors into advantages.

    `label` is what figures and tables call it. `multi_answer`: M answers in a rollout; `states_goal`: the
    prompt names the weights.
    """

    name: str
    label: str
    estimator: Callable
    multi_answer: bool = False
    options: tuple[tuple[str, object], ...] = ()
    states_goal: bool = False

    def advantages(
        self,
        rewards: np.ndarray,
        group_size: int,
        rng: np.random.Generator,
        truncated: np.ndarray | None = None,
        goals: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the advantages of a batch: (B, M, D) -> (B,), or (B, M) with credit per answer.

        `truncated` (B,) and `goals` (P, D) are those of `Batch`. Raises LabError as `Batch` does.
        """
        batch = Batch(np.asarray(rewards, dtype=float), group_size, truncated, goals)
        advantages = self.estimator(batch, rng, **dict(self.options))
        return advantages.reshape(-1, *advantages.shape[2:])

    @property
    def option_names(self) -> list[str]:
        """List the options of the estimator, e.g. "weight_draws" of VPO."""
        return [p.name for p in signature(self.estimator).parameters.values() if p.kind is p.KEYWORD_ONLY]

    def with_options(self, **options) -> Method:
        """Return the same method with options of its estimator fixed, e.g. `weight_draws=8` for VPO.

        Raises LabError on an option that the estimator does not have.
        """
        for name in options:
            if name not in self.option_names:
                known = ", ".join(self.option_names) or "none"
                raise LabError(f"method {self.name!r} has no option {name!r}; it has: {known}")
        return replace(self, options=tuple({**dict(self.options), **options}.items()))


# Under these options all weights are the plain mean: M answers, but a scalar. The control that tells a set from a
# vector.
_MEAN = (("alpha", math.inf), ("weight_draws", 1))
_OWN = ("search_k", 1)

# The one list of methods, in the order of tables and legends.
METHODS = {
    method.name: method
    for method in (
        Method("grpo", "GRPO", grpo),
        Method("gdpo", "GDPO", gdpo),
        Method("maxrl", "MaxRL", maxrl),
        Method("max_at_k", "max@k", max_at_k),
        Method("random_weights", "random weights", random_weights),
        Method("goal_conditioned", "goal-conditioned", goal_conditioned, states_goal=True),
        Method("multi_rlvr", "Multi-RLVR", multi_rlvr, multi_answer=True),
        Method("best_of_set", "best of set", vpo, multi_answer=True, options=_MEAN),
        Method("best_of_set_credit", "best of set, credit", vpo_answers, multi_answer=True, options=(*_MEAN, _OWN)),
        Method("vpo", "VPO", vpo, multi_answer=True),
        Method("vpo_credit", "VPO, credit", vpo_answers, multi_answer=True, options=(_OWN,)),
        Method("vpo_search", "VPO, search", vpo_answers, multi_answer=True),
    )
}


def get_method(name: str) -> Method:
    """Return the method of that name; LabError that lists the known ones if there is none."""
    if name not in METHODS:
        raise LabError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
