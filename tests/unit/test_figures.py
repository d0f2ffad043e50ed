"""What `vpo-lab figures` draws, and from what."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from vpo_lab import show
from vpo_lab.course import figures, results
from vpo_lab.search.pool import Pool

ROOT = Path(__file__).resolve().parents[2]
SAVED = ROOT / "results"


@pytest.fixture
def kept(monkeypatch):
    """The figures that would be written, by name; without the searches through all mazes, which take seconds."""
    drawn = {}
    monkeypatch.setattr(figures, "save_figures", lambda these, out: drawn.update(these) or [])
    monkeypatch.setattr(figures, "_some_maze", lambda: show.mechanism())
    monkeypatch.setattr(results, "ceiling", lambda world, k: {})
    return drawn


def test_the_committed_figures_are_those_that_are_drawn_and_best_of_set_is_wherever_vpo_is(kept):
    figures.draw_figures(SAVED / "tiny", Path())
    mine = set(kept)
    figures.draw_experiment_figures(SAVED / "experiment", Path())
    theirs = set(kept) - mine
    figures.draw_code_figures(SAVED / "code", Path())
    taken = {"explorer"}  # a picture of the page, by `make picture`
    assert sorted(kept.keys() | taken) == sorted(path.stem for path in (ROOT / "figures").glob("*.png"))
    for name in kept.keys() - mine - {"experiment_maze_paths"}:
        texts = [text.get_text() for text in kept[name].findobj(Text)]
        credit = ", credit" * (name in theirs)
        assert f"best of set{credit}" in texts and any(f"VPO{credit}" in text for text in texts), name


def test_without_pools_their_figures_are_left_out(kept, tmp_path):
    for source in (SAVED / "tiny" / "summary.json", *(SAVED / "tiny").glob("*/log.jsonl")):
        target = tmp_path / source.relative_to(SAVED / "tiny")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(source.read_bytes())
    figures.draw_figures(tmp_path, Path())
    assert sorted(kept) == ["collapse", "headline", "mechanism", "training_curves"]


def test_an_experiment_of_one_world_without_examples_is_drawn(kept, tmp_path):
    for name, rows in results.read(SAVED / "experiment").items():
        rows.query("world == 'tiny' and variant in ('sft', 'grpo')").to_csv(tmp_path / f"{name}.csv", index=False)
    figures.draw_experiment_figures(tmp_path, Path())
    assert sorted(kept) == ["experiment_collapse_tiny", "experiment_headline", "experiment_tiny"]


def test_the_same_picture_gives_the_same_bytes(tmp_path):
    paths = [
        figures.save_figures({"a": show.reward_vectors(np.eye(2), ["x", "y"])}, tmp_path / folder)
        for folder in ("one", "two")
    ]
    assert paths[0][0].read_bytes() == paths[1][0].read_bytes()


def pool(rewards_NCMD, objectives) -> Pool:
    n, c, m, _ = rewards_NCMD.shape
    answers = [[["x"] * m] * c] * n
    return Pool("vpo", "mine", objectives, tuple(map(str, range(n))), answers, rewards_NCMD, np.ones((n, c), dtype=int))


def test_a_group_without_a_signal_is_not_drawn():
    assert figures._judged_group(pool(np.ones((2, 4, 3, 2)), ("a", "b"))) is None
    rewards_NCMD = np.ones((2, 4, 3, 2))
    rewards_NCMD[1] = np.random.default_rng(0).random((4, 3, 2))
    figure = figures._judged_group(pool(rewards_NCMD, ("a", "b")))
    assert figure.get_suptitle() == "1: 4 chains of 3 answers by the SFT start, as one group"


def test_fronts_cut_every_pool_into_sets_of_a_chain():
    rng = np.random.default_rng(0)
    pools = {
        "grpo": pool(rng.random((2, 25, 1, 3)), ("a", "b", "c")),
        "vpo": pool(rng.random((2, 8, 3, 3)), ("a", "b", "c")),
    }
    figure = figures._fronts(pools)
    assert [axes.get_xlabel() for axes in figure.axes] == ["a", "a"] and figure.axes[0].get_ylabel() == "b"
    assert [len(axes.collections[0].get_offsets()) for axes in figure.axes] == [48, 48]  # one answer is left over
    assert figures._fronts({"vpo": pool(rng.random((2, 8, 3, 1)), ("a",))}) is None


def test_fronts_take_the_objectives_of_a_tool_call_where_there_are_any():
    names = ("format", "tool_name", "param_name", "param_value")
    figure = figures._fronts({"vpo": pool(np.ones((1, 2, 3, 4)), names)})
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("tool name", "param value")
