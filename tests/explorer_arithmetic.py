"""The arithmetic of explorer.js against vpo_lab.weights: asked of node in unit/, of Chromium in browser/."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import linprog

from vpo_lab.weights import scalarize, set_reward, winners

COMPUTE = """(lab, cases) => cases.map((one) => {
    const weights = lab.restrict(one.weights, one.asked), { rewards } = one;
    return {
        weights, scores: lab.scalarize(rewards, weights), won: lab.largest(lab.scalarize(rewards, weights)),
        worth: lab.setReward(rewards, one.weightings.map((w) => lab.restrict(w, one.asked))),
        after: lab.rebalance(weights, one.moved, one.value, one.held),
        regions: lab.winRegions(lab.cornerUtilities(rewards, weights, one.dims)),
        above: lab.furthestAbove(rewards[0], rewards.slice(1), one.asked),
    };
})"""
DRAW = """(lab, {n, d, alpha}) => {
    const random = lab.generator(7);
    return [...Array(n)].map(() => lab.dirichlet(d, alpha, random));
}"""


def cases(n: int, rng: np.random.Generator):
    """Random rewards and weights, half of them coarse with copies, so that many tie; some objectives are not asked."""
    for i in range(n):
        d, m = int(rng.integers(3, 7)), int(rng.integers(1, 9))
        rewards_MD, weights_D = rng.random((m, d)), rng.dirichlet(np.full(d, rng.choice([0.1, 1, 10])))
        if i % 2:
            rewards_MD = np.round(rewards_MD * 3) / 3
            rewards_MD[rng.integers(m)] = rewards_MD[(rewards_MD @ weights_D).argmax()]
        if i % 4 == 3:
            weights_D = rng.multinomial(10, np.full(d, 1 / d)) / 10
        if d > 3 and i % 3 == 0:
            rewards_MD[:, rng.integers(d)] = np.nan
        asked = np.flatnonzero(~np.isnan(rewards_MD[0]))
        yield {
            "rewards": np.where(np.isnan(rewards_MD), None, rewards_MD).tolist(),
            "weights": weights_D.tolist(),
            "asked": asked.tolist(),
            "weightings": rng.dirichlet(np.ones(d), size=64).tolist(),
            "moved": int(rng.choice(asked)),
            "value": float(rng.uniform(-0.2, 1.2)),
            "held": [j for j in range(d) if j not in asked or rng.random() < 0.3],
            "dims": rng.choice(asked, 3, replace=False).tolist(),
        }


def check_arithmetic(ask: Callable[[str, Any], Any]) -> None:
    """Compare; `ask(function, argument)` calls a function of the module and an argument, all as text and JSON."""
    rng = np.random.default_rng(20260522)
    everything = list(cases(400, rng))
    ties = shared = above = 0
    for case, got in zip(everything, ask(COMPUTE, everything), strict=True):
        rewards_MD, weights_D = np.array(case["rewards"], float), np.array(case["weights"])
        won = winners(rewards_MD, weights_D[None])[0]
        assert np.allclose(got["scores"], scalarize(rewards_MD, weights_D[None])[0], atol=1e-12, rtol=0)
        assert got["won"] == won.tolist()
        assert abs(got["worth"] - set_reward(rewards_MD, np.array(case["weightings"]))) < 1e-12
        _check_moved(case, np.array(got["weights"]), np.array(got["after"]))
        _check_regions(case["dims"], rewards_MD, np.array(got["weights"]), got["regions"], rng)
        above += _check_above(rewards_MD, case["asked"], got["above"])
        ties += won.sum() > 1
        shared += len(got["regions"]) > 1
    assert ties > 50 and shared > 50 and 50 < above < 350, "the cases exercise too little"
    _check_draws(ask)


def _check_above(rewards_MD: np.ndarray, asked: list[int], got: dict) -> bool:
    """The weights under which the first answer is furthest above the others are those of a linear program."""
    if len(rewards_MD) == 1:
        assert not got["weights"]
        return False
    gains = (rewards_MD[:1] - rewards_MD[1:])[:, asked]
    n = len(asked)
    found = linprog(
        np.r_[np.zeros(n), -1.0],
        A_ub=np.c_[-gains, np.ones(len(gains))],
        b_ub=np.zeros(len(gains)),
        A_eq=[[*np.ones(n), 0.0]],
        b_eq=[1.0],
        bounds=[(0, None)] * n + [(None, None)],
    )
    weights_D = np.array(got["weights"])
    assert abs(weights_D[asked].sum() - 1) < 1e-9 and (weights_D >= 0).all() and weights_D.sum() < 1 + 1e-9
    assert abs(got["gap"] - -found.fun) < 1e-7 and abs(got["gap"] - (gains @ weights_D[asked]).min()) < 1e-9
    return got["gap"] > 1e-9


def _check_moved(case: dict, before_D: np.ndarray, after_D: np.ndarray) -> None:
    """The weights sum to 1, those held stay, the others keep their proportions."""
    moved, held = case["moved"], [d for d in case["held"] if d != case["moved"]]
    free = [d for d in range(len(before_D)) if d != moved and d not in held]
    assert abs(after_D.sum() - 1) < 1e-12 and (after_D >= 0).all()
    assert np.array_equal(after_D[held], before_D[held])
    room = 1 - before_D[held].sum()
    assert abs(after_D[moved] - (np.clip(case["value"], 0, room) if free else room)) < 1e-12
    if free and before_D[free].sum() > 1e-9:
        shares = before_D[free] / before_D[free].sum()
        assert np.allclose(after_D[free], shares * after_D[free].sum(), atol=1e-12, rtol=0)
    elif free:
        assert np.allclose(after_D[free], after_D[free].mean(), atol=1e-12, rtol=0)


def _check_regions(dims: list[int], rewards_MD: np.ndarray, weights_D: np.ndarray, regions: list[dict], rng) -> None:
    """The regions fill the triangle; inside each its answers win; its share is that of random points."""

    def winners_at(points_n3: np.ndarray) -> np.ndarray:
        weights_nD = np.tile(weights_D, (len(points_n3), 1))
        weights_nD[:, dims] = weights_D[dims].sum() * points_n3
        return winners(rewards_MD, weights_nD)

    assert abs(sum(region["share"] for region in regions) - 1) < 1e-9
    groups, counts = np.unique(winners_at(rng.dirichlet(np.ones(3), size=2000)), axis=0, return_counts=True)
    counted = {tuple(np.flatnonzero(group).tolist()): count / 2000 for group, count in zip(groups, counts, strict=True)}
    for region in regions:
        polygon, members = np.array(region["polygon"]), tuple(region["members"])
        inside = rng.dirichlet(np.ones(len(polygon)), size=20) @ polygon
        assert winners_at(inside)[:, members].all()
        assert region["share"] < 0.01 or abs(region["share"] - counted.get(members, 0)) < 0.06


def _check_draws(ask: Callable[[str, Any], Any]) -> None:
    """Mean and variance are Dirichlet's; a tiny alpha ends in corners."""
    n, d = 20_000, 4
    for alpha in (0.1, 0.5, 1.0, 4.0):
        draws = np.array(ask(DRAW, {"n": n, "d": d, "alpha": alpha}))
        variance = (1 / d) * (1 - 1 / d) / (d * alpha + 1)
        assert np.allclose(draws.sum(axis=1), 1) and (draws >= 0).all()
        assert np.allclose(draws.mean(axis=0), 1 / d, atol=5 * np.sqrt(variance / n))
        assert np.allclose(draws.var(axis=0), variance, rtol=0.08)
    corners = np.array(ask(DRAW, {"n": 200, "d": 3, "alpha": 1e-4}))
    assert np.allclose(corners.sum(axis=1), 1) and set(corners.argmax(axis=1)) == {0, 1, 2}
