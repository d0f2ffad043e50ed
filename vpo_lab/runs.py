"""Know every path of a run: its manifest, stages, logs, checkpoints, candidate pools and summary.

A run is a folder. A stage is a folder in it: `log.jsonl`, `checkpoints/`, and at the end `policy/`. Where
the time was up before the last step, `stopped.json` says at which one, and a later run continues from there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import vpo_lab
from vpo_lab.config import Profile, checked_seed, differences
from vpo_lab.errors import LabError
from vpo_lab.files import explain_full_disk, read_json, write_bytes, write_json
from vpo_lab.processes import broadcast, gather, print0, rank, session, stand_alone, wait_for_all, world_size

MANIFEST = "run.json"

LOG = "log.jsonl"

EVAL_LOG = "eval.jsonl"  # what the policy earned on held-out requests while it was trained

SAMPLING = "sampling"  # there while answers are drawn, and touched whenever some are; else empty

POLICY = "policy"

POOLS = "pools"

STOPPED = "stopped.json"

CHECKPOINT_SEAL = "sealed.json"

STEADY = ("constant", "constant_with_warmup")  # the learning rate of a step does not depend on how many follow


@dataclass(frozen=True)
class Folder(os.PathLike):
    """Stand for a folder: `folder / "x"`, `str(folder)` and `open(folder)` work as with a path."""

    folder: Path
    until: float | None = None  # seconds since 1970 at which all training must be over; None: no limit

    def __truediv__(self, name: str | Path) -> Path:
        return self.folder / name

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        return self.folder.name

    def stage(self, name: str) -> Stage:
        """Return the stage of that name: "sft", a method, or a stage within a stage."""
        return Stage(self.folder / name, self.until)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder's lock while a block runs, in the first of several processes; LabError if it is taken."""
        return only_one_in(self.folder) if rank() == 0 else nullcontext()


@dataclass(frozen=True)
class Run(Folder):
    """Know every path of a run folder."""

    @property
    def manifest(self) -> Path:
        return self / MANIFEST

    @property
    def summary(self) -> Path:
        return self / "summary.json"

    def pool(self, name: str) -> Path:
        """Return where the candidates of a policy are kept."""
        return self / POOLS / f"{name}.json.gz"

    def log(self, stage: str) -> list[dict]:
        """Read the log of a stage: one dict per logged step."""
        return self.stage(stage).log()

    def stop_at(self, methods: Iterable[str]) -> float | None:
        """Return when the next stage has to end: the methods that still wait share what is left of the time."""
        if self.until is None:
            return None
        waiting = [method for method in methods if not self.stage(method).has_policy()]
        now = time.time()
        return now + max(0.0, self.until - now) / max(1, len(waiting))


