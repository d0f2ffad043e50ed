"""What a training shows in a notebook while it runs: curves of the rewards, and the latest answers.

Nothing is drawn where nobody looks: outside notebooks, and where VPO_LAB_HEADLESS is 1 (papermill).
"""

from __future__ import annotations

import base64
import io
import os
import sys
import time
from collections.abc import Callable
from html import escape

HEADLESS = "VPO_LAB_HEADLESS"  # the pipeline sets this to 1 while it executes notebooks
SECONDS = 10.0  # between two drawings, which take a few tenths of one


def someone_looks() -> bool:
    """Is this a notebook that a person has open?"""
    return "ipykernel" in sys.modules and os.environ.get(HEADLESS) != "1"


class LiveView:
    """Curves of a stage's log, redrawn in place, above the answers of one rollout of the latest step."""

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
        from vpo_lab import plots  # matplotlib: only where it is drawn

        objectives = [key for key in log[-1] if key.startswith("objective/")]
        metrics = ["set_reward", "mean_reward", *objectives] if objectives else ["loss"]
        figure = plots.training_curves({self.title: log}, metrics)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=60)
        picture = f'<img alt="training curves" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'
        answers = f"<pre>{escape(self.example())}</pre>" if self.example else ""
        return picture + answers
