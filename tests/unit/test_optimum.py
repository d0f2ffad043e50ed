"""Exact optima against computations of another kind: a solver, enumeration in plain loops, and sampling."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

from vpo_lab.errors import LabError
from vpo_lab.tasks.judges.optimum import METHODS, Answers, Optimum, merge, settled
from vpo_lab.tasks.judges.tiny import World
from vpo_lab.weights import dirichlet_weights

WEIGHTS = dirichlet_weights(32, 3, seed=1)


def small(n: int = 5, seed: int = 0, coupled: bool = False) -> Answers:
    rng = np.random.default_rng(seed)
    start, pairs = rng.dirichlet(np.ones(n)), None
    if coupled:
        pairs = rng.random((n, n))
        pairs = (pairs + pairs.T) / pairs.sum() / 2
        start = pairs.sum(axis=0)
    return Answers(start, rng.random((n, 3)), rng.random((n, 3)), rng.random(n) < 0.4, pairs)


def start_of(answers: Answers, order: tuple) -> float:
    if len(order) == 2 and answers.pairs is not None:
        return float(answers.pairs[order])
    return math.prod(answers.start[i] for i in order)


def of_world(world: World) -> Answers:
    return merge(whole_of(world))


def whole_of(world: World) -> Answers:
    return Answers(world.start(), world.proxy(), world.truth(), world.hacked, world.pairs())


def reward_of(method: str, rows, weights) -> float:
    """R of a list of reward vectors, in plain loops."""
    if method != "vpo":
        return max(sum(row) / len(row) for row in rows)
    return sum(max(sum(w * r for w, r in zip(ws, row, strict=True)) for row in rows) for ws in weights) / len(weights)


def enumerated(method: str, answers: Answers, beta: float, m: int) -> dict[tuple, float]:
    """Every ordered set with its probability under the optimum, in plain loops."""
    m = 1 if method == "grpo" else m
    logs = {}
    for order in itertools.product(range(len(answers.start)), repeat=m):
        logs[order] = (
            math.log(start_of(answers, order)) + reward_of(method, [answers.proxy[i] for i in order], WEIGHTS) / beta
        )
    total = logsumexp(list(logs.values()))
    return {order: math.exp(value - total) for order, value in logs.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("m", "coupled"), [(2, False), (2, True), (3, False)])
@pytest.mark.parametrize("beta", [0.3, 0.02])
def test_the_optimum_agrees_with_enumeration(method, m, coupled, beta):
    answers = small(coupled=coupled)
    policy = Optimum(method, answers, m, WEIGHTS).policy(beta)
    brute = enumerated(method, answers, beta, m)
    assert policy.shares.sum() == pytest.approx(1)
    for members, share in zip(policy.members, policy.shares, strict=True):
        same = sum(p for order, p in brute.items() if sorted(order) == sorted(members))
        assert share == pytest.approx(same, abs=1e-9)
    size = len(next(iter(brute)))
    kl = sum(p * (math.log(p) - math.log(start_of(answers, order))) for order, p in brute.items() if p)
    assert policy.kl == pytest.approx(kl / size, abs=1e-9)
    first = [sum(p for order, p in brute.items() if order[0] == i) for i in range(5)]
    assert policy.answer_shares == pytest.approx(first, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_solver_finds_the_same_policy(method):
    answers, beta, m = small(4, seed=3, coupled=True), 0.1, 1 if method == "grpo" else 2
    orders = list(itertools.product(range(4), repeat=m))
    rewards = np.array([reward_of(method, [answers.proxy[i] for i in order], WEIGHTS) for order in orders])
    log_start = np.array([math.log(start_of(answers, order)) for order in orders])

    def loss(z):
        logs = z - logsumexp(z)
        p = np.exp(logs)
        inner = rewards - beta * (logs - log_start)
        return -(p @ inner), -p * (inner - p @ inner)

    found = minimize(loss, np.zeros(len(orders)), jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 5000})
    p = np.exp(found.x - logsumexp(found.x))
    policy = Optimum(method, answers, m, WEIGHTS).policy(beta)
    solved = np.zeros(len(policy.shares))
    number = {tuple(members): i for i, members in enumerate(policy.members.tolist())}
    for order, share in zip(orders, p, strict=True):
        solved[number[tuple(sorted(order))]] += share
    assert policy.shares == pytest.approx(solved, abs=1e-6)
    assert policy.reward - beta * policy.kl * m == pytest.approx(-found.fun, abs=1e-9)


@pytest.mark.parametrize(("method", "m"), [("grpo", 2), ("best_of_set", 2), ("vpo", 3)])
def test_what_k_answers_are_worth_agrees_with_enumeration(method, m):
    answers, weights = small(4, seed=5), WEIGHTS[:6]
    policy = Optimum(method, answers, m, WEIGHTS).policy(0.1)
    size = policy.members.shape[1]
    found = policy.worth([2 * size], weights)[2 * size]
    wanted = dict.fromkeys(found, 0.0)
    for one, two in itertools.product(range(len(policy.shares)), repeat=2):
        share = policy.shares[one] * policy.shares[two] / len(weights)
        numbers = [*policy.members[one], *policy.members[two]]
        for w in weights:
            pick = max(numbers, key=lambda i: w @ answers.proxy[i])
            wanted["proxy"] += share * (w @ answers.proxy[pick])
            wanted["truth"] += share * (w @ answers.truth[pick])
            wanted["hacked"] += share * answers.hacked[pick]
            wanted["best"] += share * max(w @ answers.truth[i] for i in numbers)
    assert found == pytest.approx(wanted, abs=1e-9)
    with pytest.raises(LabError, match="multiple"):
        Optimum("vpo", answers, 2, WEIGHTS).policy(0.1).worth([3], weights)


def test_merging_changes_nothing_that_is_measured():
    world, weights = World(-0.9, "shared"), dirichlet_weights(16, 4)
    whole = whole_of(world)
    merged = merge(whole)
    assert len(merged.start) < len(whole.start) and merged.start.sum() == pytest.approx(1)
    for method in METHODS:
        one, two = (Optimum(method, answers, 2, weights).policy(0.03) for answers in (whole, merged))
        assert (one.kl, one.reward, one.hacked) == pytest.approx((two.kl, two.reward, two.hacked), abs=1e-9)
        assert one.worth([2], weights)[2] == pytest.approx(two.worth([2], weights)[2], abs=1e-9)


def test_a_pair_s_reward_is_the_closed_form_integral():
    """E[max(a.w, b.w)] = mean(a) + (1/D) [c_1 .. c_D] t_+^D, a divided difference of c = b - a (w uniform)."""
    rng = np.random.default_rng(0)
    optimum = Optimum("vpo", Answers(np.full(12, 1 / 12), rng.random((12, 4)), rng.random((12, 4)), np.zeros(12) > 0))
    for (i, j), reward in zip(optimum.members, optimum.rewards, strict=True):
        a, b = optimum.answers.proxy[i], optimum.answers.proxy[j]
        c = b - a
        exact = a.mean()
        if i != j:
            exact += sum(max(c[d], 0) ** 4 / np.prod(np.delete(c[d] - c, d)) for d in range(4)) / 4
        assert reward == pytest.approx(exact, abs=5e-4)  # 1,024 weights in the place of all
    assert len(of_world(World(0.0)).start) == 144


def test_the_price_runs_from_the_start_to_the_best_set():
    answers = of_world(World(0.0))
    for method in METHODS:
        optimum = Optimum(method, answers, weights=dirichlet_weights(64, 4))
        policies = [optimum.policy(beta) for beta in (100.0, 0.1, 0.01, 0.001, 1e-5)]
        kls, rewards = [p.kl for p in policies], [p.reward for p in policies]
        assert kls == sorted(kls) and rewards == sorted(rewards)
        assert kls[0] < 1e-4 and rewards[-1] == pytest.approx(optimum.rewards.max(), abs=1e-4)
        assert policies[0].answer_shares == pytest.approx(answers.start, abs=1e-3)


def test_one_taste_makes_the_vector_useless_and_opposed_tastes_make_it_pay():
    weights = dirichlet_weights(64, 4)

    def at_2(rho, method):
        return Optimum(method, of_world(World(rho)), weights=weights).policy(0.01).worth([2], weights)[2]["proxy"]

    assert at_2(1.0, "vpo") == pytest.approx(at_2(1.0, "best_of_set"), abs=1e-9)
    assert at_2(-0.9, "vpo") > max(at_2(-0.9, "best_of_set"), at_2(-0.9, "grpo")) + 0.04


def test_a_price_per_choice_settles_at_the_optimum_only_for_sums():
    world = World(0.0)
    answers, couplings = whole_of(world), world.couplings()
    ways = (3, 2, 2, 2, 2, 2, 1, 2)
    for beta in (0.1, 0.01):
        exact, found = Optimum("grpo", answers).policy(beta), settled("grpo", answers, ways, beta)
        assert found.shares == pytest.approx(exact.shares, abs=1e-9)
    weights = dirichlet_weights(32, 4)
    exact = Optimum("best_of_set", answers, weights=weights).policy(0.03)
    found = settled("best_of_set", answers, ways, 0.03, weights=weights, couplings=couplings)
    assert found.start.sum() == pytest.approx(1)
    free = settled("best_of_set", answers, ways, 1e6, couplings=couplings)  # a price that nobody pays
    assert free.shares == pytest.approx(free.start, rel=1e-4)
    assert found.shares.sum() == pytest.approx(1)
    objective = [p.reward - 0.03 * 2 * p.kl for p in (exact, found)]
    assert objective[1] < objective[0] - 1e-3 and found.kl > exact.kl
    with pytest.raises(LabError, match="product"):
        settled("grpo", answers, (3, 2), 0.1)


def test_divided_by_their_spread_rewards_make_a_small_price_no_price():
    optimum = Optimum("grpo", of_world(World(0.0)))
    beta = optimum.scaled(1.0)
    policy = optimum.policy(beta)
    spread = math.sqrt(policy.shares @ (policy.rewards - policy.reward) ** 2)
    assert beta == pytest.approx(spread, rel=1e-6)
    assert optimum.scaled(0.2) == 0.0


def test_what_has_no_optimum_here_is_refused():
    with pytest.raises(LabError, match="gdpo"):
        Optimum("gdpo", small())
    with pytest.raises(LabError, match="beta"):
        Optimum("grpo", small()).policy(0.0)
    with pytest.raises(LabError, match="sets of 3"):
        Optimum("vpo", of_world(World(0.0, "own")), 3)
    with pytest.raises(LabError, match="coupled"):
        Optimum("vpo", small(coupled=True), 3)
    with pytest.raises(LabError, match="symmetric"):
        Answers(np.full(2, 0.5), np.ones((2, 1)), np.ones((2, 1)), np.zeros(2) > 1, np.eye(2))
    with pytest.raises(LabError, match="sums to"):
        Answers(np.ones(2), np.ones((2, 1)), np.ones((2, 1)), np.zeros(2) > 1)
