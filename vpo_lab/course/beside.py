"""Train stages in a second process while a notebook trains another: two cores, two policies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vpo_lab.config import Profile
from vpo_lab.errors import LabError
from vpo_lab.processes import without_launcher
from vpo_lab.runs import Run


@contextmanager
def training_beside(profile: Profile, stages: Sequence[str], run: Run, seed: int) -> Iterator[None]:
    """Train the stages as `vpo-lab train` does, in another process; at the end of the block, wait for it.

    Finished stages are not repeated, killed ones resumed. If the block is left by an error or an interrupt, the process
    is stopped. Raises LabError with the last line that it printed, if it fails.
    """
    if all(run.stage(stage).has_policy() for stage in stages):
        yield  # a process that finds nothing to do would take half a minute to start
        return
    settings = [f"--set={name}={json.dumps(value)}" for name, value in profile.settings().items()]
    command = [sys.executable, "-m", "vpo_lab.cli", "train", *stages, "--profile", profile.name]
    command += ["--run-dir", str(run.folder), "--seed", str(seed), *settings]
    path = run / f"{'-'.join(stages)}.log"
    with open(path, "ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**without_launcher(os.environ), "OMP_NUM_THREADS": "1"}
        )
        try:
            yield
            process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing printed"]
        raise LabError(f"training {' '.join(stages)} failed ({lines[-1].removeprefix('error: ')}): read {path}")
