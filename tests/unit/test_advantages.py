"""advantages.py: every method against a loop written from its definition, and its invariances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpo_lab.advantages import METHODS, get_method, group_normalize
from vpo_lab.errors import LabError
from vpo_lab.scalarization import dirichlet_weights

GROUPS, G, M, D = 5, 4, 3, 4
quick = settings(deadline=None, max_examples=30)


def batch(seed=0, groups=GROUPS, m=M, d=D):
    return np.random.default_rng(seed).random((groups * G, m, d))


def advantages(name, rewards_BMD, seed=7, **options):
    return METHODS[name].with_options(**options).advantages(rewards_BMD, G, np.random.default_rng(seed))


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


def loop_vpo(rewards_BMD, rng, weight_draws=128, alpha=1.0, sampler="sobol"):
    n_groups, d = len(rewards_BMD) // G, rewards_BMD.shape[2]
    weights = dirichlet_weights(n_groups * weight_draws, d, alpha=alpha, method=sampler, seed=rng)
    result = []
    for number, group in enumerate(groups_of(rewards_BMD)):
        own = weights[number * weight_draws : (number + 1) * weight_draws].tolist()
        scores = [sum(max(dot(w, r) for r in answers) for w in own) / len(own) for answers in group]
        result += z_scores(scores)
    return result


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


LOOPS = {
    "vpo": loop_vpo,
    "grpo": loop_grpo,
    "multi_rlvr": loop_multi_rlvr,
    "random_weights": loop_random_weights,
    "gdpo": loop_gdpo,
}


def test_every_method_has_a_loop_to_be_compared_with():
    assert set(LOOPS) == set(METHODS)
    assert all(name == method.name for name, method in METHODS.items())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("groups, m, d", [(5, 3, 4), (1, 1, 1), (3, 1, 4), (2, 5, 2), (2, 2, 1)])
def test_method_equals_its_loop(name, groups, m, d):
    rewards_BMD = batch(1, groups, m, d)
    rewards_BMD[:G] = rewards_BMD[0]  # one group without signal
    expected = LOOPS[name](rewards_BMD, np.random.default_rng(7))
    result = advantages(name, rewards_BMD)
    assert result.shape == (groups * G,) and result.dtype == np.float64
    assert result == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [{"weight_draws": 1}, {"weight_draws": 100}, {"alpha": 0.3}, {"sampler": "iid", "weight_draws": 16}],
)
def test_vpo_options_equal_the_loop(options):
    rewards_BMD = batch(2)
    expected = loop_vpo(rewards_BMD, np.random.default_rng(7), **options)
    assert advantages("vpo", rewards_BMD, **options) == pytest.approx(expected, abs=1e-9)


# --- No signal --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_group_without_variance_gets_exactly_zero(name):
    rewards_BMD = batch()
    rewards_BMD[G : 2 * G] = rewards_BMD[G]  # the same vectors in every rollout
    result = advantages(name, rewards_BMD)
    assert (result[G : 2 * G] == 0).all() and (result[:G] != 0).all()
    assert (advantages(name, np.full((2 * G, M, D), 0.1)) == 0).all()


def test_group_normalize_of_rounding_noise_is_zero():
    assert (group_normalize(np.array([0.3, 0.1 + 0.2, 0.3, 0.3]), 4) == 0).all()
    assert group_normalize(np.array([0.0, 1.0]), 2) == pytest.approx([-1, 1], abs=1e-5)
    assert (group_normalize(np.array([0.2, 0.9]), 1) == 0).all()


# --- Invariances ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_constant_added_to_a_group_changes_nothing(name):
    rewards_BMD = batch()
    shifts_B = np.repeat(np.arange(GROUPS), G) / 3
    shifted = advantages(name, rewards_BMD + shifts_B[:, None, None])
    assert shifted == pytest.approx(advantages(name, rewards_BMD), abs=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_the_scale_of_a_group_changes_nothing_but_the_epsilon(name):
    rewards_BMD = batch()
    scales_B = np.repeat([1.0, 2.0, 0.5, 10.0, 3.0], G)
    scaled = advantages(name, rewards_BMD * scales_B[:, None, None])
    assert scaled == pytest.approx(advantages(name, rewards_BMD), abs=1e-3)


@pytest.mark.parametrize("name", ["grpo", "multi_rlvr", "gdpo", "vpo"])
def test_groups_do_not_depend_on_their_order(name):
    rewards_BMD = batch()
    order = np.arange(GROUPS * G).reshape(GROUPS, G)[[3, 1, 4, 0, 2]].ravel()
    # VPO draws fresh weights by position, so it agrees up to the noise of the draws.
    options, tolerance = ({"weight_draws": 2048}, 0.05) if name == "vpo" else ({}, 1e-12)
    moved = advantages(name, rewards_BMD[order], **options)
    assert moved == pytest.approx(advantages(name, rewards_BMD, **options)[order], abs=tolerance)


@pytest.mark.parametrize("name", METHODS)
@quick
@given(seed=st.integers(0, 2**32 - 1))
def test_rollouts_and_answers_do_not_depend_on_their_order(name, seed):
    rng = np.random.default_rng(seed)
    rewards_BMD = batch(seed)
    order = np.concatenate([start + rng.permutation(G) for start in range(0, GROUPS * G, G)])
    expected = advantages(name, rewards_BMD)[order]
    shuffled = rewards_BMD[order][:, rng.permutation(M)]
    assert advantages(name, shuffled) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", METHODS)
@quick
@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 3))
def test_advantages_are_finite_and_centered_in_their_group(name, seed, levels):
    rewards_BMD = np.random.default_rng(seed).integers(0, levels, size=(GROUPS * G, M, D)) / levels
    result = advantages(name, rewards_BMD)
    assert np.isfinite(result).all()
    assert result.reshape(GROUPS, G).sum(axis=1) == pytest.approx(np.zeros(GROUPS), abs=1e-8)


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


def test_vpo_pays_for_a_set_that_spans_the_trade_off():
    specialists, compromise = [[1, 0], [0, 1]], [[0.55, 0.55], [0.55, 0.55]]
    rewards_BMD = np.array([specialists, compromise, compromise, specialists], dtype=float)
    assert (advantages("vpo", rewards_BMD) > 0).tolist() == [True, False, False, True]
    assert (advantages("grpo", rewards_BMD) > 0).tolist() == [False, True, True, False]


# --- Determinism and errors -------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_generator_decides_everything_and_the_input_stays(name):
    rewards_BMD = batch()
    before = rewards_BMD.copy()
    first, again, other = (advantages(name, rewards_BMD, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(rewards_BMD, before)
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (name not in ("vpo", "random_weights"))


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
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rewards_must_be_finite(name, bad):
    rewards_BMD = batch()
    rewards_BMD[3, 1, 2] = bad
    with pytest.raises(LabError, match="NaN or infinity"):
        advantages(name, rewards_BMD)


def test_integers_and_lists_are_rewards_too():
    rewards = [[[0, 0]], [[1, 1]], [[0, 0]], [[1, 1]]]
    assert advantages("grpo", rewards) == pytest.approx([-1, 1, -1, 1], abs=1e-4)


def test_with_options_returns_a_new_method():
    method = METHODS["vpo"].with_options(weight_draws=8).with_options(alpha=2.0, weight_draws=4)
    assert dict(method.options) == {"weight_draws": 4, "alpha": 2.0}
    assert METHODS["vpo"].options == () and method.name == "vpo" and method.multi_answer
    with pytest.raises(LabError, match="K = 0"):
        advantages("vpo", batch(), weight_draws=0)
    with pytest.raises(LabError, match="alpha"):
        advantages("vpo", batch(), alpha=-1.0)


def test_get_method():
    assert get_method("vpo") is METHODS["vpo"]
    with pytest.raises(LabError, match="vpo, grpo"):
        get_method("ppo")
