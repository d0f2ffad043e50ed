"""Exact optimal policies under a price on KL, where all answers can be listed. numpy only.

A policy that maximises E[R] - beta KL(policy || start) is the start times exp(R / beta), normalised. For GRPO the
outcome is one answer and R its mean reward; for best_of_set and VPO it is a set of M answers. The start draws its
members apart from each other, or as `Answers.pairs` says. Both rewards of a set ignore the order of its members, so a
set is kept once, with the number of its orders: N + M - 1 choose M sets instead of N**M. `merge` first makes one of
answers that nobody tells apart. In the worlds of `tiny` that leaves 144, 288 or 720 answers: 10,440, 41,616 or 259,560
pairs, and 508,080 triples of 144. A chain that is written answer by answer reaches the same optimum; its first answer
is drawn from `Policy.answer_shares`, as all orders of a set are equally likely.

What k answers are worth is exact too: k / M sets are drawn apart from each other, somebody with preference weights w
picks the answer that scores best, and the chance that it is answer n is a difference of powers. Only the mean over w
is a sum over K weight vectors: exact for these, and near the integral for many (`dirichlet_weights`).

`settled` is where a training settles whose loss prices KL token by token, as TRL's does. `Optimum.scaled` says what a
price means where rewards are divided by their spread in a group, as GRPO does.
Axes: N answers, S sets, M answers of a set, D objectives, K weight vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.weights import dirichlet_weights

MOST_SETS = 2_000_000  # beyond this a laptop runs out of memory or patience
METHODS = ("grpo", "best_of_set", "vpo")  # what has an optimum here


@dataclass(frozen=True)
class Answers:
    """Hold the N different answers to a request: what the start gives them, what they score, what they are worth.

    LabError if the shapes differ or the start is no distribution.
    """

    start: np.ndarray  # (N,) probabilities
    proxy: np.ndarray  # (N, D) in [0, 1], what is trained
    truth: np.ndarray  # (N, D) in [0, 1], what is measured
    hacked: np.ndarray  # (N,) bool
    pairs: np.ndarray | None = None  # (N, N) of chains of two, symmetric, its sums `start`; None: drawn apart

    def __post_init__(self):
        n = len(self.start)
        if not (self.proxy.shape == self.truth.shape and len(self.proxy) == len(self.hacked) == n):
            shapes = self.start.shape, self.proxy.shape, self.truth.shape, self.hacked.shape
            raise LabError(f"answers of shapes {shapes}: expected (N,), (N, D), (N, D), (N,)")
        if not (self.start > 0).all() or not math.isclose(self.start.sum(), 1.0, abs_tol=1e-9):
            raise LabError(f"the start sums to {self.start.sum():.6f}: give N positive probabilities that sum to 1")
        if self.pairs is not None and not (
            np.allclose(self.pairs, self.pairs.T) and np.allclose(self.pairs.sum(axis=0), self.start)
        ):
            raise LabError("pairs of the start are not symmetric, or do not sum to it: give an (N, N) that does")


def merge(answers: Answers, decimals: int = 12) -> Answers:
    """Return the answers with those of equal proxy, truth and flaw as one; nothing that is measured changes."""
    rows = np.column_stack([answers.proxy, answers.truth, answers.hacked]).round(decimals)
    _, first, number = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    start, pairs = np.bincount(number.ravel(), weights=answers.start), answers.pairs
    if pairs is not None:
        member_Nn = np.eye(len(first))[number.ravel()]
        pairs = member_Nn.T @ pairs @ member_Nn
    return Answers(start / start.sum(), answers.proxy[first], answers.truth[first], answers.hacked[first], pairs)


@dataclass(frozen=True)
class Policy:
    """Hold a distribution over sets of M answers. M = 1: over answers."""

    answers: Answers
    members: np.ndarray  # (S, M) numbers of answers
    shares: np.ndarray  # (S,) probabilities
    start: np.ndarray  # (S,) those of the start
    rewards: np.ndarray  # (S,) R

    @cached_property
    def kl(self) -> float:
        """Return the KL divergence from the start in nats, per answer: that of a set divided by M."""
        kept = self.shares > 0
        spent = (self.shares[kept] * np.log(self.shares[kept] / self.start[kept])).sum()
        return float(spent) / self.members.shape[1]

    @property
    def reward(self) -> float:
        """Return E[R], what is trained."""
        return float(self.shares @ self.rewards)

    @cached_property
    def answer_shares(self) -> np.ndarray:
        """Return how often a random member of a random set is each answer: (N,)."""
        n, m = len(self.answers.start), self.members.shape[1]
        return sum(np.bincount(column, weights=self.shares, minlength=n) for column in self.members.T) / m

    @property
    def hacked(self) -> float:
        """Return the share of answers that hold a flaw."""
        return float(self.answer_shares @ self.answers.hacked)

    def best_below(self, utility_KN: np.ndarray) -> np.ndarray:
        """Return how often a set holds nothing better than each answer, for each of K utilities: (K, N)."""
        n = utility_KN.shape[1]
        below_KN = np.empty_like(utility_KN)
        for utility_N, below_N in zip(utility_KN, below_KN, strict=True):
            order_N = np.argsort(utility_N, kind="stable")
            rank_N = np.empty(n, dtype=np.int32)
            rank_N[order_N] = np.arange(n)
            best_S = rank_N[self.members[:, 0]]
            for column in self.members.T[1:]:
                best_S = np.maximum(best_S, rank_N[column])
            below_N[order_N] = np.cumsum(np.bincount(best_S, weights=self.shares, minlength=n)).clip(0.0, 1.0)
        return below_KN

    def worth(self, budgets: Sequence[int], weights_KD: np.ndarray) -> dict[int, dict[str, float]]:
        """Return what k answers are worth to people with these preference weights, k -> numbers in [0, 1].

        k answers are k / M sets, drawn apart. "proxy": the score of the answer that scores best under w; "truth":
        what that answer is really worth; "best": what the best of the k is really worth, which a judge without a flaw
        would pick; "hacked": the share of picked answers that hold a flaw. LabError unless M divides every k.
        """
        m = self.members.shape[1]
        if wrong := [k for k in budgets if k < m or k % m]:
            raise LabError(f"k = {wrong[0]} answers are no whole number of sets of {m}: choose a multiple")
        proxy_KN, truth_KN = weights_KD @ self.answers.proxy.T, weights_KD @ self.answers.truth.T
        by_proxy, by_truth = ((utility_KN, self.best_below(utility_KN)) for utility_KN in (proxy_KN, truth_KN))
        found = {}
        for k in budgets:
            picked_KN, best_KN = _picked(*by_proxy, k // m), _picked(*by_truth, k // m)
            found[k] = {
                "proxy": float((picked_KN * proxy_KN).sum(axis=1).mean()),
                "truth": float((picked_KN * truth_KN).sum(axis=1).mean()),
                "best": float((best_KN * truth_KN).sum(axis=1).mean()),
                "hacked": float((picked_KN @ self.answers.hacked).mean()),
            }
        return found


def _picked(utility_KN: np.ndarray, below_KN: np.ndarray, draws: int) -> np.ndarray:
    """How often each answer is the best of several sets: (K, N), rows sum to 1; of equals the later one counts."""
    order_KN = np.argsort(utility_KN, axis=1, kind="stable")
    steps_KN = np.diff(np.take_along_axis(below_KN, order_KN, axis=1) ** draws, axis=1, prepend=0.0)
    picked_KN = np.empty_like(steps_KN)
    np.put_along_axis(picked_KN, order_KN, steps_KN, axis=1)
    return picked_KN


class Optimum:
    """Compute the optimal policies of one method for many prices; what does not depend on the price is kept.

    `method` "grpo", "best_of_set" or "vpo"; `m` answers in a set (1 for GRPO). `weights` (K, D) are those of VPO,
    1,024 of a Sobol sequence if None. LabError for another method, and for more than MOST_SETS sets.
    """

    def __init__(self, method: str, answers: Answers, m: int = 2, weights: np.ndarray | None = None):
        utility_NK = _utilities(method, answers, weights)
        self.answers, n = answers, len(answers.start)
        self.m = m = 1 if method == "grpo" else m
        if (count := math.comb(n + m - 1, m)) > MOST_SETS:
            raise LabError(f"{count:,} sets of {m} of {n} answers: at most {MOST_SETS:,}, so merge answers or lower M")
        members, rewards = [], []
        for prefix in combinations_with_replacement(range(n), m - 1):
            last = np.arange(prefix[-1] if prefix else 0, n)  # an answer may come twice
            members.append(np.column_stack([*(np.full(len(last), number) for number in prefix), last]))
            best_NK = utility_NK[last]
            for number in prefix:
                best_NK = np.maximum(best_NK, utility_NK[number])
            rewards.append(best_NK.mean(axis=1))
        self.members, self.rewards = np.concatenate(members), np.concatenate(rewards)  # (S, M), (S,)
        if m == 2 and answers.pairs is not None:
            one, two = self.members.T
            self.start = answers.pairs[one, two] * _orders(self.members)
        elif m > 2 and answers.pairs is not None:
            raise LabError(f"a start of coupled pairs says nothing about sets of {m}: leave `pairs` out, or take M = 2")
        else:
            self.start = np.exp(np.log(answers.start)[self.members].sum(axis=1)) * _orders(self.members)

    def policy(self, beta: float) -> Policy:
        """Return the policy that maximises E[R] - beta KL(set), exactly. LabError unless beta is positive."""
        if not beta > 0:
            raise LabError(f"beta = {beta}: a price on KL has to be positive")
        shares = _tilted(self.start, self.rewards / beta)
        return Policy(self.answers, self.members, shares, self.start, self.rewards)

    def scaled(self, price: float) -> float:
        """Return the beta that a price amounts to where rewards are divided by their spread in a (large) group.

        The spread is that of the policy itself, so beta = price * std of R under `policy(beta)`, and it shrinks as the
        policy sharpens. This is the largest such beta, which a training from the start meets first. 0 if there is
        none: then the price holds nothing back, and the policy ends at its best set.
        """

        def excess(beta: float) -> float:
            shares = self.policy(beta).shares
            return price * math.sqrt(max(shares @ (self.rewards - shares @ self.rewards) ** 2, 0.0)) - beta

        betas = np.geomspace(10.0 * price, 1e-4 * price, 200)
        first = next((i for i, beta in enumerate(betas) if excess(beta) > 0), None)
        if first is None:
            return 0.0
        low, high = betas[first], betas[first - 1]
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) > 0 else (low, middle)
        return float(low)


def settled(
    method: str,
    answers: Answers,
    ways: Sequence[int],
    beta: float,
    m: int = 2,
    weights: np.ndarray | None = None,
    couplings: Sequence[np.ndarray] | None = None,
) -> Policy:
    """Return where a training settles that prices the KL of each choice, and not what it leads to.

    An answer is a row of choices, `ways` of each, the last one running fastest: N is their product. The start draws
    each choice apart from the others, but for the same choice of the answer before it (`couplings`, (W, W) each). The
    loss weighs a token by E[R] afterwards and its own KL, so every choice is the start times exp(E[R after it] / beta).
    The optimum would take off the KL that comes later. The two agree where R is a sum over choices, as GRPO's is in
    `tiny`; a set's reward is none. M = 1 or 2. LabError for other shapes.
    """
    n = len(answers.start)
    m = 1 if method == "grpo" else m
    if math.prod(ways) != n or m > 2:
        raise LabError(f"{n} answers, ways {tuple(ways)}, M = {m}: N has to be the product of the ways, M 1 or 2")
    utility_NK, shape = _utilities(method, answers, weights), tuple(ways) * m
    if m == 1:
        rewards = utility_NK.mean(axis=1)
    else:
        rewards = np.concatenate([np.maximum(one_K, utility_NK).mean(axis=1) for one_K in utility_NK])
    start, count = answers.start.reshape(tuple(ways)), len(ways)
    each_way = [start.sum(axis=tuple(j for j in range(count) if j != i)) for i in range(count)]
    value, chosen = rewards.reshape(shape), []
    for axis in reversed(range(count * m)):
        chance = each_way[axis % count]
        if axis >= count and couplings is not None:  # given the same choice of the first answer
            coupling_WW = couplings[axis - count]
            view = [1] * value.ndim
            view[axis - count] = view[-1] = len(coupling_WW)
            chance = (coupling_WW / coupling_WW.sum(axis=1, keepdims=True)).reshape(view)
        shares = chance * np.exp((value - value.max(axis=-1, keepdims=True)) / beta)
        chosen.append(shares := shares / shares.sum(axis=-1, keepdims=True))
        value = (shares * value).sum(axis=-1)
    shares = np.ones(())
    for one in reversed(chosen):
        shares = shares[..., None] * one
    members = np.indices((n,) * m).reshape(m, -1).T
    apart_S = np.exp(np.log(answers.start)[members].sum(axis=1))
    start_S = apart_S if m == 1 or answers.pairs is None else answers.pairs.ravel()
    return Policy(answers, members, shares.ravel(), start_S, rewards)


def _utilities(method: str, answers: Answers, weights: np.ndarray | None) -> np.ndarray:
    """w.r of every answer under what a method weighs with: (N, K), K = 1 for the plain mean."""
    if method not in METHODS:
        raise LabError(f"no optimum of {method!r}: choose one of {', '.join(METHODS)}")
    d = answers.proxy.shape[1]
    if method != "vpo":
        return answers.proxy.mean(axis=1, keepdims=True)
    return answers.proxy @ (dirichlet_weights(1024, d) if weights is None else weights).T


def _orders(members_SM: np.ndarray) -> np.ndarray:
    """In how many orders the members of each set can stand: M! over the factorials of how often each comes, (S,)."""
    orders = np.full(len(members_SM), math.factorial(members_SM.shape[1]))
    run = np.ones(len(members_SM), dtype=int)
    for left, right in zip(members_SM.T[:-1], members_SM.T[1:], strict=True):
        run = np.where(left == right, run + 1, 1)
        orders = orders // run
    return orders


def _tilted(start: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The start times exp(scores), normalised without overflow."""
    logs = np.log(start) + scores
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()
