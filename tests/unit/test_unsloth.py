"""VPOTrainer on the trainer that Unsloth makes of TRL's source, beside TRL's own: the same steps."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from unsloth_case import train

ROOT = Path(__file__).parents[2]
WHEELS = sorted((ROOT / "build" / "unsloth").glob("*.whl"))


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


@pytest.mark.parametrize("method", ["vpo", "vpo_credit"])
def test_unsloth_trains_as_trl_does(unsloth, plain, method):
    assert "UnslothGRPOTrainer" in unsloth["bases"]
    ours, theirs = unsloth[method], plain[method]
    assert len(ours["batches"]) == len(theirs["batches"]) == 2
    for a, b in zip(ours["batches"], theirs["batches"], strict=True):
        assert torch.equal(a["completion_ids"], b["completion_ids"])
        assert a["advantages"].dim() == (2 if method == "vpo_credit" else 1) and a["advantages"].any()
        assert torch.allclose(a["advantages"], b["advantages"], atol=1e-6)
    for key in ("grad_norm", "reward", "answers", "objective/has_a/best", "frac_reward_zero_std"):
        values = [[entry[key] for entry in of_one["log"] if key in entry] for of_one in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], rel=1e-4) and len(values[0]) == 2
    moved = [(theirs["weights"][name] - ours["weights"][name]).abs().max() for name in theirs["weights"]]
    assert max(moved) < 1e-4  # two steps of 1e-3


def test_the_longest_prompt_can_be_tried_with_unsloths_trainer_and_rollouts_be_compared(unsloth):
    (straight, compared), (tried, _) = unsloth["longest"]
    assert straight.keys() == tried.keys() and all(torch.equal(straight[name], tried[name]) for name in straight)
    difference, entropy, tokens, length = compared
    assert difference < 1e-3 * tokens and 0 < entropy and tokens == length > 0
