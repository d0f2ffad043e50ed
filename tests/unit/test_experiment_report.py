"""experiment_report.py on made-up CSV files: whole, in part, damaged; and on what experiment.py really writes."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vpo_lab import cli, show
from vpo_lab.course import figures as report
from vpo_lab.course import results as experiment_report
from vpo_lab.course.experiment import BUDGETS, PROFILED, VARIANTS, YARDSTICKS, Job, collect
from vpo_lab.course.figures import save_figures
from vpo_lab.course.results import experiment_tables, read_tables, update_results_page
from vpo_lab.errors import LabError
from vpo_lab.files import write_json
from vpo_lab.search.pool import Pool

ROOT = Path(__file__).resolve().parents[2]
METRICS = {"tiny": ("best", "pass", "eum"), "maze": ("best", "pass", "eum", "hypervolume")}
POOLS = ["sft_chain", *(name for name, variant in VARIANTS.items() if variant.method != "sft" or name == "sft")]
LEVELS = {  # the value at k = 1 and what more candidates add, for a few; the others lie between
    "sft": (0.45, 0.45), "sft_chain": (0.45, 0.44), "grpo": (0.73, 0.04), "vpo": (0.66, 0.27), "vpo_pool": (0.63, 0.33),
}  # fmt: skip


def value(variant: str, metric: str, k: int, seed: int) -> float:
    """A made-up result: it rises with k and differs a little from seed to seed."""
    number = POOLS.index(variant)
    first, gain = LEVELS.get(variant, (0.6 + 0.004 * number, 0.1 + 0.008 * number))
    shift = {"best": 0.0, "pass": -0.3, "eum": 0.02, "hypervolume": -0.1}[metric]
    return first + gain * (1 - k**-0.6) + shift + 0.004 * (seed - 2)


def write_fakes(folder: Path, worlds=("tiny", "maze"), variants=POOLS, seeds=range(5), steps=200) -> Path:
    """The four CSV files as `experiment.collect` writes them, with invented numbers."""
    runs, budgets, curves, intervals = [], [], [], []
    for world in worlds:
        there = [v for v in variants if v == "sft_chain" or world in VARIANTS[v].worlds]
        for variant in there:
            trained = not variant.startswith("sft")
            for seed in seeds:
                key = {"world": world, "variant": variant, "seed": seed}
                runs.append({**key, **fake_run(variant, trained, seed)})
                for k in BUDGETS:
                    values = {m: known(world, m, value(variant, m, k, seed)) for m in METRICS[world]}
                    tokens = 9.3 * k * (1 + 0.1 * ("chain" in variant or "vpo" in variant))
                    budgets.append({**key, "k": k, "tokens": tokens, **values})
                for step in range(10, steps * trained + 1, 10):
                    curves.append({**key, **fake_step(variant, step, steps, seed)})
            for metric in METRICS[world]:
                intervals += fake_intervals(world, variant, metric, there, len(seeds))
    for name, rows in (("runs", runs), ("budgets", budgets), ("curves", curves), ("intervals", intervals)):
        write_csv(folder / f"{name}.csv", rows)
    return folder


def known(world: str, metric: str, number: float) -> float:
    return 0.0 if (world, metric) == ("maze", "pass") else number


def fake_run(variant: str, trained: bool, seed: int) -> dict:
    costs = {"minutes": 5.5 + seed, "generated_tokens": 2_500_000 + seed, "entropy": 0.2} if trained else {}
    return {
        "method": VARIANTS[variant].method if variant in VARIANTS else "sft",
        "m": 1 if variant in ("sft", "grpo", "max_at_k", "random_weights") else 3,
        "steps": 600,
        "minutes": "",
        "generated_tokens": "",
        "entropy": "",
        **costs,
        "distinct_answers": 0.4,
        "reward_diversity": 0.2,
        "correlation": "" if variant == "gdpo" else 0.31,
        "mean_format": 0.9,
    }


def fake_step(variant: str, step: int, steps: int, seed: int) -> dict:
    rng = np.random.default_rng([step, seed, POOLS.index(variant)])
    decay = np.exp(-3 * step / steps * (1.2 - value(variant, "best", 24, seed)))
    return {"step": step, **dict.fromkeys(PROFILED, 0.5 + 0.5 * decay + 0.02 * rng.normal())}


def fake_intervals(world: str, variant: str, metric: str, there: list[str], seeds: int) -> list[dict]:
    rows = []
    for k in BUDGETS:
        for other in ("", *YARDSTICKS):
            if other == variant or (other and other not in there):
                continue
            mean = known(world, metric, value(variant, metric, k, 2) - (value(other, metric, k, 2) if other else 0.0))
            row = {"world": world, "variant": variant, "metric": metric, "k": k, "minus": other, "seeds": seeds}
            rows.append({**row, "mean": mean, "low": mean - 0.01 * (mean != 0), "high": mean + 0.02 * (mean != 0)})
    return rows


def write_csv(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(column for row in rows for column in row)))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(autouse=True)
def ceilings(monkeypatch):
    """The real ones take seconds; they are the tasks' to test."""
    known = {"best": 0.95, "pass": 0.9}
    fakes = {"tiny": known, "maze": {**known, "pass": 0.0, "eum": 0.96, "hypervolume": 0.97}}
    monkeypatch.setattr(experiment_report, "ceiling", lambda world, k: fakes.get(world, {}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_fakes(tmp_path_factory.mktemp("whole"))


# --- Reading ----------------------------------------------------------------------------------


def test_numbers_are_parsed_and_what_is_empty_is_nan(whole):
    tables = read_tables(whole)
    sft = next(row for row in tables["runs"] if row["variant"] == "sft")
    assert sft["seed"] == 0 and sft["correlation"] == 0.31 and np.isnan(sft["minutes"])
    assert {row["minus"] for row in tables["intervals"]} == {"", *YARDSTICKS}


@pytest.mark.parametrize("name, column", [("runs", "entropy"), ("intervals", "minus"), ("curves", "step")])
def test_a_missing_column_is_named(tmp_path, name, column):
    path = write_fakes(tmp_path, ["tiny"], ["sft", "vpo"]) / f"{name}.csv"
    path.write_text(path.read_text().replace(column, "else", 1))
    with pytest.raises(LabError, match=rf"{name}.csv has no column '{column}'"):
        read_tables(tmp_path)


def test_a_missing_file_and_a_damaged_number_are_named(tmp_path):
    path = write_fakes(tmp_path, ["tiny"], ["sft", "vpo"]) / "budgets.csv"
    path.write_text(path.read_text().replace("tiny,sft,0,1,9.3", "tiny,sft,0,one,9.3", 1))
    with pytest.raises(LabError, match=r"budgets.csv, line 2, k: 'one' is no number"):
        read_tables(tmp_path)
    path.unlink()
    with pytest.raises(LabError, match=r"budgets.csv does not exist: `vpo-lab experiment`"):
        read_tables(tmp_path)


# --- Tables -----------------------------------------------------------------------------------


def cells(table: str, *starts: str) -> list[str]:
    """The cells of the first row that begins with these cells."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return next(row for row in rows if row[: len(starts)] == list(starts))


def test_the_main_table_has_every_method_the_ceiling_and_the_seeds(whole):
    tables = experiment_tables(read_tables(whole))
    assert cells(tables["main-tiny"], "vpo")[1:3] == ["0.660 [0.650, 0.680]", "0.790 [0.780, 0.810]"]
    assert cells(tables["main-tiny"], "vpo")[-1] == "5"
    assert cells(tables["main-tiny"], "*ceiling*")[1] == "0.950"
    assert "pass@k" in tables["main-tiny"] and "hypervolume" not in tables["main-tiny"]
    assert "hypervolume ratio" in tables["main-maze"] and "pass@k" not in tables["main-maze"]


def test_differences_are_told_in_words_by_the_sign_of_the_interval(whole):
    table = experiment_tables(read_tables(whole))["differences-tiny"]
    against_grpo = table[table.index("best@k, less `grpo`") :]
    assert cells(against_grpo, "vpo")[1] == "ahead +0.041 [+0.031, +0.061]"
    assert cells(against_grpo, "sft")[1] == "**behind** −0.082 [−0.092, −0.062]"
    assert cells(against_grpo, "sft")[2].startswith("undecided −0.010")
    assert all(f"less `{other}`" in table for other in ("grpo", "sft", "vpo"))


def test_the_other_tables(whole):
    tables = experiment_tables(read_tables(whole))
    assert cells(tables["ablations-tiny"], "weightings", "`k1`")[2].startswith("−0.0")
    assert "`k1`" not in tables["ablations-maze"] and "hypervolume" in tables["ablations-maze"]
    assert cells(tables["sets-and-weights"], "tiny", "best@k", "3")[-1] == "0.790 [0.780, 0.810]"
    grpo, vpo = (cells(tables["costs"], "tiny", name) for name in ("grpo", "vpo"))
    assert grpo[5] == vpo[5] != "–", "the answers sampled in a training are equal"
    assert vpo[7:] == ["1.00", "7.5 [5.5, 9.5]"]
    assert cells(tables["collinearity"], "sft (the start)")[1] == "0.31 [0.31, 0.31]"
    assert cells(tables["collinearity"], "gdpo")[1] == "–"
    assert cells(tables["diversity"], "maze", "sft")[2:] == ["0.400 [0.400, 0.400]", "0.200 [0.200, 0.200]", "–"]


def test_targets_are_judged_by_the_mean_and_by_the_interval(whole):
    table = experiment_tables(read_tables(whole))["targets"]
    for row in (
        ["tiny", "best@24 of VPO less GRPO's: 0.05 or more", "+0.126 [+0.116, +0.146]", "yes", "yes"],
        ["tiny", "best@3 of VPO over its ceiling: 0.95 or more", "0.832 [0.821, 0.853]", "**no**", "**no**"],
        ["maze", "hypervolume at k = 3 of VPO over GRPO's: 1.3 or more", "1.06 [1.05, 1.09]", "**no**", "**no**"],
    ):
        assert cells(table, *row[:2]) == row
    growth = cells(table, "maze", "EUM of `vpo_pool` less `grpo`'s, growth from k = 3 to 24: above 0")
    assert growth[2:] == ["+0.107 [+0.107, +0.107]", "yes", "yes"]


@pytest.mark.parametrize(
    "limit, verdicts", [(0.4, "yes yes"), (0.5, "yes undecided"), (0.55, "**no** undecided"), (0.7, "**no** **no**")]
)
def test_verdicts(limit, verdicts):
    assert [experiment_report._verdict((0.5, 0.4, 0.6), limit, by) for by in ("mean", "interval")] == verdicts.split()


PARTS = {
    "one world": {"worlds": ["maze"]},
    "one seed": {"seeds": [3]},
    "no vpo": {"variants": ["sft", "sft_chain", "grpo", "max_at_k"]},
    "nothing but vpo": {"variants": ["sft", "vpo"], "worlds": ["tiny"]},
    "only ablations": {"variants": ["sft", "k1", "best_of_set"], "worlds": ["tiny"]},
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_partial_results_give_every_table(tmp_path, whole, part):
    tables = experiment_tables(read_tables(write_fakes(tmp_path, **part)))
    assert tables.keys() == experiment_tables(read_tables(whole)).keys()
    assert all(text.endswith("\n") and "nan" not in text for text in tables.values())
    if "worlds" in part:
        missing = {"tiny", "maze"} - set(part["worlds"])
        assert {tables[f"main-{world}"] for world in missing} == {experiment_report.NOTHING}
        assert "not measured" in tables["targets"]


# --- The page ---------------------------------------------------------------------------------


def test_the_page_is_updated_between_its_marks_only_and_twice_is_once(tmp_path, whole):
    page, tables = tmp_path / "README.md", read_tables(whole)
    page.write_text(
        "# Mine\n\n<!-- table: costs -->\nold\n<!-- /table -->\nkept <!-- table: main-maze -->\n<!-- /table -->\n"
    )
    update_results_page(page, tables)
    once = page.read_text()
    assert once.startswith("# Mine\n\n<!-- table: costs -->\n| world |") and "old" not in once
    assert "<!-- /table -->\nkept <!-- table: main-maze -->\n| best@k |" in once
    update_results_page(page, tables)
    assert page.read_text() == once


@pytest.mark.parametrize(
    "text, hint", [("no marks", "has no '<!-- table: NAME"), ("<!-- table: x -->\n<!-- /table -->", "'x'")]
)
def test_a_page_without_marks_or_with_unknown_ones_is_refused(tmp_path, whole, text, hint):
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(LabError, match=hint):
        update_results_page(page, read_tables(whole))
    assert page.read_text() == text


def test_the_committed_page_has_a_place_for_every_table(whole):
    names = {match[2] for match in experiment_report.TABLE.finditer((ROOT / "results" / "README.md").read_text())}
    assert names == experiment_tables(read_tables(whole)).keys()


# --- Figures ----------------------------------------------------------------------------------


@pytest.fixture
def small_maze(monkeypatch):
    gold = "🤖⬜🟡\n⬜🔥⬜\n💎⬜🏁"
    monkeypatch.setattr(experiment_report, "_some_maze", lambda: show.maze_paths(gold, ["→→↓↓"]))


def test_every_figure_is_drawn(tmp_path, small_maze):
    variants = ["sft", "grpo", "vpo", "k1", "best_of_set"]
    folder = write_fakes(tmp_path, ["maze"], variants, seeds=[0, 1], steps=40)
    paths = experiment_report.draw_experiment_figures(folder, tmp_path / "out")
    names = ["headline", "maze", "collapse_maze", "ablations_maze", "maze_paths"]
    assert [path.name for path in paths] == [f"experiment_{name}.png" for name in names]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_the_first_example_of_the_maze_is_drawn_for_the_main_methods(tmp_path, monkeypatch):
    rows = [{"id": "maze-test-0", "gold": "a drawing"}]
    monkeypatch.setattr(experiment_report, "get_task", lambda name: SimpleNamespace(load=lambda path, split: rows))
    assert experiment_report._maze_examples(tmp_path) is None
    sets = {name: {"answers": ["→", "↓"], "rewards": []} for name in ("vpo", "mine", "sft")}
    write_json(tmp_path / "examples.json", {"tiny": {}, "maze": {"maze-test-0": sets, "maze-test-1": {}}})
    assert experiment_report._maze_examples(tmp_path) == ("a drawing", {"sft": ["→", "↓"], "vpo": ["→", "↓"]})


def test_figures_of_partial_results(tmp_path):
    folder = write_fakes(tmp_path, ["tiny"], ["sft", "vpo"], seeds=[0], steps=20)
    names = {path.stem for path in experiment_report.draw_experiment_figures(folder, tmp_path / "out")}
    assert names == {"experiment_headline", "experiment_tiny", "experiment_collapse_tiny"}


def test_the_same_picture_gives_the_same_bytes(tmp_path):
    paths = [
        save_figures({"a": show.reward_vectors(np.eye(2), ["x", "y"])}, tmp_path / folder) for folder in ("one", "two")
    ]
    assert paths[0][0].read_bytes() == paths[1][0].read_bytes()


def test_the_command_draws_both_and_updates_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "draw_figures", lambda folder, out: [Path("a.png")])
    monkeypatch.setattr(experiment_report, "draw_experiment_figures", lambda folder, out: [Path("b.png")])
    write_fakes(tmp_path / "experiment", ["tiny"], ["sft", "vpo"])
    (tmp_path / "README.md").write_text("<!-- table: costs -->\n<!-- /table -->")
    monkeypatch.setattr(sys, "argv", ["vpo-lab", "figures", "--experiment", str(tmp_path / "experiment")])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out.splitlines() == ["a.png", "b.png", str(tmp_path / "README.md")]
    assert "| tiny | vpo |" in (tmp_path / "README.md").read_text()


# --- What experiment.py writes ----------------------------------------------------------------


def test_what_the_experiment_collects_can_be_read_and_told(tmp_path):
    rng, jobs = np.random.default_rng(0), []
    for variant in ("sft", "grpo", "vpo"):
        job = Job(tmp_path / "runs", "tiny", variant, 0)
        (job.folder / variant / "policy").mkdir(parents=True)
        entry = dict.fromkeys([*PROFILED, "step_time", "completions/mean_length"], 0.5)
        log = [json.dumps({"step": step, **entry}) for step in range(1, 21)]
        (job.folder / variant / "log.jsonl").write_text("\n".join(log))
        for name in job.pools:
            save_pool(job, name, m=1 if name in ("sft", "grpo") else 3, rng=rng)
        jobs.append(job)
    collect(jobs, tmp_path / "out")
    tables = experiment_tables(read_tables(tmp_path / "out"))
    assert cells(tables["costs"], "tiny", "vpo")[2:5] == ["1", "20", "3"]
    assert "vpo" in tables["differences-tiny"] and cells(tables["main-tiny"], "sft_chain")[-1] == "1"


def save_pool(job: Job, name: str, m: int, rng) -> None:
    chains = 24 // m
    Pool(
        name=name,
        task="tiny_tools",
        objectives=("format", "tool_name", "param_name", "param_value"),
        ids=("a", "b"),
        answers=[[[f"{i}" for i in range(m)] for _ in range(chains)]] * 2,
        rewards_NCMD=rng.integers(0, 2, size=(2, chains, m, 4)).astype(float),
        tokens_NC=np.full((2, chains), 9 * m),
    ).save(job.folder.pool(name))
