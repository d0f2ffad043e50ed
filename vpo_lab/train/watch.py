"""End a training or a sampling that stands still, and start it again: it goes on from its last checkpoint.

Known to happen after hours: a compilation or a GPU that never answers. Nothing in the process itself would notice.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

from vpo_lab.config import Profile
from vpo_lab.errors import LabError
from vpo_lab.processes import session, world_size
from vpo_lab.runs import LOG, Run, Stage, find_run

RESTARTS = 3
LOOK_SECONDS = 1.0
WATCHED = "VPO_LAB_WATCHED"
COMMAND = [sys.executable, "-m", "vpo_lab.cli"]


def is_to_watch(profile: Profile) -> bool:
    """Return True in the command that a user started; not in the one that it watches, nor in one of several processes.

    Those are their launcher's: `accelerate launch --max_restarts`.
    """
    return bool(profile.patience) and WATCHED not in os.environ and world_size() == 1


def watch(arguments: list[str], profile: Profile, stages: list[str], run_dir: str, max_hours: float | None) -> int:
    """Run `vpo-lab` with these arguments in a process of its own, and again whenever a stage of it stands still.

    Returns its exit status. LabError if it stood still more than `RESTARTS` times.
    """
    run, until = find_run(profile, run_dir), None if max_hours is None else time.time() + 3600 * max_hours
    environment = {**os.environ, **replace(session(), until=until).environment(), WATCHED: "1"}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the training ends with this command
    for _ in range(RESTARTS + 1):
        began = time.time()
        process = subprocess.Popen([*COMMAND, *arguments], env=environment, start_new_session=True)
        try:
            while process.poll() is None and not (
                still := stage_that_stands_still(run, stages, began, profile.patience)
            ):
                time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            return process.wait()
        if process.poll() is not None:
            return process.returncode
        end_group(process.pid)
        process.wait()
        print(stood_still(still, profile.patience), file=sys.stderr, flush=True)
    raise LabError(f"it stood still {RESTARTS + 1} times: look at the last lines above and at {run}")


def stage_that_stands_still(run: Run, stages: list[str], since: float, minutes: float) -> str:
    """Return the name of the first stage that stands still, see `Stage.stands_still`; "" if none does."""
    folders = [run.stage(name) for name in stages]
    folders += [Stage(path.parent) for stage in folders for path in stage.folder.glob(f"*/{LOG}")]  # a stage within
    return next((stage.name for stage in folders if stage.stands_still(since, minutes)), "")


def stood_still(name: str, minutes: float) -> str:
    """Say that a stage stood still, and what happens now."""
    return f"{name}: no step and no answer for {minutes:g} minutes; ended, and started again at most {RESTARTS} times"


def end_group(pid: int) -> None:
    """End a process and all that it started: vLLM and sandboxes have processes of their own."""
    try:
        group = os.getpgid(pid)
        os.killpg(group, signal.SIGKILL) if group != os.getpgrp() else os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
