"""Files that are whole or absent: atomic writes, run folders, checkpoints that can be trusted."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import vpo_lab
from vpo_lab.config import Profile
from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_bytes, write_json
from vpo_lab.processes import print0

MANIFEST = "run.json"

CHECKPOINT_SEAL = "sealed.json"


def default_run_dir(profile: str) -> Path:
    """runs/<profile> in the repository that this is run from, else in the current folder."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "vpo_lab" / "__init__.py").exists():
            return folder / "runs" / profile
    return here / "runs" / profile


def open_run(run_dir: str | Path, profile: Profile, seed: int) -> Path:
    """Create the run folder, or take it up again if the same profile, seed and version made it.

    Returns its path. Raises LabError if it belongs to another run: results must not be mixed.
    """
    run_dir = Path(run_dir) if str(run_dir) else default_run_dir(profile.name)
    mine = {
        "profile": profile.name,
        "fingerprint": profile.fingerprint(),
        "seed": seed,
        "version": vpo_lab.__version__,
    }
    manifest = run_dir / MANIFEST
    if manifest.exists():
        theirs = read_json(manifest)
        theirs = theirs if isinstance(theirs, dict) else {}
        differences = [f"{key} {theirs.get(key)!r}, now {mine[key]!r}" for key in mine if theirs.get(key) != mine[key]]
        if differences:
            raise LabError(
                f"run folder {run_dir} was made with {'; '.join(differences)}: choose another --run-dir or delete it"
            )
    elif run_dir.exists() and not run_dir.is_dir():
        raise LabError(f"run folder {run_dir} is a file: choose another --run-dir")
    else:
        write_json(manifest, mine)
    return run_dir


@contextmanager
def only_one_in(run: Path) -> Iterator[None]:
    """Hold the run folder's lock; LabError if another process works in it."""
    with open(run / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LabError(f"run folder {run} is in use by another process: wait for it or stop it") from error
        yield


def commit() -> str:
    """The short git commit of the code, "+" if it has changes; "" outside a checkout."""
    try:
        git = ["git", "-C", str(Path(vpo_lab.__file__).parent)]
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "."], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "") if head.returncode == 0 else ""


# --- Checkpoints ------------------------------------------------------------------------------


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != CHECKPOINT_SEAL
    }


def seal_checkpoint(folder: Path) -> None:
    """Record the size of every file of a finished checkpoint; only sealed ones are resumed from."""
    write_json(Path(folder) / CHECKPOINT_SEAL, _sizes(Path(folder)))


def last_good_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint-<step> below `folder` that is whole, and a line for each that is not."""
    complaints = []
    found = sorted(
        (p for p in Path(folder).glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()),
        key=lambda p: int(p.name.rpartition("-")[2]),
        reverse=True,
    )
    for checkpoint in found:
        try:
            sealed = read_json(checkpoint / CHECKPOINT_SEAL)
        except LabError:
            complaints.append(f"{checkpoint} was cut short while saving: using the one before it")
            continue
        if sealed == _sizes(checkpoint):
            return checkpoint, complaints
        complaints.append(f"{checkpoint} has files cut short or missing: using the one before it")
    return None, complaints


LOG = "log.jsonl"

EVAL_LOG = "eval.jsonl"  # what the policy earned on held-out requests while it was trained

POLICY = "policy"

STOPPED = "stopped.json"

# Kernels inherit it: the time, in seconds since 1970, at which all training of this run must be over.
TRAIN_UNTIL = "VPO_LAB_TRAIN_UNTIL"


def train_until() -> float | None:
    """When all training must be over, in seconds since 1970; None: no limit."""
    return float(os.environ[TRAIN_UNTIL]) if os.environ.get(TRAIN_UNTIL) else None


def stopped_at(stage: Path) -> dict | None:
    """{"step", "steps", "until"} of a stage whose time was up before its last step, else None."""
    return read_json(stage / STOPPED) if (stage / STOPPED).exists() else None


def has_policy(stage: Path) -> bool:
    """Is there a policy, and nothing left to train? A stage that was stopped goes on in a run with other hours."""
    stopped, until = stopped_at(stage), train_until()
    time_is_up = until is not None and until <= time.time()
    return (stage / POLICY).exists() and (stopped is None or stopped["until"] == until or time_is_up)


def is_finished(stage: Path) -> bool:
    """Is nothing left to train? Says so, or a reader would wonder why nothing trains."""
    if finished := has_policy(stage):
        print0(f"{stage.name} is trained already: its policy is in {stage.parent.name}/{stage.name}/{POLICY}")
    return finished


def _forget_pools(stage: Path) -> None:
    """Remove what an earlier policy of this stage answered."""
    for pool in (stage.parent / "pools").glob("*.json.gz"):
        if pool.name.removesuffix(".json.gz").partition("@")[0] in (stage.name, f"{stage.name}_chain"):
            pool.unlink()


def read_log(stage: Path, name: str = LOG) -> list[dict]:
    """A log of a stage, one dict per logged step; a line cut short by a kill is skipped."""
    path = Path(stage) / name
    if not path.exists():
        raise LabError(f"{path} does not exist: run the stage that writes it first")
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def _drop_log_after(path: Path, step: int) -> None:
    """A resumed run logs the steps after its checkpoint again."""
    if path.exists():
        kept = [entry for entry in read_log(path.parent, path.name) if entry["step"] <= step]
        write_bytes(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())


def _stop_at(profile: Profile, stage: Path) -> float | None:
    """When this stage's time is up: what is left for training, shared by the methods that still wait for it."""
    until = train_until()
    if until is None:
        return None
    waiting = [method for method in profile.methods if not has_policy(stage.parent / method)]
    now = time.time()
    return now + max(0.0, until - now) / max(1, len(waiting))


def pool_path(run_dir: Path, name: str) -> Path:
    return Path(run_dir) / "pools" / f"{name}.json.gz"


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    packages = ("torch", "trl", "transformers", "tokenizers", "numpy")
    return {"vpo_lab": vpo_lab.__version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
