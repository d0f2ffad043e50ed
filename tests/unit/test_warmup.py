"""warmup.py: chains packed around the gold from the policy's own answers."""

from types import SimpleNamespace

import numpy as np
import pytest

from vpo_lab.config import get_profile
from vpo_lab.tasks import each, get_task
from vpo_lab.train import sft as warmup
from vpo_lab.train.sft import fit_to_show, own_demonstrations, pack_chain

GOLD = "gold"
ROW = {"id": "0", "prompt": [], "gold": GOLD}
# Rewards in "format" and in two objectives that matter.
REWARDS = {
    "gold": (1, 1, 1),
    "right too": (1, 1, 1),
    "half": (1, 1, 0),
    "half as well": (1, 1, 0),
    "other half": (1, 0, 1),
    "nothing but form": (1, 0, 0),
    "no form": (0, 1, 1),
}


def task(*objectives: str):
    return SimpleNamespace(
        objectives=objectives, score=each(lambda answer, gold: np.array(REWARDS.get(answer, (0, 0, 0)), dtype=float))
    )


FORMED = task("format", "a", "b")


def fitting(of, samples: list[str]) -> list[str]:
    """What may be shown of one row's samples, with another row beside it."""
    other = {"id": "1", "prompt": [], "gold": "half"}
    found = dict(fit_to_show(of, [other, ROW], [["gold"], samples]))
    assert set(found) == {"0", "1"}
    return found["0"]


def test_other_rewards_come_first_then_other_words():
    samples = ["right too", "half", "half as well", "other half"]
    assert fitting(FORMED, samples) == ["half", "other half", "right too", "half as well"]


def test_what_repeats_is_cut_off_without_form_or_would_cut_the_chain_is_left_out():
    samples = ["junk", "", " gold ", "half", " half", "<answer_2> half", "no form", "nothing but form"]
    assert fitting(FORMED, samples) == ["half", "nothing but form"]


def test_without_a_format_an_answer_has_to_earn_something():
    assert fitting(task("a", "b", "c"), ["junk", "no form", "half"]) == ["no form", "half"]


def test_where_no_format_is_asked_for_an_answer_has_to_earn_something():
    unasked = SimpleNamespace(
        objectives=("format", "a"),
        score=lambda answers, rows: np.array([[np.nan, REWARDS.get(answer, (0,))[-1]] for answer in answers]),
    )
    assert fitting(unasked, ["half", "no form"]) == ["no form"]


def test_the_gold_is_among_them_once_and_at_every_place():
    packed = [pack_chain(GOLD, ["half", "other half", "right too"], 3, np.random.default_rng(n)) for n in range(20)]
    assert all(sorted(chain) == ["gold", "half", "other half"] for chain in packed)
    assert {chain.index(GOLD) for chain in packed} == {0, 1, 2}
    assert pack_chain(GOLD, ["half"], 1, np.random.default_rng(0)) == [GOLD]


def test_too_few_samples_are_filled_up_with_the_gold():
    assert sorted(pack_chain(GOLD, ["half"], 3, np.random.default_rng(0))) == [GOLD, GOLD, "half"]


@pytest.fixture
def asked(monkeypatch) -> list:
    """What `sample` was asked for; it answers each row with its gold, twice other words of it, one cut off."""
    asked = []

    def sample(model, tokenizer, prompts, **settings):
        asked.append((prompts, settings))
        texts = [f"<think> {number % 3} </think>\n<response> Which? </response>" for number in range(len(prompts))]
        return texts, [settings["max_new_tokens"] if number % 3 == 2 else 5 for number in range(len(prompts))]

    monkeypatch.setattr(warmup, "sample", sample)
    monkeypatch.setattr(warmup, "load_policy", lambda *_: (None, lambda texts, **_: {"input_ids": [[1]] * len(texts)}))
    monkeypatch.setattr(warmup, "render_prompt", lambda tokenizer, messages, m: f"{messages[-1]['content']} x{m}")
    rows = get_task("tiny_tools").load(None, "train")[:4]
    monkeypatch.setattr(warmup, "load_rows", lambda *_, **__: rows)
    return asked


def test_samples_are_drawn_once_kept_and_shown(asked, tmp_path, capsys):
    profile = get_profile("smoke", {"sft.chains": "own", "sft.own_samples": 3, "rl.temperature": 0.9})
    real, path = get_task("tiny_tools"), tmp_path / "own.json.gz"
    rows = warmup.load_rows()
    show = own_demonstrations(profile, real, tmp_path / "policy", path, seed=5)
    ((prompts, settings),) = asked
    assert prompts == [f"{row['prompt'][-1]['content']} x1" for row in rows for _ in range(3)]
    assert settings["temperature"] == 0.9 and settings["max_new_tokens"] == profile.policy.max_answer_tokens
    assert "67% came to an end" in capsys.readouterr().out
    again = own_demonstrations(profile, real, tmp_path / "policy", path, seed=5)
    assert len(asked) == 1 and path.exists()
    for row in rows:
        chain = show(row, 3, np.random.default_rng(0))
        assert chain == again(row, 3, np.random.default_rng(0)) and row["gold"] in chain
        assert not any("<think> 2 </think>" in answer for answer in chain)  # those were cut off
        assert show(row, 1, np.random.default_rng(0)) == [row["gold"]]
