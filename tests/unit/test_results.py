"""results.py on made-up CSV files: whole, in part, damaged, under old names; and one run beside them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vpo_lab.course import results
from vpo_lab.course.experiment import BUDGETS, VARIANTS, YARDSTICKS
from vpo_lab.errors import LabError
from vpo_lab.files import write_json
from vpo_lab.runs import Run
from vpo_lab.search.pool import Pool
from vpo_lab.search.summary import at_k

METRICS = {"tiny": ("best", "pass", "eum"), "maze": ("best", "pass", "eum", "hypervolume")}
POOLS = ["sft_chain", *(name for name, v in VARIANTS.items() if not name.startswith("sft_") and "tiny" in v.worlds)]
LEVELS = {  # the value at k = 1 and what more candidates add, for a few; the others lie between
    "sft": (0.45, 0.45), "sft_chain": (0.45, 0.44), "grpo": (0.73, 0.04), "vpo_credit": (0.66, 0.27),
    "vpo_search": (0.63, 0.33), "sft@0.7": (0.5, 0.4), "sft@best": (0.49, 0.39),
}  # fmt: skip


def value(variant: str, metric: str, k: int, seed: int) -> float:
    """A made-up result: it rises with k and differs a little from seed to seed."""
    number = POOLS.index(variant.partition("@")[0])
    first, gain = LEVELS.get(variant, (0.6 + 0.004 * number, 0.1 + 0.008 * number))
    shift = {"best": 0.0, "pass": -0.3, "eum": 0.02, "hypervolume": -0.1}[metric]
    return first + gain * (1 - k**-0.6) + shift + 0.004 * (seed - 2)


def known(world: str, metric: str, number: float) -> float:
    return 0.0 if (world, metric) == ("maze", "pass") else number


def write_fakes(
    folder: Path, worlds=("tiny", "maze"), variants=(*POOLS, "sft@0.7", "sft@best"), seeds=range(5)
) -> Path:
    """The four CSV files as `experiment.collect` writes them, with invented numbers."""
    runs, budgets, curves, intervals = [], [], [], []
    for world in worlds:
        there = [name for name in variants if name.startswith("sft") or world in VARIANTS[name].worlds]
        for name in there:
            trained = not name.startswith("sft")
            for seed in seeds:
                key = {"world": world, "variant": name, "seed": seed}
                run = {"method": "x", "m": 1 if name in ("sft", "grpo", "max_at_k") else 3, "steps": 600}
                spent = {"minutes": 5.5 + seed, "generated_tokens": 2_500_000 + seed, "entropy": 0.2}
                run |= spent if trained else dict.fromkeys(spent)
                correlation = None if name == "gdpo" else 0.31
                looks = {"distinct_answers": 0.4, "reward_diversity": 0.2, "correlation": correlation}
                runs.append({**key, **run, **looks})
                for k in BUDGETS:
                    values = {m: known(world, m, value(name, m, k, seed)) for m in METRICS[world]}
                    budgets.append({**key, "k": k, "tokens": 9.3 * k, **values})
                for step in range(10, 41, 10):
                    log = {"distinct_rollouts": 1 / step, "entropy": 1 / step, "best_of_group": 0.5}
                    curves += [{**key, "step": step, **log}] if trained else []
            for metric in METRICS[world]:
                control = VARIANTS[name].control if name in VARIANTS else "vpo"
                for k in BUDGETS:
                    for other in (
                        "",
                        *(one for one in dict.fromkeys((*YARDSTICKS, control)) if one in there and one != name),
                    ):
                        mean = value(name, metric, k, 2) - (value(other, metric, k, 2) if other else 0.0)
                        mean = known(world, metric, mean)
                        row = {"world": world, "variant": name, "metric": metric, "k": k}
                        row |= {"minus": other, "seeds": len(seeds), "mean": mean}
                        intervals.append({**row, "low": mean - 0.01 * (mean != 0), "high": mean + 0.02 * (mean != 0)})
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("runs", runs), ("budgets", budgets), ("curves", curves), ("intervals", intervals)):
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    return folder


@pytest.fixture(autouse=True)
def ceilings(monkeypatch):
    """The real ones take seconds; they are the tasks' to test."""
    fakes = {"tiny": {"best": 0.95, "pass": 0.9}, "maze": {"best": 0.95, "eum": 0.96, "hypervolume": 0.97}}
    monkeypatch.setattr(results, "ceiling", lambda world, k: fakes.get(world, {}))


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> results.Tables:
    return results.read(write_fakes(tmp_path_factory.mktemp("whole")))