@dataclass(frozen=True)
class Stage(Folder):
    """Know every path of one training in a run."""

    @property
    def policy(self) -> Path:
        return self / POLICY

    @property
    def checkpoints(self) -> Path:
        return self / "checkpoints"

    def log(self) -> list[dict]:
        """Read the training log: one dict per logged step."""
        return read_log(self.folder)

    def eval_log(self) -> list[dict]:
        """Read what held-out requests earned during training: one dict per evaluation."""
        return read_log(self.folder, EVAL_LOG)

    def last_step(self) -> int:
        """Return the step on the last whole line of the log; 0 if there is none yet."""
        try:
            with open(self / LOG, "rb") as file:
                file.seek(max(0, (self / LOG).stat().st_size - 4096))
                lines = file.read().splitlines()
            return next((json.loads(line)["step"] for line in reversed(lines) if line.endswith(b"}")), 0)
        except (OSError, ValueError, KeyError):
            return 0

    @contextmanager
    def sampling(self) -> Iterator[Callable[[], None]]:
        """Mark the stage as alive while the block draws answers and calls the yielded function now and then."""
        sign = self / SAMPLING
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            sign.touch()
        try:
            yield lambda: sign.touch() if rank() == 0 else None
        finally:
            if rank() == 0:
                sign.unlink(missing_ok=True)

    def stands_still(self, since: float, minutes: float) -> bool:
        """Return True if it trained or sampled after `since` (seconds since 1970), but nothing of it for `minutes`."""
        logs = [path for path in (self / LOG, self / EVAL_LOG, self / SAMPLING) if path.exists()]
        beat = max((path.stat().st_mtime for path in logs), default=0.0)
        ended = self.policy.exists() and self.policy.stat().st_mtime >= beat  # also where it was stopped by the clock
        return bool(minutes) and beat > since and time.time() - beat > 60 * minutes and not ended

    @property
    def stopped(self) -> dict | None:
        """Return {"step", "steps", "until"} if it ended before its last step, else None."""
        return read_json(self / STOPPED) if (self / STOPPED).exists() else None

    def stop(self, step: int, steps: int, until: float | None) -> None:
        """Note that it ended after `step` of `steps`, because the time was up at `until`."""
        write_json(self / STOPPED, {"step": step, "steps": steps, "until": until})

    def has_policy(self) -> bool:
        """Return True if nothing is left to train. A stopped stage is finished for the run that stopped it only."""
        if not self.policy.exists():
            return False
        stopped, time_is_up = self.stopped, self.until is not None and self.until <= time.time()
        return stopped is None or stopped["until"] == self.until or time_is_up

    def is_finished(self) -> bool:
        """Return `has_policy`, and print why nothing is trained."""
        if finished := self.has_policy():
            print0(f"{self.name} is trained already: its policy is in {self.folder.parent.name}/{self.name}/{POLICY}")
        return finished

    def forget_pools(self) -> None:
        """Remove what an earlier policy of this stage answered."""
        for pool in (self.folder.parent / POOLS).glob("*.json.gz"):
            if pool.name.removesuffix(".json.gz").partition("@")[0] in (self.name, f"{self.name}_chain"):
                pool.unlink()

    def forget_steps_after(self, step: int) -> None:
        """Remove later steps from the logs: a resumed training logs them again."""
        for path in (self / LOG, self / EVAL_LOG):
            if path.exists():
                kept = [entry for entry in read_log(self.folder, path.name) if entry["step"] <= step]
                write_bytes(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())


def read_log(stage: Path, name: str = LOG) -> list[dict]:
    """Read a log of a stage, one dict per logged step; a line cut short by a kill is skipped."""
    path = Path(stage) / name
    if not path.exists():
        raise LabError(f"{path} does not exist: run the stage that writes it first")
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


# --- Opening a run ----------------------------------------------------------------------------


