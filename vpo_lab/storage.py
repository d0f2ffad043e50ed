"""Files that are whole or absent: atomic writes, run folders, checkpoints that can be trusted."""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import vpo_lab
from vpo_lab.errors import LabError
from vpo_lab.profiles import Profile

MANIFEST = "run.json"
CHECKPOINT_SEAL = "sealed.json"
# What safetensors and torch.save say on a full disk; neither raises an OSError.
_FULL = ("No space left on device", "unexpected pos", "PytorchStreamWriter failed")


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn "no space left" and "no permission" while writing `path` into one clear line."""
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or any(words in str(error) for words in _FULL):
            raise LabError(
                f"disk full while writing {path}: free some space and start again, finished work is kept"
            ) from error
        if number in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise LabError(f"cannot write {path} ({os.strerror(number)}): choose another --run-dir") from error
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: readers see the old content or the new, never a part."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with explain_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, gzipped where the name ends in .gz."""
    path = Path(path)
    indent = None if path.suffix == ".gz" else 1
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    # A lone surrogate is a legal model output but not legal UTF-8.
    data = text.encode("utf-8", errors="replace")
    write_bytes(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def read_json(path: Path) -> object:
    """Read what `write_json` wrote; LabError if the file is missing or damaged."""
    path = Path(path)
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except FileNotFoundError as error:
        raise LabError(f"{path} does not exist: run the step that makes it first") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise LabError(f"{path} is damaged ({error}): delete it and run again, it will be rebuilt") from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block has filled it without an error."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with explain_full_disk(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            shutil.rmtree(path, ignore_errors=True)
            os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


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