def every_table(tables: results.Tables) -> dict[str, pd.DataFrame]:
    names = ("two_by_two", "costs", "diversity", "collinearity", "front_page")
    found = {name: getattr(results, name)(tables) for name in names}
    for world in results.worlds(tables):
        for name in ("ablations", "temperature", "best_temperature"):
            found[f"{name} {world}"] = getattr(results, name)(tables, world)
        for metric in results.metrics(tables, world):
            found[f"main {world} {metric}"] = results.main(tables, world, metric)
            for other in ("grpo", "sft", "vpo"):
                found[f"differences {world} {metric} {other}"] = results.differences(tables, world, metric, other)
    return found


# --- Reading ----------------------------------------------------------------------------------


def test_what_is_empty_is_missing_and_gzipped_files_are_read(tmp_path, tables):
    sft = tables["runs"].query("variant == 'sft'").iloc[0]
    assert sft.seed == 0 and sft.correlation == 0.31 and np.isnan(sft.minutes)
    assert set(tables["intervals"].minus) == {"", *YARDSTICKS, "vpo_credit", "group8"}
    write_fakes(tmp_path, ["tiny"], ["sft", "grpo"])
    plain = results.read(tmp_path)
    for name in ("curves", "intervals"):
        path = tmp_path / f"{name}.csv"
        pd.read_csv(path).to_csv(f"{path}.gz", index=False)
        path.unlink()
    assert all(rows.equals(plain[name]) for name, rows in results.read(tmp_path).items())


@pytest.mark.parametrize("name, column", [("runs", "entropy"), ("intervals", "minus"), ("curves", "step")])
def test_a_missing_column_is_named(tmp_path, name, column):
    path = write_fakes(tmp_path, ["tiny"], ["sft", "grpo"]) / f"{name}.csv"
    path.write_text(path.read_text().replace(column, "else", 1))
    with pytest.raises(LabError, match=rf"{name}.csv.*'{column}'"):
        results.read(tmp_path)


def test_a_missing_file_and_a_damaged_number_are_named(tmp_path):
    path = write_fakes(tmp_path, ["tiny"], ["sft", "grpo"]) / "budgets.csv"
    path.write_text(path.read_text().replace("tiny,sft,0,1,9.3", "tiny,sft,0,one,9.3", 1))
    with pytest.raises(LabError, match=r"budgets.csv.*one"):
        results.read(tmp_path)
    path.unlink()
    with pytest.raises(LabError, match=r"budgets.csv"):
        results.read(tmp_path)


# --- Tables -----------------------------------------------------------------------------------


def test_the_main_table_has_every_method_the_ceiling_and_the_seeds(tables):
    best = results.main(tables, "tiny", "best")
    assert list(best.loc["vpo_credit"])[:2] == ["0.660 [0.650, 0.680]", "0.790 [0.780, 0.810]"]
    assert best.seeds["vpo_credit"] == "5" and best["k = 1"]["ceiling"] == "0.950"
    assert list(best.index) == [*(name for name in results.METHODS if name in POOLS), "ceiling"]
    assert "grpo_kl0.2" in best.index and "k1" not in best.index, "rivals are compared, ablations are not"
    assert results.metrics(tables, "tiny") == ["best", "pass", "eum"]
    assert results.metrics(tables, "maze") == ["best", "eum", "hypervolume"], "nobody passes in the maze"


