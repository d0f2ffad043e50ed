"""ToolRL's tool-calling rows (arXiv:2504.13958): 3,920 train and 80 test rows, downloaded once.

The rows come from github.com/qiancheng0/ToolRL (Apache-2.0), mixed there from ToolACE, masked
Hammer and xLAM. The project ships none of them: `load` fetches them into a cache, or reads a copy
of yours.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.tasks import each
from vpo_lab.tasks.tool_calls.reward import OBJECTIVES, parse_answer, score

SPLITS = ("train", "test")

BASE_URL = "https://raw.githubusercontent.com/qiancheng0/ToolRL/main/dataset/rlla_4k"

TIMEOUT_S = 30.0

CHUNK_BYTES = 1 << 16

# Git's name for the published file. That of train.parquet was not at hand, so the first download is
# checked by its number of rows, and its sha256 is kept beside the file for every later load.
GIT_BLOBS = {"test": "ccdac1cc0112fb54dd68cbc88d9abfe28ce3d749"}

ROW_COUNTS = {"train": 3920, "test": 80}

WANTED = "pass a parquet file in ToolRL's format"

OWN_COPY = "pass your own copy with path= (--data on the command line)"


class ToolRL:
    """ToolRL's public rows as a task. A row is {"id": str, "prompt": [messages], "gold": str}."""

    name = "toolrl"
    objectives = OBJECTIVES

    score = staticmethod(each(score))

    def load(self, path: str | os.PathLike | None = None, split: str = "train") -> list[dict]:
        """The rows of a split, in the order of the file, as plain Python types.

        path: a parquet file (read whatever the split), a folder with {train,test}.parquet, or
        None: the public file, downloaded into the cache (the folder in VPO_LAB_CACHE, else
        ~/.cache/vpo_lab) and checked. Ids are "toolrl-<name of the file>-<position>".
        LabError, in one line, for whatever is wrong with the split, the file or the download.
        """
        if split not in SPLITS:
            raise LabError(f"unknown split {split!r} of toolrl: choose 'train' or 'test'")
        if path is None:
            return read_rows(fetch(split))
        file = Path(path).expanduser()
        if file.is_dir():
            file = _in_folder(file, split)
        return read_rows(file)

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """`n` answers that a warmup may imitate: the gold and golds with one slip, shuffled.

        A slip is a lost call, a lost parameter or the name of another tool of the prompt. Distinct
        where the row allows: one without calls has only its gold to show.
        """
        slips = _golds_with_one_slip(row)
        picked = [slips[i] for i in rng.permutation(len(slips))[: n - 1]]
        answers = [row["gold"], *picked]
        answers += [row["gold"]] * (n - len(answers))
        return [answers[i] for i in rng.permutation(n)]


def _in_folder(folder: Path, split: str) -> Path:
    file = folder / f"{split}.parquet"
    if not file.is_file():
        found = ", ".join(sorted(p.name for p in folder.glob("*.parquet"))) or "no parquet file"
        raise LabError(f"no {file.name} in {folder} (found: {found}): rename it or pass the file itself")
    return file


def _golds_with_one_slip(row: dict) -> list[str]:
    parsed = parse_answer(row["gold"])
    calls = [{"name": call.name, "parameters": call.parameters} for call in parsed.calls]
    tools = re.findall(r"^\d+\. Name: (.*)$", row["prompt"][0]["content"], flags=re.MULTILINE)
    slips = [calls[:i] + calls[i + 1 :] for i in range(len(calls)) if len(calls) > 1]
    for i, call in enumerate(calls):
        variants = [{**call, "name": tool.strip()} for tool in tools if tool.strip() != call["name"]]
        for key in call["parameters"]:
            fewer = {k: v for k, v in call["parameters"].items() if k != key}
            variants.append({**call, "parameters": fewer})
        slips += [[*calls[:i], variant, *calls[i + 1 :]] for variant in variants]
    texts = {}  # a dict keeps the order, so that one seed always picks the same
    for slip in slips:
        lines = "\n".join(json.dumps(call, default=float) for call in slip)
        texts[f"<think> {parsed.think or ''} </think>\n<tool_call>\n{lines}\n</tool_call>"] = None
    return list(texts)


# --- Reading ----------------------------------------------------------------------------------


def read_rows(file: str | os.PathLike) -> list[dict]:
    """The rows of one parquet file in ToolRL's columns. LabError if they cannot be had from it."""
    file = Path(file)
    if not os.path.isfile(file):  # False, too, where a folder on the way is closed to us
        raise LabError(f"no data file {file}: check the path, or leave it out to download ToolRL's rows")
    if file.stat().st_size == 0:
        raise LabError(f"{file} is empty (0 bytes): copy or download it again")
    columns = _read_columns(file)
    rows = [
        {
            "id": f"toolrl-{file.stem}-{number}",
            "prompt": _messages(prompt, file, number),
            "gold": _gold(reward_model, file, number),
        }
        for number, (prompt, reward_model) in enumerate(zip(*columns, strict=True))
    ]
    if not rows:
        raise LabError(f"{file} holds no rows: copy or download it again")
    return rows


