"""VPOTrainer in two processes on a CPU: groups lie across them, and they agree on what was earned."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from trl_case import G

from vpo_lab.methods import METHODS
from vpo_lab.train.trl import method_rewards

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def saw(tmp_path_factory):
    """What each of two processes saw, by kind of credit."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command += [str(HERE / "vpo_two.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in (0, 1)]


@pytest.mark.parametrize("credit", ["set", "answer"])
def test_two_processes_compute_what_one_would(saw, credit):
    first, second = (of_process[credit] for of_process in saw)
    method = METHODS["vpo_credit" if credit == "answer" else "vpo"]
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    assert len(first["batches"]) == 2
    for step, (a, b) in enumerate(zip(first["batches"], second["batches"], strict=True)):
        scored, n = a["scored"], len(a["completion_ids"])
        assert np.array_equal(scored.rewards_BMD, b["scored"].rewards_BMD)
        assert len(scored.rewards_BMD) == 2 * n and n % G and scored.completions != b["scored"].completions
        rewards_BMD = method_rewards(scored.rewards_BMD, scored.present_BM, 0.0)
        expected = method.advantages(rewards_BMD, G, np.random.default_rng([7, step]), scored.truncated_B)
        if credit == "set":
            got = np.concatenate([a["advantages"], b["advantages"]])
            assert got == pytest.approx(expected * np.sqrt((G - 1) / G), abs=5e-3)
        for batch, mine in ((a, expected[:n]), (b, expected[n:])) if credit == "answer" else ():
            for row_T, row_M in zip(batch["advantages"].numpy(), mine.astype(np.float32), strict=True):
                assert {*row_T[row_T != 0]} <= {*row_M}
    (entry,) = [entry for entry in first["log"] if entry.get("step") == 1 and "reward" in entry]
    assert {"answers", "objective/has_a/mean", "objective/short/best"} <= {*entry}