def test_differences_are_told_in_words_by_the_sign_of_the_interval(tables):
    against_grpo = results.differences(tables, "tiny", "best", "grpo")["k = 3"]
    assert against_grpo["vpo_credit"] == "ahead +0.041 [+0.031, +0.061]"
    assert against_grpo["sft"] == "behind −0.082 [−0.092, −0.062]"
    assert results.differences(tables, "tiny", "best", "grpo")["k = 6"]["sft"].startswith("undecided −0.010")


def test_ablations_stand_under_what_they_change(tables):
    tiny, maze = (results.ablations(tables, world) for world in ("tiny", "maze"))
    changed = tiny.index.droplevel("minus")
    assert ("credit per answer", "vpo_credit") in changed and ("answers in a set", "m2") in changed
    assert "m2" not in maze.index.get_level_values("variant") and "hypervolume ratio, k = 3" in maze
    assert not {"grpo", "sft", "vpo"} & set(tiny.index.get_level_values("variant"))
    assert {metric.partition(",")[0] for metric in tiny} == {"best", "pass", "seeds"}


def test_an_ablation_is_compared_with_what_differs_from_it_in_one_setting(tables):
    minus = results.ablations(tables, "maze").reset_index().set_index("variant").minus
    assert minus["vpo_search"] == "group8" and minus["diversity0.1"] == "vpo_credit" and minus["alpha3"] == "vpo"


def test_each_policy_stands_at_its_best_temperature(tables):
    found = results.best_temperature(tables, "tiny")
    assert list(found.index) == ["sft"], "the others were sampled at one temperature"
    told = f"{0.49 + 0.39 * (1 - 3**-0.6):.3f}"
    assert found.loc["sft", "best, k = 3"].startswith(told), "the number of the other half's choice"
    assert found.loc["sft", "best, k = 3"].endswith("at 0.7") and found.loc["sft", "best, k = 24"].endswith("at 0.7")
    assert list(results.temperature(tables, "tiny").index) == [("sft", "0.7"), ("sft", "1")]


def test_the_other_tables(tables):
    assert list(results.two_by_two(tables)) == [
        f"{text} ({name})"
        for text, name in (
            ("one answer, its mean", "grpo"),
            ("one answer, a random weighting", "random_weights"),
            ("a set, the sum of its means", "multi_rlvr"),
            ("a set, its best mean", "best_of_set"),
            ("a set, its best under random weightings", "vpo"),
        )
    ]
    costs = results.costs(tables).loc["tiny"]
    sampled = costs["thousands of answers sampled"]
    assert sampled["grpo"] == sampled["vpo_credit"] != "–", "the answers sampled in a training are equal"
    assert list(costs.loc["vpo_credit"])[-2:] == ["1.00", "7.5 [5.5, 9.5]"]
    assert results.collinearity(tables).loc["gdpo", ("tiny", "mean of pairs")] == "–"
    assert list(results.diversity(tables).loc[("maze", "sft")])[1:] == ["0.200 [0.200, 0.200]", "–"]


def test_the_front_page_says_ahead_and_behind(tables):
    page = results.front_page(tables)
    assert page.index.name == "5 seeds" and list(page.index) == [f"VPO minus {name}" for name in OTHERS]
    assert all(cell.split()[0] in ("ahead", "**behind**", "undecided") for cell in page.to_numpy().ravel())
    at_1, at_24 = page.loc["VPO minus SFT", ["tool calls, k = 1", "tool calls, k = 24"]]
    assert at_1 == "ahead +0.20" and at_24.startswith("undecided")
    assert list(page)[3:] == ["maze, k = 1", "maze, k = 3", "maze, k = 24"]


