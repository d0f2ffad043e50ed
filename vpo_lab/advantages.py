"""The methods side by side. VPO is `vpo` below: read it first, then its neighbours.

Every method is a pure function of the reward vectors of one batch:

    METHODS[name].advantages(rewards_BMD, group_size, rng) -> advantages_B

B rollouts, stored in P groups (the `group_size` = G rollouts of one prompt are neighbours), M
candidate answers in a rollout, D objectives in [0, 1], K weight draws. The policy gradient then
weighs every token of rollout b with advantage b. numpy only; nothing here knows about models or
text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import signature

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.scalarization import dirichlet_weights

EPSILON = 1e-6


def group_normalize(scores_B: np.ndarray, group_size: int) -> np.ndarray:
    """GRPO's advantage: (score - group mean) / (group std + 1e-6), 0 where the group is constant.

    (B,) -> (B,), population std. Source: DeepSeekMath (arXiv 2402.03300); the constants are VPO's.
    """
    scores_PG = scores_B.reshape(-1, group_size)
    centered_PG = scores_PG - scores_PG.mean(axis=1, keepdims=True)
    std_P1 = scores_PG.std(axis=1, keepdims=True)
    return np.where(std_P1 < EPSILON, 0.0, centered_PG / (std_P1 + EPSILON)).reshape(-1)


def vpo(rewards_BMD, group_size, rng, *, weight_draws=128, alpha=1.0, sampler="sobol"):
    """Vector Policy Optimization: score the *set*, then do what GRPO does.

    1. Draw K weightings of the objectives, w ~ Dirichlet(alpha), shared by the group's rollouts:
       with shared draws their noise cancels in the comparison.
    2. R(S) = mean over w of max over the M candidates of w.r: a candidate pays if it is the best
       under *some* weightings, so a set that spans the trade-offs beats M copies of a compromise.
    3. Normalise R within the group.

    Source: arXiv 2605.22817, K = 100 and alpha = 1 there.
    """
    n_groups, objectives = len(rewards_BMD) // group_size, rewards_BMD.shape[-1]
    # One sequence cut into a block of K per group: fresh draws for each group at one call's cost.
    weights_P1KD = dirichlet_weights(
        n_groups * weight_draws, objectives, alpha=alpha, method=sampler, seed=rng
    ).reshape(n_groups, 1, weight_draws, objectives)
    rewards_PGMD = rewards_BMD.reshape(n_groups, group_size, *rewards_BMD.shape[1:])
    utility_PGMK = rewards_PGMD @ weights_P1KD.swapaxes(-1, -2)
    set_reward_PG = utility_PGMK.max(axis=2).mean(axis=2)  # this line is `scalarization.set_reward`
    return group_normalize(set_reward_PG.reshape(-1), group_size)


def grpo(rewards_BMD, group_size, rng):
    """GRPO on one number: the plain mean of the objectives (and of the answers, if there are several)."""
    return group_normalize(rewards_BMD.mean(axis=(1, 2)), group_size)


def multi_rlvr(rewards_BMD, group_size, rng):
    """Multi-RLVR (arXiv 2603.24844): several answers, a fixed scalar, summed over the answers."""
    return group_normalize(rewards_BMD.mean(axis=2).sum(axis=1), group_size)


def random_weights(rewards_BMD, group_size, rng):
    """One answer, one w ~ Dirichlet(1) per group in the reward only: an ablation of VPO.

    The control that asks whether random weights alone, without sets, keep a policy diverse.
    """
    weights_PD = rng.dirichlet(np.ones(rewards_BMD.shape[-1]), size=len(rewards_BMD) // group_size)
    weights_BD = np.repeat(weights_PD, group_size, axis=0)
    return group_normalize((rewards_BMD.mean(axis=1) * weights_BD).sum(axis=1), group_size)


def gdpo(rewards_BMD, group_size, rng):
    """GDPO (arXiv 2601.05242): z-score every objective in its group, sum, whiten over the batch."""
    z_DB = [group_normalize(rewards_B, group_size) for rewards_B in rewards_BMD.mean(axis=1).T]
    total_B = np.sum(z_DB, axis=0)
    return total_B / (total_B.std() + EPSILON) if total_B.std() > EPSILON else np.zeros(len(total_B))


@dataclass(frozen=True)
class Method:
    """A named way to turn reward vectors into advantages; `multi_answer`: M answers in a rollout."""

    name: str
    estimator: Callable
    multi_answer: bool
    options: tuple[tuple[str, object], ...] = ()

    def advantages(self, rewards: np.ndarray, group_size: int, rng: np.random.Generator) -> np.ndarray:
        """(B, M, D) -> (B,). Raises LabError on a wrong shape or on values that are not finite."""
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
        Method("grpo", grpo, multi_answer=False),
        Method("multi_rlvr", multi_rlvr, multi_answer=True),
        Method("random_weights", random_weights, multi_answer=False),
        Method("gdpo", gdpo, multi_answer=False),
    )
}


def get_method(name: str) -> Method:
    """The method of that name; LabError that lists the known ones if there is none."""
    if name not in METHODS:
        raise LabError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
