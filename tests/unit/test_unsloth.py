"""VPOTrainer on the trainers that Unsloth makes of TRL's: TRL's own steps, and the stages of the full profile."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from unsloth_case import train

ROOT = Path(__file__).parents[2]
LOCKED = re.findall(r"(?m)^(unsloth(?:-zoo)?)==(\S+)", (ROOT / "requirements" / "gpu.lock").read_text(encoding="utf-8"))
WHEELS = [
    wheel
    for name, version in LOCKED
    for wheel in (ROOT / "build" / "unsloth").glob(f"{name.replace('-', '_')}-{version}-*.whl")
]


@pytest.fixture(scope="module")
def unsloth(tmp_path_factory) -> dict:
    """What a process with Unsloth saw; skips where `make unsloth` has not brought its wheels."""
    if len(WHEELS) < 2:
        pytest.skip("Unsloth's wheels are not in build/unsloth: make unsloth")
    folder = tmp_path_factory.mktemp("unsloth")
    for wheel in WHEELS:
        with ZipFile(wheel) as archive:  # without its web application, nine tenths of it
            archive.extractall(folder, [name for name in archive.namelist() if not name.startswith("studio/")])
    environment = {**os.environ, "UNSLOTH_COMPILE_LOCATION": str(folder / "compiled"), "TORCHDYNAMO_DISABLE": "1"}
    environment |= {"UNSLOTH_DISABLE_STATISTICS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(Path(__file__).with_name("unsloth_case.py")), str(folder / "saw.pickle")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads((folder / "saw.pickle").read_bytes())


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict:
    from vpo_lab import VPOConfig, VPOTrainer

    return train(VPOTrainer, VPOConfig, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("case", ["vpo", "vpo_credit", "shared"])
def test_unsloth_trains_as_trl_does(unsloth, plain, case):
    assert "UnslothGRPOTrainer" in unsloth["bases"]
    ours, theirs, generations = unsloth[case], plain[case], 1 if case == "shared" else 2
    assert len(ours["batches"]) == len(theirs["batches"]) == generations
    for a, b in zip(ours["batches"], theirs["batches"], strict=True):
        assert torch.equal(a["completion_ids"], b["completion_ids"])
        assert a["advantages"].dim() == (2 if case == "vpo_credit" else 1) and a["advantages"].any()
        assert torch.allclose(a["advantages"], b["advantages"], atol=1e-6)
    assert len(ours["gradients"]) == len(theirs["gradients"]) == 2
    # Where steps share a generation, Unsloth weighs the passes of a step a little differently.
    near = 2e-2 if case == "shared" else 1e-3
    for a, b in zip(ours["gradients"], theirs["gradients"], strict=True):
        assert length({name: a[name] - b[name] for name in b}) < near * length(b)
    for key in ("reward", "answers", "objective/has_a/best", "frac_reward_zero_std"):
        values = [[entry[key] for entry in of_one["log"] if key in entry] for of_one in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], rel=1e-4) and len(values[0]) == generations
    moved = [(theirs["weights"][name] - ours["weights"][name]).abs().max() for name in theirs["weights"]]
    assert case == "shared" or max(moved) < 1e-4  # two steps of 1e-3


def length(gradient: dict) -> float:
    return sum(float(value.square().sum()) for value in gradient.values()) ** 0.5


def test_the_longest_prompt_can_be_tried_with_unsloths_trainer_and_rollouts_be_compared(unsloth):
    (straight, compared), (tried, _) = unsloth["longest"]
    assert straight.keys() == tried.keys() and all(torch.equal(straight[name], tried[name]) for name in straight)
    difference, entropy, tokens, length = compared
    assert difference < 1e-3 * tokens and 0 < entropy and tokens == length > 0


# --- The stages of the full profile ------------------------------------------------------------


def test_the_stages_come_in_order_and_each_is_sampled_in_one_call(unsloth):
    saw = unsloth["stages"]
    grpo, vpo = 2 * 12, 2 * 4  # groups of a step
    assert saw["events"] == [
        *[("sft", 0), ("samples", 6 * 3)],  # own answers of the untouched model
        *[("grpo", 0), ("samples", 6)],  # which rows are solved: drawn once, for both
        *[("rollouts", grpo)] * 2, ("look", 3 * 12), *[("rollouts", grpo)] * 2, ("look", 3 * 12),
        ("vpo", 0), *[("rollouts", vpo)] * 2, ("look", 3 * 4), *[("rollouts", vpo)] * 2, ("look", 3 * 4),
        *[("pools", 0), ("samples", 3 * 6), ("samples", 3 * 2)],
    ]  # fmt: skip
    assert saw["pool sft"] == (3, 6, 1, 4) and saw["pool vpo"] == (3, 2, 3, 4)
    assert all("UnslothGRPOTrainer" in bases for bases in saw["bases"]) and len(saw["bases"]) == 7
    assert all(max(moved(saw[method], saw["sft"])) > 1e-3 for method in ("grpo", "vpo"))


def moved(adapter: dict, start: dict) -> list[float]:
    return [float((adapter[name] - start[name]).abs().max()) for name in start]


def test_what_held_out_rows_earn_is_in_their_own_log_and_in_no_other(unsloth):
    """Unsloth puts the model into training mode before a look is scored: it would count as a step of the training."""
    saw = unsloth["stages"]
    assert [entry["step"] for entry in saw["looks"]] == [2, 4]
    assert all({"set_reward", "mean_reward", "best_of_group"} <= set(entry) for entry in saw["looks"])
    assert all("sampling_difference" not in entry for entry in saw["looks"])
    assert all(entry["sampling_difference"] < 1e-5 for entry in saw["log vpo"])  # fresh rollouts, after a look too


def test_rollouts_of_the_base_model_end_the_training(unsloth):
    assert "samples another policy" in unsloth["stages"]["of the base model"]


@pytest.mark.parametrize("case", ["same", "another"])
def test_killed_and_resumed_it_ends_as_if_it_had_not_been_also_with_another_micro_batch(unsloth, case):
    saw = unsloth["stages"]
    assert saw[f"checkpoints {case}"] == ["checkpoint-2"]
    apart = max(moved(saw[f"adapter {case}"], saw["vpo"]))
    assert apart == 0 if case == "same" else apart < 1e-4 * max(moved(saw["vpo"], saw["sft"]))
    losses = [[entry["loss"] for entry in saw[log]] for log in (f"log {case}", "log vpo")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and len(losses[0]) == 4
