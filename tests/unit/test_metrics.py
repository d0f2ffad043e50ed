"""metrics.py against brute force, closed forms and simulation."""

import time
import warnings
from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpo_lab import metrics
from vpo_lab.errors import LabError

quick = settings(deadline=None, max_examples=60)
score_lists = st.lists(st.floats(-5, 5, allow_nan=False), min_size=1, max_size=9)


def brute_best(scores, k):
    return np.mean([max(subset) for subset in combinations(scores, k)])


def brute_chain_best(scores_CM, k):
    """Every choice of whole chains and, for a remainder, of one more chain that gives its prefix."""
    chains, m = scores_CM.shape
    whole, rest = divmod(k, m)
    values = []
    for chosen in combinations(range(chains), whole):
        taken = [scores_CM[c].max() for c in chosen]
        others = [c for c in range(chains) if c not in chosen] if rest else [None]
        for extra in others:
            values.append(max(taken + ([] if extra is None else [scores_CM[extra, :rest].max()])))
    return np.mean(values)


# --- best@k and pass@k ------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_best_at_k_is_the_mean_over_all_subsets(n):
    scores = np.random.default_rng(n).normal(size=n)
    for k in range(1, n + 1):
        value = metrics.best_at_k(scores, k)
        assert type(value) is float
        assert value == pytest.approx(brute_best(scores, k), abs=1e-12)


def test_best_at_k_known_values():
    assert metrics.best_at_k([0, 0, 1], 1) == pytest.approx(1 / 3)
    assert metrics.best_at_k([0, 0, 1], 2) == pytest.approx(2 / 3)
    # The maximum of k out of 1..n is k (n + 1) / (k + 1) on average.
    assert metrics.best_at_k(np.arange(1, 101), 9) == pytest.approx(9 * 101 / 10)


@pytest.mark.parametrize("k", [1, 2, 17, 500, 5000, 9999, 10_000])
def test_best_at_k_is_exact_and_finite_for_large_pools(k):
    n = 10_000
    assert metrics.best_at_k(np.arange(1, n + 1), k) == pytest.approx(k * (n + 1) / (k + 1), rel=1e-10)
    assert metrics.best_at_k(np.full(n, 0.7), k) == pytest.approx(0.7, rel=1e-10)


@quick
@given(score_lists)
def test_best_at_k_rises_with_k_from_the_mean_to_the_maximum(scores):
    values = [metrics.best_at_k(scores, k) for k in range(1, len(scores) + 1)]
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(values))
    assert values[0] == pytest.approx(np.mean(scores), abs=1e-12)
    assert values[-1] == max(scores)


@quick
@given(score_lists, st.randoms(use_true_random=False), st.data())
def test_best_at_k_does_not_depend_on_the_order(scores, random, data):
    k = data.draw(st.integers(1, len(scores)))
    shuffled = random.sample(scores, len(scores))
    assert metrics.best_at_k(shuffled, k) == metrics.best_at_k(scores, k)


