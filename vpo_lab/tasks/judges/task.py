"""Make a task of a list of judges and a source of prompts: D judges, D objectives.

A task of your own is a subclass in a file of yours: `judges = (...)`, and `get_task("file.py:Class")`. See
docs/judges.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.files import cache_folder, read_json, write_json
from vpo_lab.processes import print0
from vpo_lab.show.explorer import one_line
from vpo_lab.tasks.judges.judge import Judge, Panel, fit_scale
from vpo_lab.tasks.judges.lexical import SHORT_REPLIES
from vpo_lab.tasks.judges.prompts import CACHE, Request, Source, help_steer_2, hh_rlhf, ultra_feedback
from vpo_lab.tasks.judges.replies import WORDS, short_replies, shortened

REFERENCES = 400  # replies on which judges are compared, and a scale is measured


class Judges:
    """Offer HH-RLHF's requests and four judges of short replies. A row's gold is the request, as judges read it.

    A subclass may set `judges`; `source`, which reads the prompts; `words`, the longest reply that a prompt allows
    (0: no limit, and the warmup shows the data set's own replies); and `scales`, a file for measured scales.
    """

    name = "judges"
    judges: tuple[Judge, ...] = SHORT_REPLIES
    source: Source = staticmethod(hh_rlhf)
    words: int = WORDS
    scales: str = ""  # "": in the cache

    def __init__(self) -> None:
        self.panel = Panel(self.judges)
        self.objectives = tuple(judge.name for judge in self.judges)
        self.meanings = {judge.name: judge.meaning for judge in self.judges}
        self.about = f"Replies to people's requests. Each objective is a judge: {', '.join(self.objectives)}."

    @property
    def lost(self) -> dict[str, dict[str, int]]:
        """Return how many judgements were lost so far, {judge: {reason: count}}."""
        return {name: dict(reasons) for name, reasons in self.panel.lost.items()}

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """Return the rows of a split, which is fixed by a hash of the request; `replies` holds the data set's own.

        Judges without a scale get theirs here, on replies to train requests, once: it is kept in a file. LabError for
        a wrong split, file or download, or if a judge has no scale and there are no replies.
        """
        if split not in ("train", "test"):
            raise LabError(f"unknown split {split!r} of {self.name}: choose 'train' or 'test'")
        requests = self.source(path)
        self._scale([request for request in requests if not request.held_out])
        rows = [self._row(request) for request in requests if request.held_out == (split == "test")]
        if not rows:
            raise LabError(f"no {split} request of {self.name} in {path or 'its source'}: pass a longer file")
        return rows

    def _row(self, request: Request) -> dict:
        form = f"a reply of at most {self.words} words" if self.words else "a reply in plain text"
        prompt = [
            {"role": "system", "content": f"Output format: {form}."},  # short: every rollout reads it
            {"role": "user", "content": request.text},
        ]
        answer = request.replies[0] if request.replies else ""
        return {
            "id": f"request-{request.digest}",
            "prompt": prompt,
            "gold": request.text,
            "answer": short_replies(request.replies, 1, np.random.default_rng(0))[0] if self.words else answer,
            "replies": list(request.replies),
        }

    def score(self, answers: Sequence[str], rows: Sequence[dict]) -> np.ndarray:
        """Return the judges' rewards of n answers: (n, D) in [0, 1], NaN where a judge does not work at all.

        LabError if no judge works, or one needs a package that is missing.
        """
        return self.panel.score([row["gold"] for row in rows], answers)

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` replies that differ: of different kinds where they are to be short, else the data set's own."""
        if self.words:
            return short_replies(row["replies"], n, rng)
        replies = row["replies"] or [row["answer"]]
        return [replies[i % len(replies)] for i in rng.permutation(n)]

    def references(self, path: str | None = None) -> tuple[list[str], list[dict]]:
        """Return (answers, rows) on which judges can be compared before anything is trained: the data set's replies."""
        pairs = [(reply, row) for row in self.load(path, "train") for reply in self._shortened(row["replies"])]
        return [reply for reply, _ in pairs[:REFERENCES]], [row for _, row in pairs[:REFERENCES]]

    # What `show.Explorer` asks for.

    def title(self, row: dict) -> str:
        """Return the request in a line."""
        return one_line(row["gold"], 200)

    def short(self, answer: str) -> str:
        """Return the answer in a line."""
        return one_line(answer, 300)

    # --- Scales ---

    def _shortened(self, replies: Sequence[str]) -> list[str]:
        """Return replies as short as the task's answers: a judge's scale is about these."""
        if not self.words:
            return list(replies)
        return [shortened(reply, self.words) for reply in replies]

    def _scale(self, requests: Sequence[Request]) -> None:
        """Give a scale to judges without one: the one in the file, else measured now and kept."""
        if all(judge.low is not None and judge.high is not None for judge in self.panel.judges):
            return
        file = Path(self.scales).expanduser() if self.scales else self._scales_file()
        known = read_json(file) if file.exists() else {}
        if not isinstance(known, dict):
            raise LabError(f"{file} holds no scales: delete it, it will be measured again")
        pairs = [(request.text, reply) for request in requests for reply in self._shortened(request.replies)]
        scaled, before = [], len(known)
        for judge in self.panel.judges:
            if judge.low is None or judge.high is None:
                if judge.key not in known:
                    prompts, answers = zip(*pairs[:REFERENCES], strict=True) if pairs else ((), ())
                    fitted = fit_scale(judge, prompts, answers)
                    known[judge.key] = [fitted.low, fitted.high]
                judge = replace(judge, low=known[judge.key][0], high=known[judge.key][1])
            scaled.append(judge)
        if len(known) > before:
            write_json(file, known)
            print0(f"scales of {', '.join(judge.name for judge in scaled)}: measured once, kept in {file}")
        self.panel = Panel(scaled)

    def _scales_file(self) -> Path:
        about = f"{getattr(self.source, '__name__', self.source)} {self.words}"
        return cache_folder(CACHE) / f"scales-{hashlib.sha256(about.encode()).hexdigest()[:8]}.json"


class HelpSteer2(Judges):
    """Offer HelpSteer2's prompts. A subclass may take reward models as judges, and `words = 0`."""

    name = "helpsteer2"
    source: Source = staticmethod(help_steer_2)


class UltraFeedback(Judges):
    """Offer UltraFeedback's prompts. A subclass may take reward models as judges, and `words = 0`."""

    name = "ultrafeedback"
    source: Source = staticmethod(ultra_feedback)
