"""methods.py: every method against a loop written from its definition, and its invariances."""

import math
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpo_lab.errors import LabError
from vpo_lab.methods import METHODS, Batch, get_method, group_normalize, max_at_k_credit, pairwise_l1
from vpo_lab.weights import dirichlet_weights

GROUPS, G, M, D = 5, 6, 3, 4  # G is above the search_k of vpo_search
quick = settings(deadline=None, max_examples=30)


def batch(seed=0, groups=GROUPS, m=M, d=D):
    return np.random.default_rng(seed).random((groups * G, m, d))


def goals(rewards_BMD):
    """Weightings that prompts could have stated."""
    return np.random.default_rng(3).dirichlet(np.ones(rewards_BMD.shape[2]), size=len(rewards_BMD) // G)


def advantages(name, rewards_BMD, seed=7, truncated=None, **options):
    stated = goals(rewards_BMD) if name == "goal_conditioned" else None
    method = METHODS[name].with_options(**options)
    return method.advantages(rewards_BMD, G, np.random.default_rng(seed), truncated, stated)


def normalized(scores_B):
    return group_normalize(np.reshape(scores_B, (-1, G))).ravel()


# --- Loops that share no code with the package, except the draws of the weights ----------------


def z_scores(scores):
    """One group: (score - mean) / (population std + 1e-6), zeros if the std is below 1e-6."""
    mean = sum(scores) / len(scores)
    std = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
    return [0.0 if std < 1e-6 else (score - mean) / (std + 1e-6) for score in scores]


def groups_of(rewards_BMD):
    return [rewards_BMD[start : start + G].tolist() for start in range(0, len(rewards_BMD), G)]


def dot(w, r):
    return sum(wd * rd for wd, rd in zip(w, r, strict=True))


def loop_vpo(
    rewards_BMD,
    rng,
    weight_draws=128,
    alpha=1.0,
    diversity=0.0,
    search_k=1,
    credit="answer",
):
    rollouts, m, d = rewards_BMD.shape
    blocks = rollouts // G
    weights = dirichlet_weights(blocks * weight_draws, d, alpha=alpha, seed=rng)
    weights = weights.reshape(blocks, weight_draws, d).tolist()
    groups = []  # [group][rollout]: (what the first n answers earn for n = 0..m, the best of k others)
    for number, group in enumerate(groups_of(rewards_BMD)):
        values = []  # [rollout][n][draw]
        for g, answers in enumerate(group):
            own = weights[number]
            values.append([[0.0] * weight_draws])
            for n in range(1, m + 1):
                bonus = diversity * mean_distance(answers[:n])
                values[g].append([max(dot(w, r) for r in answers[:n]) + bonus for w in own])
        groups.append([])
        for g, own in enumerate(values):
            others = [row[m] for row in values[:g] + values[g + 1 :]]
            prefixes = [mean_best(own[n], others, search_k - 1) for n in range(m + 1)]
            groups[-1].append((prefixes, mean_best(None, others, min(search_k, G - 1))))
    if credit == "answer":
        return loop_answers(groups)
    return [z for group in groups for z in z_scores([prefixes[m] for prefixes, _ in group])]


def mean_best(own, others, k):
    """Own value and those of k others, the best of them under every weighting: the mean over all k others."""
    bests = []
    for subset in combinations(others, k):
        bests += [max(column) for column in zip(*subset, *([] if own is None else [own]), strict=True)]
    return sum(bests) / len(bests)


def loop_answers(groups):
    """Rewards less a guess from an intercept, the prefix and the others, fitted to the other groups.

    Ridge regression is least squares with rows of its own, one for every coefficient.
    """
    m, result = len(groups[0][0][0]) - 1, []
    for p, group in enumerate(groups):
        elsewhere = [rollout for q, other in enumerate(groups) if q != p for rollout in other]
        for prefixes, best in group:
            result.append([])
            for n in range(m):
                rows = [[1.0, x[n], others] for x, others in elsewhere] + (np.eye(3) * 0.1**0.5).tolist()
                goal = [x[m] - others for x, others in elsewhere] + [0.0] * 3
                a, b, c = np.linalg.lstsq(np.array(rows), np.array(goal), rcond=None)[0]
                result[-1].append(prefixes[m] - best - (a + b * prefixes[n] + c * best))
    scale = (sum(x * x for row in result for x in row) / (len(result) * m)) ** 0.5
    return [[x / scale if scale > 1e-6 else 0.0 for x in row] for row in result]


def mean_distance(answers):
    pairs = [sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a) for a, b in combinations(answers, 2)]
    return sum(pairs) / len(pairs) if pairs else 0.0


