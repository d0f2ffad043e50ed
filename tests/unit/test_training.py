"""training.py: what TRL is given reaches the loss unchanged, and a killed stage ends as if it had not been."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vpo_lab.chains import join_chain
from vpo_lab.config import get_profile
from vpo_lab.errors import LabError
from vpo_lab.methods import METHODS, Method, answer_advantages
from vpo_lab.runs import Run, read_log
from vpo_lab.tasks import get_task
from vpo_lab.train import policy, rollouts, sft
from vpo_lab.train import rl as training
from vpo_lab.train import stage as stages
from vpo_lab.train.policy import load_policy
from vpo_lab.train.prompts import answers_per_rollout, load_rows, render_prompt, rollouts_per_prompt
from vpo_lab.train.rl import train_rl
from vpo_lab.train.rollouts import VectorReward, answer_of_tokens, score_rollouts
from vpo_lab.train.sft import train_sft
from vpo_lab.train.tiny_model import train_tokenizer

TASK = get_task("tiny_tools")
SMALL = {
    "sft.steps": 6,
    "sft.batch_rows": 8,
    "sft.train_rows": 64,
    "rl.learning_rate": 1e-3,
    "policy.hidden_size": 32,
    "policy.intermediate_size": 64,
    "policy.max_answer_tokens": 20,
}


def small(**overrides) -> object:
    """The smoke profile with a smaller model and steps large enough to see."""
    return get_profile("smoke", {**SMALL, **{name.replace("__", "."): value for name, value in overrides.items()}})


@pytest.fixture(scope="module")
def tokenizer():
    rng, template = np.random.default_rng(0), train_tokenizer([])
    texts = []
    for row in TASK.load(None, "train")[:120]:
        for m in (1, 3):
            texts += [render_prompt(template, row["prompt"], m), join_chain(TASK.demonstrations(row, m, rng))]
    return train_tokenizer(texts)


@pytest.fixture(autouse=True)
def quick_tokenizer(monkeypatch, tokenizer):
    """The real one is trained on every row, which takes seconds."""
    monkeypatch.setattr(policy, "scratch_tokenizer", lambda profile, task: tokenizer)


@pytest.fixture(scope="module")
def start(tmp_path_factory, tokenizer) -> Path:
    """An SFT policy that RL can start from: it has learned to end, and little else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "scratch_tokenizer", lambda profile, task: tokenizer)
        return train_sft(small(sft__steps=20, sft__batch_rows=32), Run(tmp_path_factory.mktemp("start")), seed=0)


@pytest.fixture
def run(tmp_path, start) -> Run:
    shutil.copytree(start, tmp_path / "run" / "sft" / "policy")
    return Run(tmp_path / "run")


@pytest.fixture
def letters(monkeypatch):
    """Rewards that untrained text earns, or every advantage and every gradient would be zero."""
    groups = ("abcdefgh", "ijklmnop", "qrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ ")

    def score(task, completions, golds, m):
        parts = [[text[j::m] for j in range(m)] for text in completions]
        return np.array(
            [[[sum(c in g for c in part) / max(len(part), 1) for g in groups] for part in row] for row in parts]
        )

    monkeypatch.setattr(rollouts, "score_rollouts", score)


# --- Scores -----------------------------------------------------------------------------------


def test_every_answer_of_every_rollout_is_scored_as_it_is_alone():
    rng, rows = np.random.default_rng(0), TASK.load(None, "train")[:8]
    answers = [TASK.demonstrations(row, 3, rng) for row in rows]
    rewards = score_rollouts(TASK, [join_chain(a) for a in answers], [row["gold"] for row in rows], 3)
    expected = [[TASK.score(a, row["gold"]) for a in three] for three, row in zip(answers, rows, strict=True)]
    assert rewards.shape == (8, 3, 4)
    assert np.array_equal(rewards, expected) and len(np.unique(rewards)) > 4


def test_equal_texts_are_scored_under_their_own_gold():
    first, second = TASK.load(None, "train")[:2]
    rewards = score_rollouts(TASK, [first["gold"]] * 2, [first["gold"], second["gold"]], 1)
    assert rewards[0, 0].tolist() == [1, 1, 1, 1] != rewards[1, 0].tolist()


