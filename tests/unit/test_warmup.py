"""warmup.py: chains packed around the gold from the policy's own answers."""

from types import SimpleNamespace

import numpy as np
import pytest

from vpo_lab.config import get_profile
from vpo_lab.errors import LabError
from vpo_lab.files import write_json
from vpo_lab.runs import Run
from vpo_lab.tasks import each, get_task
from vpo_lab.train import sft as warmup
from vpo_lab.train.sft import fit_to_show, own_answers, own_demonstrations, pack_chain, train_sft

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
    """What `sample` was asked for; it answers each row with another row's gold, without form, and cut off."""
    asked, rows = [], get_task("tiny_tools").load(None, "train")[:4]

    def sample(model, tokenizer, prompts, **settings):
        asked.append((prompts, settings))
        texts = [f"<think> {number % 3} </think>\n<response> Which? </response>" for number in range(len(prompts))]
        texts[::3] = [row["gold"] for row in (*rows[1:], rows[0])]
        return texts, [settings["max_new_tokens"] if number % 3 == 2 else 5 for number in range(len(prompts))]

    monkeypatch.setattr(warmup, "sample", sample)
    monkeypatch.setattr(warmup, "load_policy", lambda *_: (None, lambda texts, **_: {"input_ids": [[1]] * len(texts)}))
    monkeypatch.setattr(warmup, "render_prompt", lambda tokenizer, messages, m: f"{messages[-1]['content']} x{m}")
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
    assert "of 12, 67% came to an end and 33% are well formed" in capsys.readouterr().out
    again = own_demonstrations(profile, real, tmp_path / "policy", path, seed=5)
    assert len(asked) == 1 and path.exists()
    for row in rows:
        chain = show(row, 3, np.random.default_rng(0))
        assert chain == again(row, 3, np.random.default_rng(0)) and row["gold"] in chain
        assert not any("<think> 2 </think>" in answer for answer in chain)  # those were cut off
        assert show(row, 1, np.random.default_rng(0)) == [row["gold"]]


# --- Without golds ----------------------------------------------------------------------------


def rng(seed=0):
    return np.random.default_rng(seed)


def test_own_answers_are_distinct_and_the_gold_stands_in_where_there_are_none():
    own = ["a", "b", "c", "d"]
    assert all(sorted(own_answers(GOLD, own, 3, rng(n), fill=True)) == ["a", "b", "c"] for n in range(5))
    assert {own_answers(GOLD, own, 1, rng(n), fill=False)[0] for n in range(40)} == set(own)
    assert own_answers(GOLD, [], 1, rng(), fill=False) == [GOLD]
    assert own_answers(GOLD, ["a", "b"], 3, rng(), fill=False) == []  # no chain that repeats
    assert sorted(own_answers(GOLD, ["a"], 3, rng(), fill=True)) == ["a", GOLD, GOLD]


def own_words(tmp_path, found: list[int], **settings):
    """What is shown of rows of which the untouched model has so many own samples."""
    path = tmp_path / "own.json.gz"
    write_json(path, {str(i): [f"own {i}.{j}" for j in range(n)] for i, n in enumerate(found)})
    overrides = {"policy.backend": "transformers", "sft.chains": "own", "sft.gold_steps": 0}
    profile = get_profile("smoke", {**overrides, **{f"sft.{name}": value for name, value in settings.items()}})
    return own_demonstrations(profile, FORMED, None, path, seed=0)


def test_too_few_rows_with_distinct_samples_end_the_warmup_in_one_line(tmp_path):
    with pytest.raises(LabError, match=r"only 40% .* 3 distinct.* sft.least_share") as caught:
        own_words(tmp_path, [3, 5, 2, 0, 1], least_share=0.5)
    assert "\n" not in str(caught.value)
    show = own_words(tmp_path, [3, 5, 2, 0, 1], least_share=0.4)
    chains = [show({"id": str(i), "gold": GOLD}, 3, rng()) for i in range(5)]
    assert [len(set(chain)) for chain in chains] == [3, 3, 0, 0, 0]
    assert [show({"id": str(i), "gold": GOLD}, 1, rng())[0].startswith("own") for i in range(5)] == [1, 1, 1, 0, 1]
    show = own_words(tmp_path, [2, 0], least_share=0.0)  # switched off: the gold fills what is missing
    assert [len(show({"id": str(i), "gold": GOLD}, 3, rng())) for i in range(2)] == [3, 3]


def test_after_golds_one_sample_less_is_enough(tmp_path):
    own_words(tmp_path, [2, 2], least_share=1.0, gold_steps=1)
    with pytest.raises(LabError, match="3 distinct"):
        own_words(tmp_path, [2, 2], least_share=1.0)


@pytest.fixture
def untouched(tmp_path):
    """A profile with a small untrained Qwen3 as the model that is to be kept, and its folder."""
    from vpo_lab.train.policy import load_policy

    model, tokenizer = load_policy(get_profile("smoke"), get_task("tiny_tools"), None, 7)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    lora = {"policy.backend": "transformers", "policy.model": str(tmp_path / "model"), "policy.lora_rank": 4}
    return get_profile("smoke", {**lora, "sft.train_rows": 4, "sft.own_samples": 3})


def test_without_gold_steps_the_untouched_model_is_sampled(untouched, tmp_path, monkeypatch):
    drawn_from = []
    monkeypatch.setattr(warmup, "_imitate", lambda profile, task, stage, steps, start, *_: (steps, start))
    monkeypatch.setattr(
        warmup, "_sample_rows", lambda p, t, policy, path, s: (drawn_from.append(policy), write_json(path, {"a": []}))
    )
    profile = untouched.with_overrides({"sft.chains": "own", "sft.gold_steps": 0, "sft.steps": 5})
    (tmp_path / "run" / "sft").mkdir(parents=True)
    assert train_sft(profile, Run(tmp_path / "run"), seed=0) == (5, None) and drawn_from == [None]


def test_no_steps_leave_the_model_as_it_was(untouched, tmp_path):
    """The authors' form: RL starts from the untouched model."""
    import torch

    from vpo_lab.train.policy import load_policy

    policy = train_sft(untouched.with_overrides({"sft.steps": 0}), Run(tmp_path / "run"), seed=0)
    assert Run(tmp_path / "run").stage("sft").has_policy() and Run(tmp_path / "run").log("sft") == []
    ours, tokenizer = load_policy(untouched, get_task("tiny_tools"), policy, 0)
    theirs, _ = load_policy(untouched, get_task("tiny_tools"), None, 1)
    ids = tokenizer("Book a table", return_tensors="pt")["input_ids"]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