def loop_grpo(rewards_BMD, rng):
    result = []
    for group in groups_of(rewards_BMD):
        result += z_scores([sum(sum(r) / len(r) for r in answers) / len(answers) for answers in group])
    return result


def loop_multi_rlvr(rewards_BMD, rng):
    result = []
    for group in groups_of(rewards_BMD):
        result += z_scores([sum(sum(r) / len(r) for r in answers) for answers in group])
    return result


def loop_random_weights(rewards_BMD, rng):
    d, result = rewards_BMD.shape[2], []
    weights = rng.dirichlet([1.0] * d, size=len(rewards_BMD) // G).tolist()
    for w, group in zip(weights, groups_of(rewards_BMD), strict=True):
        result += z_scores([sum(dot(w, r) for r in answers) / len(answers) for answers in group])
    return result


def loop_gdpo(rewards_BMD, rng):
    total = []
    for group in groups_of(rewards_BMD):
        columns = [
            z_scores([sum(r[d] for r in answers) / len(answers) for answers in group])
            for d in range(rewards_BMD.shape[2])
        ]
        total += [sum(column[g] for column in columns) for g in range(G)]
    mean = sum(total) / len(total)
    std = (sum((t - mean) ** 2 for t in total) / len(total)) ** 0.5
    return [t / (std + 1e-6) if std > 1e-6 else 0.0 for t in total]


def loop_maxrl(rewards_BMD, rng):
    result = []
    for group in groups_of(rewards_BMD):
        scores = [sum(sum(r) / len(r) for r in answers) / len(answers) for answers in group]
        mean = sum(scores) / G
        result += [(score - mean) / (mean + 1e-6) for score in scores]
    return result


def loop_max_at_k(rewards_BMD, rng, at_k=3):
    """s_i: over all k-subsets that hold i, the sum of their best, divided by the number of all k-subsets."""
    result = []
    for group in groups_of(rewards_BMD):
        scores = [sum(sum(r) / len(r) for r in answers) / len(answers) for answers in group]
        pools = list(combinations(range(G), at_k))
        credit = [sum(max(scores[j] for j in pool) for pool in pools if i in pool) / len(pools) for i in range(G)]
        # G/k times as large, which is nothing but for the epsilon.
        result += z_scores([G / at_k * s for s in credit])
    return result


def loop_goal_conditioned(rewards_BMD, rng):
    result = []
    for w, group in zip(goals(rewards_BMD).tolist(), groups_of(rewards_BMD), strict=True):
        result += z_scores([sum(dot(w, r) for r in answers) / len(answers) for answers in group])
    return result


PER_ANSWER = ("vpo_credit", "vpo_search", "best_of_set_credit")
RANDOM = ("vpo", "vpo_credit", "vpo_search", "random_weights")
LOOPS = {
    "vpo": partial(loop_vpo, credit="set"),
    "vpo_credit": loop_vpo,
    "vpo_search": partial(loop_vpo, search_k=4),
    "best_of_set": partial(loop_vpo, credit="set", alpha=math.inf, weight_draws=1),
    "best_of_set_credit": partial(loop_vpo, alpha=math.inf, weight_draws=1),
    "maxrl": loop_maxrl,
    "max_at_k": loop_max_at_k,
    "goal_conditioned": loop_goal_conditioned,
    "grpo": loop_grpo,
    "multi_rlvr": loop_multi_rlvr,
    "random_weights": loop_random_weights,
    "gdpo": loop_gdpo,
}


def test_every_method_of_ours_has_a_loop_to_be_compared_with():
    assert set(LOOPS) <= set(METHODS)
    assert all(name == method.name for name, method in METHODS.items())


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("groups, m, d", [(5, 3, 4), (1, 1, 1), (3, 1, 4), (2, 5, 2), (2, 2, 1)])
def test_method_equals_its_loop(name, groups, m, d):
    rewards_BMD = batch(1, groups, m, d)
    rewards_BMD[:G] = rewards_BMD[0]  # one group without signal
    expected = LOOPS[name](rewards_BMD, np.random.default_rng(7))
    result = advantages(name, rewards_BMD)
    assert result.shape == (groups * G,) + (m,) * (name in PER_ANSWER) and result.dtype == np.float64
    assert result == pytest.approx(np.array(expected), abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"weight_draws": 1},
        {"weight_draws": 100},
        {"alpha": 0.3},
        {"alpha": math.inf},
        {"diversity": 0.5},
        *({"search_k": k, "weight_draws": 8} for k in range(2, G + 1)),
        {"search_k": 3, "weight_draws": 4, "diversity": 0.3},
    ],
    ids=str,
)
def test_options_equal_the_loop(options):
    rewards_BMD = batch(2, groups=3)
    rewards_BMD[1, 2] = rewards_BMD[1, 0]  # the same answer twice
    expected = np.array(loop_vpo(rewards_BMD, np.random.default_rng(7), **options))
    assert advantages("vpo_credit", rewards_BMD, **options) == pytest.approx(expected, abs=1e-9)
    if {"diversity", "search_k"}.isdisjoint(options):
        expected = loop_vpo(rewards_BMD, np.random.default_rng(7), credit="set", **options)
        assert advantages("vpo", rewards_BMD, **options) == pytest.approx(expected, abs=1e-9)


