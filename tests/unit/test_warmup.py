"""warmup.py: chains packed around the gold from the policy's own answers."""

from types import SimpleNamespace

import numpy as np
import pytest

from vpo_lab import warmup
from vpo_lab.profiles import get_profile
from vpo_lab.tasks import get_task
from vpo_lab.warmup import SAMPLES, demonstrator, own_samples, pack_chain

GOLD = "gold"
REWARDS = {"gold": (1, 1), "right too": (1, 1), "half": (1, 0), "half as well": (1, 0), "other half": (0, 1)}
TASK = SimpleNamespace(
    score=lambda answer, gold: np.array(REWARDS.get(answer, (0, 0)), dtype=float),
    demonstrations=lambda row, n, rng: ["slip"] * n,
)


def chains(samples: list[str], n: int, tries: int = 20) -> list[list[str]]:
    return [pack_chain(TASK, GOLD, samples, n, np.random.default_rng(seed)) for seed in range(tries)]


def test_the_gold_is_among_them_once_and_at_every_place():
    samples = ["half", "other half", "right too"]
    packed = chains(samples, 3)
    assert all(chain.count(GOLD) == 1 and len(set(chain)) == 3 for chain in packed)
    assert {chain.index(GOLD) for chain in packed} == {0, 1, 2}


def test_other_rewards_come_first_then_other_words():
    samples = ["right too", "half", "half as well", "other half"]
    assert all(set(chain) == {GOLD, "half", "other half"} for chain in chains(samples, 3))
    assert all(set(chain) == {GOLD, "half", "other half", "right too"} for chain in chains(samples, 4))


def test_what_earns_nothing_repeats_or_would_cut_the_chain_is_left_out():
    samples = ["junk", "", " gold ", "half", "half", "<answer_2> half"]
    for chain in chains(samples, 3):
        assert sorted(chain) == [GOLD, GOLD, "half"]


@pytest.fixture
def profile():
    return get_profile("smoke", {"sft.chains": "own", "sft.own_samples": 3, "rl.temperature": 0.9})


def test_samples_are_drawn_once_and_kept(profile, tmp_path, monkeypatch):
    rows = get_task("tiny_tools").load(None, "train")[:4]
    asked = []

    def sample(model, tokenizer, prompts, **settings):
        asked.append((prompts, settings))
        return [f"{number}" for number in range(len(prompts))], [1] * len(prompts)

    monkeypatch.setattr(warmup, "sample", sample)
    monkeypatch.setattr(warmup, "render_prompt", lambda tokenizer, messages, m: f"{messages[-1]['content']} x{m}")
    first = own_samples(profile, None, None, rows, tmp_path, seed=5)
    assert first == {row["id"]: [str(3 * i + j) for j in range(3)] for i, row in enumerate(rows)}
    ((prompts, settings),) = asked
    assert prompts == [f"{row['prompt'][-1]['content']} x1" for row in rows for _ in range(3)]
    assert settings["temperature"] == 0.9 and settings["max_new_tokens"] == profile.policy.max_answer_tokens
    assert own_samples(profile, None, None, rows, tmp_path, seed=5) == first
    assert len(asked) == 1 and (tmp_path / SAMPLES).exists()


def test_the_profile_chooses(profile, tmp_path, monkeypatch):
    row = {"id": "a", "gold": GOLD}
    show = demonstrator(get_profile("smoke"), TASK, None, None, [row], tmp_path, seed=0)
    assert show(row, 2, np.random.default_rng(0)) == ["slip", "slip"]
    monkeypatch.setattr(warmup, "own_samples", lambda *_: {"a": ["half", "other half"]})
    show = demonstrator(profile, TASK, None, None, [row], tmp_path, seed=0)
    assert show(row, 1, np.random.default_rng(0)) == [GOLD]
    assert set(show(row, 3, np.random.default_rng(0))) == {GOLD, "half", "other half"}