def test_a_missing_answer_is_a_zero_vector():
    gold = TASK.load(None, "train")[0]["gold"]
    texts = [f"<answer_2>\n{gold}\n</answer_2>", "", "nothing that can be read", gold]
    rewards = score_rollouts(TASK, texts, [gold] * 4, 3)
    assert rewards[0].tolist() == [[0] * 4, [1] * 4, [0] * 4]
    assert not rewards[1:].any()


def test_only_methods_of_many_answers_get_m_candidates():
    profile = get_profile("smoke")
    assert {name: answers_per_rollout(profile, name) for name in ("grpo", "gdpo", "vpo", "multi_rlvr")} == {
        "grpo": 1,
        "gdpo": 1,
        "vpo": 3,
        "multi_rlvr": 3,
    }
    # Equal budgets: as many answers for a prompt, in as many rollouts as that takes.
    assert {name: rollouts_per_prompt(profile, name) for name in ("grpo", "vpo")} == {"grpo": 12, "vpo": 4}
    assert rollouts_per_prompt(get_profile("smoke", {"rl.candidates": 1}), "grpo") == 4


# --- The reward function ----------------------------------------------------------------------


class State:
    def __init__(self, global_step: int):
        self.global_step = global_step


@pytest.fixture(scope="module")
def batch() -> tuple[list[str], list[str]]:
    """Two groups of four chains: (completions, golds)."""
    rng, rows = np.random.default_rng(1), TASK.load(None, "train")[:2]
    chains = [join_chain(TASK.demonstrations(row, 3, rng)) for row in rows for _ in range(4)]
    return chains, [row["gold"] for row in rows for _ in range(4)]


def advantages(batch, method, step=0, seed=5, metrics=None, tokenizer=None, **more) -> np.ndarray:
    reward = VectorReward(TASK, method, m=3, group_size=4, seed=seed, tokenizer=tokenizer)
    metrics = {} if metrics is None else metrics
    return np.array(
        reward(
            prompts=[""] * 8,
            completions=batch[0],
            gold=batch[1],
            trainer_state=State(step),
            log_metric=metrics.__setitem__,
            **more,
        )
    )


@pytest.mark.parametrize("name", METHODS)
def test_it_returns_the_advantages_of_the_method(batch, name):
    method, more, stated = METHODS[name], {}, {}
    if name == "vpo_pool":
        method = method.with_options(pool=2)  # of 4 rollouts
    if method.states_goal:
        tenths = [[1, 2, 3, 4], [6, 0, 0, 4]]
        more["goal"] = [dict(zip(TASK.objectives, row, strict=True)) for row in tenths for _ in range(4)]
        stated["goals_PD"] = np.array(tenths) / 10
    rewards = score_rollouts(TASK, *batch, 3)
    expected = method.with_options(**stated).advantages(rewards, 4, np.random.default_rng([5, 7]))
    found = advantages(batch, method, step=7, **more)
    assert np.array_equal(found, expected) and found.std() > 0.1
    # TRL subtracts the group mean: there must be nothing left to subtract.
    assert np.abs(found.reshape(2, 4).mean(axis=1)).max() < 1e-9


def test_the_weights_change_with_seed_and_step_and_not_with_the_process(batch):
    vpo = METHODS["vpo"].with_options(weight_draws=1)
    first = advantages(batch, vpo, step=3)
    assert np.array_equal(first, advantages(batch, vpo, step=3))
    assert not np.array_equal(first, advantages(batch, vpo, step=4))
    assert not np.array_equal(first, advantages(batch, vpo, step=3, seed=6))


@pytest.mark.parametrize("name", ["grpo", "vpo"])
def test_a_rollout_that_never_ends_earns_nothing(batch, tokenizer, name):
    ended, unended = [9, 9, tokenizer.eos_token_id], [9, 9, 9]
    ids = [ended, unended, ended, ended, [], ended, ended, ended]
    metrics = {}
    found = advantages(batch, METHODS[name], completion_ids=ids, metrics=metrics, tokenizer=tokenizer)
    rewards = score_rollouts(TASK, *batch, 3)
    rewards[[1, 4]] = 0
    expected = METHODS[name].advantages(rewards, 4, np.random.default_rng([5, 0]))
    assert found == pytest.approx(expected, abs=1e-12)
    assert metrics["unended_rollouts"] == 0.25 and metrics["mean_reward"] == pytest.approx(rewards.mean())