def default_run_dir(profile: str) -> Path:
    """Return runs/<profile> in the repository that this is run from, else in the current folder."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "vpo_lab" / "__init__.py").exists():
            return folder / "runs" / profile
    return here / "runs" / profile


def find_run(profile: Profile, run_dir: str | Path = "") -> Run:
    """Return the run folder of that name ("": runs/PROFILE) without a look into it."""
    stand_alone()  # what is trained in it is trained by one process, unless `train` has joined several
    folder = Path(run_dir).expanduser().absolute() if str(run_dir) else default_run_dir(profile.name)
    return Run(folder, session().until)


def open_run(profile: Profile, seed: int, run_dir: str | Path = "") -> Run:
    """Return a new run folder, or the one that the same profile, seed and version made before.

    What does not change results may differ (`config.NEUTRAL`), and `rl.steps` may have grown: finished
    methods then continue. With a schedule that depends on the number of steps it may grow only before
    any method was trained. Raises LabError that names every field that differs: results must not be mixed.
    """
    run = find_run(profile, run_dir)
    mine = {
        "profile": profile.name,
        "seed": checked_seed(seed),
        "version": vpo_lab.__version__,
        "settings": profile.settings(),
    }
    with explain_full_disk(run.folder):  # of which no permission is one kind
        if run.folder.is_file():
            raise LabError(f"run folder {run} is a file: choose another --run-dir")
        if not run.manifest.exists():
            write_json(run.manifest, mine)
            return run
    _take_up(run, profile, mine)
    return run


def _take_up(run: Run, profile: Profile, mine: dict) -> None:
    """Check that the manifest of a run says what `mine` does, and let its `rl.steps` grow."""
    theirs = read_json(run.manifest)
    theirs = theirs if isinstance(theirs, dict) else {}
    found = {key: (theirs.get(key), mine[key]) for key in ("profile", "seed", "version")}
    found = {key: pair for key, pair in found.items() if pair[0] != pair[1]}
    if "settings" in theirs and "profile" not in found:
        found |= differences(theirs["settings"], mine["settings"])
    elif not found:
        raise LabError(f"run folder {run} does not say with which settings it was made: choose another --run-dir")
    if not found:
        return
    before, now = found.get("rl.steps", (0, 0))
    grows = set(found) == {"rl.steps"} and before < now
    trained = [run.stage(path.parent.name) for path in run.folder.glob("*/checkpoints") if path.parent.name != "sft"]
    if not grows or (trained and profile.rl.schedule not in STEADY):
        line = "; ".join(f"{key} {a!r}, now {b!r}" for key, (a, b) in found.items())
        why = f" (under rl.schedule {profile.rl.schedule!r} learning rates depend on it)" if grows else ""
        raise LabError(f"run folder {run} was made with {line}{why}: choose another --run-dir, or the same settings")
    with run.lock():
        for stage in trained:
            if stage.policy.exists() and not stage.stopped:
                stage.stop(before, now, until=0.0)
        write_json(run.manifest, mine)
    print0(f"rl.steps grows from {before} to {now}: methods that are trained already continue")


_unlocked: set[Path] = set()

SHARED_SECONDS = 20.0  # until a file of another machine is seen; NFS remembers for some seconds what was not there


@contextmanager
def only_one_in(folder: Path, name: str = ".lock", flock: Callable[..., object] = fcntl.flock) -> Iterator[None]:
    """Hold a folder's lock; LabError if another process holds it. Warn once where files cannot be locked."""
    folder = Path(folder)
    with explain_full_disk(folder / name):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / name, "w")
    with file:
        try:
            flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise LabError(f"{folder} is in use by another process: wait for it or stop it") from error
            if folder not in _unlocked:
                _unlocked.add(folder)
                print0(f"files in {folder} cannot be locked ({error.strerror}): let only one process work there")
        yield


def check_shared(run: Run) -> None:
    """Raise a LabError unless all processes, of several machines perhaps, see what the first writes to the run folder.

    Each reads its policies and samples there; one that does not see them would train something else, or wait.
    """
    if world_size() == 1:
        return
    mark, mine = run / ".seen_by_all", broadcast(uuid.uuid4().hex)
    if rank() == 0:
        write_bytes(mark, mine.encode())
    wait_for_all()
    patience = time.monotonic() + SHARED_SECONDS
    while not (seen := mark.exists() and mark.read_text() == mine) and time.monotonic() < patience:
        time.sleep(0.2)
    blind = [number for number, saw in enumerate(gather([seen])[0]) if not saw]
    if blind:
        raise LabError(
            f"run folder {run}: processes {blind} do not see what process 0 writes there: put it on a disk that all "
            "machines share (--run-dir)"
        )


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


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def last_good_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint-<step> below `folder`, and a line for each newer one that is damaged."""
    complaints = []
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for checkpoint in sorted(found, key=step_of, reverse=True):
        try:
            sealed = read_json(checkpoint / CHECKPOINT_SEAL)
        except LabError:
            complaints.append(f"{checkpoint} was cut short while saving: using the one before it")
            continue
        if sealed == _sizes(checkpoint):
            return checkpoint, complaints
        complaints.append(f"{checkpoint} has files cut short or missing: using the one before it")
    return None, complaints


# --- What made the results --------------------------------------------------------------------


def commit(package: Path = Path(vpo_lab.__file__).parent) -> str:
    """Return the short git commit of the code, "+" if it has changes; "" outside a checkout of its own."""
    package = package.resolve()
    # A hook's GIT_DIR would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, timeout=10, env=environment, check=True
        )
        return os.fsdecode(done.stdout).strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.parent:
            return ""
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    packages = ("torch", "trl", "transformers", "tokenizers", "numpy")
    return {"vpo_lab": vpo_lab.__version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