def test_groups_beyond_the_cap_share_blocks_of_draws():
    rewards_BMD = np.tile(batch(groups=1), (3, 1, 1))
    one, two, three = advantages("vpo", rewards_BMD, weight_draws=1024).reshape(3, G)  # two blocks
    assert np.array_equal(one, three) and not np.array_equal(one, two)


@pytest.mark.parametrize("k", range(1, G + 1))
def test_max_at_k_equals_the_enumeration_of_all_subsets(k):
    rewards_BMD = batch(4, m=1)
    rewards_BMD[G] = rewards_BMD[G + 1]  # a tie
    found = advantages("max_at_k", rewards_BMD, at_k=k)
    assert found == pytest.approx(loop_max_at_k(rewards_BMD, None, at_k=k), abs=1e-9)
    if k == 1:
        assert found == pytest.approx(advantages("grpo", rewards_BMD))
    assert found.any() == (k < G)  # all of a group are in its only subset of G


def test_max_at_k_credit_is_the_formula_of_pkpo():
    """s_i = [C(i-1, k-1) g_i + sum_{j>i} C(j-2, k-2) g_j] / C(n, k), ascending, times n/k."""
    g = np.sort(np.random.default_rng(0).random(G))
    for k in range(2, G + 1):
        credit = [
            math.comb(i - 1, k - 1) * g[i - 1] + sum(math.comb(j - 2, k - 2) * g[j - 1] for j in range(i + 1, G + 1))
            for i in range(1, G + 1)
        ]
        expected = np.array(credit) / math.comb(G, k) * G / k
        assert max_at_k_credit(g[None, :, None, None], k)[0, :, 0, 0] == pytest.approx(expected)


# --- No signal --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(PER_ANSWER)))
def test_a_group_without_variance_gets_exactly_zero(name):
    rewards_BMD = batch()
    rewards_BMD[G : 2 * G] = rewards_BMD[G]  # the same vectors in every rollout
    result = advantages(name, rewards_BMD)
    assert (result[G : 2 * G] == 0).all() and (result[:G] != 0).any()
    assert (advantages(name, np.full((2 * G, M, D), 0.1)) == 0).all()


