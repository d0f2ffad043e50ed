"""Read prompts, and people's or models' replies to them: HH-RLHF, HelpSteer2, UltraFeedback.

The project ships none of them. Each loader reads your own copy, or downloads into the cache. A request is the first
thing that a person says: it is short, it stands alone, and a reply to it need not fit what an assistant said before.
Replies to later turns are left out, because they answer something else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpo_lab.errors import LabError
from vpo_lab.files import cache_folder
from vpo_lab.tasks.download import OWN_COPY, fetch_file, fetch_from_hub, own_files, read_records

CACHE = "judges"  # the name of its folder
TEST_SHARE = 10  # one request of so many is held out
REPLIES = 2  # of one request, that are kept

HH_RLHF = (
    "https://raw.githubusercontent.com/anthropics/hh-rlhf/0398e3636f8d641a03d65b9362aa091297f28564/harmless-base/test.jsonl.gz",
    "harmless-base-test.jsonl.gz",
    "ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03",
)
HELP_STEER_2, ULTRA_FEEDBACK = "nvidia/HelpSteer2", "openbmb/UltraFeedback"
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_LATER_TURN = "<extra_id_1>"  # how HelpSteer2 separates the turns of a dialogue


@dataclass(frozen=True)
class Request:
    """Hold what somebody asks, and replies to it, the best first where the data set rates them."""

    text: str
    replies: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Return 16 hex digits that are this request's in every file and on every machine."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @property
    def held_out(self) -> bool:
        """Tell whether it belongs to the test split: by its hash, so that another file or order changes nothing."""
        return int(self.digest, 16) % TEST_SHARE == 0


Source = Callable[[str | None], list[Request]]


def hh_rlhf(path: str | None = None) -> list[Request]:
    """Return the 2,178 different first turns of HH-RLHF's harmless-base test file (Anthropic, MIT).

    They are people's attempts to make an assistant say harmful things: many are offensive. A dialogue of one turn has
    two replies, the chosen one first; of a longer one only the first reply answers the request. LabError for a wrong
    file or download.
    """
    files = _own(path, "harmless-base", "hh_harmless") if path else [fetch_file(*HH_RLHF, cache_folder(CACHE))]
    return _merged(_dialogue(record, where) for record, where in _records(files))


def _dialogue(record: dict, where: str) -> tuple[str, list[str]]:
    """Return what a person says first, and what an assistant replies to it: in both versions, if they differ."""
    replies = []
    for field in ("chosen", "rejected"):
        before, *turns = _TURN.split(_text(record, field, where))
        if before.strip() or turns[0::2][:2] != ["Human", "Assistant"]:
            raise LabError(f"{where}: {field!r} is no dialogue that begins with Human and Assistant: {OWN_COPY}")
        request, reply = turns[1].strip(), turns[3].strip()
        replies.append(reply)
    return request, replies


def help_steer_2(path: str | None = None) -> list[Request]:
    """Return the prompts of HelpSteer2 (NVIDIA, CC BY 4.0; 11 MB) with their two responses, the more helpful first.

    Dialogues of several turns are left out. LabError for a wrong file or download.
    """
    files = _own(path, "train") if path else fetch_from_hub(HELP_STEER_2, ["train.jsonl.gz"], cache_folder(CACHE))
    records = sorted(
        ((where, record) for record, where in _records(files)), key=lambda pair: -float(pair[1].get("helpfulness") or 0)
    )
    found = ((_text(record, "prompt", where), [_text(record, "response", where)]) for where, record in records)
    return _merged(item for item in found if _LATER_TURN not in item[0])


def ultra_feedback(path: str | None = None) -> list[Request]:
    """Return the prompts of UltraFeedback (OpenBMB, MIT; about 1 GB) with their two best rated responses.

    LabError for a wrong file or download.
    """
    files = _own(path, "") if path else fetch_from_hub(ULTRA_FEEDBACK, ["*.jsonl"], cache_folder(CACHE))
    return _merged((_text(record, "instruction", where), _rated(record, where)) for record, where in _records(files))


def _rated(record: dict, where: str) -> list[str]:
    completions = record.get("completions")
    if not isinstance(completions, list) or not all(isinstance(one, dict) for one in completions):
        raise LabError(f"{where}: no list of completions: {OWN_COPY}, in the published format")
    rated = sorted(completions, key=lambda one: -float(one.get("overall_score") or 0))
    return [_text(one, "response", where) for one in rated]


# --- What they share --------------------------------------------------------------------------


def _own(path: str, *names: str) -> list[Path]:
    """Return the files that a path means, by the first of the names that is there."""
    for name in names[:-1]:
        try:
            return own_files(path, name)
        except LabError:
            continue
    return own_files(path, names[-1])


def _records(files: Iterable[Path]) -> Iterable[tuple[dict[str, Any], str]]:
    for file in files:
        for number, record in enumerate(read_records(file), start=1):
            if not isinstance(record, dict):
                raise LabError(f"{file}, {number}: no record with fields: {OWN_COPY}, in the published format")
            yield record, f"{file}, {number}"


def _text(record: dict, field: str, where: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        raise LabError(f"{where}: no text in {field!r}: {OWN_COPY}, in the published format")
    return value.strip()


def _merged(found: Iterable[tuple[str, list[str]]]) -> list[Request]:
    """Return one request for each different text, with the first replies of all records that have it."""
    merged: dict[str, list[str]] = {}
    for text, replies in found:
        if text:
            known = merged.setdefault(text, [])
            known += [reply for reply in dict.fromkeys(replies) if reply and reply not in known][: REPLIES - len(known)]
    return [Request(text, tuple(replies)) for text, replies in merged.items()]