OTHERS = ("GRPO", "SFT", "max@k", "best of set")
PARTS = {
    "one world": {"worlds": ["maze"]},
    "one seed": {"seeds": [3]},
    "no vpo": {"variants": ["sft", "sft_chain", "grpo", "max_at_k"]},
    "nothing but vpo": {"variants": ["sft", "vpo_credit"], "worlds": ["tiny"]},
    "only ablations": {"variants": ["sft", "k1", "vpo_credit"], "worlds": ["tiny"]},
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_partial_results_give_every_table(tmp_path, part):
    tables = results.read(write_fakes(tmp_path, **part))
    assert set(results.page_tables(summary(), tables)) == {"run", "tiny", "maze", "tiny_temperature"}
    found = every_table(tables)
    assert not any("nan" in results.to_markdown(table) for table in found.values())
    assert ("grpo" in found["diversity"].index.get_level_values("variant")) == (
        "grpo" in part.get("variants", ["grpo"])
    )


# --- Over seeds, and one run beside them --------------------------------------------------------


def test_a_difference_is_taken_within_each_seed_that_has_both(tables):
    fewer = {**tables, "budgets": tables["budgets"].query("variant != 'grpo' or seed < 2")}
    assert list(results.by_seed(fewer, "vpo", "best@3 - grpo").index) == [0, 1]
    row = results.over_seeds(fewer, "vpo", ["best@3", "best@3 - grpo"], "maze").loc["vpo"]
    assert list(row.seeds) == [5, 2] and row.most["best@3"] > row["mean"]["best@3"] > row.least["best@3"]


@pytest.mark.parametrize("measure", ["worst@3", "distinct"])
def test_an_unknown_measure_is_named(tables, measure):
    with pytest.raises(LabError, match=measure):
        results.by_seed(tables, "vpo", measure)


def test_what_was_not_measured_has_no_seeds(tables):
    assert results.over_seeds(tables, "vpo", ["best@5", "best@3 - nobody"]).seeds.tolist() == [0, 0]


def test_numbers_are_rounded_as_they_are_printed(tables):
    runs = tables["runs"].assign(entropy=0.7875)  # halves are not exact: it prints as 0.787
    assert results.over_seeds({**tables, "runs": runs}, "grpo", ["entropy"]).loc[("grpo", "entropy"), "mean"] == 0.787


def pool(name: str, seed: int, kinds: int) -> Pool:
    """Two requests, four single answers to each, `kinds` different ones among them."""
    rewards_NCMD = np.random.default_rng(seed).random((2, 4, 1, 2)).round(6)
    answers = [[[f"answer {c % kinds}"] for c in range(4)] for _ in range(2)]
    return Pool(name, "mine", ("a", "b"), ("r0", "r1"), answers, rewards_NCMD, np.ones((2, 4), dtype=int))


def test_a_run_stands_beside_the_seeds(tmp_path, tables):
    sft, grpo = pool("sft", 0, kinds=4), pool("grpo", 1, kinds=2)
    for one in (sft, grpo):
        one.save(Run(tmp_path).pool(one.name))
    entries = [{"step": 1, "entropy": 5.0}] + [{"step": n, "entropy": 0.25} for n in range(2, 22)]
    (tmp_path / "grpo").mkdir()
    (tmp_path / "grpo" / "log.jsonl").write_text("".join(f"{entry}\n".replace("'", '"') for entry in entries))
    measures = ["best@1", "best@1 - sft", "best@24", "entropy", "distinct_answers"]
    found = results.compare(tmp_path, "grpo", measures, tables=tables)
    assert list(found) == ["yours", "mean", "least", "most", "seeds"] and list(found.index) == measures
    assert found.yours["best@1"] == round(at_k(grpo, "best", 1).mean(), 3)
    assert found.yours["best@1 - sft"] == pytest.approx((at_k(grpo, "best", 1) - at_k(sft, "best", 1)).mean(), abs=6e-4)
    assert found.yours["entropy"] == 0.25 and found.yours["distinct_answers"] == 0.5
    assert np.isnan(found.yours["best@24"]), "the pools hold fewer candidates"
    assert results.compare(tmp_path, "vpo", measures, tables=tables).yours.isna().all()
    assert set(results.compare(tmp_path, ["sft", "grpo"], ["best@1"], tables=tables).index) == {
        ("sft", "best@1"), ("grpo", "best@1"),
    }  # fmt: skip


# --- One run ----------------------------------------------------------------------------------


def summary() -> dict:
    at = {"best": [0.5, 0.4, 0.6], "pass": [0.2, 0.1, 0.3], "tokens": 9.0}
    return {
        "profile": "tiny", "seed": 3, "requests": 7, "interval": "95%", "stopped": {"grpo": "5 of 9 steps"},
        "methods": {name: {"k": {"1": at, "6": at}} for name in ("sft", "sft_chain", "grpo", "vpo_credit")},
        "paired_differences": {
            "vpo_credit - grpo": {"1": {"best": [-0.1, -0.2, -0.05]}, "6": {"best": [1e-17, 1e-17, 1e-16]}},
        },
        "ceiling": {"1": {"best": 0.7}, "6": {"best": 0.9}},
    }  # fmt: skip


def test_the_tables_of_a_run():
    best, solved = (results.run_table(summary(), metric) for metric in ("best", "pass"))
    assert list(best.loc["vpo_credit"]) == ["0.500 [0.40, 0.60]"] * 2
    assert list(best.loc["ceiling"]) == ["0.700", "0.900"] and "ceiling" not in solved.index


def test_rounding_noise_decides_nothing():
    assert list(results.verdicts(summary()).iloc[0]) == ["behind", "undecided"]
    same = summary()
    for by_k in same["paired_differences"].values():
        for at in by_k.values():
            at.update({metric: [0.0, 0.0, 0.0] for metric in at})
    assert results.verdicts(same).empty, "nothing to tell where all are equal"


def test_the_summary_is_printed_and_what_was_stopped_is_told(tmp_path, capsys):
    write_json(tmp_path / "summary.json", summary())
    results.print_summary(tmp_path / "summary.json")
    printed = capsys.readouterr().out
    assert "vpo_credit" in printed and "5 of 9 steps" in printed and str(tmp_path) in printed


# --- Pages ------------------------------------------------------------------------------------


def test_a_page_is_written_between_its_marks_only_and_twice_is_once(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("# Mine\n\n<!-- table: one -->\nold\n<!-- /table -->\nkept\n", encoding="utf-8")
    for _ in range(2):
        results.update_page(page, {"one": "| new |\n", "two": ""})
        assert page.read_text() == "# Mine\n\n<!-- table: one -->\n| new |\n<!-- /table -->\nkept\n"


@pytest.mark.parametrize("text", ["no marks", "<!-- table: x -->\n<!-- /table -->"])
def test_a_page_without_marks_or_with_unknown_ones_is_refused(tmp_path, text):
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(LabError, match=r"README.md"):
        results.update_page(page, {"one": ""})
    assert page.read_text() == text


def test_a_page_is_utf8_whatever_the_locale(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("α\n<!-- table: one -->\n<!-- /table -->\n", encoding="utf-8")
    code = f"from vpo_lab.course.results import update_page; update_page({str(page)!r}, {{'one': 'new'}})"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | plain, check=True)
    assert page.read_text(encoding="utf-8").startswith("α\n")


def test_every_mark_of_the_two_pages_has_a_text(tables):
    texts = results.page_tables(summary(), tables)
    assert set(texts) == {"run", "tiny", "maze", "tiny_temperature"}
    assert "VPO minus GRPO" in texts["run"] and "| vpo_credit " in texts["maze"] and "k = 6" not in texts["maze"]


def test_one_training_stands_beside_the_seeds(tables):
    one = summary()
    assert results.one_training(one, tables) == "", "it has no k = 3"
    one["paired_differences"]["vpo_credit - grpo"]["3"] = {"best": [0.123, 0.1, 0.2]}
    text = results.one_training(one, tables)
    seeds = results.by_seed(tables, "vpo_credit", "best@3 - grpo")
    assert "+0.12" in text and f"{seeds.mean():+.2f}" in text and f"{len(seeds)} seeds" in text