def test_rewards_that_are_not_scaled_keep_their_size_and_lose_their_mean():
    rewards_BMD = batch()
    scalar_PG = rewards_BMD.mean(axis=(1, 2)).reshape(-1, G)
    plain = advantages("grpo", rewards_BMD, scale_rewards=False)
    assert plain == pytest.approx((scalar_PG - scalar_PG.mean(axis=1, keepdims=True)).ravel())
    for name in ("vpo", "best_of_set"):
        plain_PG = advantages(name, rewards_BMD, scale_rewards=False).reshape(-1, G)
        scaled_PG = advantages(name, rewards_BMD).reshape(-1, G)
        assert scaled_PG * plain_PG.std(axis=1, keepdims=True) == pytest.approx(plain_PG, abs=1e-4)
        assert 0.1 * plain_PG.ravel() == pytest.approx(advantages(name, 0.1 * rewards_BMD, scale_rewards=False))


def test_group_normalize_of_rounding_noise_is_zero():
    assert (group_normalize(np.array([[0.3, 0.1 + 0.2, 0.3, 0.3]])) == 0).all()
    assert group_normalize(np.array([[0.0, 1.0]]))[0] == pytest.approx([-1, 1], abs=1e-5)
    assert (group_normalize(np.array([[0.2], [0.9]])) == 0).all()


# --- Invariances ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"maxrl", *PER_ANSWER}))  # these look at more than a group
def test_a_constant_added_to_a_group_changes_nothing(name):
    rewards_BMD = batch()
    shifts_B = np.repeat(np.arange(GROUPS), G) / 3
    shifted = advantages(name, rewards_BMD + shifts_B[:, None, None])
    assert shifted == pytest.approx(advantages(name, rewards_BMD), abs=1e-9)


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(PER_ANSWER)))
def test_the_scale_of_a_group_changes_nothing_but_the_epsilon(name):
    rewards_BMD = batch()
    scales_B = np.repeat([1.0, 2.0, 0.5, 10.0, 3.0], G)
    scaled = advantages(name, rewards_BMD * scales_B[:, None, None])
    assert scaled == pytest.approx(advantages(name, rewards_BMD), abs=1e-3)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"random_weights", "goal_conditioned"}))
def test_groups_do_not_depend_on_their_order(name):
    rewards_BMD = batch()
    order = np.arange(GROUPS * G).reshape(GROUPS, G)[[3, 1, 4, 0, 2]].ravel()
    # VPO draws fresh weights by position, so it agrees up to the noise of the draws.
    options, tolerance = ({"weight_draws": 400}, 0.1) if name in RANDOM else ({}, 1e-9)
    moved = advantages(name, rewards_BMD[order], **options)
    assert moved == pytest.approx(advantages(name, rewards_BMD, **options)[order], abs=tolerance)


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(PER_ANSWER)))
@quick
@given(seed=st.integers(0, 2**32 - 1))
def test_rollouts_and_answers_do_not_depend_on_their_order(name, seed):
    rng = np.random.default_rng(seed)
    rewards_BMD = batch(seed)
    order = np.concatenate([start + rng.permutation(G) for start in range(0, GROUPS * G, G)])
    expected = advantages(name, rewards_BMD)[order]
    shuffled = rewards_BMD[order][:, rng.permutation(M)]
    assert advantages(name, shuffled) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(PER_ANSWER)))
@quick
@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 3))
def test_advantages_are_finite_and_centered_in_their_group(name, seed, levels):
    rewards_BMD = np.random.default_rng(seed).integers(0, levels, size=(GROUPS * G, M, D)) / levels
    result = advantages(name, rewards_BMD)
    assert np.isfinite(result).all()
    assert result.reshape(GROUPS, G).sum(axis=1) == pytest.approx(np.zeros(GROUPS), abs=1e-8)


@quick
@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 3), search_k=st.integers(1, G))
def test_credit_per_answer_is_finite_and_of_one_scale(seed, levels, search_k):
    rewards_BMD = np.random.default_rng(seed).integers(0, levels, size=(GROUPS * G, M, D)) / levels
    result = advantages("vpo_search", rewards_BMD, weight_draws=4, search_k=search_k)
    assert result.shape == (GROUPS * G, M) and np.isfinite(result).all()
    assert not result.any() or np.sqrt((result**2).mean()) == pytest.approx(1)


