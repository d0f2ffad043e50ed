"""Training of stages: what the profile says reaches TRL, and a killed stage ends as if it had not been."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOTrainer, SFTTrainer

from vpo_lab.config import get_profile
from vpo_lab.errors import LabError
from vpo_lab.runs import Run, read_log
from vpo_lab.tasks import get_task, score_chains
from vpo_lab.train import rl as training
from vpo_lab.train import sft
from vpo_lab.train import stage as stages
from vpo_lab.train.policy import load_policy, scratch_tokenizer
from vpo_lab.train.prompts import (
    HELD_OUT,
    answers_per_rollout,
    evaluation_rows,
    load_rows,
    render_prompt,
    rollouts_per_prompt,
    rollouts_per_step,
)
from vpo_lab.train.rl import train_rl
from vpo_lab.train.sft import train_sft
from vpo_lab.train.tiny_model import train_tokenizer
from vpo_lab.train.trainer import earned, try_longest
from vpo_lab.train.trl import VPOMixin

# A small policy writes its answers, tags and all, after a few steps: else nothing would be earned, nor trained.
LETTERS = f"{Path(__file__).parents[1] / 'letters.py'}:Letters"
TASK, TINY_TOOLS = get_task(LETTERS), get_task("tiny_tools")
SMALL = {
    "task": LETTERS,
    "sft.steps": 6,
    "sft.batch_rows": 8,
    "rl.learning_rate": 1e-3,
    "policy.hidden_size": 32,
    "policy.intermediate_size": 64,
}


def small(**overrides):
    """The smoke profile with a smaller task and model, and steps large enough to see."""
    return get_profile("smoke", {**SMALL, **{name.replace("__", "."): value for name, value in overrides.items()}})


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """An SFT policy that RL can start from."""
    profile = small(sft__steps=30, sft__batch_rows=32, sft__learning_rate=1e-2)
    return train_sft(profile, Run(tmp_path_factory.mktemp("start")), seed=0)


@pytest.fixture
def run(tmp_path, start) -> Run:
    shutil.copytree(start, tmp_path / "run" / "sft" / "policy")
    return Run(tmp_path / "run")


def spy(monkeypatch, owner, name: str, note) -> None:
    """Let `note(result, *arguments)` see every call of a method."""
    original = getattr(owner, name)

    def seen(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        note(result, *args, **kwargs)
        return result

    monkeypatch.setattr(owner, name, seen)


# --- What TRL is given, and what it makes of it -----------------------------------------------


def test_only_methods_of_many_answers_get_m_candidates():
    profile = get_profile("smoke")
    answers = {name: answers_per_rollout(profile, name) for name in ("grpo", "gdpo", "vpo", "multi_rlvr")}
    assert answers == {"grpo": 1, "gdpo": 1, "vpo": 3, "multi_rlvr": 3}
    # Equal budgets: as many answers for a prompt, in as many rollouts as that takes.
    assert {name: rollouts_per_prompt(profile, name) for name in ("grpo", "vpo")} == {"grpo": 12, "vpo": 4}
    assert rollouts_per_prompt(get_profile("smoke", {"rl.candidates": 1}), "grpo") == 4


@pytest.mark.parametrize("method, m, group_size", [("grpo", 1, 12), ("vpo", 3, 4), ("vpo_search", 3, 4)])
def test_the_trainer_gets_the_numbers_of_the_profile(run, monkeypatch, method, m, group_size):
    given = []
    monkeypatch.setattr(training, "run_stage", lambda trainer, *rest: given.append((trainer, rest)))
    settings = {"temperature": 0.9, "max_grad_norm": 0.3, "warmup_steps": 7, "checkpoint_every": 5, "steps": 11}
    options = {"weight_draws": 9, "alpha": 2.0, "search_k": 2, "diversity": 0.1, "scale_rewards": False}
    settings |= {"schedule": "linear", "micro_rollouts": 4, **options}
    train_rl(small(**{f"rl__{name}": value for name, value in settings.items()}), method, run, seed=4)
    ((trainer, (stage, steps, _, stop_at, example)),) = given
    assert example() == ""  # nothing was sampled yet
    assert stop_at is None  # no --max-hours
    assert (stage, steps) == (run.stage(method), 11)
    args = trainer.args
    assert (args.temperature, args.max_grad_norm, args.warmup_steps, args.save_steps) == (0.9, 0.3, 7, 5)
    assert (args.max_steps, args.learning_rate, args.seed, args.lr_scheduler_type) == (11, 1e-3, 4, "linear")
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 4 * group_size
    assert (args.per_device_train_batch_size, args.num_generations) == (4, group_size)
    assert args.max_completion_length == 15 * m
    assert (args.top_p, args.top_k, args.min_p, args.beta, args.num_iterations) == (1.0, 0, None, 0.0, 1)
    searched = {"weight_draws", "alpha", "search_k", "diversity"}
    expected = {
        "grpo": {"scale_rewards"},
        "vpo": {"weight_draws", "alpha", "scale_rewards"},
        "vpo_search": searched,
    }[method]
    assert dict(trainer.method.options) == {name: options[name] for name in expected}
    assert (trainer.method.name, trainer.vpo.candidates) == (method, m)
    assert trainer.reward_func_names == [*TASK.objectives]


def test_answers_earn_what_the_task_says_and_the_log_says_it(run, monkeypatch):
    seen = []
    spy(monkeypatch, VPOMixin, "measure", lambda logged, scored: seen.append(scored))
    train_rl(small(rl__steps=2), "vpo", run, seed=0)
    rows = {row["id"]: row for row in TASK.load()}
    for scored, entry in zip(seen, run.log("vpo"), strict=True):
        rewards_BMD = score_chains(TASK, scored.completions, [rows[row["id"]] for row in scored.inputs], 3)
        rewards_BMD[scored.truncated_B] = 0
        assert np.array_equal(earned(scored), rewards_BMD) and rewards_BMD.any()
        assert entry["mean_reward"] == pytest.approx(rewards_BMD.mean(), abs=1e-6)
        assert {f"objective/{name}/{of}" for name in TASK.objectives for of in ("mean", "best")} <= set(entry)
        assert {"loss", "grad_norm", "reward", "set_reward", "silent_groups", "completions/mean_length"} <= set(entry)
        assert not [key for key in entry if key.startswith("rewards/")]  # what an objective contributed to R(S)
        assert all(np.isfinite(value) for value in entry.values())


@pytest.mark.parametrize("method, micro", [("grpo", 0), ("vpo", 4), ("vpo_credit", 0), ("vpo_credit", 4)])
def test_the_loss_receives_every_rollout_with_its_advantage(run, monkeypatch, method, micro):
    """Which advantage that is: tests/unit/test_vpo_trainer.py."""
    batches, used = [], []
    spy(monkeypatch, VPOMixin, "_generate_and_score_completions", lambda batch, *_: batches.append(batch))
    spy(monkeypatch, GRPOTrainer, "_compute_loss", lambda loss, model, inputs: used.append(dict(inputs)))
    train_rl(small(rl__steps=2, rl__micro_rollouts=micro), method, run, seed=0)
    assert len(batches) == 2
    for step, batch in enumerate(batches):
        taken = used[step * len(used) // 2 : (step + 1) * len(used) // 2]
        assert len(taken) == len(batch["advantages"]) // (micro or len(batch["advantages"]))
        assert pairs(taken) == pairs([batch])  # shuffled
        mask_BT, advantages = batch["completion_mask"], batch["advantages"]
        if method != "vpo_credit":
            advantages = advantages[:, None]
        # On fresh rollouts the ratio is 1, so the loss is the mean of -advantage over all tokens.
        loss = -(advantages * mask_BT).sum() / mask_BT.sum()
        assert run.log(method)[step]["loss"] == pytest.approx(loss.item(), abs=2e-4)


def pairs(batches) -> list[tuple]:
    return sorted(
        (ids.tolist(), np.atleast_1d(advantages).tolist())
        for batch in batches
        for ids, advantages in zip(batch["completion_ids"], batch["advantages"], strict=True)
    )


def test_sft_learns_the_answer_and_its_end_and_nothing_of_the_prompt(tmp_path, monkeypatch):
    seen, tokenizer = [], scratch_tokenizer(small(), TASK)

    spy(monkeypatch, SFTTrainer, "compute_loss", lambda loss, model, inputs, *_, **__: seen.append(dict(inputs)))
    train_sft(small(sft__steps=2), Run(tmp_path), seed=0)
    assert len(seen) == 2
    asked = []
    for ids, labels, mask in rows_of(seen):
        ids, labels = ids[mask.bool()], labels[mask.bool()]
        cut = int((labels != -100).int().argmax())
        prompt, answer = tokenizer.decode(ids[:cut]), tokenizer.decode(ids[cut:])
        assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert answer[0] in "<αβγδεζηθ" and answer.endswith("<|im_end|>")
        assert labels[:cut].eq(-100).all() and labels[cut:].equal(ids[cut:])
        asked.append("3 different answers" in prompt)
        assert asked[-1] == answer.startswith("<answer_1>")
    for batch in seen:
        labels, mask = batch["labels"], batch["attention_mask"]
        assert labels[~mask.bool()].eq(-100).all()
    assert 4 <= sum(asked) <= 12


def rows_of(batches):
    keys = ("input_ids", "labels", "attention_mask")
    return (row for batch in batches for row in zip(*(batch[key] for key in keys), strict=True))


def test_half_of_the_sft_rows_ask_for_a_chain_and_every_row_meets_both():
    profile = small(sft__steps=12)
    tokenizer = scratch_tokenizer(profile, TASK)
    data = sft._sft_dataset(profile, tokenizer, TASK, profile.sft.steps, TASK.demonstrations, seed=0)
    texts = [tokenizer.decode(ids) for ids in data["input_ids"]]
    chains = ["3 different answers" in text for text in texts]
    assert len(texts) == 96 and sum(chains) == 48
    requests = [text.split("<|im_start|>user\n")[1][:6] for text in texts]
    assert len(set(zip(requests, chains, strict=True))) == 96


def test_rows_that_the_start_solves_in_all_samples_are_left_out(monkeypatch, tmp_path, capsys):
    rows, asked = TINY_TOOLS.load()[:5], []

    def answers(profile, model, tokenizer, rows, n, *_):
        asked.append(n)
        return [(row, [row["gold"]] * k + [""] * (n - k)) for row, k in zip(rows, (3, 2, 0, 3, 1), strict=True)]

    monkeypatch.setattr(training, "draw_answers", answers)
    profile, path = small(rl__drop_solved=3), tmp_path / "solved.json.gz"
    rest = {"path": path, "seed": 0, "stage": Run(tmp_path).stage("vpo")}
    for _ in range(2):  # by the second method the samples are there
        kept = training.without_solved(profile, TINY_TOOLS, None, None, rows, **rest)
        assert [row["id"] for row in kept] == [rows[i]["id"] for i in (1, 2, 4)]
    assert asked == [3] and "2 of 5 rows are solved" in capsys.readouterr().out
    assert training.without_solved(small(), TINY_TOOLS, None, None, rows, **rest) == rows  # off
    with pytest.raises(LabError, match="every row is solved"):
        training.without_solved(profile, TINY_TOOLS, None, None, [rows[0], rows[3]], **rest)


# --- Rows -------------------------------------------------------------------------------------


def test_rows_that_fit_are_kept_in_order_and_limited(capsys):
    tokenizer, rows = train_tokenizer([]), TINY_TOOLS.load(None, "test")
    texts = [render_prompt(tokenizer, row["prompt"], 3) for row in rows]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    window = int(np.median(lengths))
    assert min(lengths) <= window < max(lengths)
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length <= window]
    profile = small(policy__max_prompt_tokens=window)
    assert load_rows(profile, TINY_TOOLS, "test", tokenizer) == fitting
    assert f"{len(rows) - len(fitting)} of 200" in capsys.readouterr().out
    assert load_rows(profile, TINY_TOOLS, "test", tokenizer, limit=3) == fitting[:3]
    capsys.readouterr()
    assert len(load_rows(small(policy__max_prompt_tokens=10**6), TINY_TOOLS, "test", tokenizer)) == 200
    assert capsys.readouterr().out == ""


def test_no_row_that_fits_is_one_line_that_names_the_setting():
    with pytest.raises(LabError, match=r"max_prompt_tokens = 3\b"):
        load_rows(small(policy__max_prompt_tokens=3), TASK, "test", train_tokenizer([]))


def test_rows_held_out_are_in_pools_and_looks_and_in_no_training(run, monkeypatch):
    tokenizer, data, watched = train_tokenizer([]), [], []
    profile = small(evaluation__held_out=5, evaluation__every=1, evaluation__watch_requests=3, evaluation__requests=0)
    apart = [row["id"] for row in load_rows(profile, TASK, HELD_OUT, tokenizer)]
    kept = [row["id"] for row in load_rows(profile, TASK, "train", tokenizer)]
    assert len(apart) == 5 and sorted([*apart, *kept]) == sorted(row["id"] for row in TASK.load())
    assert apart == [row["id"] for row in load_rows(profile, TASK, HELD_OUT, tokenizer)]  # the same every time
    tests = [row["id"] for row in TASK.load(None, "test")]
    assert [row["id"] for row in evaluation_rows(profile, TASK, tokenizer)] == [*tests, *apart]
    fewer = profile.with_overrides({"evaluation.requests": 9})
    assert [row["id"] for row in evaluation_rows(fewer, TASK, tokenizer)] == [*tests, apart[0]]

    def look(trainer, *_):
        data.extend(trainer.train_dataset["id"])
        watched.extend(trainer.eval_dataset["id"])

    monkeypatch.setattr(training, "run_stage", look)
    train_rl(profile.with_overrides({"rl.steps": 60, "rl.train_rows": 0}), "vpo", run, seed=0)
    assert watched == apart[:3] and set(data) == set(kept)
    shown = []
    demonstrate = lambda row, n, rng: shown.append(row["id"]) or TASK.demonstrations(row, n, rng)  # noqa: E731
    sft._sft_dataset(profile, scratch_tokenizer(profile, TASK), TASK, 60, demonstrate, seed=0)
    assert set(shown) <= set(kept)


def test_equal_prompts_are_never_on_both_sides():
    class Twins:
        name = "twins"

        def load(self, path, split):
            return [{"id": str(n), "prompt": [{"role": "user", "content": f"{n // 4}"}], "gold": ""} for n in range(40)]

    profile, sides = small(evaluation__held_out=3), []
    for split in ("train", HELD_OUT):
        sides.append({row["prompt"][0]["content"] for row in load_rows(profile, Twins(), split, train_tokenizer([]))})
    assert not sides[0] & sides[1] and all(sides)


def test_more_rows_held_out_than_there_are_is_one_line():
    with pytest.raises(LabError, match="held_out = 48"):
        load_rows(small(evaluation__held_out=48), TASK, "train", train_tokenizer([]))
    with pytest.raises(LabError, match="held_out >= evaluation"):
        small(evaluation__every=5)


# --- Policies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, hint",
    [
        ({"policy.backend": "keras"}, "policy.backend 'keras'"),
        ({"policy.backend": "transformers", "policy.model": "no/such/folder"}, "no/such/folder"),
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


@pytest.mark.parametrize("rows, damage", [(48, False), (8, True)], ids=["first epoch", "second epoch, newest cut"])
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
        ("grpo", 48, 0, False),
        ("vpo_credit", 12, 4, True),  # three steps an epoch: resumed in the second
        ("vpo", 8, 0, False),  # two steps an epoch: resumed where one ends
    ],
    ids=["first epoch", "second epoch, micro batches, newest cut", "end of an epoch"],
)
def test_a_killed_rl_stage_ends_with_the_same_weights(run, monkeypatch, capsys, tmp_path, method, rows, micro, damage):
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


def test_fewer_rows_than_a_step_needs_still_train(run):
    train_rl(small(rl__steps=2, rl__train_rows=3), "vpo", run, seed=0)
    assert [entry["step"] for entry in read_log(run / "vpo")] == [1, 2]


def test_finished_stages_are_not_repeated(run, monkeypatch):
    first = train_rl(small(rl__steps=1), "vpo", run, seed=0)
    monkeypatch.setattr(training, "load_policy", None)
    assert train_rl(small(rl__steps=1), "vpo", run, seed=0) == first == run / "vpo" / "policy"
    assert train_sft(small(), run, seed=0) == run / "sft" / "policy"


def test_more_steps_end_as_if_asked_for_at_once(run, tmp_path):
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
def test_killed_before_its_policy_stood_it_trains_no_step_too_many(tmp_path, run, stage):
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


def test_a_stage_that_another_process_trains_is_refused(run):
    with run.stage("vpo").lock(), pytest.raises(LabError, match="in use"):
        train_rl(small(rl__steps=1), "vpo", run, seed=0)
    shutil.rmtree(run.stage("sft").policy)
    with run.stage("sft").lock(), pytest.raises(LabError, match="in use"):
        train_sft(small(), run, seed=0)
    assert not (run / "vpo" / "log.jsonl").exists() and not (run / "sft" / "log.jsonl").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_is_full_while_a_checkpoint_is_saved_is_one_line(run):
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


def test_a_tracker_that_fails_does_not_end_the_training(run, wandb, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "too short to be one")
    train_rl(small(rl__steps=2, track=True), "grpo", run, seed=0)
    assert [entry["step"] for entry in run.log("grpo")] == [1, 2] and run.stage("grpo").has_policy()
    assert [line for line in capsys.readouterr().out.splitlines() if "W&B" in line]


def test_the_manifest_of_a_policy_names_its_shape(run):
    folder = train_rl(small(rl__steps=1), "grpo", run, seed=0)
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["model_type"]) == (32, "qwen3")
    model, tokenizer = load_policy(small(), TASK, folder, seed=0)
    assert model.config.vocab_size == len(tokenizer)


# --- Gradients that are not finite ------------------------------------------------------------


def break_gradients(monkeypatch, broken: set[int]) -> None:
    """Put a NaN into one gradient of these optimizer steps, as cuDNN's attention did on an H100."""
    steps = iter(range(1, 100))
    dropped = stages.drop_broken_gradient

    def breaking(model):
        if next(steps) in broken:
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = float("nan")
        return dropped(model)

    monkeypatch.setattr(stages, "drop_broken_gradient", breaking)


