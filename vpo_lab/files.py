"""Write files that are whole or absent: atomic writes, and one line when a disk is full."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vpo_lab.errors import LabError


def cache_folder(name: str) -> Path:
    """Return where downloads and computed values of one kind are kept: below VPO_LAB_CACHE, else ~/.cache/vpo_lab."""
    root = os.environ.get("VPO_LAB_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "vpo_lab") / name


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
            raise LabError(f"cannot write {path} ({os.strerror(number)}): choose another folder") from error
        raise


def append_line(path: Path, value: object) -> None:
    """Add a value to a file of JSON lines; a kill may leave the last line cut short."""
    with explain_full_disk(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def encodable(text: str) -> str:
    """Return the text with U+FFFD for each half of a surrogate pair: UTF-8 has none, a model's JSON escapes may."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
    data = encodable(text).encode()
    write_bytes(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def read_json(path: Path) -> object:
    """Read what `write_json` wrote; LabError if the file is missing or damaged."""
    path = Path(path)
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except FileNotFoundError as error:
        raise LabError(f"{path} does not exist: run the step that makes it first") from error
    except PermissionError as error:
        raise LabError(f"{path} cannot be read ({error.strerror}): ask its owner, or choose another folder") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise LabError(f"{path} is damaged ({error}): delete it and run again, it will be rebuilt") from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a folder that appears under its name only when the block has filled it without an error."""
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
