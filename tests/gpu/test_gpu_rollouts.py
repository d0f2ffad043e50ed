"""Do rollouts follow the policy's own probabilities, as one plain forward pass of transformers gives them?

vLLM's and transformers' rollouts are held against the same probabilities, so they agree with one another as well.
A sampler that misses the adapter, a temperature, an update or its random seed is far outside the limits.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from gpu_model import ADAPTERS, EVALUATION, ON_CPU, SHORT_PROMPTS
from gpu_statistics import ALLOWANCE, FALSE_ALARMS, LOG_ALLOWANCE, as_sampled, distance, limit, tail_share

pytestmark = pytest.mark.gpu

DTYPE = "float32" if ON_CPU else "bfloat16"


@pytest.fixture
def sampled(lab, backend) -> SimpleNamespace:
    return lab.sampled(backend)


def first_tokens(sampled, adapter: str) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """First tokens of the rollouts under an adapter by prompt, and the probabilities under every adapter."""
    (kept,) = [r for r in sampled.found["rollouts"] if r["adapter"] == adapter]
    by_prompt = {tuple(prompt): np.array(tokens) for prompt, tokens in kept["first"]}
    order = [tuple(prompt) for prompt in sampled.found["prompts"]]
    assert set(by_prompt) == set(order) and len(order) == len(SHORT_PROMPTS)
    return [by_prompt[prompt] for prompt in order], dict(np.load(sampled.probabilities))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_rollouts_follow_the_trained_policy_before_and_after_a_step(sampled, adapter):
    """Adapter "one" is the start of RL; "two" is what one (enormous) step has made of it."""
    samples, probabilities = first_tokens(sampled, adapter)
    sizes = [len(tokens) for tokens in samples]
    found = {name: distance(samples, p_PV) for name, p_PV in probabilities.items()}
    most = limit(sizes, probabilities[adapter], ALLOWANCE[DTYPE])
    text = f"distances {found}, at most {most:.3f} expected to {adapter!r} (false alarms {FALSE_ALARMS})"
    nearest = min(found, key=found.get)
    assert nearest == adapter, f"the rollouts follow {nearest!r}, not the trained policy: {text}"
    assert found[adapter] <= most, text
    # Each is far from the others, or following one of them would prove nothing.
    assert min(found[other] for other in found if other != adapter) > 0.5
    likeliest = {name: p_PV.argmax(axis=1).tolist() for name, p_PV in probabilities.items()}
    assert len({tuple(tokens) for tokens in likeliest.values()}) == len(likeliest)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_rollouts_are_cut_off_nowhere(sampled, adapter):
    """top_p, top_k or min_p left on would take the unlikely tokens away, and the gradient with them."""
    samples, probabilities = first_tokens(sampled, adapter)
    found, expected = tail_share(samples, probabilities[adapter])
    n = sum(map(len, samples))
    assert abs(found - expected) < 4 * np.sqrt(expected / n) + 0.5 * expected, f"{found:.3f}, expected {expected:.3f}"


def test_log_probabilities_of_rollouts_agree(sampled):
    """What the sampler says of its own tokens, against the forward pass."""
    rollouts = [rollout for kept in sampled.exact["rollouts"] for rollout in kept["logged"]]
    if rollouts[0]["logps"] is None:
        pytest.skip("transformers' rollouts carry no log-probabilities")
    delta = np.concatenate([np.subtract(r["logps"], r["exact"]) for r in rollouts])
    assert np.isfinite(delta).all()
    assert np.abs(delta).mean() <= LOG_ALLOWANCE[DTYPE], f"largest {np.abs(delta).max():.2f}"


def test_evaluation_samples_follow_the_saved_policy(sampled):
    """`policy.sample` with the profile's temperature and top_p, from the folder of adapter "two"."""
    probabilities_PV = as_sampled(np.load(sampled.probabilities)[ADAPTERS[1]], **EVALUATION)
    token_of_text_V = np.array(sampled.found["token_of_text"])
    by_text = np.stack([np.bincount(token_of_text_V, p_V, minlength=len(token_of_text_V)) for p_V in probabilities_PV])
    samples = [np.array(tokens) for tokens in sampled.found["samples"]]
    found, most = distance(samples, by_text), limit([len(s) for s in samples], by_text, ALLOWANCE[DTYPE])
    assert found <= most, f"distance {found:.3f}, at most {most:.3f} expected (false alarms {FALSE_ALARMS})"
