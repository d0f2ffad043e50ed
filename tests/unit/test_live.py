"""live.py: what a training shows in a notebook that somebody watches, and only there."""

import sys
import time

import IPython.display
import pytest
from matplotlib.figure import Figure

from vpo_lab.processes import SESSION, Session
from vpo_lab.show import live
from vpo_lab.show.live import LiveView, StageProgress, projection, someone_looks

REWARDS = {"set_reward": 0.1, "mean_reward": 0.2, "objective/format/mean": 0.3, "objective/format/best": 0.4}
LOG = [{"step": step, **REWARDS} for step in range(1, 6)]


@pytest.fixture
def shown(monkeypatch) -> list[str]:
    pages = []

    class Handle:
        def update(self, page):
            pages.append(page.data)

    def display(page, display_id):
        pages.append(page.data)
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    return pages


def test_only_in_a_notebook_that_is_not_executed_headless(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert not someone_looks()
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    monkeypatch.delenv(SESSION, raising=False)
    assert someone_looks()
    monkeypatch.setenv(SESSION, Session(headless=True).environment()[SESSION])
    assert not someone_looks()


def test_it_is_drawn_in_place_and_not_at_every_step(shown, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    view = LiveView("VPO", lambda: "<b>1 & 2</b>")
    for step in range(2, 6):
        clock[0] += live.SECONDS / 2 + 0.1
        view.update(LOG[:step])
    assert len(shown) == 2
    view.update(LOG, at_once=True)
    assert len(shown) == 3
    for page in shown:
        assert 'src="data:image/png;base64,' in page and "<pre>&lt;b&gt;1 &amp; 2&lt;/b&gt;</pre>" in page


def test_one_step_is_no_curve(shown):
    LiveView("SFT").update([{"step": 1, "loss": 2.0}], at_once=True)
    assert shown == []
    LiveView("SFT").update([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], at_once=True)
    assert len(shown) == 1 and "<pre>" not in shown[0]


def test_an_objective_is_drawn_once(shown, monkeypatch):
    drawn = []
    monkeypatch.setattr("vpo_lab.show.training_curves", lambda logs, metrics: drawn.append(metrics) or Figure())
    LiveView("VPO").update(LOG, at_once=True)
    assert drawn == [["set_reward", "mean_reward", "objective/format/mean"]]


# --- What the rest will take ------------------------------------------------------------------


def test_a_projection_is_hours_and_with_a_price_money():
    assert projection(36.0, 250, None) == "36 s a step, 2.5 h for 250 steps"
    assert projection(36.0, 250, 0.8).endswith("2.5 h for 250 steps, about 2.00 at 0.8 an hour")


def test_it_is_told_once_after_twenty_steps_of_which_the_first_does_not_count(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setenv(SESSION, Session(price=3.0).environment()[SESSION])
    progress, told = StageProgress("VPO", 250, done=100), []  # resumed
    for step in range(101, 140):
        clock[0] += 600 if step == 101 else 12  # graphs are compiled
        told += filter(None, [progress.measured(step)])
    (line,) = told
    assert line == "VPO, measured: 12 s a step, 0.4 h for 129 steps, about 1.29 at 3 an hour"
