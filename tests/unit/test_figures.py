"""What `vpo-lab figures` draws, and from what."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from vpo_lab import show
from vpo_lab.course import figures, results

ROOT = Path(__file__).resolve().parents[2]
SAVED = ROOT / "results"


@pytest.fixture
def kept(monkeypatch):
    """The figures that would be written, by name; without the searches through all mazes, which take seconds."""
    drawn = {}
    monkeypatch.setattr(figures, "save_figures", lambda these, out: drawn.update(these) or [])
    monkeypatch.setattr(results, "ceiling", lambda world, k: {})
    return drawn


def test_the_committed_figures_are_those_that_are_drawn_and_best_of_set_is_wherever_vpo_is(kept):
    figures.draw_experiment_figures(SAVED / "experiment", Path())
    figures.draw_code_figures(SAVED / "code", Path())
    taken = {"explorer"}  # a picture of the page, by `make picture`
    judged = {path.stem for path in (ROOT / "figures").glob("judges_*.png")}
    committed = {path.stem for path in (ROOT / "figures").glob("*.png")}
    assert kept.keys() | taken | judged == committed and len(committed) <= 12
    for name in kept.keys() - {"mechanism", "ablations"}:
        texts = {line for text in kept[name].findobj(Text) for line in text.get_text().split("\n")}
        assert texts >= {"best of set", "VPO"}, name


def test_the_figures_of_a_run_need_its_summary_and_logs(kept, tmp_path):
    for source in (SAVED / "tiny" / "summary.json", *(SAVED / "tiny").glob("*/log.jsonl")):
        target = tmp_path / source.relative_to(SAVED / "tiny")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(source.read_bytes())
    figures.draw_figures(tmp_path, Path())
    assert sorted(kept) == ["collapse", "headline", "training_curves"]


def test_an_experiment_of_one_world_without_examples_is_drawn(kept, tmp_path):
    for name, rows in results.read(SAVED / "experiment").items():
        rows.query("world == 'tiny' and variant in ('sft', 'grpo')").to_csv(tmp_path / f"{name}.csv", index=False)
    figures.draw_experiment_figures(tmp_path, Path())
    assert sorted(kept) == ["collapse", "headline", "mechanism"]


def test_the_number_of_seeds_is_told_and_where_there_are_five_each_has_a_line(kept):
    figures.draw_experiment_figures(SAVED / "experiment", Path())
    tables = results.read(SAVED / "experiment")
    seeds = tables["intervals"].query("variant == 'vpo' and minus == ''").seeds.max()
    usual = tables["intervals"].query("variant == 'grpo' and minus == ''").seeds.max()
    assert f"{usual} training seeds" in kept["headline"].get_suptitle()
    assert (f"VPO: {seeds}" in kept["headline"].get_suptitle()) == (seeds != usual)
    tools, maze = kept["headline"].axes
    thin = [sum(line.get_linewidth() < 1 for line in axes.lines) for axes in (tools, maze)]
    assert thin[0] == 0 and thin[1] >= 5 * 5


def test_the_same_picture_gives_the_same_bytes(tmp_path):
    paths = [
        figures.save_figures({"a": show.reward_vectors(np.eye(2), ["x", "y"])}, tmp_path / folder)
        for folder in ("one", "two")
    ]
    assert paths[0][0].read_bytes() == paths[1][0].read_bytes()