def _read_columns(file: Path) -> tuple[list, list]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise LabError(f"reading {file} needs pyarrow ({error}): pip install pyarrow") from error
    names = ("prompt", "reward_model")
    try:
        # Opened here, so that Arrow sees neither odd characters in the path nor a dataset folder.
        with file.open("rb") as source:
            table = pq.ParquetFile(source)
            missing = [name for name in names if name not in table.schema_arrow.names]
            if missing:
                found = ", ".join(table.schema_arrow.names)
                raise LabError(f"{file} has no column {missing[0]!r} (it has: {found}): {WANTED}")
            data = table.read(columns=list(names))
            return tuple(data.column(name).to_pylist() for name in names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise LabError(f"cannot read {file} as parquet ({_line(error)}): copy or download it again") from error


def _messages(prompt: Any, file: Path, number: int) -> list[dict]:
    if not isinstance(prompt, list) or not prompt or not all(map(_is_message, prompt)):
        raise LabError(
            f"{file}, row {number}: column 'prompt' is not a list of messages with 'role' and 'content': {WANTED}"
        )
    return [{"role": message["role"], "content": message["content"]} for message in prompt]


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _gold(reward_model: Any, file: Path, number: int) -> str:
    gold = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    if not isinstance(gold, str):
        raise LabError(f"{file}, row {number}: column 'reward_model' has no text in 'ground_truth': {WANTED}")
    return gold


def _line(error: BaseException) -> str:
    """The error's text in one line, short enough for a message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- Downloading ------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where downloads are kept."""
    root = os.environ.get("VPO_LAB_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "vpo_lab") / "toolrl"


def fetch(split: str) -> Path:
    """The split's parquet file in the cache, downloaded if absent and checked every time."""
    file = cache_folder() / f"{split}.parquet"
    record = file.with_suffix(".sha256")
    try:
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            _download(f"{BASE_URL}/{split}.parquet", part)
            _check_download(part, split)
            record.write_text(_hash(part) + "\n")
            part.replace(file)
        elif not _is_same(file, split, record):
            raise LabError(f"{file} is not the file that was downloaded: delete it and run again")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            what = f"the disk is full at {file.parent}: free some space"
        else:
            what = f"cannot use the cache {file.parent} ({_line(error)}): make it writable"
        raise LabError(f"{what}, or set VPO_LAB_CACHE to another folder") from error
    return file


def _download(url: str, part: Path) -> None:
    """Bring `part` to the full length of the file at `url`, going on from what is there."""
    with part.open("ab") as sink:
        expected = _transfer(url, sink)
    size = part.stat().st_size
    if expected is not None and size != expected:
        if size > expected:
            part.unlink()
        raise LabError(f"the download of {url} stopped at {size:,} of {expected:,} bytes: run again to go on")


def _transfer(url: str, sink: BinaryIO) -> int | None:
    """Append what is missing; the length of the whole file where the server tells it.

    LabError for trouble with the network, so that an OSError from here is the disk's.
    """
    start = sink.tell()
    headers = {"User-Agent": "vpo-lab", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT_S)
    except HTTPError as error:
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if error.code == 416 and total.isdecimal():
            return int(total)  # nothing is missing
        raise _unreachable(url, error) from error
    except (OSError, HTTPException) as error:
        raise _unreachable(url, error) from error
    with response:
        if start and response.status != 206:
            # The server sends the whole file again.
            sink.truncate(0)
            start = 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        from tqdm import tqdm

        label = f"toolrl {url.rpartition('/')[2]}"
        with tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=label) as progress:
            while True:
                try:
                    chunk = response.read(CHUNK_BYTES)
                except (OSError, HTTPException) as error:
                    raise _unreachable(url, error) from error
                if not chunk:
                    return total
                sink.write(chunk)
                progress.update(len(chunk))


def _check_download(part: Path, split: str) -> None:
    """LabError, and no `part` left to go on from, unless it is the published file."""
    try:
        n_rows = len(read_rows(part))
        if n_rows != ROW_COUNTS[split]:
            raise LabError(f"it has {n_rows:,} rows instead of {ROW_COUNTS[split]:,}")
        if not _is_published(part, split):
            raise LabError("its content is not that of the published file")
    except LabError as error:
        part.unlink()
        raise LabError(f"the download of {split}.parquet went wrong ({error}): run again, or {OWN_COPY}") from error


def _is_same(file: Path, split: str, record: Path) -> bool:
    if split in GIT_BLOBS:
        return _is_published(file, split)
    # A file that was put there by hand has no record; the reader still checks its rows.
    return not record.is_file() or record.read_text().strip() == _hash(file)


def _is_published(file: Path, split: str) -> bool:
    """Does the file have git's name of the published one? True where that is not known."""
    blob = GIT_BLOBS.get(split)
    return blob is None or blob == _hash(file, "sha1", b"blob %d\0" % file.stat().st_size)


def _hash(file: Path, algorithm: str = "sha256", prefix: bytes = b"") -> str:
    digest = hashlib.new(algorithm, prefix, usedforsecurity=False)
    with file.open("rb") as source:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _unreachable(url: str, error: Exception) -> LabError:
    return LabError(f"cannot download {url} ({_line(error)}): check the network, or {OWN_COPY}")
