"""One line that says how far a stage is and when it will be done, in a terminal or a notebook."""

from __future__ import annotations

import sys
import time

from vpo_lab.processes import rank

SHOWN = ("loss", "mean_reward", "best_of_rollout", "set_reward")


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class StageProgress:
    """A single line that is redrawn at most once a second: title, step, ETA, the latest figures."""

    def __init__(self, title: str, steps: int, done: int = 0):
        self.title, self.steps, self.first = title, steps, done
        self.start = time.monotonic()
        self.shown_at = 0.0
        self.figures = ""
        self.handle = None
        self.in_notebook = "ipykernel" in sys.modules
        self.update(done)

    def update(self, done: int) -> None:
        now = time.monotonic()
        if now - self.shown_at < 1 and done < self.steps:
            return
        self.shown_at = now
        spent, new = now - self.start, done - self.first
        eta = f"ETA {duration(spent / new * (self.steps - done))}" if new else "ETA --"
        ending = f"in {duration(spent)}" if done >= self.steps else eta
        self._show(f"{self.title}  {done}/{self.steps}  {ending}  {self.figures}")

    def note(self, figures: dict) -> None:
        """Remember the latest values of the metrics that are shown."""
        self.figures = "  ".join(f"{key} {figures[key]:.3f}" for key in SHOWN if key in figures)

    def close(self, done: int | None = None) -> None:
        """Leave the line as it is at the end, after `done` steps (None: all)."""
        self.shown_at = 0.0
        self.update(self.steps if done is None else done)
        if not self.in_notebook and rank() == 0:
            print(file=sys.stderr)

    def _show(self, line: str) -> None:
        if rank() > 0:
            return
        if not self.in_notebook:
            print(f"\r{line:<110}", end="", file=sys.stderr, flush=True)
            return
        from IPython.display import display

        text = {"text/plain": line}
        if self.handle is None:
            self.handle = display(text, raw=True, display_id=True)
        else:
            self.handle.update(text, raw=True)