def ids_of(tokenizer, text: str) -> list[int]:
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def test_every_token_gets_the_advantage_of_its_answer(batch, tokenizer):
    """An answer of a rollout that never ends is still compared with what the answers before it earned."""
    chains, golds = batch
    ids = [ids_of(tokenizer, chain) for chain in chains]
    ids[1].pop()
    method = METHODS["best_of_set"].with_options(credit="answer")
    reward = VectorReward(TASK, method, m=3, group_size=4, seed=5, tokenizer=tokenizer)
    reward([""] * 8, chains, golds, State(0), {}.__setitem__, completion_ids=ids)
    best = np.maximum.accumulate(score_rollouts(TASK, *batch, 3).mean(axis=2), axis=1)
    best[1, 2] = 0.0  # the whole is worth nothing, its first two answers are what they were
    prefix_PGN = np.concatenate([np.zeros((8, 1)), best], axis=1).reshape(2, 4, 4)
    reward_PG = prefix_PGN[:, :, -1]
    others_PG = (reward_PG.sum(axis=1, keepdims=True) - reward_PG) / 3
    expected = answer_advantages(prefix_PGN, others_PG).reshape(8, 3)
    assert np.abs(np.diff(expected, axis=1)).max() > 0.1
    for row, found, tokens in zip(expected, reward.token_advantages, ids, strict=True):
        closed = [sum(f"</answer_{j}>" in tokenizer.decode(tokens[:t]) for j in (1, 2)) for t in range(len(tokens))]
        assert found == pytest.approx(row[closed], abs=1e-9) and set(closed) == {0, 1, 2}


@pytest.mark.parametrize(
    "answers",
    [["one", "two", "three"], ["🙂 漢字", "é\n</answer", "\u2028"], ["", "<answer_7>", "x"], ["<|im_end|>", "b", "c"]],
    ids=str,
)
def test_tokens_of_a_chain_belong_to_their_answers(tokenizer, answers):
    text = "Sure: " + join_chain(answers)
    ids = ids_of(tokenizer, text)
    text = tokenizer.decode(ids, skip_special_tokens=True)  # what TRL hands over
    found = answer_of_tokens(tokenizer, ids, text, 3).tolist()
    # The first token that is not in an answer any more starts where all of its closing tag has been said.
    said = [tokenizer.decode(ids[:t]) for t in range(len(ids))]
    assert found == [("</answer_1>" in part) + ("</answer_2>" in part) for part in said]
    assert found[0] == 0 and found[-1] == 2
    assert answer_of_tokens(tokenizer, ids, text, 2).tolist() == [min(answer, 1) for answer in found]
    assert answer_of_tokens(tokenizer, ids, text, 1).tolist() == [0] * len(ids)


@pytest.mark.parametrize(
    "text, last",
    [
        ("", 0),
        ("no tags", 0),
        ("<answer_1>\na", 0),  # the end closes this answer
        ("<answer_1>\na\n</answer_1>", 1),  # it stands where the second could have begun
        ("<answer_1>\na\n</answer_1>\n<answer_2>\n", 1),
        ("<answer_1>\na\n</answer_1>\n<answer_2>\nb\n</answer_2>\n", 2),
        ("<answer_2>\nb\n</answer_2>", 0),
    ],
)
def test_the_end_belongs_to_the_answer_that_it_keeps_from_going_on(tokenizer, text, last):
    """Else stopping early would be compared with what stopping early earned."""
    ids = ids_of(tokenizer, text)
    assert answer_of_tokens(tokenizer, ids, text, 3)[-1] == last


def test_bytes_that_are_no_text_and_no_tokens_at_all(tokenizer):
    emoji = tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(emoji) > 1
    for cut in range(1, len(emoji)):
        ids = [*emoji[cut:], *emoji[:cut], *ids_of(tokenizer, join_chain(["🙂", "b"]))]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        found = answer_of_tokens(tokenizer, ids, text, 2)
        assert found.tolist() == ["</answer_1>" in tokenizer.decode(ids[:t]) for t in range(len(ids))]
    for m in (1, 3):
        assert answer_of_tokens(tokenizer, [], "", m).shape == (0,)


