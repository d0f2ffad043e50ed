"""The full profile rehearsed on a CPU: its own code and data, a random Qwen3 of two layers in place of 1.7B."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_qwen3 import build_model, copy_rows
from toolrl_rows import write_parquet
from untagged import PAID, untagged

from vpo_lab.config import Profile, get_profile
from vpo_lab.runs import Run, read_log
from vpo_lab.search.pool import evaluate
from vpo_lab.search.summary import summarize
from vpo_lab.tasks import get_task
from vpo_lab.train import rl, sft
from vpo_lab.train.prompts import load_rows, render_prompt
from vpo_lab.train.rl import train_rl
from vpo_lab.train.sft import train_sft
from vpo_lab.train.trl import VPOMixin

TASK = get_task("toolrl")
METHODS = ("grpo", "vpo")
STAGES = ("sft", *METHODS)


@pytest.fixture(scope="module", autouse=True)
def network():
    """Every address that was asked for; none is reached."""
    asked = []

    def refuse(host, *args, **kwargs):
        asked.append(host)
        raise OSError(f"the tests block the network: {host}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(socket.socket, "connect", lambda self, address: refuse(address))
        yield asked


@pytest.fixture(scope="module")
def data(request, tmp_path_factory) -> Path:
    """A folder with train.parquet and test.parquet: ToolRL's rows, or where there are none, rows of our own."""
    folder = tmp_path_factory.mktemp("data")
    try:
        real = request.getfixturevalue("toolrl_dir")
    except pytest.skip.Exception:
        for split in ("train", "test"):
            write_parquet(folder / f"{split}.parquet")
    else:
        copy_rows(real, folder)
    return folder


@pytest.fixture(scope="module")
def profile(data, tmp_path_factory) -> Profile:
    """qwen3-1.7b with what a CPU needs changed and nothing else: see the comments."""
    model = build_model(data, tmp_path_factory.mktemp("model"))
    return get_profile(
        "qwen3-1.7b",
        {
            "policy.backend": "transformers",  # no CUDA for Unsloth and vLLM
            "policy.model": str(model),
            "data": str(data),  # no network
            "task": PAID,  # what random weights write earns nothing
            "sft.chains": "task",  # random weights have nothing of their own to show
            "sft.steps": 2,
            "rl.steps": 2,
            "rl.rollouts": 16,
            "rl.drop_solved": 0,
            "policy.max_answer_tokens": 64,  # random weights never write an end, so every rollout has this length
            "evaluation.held_out": 2,
            "evaluation.every": 0,  # every rollout that is counted here is one of the training
            "evaluation.requests": 2,
            "evaluation.candidates": 6,
            "evaluation.budgets": (1, 3, 6),
        },
    )


class Rehearsal:
    """A finished run and what its trainers did to the models they were given."""

    def __init__(self, folder: Path, profile: Profile):
        self.folder, self.profile = folder, profile
        self.models: list = []
        self.before: list[dict] = []
        self.scored: list = []


@pytest.fixture(scope="module")
def rehearsal(profile, tmp_path_factory) -> Rehearsal:
    run = Rehearsal(tmp_path_factory.mktemp("run"), profile)
    load_policy, measure = rl.load_policy, VPOMixin.measure

    def remembered(*args):
        model, tokenizer = load_policy(*args)
        run.models.append(model)
        run.before.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        return model, tokenizer

    def noted(trainer, scored):
        run.scored.append(scored)
        return measure(trainer, scored)

    with pytest.MonkeyPatch.context() as patch, untagged():
        patch.setattr(sft, "load_policy", remembered)
        patch.setattr(rl, "load_policy", remembered)
        patch.setattr(VPOMixin, "measure", noted)
        train_sft(profile, Run(run.folder), seed=0)
        for method in METHODS:
            train_rl(profile, method, Run(run.folder), seed=0)
    return run


def adapter(rehearsal: Rehearsal, stage: str) -> dict:
    return load_file(rehearsal.folder / stage / "policy" / "adapter_model.safetensors")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_leaves_an_adapter_and_a_tokenizer(rehearsal, stage):
    files = {path.name for path in (rehearsal.folder / stage / "policy").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    assert not files & {"model.safetensors", "pytorch_model.bin"}
    assert all(weight.isfinite().all() for weight in adapter(rehearsal, stage).values())


@pytest.mark.parametrize("number, stage", enumerate(STAGES))
def test_only_the_adapter_is_trained(rehearsal, number, stage):
    before, after = rehearsal.before[number], dict(rehearsal.models[number].named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name].detach())}
    lora = {name for name in before if "lora_" in name}
    assert moved <= lora
    # Down-projections wait for the up-projections, which start at zero; RL starts from trained ones.
    assert {name for name in lora if "lora_B" in name} <= moved
    assert len(lora) == 2 * 2 * 7  # two matrices, two layers, all linear maps