def test_a_gradient_that_is_not_finite_is_left_out_and_said(run, monkeypatch, capsys):
    break_gradients(monkeypatch, {1})
    train_rl(small(), "vpo", run, seed=0)
    assert "VPO: the gradient of step 1 is not finite and was left out" in capsys.readouterr().out
    weights = load_file(run.stage("vpo").policy / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    before = load_file(run.stage("sft").policy / "model.safetensors")
    assert any(not torch.equal(weight, before[name]) for name, weight in weights.items())  # the other steps count


def test_gradients_that_stay_broken_end_the_stage(run, monkeypatch):
    monkeypatch.setattr(stages, "BROKEN", 2)
    break_gradients(monkeypatch, set(range(1, 100)))
    with pytest.raises(LabError, match=r"the gradients of 2 steps one after another were not finite"):
        train_rl(small(), "vpo", run, seed=0)
    assert not run.stage("vpo").has_policy()


def test_attention_of_cudnn_is_not_used():
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_policy(small(), TASK, None, 0)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


# --- Short of memory --------------------------------------------------------------------------


def starve(monkeypatch, owner, step: int) -> list[int]:
    """Let memory run out once, in the forward pass of that step; notes the rows of every pass."""
    original, rows, told = owner.compute_loss, [], []

    def compute_loss(self, model, inputs, *args, **kwargs):
        rows.append(len(inputs.get("completion_ids", inputs.get("input_ids"))))
        if self.state.global_step == step - 1 and not told:
            told.append(step)
            raise torch.OutOfMemoryError("CUDA out of memory (a fake)")
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(owner, "compute_loss", compute_loss)
    return rows


def assert_nearly_same_end(straight: Path, resumed: Path, start: dict) -> None:
    expected, found = kept(straight), kept(resumed)
    moved = max(float((expected[name] - start[name]).abs().max()) for name in expected)
    apart = max(float((expected[name] - found[name]).abs().max()) for name in expected)
    assert moved > 1e-3 and apart < 0.02 * moved  # other sums of the same numbers
    losses = [[entry["loss"] for entry in read_log(folder)] for folder in (straight, resumed)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("method", ["vpo", "grpo"])
def test_out_of_memory_halves_the_micro_batch_and_rl_goes_on_from_the_checkpoint(
    run, monkeypatch, tmp_path, capsys, method
):
    profile = small(rl__steps=5, rl__micro_rollouts=8, rl__checkpoint_every=2)
    straight = Run(tmp_path / "straight")
    shutil.copytree(run, straight)
    train_rl(profile, method, straight, seed=0)
    rows = starve(monkeypatch, VPOMixin, 3)
    train_rl(profile, method, run, seed=0)
    before, after = rows[: rows.index(4)], rows[rows.index(4) :]
    group = 16 * rollouts_per_prompt(profile, method) // 4
    assert set(before) == {8} and set(after) == {4} and len(after) == 3 * group // 4  # steps 3 to 5
    assert "rl.micro_rollouts is 4" in capsys.readouterr().out
    assert_nearly_same_end(straight / method, run / method, kept(run / "sft"))


def test_out_of_memory_in_the_warmup_is_no_end_either(tmp_path, monkeypatch):
    profile, straight, starved = small(sft__steps=5), Run(tmp_path / "a"), Run(tmp_path / "b")
    train_sft(profile.with_overrides({"sft.steps": 1}), Run(tmp_path / "first"), seed=0)
    train_sft(profile, straight, seed=0)
    rows = starve(monkeypatch, SFTTrainer, 3)
    train_sft(profile, starved, seed=0)
    assert set(rows[: rows.index(4)]) == {8} and set(rows[rows.index(4) :]) == {4}
    assert_nearly_same_end(straight / "sft", starved / "sft", kept(tmp_path / "first" / "sft"))


def test_with_one_row_a_pass_there_is_nothing_left_to_halve(run, monkeypatch):
    monkeypatch.setattr(training, "_train_rl", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    with pytest.raises(torch.OutOfMemoryError):
        train_rl(small(rl__micro_rollouts=2), "vpo", run, seed=0)


def test_one_of_several_processes_says_what_to_set(run, monkeypatch):
    def fail(profile):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(stages, "world_size", lambda: 2)
    with pytest.raises(LabError, match=r"rl\.micro_rollouts=8"):
        stages.with_less_memory(small(), "rl.micro_rollouts", fail)


@pytest.mark.parametrize("method", ["vpo", "vpo_credit", "grpo"])
def test_the_longest_prompt_is_tried_first_and_changes_nothing(run, monkeypatch, tmp_path, method):
    profile, tried = small(rl__steps=2, rl__micro_rollouts=4, rl__kl=0.1), []
    straight = Run(tmp_path / "straight")
    shutil.copytree(run, straight)
    train_rl(profile, method, straight, seed=0)

    def stage(trainer, *arguments):
        step = trainer.training_step

        def first(model, *rest):
            if not tried:
                note = lambda loss, model, inputs, *_, **__: tried.append(inputs)  # noqa: E731
                spy(monkeypatch, type(trainer), "compute_loss", note)
                try_longest(trainer, model)
            return step(model, *rest)

        trainer.training_step = first
        return stages.run_stage(trainer, *arguments)

    monkeypatch.setattr(training, "run_stage", stage)
    train_rl(profile, method, run, seed=0)
    assert_same_end(straight / method, run / method, 2)
    assert straight.log(method)[0].keys() == run.log(method)[0].keys()
    tokenizer, worst = scratch_tokenizer(profile, TASK), tried[0]
    m = answers_per_rollout(profile, method)
    prompts = [render_prompt(tokenizer, row["prompt"], m) for row in TASK.load()]
    assert worst["completion_ids"].shape == (4, 15 * m) and worst["completion_mask"].all()
    assert worst["prompt_ids"].shape == (4, max(len(ids) for ids in tokenizer(prompts)["input_ids"]))


# --- Rollouts of another policy ---------------------------------------------------------------


def as_vllm(monkeypatch, off: float) -> list:
    """Let a trainer get log-probabilities with its rollouts, as from vLLM: those of its model, off by so much."""
    calls = []

    def generate(self, prompt_ids, *args, **kwargs):
        ids, _ = GRPOTrainer._generate_single_turn(self, prompt_ids, *args, **kwargs)
        logps = []
        for prompt, completion in zip(prompt_ids, ids, strict=True):
            with torch.no_grad():
                logits = self.model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
            own = [logits[len(prompt) + t - 1, token].item() + off for t, token in enumerate(completion)]
            logps.append([None if t == 1 else value for t, value in enumerate(own)])  # None: vLLM's NaN
        calls.append(logps)
        return ids, logps

    monkeypatch.setattr(VPOMixin, "_generate_single_turn", generate, raising=False)
    return calls


def test_the_probabilities_of_the_sampler_are_compared_with_the_model_at_every_step(run, monkeypatch):
    as_vllm(monkeypatch, 0.02)
    train_rl(small(rl__steps=2), "vpo", run, seed=0)
    differences = [entry["sampling_difference"] for entry in run.log("vpo")]
    assert all(0.01 < difference < 0.0201 for difference in differences)  # those that are None count as none


def test_rollouts_of_another_policy_end_the_training_at_its_first_step(run, monkeypatch):
    monkeypatch.setattr("vpo_lab.train.trainer.TOKENS", 8)  # a small policy writes few
    as_vllm(monkeypatch, 0.5)
    with pytest.raises(LabError, match=r"step 1: .* samples another policy") as caught:
        train_rl(small(rl__steps=2), "vpo", run, seed=0)
    assert "\n" not in str(caught.value)


def test_without_vllm_nothing_is_compared(run):
    train_rl(small(rl__steps=1), "vpo", run, seed=0)
    assert "sampling_difference" not in run.log("vpo")[0] and "entropy" in run.log("vpo")[0]


# --- A generation for several steps -------------------------------------------------------------


def generations(monkeypatch) -> list[int]:
    """How many rollouts each generation of a training makes."""
    made = []
    spy(monkeypatch, VPOMixin, "_generate_and_score_completions", lambda batch, inputs: made.append(len(inputs)))
    return made


@pytest.mark.parametrize("method", ["vpo", "vpo_credit", "grpo"])
def test_steps_that_share_a_generation_are_off_policy_and_the_log_says_how_far(run, monkeypatch, method):
    made, used = generations(monkeypatch), []
    spy(monkeypatch, GRPOTrainer, "_compute_loss", lambda loss, model, inputs: used.append(dict(inputs)))
    profile = small(rl__steps=6, rl__steps_per_generation=3, rl__checkpoint_every=3, rl__micro_rollouts=8)
    rollouts = rollouts_per_step(profile, method)
    train_rl(profile, method, run, seed=0)
    assert made == [3 * rollouts] * 2
    log = run.log(method)
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert [entry["ratio_from_one"] == 0 for entry in log] == [True, False, False] * 2
    assert all(0 <= entry["beyond_clip"] <= 1 for entry in log)
    assert all(entry["set_reward"] == log[3]["set_reward"] for entry in log[3:])  # of the rollouts that they share
    assert len({entry["loss"] for entry in log}) == 6
    # Every rollout once, with the probability that it was sampled with: else the ratio would be 1 at every step.
    assert sum(len(inputs["completion_ids"]) for inputs in used) == 6 * rollouts
    assert all("old_per_token_logps" in inputs for inputs in used)


def test_alone_a_step_has_fresh_rollouts_and_nothing_of_that_is_logged(run, monkeypatch):
    made = generations(monkeypatch)
    train_rl(small(rl__steps=2), "vpo", run, seed=0)
    assert made == [16, 16] and not {"ratio_from_one", "beyond_clip"} & set(run.log("vpo")[1])


def test_a_run_that_shares_generations_is_resumed_as_if_it_had_not_been_killed(run, tmp_path, monkeypatch):
    profile = small(rl__steps=6, rl__steps_per_generation=2, rl__checkpoint_every=2)
    straight = Run(tmp_path / "straight")
    shutil.copytree(run, straight)
    train_rl(profile, "vpo", straight, seed=0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
        train_rl(profile, "vpo", run, seed=0)
    train_rl(profile, "vpo", run, seed=0)
    assert_same_end(straight / "vpo", run / "vpo", 6)


def test_the_clock_stops_it_between_generations(run, monkeypatch):
    profile = small(rl__steps=4, rl__steps_per_generation=2, rl__checkpoint_every=2)
    train_rl(profile, "vpo", Run(run.folder, until=1.0), seed=0)  # the time was up before the first step
    assert run.stage("vpo").stopped["step"] == 2


def test_rollouts_may_be_equal_instead_of_answers():
    profile = small(rl__equal="rollouts")
    assert {name: rollouts_per_step(profile, name) for name in ("grpo", "vpo")} == {"grpo": 16, "vpo": 16}
    assert {name: rollouts_per_step(small(), name) for name in ("grpo", "vpo")} == {"grpo": 48, "vpo": 16}


# --- Looks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend, at_once", [("vllm", 16 * 8), ("unsloth", 16 * 8), ("transformers", 5 * 8)])
def test_an_engine_that_schedules_itself_is_given_a_whole_look(backend, at_once):
    profile = get_profile("qwen3-1.7b", {"policy.backend": backend, "evaluation.batch": 47})
    assert training.rollouts_of_a_look(profile, 8) == at_once


def test_a_look_samples_all_requests_at_once_and_needs_no_probabilities(run, monkeypatch):
    made = generations(monkeypatch)
    monkeypatch.setattr(training, "rollouts_of_a_look", lambda profile, group: 4 * group)
    scored = []
    spy(monkeypatch, GRPOTrainer, "_get_per_token_logps_and_entropies", lambda result, *_, **__: scored.append(1))
    looks = {"evaluation__every": 2, "evaluation__watch_requests": 4, "evaluation__held_out": 4}
    profile = small(rl__steps=2, rl__kl=0.1, rl__micro_rollouts=0, **looks)
    train_rl(profile, "vpo", run, seed=0)
    assert made == [16, 16, 16]  # two steps, and one look at 4 requests
    assert len(scored) == 4  # of a step: by the trained policy, and by its warmup; of the look none
    assert len(run.stage("vpo").eval_log()) == 1