def test_it_logs_what_is_worth_a_look(batch):
    chains, golds = batch
    metrics = {}
    advantages(([chains[0]] * 4 + chains[4:], golds), METHODS["vpo"], metrics=metrics)
    rewards = score_rollouts(TASK, [chains[0]] * 4 + chains[4:], golds, 3)
    assert metrics["mean_reward"] == pytest.approx(rewards.mean())
    assert metrics["best_of_rollout"] == pytest.approx(rewards.mean(axis=2).max(axis=1).mean())
    assert metrics["best_of_group"] == pytest.approx(rewards.mean(axis=2).reshape(2, -1).max(axis=1).mean())
    assert metrics["mean_reward"] < metrics["set_reward"] < 1
    assert metrics["silent_groups"] == 0.5
    assert metrics["distinct_rollouts"] == (1 / 4 + len(set(chains[4:])) / 4) / 2
    for d, name in enumerate(TASK.objectives):
        assert metrics[f"objective/{name}"] == pytest.approx(rewards[:, :, d].mean())


# --- What TRL makes of it ---------------------------------------------------------------------


def spy(monkeypatch, owner, name: str, note) -> None:
    """Let `note(result, *arguments)` see every call of a method."""
    original = getattr(owner, name)

    def seen(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        note(result, *args, **kwargs)
        return result

    monkeypatch.setattr(owner, name, seen)


@pytest.mark.parametrize("method, micro", [("vpo", 0), ("grpo", 0), ("vpo", 4)])  # with credit per set
def test_the_loss_receives_the_advantages_unchanged(run, letters, monkeypatch, method, micro):
    from trl import GRPOTrainer

    returned, scored, used = [], [], []
    spy(monkeypatch, VectorReward, "__call__", lambda result, *a, **k: returned.append(result))
    spy(
        monkeypatch,
        GRPOTrainer,
        "_generate_and_score_completions",
        lambda out, *a, **k: scored.append((out["completion_ids"], out["completion_mask"], out["advantages"])),
    )
    spy(
        monkeypatch,
        GRPOTrainer,
        "_compute_loss",
        lambda loss, model, inputs: used.append((inputs["completion_ids"], inputs["advantages"])),
    )
    train_rl(small(rl__steps=2, rl__micro_rollouts=micro, rl__credit="set"), method, run, seed=0)

    assert len(returned) == len(scored) == 2 and len(used) == 2 * (16 // (micro or 16))
    for step, (ids, mask, found) in enumerate(scored):
        assert np.std(returned[step]) > 0.1
        assert found.numpy() == pytest.approx(returned[step], abs=1e-6)
        # Shuffled, but each completion still has its own advantage.
        taken = used[step * len(used) // 2 : (step + 1) * len(used) // 2]
        assert pairs(taken) == pairs([(ids, found)])
        # On fresh rollouts the ratio is 1, so the loss is the mean of -advantage over all tokens.
        loss = -(found * mask.sum(dim=1)).sum() / mask.sum()
        assert read_log(run / method)[step]["loss"] == pytest.approx(loss.item(), abs=2e-4)


@pytest.mark.parametrize("micro", [0, 4])
def test_the_loss_receives_one_advantage_per_answer_at_its_tokens(run, letters, tokenizer, monkeypatch, micro):
    from trl import GRPOTrainer

    # The policy knows no tags yet: its answers are the thirds of what it writes.
    monkeypatch.setattr(rollouts, "answer_ends", lambda text, m: [len(text) * j // m for j in range(1, m)])
    computed, used = [], []
    spy(monkeypatch, Method, "advantages", lambda result, *a, **k: computed.append(result))
    spy(monkeypatch, GRPOTrainer, "_compute_loss", lambda loss, model, inputs: used.append(dict(inputs)))
    train_rl(small(rl__steps=2, rl__micro_rollouts=micro, rl__credit="answer"), "vpo", run, seed=0)

    assert len(computed) == 2 and len(used) == 2 * (16 // (micro or 16))
    answers_met = set()
    for step, expected in enumerate(computed):
        assert expected.shape == (16, 3) and np.abs(np.diff(expected, axis=1)).max() > 1e-3
        taken, total, tokens = [], 0.0, 0
        for batch in used[step * len(used) // 2 : (step + 1) * len(used) // 2]:
            mask, advantages = batch["completion_mask"].bool(), batch["advantages"]
            assert advantages.shape == mask.shape
            total, tokens = total + (advantages * mask).sum().item(), tokens + mask.sum().item()
            for ids, kept, row in zip(batch["completion_ids"], mask, advantages, strict=True):
                said = [tokenizer.decode(ids[kept][:t], skip_special_tokens=True) for t in range(kept.sum() + 1)]
                thirds = [len(said[-1]) // 3, len(said[-1]) * 2 // 3]
                third = [sum(len(part.rstrip("\ufffd")) >= end for end in thirds) for part in said[:-1]]
                by_answer = {int(answer): float(a) for answer, a in zip(third, row[kept], strict=True)}
                assert row[kept].numpy() == pytest.approx([by_answer[answer] for answer in third])
                taken.append(by_answer)
                answers_met |= set(third)
        # Shuffled, but every rollout has its own numbers.
        for by_answer in taken:
            assert any(all(abs(row[j] - a) < 1e-5 for j, a in by_answer.items()) for row in expected)
        assert sum(found.get(0, 0.0) for found in taken) == pytest.approx(expected[:, 0].sum(), abs=1e-4)
        assert read_log(run / "vpo")[step]["loss"] == pytest.approx(-total / tokens, abs=2e-4)
    assert answers_met == {0, 1, 2}


def pairs(batches) -> list[tuple]:
    return sorted(
        (tuple(row), round(float(a), 6)) for ids, found in batches for row, a in zip(ids.tolist(), found, strict=True)
    )


@pytest.mark.parametrize("method, m, group_size", [("grpo", 1, 12), ("vpo", 3, 4), ("vpo_pool", 3, 4)])
def test_the_trainer_gets_the_numbers_of_the_profile(run, monkeypatch, method, m, group_size):
    given = []
    monkeypatch.setattr(training, "run_stage", lambda trainer, *rest: given.append((trainer, rest)))
    settings = {"rl__temperature": 0.9, "rl__max_grad_norm": 0.3, "rl__warmup_steps": 7, "rl__checkpoint_every": 5}
    options = {"weight_draws": 9, "alpha": 2.0, "sampler": "iid", "shared_draws": False, "pool": 1}
    options |= {"diversity": 0.1, "duplicates": "drop", "credit": "set"}
    settings |= {f"rl__{name}": value for name, value in options.items()} | {"rl__schedule": "linear"}
    profile = small(rl__steps=11, rl__micro_rollouts=4, **settings)
    train_rl(profile, method, run, seed=4)
    ((trainer, (stage, steps, _, stop_at, example)),) = given
    assert example() == ""  # nothing was sampled yet
    assert stop_at is None  # no --max-hours
    args = trainer.args
    assert (args.temperature, args.max_grad_norm, args.warmup_steps, args.save_steps) == (0.9, 0.3, 7, 5)
    assert (args.max_steps, args.learning_rate, args.seed) == (11, 1e-3, 4) and (stage, steps) == (
        run.stage(method),
        11,
    )
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 4 * group_size
    assert (args.per_device_train_batch_size, args.num_generations) == (4, group_size)
    assert args.max_completion_length == 20 * m
    assert (args.top_p, args.top_k, args.min_p, args.beta, args.num_iterations) == (1.0, 0, None, 0.0, 1)
    reward = trainer.reward_funcs[0]
    # What a method has fixed is its own; the rest is the profile's.
    expected = {"grpo": {}, "vpo": options, "vpo_pool": {**options, "pool": 4}}
    assert dict(reward.method.options) == expected[method]
    assert (reward.method.name, reward.m, reward.group_size, reward.seed) == (method, m, group_size, 4)
    assert reward.tokenizer is trainer.processing_class and args.lr_scheduler_type == "linear"


def test_sft_learns_the_answer_and_its_end_and_nothing_of_the_prompt(tmp_path, tokenizer, monkeypatch):
    from trl import SFTTrainer

    seen = []

    def note(loss, model, inputs, *args, **kwargs):
        seen.append((inputs["input_ids"], inputs["labels"], inputs["attention_mask"]))

    spy(monkeypatch, SFTTrainer, "compute_loss", note)
    train_sft(small(sft__steps=2), Run(tmp_path), seed=0)
    assert len(seen) == 2
    asked = []
    for ids, labels, mask in (row for batch in seen for row in zip(*batch, strict=True)):
        ids, labels = ids[mask.bool()], labels[mask.bool()]
        cut = int((labels != -100).int().argmax())
        prompt, answer = tokenizer.decode(ids[:cut]), tokenizer.decode(ids[cut:])
        assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert answer.startswith(("<think>", "<answer_1>")) and answer.endswith("<|im_end|>")
        assert labels[:cut].eq(-100).all() and labels[cut:].equal(ids[cut:])
        asked.append("3 different answers" in prompt)
        assert asked[-1] == answer.startswith("<answer_1>")
    for _, labels, mask in seen:
        assert labels[~mask.bool()].eq(-100).all()
    assert 4 <= sum(asked) <= 12


def test_half_of_the_sft_rows_ask_for_a_chain_and_every_row_meets_both(tokenizer):
    profile = small(sft__steps=16)
    data = sft._sft_dataset(profile, tokenizer, TASK, profile.sft.steps, TASK.demonstrations, seed=0)
    texts = [tokenizer.decode(ids) for ids in data["input_ids"]]
    chains = ["3 different answers" in text for text in texts]
    assert len(texts) == 128 and sum(chains) == 64
    requests = [text.split("<user>")[1].split("</user>")[0] for text in texts]
    assert len(set(zip(requests, chains, strict=True))) == 128


# --- Rows -------------------------------------------------------------------------------------


def test_rows_that_fit_are_kept_in_order_and_limited(tokenizer, capsys):
    rows = TASK.load(None, "test")
    texts = [render_prompt(tokenizer, row["prompt"], 3) for row in rows]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    window = int(np.median(lengths))
    assert min(lengths) <= window < max(lengths)
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length <= window]
    profile = small(policy__max_prompt_tokens=window)
    assert load_rows(profile, TASK, "test", tokenizer) == fitting
    assert f"{len(rows) - len(fitting)} of 200 test prompts are longer than {window} tokens" in capsys.readouterr().out
    assert load_rows(profile, TASK, "test", tokenizer, limit=3) == fitting[:3]
    capsys.readouterr()
    assert len(load_rows(small(), TASK, "test", tokenizer)) == 200
    assert capsys.readouterr().out == ""


def test_no_row_that_fits_is_one_line_that_says_how_long_they_are(tokenizer):
    with pytest.raises(LabError, match=r"no test prompt .*max_prompt_tokens = 3 \(the shortest has \d+\): raise it"):
        load_rows(small(policy__max_prompt_tokens=3), TASK, "test", tokenizer)


# --- Policies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, hint",
    [
        ({"policy.backend": "keras"}, "unknown policy.backend 'keras': choose one of scratch"),
        ({"policy.backend": "transformers", "policy.model": "no/such/folder"}, "cannot load the model no/such/folder"),
    ],
)
def test_a_policy_that_cannot_be_had_is_one_line(overrides, hint, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LabError, match=hint) as caught:
        load_policy(get_profile("smoke", overrides), TASK, None, seed=0)
    assert "\n" not in str(caught.value)


def test_without_a_gpu_the_full_profile_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LabError, match="needs a CUDA GPU") as caught:
        load_policy(get_profile("qwen3-1.7b"), TASK, None, seed=0)
    assert "\n" not in str(caught.value) and "--profile tiny" in str(caught.value)


def test_rl_before_sft_is_one_line(tmp_path):
    with pytest.raises(LabError, match="sft") as caught:
        train_rl(small(), "vpo", Run(tmp_path), seed=0)
    assert "\n" not in str(caught.value)


def test_an_unknown_method_is_refused(tmp_path):
    with pytest.raises(LabError, match="unknown method 'ppo'"):
        train_rl(small(), "ppo", Run(tmp_path), seed=0)


# --- Logs -------------------------------------------------------------------------------------


def test_the_log_holds_the_metrics_and_not_trls_view_of_the_reward(run, letters):
    train_rl(small(rl__steps=2), "vpo", run, seed=0)
    for entry in read_log(run / "vpo"):
        assert {"step", "loss", "grad_norm", "set_reward", "mean_reward", "completions/mean_length"} <= set(entry)
        assert {f"objective/{name}" for name in TASK.objectives} <= set(entry)
        assert not {"reward", "reward_std", "rewards/advantage/mean", "epoch"} & set(entry)
        assert all(np.isfinite(value) for value in entry.values())


# --- Killed and started again -----------------------------------------------------------------


class Killed(BaseException):
    """Like a signal: nothing in between catches it."""


def kill_at(monkeypatch, step: int) -> None:
    """End the training when this step is done."""

    def update(self, done):
        if done >= step:
            raise Killed

    monkeypatch.setattr(stages.StageProgress, "update", update)


def kept(folder: Path) -> dict:
    return load_file(folder / "policy" / "model.safetensors")


def assert_same_end(straight: Path, resumed: Path, steps: int) -> None:
    expected, found = kept(straight), kept(resumed)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    logs = read_log(straight), read_log(resumed)
    assert [entry["step"] for entry in logs[1]] == list(range(1, steps + 1))
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]


def cut_newest(checkpoints: Path) -> None:
    newest = max(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


@pytest.mark.parametrize("rows, damage", [(64, False), (8, True)], ids=["first epoch", "second epoch, newest cut"])
def test_a_killed_sft_ends_with_the_same_weights(tmp_path, monkeypatch, capsys, rows, damage):
    # 8 rows make a data set of 32 examples: four steps an epoch, a checkpoint every two steps.
    profile, straight, resumed = small(sft__steps=9, sft__train_rows=rows), Run(tmp_path / "a"), Run(tmp_path / "b")
    train_sft(profile, straight, seed=0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 7)
        train_sft(profile, resumed, seed=0)
    assert not (resumed / "sft" / "policy").exists()
    if damage:
        cut_newest(resumed / "sft" / "checkpoints")
    train_sft(profile, resumed, seed=0)
    assert ("using the one before it" in capsys.readouterr().out) == damage
    assert_same_end(straight / "sft", resumed / "sft", 9)


@pytest.mark.parametrize(
    "method, rows, micro, damage",
    [
        ("grpo", 64, 0, False),
        ("vpo", 64, 4, True),
        ("vpo", 12, 0, False),  # three steps an epoch: resumed in the second
        ("vpo", 8, 0, False),  # two steps an epoch: resumed where one ends
    ],
    ids=["first epoch", "micro batches, newest cut", "second epoch", "end of an epoch"],
)
def test_a_killed_rl_stage_ends_with_the_same_weights(
    run, letters, monkeypatch, capsys, tmp_path, method, rows, micro, damage
):
    profile = small(rl__steps=6, rl__train_rows=rows, rl__micro_rollouts=micro)
    straight = Run(tmp_path / "straight")
    shutil.copytree(run, straight)
    train_rl(profile, method, straight, seed=0)
    before, after = kept(run / "sft"), kept(straight / method)
    assert max(float((after[name] - before[name]).abs().max()) for name in after) > 1e-3
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
        train_rl(profile, method, run, seed=0)
    if damage:
        cut_newest(run / method / "checkpoints")
    train_rl(profile, method, run, seed=0)
    assert ("using the one before it" in capsys.readouterr().out) == damage
    assert_same_end(straight / method, run / method, 6)


def test_fewer_rows_than_a_step_needs_still_train(run, letters):
    train_rl(small(rl__steps=2, rl__train_rows=3), "vpo", run, seed=0)
    assert [entry["step"] for entry in read_log(run / "vpo")] == [1, 2]


def test_finished_stages_are_not_repeated(run, letters, monkeypatch):
    first = train_rl(small(rl__steps=1), "vpo", run, seed=0)
    monkeypatch.setattr(training, "load_policy", None)
    assert train_rl(small(rl__steps=1), "vpo", run, seed=0) == first == run / "vpo" / "policy"
    assert train_sft(small(), run, seed=0) == run / "sft" / "policy"


def test_more_steps_end_as_if_asked_for_at_once(run, letters, tmp_path):
    straight = Run(tmp_path / "straight")
    shutil.copytree(run, straight)
    few, many = (small(rl__steps=steps, rl__schedule="constant_with_warmup") for steps in (2, 5))
    train_rl(many, "vpo", straight, seed=0)
    train_rl(few, "vpo", run, seed=0)
    run.stage("vpo").stop(2, 5, until=0.0)  # what `open_run` does where rl.steps has grown
    train_rl(many, "vpo", run, seed=0)
    assert_same_end(straight / "vpo", run / "vpo", 5)
    assert run.stage("vpo").stopped is None


@pytest.mark.parametrize("stage", ["sft", "vpo"])
def test_killed_before_its_policy_stood_it_trains_no_step_too_many(tmp_path, run, letters, stage):
    """8 rows: the data set of SFT has four steps an epoch, and the last step lies within one."""
    profile, run = (
        small(sft__steps=6, sft__train_rows=8, rl__steps=2),
        Run(run.folder) if stage == "vpo" else Run(tmp_path),
    )

    def train() -> Path:
        return train_sft(profile, run, seed=0) if stage == "sft" else train_rl(profile, stage, run, seed=0)

    weights = (train() / "model.safetensors").read_bytes()
    log = (run / stage / "log.jsonl").read_text()
    shutil.rmtree(run.stage(stage).policy)
    assert (train() / "model.safetensors").read_bytes() == weights
    assert (run / stage / "log.jsonl").read_text() == log


def test_a_stage_that_another_process_trains_is_refused(run, letters):
    with run.stage("vpo").lock(), pytest.raises(LabError, match="in use"):
        train_rl(small(rl__steps=1), "vpo", run, seed=0)
    shutil.rmtree(run.stage("sft").policy)
    with run.stage("sft").lock(), pytest.raises(LabError, match="in use"):
        train_sft(small(), run, seed=0)
    assert not (run / "vpo" / "log.jsonl").exists() and not (run / "sft" / "log.jsonl").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_is_full_while_a_checkpoint_is_saved_is_one_line(run, letters):
    checkpoint = run / "vpo" / "checkpoints" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "optimizer.pt").symlink_to("/dev/full")
    with pytest.raises(LabError, match="disk full while writing") as caught:
        train_rl(small(), "vpo", run, seed=0)
    assert "\n" not in str(caught.value)
    assert not (run / "vpo" / "policy").exists()


# --- Weights & Biases -------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch):
    """The real package, with no variable that could let it reach anything."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    return pytest.importorskip("wandb")


@pytest.mark.parametrize(
    "environment, tracks",
    [
        ({}, False),
        ({"WANDB_API_KEY": "a"}, True),
        ({"WANDB_MODE": "offline"}, True),
        ({"WANDB_API_KEY": "a", "WANDB_MODE": "disabled"}, False),
        ({"WANDB_API_KEY": "a", "WANDB_DISABLED": "true"}, False),
    ],
)
def test_tracking_needs_a_key_and_can_be_turned_off(run, wandb, monkeypatch, environment, tracks):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    reported = stages._common_arguments(small(track=True), run.stage("vpo"), 0)
    assert reported["report_to"] == ["wandb"] * tracks and reported["run_name"] == "smoke-vpo-seed0"
    assert stages._common_arguments(small(), run.stage("vpo"), 0)["report_to"] == []


def test_a_tracker_that_fails_does_not_end_the_training(run, letters, wandb, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "too short to be one")
    train_rl(small(rl__steps=2, track=True), "grpo", run, seed=0)
    assert [entry["step"] for entry in run.log("grpo")] == [1, 2] and run.stage("grpo").has_policy()
    assert [line for line in capsys.readouterr().out.splitlines() if "W&B" in line]


def test_the_manifest_of_a_policy_names_its_shape(run, letters):
    folder = train_rl(small(rl__steps=1), "grpo", run, seed=0)
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["model_type"]) == (32, "qwen3")
    model, tokenizer = load_policy(small(), TASK, folder, seed=0)
    assert model.config.vocab_size == len(tokenizer)
