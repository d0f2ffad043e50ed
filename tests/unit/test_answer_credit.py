"""Credit per answer and per pool, on policies so small that every batch can be enumerated.

A toy policy writes chains of M answers, each one token out of A, with logits for every prefix. Its
exact gradient is a finite sum, and so is the expectation of an estimator over all batches.
"""

import math
from itertools import combinations, product

import numpy as np
import pytest

from vpo_lab.methods import (
    METHODS,
    Batch,
    answer_advantages,
    answer_credit,
    max_at_k_credit,
    prefix_rewards,
)
from vpo_lab.weights import dirichlet_weights

D, K = 2, 4


class Toy:
    """All chains of a random softmax policy: probability (C,), score (C, M, parameters), rewards (C, M, D)."""

    def __init__(self, seed, m, tokens=2):
        rng = np.random.default_rng(seed)
        prefixes = [prefix for length in range(m) for prefix in product(range(tokens), repeat=length)]
        probs = {
            prefix: p for prefix, p in zip(prefixes, softmax(rng.normal(size=(len(prefixes), tokens))), strict=True)
        }
        chains = list(product(range(tokens), repeat=m))
        self.probability = np.array([math.prod(probs[c[:j]][c[j]] for j in range(m)) for c in chains])
        self.score = np.zeros((len(chains), m, len(prefixes), tokens))  # gradient of log p of answer j
        for number, chain in enumerate(chains):
            for j, token in enumerate(chain):
                self.score[number, j, prefixes.index(chain[:j])] = np.eye(tokens)[token] - probs[chain[:j]]
        self.score = self.score.reshape(len(chains), m, -1)
        self.rewards = rng.random((tokens, D))[np.array(chains)]

    def gradient(self, value_C):
        """Of the expectation of a chain's value."""
        return np.einsum("c,c,cmz->z", self.probability, value_C, self.score)

    def batches(self, group_size):
        """(probability, chains) of every group."""
        for chains in product(range(len(self.probability)), repeat=group_size):
            yield math.prod(self.probability[c] for c in chains), list(chains)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def prefix_values(toy, weights_KD, diversity=0.0, duplicates="keep"):
    """Utility of the first n answers of every chain under every weighting, by loops: (C, M + 1, K)."""
    chains, m, _ = toy.rewards.shape
    value_CNK = np.zeros((chains, m + 1, len(weights_KD)))
    for c, n in product(range(chains), range(1, m + 1)):
        answers = toy.rewards[c, :n].tolist()
        if duplicates == "drop":
            answers = [r for j, r in enumerate(answers) if r not in answers[:j]]
        distances = [sum(abs(x - y) for x, y in zip(a, b, strict=True)) / D for a, b in combinations(answers, 2)]
        bonus = diversity * sum(distances) / max(len(distances), 1)
        value_CNK[c, n] = [max(float(np.dot(w, r)) for r in answers) + bonus for w in weights_KD]
    return value_CNK


DEFAULTS = {"search_k": 1, "weight_draws": K, "alpha": 1.0, "diversity": 0.0}


def pool_gradient(toy, value_CK, k):
    """The gradient of E over k chains of E_w of the best of them, by the sum over all k chains."""
    total = 0.0
    for probability, chains in toy.batches(k):
        value = value_CK[chains].max(axis=0).mean()
        total = total + probability * value * toy.score[chains].sum(axis=(0, 1))
    return total


def credit(rewards_BMD, **options):
    method = METHODS["vpo_credit"].with_options(**options)
    return method.advantages(rewards_BMD, 4, np.random.default_rng(0))


def mean_of_others(prefix_PGN):
    reward_PG = prefix_PGN[:, :, -1]
    return (reward_PG.sum(axis=1, keepdims=True) - reward_PG) / (reward_PG.shape[1] - 1)


# --- The mean ---------------------------------------------------------------------------------


