"""Exact optimal policies under a price on KL, where all answers can be listed. numpy only.

A policy that maximises E[R] - beta KL(policy || start) is the start times exp(R / beta), normalised. For GRPO the
outcome is one answer and R its mean reward; for best_of_set and VPO it is a set of M answers, and the start draws its
members apart from each other. Both rewards of a set ignore the order of its members, so a set is kept once, with the
number of its orders: N + M - 1 choose M sets instead of N**M. For the worlds of `tiny` this is 41,616 pairs at most
where N = 288, 259,560 where N = 720, and 508,080 triples where N = 144 (`merge` leaves that many different answers).
An autoregressive policy reaches the same optimum: `first_answer` is what its first answer is drawn from.

What k answers are worth is exact too: k / M sets are drawn apart from each other, somebody with preference weights w
picks the answer that scores best, and the chance that it is answer n is a difference of powers. Only the mean over w
is a sum over K weight vectors: exact for these, and near the integral for many (`dirichlet_weights`).

`settled` is where a trainer of today settles instead: it divides rewards by their spread and prices KL token by token.
Axes: N answers, S sets, M answers of a set, D objectives, K weight vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.weights import dirichlet_weights

MOST_SETS = 2_000_000  # a set costs about M * K numbers; beyond this a laptop runs out of memory or patience
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

    def __post_init__(self):
        n = len(self.start)
        if not (self.proxy.shape == self.truth.shape and len(self.proxy) == len(self.hacked) == n):
            shapes = self.start.shape, self.proxy.shape, self.truth.shape, self.hacked.shape
            raise LabError(f"answers of shapes {shapes}: expected (N,), (N, D), (N, D), (N,)")
        if not (self.start > 0).all() or not math.isclose(self.start.sum(), 1.0, abs_tol=1e-9):
            raise LabError(f"the start sums to {self.start.sum():.6f}: give N positive probabilities that sum to 1")


def merge(answers: Answers, decimals: int = 12) -> Answers:
    """Return the answers with those of equal proxy, truth and flaw as one; nothing that is measured changes."""
    rows = np.column_stack([answers.proxy, answers.truth, answers.hacked]).round(decimals)
    _, first, number = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    start = np.bincount(number.ravel(), weights=answers.start)
    return Answers(start / start.sum(), answers.proxy[first], answers.truth[first], answers.hacked[first])


@dataclass(frozen=True)
class Policy:
    """Hold a distribution over sets of M answers. M = 1: over answers."""

    answers: Answers
    members: np.ndarray  # (S, M) ascending numbers of answers
    shares: np.ndarray  # (S,) probabilities
    start: np.ndarray  # (S,) those of the start

    @property
    def m(self) -> int:
        """Return M."""
        return self.members.shape[1]

    @cached_property
    def kl(self) -> float:
        """Return the KL divergence from the start in nats, per answer: that of a set divided by M."""
        kept = self.shares > 0
        return float((self.shares[kept] * np.log(self.shares[kept] / self.start[kept])).sum()) / self.m

    @property
    def answer_shares(self) -> np.ndarray:
        """Return how often a random member of a random set is each answer: (N,)."""
        weights = np.repeat(self.shares / self.m, self.m)
        return np.bincount(self.members.ravel(), weights=weights, minlength=len(self.answers.start))

    @property
    def hacked(self) -> float:
        """Return the share of answers that hold a flaw."""
        return float(self.answer_shares @ self.answers.hacked)

    def picked(self, utility_KN: np.ndarray, k: int) -> np.ndarray:
        """Return how often somebody with each of K utilities picks each answer out of k: (K, N), rows sum to 1.

        k answers are k / M sets, drawn apart; of equally good answers the later one is picked. LabError unless M
        divides k.
        """
        draws, rest = divmod(k, self.m)
        if rest or not draws:
            raise LabError(f"k = {k} answers are no whole number of sets of {self.m}: choose a multiple")
        picked_KN = np.empty_like(utility_KN)
        for utility_N, picked_N in zip(utility_KN, picked_KN, strict=True):
            order_N = np.argsort(utility_N, kind="stable")
            rank_N = np.empty(len(order_N), dtype=int)
            rank_N[order_N] = np.arange(len(order_N))
            best_S = rank_N[self.members].max(axis=1)
            below_N = np.cumsum(np.bincount(best_S, weights=self.shares, minlength=len(order_N)))
            picked_N[order_N] = np.diff(np.clip(below_N, 0.0, 1.0) ** draws, prepend=0.0)
        return picked_KN

    def worth(self, k: int, weights_KD: np.ndarray) -> dict[str, float]:
        """Return what k answers are worth to people with these preference weights, each in [0, 1].

        "proxy": the score of the answer that scores best under w; "truth": what that answer is really worth;
        "best": what the best of the k is really worth, which a judge without a flaw would pick; "hacked": the
        share of picked answers that hold a flaw.
        """
        proxy_KN, truth_KN = weights_KD @ self.answers.proxy.T, weights_KD @ self.answers.truth.T
        picked_KN = self.picked(proxy_KN, k)
        best_KN = self.picked(truth_KN, k)
        return {
            "proxy": float((picked_KN * proxy_KN).sum(axis=1).mean()),
            "truth": float((picked_KN * truth_KN).sum(axis=1).mean()),
            "best": float((best_KN * truth_KN).sum(axis=1).mean()),
            "hacked": float((picked_KN @ self.answers.hacked).mean()),
        }


class Optimum:
    """Compute the optimal policies of one method for many prices; what does not depend on the price is kept.

    `method` "grpo", "best_of_set" or "vpo"; `m` answers in a set (1 for GRPO). `weights` (K, D) are those of VPO,
    1,024 of a Sobol sequence if None. LabError for another method, and for more than MOST_SETS sets.
    """

    def __init__(self, method: str, answers: Answers, m: int = 2, weights: np.ndarray | None = None):
        if method not in METHODS:
            raise LabError(f"no optimum of {method!r}: choose one of {', '.join(METHODS)}")
        self.answers = answers
        m, n, d = 1 if method == "grpo" else m, *answers.proxy.shape
        if (count := math.comb(n + m - 1, m)) > MOST_SETS:
            raise LabError(f"{count:,} sets of {m} of {n} answers: at most {MOST_SETS:,}, so merge answers or lower M")
        if weights is None:
            weights = dirichlet_weights(1024, d)
        utility_NK = answers.proxy @ (weights if method == "vpo" else np.full((1, d), 1 / d)).T
        self.members = _multisets(n, m)
        self.start = np.exp(np.log(answers.start)[self.members].sum(axis=1)) * _orders(self.members)
        self.rewards = np.empty(len(self.members))  # R of every set
        block = max(1, 2_000_000 // utility_NK.shape[1])
        for first in range(0, len(self.members), block):
            rows = slice(first, first + block)
            best_SK = utility_NK[self.members[rows, 0]]
            for column in self.members[rows, 1:].T:
                best_SK = np.maximum(best_SK, utility_NK[column])
            self.rewards[rows] = best_SK.mean(axis=1)

    def policy(self, beta: float) -> Policy:
        """Return the policy that maximises E[R] - beta KL(set), exactly. LabError unless beta is positive."""
        if not beta > 0:
            raise LabError(f"beta = {beta}: a price on KL has to be positive")
        return Policy(self.answers, self.members, _tilted(self.start, self.rewards / beta), self.start)

    def standardised(self, price: float, tolerance: float = 1e-10) -> float:
        """Return the beta that a price on KL amounts to if rewards are divided by their spread in a group: GRPO's way.

        The spread is that of the policy itself: beta = price * std of R under `policy(beta)`, for large groups. It
        shrinks as the policy sharpens. This is the largest such beta, which a training from the start meets first; 0
        if there is none, and then nothing holds the policy back.
        """

        def excess(beta: float) -> float:
            shares = self.policy(beta).shares
            mean = shares @ self.rewards
            return price * math.sqrt(max(shares @ (self.rewards - mean) ** 2, 0.0)) - beta

        betas = np.geomspace(10.0 * price, 1e-5, 400)
        signs = np.array([excess(beta) for beta in betas])
        if not (signs > 0).any():
            return 0.0
        low, high = betas[np.argmax(signs > 0)], betas[np.argmax(signs > 0) - 1]
        while high - low > tolerance:
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) > 0 else (low, middle)
        return float((low + high) / 2)


def first_answer(policy: Policy) -> np.ndarray:
    """Return the distribution of a chain's first answer in the same policy, (N,): every order of a set is as likely."""
    return policy.answer_shares


def _multisets(n: int, m: int) -> np.ndarray:
    """All sets of m of n answers, an answer may come twice: (S, m) ascending numbers."""
    if m == 1:
        return np.arange(n)[:, None]
    if m == 2:
        return np.column_stack(np.triu_indices(n))
    count = math.comb(n + m - 1, m)
    numbers = np.fromiter((i for row in combinations_with_replacement(range(n), m) for i in row), int, count * m)
    return numbers.reshape(count, m)


def _orders(members_SM: np.ndarray) -> np.ndarray:
    """In how many orders the members of each set can stand: M! over the factorials of how often each comes, (S,)."""
    m = members_SM.shape[1]
    orders, run = np.full(len(members_SM), math.factorial(m)), np.ones(len(members_SM), dtype=int)
    for left, right in zip(members_SM.T[:-1], members_SM.T[1:], strict=True):
        run = np.where(left == right, run + 1, 1)
        orders = orders // run
    return orders


def _tilted(start: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The start times exp(scores), normalised without overflow."""
    logs = np.log(start) + scores
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()
