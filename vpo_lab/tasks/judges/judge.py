"""Say what a judge is, and ask several of them: in batches, each pair once, without losing a run to one that fails.

A judge gives raw numbers to pairs of prompt and answer. A number is scaled to [0, 1] between two that are fixed
beforehand, quantiles of what reference answers get: never by the batch, or the same answer would earn another reward
tomorrow.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.processes import print0

KNOWN = 50_000  # judgements of one judge that are kept
QUANTILES = (0.05, 0.95)  # of reference answers: what they get is worth 0 and 1
PATIENCE = 3  # calls in a row that a judge may fail in before it is given up
PROBE = ("Hello.", "Hello, how are you?")  # what a judge that works can judge

Pair = tuple[str, str]  # prompt and answer
# (n prompts, n answers) -> n numbers, one for each pair.
Scores = Callable[[Sequence[str], Sequence[str]], Sequence[Any] | np.ndarray]


@dataclass(frozen=True)
class Judge:
    """Hold one judge: its name, how it scores a batch of pairs, and the raw numbers that are worth 0 and 1.

    `low` may be above `high`, where less is better. Both None: measured on reference answers (`fit_scale`).
    """

    name: str
    scores: Scores
    low: float | None = None
    high: float | None = None
    meaning: str = ""  # a few words for a reader
    version: str = ""  # of what stands behind it, such as a model's name: another version gets another scale
    batch: int = 64  # pairs in one call
    seconds: float = 30.0  # that one call may take

    @property
    def key(self) -> str:
        """Return the name under which a measured scale is kept."""
        return f"{self.name} {self.version}".strip()


def each_pair(score_one: Callable[[str, str], float]) -> Scores:
    """Return the batched `scores` of a function that judges one pair: (prompt, answer) -> number."""
    return lambda prompts, answers: [score_one(*pair) for pair in zip(prompts, answers, strict=True)]


def fit_scale(judge: Judge, prompts: Sequence[str], answers: Sequence[str]) -> Judge:
    """Return the judge with its scale: the QUANTILES of its raw numbers for n reference answers to n prompts.

    What it cannot judge is left out. LabError if it judges none of them, or gives nearly all the same number.
    """
    panel = Panel([replace(judge, low=0.0, high=1.0)])
    asked = panel.ask(judge, list(zip(prompts, answers, strict=True)))
    raw = [number for number in asked.values() if np.isfinite(number)]
    if not raw:
        why = "; ".join(panel.lost[judge.name]) or "no reference answers"
        raise LabError(f"judge {judge.name!r} judges none of {len(answers)} reference answers ({why}): correct it")
    low, high = (float(number) for number in np.quantile(raw, QUANTILES))
    if low == high:
        raise LabError(
            f"judge {judge.name!r} gives {low:g} to nearly all of {len(raw)} reference answers: "
            "set its low and high by hand, or leave it out"
        )
    return replace(judge, low=low, high=high)


# --- Asking -----------------------------------------------------------------------------------


class Panel:
    """Ask judges for reward vectors. Equal pairs are judged once: a small policy often repeats itself.

    A judge may fail. An answer that a working judge cannot judge (it raises, hangs, gives None, NaN or no number)
    earns 0 from it, as an empty answer does, which no judge is asked about. If the judge does not work at all, all
    answers to these prompts get NaN from it, so that nobody gains or loses by it; after PATIENCE such calls in a row it
    is given up. Each loss is counted in `lost`, {judge: {reason: count}}, and printed: the first, the tenth, the
    hundredth ...
    """

    def __init__(self, judges: Sequence[Judge]):
        names = [judge.name for judge in judges]
        if not names or len(set(names)) < len(names):
            raise LabError(f"judges {names}: at least one is needed, each with a name of its own")
        self.judges = tuple(judges)
        self.lost: dict[str, Counter[str]] = {name: Counter() for name in names}
        self._known: dict[str, dict[Pair, float]] = {name: {} for name in names}
        self._failed = Counter[str]()  # calls in a row

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Return the rewards of n answers to n prompts: (n, D) in [0, 1]; NaN for a prompt whose judge does not work.

        LabError if a judge has no scale, or if no judge works.
        """
        pairs = list(zip(prompts, answers, strict=True))
        columns = [self._column(judge, pairs) for judge in self.judges]
        rewards_nD = np.array(columns, dtype=float).reshape(len(self.judges), len(pairs)).T
        if np.isnan(rewards_nD).all(axis=1).any():
            why = "; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in self.lost.items() if reasons)
            raise LabError(f"no judge works ({why}): repair one, then the same command goes on")
        return rewards_nD

    def _column(self, judge: Judge, pairs: list[Pair]) -> list[float]:
        low, high = judge.low, judge.high
        if low is None or high is None or low == high:
            raise LabError(f"judge {judge.name!r} has no scale (low {low}, high {high}): set both, or load the prompts")
        known = self._known[judge.name]
        blank = {pair: np.nan for pair in pairs if not pair[1].strip()}  # no answer: nobody need judge it
        new = [pair for pair in dict.fromkeys(pairs) if pair not in known and pair not in blank]
        raw = blank | {pair: known[pair] for pair in pairs if pair in known} | self.ask(judge, new)
        if len(known) + len(new) > KNOWN:
            known.clear()
        known.update((pair, raw[pair]) for pair in new[:KNOWN] if pair in raw)
        unjudged = {prompt for prompt, answer in pairs if (prompt, answer) not in raw}
        worth = {  # a raw NaN: this answer cannot be judged
            pair: 0.0 if np.isnan(number) else min(1.0, max(0.0, (number - low) / (high - low)))
            for pair, number in raw.items()
        }
        return [np.nan if pair[0] in unjudged else worth[pair] for pair in pairs]

    def ask(self, judge: Judge, pairs: Sequence[Pair]) -> dict[Pair, float]:
        """Return a judge's raw numbers; NaN for a pair that it cannot judge, no entry where it does not work.

        A batch that fails is halved, one that takes too long is taken apart, until only the pair that it fails for is
        lost.
        """
        if not pairs or self._failed[judge.name] >= PATIENCE:
            return {}
        parts = [pairs[start : start + judge.batch] for start in range(0, len(pairs), judge.batch)][::-1]
        found: dict[Pair, float] = {}
        reasons: dict[Pair, str] = {}
        broken, works, wasted = "", False, 0.0
        while parts and not broken:
            part, began = parts.pop(), monotonic()
            try:
                numbers = _numbers(_within(judge.seconds, judge.scores, part), len(part))
            except LabError:
                raise  # of the settings: a package is missing
            except (Exception, SystemExit) as error:
                wasted += monotonic() - began
                reason = _describe(error)
                works = works or _works(judge)
                if not works or wasted > 2 * PATIENCE * judge.seconds:
                    broken = reason
                elif len(part) == 1:
                    found[part[0]], reasons[part[0]] = np.nan, reason
                elif isinstance(error, TimeoutError):
                    parts += [[pair] for pair in reversed(part)]
                else:
                    parts += [part[len(part) // 2 :], part[: len(part) // 2]]
                continue
            for pair, (number, reason) in zip(part, numbers, strict=True):
                found[pair] = number
                works = works or not reason
                if reason:
                    reasons[pair] = reason
        if not broken and not works and not _works(judge):
            broken = next(iter(reasons.values()))
        if broken and not works:  # what it gave says nothing about the answers
            found, reasons = {}, {}
        lost = Counter(reasons.values())
        if broken:
            lost[broken] += len(pairs) - len(found)
        self._failed[judge.name] = self._failed[judge.name] + 1 if broken else 0
        self._report(judge, lost, bool(broken))
        return found

    def _report(self, judge: Judge, lost: Counter[str], broken: bool) -> None:
        """Count losses; say so when their number gets another digit, and when a judge is given up."""
        before = self.lost[judge.name].total()
        self.lost[judge.name] += lost
        total = self.lost[judge.name].total()
        given_up = self._failed[judge.name] >= PATIENCE
        if total == before or (before and len(str(total)) == len(str(before)) and not given_up):
            return
        shown = ", ".join(f"{count} x {reason}" for reason, count in self.lost[judge.name].most_common(3))
        what = "these answers earn 0 from it"
        if broken:
            what = "it is given up" if given_up else "it does not work, and is left out of this batch"
        print0(f"judge {judge.name!r}: {total:,} judgements lost ({shown}): {what}")


def _works(judge: Judge) -> bool:
    try:
        ((_, reason),) = _numbers(_within(judge.seconds, judge.scores, [PROBE]), 1)
    except (Exception, SystemExit):
        return False
    return not reason


def _numbers(scores: Any, n: int) -> list[tuple[float, str]]:
    """Return (number, "") for each of n scores, or (NaN, what it is instead)."""
    if isinstance(scores, str | bytes) or not hasattr(scores, "__len__") or len(scores) != n:
        size = f"{len(scores)} numbers" if hasattr(scores, "__len__") else type(scores).__name__
        raise ValueError(f"{size} for {n} answers")
    return [_number(score) for score in scores]


def _number(score: Any) -> tuple[float, str]:
    try:
        number = np.nan if isinstance(score, str | bytes) else float(score)
    except (TypeError, ValueError):
        number = np.nan
    if np.isfinite(number):
        return number, ""
    return np.nan, str(score) if score is None or isinstance(score, float) else "no number"


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}".removesuffix(": ")


# --- A time limit -----------------------------------------------------------------------------


class TimeUp(BaseException):
    """Tell that a call took too long. No `Exception`, so that a judge does not catch it by accident."""


def _within(seconds: float, scores: Scores, pairs: Sequence[Pair]) -> Any:
    """Return what `scores` gives for the pairs; TimeoutError if it takes longer than `seconds`.

    On the main thread a signal ends the call: loops, waiting and regular expressions stop, C code that does not
    return to Python goes on. On other threads, and on Windows, the call is left behind in a thread of its own.
    """
    prompts, answers = [prompt for prompt, _ in pairs], [answer for _, answer in pairs]
    try:
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
            return _until_alarm(seconds, scores, prompts, answers)
        return _beside(seconds, scores, prompts, answers)
    except TimeUp:
        raise TimeoutError(f"no answer within {seconds:g} s") from None


def _until_alarm(seconds: float, scores: Scores, prompts: list[str], answers: list[str]) -> Any:
    def ring(*_: Any) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)  # again and again, should the judge catch it
        try:
            return scores(prompts, answers)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # the alarm may have rung within the other one
        signal.signal(signal.SIGALRM, before)


def _beside(seconds: float, scores: Scores, prompts: list[str], answers: list[str]) -> Any:
    results: list[Any] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            results.append(scores(prompts, answers))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeUp
    return results[0]