@pytest.mark.parametrize("m, tokens, group_size", [(1, 3, 2), (2, 2, 2), (2, 3, 2), (2, 2, 3), (3, 2, 2)])
@pytest.mark.parametrize("elsewhere", [0, 1, 3])
def test_whatever_the_coefficients_the_gradient_is_exact(m, tokens, group_size, elsewhere):
    """All batches of one prompt, beside any groups of others, which decide the coefficients."""
    toy = Toy(1, m, tokens)
    value_CN = prefix_values(toy, dirichlet_weights(K, D)).mean(axis=2)
    exact = toy.gradient(value_CN[:, -1])
    assert np.abs(exact).max() > 0.002
    for size in (0.1, 1.0, 10.0):
        others_PGN = size * np.random.default_rng(elsewhere).normal(size=(elsewhere, group_size, m + 1))
        found = 0.0
        for probability, chains in toy.batches(group_size):
            prefix_PGN = np.concatenate([value_CN[None, chains], others_PGN])
            credit_GM = answer_credit(prefix_PGN, mean_of_others(prefix_PGN))[0]
            found = found + probability * np.einsum("gm,gmz->z", credit_GM, toy.score[chains]) / group_size
        assert found == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(
    "m, tokens, group_size, options",
    [
        (2, 2, 2, {}),
        (2, 3, 3, {}),
        (3, 2, 2, {"diversity": 0.5}),
        (2, 2, 3, {"search_k": 2}),
        (2, 2, 4, {"search_k": 3}),
        (2, 2, 3, {"search_k": 3}),  # of 3: the credit of the set would be 0
        (2, 2, 3, {"search_k": 2, "diversity": 0.5}),
    ],
    ids=str,
)
def test_every_option_leaves_the_gradient_exact(m, tokens, group_size, options):
    """Through the method itself, but for the scale of a batch."""
    toy, pool = Toy(1, m, tokens), options.get("search_k", 1)
    weights_KD = dirichlet_weights(2 * K, D, seed=0)[:K]
    bonus = {name: option for name, option in options.items() if name != "search_k"}
    exact = pool_gradient(toy, prefix_values(toy, weights_KD, **bonus)[:, -1], pool)
    assert np.abs(exact).max() > 0.002
    for seed in range(2):
        other_GMD = np.random.default_rng(seed).random((group_size, m, D))
        found = 0.0
        for probability, chains in toy.batches(group_size):
            rewards_BMD = np.concatenate([toy.rewards[chains], other_GMD])
            rng = np.random.default_rng(0)
            earned = prefix_rewards(Batch(rewards_BMD, group_size), rng, **{**DEFAULTS, **options})
            credit_GM = answer_credit(*earned)[0]
            found = found + probability * np.einsum("gm,gmz->z", credit_GM, toy.score[chains])
        # A rollout is in k of the G chains' pools: G/k times the gradient, summed over the rollouts.
        assert found == pytest.approx(group_size / pool * exact, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_two_prompts_that_are_each_others_baseline_leave_both_gradients_exact(seed):
    """All 256 batches of two prompts, each with a policy and with rewards of its own."""
    toys = Toy([seed, 0], 2), Toy([seed, 1], 2)
    values = [prefix_values(toy, dirichlet_weights(K, D)).mean(axis=2) for toy in toys]
    found = [0.0, 0.0]
    for (p0, first), (p1, second) in product(*(toy.batches(2) for toy in toys)):
        prefix_PGN = np.stack([values[0][first], values[1][second]])
        credit_PGM = answer_credit(prefix_PGN, mean_of_others(prefix_PGN))
        for p, chains in enumerate((first, second)):
            found[p] = found[p] + p0 * p1 * np.einsum("gm,gmz->z", credit_PGM[p], toys[p].score[chains]) / 2
    for p, toy in enumerate(toys):
        assert found[p] == pytest.approx(toy.gradient(values[p][:, -1]), abs=1e-10)


@pytest.mark.parametrize("m, group_size, k", [(1, 3, 2), (2, 3, 2), (2, 3, 3), (2, 4, 3), (1, 4, 2)])
def test_pool_credit_is_the_gradient_of_the_best_of_k_chains(m, group_size, k):
    toy = Toy(1, m)
    value_CNK = prefix_values(toy, dirichlet_weights(K, D))[:, -1:]
    plain = centered = 0.0
    for probability, chains in toy.batches(group_size):
        credit_G = max_at_k_credit(value_CNK[None, chains], k)[0, :, 0].mean(axis=1)
        score_GZ = toy.score[chains].sum(axis=1)
        plain = plain + probability * credit_G @ score_GZ
        centered = centered + probability * (credit_G - credit_G.mean()) @ score_GZ
    exact = pool_gradient(toy, value_CNK[:, 0], k)
    assert np.abs(exact).max() > 0.002
    assert plain == pytest.approx(group_size / k * exact, abs=1e-10)
    assert centered == pytest.approx((group_size / k - 1) * exact, abs=1e-10)


# --- The variance -----------------------------------------------------------------------------


def variance_ratio(m, prompts, group_size, batches, seed):
    """Total variance of the gradient of a batch, credit per answer over credit per set.

    Per set: centered in the group, enlarged to the same mean.
    """
    rng = np.random.default_rng(seed)
    toys = [Toy([seed, p], m, tokens=3) for p in range(prompts)]
    values = [prefix_values(toy, dirichlet_weights(16, D, seed=p)).mean(axis=2) for p, toy in enumerate(toys)]
    gradients = {"answer": [], "set": []}
    for _ in range(batches):
        picks = [rng.choice(len(toy.probability), size=group_size, p=toy.probability) for toy in toys]
        prefix_PGN = np.stack([value[pick] for value, pick in zip(values, picks, strict=True)])
        reward_PG1 = prefix_PGN[:, :, -1:]
        of_set = (reward_PG1 - reward_PG1.mean(axis=1, keepdims=True)) * group_size / (group_size - 1)
        of_answers = answer_credit(prefix_PGN, mean_of_others(prefix_PGN))
        score_PGMZ = np.stack([toy.score[pick] for toy, pick in zip(toys, picks, strict=True)])
        for name, credit_PGM in (("answer", of_answers), ("set", np.repeat(of_set, m, axis=2))):
            gradients[name].append(np.einsum("pgm,pgmz->pz", credit_PGM, score_PGMZ))
    return np.var(gradients["answer"], axis=0).sum() / np.var(gradients["set"], axis=0).sum()


@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("prompts, most", [(16, 0.9), (2, 1.05)], ids=["16 prompts", "2 prompts"])
def test_credit_per_answer_has_less_variance_than_credit_per_set(m, prompts, most):
    """Less where many groups fit the baseline, hardly more at worst where a single one does."""
    ratios = [variance_ratio(m, prompts, 8, 1600 // prompts, seed) for seed in range(3)]
    assert np.mean(ratios) < most, ratios


def test_a_baseline_fitted_to_next_to_nothing_stays_sane():
    """Nearly the same prefix reward and very different sets: plain least squares would have a slope of 800."""
    prefix_PGN = np.array([[[0, 0.5, 0.9], [0, 0.2, 0.1]], [[0, 0.501, 0.9], [0, 0.5, 0.1]]])
    assert np.abs(answer_credit(prefix_PGN, mean_of_others(prefix_PGN))).max() < 1.5


# --- What an answer is paid for ---------------------------------------------------------------


def test_an_answer_is_paid_for_what_it_adds():
    """The first answers are equals; of the second, two add the other specialist and two repeat the first."""
    east, north = [1.0, 0.0], [0.0, 1.0]
    rewards_BMD = np.array([[east, north], [east, east], [north, east], [north, north]] * 8)
    found = credit(rewards_BMD, weight_draws=512)
    assert found.shape == (32, 2)
    assert (found[:, 1] > 0).tolist() == [True, False, True, False] * 8
    assert np.sqrt((found**2).mean()) == pytest.approx(1)


def test_an_answer_after_a_perfect_one_is_not_paid_for_it():
    """Two rollouts are perfect from the first answer on: their second answer added nothing."""
    good, bad = [1.0, 1.0], [0.2, 0.2]
    rewards_BMD = np.array([[good, bad], [bad, bad], [bad, good], [good, good]] * 8)
    found = credit(rewards_BMD)[:4]
    assert found[0, 0] > 0.5 and found[3, 0] > 0.5
    assert abs(found[0, 1]) < found[0, 0] / 2 and found[0, 1] == pytest.approx(found[3, 1])
    assert found[2, 1] > found[0, 1] and found[1, 1] < -0.5
    assert (
        np.ptp(METHODS["vpo"].advantages(rewards_BMD, 4, np.random.default_rng(0))[[0, 2, 3]]) < 1e-9
    )  # per set all the same


def test_the_baseline_of_an_answer_does_not_know_it():
    """Another last answer moves the credit of its own rollout by just as much, and no other coefficient."""
    prefix_PGN = np.sort(np.random.default_rng(0).random((3, 4, 4)), axis=2)
    changed_PGN = prefix_PGN.copy()
    changed_PGN[0, 0, -1] += 0.5
    before, after = (answer_credit(x, mean_of_others(x))[0] for x in (prefix_PGN, changed_PGN))
    assert after[0] - before[0] == pytest.approx(np.full(3, 0.5), abs=1e-12)


def test_one_prompt_has_the_usual_leave_one_out_baseline():
    prefix_PGN = np.sort(np.random.default_rng(0).random((1, 4, 4)), axis=2)
    reward_G = prefix_PGN[0, :, -1]
    expected = np.repeat(((reward_G - reward_G.mean()) * 4 / 3)[:, None], 3, axis=1)
    assert answer_credit(prefix_PGN, mean_of_others(prefix_PGN))[0] == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.1 + 0.2, 1.0])
def test_where_all_rollouts_earn_the_same_there_is_nothing(value):
    rewards_BMD = np.full((12, 3, 4), value)
    assert not credit(rewards_BMD).any()
    prefix_PGN = np.full((3, 4, 4), value)
    assert not answer_advantages(prefix_PGN, mean_of_others(prefix_PGN)).any()
