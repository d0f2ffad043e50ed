"""Stand between OpenEvolve and a policy, in OpenEvolve's worker process: each call is one candidate of a problem."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.files import append_line, read_json, write_bytes
from vpo_lab.metrics import mean_reward
from vpo_lab.search.evolution import Evolution, solved
from vpo_lab.search.loop import Queue, child_of, messages_of, rewards_of
from vpo_lab.search.policies import Journal, Source
from vpo_lab.tasks import get_task

CHECKPOINT = 10  # iterations; OpenEvolve saves none at one whose answer had no effect, so not too few chances
_FENCE, _HIDDEN = "```", "`\u2060``"  # OpenEvolve takes a program to end at the first fence


class Client:
    """Answer OpenEvolve's prompts, which hold the parent and nothing else. Made by `init_client`, one per process."""

    def __init__(self, config):
        self.model = config.name  # OpenEvolve wants this name; it is the problem's folder
        self.asked = False

    async def generate_with_context(self, system_message: str, messages: list[dict], **_) -> str:
        """Return the child of the program in the last message."""
        if not self.asked:
            end_with_parent()
            self.asked = True
        folder = Path(self.model)
        try:
            return f"{_FENCE}python\n{hidden(problem_in(folder).propose(messages[-1]['content']))}\n{_FENCE}"
        except Exception as error:  # OpenEvolve would count it as a bad answer
            name = "" if isinstance(error, LabError) else f"{type(error).__name__}: "
            (folder / "error.txt").write_text(f"{name}{error}")
            os._exit(1)


def evaluator_of(file: str) -> Callable[[str], dict[str, float]]:
    """Return the `evaluate(path)` of an evaluator file in a problem's folder: the rewards of a program by name."""
    return lambda path: problem_in(Path(file).parent).metrics(Path(path).read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def problem_in(folder: Path) -> Problem:
    """Return the problem of a folder, one for client and evaluator of a process."""
    return Problem(folder)


def end_with_parent() -> None:
    """End this process soon after the one that started it: an orphan would wait for work for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Problem:
    """Know a problem's programs: ask for the next candidate, evaluate it, note it."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "candidates.jsonl"
        self.data: dict = read_json(folder / "problem.json")  # pyright: ignore
        self.row, self.task = self.data["row"], get_task(self.data["task"])
        self.queue = Queue(self.data["sees_parent"])
        self._reset(self.data["start"], np.array(self.data["start_rewards"], dtype=float))
        for line in self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []:
            try:
                self._add(json.loads(line))
            except ValueError:
                break  # cut short by a kill
        source = self.data["source"]
        if isinstance(source, list):
            self.ask = Journal(lambda requests, call: [[]])
            self.queue.put(source[self.tried :], 0)
            return
        self.ask = Journal(Source(**source).draw, folder / "answers.jsonl")
        last = self.lines[-1] if self.lines else {"calls": 0, "left": 0}
        self.ask.number = last["calls"]
        if last["left"]:
            self.queue.put(self.ask.lines[last["calls"] - 1]["answers"][0][-last["left"] :], last["parent"])

    def _reset(self, start: str, rewards_D: np.ndarray) -> None:
        self.tried, self.lines = 0, []
        self.texts, self.parents, self.found, self.rewards = [start], [-1], [0], [rewards_D]
        self.known = {_key(start): 0}

    def _add(self, line: dict) -> None:
        self.tried += 1
        self.lines.append(line)
        if line["text"] is not None:
            self.known.setdefault(_key(line["text"]), len(self.texts))
            self.texts.append(line["text"])
            self.parents.append(line["parent"])
            self.found.append(self.tried)
            self.rewards.append(np.array(line["rewards"], dtype=float))

    @property
    def solved(self) -> bool:
        return any(map(solved, self.rewards))

    def go_back_to(self, tried: int) -> None:
        """Forget the candidates after the first so many, which a checkpoint does not know."""
        lines = self.lines[:tried]
        write_bytes(self.log, "".join(json.dumps(line) + "\n" for line in lines).encode())
        (self.folder / "error.txt").unlink(missing_ok=True)
        self._reset(self.texts[0], self.rewards[0])
        for line in lines:
            self._add(line)

    def propose(self, shown: str) -> str:
        """Return a child of the program that was shown (or of the one that a waiting answer was written for)."""
        chosen = self.known[_key(shown)]
        if not self.queue.waiting:
            parent = self.texts[chosen] if self.queue.sees_parent else None
            messages = messages_of(self.task, self.row, parent, self.rewards[chosen])
            self.queue.put(self.ask([(self.row, messages)])[0], chosen)
        answer, parent = self.queue.get(lambda: chosen)
        child = child_of(self.task, self.texts[parent], answer, self.row)
        line = {"parent": parent, "text": None, "rewards": None}
        line |= {"calls": self.ask.number, "left": len(self.queue.waiting)}
        if child != self.texts[parent]:
            rewards_D = rewards_of(self.task, [child], [self.row])[0]
            line |= {"text": child, "rewards": [None if np.isnan(r) else r for r in rewards_D.tolist()]}
        self._add(line)
        append_line(self.log, line)
        if self.tried % CHECKPOINT == 0:
            for old in sorted((self.folder / "checkpoints").glob("*"), key=lambda path: path.stat().st_mtime)[:-2]:
                shutil.rmtree(old, ignore_errors=True)
        return child

    def metrics(self, text: str) -> dict[str, float]:
        """Return the rewards of a program by name, and their mean; 0 for a program that this search did not make."""
        number = self.known.get(_key(text))
        asked = ~np.isnan(self.rewards[0])
        rewards_D = np.where(asked, 0.0, np.nan) if number is None else self.rewards[number]
        named = zip(self.task.objectives, rewards_D.tolist(), strict=True)
        return {"combined_score": float(mean_reward(rewards_D)), **{name: r for name, r in named if r == r}}

    def evolution(self) -> Evolution:
        """Return what has been found, up to the solution: another candidate may have been on its way already."""
        lists = tuple(self.texts), tuple(self.parents), tuple(self.found)
        whole = Evolution(self.row["id"], self.task.objectives, self.tried, *lists, np.array(self.rewards))
        return whole.until(whole.solved_at)


def hidden(text: str) -> str:
    return text.replace(_FENCE, _HIDDEN)


def _key(text: str) -> str:
    """Return what a program is known by: OpenEvolve strips it, and fences are hidden from it."""
    return hidden(text).strip()
