"""Read ToolRL's tool-calling rows (arXiv:2504.13958): 3,920 for training, 80 for testing, downloaded once.

The rows come from github.com/qiancheng0/ToolRL (Apache-2.0), mixed there from ToolACE, masked Hammer and xLAM.
The project ships none of them: `load` downloads them into a cache, or reads your own copy.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from vpo_lab import files
from vpo_lab.errors import LabError
from vpo_lab.processes import print0
from vpo_lab.tasks import each
from vpo_lab.tasks.download import OWN_COPY, TIMEOUT_S, no_download
from vpo_lab.tasks.tool_calls.reward import OBJECTIVES, parse_answer, score
from vpo_lab.tasks.tool_calls.words import MEANINGS, short_answer, title_of

BASE_URL = "https://raw.githubusercontent.com/qiancheng0/ToolRL/main/dataset/rlla_4k"
ROW_COUNTS = {"train": 3920, "test": 80}
# Of the published test file. The hash of train.parquet is not known here: its first download is checked by its number
# of rows, and its hash is then kept beside it for later loads.
SHA256 = {"test": "f7f300ebe755fd04985c83e18097d5a94a08619d72809fe06128ed3f00da7554"}

WANTED = "pass a parquet file in ToolRL's format"


class ToolRL:
    """Offer ToolRL's public rows as a task. A row is {"id": str, "prompt": [messages], "gold": str}."""

    name = "toolrl"
    objectives = OBJECTIVES
    meanings, short, title = MEANINGS, staticmethod(short_answer), staticmethod(title_of)

    score = staticmethod(each(score))

    def load(self, path: str | os.PathLike | None = None, split: str = "train") -> list[dict]:
        """Return the rows of a split, in the order of the file, as plain Python types.

        path: a parquet file (read whatever the split), a folder with {train,test}.parquet, or None: the public file,
        downloaded into the cache (the folder in VPO_LAB_CACHE, else ~/.cache/vpo_lab) and checked. Ids are
        "toolrl-<name of the file>-<position>". LabError for a wrong split, file, row or download.
        """
        if split not in ROW_COUNTS:
            raise LabError(f"unknown split {split!r} of toolrl: choose 'train' or 'test'")
        if path is None:
            return read_rows(fetch(split), leave_out=True)
        file = Path(path).expanduser()
        if file.is_dir():
            file = file / f"{split}.parquet"
        return read_rows(file)

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` answers that a warmup may imitate: the gold, and the gold with one slip each, shuffled.

        A slip is a lost call, a lost parameter or the name of another tool of the prompt. A row without calls has
        no slips and repeats its gold.
        """
        slips = _golds_with_one_slip(row)
        picked = [slips[i] for i in rng.permutation(len(slips))[: n - 1]]
        answers = [row["gold"], *picked]
        answers += [row["gold"]] * (n - len(answers))
        return [answers[i] for i in rng.permutation(n)]


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


def read_rows(file: str | os.PathLike, *, leave_out: bool = False) -> list[dict]:
    """Return the rows of one parquet file in ToolRL's columns.

    Every gold must earn 1 in all objectives, because one that cannot be parsed would reward an answer without calls.
    LabError if a gold does not (with `leave_out` such rows are dropped and counted), or for another kind of file.
    """
    file = Path(file)
    rows = [_row(record, file, number) for number, record in enumerate(_records(file))]
    earned_ND = np.array([score(row["gold"], row["gold"]) for row in rows])
    unsound = np.flatnonzero(earned_ND.min(axis=1) < 1).tolist()
    if unsound and not leave_out:
        raise LabError(
            f"{file}, row {unsound[0]}: the gold itself earns {earned_ND[unsound[0]].tolist()}, not all 1 "
            f"({len(unsound)} such rows): write a think block, then calls in strict JSON or a response"
        )
    if unsound:
        print0(f"{len(unsound)} of {len(rows)} rows of {file.name} have a gold that cannot be parsed: left out")
    return [row for number, row in enumerate(rows) if number not in set(unsound)]


def _records(file: Path) -> list[dict]:
    import pyarrow.parquet as pq

    try:
        # Opened here, because Arrow reads odd characters in a path as a URL, and folders as data sets.
        with file.open("rb") as source:
            table = pq.ParquetFile(source)
            found = table.schema_arrow.names
            records = table.read(columns=["prompt", "reward_model"]).to_pylist()
    except (OSError, ValueError) as error:  # Arrow's errors are of both kinds
        raise LabError(f"cannot read {file} as parquet ({_line(error)}): check the path, or {OWN_COPY}") from error
    for name in ("prompt", "reward_model"):
        if name not in found:
            raise LabError(f"{file} has no column {name!r} (it has: {', '.join(found)}): {WANTED}")
    if not records:
        raise LabError(f"{file} holds no rows: copy or download it again")
    return records


def _row(record: dict, file: Path, number: int) -> dict:
    where, prompt, reward_model = f"{file}, row {number}", record["prompt"], record["reward_model"]
    if not isinstance(prompt, list) or not prompt or not all(map(_is_message, prompt)):
        raise LabError(f"{where}: column 'prompt' is not a list of messages with 'role' and 'content': {WANTED}")
    gold = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    if not isinstance(gold, str):
        raise LabError(f"{where}: column 'reward_model' has no text in 'ground_truth': {WANTED}")
    messages = [{"role": message["role"], "content": message["content"]} for message in prompt]
    return {"id": f"toolrl-{file.stem}-{number}", "prompt": messages, "gold": gold}


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _line(error: BaseException) -> str:
    """Return the error's text in one line, short enough for a message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- Downloading ------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return where downloads are kept."""
    return files.cache_folder("toolrl")


def fetch(split: str) -> Path:
    """Return the split's parquet file in the cache, downloaded if absent or changed. Raises LabError without it."""
    import pooch

    folder, name, url = cache_folder(), f"{split}.parquet", f"{BASE_URL}/{split}.parquet"
    record, log = folder / f"{split}.sha256", pooch.get_logger()
    log.setLevel("WARNING")
    try:
        known = SHA256.get(split) or (record.read_text().strip() if record.is_file() else None)
        is_new = not (folder / name).is_file()
        downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT_S)
        file = Path(pooch.retrieve(url, known, name, folder, downloader=downloader))
        if is_new and known is None:
            _check(file, split)
            record.write_text(pooch.file_hash(str(file)) + "\n")
    except (OSError, ValueError) as error:  # of the network, of the disk; another hash
        raise no_download(url, folder, error) from error
    return file


def _check(file: Path, split: str) -> None:
    """Raise ValueError, and leave no file behind, unless it has as many rows as the published one."""
    try:
        if (rows := len(_records(file))) != ROW_COUNTS[split]:
            raise ValueError(f"{rows:,} rows instead of {ROW_COUNTS[split]:,}")
    except (LabError, ValueError) as error:
        file.unlink()
        raise ValueError(str(error)) from error
