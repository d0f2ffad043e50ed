"""Show a training while it runs: a progress line, and in a notebook curves and the latest answers.

Curves are drawn only in a notebook that a person has open, not in those that `vpo-lab run` executes.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import time
from collections.abc import Callable
from html import escape

from vpo_lab.processes import rank, session

SECONDS = 10.0  # between two drawings; one takes a few tenths of a second


def someone_looks() -> bool:
    """Return True in a notebook that a person has open."""
    return "ipykernel" in sys.modules and not session().headless


def inline_pictures() -> None:
    """Show figures in a notebook even if MPLBACKEND names a backend without windows, as servers often do."""
    backend = os.environ.get("MPLBACKEND", "").lower()
    if "ipykernel" not in sys.modules or not backend or any(name in backend for name in ("inline", "ipympl", "nbagg")):
        return
    import matplotlib
    from IPython import get_ipython

    if matplotlib.get_backend().lower() == backend:  # a reader who has chosen another one keeps it
        get_ipython().run_line_magic("matplotlib", "inline")


class LiveView:
    """Draw the curves of a stage's log in place, above the answers of one rollout of the latest step."""

    def __init__(self, title: str, example: Callable[[], str] | None = None):
        self.title, self.example = title, example
        self.handle, self.drawn_at = None, time.monotonic()

    def update(self, log: list[dict], at_once: bool = False) -> None:
        """Show the log so far, at most every few seconds unless `at_once`."""
        now = time.monotonic()
        if len(log) < 2 or (now - self.drawn_at < SECONDS and not at_once):
            return
        self.drawn_at = now
        from IPython.display import HTML, display

        page = HTML(self._page(log))
        if self.handle is None:
            self.handle = display(page, display_id=True)
        else:
            self.handle.update(page)

    def _page(self, log: list[dict]) -> str:
        from vpo_lab import show

        objectives = [key for key in log[-1] if key.startswith("objective/") and key.endswith("/mean")]
        metrics = ["set_reward", "mean_reward", *objectives] if objectives else ["loss"]
        figure = show.training_curves({self.title: log}, metrics)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=60)
        picture = f'<img alt="training curves" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'
        answers = f"<pre>{escape(self.example())}</pre>" if self.example else ""
        return picture + answers


SHOWN = ("loss", "mean_reward", "best_of_rollout", "set_reward")


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


MEASURED = 20  # steps after which the time of the rest is told


def projection(seconds: float, steps: int, price: float | None) -> str:
    """Return how long so many steps take at these seconds a step, and what they cost at this price of an hour."""
    hours = seconds * steps / 3600
    bill = f", about {hours * price:.2f} at {price:g} an hour" if price else ""
    return f"{seconds:.3g} s a step, {hours:.1f} h for {steps:,} steps{bill}"


class StageProgress:
    """Show one line, at most once a second: title, step, remaining time, the latest metrics."""

    def __init__(self, title: str, steps: int, done: int = 0):
        self.title, self.steps, self.first = title, steps, done
        self.start = time.monotonic()
        self.second = 0.0  # when the first step was over, in which graphs are compiled
        self.shown_at = 0.0
        self.figures = ""
        self.handle = None
        self.in_notebook = "ipykernel" in sys.modules
        self.update(done)

    def update(self, done: int) -> None:
        """Show that `done` steps are done."""
        now = time.monotonic()
        if now - self.shown_at < 1 and done < self.steps:
            return
        self.shown_at = now
        spent, new = now - self.start, done - self.first
        eta = f"ETA {duration(spent / new * (self.steps - done))}" if new else "ETA --"
        ending = f"in {duration(spent)}" if done >= self.steps else eta
        self._show(f"{self.title}  {done}/{self.steps}  {ending}  {self.figures}")

    def measured(self, done: int) -> str:
        """Return the time and price of the steps that are left, once, when `MEASURED` steps were made; else ""."""
        if done - self.first <= 1:
            self.second = time.monotonic()
        if done - self.first != MEASURED + 1 or done >= self.steps:
            return ""
        seconds = (time.monotonic() - self.second) / MEASURED
        return f"{self.title}, measured: {projection(seconds, self.steps - done, session().price)}"

    def note(self, figures: dict) -> None:
        """Remember the latest values of the metrics in SHOWN."""
        self.figures = "  ".join(f"{key} {figures[key]:.3f}" for key in SHOWN if key in figures)

    def close(self, done: int | None = None) -> None:
        """Show the line a last time, after `done` steps (None: all)."""
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