def test_penalties_are_rewards_too():
    rewards_BMD = batch()
    expected = advantages("vpo", rewards_BMD)
    assert advantages("vpo", rewards_BMD - 2) == pytest.approx(expected, abs=1e-9)


# --- VPO --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 8, 128])
def test_equal_rollouts_of_a_group_get_the_identical_advantage(k):
    rewards_BMD = batch()
    rewards_BMD[1] = rewards_BMD[0]
    rewards_BMD[G] = rewards_BMD[0]
    rewards_BMD[G + 1] = rewards_BMD[0][::-1]  # the same set in another order
    result = advantages("vpo", rewards_BMD, weight_draws=k)
    assert result[0] == result[1]
    assert result[G] == pytest.approx(result[G + 1], abs=1e-12)


def test_each_group_has_its_own_draws():
    rewards_BMD = np.tile(batch(groups=1), (2, 1, 1))
    result = advantages("vpo", rewards_BMD, weight_draws=2).reshape(2, G)
    assert not np.allclose(result[0], result[1])


def test_vpo_of_one_answer_is_grpo_when_draws_abound():
    rewards_BMD = batch(groups=8, m=1)
    exact = advantages("grpo", rewards_BMD)
    errors = {k: np.abs(advantages("vpo", rewards_BMD, weight_draws=k) - exact).max() for k in (16, 4096)}
    assert errors[4096] < 0.03 and errors[4096] < errors[16] / 4


def test_limits_of_alpha():
    rewards_BMD = batch()
    corners = normalized(rewards_BMD.max(axis=1).mean(axis=1))  # every objective in its turn
    best_mean = normalized(rewards_BMD.mean(axis=2).max(axis=1))
    assert advantages("vpo", rewards_BMD, alpha=1e-3, weight_draws=4096) == pytest.approx(corners, abs=0.05)
    assert advantages("vpo", rewards_BMD, alpha=1e6, weight_draws=4096) == pytest.approx(best_mean, abs=0.01)
    for draws in (1, 16):
        center = advantages("vpo", rewards_BMD, alpha=math.inf, weight_draws=draws)
        assert center == pytest.approx(best_mean, abs=1e-12)
    assert advantages("best_of_set", rewards_BMD) == pytest.approx(best_mean, abs=1e-12)
    assert np.abs(corners - best_mean).max() > 0.3


def test_one_objective_and_one_answer_are_grpo():
    rewards_BMD = batch(m=1, d=1)
    exact = advantages("grpo", rewards_BMD)
    for options in ({}, {"weight_draws": 1}):
        assert advantages("vpo", rewards_BMD, **options) == pytest.approx(exact, abs=1e-12)
    center = advantages("vpo", batch(m=1), alpha=math.inf)
    assert center == pytest.approx(advantages("grpo", batch(m=1)), abs=1e-12)


def test_a_repeated_candidate_lowers_the_bonus():
    two, three = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    bonus = {len(rows): pairwise_l1(Batch(np.array([rows]), 1))[0, 0, -1] for rows in (two, three)}
    assert bonus == {2: 1.0, 3: pytest.approx(2 / 3)}
    assert not pairwise_l1(Batch(np.full((1, 3, 2), 0.3), 1)).any()


@quick
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4))
def test_the_bonus_of_a_prefix_does_not_know_the_later_answers(seed, n):
    """Else it could not be a baseline."""
    rng = np.random.default_rng(seed)
    first, other = rng.integers(0, 3, size=(2, 1, 5, 2)) / 2
    other[:, :n] = first[:, :n]
    found = [pairwise_l1(Batch(rewards_BMD, 1))[0, 0] for rewards_BMD in (first, other)]
    assert np.array_equal(found[0][:n], found[1][:n])
    assert found[0] == pytest.approx([mean_distance(first[0, :j].tolist()) for j in range(1, 6)])


