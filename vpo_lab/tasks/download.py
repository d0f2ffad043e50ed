"""Find the files of a data set: your own copy, or a checked download into the cache."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_json

TIMEOUT_S = 30.0
OWN_COPY = "pass your own copy with path= (--data on the command line)"
_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


def fetch_file(url: str, name: str, sha256: str, folder: Path) -> Path:
    """Return a published file in a folder of the cache, downloaded if it is absent or changed. LabError without it."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    try:
        downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT_S)
        return Path(pooch.retrieve(url, f"sha256:{sha256}", name, folder, downloader=downloader))
    except (OSError, ValueError) as error:  # of the network, of the disk; another hash
        raise no_download(url, folder, error) from error


def fetch_from_hub(dataset: str, patterns: Sequence[str], cache: Path, commit: str = "") -> list[Path]:
    """Return the files of a data set on the Hugging Face hub that match the patterns, downloaded into a cache folder.

    `commit` is the beginning of a commit's hash; "": the newest. A download that was cut off goes on where it ended;
    the hub's checksums are compared. Once all files are there the hub is not asked again. LabError without them.
    """
    from huggingface_hub import HfApi, hf_hub_download

    folder = cache / "--".join([*dataset.split("/"), *[commit] * bool(commit)])
    record = folder / f"complete-{hashlib.sha256(json.dumps(patterns).encode()).hexdigest()[:8]}.json"
    names: Any = read_json(record) if record.exists() else []
    if names and all((folder / name).is_file() for name in names):
        return [folder / name for name in names]
    try:
        revision = _whole_hash(dataset, commit) if commit else None
        listed = sorted(HfApi().list_repo_files(dataset, repo_type="dataset", revision=revision))
        names = [name for name in listed if any(fnmatch(name, pattern) for pattern in patterns)]
        if not names:
            raise ValueError(f"no file {' or '.join(patterns)} among {len(listed)}")
        for name in names:
            hf_hub_download(dataset, name, repo_type="dataset", revision=revision, local_dir=folder)
        write_json(record, names)
    except Exception as error:  # of the hub, of its http library, of the disk: no common base
        raise no_download(f"{dataset} from the Hugging Face hub", folder, error) from error
    return [folder / name for name in names]


def _whole_hash(dataset: str, commit: str) -> str:
    """Return the hash that begins so, of a data set's history: the hub takes no shorter one."""
    from huggingface_hub import HfApi

    known = [entry.commit_id for entry in HfApi().list_repo_commits(dataset, repo_type="dataset")]
    found = [whole for whole in known if whole.startswith(commit)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} commits begin with {commit}")
    return found[0]


def no_download(what: str, folder: Path, error: BaseException) -> LabError:
    """Return the error to raise where something cannot be downloaded to a folder."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return LabError(f"the disk is full at {folder}: free some space, or set VPO_LAB_CACHE")
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return LabError(
        f"cannot download {what} to {folder} ({reason}): check network and folder, set VPO_LAB_CACHE, or {OWN_COPY}"
    )


def own_files(path: str | os.PathLike, name: str) -> list[Path]:
    """Return the data files that a path means: itself, or those below it that begin with `name`.

    The name may be that of a folder, too; upper and lower case are one. LabError if there are none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.name.endswith(_ENDINGS)) if path.is_dir() else []
    wanted = name.lower()
    found = [file for file in files if any(part.lower().startswith(wanted) for part in file.relative_to(path).parts)]
    if not found:
        raise LabError(f"no file {name}* ({', '.join(_ENDINGS)}) at {path}: check the path, or {OWN_COPY}")
    return found


def read_records(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON, JSON Lines or parquet file. LabError if it is damaged."""
    try:
        if file.name.endswith(".parquet"):
            yield from _parquet(file)
            return
        opened = gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")
        with opened as lines:
            if ".jsonl" in file.name:
                yield from (json.loads(line) for line in lines if line.strip())
            else:
                content = json.load(lines)
                yield from [content] if isinstance(content, dict) else content
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise LabError(f"cannot read {file} ({reason}): check the path, or {OWN_COPY}") from error


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with file.open("rb") as source:
        for batch in pq.ParquetFile(source).iter_batches(batch_size=16):
            yield from batch.to_pylist()