def test_rl_starts_where_sft_ended_and_goes_its_own_way(rehearsal):
    sft, grpo, vpo = (adapter(rehearsal, stage) for stage in STAGES)
    for number in (1, 2):
        start = {name: weight for name, weight in rehearsal.before[number].items() if "lora_" in name}
        assert len(start) == len(sft)
        for name, weight in sft.items():
            assert torch.equal(weight, start[name.replace(".weight", ".default.weight")])
    assert any(not torch.equal(sft[name], grpo[name]) for name in sft)
    assert any(not torch.equal(grpo[name], vpo[name]) for name in sft)


@pytest.mark.parametrize("stage", STAGES)
def test_logs_are_finite_and_complete(rehearsal, stage):
    log = read_log(rehearsal.folder / stage)
    assert [entry["step"] for entry in log] == [1, 2]
    for entry in log:
        assert all(np.isfinite(value) for value in entry.values())
        assert entry["grad_norm"] > 0
        if stage != "sft":
            assert {f"objective/{name}/mean" for name in TASK.objectives} <= set(entry)
            assert 0 < entry["mean_reward"] <= entry["best_of_rollout"] <= entry["best_of_group"] <= 1


def test_rollouts_come_in_the_sizes_of_the_full_profile(rehearsal):
    shapes = [scored.rewards_BMD.shape for scored in rehearsal.scored]
    assert shapes == [(48, 1, 4)] * 2 + [(16, 3, 4)] * 2  # equal budgets: as many answers
    ids = {row["id"] for row in TASK.load(rehearsal.profile.data, "train")}
    for scored in rehearsal.scored:
        met = {row["id"] for row in scored.inputs}
        assert met <= ids and len(met) == 2  # 16 rollouts, 8 of each prompt


def test_pools_have_the_right_shape_and_a_summary(rehearsal):
    shapes = {"sft": (2, 6, 1, 4), "sft_chain": (2, 2, 3, 4), "grpo": (2, 6, 1, 4), "vpo": (2, 2, 3, 4)}
    for name, shape in shapes.items():
        pool = evaluate(rehearsal.profile, name, Run(rehearsal.folder), seed=0)
        assert pool.rewards_NCMD.shape == shape and pool.tokens_NC.shape == shape[:2]
        assert pool.task == PAID and pool.objectives == TASK.objectives
        assert (pool.tokens_NC <= 64 * shape[2]).all() and (pool.tokens_NC > 0).all()
        assert [len(answer) for row in pool.answers for answer in row] == [shape[2]] * (2 * shape[1])
    summary = summarize(rehearsal.profile, Run(rehearsal.folder), seed=0)
    assert set(summary["methods"]) == set(shapes) and summary["ceiling"] is None


def test_nothing_is_sent_or_fetched(rehearsal, network):
    assert network == []


def test_a_second_call_trains_nothing(rehearsal, monkeypatch):
    files = {path: path.stat().st_mtime_ns for path in rehearsal.folder.rglob("*") if path.is_file()}
    for module in (sft, rl):
        monkeypatch.setattr(module, "load_policy", None)
    train_sft(rehearsal.profile, Run(rehearsal.folder), seed=0)
    for method in METHODS:
        train_rl(rehearsal.profile, method, Run(rehearsal.folder), seed=0)
    assert {path: path.stat().st_mtime_ns for path in rehearsal.folder.rglob("*") if path.is_file()} == files


def test_the_real_rows_fit_the_full_profile(toolrl_dir, tmp_path):
    """With a tokenizer of 2,000 tokens prompts are longer than with Qwen3's own of 151,000."""
    from transformers import AutoTokenizer

    copy_rows(toolrl_dir, tmp_path)
    profile = get_profile("qwen3-1.7b", {"data": str(tmp_path), "evaluation.held_out": 0, "evaluation.every": 0})
    tokenizer = AutoTokenizer.from_pretrained(build_model(tmp_path, tmp_path / "model"))
    for split, size in (("train", 400), ("test", 80)):
        rows = load_rows(profile, TASK, split, tokenizer)
        assert 0.99 * size <= len(rows) <= size
        for row in rows:
            assert render_prompt(tokenizer, row["prompt"], 3).endswith("<think>\n\n</think>\n\n")
    examples = sft._sft_dataset(profile, tokenizer, TASK, profile.sft.steps, TASK.demonstrations, seed=0)
    limit = profile.policy.max_answer_tokens * profile.rl.candidates
    for example in examples.select(range(100)):
        answer = [label for label in example["labels"] if label != -100]
        assert answer == example["input_ids"][-len(answer) :] and answer[-1] == tokenizer.eos_token_id
    lengths = [sum(label != -100 for label in labels) for labels in examples["labels"]]
    assert np.mean(np.array(lengths) <= limit) > 0.98
