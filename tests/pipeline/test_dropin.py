"""A TRL user's script with its class name changed: it trains VPO, in one process and in two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trl_case import write_policy

from vpo_lab import ask

SCRIPT = Path(__file__).parents[2] / "examples" / "dropin" / "trl_user.py"


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    """A small policy that has learned to write chains."""
    prompts = [ask([{"role": "user", "content": f"What is {n} + {n}?"}], 3) for n in range(8)]
    return write_policy(tmp_path_factory.mktemp("policy"), prompts)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_script_trains_vpo(policy, tmp_path, processes):
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *several, str(SCRIPT), str(policy), "--cpu"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line, *_) = [line for line in done.stdout.splitlines() if "objective/correct/best" in line]
    logged = {name: float(value) for name, value in eval(line).items()}  # as transformers prints it
    assert 0 < logged["answers"] <= 3 and logged["objective/brief/best"] > logged["objective/brief/mean"] > 0
    assert logged["reward"] > 0 and logged["grad_norm"] > 0