def test_the_bonus_pays_for_vectors_that_differ():
    apart, together = [[1, 0], [0, 1]], [[0.5, 0.5], [0.5, 0.5]]
    rewards_BMD = np.array([apart, together] * (G // 2), dtype=float)
    # Under the mean both sets are worth 1/2: only the bonus tells them apart.
    assert not advantages("best_of_set_credit", rewards_BMD).any()
    last_B = advantages("best_of_set_credit", rewards_BMD, diversity=0.1)[:, -1]
    assert (last_B > 0).tolist() == [True, False] * (G // 2)


def test_a_search_pays_for_what_the_other_rollouts_lack():
    common, rare = [[0.6, 0.0]] * M, [[0.0, 0.5]] * M  # alone, the rare one is worth less
    rewards_BMD = np.array(([common] * (G - 1) + [rare]) * 2)
    alone, search = (advantages("vpo_search", rewards_BMD, search_k=k).mean(axis=1)[G - 1] for k in (1, 3))
    assert alone < 0 < search


def test_vpo_pays_for_a_set_that_spans_the_trade_off():
    specialists, compromise = [[1, 0], [0, 1]], [[0.55, 0.55], [0.55, 0.55]]
    rewards_BMD = np.array([specialists, compromise, compromise] * 2, dtype=float)
    assert (advantages("vpo", rewards_BMD) > 0).tolist() == [True, False, False] * 2
    assert (advantages("grpo", rewards_BMD) > 0).tolist() == [False, True, True] * 2


# --- Determinism and errors -------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_generator_decides_everything_and_the_input_stays(name):
    rewards_BMD = batch()
    before = rewards_BMD.copy()
    first, again, other = (advantages(name, rewards_BMD, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(rewards_BMD, before)
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (name not in RANDOM)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "shape, group_size, hint",
    [
        ((8, 4), 4, r"expected \(B, M, D\)"),
        ((8,), 4, r"expected \(B, M, D\)"),
        ((0, 3, 4), 4, "none of them 0"),
        ((8, 0, 4), 4, "none of them 0"),
        ((8, 3, 0), 4, "none of them 0"),
        ((8, 3, 4), 3, "multiple of the group size"),
        ((8, 3, 4), 16, "multiple of the group size"),
        ((8, 3, 4), 0, "groups of 0"),
        ((8, 3, 4), -4, "groups of -4"),
    ],
)
def test_wrong_shapes_and_groups(name, shape, group_size, hint):
    with pytest.raises(LabError, match=hint):
        METHODS[name].advantages(np.ones(shape), group_size, np.random.default_rng(0))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_rewards_must_be_finite(name, bad):
    rewards_BMD = batch()
    rewards_BMD[3, 1, 2] = bad
    with pytest.raises(LabError, match="infinity"):
        advantages(name, rewards_BMD)


def test_integers_and_lists_are_rewards_too():
    rewards = [[[0, 0]], [[1, 1]]] * (G // 2)
    assert advantages("grpo", rewards) == pytest.approx([-1, 1] * (G // 2), abs=1e-4)


def test_with_options_returns_a_new_method():
    method = METHODS["vpo"].with_options(weight_draws=8).with_options(alpha=2.0, weight_draws=4)
    assert dict(method.options) == {"weight_draws": 4, "alpha": 2.0}
    assert METHODS["vpo"].options == () and method.name == "vpo" and method.multi_answer
    with pytest.raises(LabError, match="K = 0"):
        advantages("vpo", batch(), weight_draws=0)
    with pytest.raises(LabError, match="alpha"):
        advantages("vpo", batch(), alpha=-1.0)
    with pytest.raises(LabError, match="no option 'at_k'; it has: weight_draws, alpha"):
        METHODS["vpo"].with_options(at_k=2)


def test_searches_that_cannot_be():
    for name, option in (("vpo_search", "search_k"), ("max_at_k", "at_k")):
        for k in (G + 1, -1):
            with pytest.raises(LabError, match=option):
                advantages(name, batch(), **{option: k})


def test_goal_conditioned_needs_the_goals():
    with pytest.raises(LabError, match=r"goals_PD of shape \(P, D\)"):
        METHODS["goal_conditioned"].advantages(batch(), G, np.random.default_rng(0))


def test_get_method():
    assert get_method("vpo") is METHODS["vpo"]
    with pytest.raises(LabError, match=r"grpo, .*vpo"):
        get_method("ppo")


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(PER_ANSWER)))
def test_a_truncated_rollout_is_worth_nothing_whatever_its_answers_earned(name):
    rewards_BMD, truncated_B = batch(), np.arange(GROUPS * G) % 3 == 0
    zeroed_BMD = np.where(truncated_B[:, None, None], 0.0, rewards_BMD)
    np.testing.assert_array_equal(advantages(name, rewards_BMD, truncated=truncated_B), advantages(name, zeroed_BMD))


def test_the_first_answers_of_a_truncated_rollout_keep_what_they_earned():
    rewards_BMD, truncated_B = batch(), np.arange(GROUPS * G) == 0
    kept, zeroed = (
        advantages("vpo_credit", rewards_BMD, truncated=truncated_B),
        advantages("vpo_credit", np.where(truncated_B[:, None, None], 0.0, rewards_BMD)),
    )
    assert kept[0, -1] < zeroed[0, -1]  # the last answer lost what the first ones had


# --- Objectives that a group does not ask for ---------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"random_weights", "gdpo", *PER_ANSWER}))
@pytest.mark.parametrize("alpha", [1.0, math.inf])
def test_a_ragged_batch_gives_what_its_groups_give_one_by_one(name, alpha):
    """Two groups ask for other objectives. In each, the advantages are those of a batch that has no others."""
    draws, ragged_BMD = 2**13, batch(groups=2, m=1 if name == "goal_conditioned" else M)
    ragged_BMD[:G, :, 3] = np.nan
    ragged_BMD[G:, :, :2] = np.nan
    options = {"weight_draws": draws, "alpha": alpha} if name == "vpo" else {}
    method = METHODS[name].with_options(**options)
    stated = goals(ragged_BMD)

    def of(rewards_BMD, goals_PD):
        return method.advantages(rewards_BMD, G, np.random.default_rng(1), goals=goals_PD)

    both = of(ragged_BMD, stated)
    for part, columns in ((slice(0, G), [0, 1, 2]), (slice(G, 2 * G), [2, 3])):
        own = stated[part.start // G, columns]
        alone = of(ragged_BMD[part][:, :, columns], own[None] / own.sum())
        assert both[part] == pytest.approx(alone, abs=0.03 if options and alpha == 1.0 else 1e-9)


@pytest.mark.parametrize("name", PER_ANSWER)
def test_credit_per_answer_skips_what_was_not_asked(name):
    ragged_BMD = batch(groups=2)
    ragged_BMD[:, :, 3] = np.nan
    options = {} if name == "best_of_set_credit" else {"weight_draws": 2**13}
    alone_BM = advantages(name, ragged_BMD[:, :, :3], **options)
    assert advantages(name, ragged_BMD, **options) == pytest.approx(alone_BM, abs=0.03)


def test_gdpo_skips_what_was_not_asked():
    ragged_BMD = batch(groups=2)
    ragged_BMD[:G, :, 3] = np.nan
    filled_BMD = np.nan_to_num(ragged_BMD, nan=0.7)  # a constant has no z-score
    assert advantages("gdpo", ragged_BMD) == pytest.approx(advantages("gdpo", filled_BMD), abs=1e-9)


@quick
@given(seed=st.integers(0, 2**32 - 1))
def test_weights_lie_on_the_asked_objectives(seed):
    rewards_BMD, rng = batch(seed), np.random.default_rng(seed)
    asked_PD = rng.random((GROUPS, D)) < 0.6
    asked_PD[:, 0] |= ~asked_PD.any(axis=1)
    rewards_BMD[~np.repeat(asked_PD, G, axis=0)[:, None].repeat(M, axis=1)] = np.nan
    made = Batch(rewards_BMD, G)
    weights_PKD = made.draw_weights(32, 1.0, rng)
    assert np.array_equal(made.asked_PD, asked_PD)
    assert (weights_PKD[~asked_PD[:, None].repeat(32, axis=1)] == 0).all()
    assert weights_PKD.sum(axis=-1) == pytest.approx(np.ones((GROUPS, 32)))
