"""scalarization.py: moments of the weights, and the set reward against three independent references."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from vpo_lab.errors import LabError
from vpo_lab.weights import dirichlet_weights, scalarize, set_reward, winners

SAMPLERS = ("sobol", "iid")
TOLERANCE = 0.004  # of a set reward at K = 1024, for rewards in [0, 1]
quick = settings(deadline=None, max_examples=40)


# --- References that share no code with the package -------------------------------------------


def exact_pair_reward(a, b):
    """M = 2, alpha = 1: E[max(a.w, b.w)] = mean(a) + (1/D) [c_1..c_D] t_+^D with c = b - a distinct.

    w = e/|e| with e iid exponential; the square brackets are a divided difference.
    """
    c, d = np.asarray(b) - np.asarray(a), len(a)
    terms = [max(c[i], 0.0) ** d / np.prod([c[i] - c[j] for j in range(d) if j != i]) for i in range(d)]
    return np.mean(a) + sum(terms) / d


def grid_reward(rewards_MD, alpha):
    """D = 2: the middles of 20,000 slices of equal probability. D = 3: triangles, weighed by density."""
    if rewards_MD.shape[1] == 2:
        first = beta.ppf((np.arange(20_000) + 0.5) / 20_000, alpha, alpha)
        return (np.stack([first, 1 - first], axis=1) @ rewards_MD.T).max(axis=1).mean()
    steps = 500
    i, j = np.meshgrid(np.arange(steps), np.arange(steps), indexing="ij")
    upward, downward = i + j <= steps - 1, i + j <= steps - 2  # the two kinds of small triangles
    corner = np.concatenate([np.stack([i, j], -1)[upward] + 1 / 3, np.stack([i, j], -1)[downward] + 2 / 3])
    weights = np.column_stack([corner, steps - corner.sum(axis=1)]) / steps
    density = np.prod(weights, axis=1) ** (alpha - 1)
    return np.average((weights @ rewards_MD.T).max(axis=1), weights=density)


def simulated_reward(rewards_MD, draws=2_000_000):
    """Plain Monte Carlo, alpha = 1: spacings of sorted uniforms are uniform on the simplex."""
    rng, d, total = np.random.default_rng(1), rewards_MD.shape[1], 0.0
    for _ in range(10):
        cuts = np.sort(rng.random((draws // 10, d - 1), dtype=np.float32), axis=1)
        weights = np.diff(cuts, axis=1, prepend=0, append=1)
        total += (weights @ rewards_MD.T.astype(np.float32)).max(axis=1).mean(dtype=float) / 10
    return total


# --- Weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SAMPLERS)
@pytest.mark.parametrize("alpha", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("d", [2, 4, 16])
def test_moments_are_those_of_the_dirichlet(method, alpha, d):
    weights_KD = dirichlet_weights(8192, d, alpha=alpha, method=method, seed=3)
    assert weights_KD.shape == (8192, d) and weights_KD.dtype == np.float64
    assert weights_KD.sum(axis=1) == pytest.approx(np.ones(8192), abs=1e-12)
    assert (weights_KD >= 0).all()
    variance = (1 / d) * (1 - 1 / d) / (d * alpha + 1)
    assert weights_KD.mean(axis=0) == pytest.approx(np.full(d, 1 / d), abs=5 * np.sqrt(variance / 8192))
    covariance = np.cov(weights_KD.T, bias=True)
    expected = variance * (np.eye(d) * d - 1) / (d - 1)
    kurtosis = beta.stats(alpha, (d - 1) * alpha, moments="k") + 3
    assert covariance == pytest.approx(expected, abs=5 * variance * np.sqrt((kurtosis - 1) / 8192))


@pytest.mark.parametrize("method", SAMPLERS)
def test_the_first_weight_follows_its_beta_distribution(method):
    for alpha in (0.3, 1.0, 3.0):
        first = np.sort(dirichlet_weights(4096, 4, alpha=alpha, method=method, seed=0)[:, 0])
        expected = beta.cdf(first, alpha, 3 * alpha)
        # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded once in a thousand.
        assert np.abs(expected - (np.arange(4096) + 0.5) / 4096).max() < 1.95 / np.sqrt(4096)


@pytest.mark.parametrize("n", [1, 2, 3, 100, 128])
@pytest.mark.parametrize("method", SAMPLERS)
def test_any_number_of_draws_and_objectives(method, n):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scipy warns of lengths that are no power of two
        for d in (1, 2, 5, 40):
            weights_KD = dirichlet_weights(n, d, method=method)
            assert weights_KD.shape == (n, d)
            assert weights_KD.sum(axis=1) == pytest.approx(np.ones(n), abs=1e-12)
    assert (dirichlet_weights(n, 1, method=method) == 1).all()


@pytest.mark.parametrize("method", SAMPLERS)
def test_seeds(method):
    first = dirichlet_weights(64, 4, method=method, seed=5)
    assert np.array_equal(first, dirichlet_weights(64, 4, method=method, seed=5))
    assert not np.allclose(first, dirichlet_weights(64, 4, method=method, seed=6))
    rng = np.random.default_rng(5)
    assert np.array_equal(first, dirichlet_weights(64, 4, method=method, seed=rng))
    assert not np.allclose(first, dirichlet_weights(64, 4, method=method, seed=rng))  # the generator moves on


@pytest.mark.parametrize("method", SAMPLERS)
@pytest.mark.parametrize("d", [2, 4, 16])
def test_limits_of_alpha(method, d):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for alpha in (1e-300, 1e-12, 1e-4):
            corners = dirichlet_weights(2048, d, alpha=alpha, method=method)
            assert corners.sum(axis=1) == pytest.approx(np.ones(2048), abs=1e-12)
            assert (corners.max(axis=1) > 0.99).mean() > 0.99
            assert corners.mean(axis=0) == pytest.approx(np.full(d, 1 / d), abs=0.06)
        for alpha in (1e6, 1e15, 1e300):
            center = dirichlet_weights(256, d, alpha=alpha, method=method)
            assert center == pytest.approx(np.full((256, d), 1 / d), abs=2e-3)
        assert np.array_equal(dirichlet_weights(3, d, alpha=np.inf, method=method), np.full((3, d), 1 / d))


def test_sobol_has_less_noise_than_iid():
    rng = np.random.default_rng(0)
    for d, k in ((2, 128), (4, 128), (4, 100)):
        rewards_MD = rng.random((3, d))
        exact = np.mean([set_reward(rewards_MD, dirichlet_weights(8192, d, seed=s)) for s in range(4)])
        error = {
            method: np.sqrt(
                np.mean(
                    [
                        (set_reward(rewards_MD, dirichlet_weights(k, d, method=method, seed=s)) - exact) ** 2
                        for s in range(60)
                    ]
                )
            )
            for method in SAMPLERS
        }
        assert error["sobol"] < error["iid"] / 2, (d, k, error)


@pytest.mark.parametrize(
    "arguments, hint",
    [
        ({"n": 0, "d": 2}, "K = 0"),
        ({"n": -1, "d": 2}, "K = -1"),
        ({"n": 4, "d": 0}, "D = 0"),
        ({"n": 4, "d": 2, "alpha": 0}, "alpha"),
        ({"n": 4, "d": 2, "alpha": -1.0}, "alpha"),
        ({"n": 4, "d": 2, "alpha": np.nan}, "alpha"),
        ({"n": 4, "d": 2, "alpha": -np.inf}, "alpha"),
        ({"n": 4, "d": 2, "method": "halton"}, "halton"),
    ],
)
def test_weight_errors(arguments, hint):
    with pytest.raises(LabError, match=hint) as error:
        dirichlet_weights(**arguments)
    assert "\n" not in str(error.value)


# --- The set reward against references --------------------------------------------------------


def test_the_references_agree_with_each_other():
    rng = np.random.default_rng(0)
    for d in (2, 3):
        a, b = rng.random((2, d))
        assert grid_reward(np.stack([a, b]), 1.0) == pytest.approx(exact_pair_reward(a, b), abs=1e-5)
    a, b = rng.random((2, 4))
    assert simulated_reward(np.stack([a, b])) == pytest.approx(exact_pair_reward(a, b), abs=5e-4)
    assert exact_pair_reward([1, 0], [0, 1]) == pytest.approx(0.75)


@pytest.mark.parametrize("d", [2, 3, 4, 6, 8])
def test_set_reward_of_two_candidates_is_the_closed_form(d):
    rng = np.random.default_rng(d)
    for trial in range(5):
        a, b = rng.random((2, d))
        weights_KD = dirichlet_weights(1024, d, seed=trial)
        assert set_reward([a, b], weights_KD) == pytest.approx(exact_pair_reward(a, b), abs=TOLERANCE)


@pytest.mark.parametrize("d, alpha", [(2, 0.3), (2, 1.0), (2, 3.0), (3, 1.0), (3, 3.0)])
@pytest.mark.parametrize("m", [1, 3, 8])
def test_set_reward_is_the_integral_over_the_simplex(d, alpha, m):
    rewards_MD = np.random.default_rng(m).random((m, d))
    weights_KD = dirichlet_weights(1024, d, alpha=alpha, seed=m)
    assert set_reward(rewards_MD, weights_KD) == pytest.approx(grid_reward(rewards_MD, alpha), abs=TOLERANCE)


@pytest.mark.parametrize("m", [3, 8])
def test_set_reward_is_the_mean_of_two_million_draws(m):
    rewards_MD = np.random.default_rng(m).random((m, 4))
    weights_KD = dirichlet_weights(1024, 4, seed=m)
    assert set_reward(rewards_MD, weights_KD) == pytest.approx(simulated_reward(rewards_MD), abs=TOLERANCE)


# --- Its limits and properties ----------------------------------------------------------------


def test_limits_of_the_set_reward():
    rewards_MD = np.random.default_rng(0).random((4, 3))
    corners, center = dirichlet_weights(4096, 3, alpha=1e-4), dirichlet_weights(256, 3, alpha=1e6)
    assert set_reward(rewards_MD, corners) == pytest.approx(rewards_MD.max(axis=0).mean(), abs=0.01)
    assert set_reward(rewards_MD, center) == pytest.approx(rewards_MD.mean(axis=1).max(), abs=1e-3)
    single = set_reward(rewards_MD[:1], dirichlet_weights(4096, 3))
    assert single == pytest.approx(rewards_MD[0].mean(), abs=1e-3)
    assert set_reward([[0.25], [0.75]], np.ones((8, 1))) == 0.75


@quick
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_more_candidates_never_hurt_and_copies_change_nothing(m, d, seed):
    rng = np.random.default_rng(seed)
    rewards_MD, weights_KD = rng.random((m, d)), dirichlet_weights(32, d, seed=seed, method="iid")
    value = set_reward(rewards_MD, weights_KD)
    assert rewards_MD.min() - 1e-12 <= value <= rewards_MD.max() + 1e-12
    assert set_reward(np.vstack([rewards_MD, rng.random((1, d))]), weights_KD) >= value - 1e-12
    copies = rng.permutation(np.vstack([rewards_MD, rewards_MD]))
    assert set_reward(copies, weights_KD) == pytest.approx(value, abs=1e-12)


def test_leading_axes_and_weights_of_each_group():
    rng = np.random.default_rng(0)
    rewards_PGMD = rng.random((3, 4, 5, 2))
    shared_KD = dirichlet_weights(16, 2)
    own_P1KD = dirichlet_weights(48, 2).reshape(3, 1, 16, 2)
    assert scalarize(rewards_PGMD, shared_KD).shape == (3, 4, 16, 5)
    shared, own = set_reward(rewards_PGMD, shared_KD), set_reward(rewards_PGMD, own_P1KD)
    assert shared.shape == own.shape == (3, 4)
    for p in range(3):
        for g in range(4):
            for value, weights_KD in ((shared, shared_KD), (own, own_P1KD[p, 0])):
                loop = np.mean([max(w @ r for r in rewards_PGMD[p, g]) for w in weights_KD])
                assert value[p, g] == pytest.approx(loop, abs=1e-12)


@pytest.mark.parametrize(
    "rewards, weights, hint",
    [
        (np.ones(3), np.ones((4, 3)), r"expected \(\.\.\., M, D\)"),
        (np.ones((0, 3)), np.ones((4, 3)), "M >= 1"),
        (np.ones((2, 3)), np.ones(3), r"expected \(K, D\)"),
        (np.ones((2, 3)), np.ones((0, 3)), "K >= 1"),
        (np.ones((2, 3)), np.ones((4, 2)), "D = 3"),
    ],
)
def test_set_reward_errors(rewards, weights, hint):
    with pytest.raises(LabError, match=hint):
        set_reward(rewards, weights)


# --- Winners ----------------------------------------------------------------------------------


def test_winners_reports_every_tie():
    rewards_MD = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.4, 0.4]])
    weights_KD = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert winners(rewards_MD, weights_KD).tolist() == [
        [True, False, True, False],
        [False, True, False, False],
        [True, True, True, False],
    ]


@quick
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_winners_earn_the_set_reward(m, d, seed):
    rewards_MD = np.random.default_rng(seed).integers(0, 3, size=(m, d)) / 2
    weights_KD = dirichlet_weights(16, d, seed=seed, method="iid")
    won_KM = winners(rewards_MD, weights_KD)
    assert won_KM.shape == (16, m) and won_KM.dtype == bool and won_KM.any(axis=1).all()
    scores_KM = np.where(won_KM, weights_KD @ rewards_MD.T, np.nan)
    earned = np.nanmean(scores_KM, axis=1).mean()  # tied winners earn the same
    assert earned == pytest.approx(set_reward(rewards_MD, weights_KD), abs=1e-8)


def test_a_concave_point_wins_nowhere():
    rewards_MD = np.array([[1.0, 0.0], [0.0, 1.0], [0.45, 0.45]])
    assert not winners(rewards_MD, dirichlet_weights(512, 2))[:, 2].any()
