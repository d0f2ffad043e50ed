"""What `vpo-lab figures` draws, and from what."""

from pathlib import Path

import numpy as np
import pytest

from vpo_lab.course import figures as report
from vpo_lab.course import results as experiment_report
from vpo_lab.search.pool import Pool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def kept(monkeypatch):
    """The figures that would be written, by name."""
    figures = {}
    for module in (report, experiment_report):
        monkeypatch.setattr(module, "save_figures", lambda drawn, out: figures.update(drawn) or [])
    return figures


def test_the_committed_figures_are_those_that_are_drawn(kept, monkeypatch):
    monkeypatch.setattr(experiment_report, "ceiling", lambda world, k: {})  # a search through all mazes
    monkeypatch.setattr(experiment_report, "_some_maze", lambda: None)
    report.draw_figures(ROOT / "results" / "tiny", Path())
    experiment_report.draw_experiment_figures(ROOT / "results" / "experiment", Path())
    assert sorted(kept) == sorted(path.stem for path in (ROOT / "figures").glob("*.png"))


def test_without_pools_their_figures_are_left_out(kept, tmp_path):
    results = ROOT / "results" / "tiny"
    for source in (results / "summary.json", *results.glob("*/log.jsonl")):
        target = tmp_path / source.relative_to(results)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(source.read_bytes())
    report.draw_figures(tmp_path, Path())
    assert sorted(kept) == ["collapse", "headline", "mechanism", "training_curves"]


def pool(rewards_NCMD, objectives) -> Pool:
    n, c, m, _ = rewards_NCMD.shape
    answers = [[["x"] * m] * c] * n
    return Pool("vpo", "mine", objectives, tuple(map(str, range(n))), answers, rewards_NCMD, np.ones((n, c), dtype=int))


def test_a_group_without_a_signal_is_not_drawn():
    assert report._judged_group(pool(np.ones((2, 4, 3, 2)), ("a", "b"))) is None
    rewards_NCMD = np.ones((2, 4, 3, 2))
    rewards_NCMD[1] = np.random.default_rng(0).random((4, 3, 2))
    figure = report._judged_group(pool(rewards_NCMD, ("a", "b")))
    assert figure.get_suptitle() == "1: 4 chains of 3 answers by the SFT start, as one group"


def test_fronts_cut_every_pool_into_sets_of_a_chain():
    rng = np.random.default_rng(0)
    pools = {
        "grpo": pool(rng.random((2, 25, 1, 3)), ("a", "b", "c")),
        "vpo": pool(rng.random((2, 8, 3, 3)), ("a", "b", "c")),
    }
    figure = report._fronts(pools)
    assert figure.get_suptitle() == "2 held-out requests, sets of 3 answers"
    assert [axes.get_xlabel() for axes in figure.axes] == ["a", "a"] and figure.axes[0].get_ylabel() == "b"
    assert [len(axes.collections[0].get_offsets()) for axes in figure.axes] == [48, 48]  # one answer is left over
    assert report._fronts({"vpo": pool(rng.random((2, 8, 3, 1)), ("a",))}) is None


def test_fronts_take_the_objectives_of_a_tool_call_where_there_are_any():
    names = ("format", "tool_name", "param_name", "param_value")
    figure = report._fronts({"vpo": pool(np.ones((1, 2, 3, 4)), names)})
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("tool name", "param value")