@pytest.mark.parametrize("n, c", [(1, 0), (1, 1), (6, 2), (24, 1), (24, 24), (200, 7)])
def test_pass_at_k_is_the_closed_form(n, c):
    solved = np.random.default_rng(0).permutation(np.arange(n) < c)
    for k in range(1, n + 1):
        expected = 1 - comb(n - c, k) / comb(n, k)
        assert metrics.pass_at_k(solved, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_stable_for_a_rare_success_in_a_large_pool():
    solved = np.zeros(10_000, dtype=bool)
    solved[123] = True
    assert metrics.pass_at_k(solved, 3) == pytest.approx(3 / 10_000, rel=1e-12)
    assert metrics.pass_at_k(~solved, 1) == pytest.approx(1 - 1e-4, rel=1e-12)


def test_leading_axes_are_requests():
    scores = np.random.default_rng(0).random((3, 4, 6))
    batch = metrics.best_at_k(scores, 2)
    assert batch.shape == (3, 4)
    assert batch[1, 2] == pytest.approx(metrics.best_at_k(scores[1, 2], 2), abs=1e-15)
    assert metrics.pass_at_k(scores > 0.5, 2).shape == (3, 4)


@pytest.mark.parametrize("function", [metrics.best_at_k, metrics.pass_at_k])
@pytest.mark.parametrize(
    "scores, k, hint",
    [
        ([0, 1], 3, "k = 3"),
        ([0, 1], 0, "k = 0"),
        ([0, 1], -1, "k = -1"),
        ([0, 1], 1.5, "k = 1.5"),
        ([], 1, "shape"),
        (1.0, 1, "shape"),
        ([0, np.nan], 1, "NaN"),
        ([0, np.inf], 1, "NaN or infinity"),
        (["a"], 1, "not an array"),
        ([[1], [1, 0]], 1, "not an array"),
    ],
)
def test_wrong_pools_and_budgets_are_one_clear_line(function, scores, k, hint):
    with pytest.raises(LabError, match=hint) as error:
        function(scores, k)
    assert "\n" not in str(error.value)


def test_pass_at_k_wants_solved_not_scores():
    with pytest.raises(LabError, match="besides 0 and 1"):
        metrics.pass_at_k([0.5, 1.0], 1)


# --- Chains -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chains, m", [(1, 1), (1, 4), (2, 3), (4, 2), (5, 3), (6, 1), (3, 5)])
def test_chain_best_at_k_is_the_mean_over_all_choices(chains, m):
    rng = np.random.default_rng(chains * 10 + m)
    for scores_CM in (rng.normal(size=(chains, m)), rng.integers(0, 3, size=(chains, m)).astype(float)):
        for k in range(1, chains * m + 1):
            value = metrics.chain_best_at_k(scores_CM, k)
            assert type(value) is float
            assert value == pytest.approx(brute_chain_best(scores_CM, k), abs=1e-12), k


def test_chain_best_at_k_of_single_answers_is_best_at_k():
    scores = np.random.default_rng(0).random(24)
    for k in range(1, 25):
        assert metrics.chain_best_at_k(scores[:, None], k) == metrics.best_at_k(scores, k)


def test_chain_pass_at_k_is_the_same_function():
    # One of four chains holds the solution, as its second candidate of two.
    solved_CM = np.zeros((4, 2))
    solved_CM[2, 1] = 1
    values = [metrics.chain_best_at_k(solved_CM, k) for k in range(1, 9)]
    assert values == pytest.approx([0, 1 / 4, 1 / 4, 1 / 2, 1 / 2, 3 / 4, 3 / 4, 1])


@quick
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_chain_best_at_k_rises_to_the_maximum_whatever_the_order_of_chains(chains, m, seed):
    rng = np.random.default_rng(seed)
    scores_CM = rng.random((chains, m)).round(1)
    values = np.array([metrics.chain_best_at_k(scores_CM, k) for k in range(1, chains * m + 1)])
    assert (np.diff(values) >= -1e-12).all()
    assert values[-1] == pytest.approx(scores_CM.max(), abs=1e-15)
    shuffled = rng.permutation(scores_CM)
    again = [metrics.chain_best_at_k(shuffled, k) for k in range(1, chains * m + 1)]
    assert again == pytest.approx(values, abs=1e-12)


def test_chain_best_at_k_over_leading_axes():
    scores = np.random.default_rng(1).random((2, 3, 4, 3))
    for k in (2, 3, 7, 12):
        batch = metrics.chain_best_at_k(scores, k)
        assert batch.shape == (2, 3)
        assert batch[1, 2] == pytest.approx(metrics.chain_best_at_k(scores[1, 2], k), abs=1e-15)


def test_dependent_candidates_are_worth_less_than_independent_ones():
    scores_CM = np.repeat([[0.0], [1.0]], 3, axis=1)  # every chain says one thing three times
    assert metrics.chain_best_at_k(scores_CM, 3) == 0.5
    assert metrics.best_at_k(scores_CM.ravel(), 3) == pytest.approx(1 - 1 / 20)


@pytest.mark.parametrize("scores_CM, k", [(np.ones((2, 3)), 7), ([[1]], 0), (np.ones(3), 1), ([[np.nan]], 1)])
def test_chain_errors(scores_CM, k):
    with pytest.raises(LabError):
        metrics.chain_best_at_k(scores_CM, k)


# --- Expected utility -------------------------------------------------------------------------


def test_expected_utility_is_the_mean_of_the_best():
    rng = np.random.default_rng(0)
    rewards, weights = rng.random((5, 3)), rng.dirichlet(np.ones(3), size=40)
    expected = np.mean([max(float(r @ w) for r in rewards) for w in weights])
    assert metrics.expected_utility(rewards, weights) == pytest.approx(expected, abs=1e-12)
    assert metrics.expected_utility(np.stack([rewards, rewards]), weights).shape == (2,)


def test_chain_expected_utility_is_the_mean_over_weightings():
    rng = np.random.default_rng(0)
    rewards_CMD, weights_KD = rng.random((4, 3, 2)), rng.dirichlet(np.ones(2), size=16)
    for k in (1, 2, 3, 5, 12):
        expected = np.mean([metrics.chain_best_at_k(rewards_CMD @ w, k) for w in weights_KD])
        value = metrics.chain_expected_utility_at_k(rewards_CMD, weights_KD, k)
        assert value == pytest.approx(expected, abs=1e-12)
    pool = rewards_CMD.reshape(12, 2)
    assert value == pytest.approx(metrics.expected_utility(pool, weights_KD), abs=1e-12)


def test_chain_expected_utility_of_a_whole_evaluation_takes_under_a_second():
    rng = np.random.default_rng(0)
    rewards_NCMD, weights_KD = rng.random((200, 24, 3, 4)), rng.dirichlet(np.ones(4), size=128)
    start = time.process_time()
    values = metrics.chain_expected_utility_at_k(rewards_NCMD, weights_KD, 13)
    assert time.process_time() - start < 3  # three times the goal: the machine may be busy
    assert values.shape == (200,)
    one = metrics.chain_expected_utility_at_k(rewards_NCMD[7], weights_KD, 13)
    assert values[7] == pytest.approx(one, abs=1e-12)


def test_utility_errors():
    with pytest.raises(LabError, match="objectives"):
        metrics.expected_utility(np.ones((3, 2)), np.ones((4, 3)))
    with pytest.raises(LabError, match="weights of shape"):
        metrics.chain_expected_utility_at_k(np.ones((2, 3, 2)), np.ones((4, 3)), 1)
    with pytest.raises(LabError, match="NaN"):
        metrics.expected_utility(np.full((3, 2), np.nan), np.ones((4, 2)))


# --- Fronts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "points, reference, expected",
    [
        ([[1, 1]], [0, 0], 1.0),
        ([[1, 3], [2, 2], [3, 1]], [0, 0], 6.0),
        ([[1, 3], [2, 2], [3, 1]], [1, 1], 1.0),  # the outer two touch the reference's lines
        ([[2, 2], [2, 2], [1, 1]], [0, 0], 4.0),
        ([[-1, 5], [0, 1]], [0, 0], 0.0),
        ([[1, 1, 1]], [0, 0, 0], 1.0),
        ([[2, 1, 1], [1, 2, 1], [1, 1, 2]], [0, 0, 0], 4.0),
        ([[0.5]], [0], 0.5),
    ],
)
def test_hypervolume_of_known_fronts(points, reference, expected):
    assert metrics.hypervolume(points, reference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("d", [2, 3, 4])
def test_hypervolume_is_the_share_of_the_cube_that_is_dominated(d):
    rng = np.random.default_rng(d)
    points, darts = rng.random((6, d)), rng.random((200_000, d))
    share = np.any([(darts <= point).all(axis=1) for point in points], axis=0).mean()
    assert metrics.hypervolume(points, np.zeros(d)) == pytest.approx(share, abs=0.005)


def test_hypervolume_errors():
    with pytest.raises(LabError, match="reference"):
        metrics.hypervolume([[1, 1]], [0, 0, 0])
    with pytest.raises(LabError, match="shape"):
        metrics.hypervolume(np.ones((2, 2, 2)), [0, 0])
    with pytest.raises(LabError, match="shape"):
        metrics.hypervolume(np.ones((0, 2)), [0, 0])
    with pytest.raises(LabError, match="NaN"):
        metrics.hypervolume([[1, np.nan], [1, 1]], [0, 0])


def test_pareto_optimal_keeps_duplicates_and_concave_points():
    points = [[1, 0], [0, 1], [0.4, 0.4], [0.4, 0.4], [0.4, 0.3], [1, 0]]
    assert metrics.pareto_optimal(points).tolist() == [True, True, True, True, False, True]


@quick
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_pareto_optimal_is_the_definition(n, d, seed):
    points = np.random.default_rng(seed).integers(0, 4, size=(n, d)).astype(float)
    expected = [not any((q >= p).all() and (q > p).any() for q in points) for p in points]
    optimal = metrics.pareto_optimal(points)
    assert optimal.dtype == bool
    assert optimal.tolist() == expected


def test_pareto_errors():
    for points in ([1, 2], np.ones((2, 2, 2)), [[np.nan, 1], [1, 1]]):
        with pytest.raises(LabError):
            metrics.pareto_optimal(points)


# --- Diversity and collinearity ---------------------------------------------------------------


def test_reward_diversity_is_the_mean_distance_of_pairs():
    rewards = np.random.default_rng(0).random((2, 7, 3))
    expected = [np.mean([np.abs(a - b).sum() for a, b in combinations(pool, 2)]) for pool in rewards]
    assert metrics.reward_diversity(rewards) == pytest.approx(expected, abs=1e-12)
    assert metrics.reward_diversity([[0, 0], [1, 1]]) == 2.0


def test_reward_diversity_of_equal_or_single_vectors_is_exactly_zero():
    assert metrics.reward_diversity(np.full((6, 3), 0.1)) == 0.0
    assert metrics.reward_diversity([[0.3, 0.4]]) == 0.0


def test_distinct_share():
    assert metrics.distinct_share(["a", "b", "a", "a"]) == 0.5
    with pytest.raises(LabError):
        metrics.distinct_share([])


def test_collinearity_is_pearsons_correlation():
    rewards_nD = np.random.default_rng(0).random((50, 3)) @ np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1.0]])
    expected = np.corrcoef(rewards_nD.T)
    assert metrics.objective_collinearity(rewards_nD) == pytest.approx(expected, abs=1e-12)
    assert metrics.objective_collinearity(rewards_nD * 1e-200) == pytest.approx(expected, abs=1e-12)


def test_collinearity_with_a_constant_objective_is_silent():
    rewards_nD = np.column_stack([np.full(7, 0.1), np.arange(7.0), -np.arange(7.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = metrics.objective_collinearity(rewards_nD)
    assert np.isnan(matrix[0, 1:]).all() and np.isnan(matrix[1:, 0]).all()
    assert np.diag(matrix).tolist() == [1, 1, 1]
    assert matrix[1, 2] == pytest.approx(-1)
    with pytest.raises(LabError):
        metrics.objective_collinearity([[1, 2]])


# --- Objectives that were not asked -----------------------------------------------------------


@quick
@given(st.integers(0, 2**32 - 1))
def test_an_objective_that_was_not_asked_changes_no_metric(seed):
    """A column of NaN in the rewards of a request: all is as if the column did not exist."""
    rng = np.random.default_rng(seed)
    asked_CMD, weights_KD = rng.random((4, 3, 2)), rng.dirichlet(np.ones(2), size=16)
    ragged_CMD = np.insert(asked_CMD, 1, np.nan, axis=-1)
    wide_KD = np.insert(weights_KD, 1, 0.5, axis=-1)  # made to sum to 1 again on what is asked
    asked, ragged = asked_CMD.reshape(-1, 2), ragged_CMD.reshape(-1, 3)
    close = pytest.approx
    assert metrics.mean_reward(ragged) == close(metrics.mean_reward(asked))
    assert metrics.expected_utility(ragged, wide_KD) == close(metrics.expected_utility(asked, weights_KD))
    found = metrics.chain_expected_utility_at_k(ragged_CMD, wide_KD, 5)
    assert found == close(metrics.chain_expected_utility_at_k(asked_CMD, weights_KD, 5))
    assert metrics.hypervolume(ragged, np.zeros(3)) == close(metrics.hypervolume(asked, np.zeros(2)))
    assert metrics.pareto_optimal(ragged).tolist() == metrics.pareto_optimal(asked).tolist()
    assert metrics.reward_diversity(ragged) == close(metrics.reward_diversity(asked))
    correlation_DD = metrics.objective_collinearity(ragged)
    assert correlation_DD[0, 2] == close(metrics.objective_collinearity(asked)[0, 1])
    assert np.isnan(correlation_DD[0, 1])


def test_requests_may_ask_for_different_objectives():
    """(2 requests, C, M, D): each row of the answer is that of its own request."""
    rewards = np.random.default_rng(0).random((2, 4, 3, 3))
    rewards[0, :, :, 0] = np.nan
    weights_KD = np.random.default_rng(1).dirichlet(np.ones(3), size=16)
    both = metrics.chain_expected_utility_at_k(rewards, weights_KD, 6)
    assert both.tolist() == [metrics.chain_expected_utility_at_k(request, weights_KD, 6) for request in rewards]


# --- Intervals --------------------------------------------------------------------------------


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(400):
        _, low, high = metrics.bootstrap_interval(rng.normal(0.3, 1, size=50), resamples=400, seed=trial)
        hits += low <= 0.3 <= high
    assert 0.91 < hits / 400 < 0.98


def test_bootstrap_width_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(size=400)
    for level, z in ((0.95, 1.96), (0.8, 1.2816)):
        mean, low, high = metrics.bootstrap_interval(values, level=level, resamples=4000)
        half = z * values.std() / np.sqrt(400)
        assert mean == pytest.approx(values.mean(), abs=1e-12)
        assert [low, high] == pytest.approx([mean - half, mean + half], abs=0.1 * half)


def test_bootstrap_is_reproducible_and_narrow_on_constants():
    values = np.random.default_rng(0).random(30)
    assert metrics.bootstrap_interval(values, seed=1) == metrics.bootstrap_interval(values, seed=1)
    assert metrics.bootstrap_interval(values, seed=1) != metrics.bootstrap_interval(values, seed=2)
    assert metrics.bootstrap_interval([0.5]) == (0.5, 0.5, 0.5)


def test_bootstrap_shares_the_requests_among_seeds():
    values_SN = np.random.default_rng(0).random((3, 40))
    assert metrics.bootstrap_interval(values_SN) == metrics.bootstrap_interval(values_SN.mean(axis=0))
    # Seeds that mirror each other cancel on every request: nothing is left to be uncertain of.
    mirrored_SN = np.stack([values_SN[0], 1 - values_SN[0]])
    assert metrics.bootstrap_interval(mirrored_SN) == pytest.approx((0.5, 0.5, 0.5))


def test_paired_bootstrap_cancels_what_the_requests_share():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 5, size=80)
    a, b = difficulty + 0.2 + rng.normal(0, 0.1, size=80), difficulty + rng.normal(0, 0.1, size=80)
    mean, low, high = metrics.paired_bootstrap(a, b)
    assert mean == pytest.approx((a - b).mean())
    assert 0.1 < low < mean < high < 0.3
    _, alone_low, alone_high = metrics.bootstrap_interval(a)
    assert high - low < (alone_high - alone_low) / 10
    assert metrics.paired_bootstrap(np.stack([a, a]), b) == pytest.approx((mean, low, high))


def test_interval_errors():
    for values in ([], [np.nan], np.ones((2, 2, 2)), "text"):
        with pytest.raises(LabError):
            metrics.bootstrap_interval(values)
    for options in ({"level": 1.0}, {"level": 0}, {"level": 95}, {"resamples": 0}):
        with pytest.raises(LabError):
            metrics.bootstrap_interval([1, 2], **options)
    with pytest.raises(LabError, match="same ones"):
        metrics.paired_bootstrap([1, 2], [1, 2, 3])


def test_the_crossed_bootstrap_covers_seeds_and_requests():
    rng = np.random.default_rng(0)
    assert metrics.crossed_bootstrap(np.full((5, 20), 0.3)) == pytest.approx((0.3, 0.3, 0.3))
    seeds = rng.normal(size=(5, 1)) + np.zeros((1, 200))  # all the spread is between seeds
    mean, low, high = metrics.crossed_bootstrap(seeds)
    assert high - low == pytest.approx(2 * 1.96 * seeds[:, 0].std() / np.sqrt(5), rel=0.15)
    requests = np.zeros((5, 1)) + rng.normal(size=(1, 200))  # all of it between requests
    mean, low, high = metrics.crossed_bootstrap(requests)
    assert mean == pytest.approx(requests.mean())
    assert high - low == pytest.approx(2 * 1.96 * requests.std() / np.sqrt(200), rel=0.15)


def test_a_difference_is_decided_only_beyond_rounding_noise():
    assert [metrics.verdict(*interval) for interval in ((0.01, 0.02), (-0.02, -0.01), (-0.01, 0.02), (0.0, 0.01))] == [
        "ahead", "behind", "undecided", "undecided",
    ]  # fmt: skip
    solved = metrics.chain_best_at_k(np.ones((50, 8, 3)), 3), metrics.chain_best_at_k(np.ones((50, 24, 1)), 3)
    assert metrics.verdict(*metrics.paired_bootstrap(*solved)[1:]) == "undecided"


def test_the_power_of_a_comparison_is_what_a_simulation_finds():
    line = metrics.power(400)
    assert "400 requests" in line and "0.008" in line and "0.022" in line
    rng, least = np.random.default_rng(0), 2.8 * 0.16 / 20
    differences = rng.normal(least, 0.16, (4000, 400))
    errors = differences.std(axis=1, ddof=1) / 20
    assert np.mean(differences.mean(axis=1) > 1.96 * errors) == pytest.approx(0.8, abs=0.02)
