"""The page results/README.md and its figures, written from the CSV files of `vpo-lab experiment`."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

import vpo_lab
from vpo_lab.config import Profile, get_profile
from vpo_lab.course.experiment import BUDGETS, COOLER, VARIANTS, WORLDS, Job, final_entropy
from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_bytes
from vpo_lab.runs import Run, read_log
from vpo_lab.search.pool import Pool, pool_names
from vpo_lab.search.summary import at_k, collinearity, distinct_answers
from vpo_lab.tasks import get_task
from vpo_lab.train.prompts import rollouts_per_prompt


def find_results(run: Run, profile: Profile, saved: Path | None = None) -> Run:
    """Return the run folder if it has all pools, else the results in `saved` (None: the repository's results/).

    LabError if there are none of either.
    """
    saved = saved or Path(vpo_lab.__file__).resolve().parents[1] / "results"
    for folder in (run, Run(saved / profile.name)):
        if all(folder.pool(name).exists() for name in pool_names(profile)):
            return folder
    raise LabError(f"no candidate pools in {run} and none saved for profile {profile.name!r}: run 02, 03 and 04 first")


LABELS = {"best": "best@k", "pass": "pass@k", "eum": "EUM"}


def print_summary(path: Path) -> None:
    """The summary as a table: every method and budget, [low, high] under the mean, the ceiling."""
    from rich.console import Console
    from rich.table import Table

    summary = read_json(path)
    budgets = list(next(iter(summary["methods"].values()))["k"])
    table = Table(
        title=f"{summary['profile']}, seed {summary['seed']}, {summary['requests']} requests",
        caption=f"{summary['interval']}; k counts candidates",
    )
    table.add_column("metric")
    table.add_column("method")
    for k in budgets:
        table.add_column(f"k = {k}", justify="right")
    for metric, label in LABELS.items():
        for name, method in summary["methods"].items():
            figures = [method["k"][k][metric] for k in budgets]
            table.add_row(label, name, *(f"{mean:.3f} [{low:.2f}, {high:.2f}]" for mean, low, high in figures))
        if summary["ceiling"] and metric in ("best", "pass"):
            table.add_row(label, "ceiling", *(f"{summary['ceiling'][k][metric]:.3f}" for k in budgets), style="dim")
        table.add_section()
    for name, method in summary["methods"].items():
        table.add_row("tokens", name, *(f"{method['k'][k]['tokens']:.0f}" for k in budgets))
    console = Console()
    console.print(table)
    for name, at in summary.get("stopped", {}).items():
        console.print(f"{name} was stopped after {at}: the time was up")
    console.print(f"summary: {path}", soft_wrap=True)


def load_logs(folder: Path) -> dict[str, list[dict]]:
    """The training logs below a run or results folder, by stage."""
    return {stage.parent.name: read_log(stage.parent) for stage in sorted(Path(folder).glob("*/log.jsonl"))}


# --- The README's table -----------------------------------------------------------------------

BLOCK = re.compile(r"(<!-- results:[^\n]*-->\n).*?(<!-- /results -->)", re.DOTALL)


def readme_table(summary: dict) -> str:
    """The comparison as Markdown: best@k and pass@k with their intervals, paired differences, losses."""
    budgets = list(next(iter(summary["methods"].values()))["k"])
    lines = []
    for metric in ("best", "pass"):
        lines += [
            f"| {LABELS[metric]} | " + " | ".join(f"k = {k}" for k in budgets) + " |",
            "|---|" + "---|" * len(budgets),
        ]
        for name, method in summary["methods"].items():
            cells = [method["k"][k][metric] for k in budgets]
            lines.append(f"| {name} | " + " | ".join(f"{m:.3f} [{lo:.2f}, {hi:.2f}]" for m, lo, hi in cells) + " |")
        if summary["ceiling"]:
            lines.append("| *ceiling* | " + " | ".join(f"{summary['ceiling'][k][metric]:.3f}" for k in budgets) + " |")
        lines.append("")
    lines.append(
        f"`vpo-lab run --profile {summary['profile']} --seed {summary['seed']}`, {summary['requests']} held-out "
        f"requests, "
        f"{summary['interval']}. `sft` writes one answer at a time, `sft_chain` three in a chain."
    )
    lines.append("")
    lines.append(_verdicts(summary))
    return "\n".join(lines) + "\n"


def _verdicts(summary: dict) -> str:
    """Where VPO is ahead, behind or undecided, by the sign of the paired intervals."""
    sentences = []
    for pair, by_k in summary["paired_differences"].items():
        other = pair.removeprefix("vpo - ")
        parts = []
        for metric in LABELS:
            signs = {k: sign_of(*figures[metric][1:]) for k, figures in by_k.items()}
            for sign, word in ((1, "ahead"), (-1, "**behind**"), (0, "undecided")):
                ks = [k for k, s in signs.items() if s == sign]
                if ks:
                    parts.append(f"{word} at {LABELS[metric]} for k = {', '.join(ks)}")
        sentences.append(f"- VPO against {other} (paired over requests): {'; '.join(parts)}.")
    return "\n".join(sentences)


def sign_of(low: float, high: float) -> int:
    """1 or -1 for an interval that lies above or below 0, 0 for one that decides nothing."""
    return 1 if low > 0 else -1 if high < 0 else 0


def update_readme(readme: Path, summary: dict) -> None:
    """Put the table of `summary` between the README's result marks; LabError if they are gone."""
    text = readme.read_text()
    if not BLOCK.search(text):
        raise LabError(f"{readme} has no '<!-- results: -->' and '<!-- /results -->' lines: put them back")
    write_bytes(readme, BLOCK.sub(lambda m: m[1] + readme_table(summary) + m[2], text).encode())


# --- Reading ------------------------------------------------------------------

EXPERIMENT_LABELS = {**LABELS, "hypervolume": "hypervolume ratio"}

COLUMNS = {  # what each file must have; budgets.csv has `hypervolume` too where a world's fronts are known
    "runs": "world variant seed method m steps minutes generated_tokens entropy distinct_answers reward_diversity "
    "correlation",
    "budgets": "world variant seed k tokens best pass eum",
    "curves": "world variant seed step distinct_rollouts entropy best_of_group",
    "intervals": "world variant metric k minus seeds mean low high",
}

TEXT = ("world", "variant", "method", "metric", "minus")

WHOLE = ("seed", "seeds", "k", "m", "step", "steps")

METHOD_ORDER = (
    "sft", "sft_chain", "grpo", "gdpo", "maxrl", "max_at_k", "random_weights", "goal_conditioned", "multi_rlvr",
    "best_of_set", "vpo", "vpo_pool",
)  # fmt: skip

DRAWN = ("sft", "sft_chain", "grpo", "gdpo", "max_at_k", "multi_rlvr", "random_weights", "vpo", "vpo_pool")

ABLATIONS = {  # heading -> variants
    "what a set earns": ("best_of_set", "multi_rlvr", "diversity0.1"),
    "who is credited": ("set_credit",),
    "search over chains": ("vpo_pool", "pool8"),
    "weightings": ("k1", "k8", "alpha0.3", "alpha3"),
    "answers in a set": ("m2", "m5"),
    "sampling": ("temperature0.7", "temperature1.3"),
}

ABOVE_0 = 1e-9

NOTHING = "Nothing measured yet.\n"

Tables = dict[str, list[dict]]

Interval = tuple[float, float, float]  # mean, low, high


def read_tables(folder: Path) -> Tables:
    """The CSV files of `vpo-lab experiment`: name -> rows, numbers parsed, what is empty NaN.

    LabError if a file or one of its columns is missing, or if a number is none.
    """
    tables = {}
    for name, columns in COLUMNS.items():
        path = Path(folder) / f"{name}.csv"
        if not path.exists():
            raise LabError(f"{path} does not exist: `vpo-lab experiment` writes it")
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns.split() if column not in (reader.fieldnames or ())]
            if missing:
                raise LabError(f"{path} has no column {missing[0]!r}: write it anew with `vpo-lab experiment`")
            tables[name] = [_parsed(row, path, reader.line_num) for row in reader]
    return tables


def _parsed(row: dict[str, str], path: Path, line: int) -> dict:
    values: dict = {}
    for column, text in row.items():
        try:
            if column in TEXT:
                values[column] = text
            else:
                values[column] = int(text) if column in WHOLE else float(text or "nan")
        except (TypeError, ValueError):
            raise LabError(f"{path}, line {line}, {column}: {text!r} is no number") from None
    return values


def _intervals(tables: Tables) -> dict[tuple, Interval]:
    """(world, variant, metric, k, minus) -> mean and interval."""
    return {
        (row["world"], row["variant"], row["metric"], row["k"], row["minus"]): (row["mean"], row["low"], row["high"])
        for row in tables["intervals"]
    }


def _metrics(tables: Tables, world: str) -> list[str]:
    """The metrics of a world; one that is 0 for everybody, as pass@k in the maze, says nothing."""
    told = {row["metric"] for row in tables["intervals"] if row["world"] == world and row["mean"]}
    return [metric for metric in EXPERIMENT_LABELS if metric in told]


def _worlds(tables: Tables) -> list[str]:
    """The usual worlds, measured or not, and then what else there is."""
    return list(dict.fromkeys([*WORLDS, *(row["world"] for row in tables["runs"])]))


def _variants(tables: Tables, world: str) -> list[str]:
    """What was measured in a world: the methods in their order, then the settings; without cooler pools."""
    found = dict.fromkeys(row["variant"] for row in tables["intervals"] if row["world"] == world)
    found = [name for name in found if "@" not in name]
    settings = [name for variants in ABLATIONS.values() for name in variants]
    return [name for name in dict.fromkeys([*METHOD_ORDER, *settings, *found]) if name in found]


def _seeds(tables: Tables, world: str, variant: str) -> int:
    rows = [row["seeds"] for row in tables["intervals"] if (row["world"], row["variant"]) == (world, variant)]
    return max(rows, default=0)


@lru_cache
def ceiling(world: str, k: int) -> dict[str, float]:
    """What no policy can beat in a world, by metric; empty where that is not known."""
    task = get_task(get_profile(world).task)
    return task.ceiling(k) if hasattr(task, "ceiling") else {}


def experiment_summary(tables: Tables, world: str, variants: Sequence[str] = DRAWN) -> dict:
    """The experiment in the shape of `evaluation.summarize`, for the plots; variants not measured are left out."""
    intervals, metrics = _intervals(tables), _metrics(tables, world)
    methods = {}
    for name in variants:
        keys = [(world, name, metric, k, "") for metric in metrics for k in BUDGETS]
        tokens = _by_budget(tables, world, name, "tokens")
        if metrics and all(key in intervals for key in keys) and all(k in tokens for k in BUDGETS):
            methods[name] = {
                "k": {
                    str(k): {
                        **{metric: intervals[world, name, metric, k, ""] for metric in metrics},
                        "tokens": float(np.mean(list(tokens[k].values()))),
                    }
                    for k in BUDGETS
                }
            }
    return {"methods": methods, "ceiling": {str(k): ceiling(world, k) for k in BUDGETS} if methods else None}


def _by_budget(tables: Tables, world: str, variant: str, column: str) -> dict[int, dict[int, float]]:
    """k -> seed -> a column of budgets.csv."""
    values: dict[int, dict[int, float]] = {}
    for row in tables["budgets"]:
        if (row["world"], row["variant"]) == (world, variant):
            values.setdefault(row["k"], {})[row["seed"]] = row.get(column, np.nan)
    return values


def _ablations(tables: Tables, world: str) -> dict[str, dict[str, dict[str, dict[int, Interval]]]]:
    """heading -> variant -> metric -> k -> difference to VPO, for k = 3 and 24; only what was measured."""
    intervals = _intervals(tables)
    known = {name for variants in ABLATIONS.values() for name in variants}
    others = [name for name in _variants(tables, world) if name not in known and name not in METHOD_ORDER]
    groups = {}
    for heading, variants in {**ABLATIONS, "others": tuple(others)}.items():
        rows = {
            name: {
                metric: {k: d for k in (3, 24) if (d := intervals.get((world, name, metric, k, "vpo")))}
                for metric in _metrics(tables, world)
            }
            for name in variants
        }
        rows = {name: metrics for name, metrics in rows.items() if any(metrics.values())}
        groups |= {heading: rows} if rows else {}
    return groups


# --- Tables ------------------------------------------

TABLE = re.compile(r"(<!-- table: ([\w.-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def experiment_tables(tables: Tables) -> dict[str, str]:
    """Every table of results/README.md as Markdown, by the name in its mark; what is not measured is left out."""
    pages = {}
    for world in _worlds(tables):
        pages[f"main-{world}"] = _main_table(tables, world)
        pages[f"differences-{world}"] = _differences_table(tables, world)
        pages[f"ablations-{world}"] = _ablations_table(tables, world)
    return {
        **pages,
        "targets": _targets_table(tables),
        "sets-and-weights": _two_by_two(tables),
        "costs": _costs_table(tables),
        "temperature": _temperature_table(tables),
        "collinearity": _collinearity_table(tables),
        "diversity": _diversity_table(tables),
    }


def update_results_page(page: Path, tables: Tables) -> None:
    """Put the experiment's tables between the marks of results/README.md; LabError if a mark names none."""
    if not Path(page).exists():
        raise LabError(f"{page} does not exist: it holds the marks between which the tables are written")
    text, written = Path(page).read_text(encoding="utf-8"), experiment_tables(tables)
    names = [match[2] for match in TABLE.finditer(text)]
    unknown = [name for name in names if name not in written]
    if not names or unknown:
        found = f"marks a table {unknown[0]!r}" if unknown else "has no '<!-- table: NAME -->' and '<!-- /table -->'"
        raise LabError(f"{page} {found}: the tables are {', '.join(written)}")
    write_bytes(page, TABLE.sub(lambda m: m[1] + written[m[2]] + m[3], text).encode())


def _markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return NOTHING
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _mean_range(values: Sequence[float]) -> Interval:
    """The mean over seeds, the least and the most; NaN where nothing was measured."""
    finite = [value for value in values if np.isfinite(value)]
    return (float(np.mean(finite)), min(finite), max(finite)) if finite else (np.nan,) * 3


def _cell(interval: Interval | None, form: str = ".3f") -> str:
    if interval is None or not np.isfinite(interval[0]):
        return "–"
    mean, low, high = (f"{value:{form}}".replace("-", "−") for value in interval)
    return f"{mean} [{low}, {high}]"


def _signed(interval: Interval | None) -> str:
    return _cell(interval, "+.3f")


def _main_table(tables: Tables, world: str) -> str:
    intervals, parts = _intervals(tables), []
    for metric in _metrics(tables, world):
        names = [name for name in _variants(tables, world) if name in METHOD_ORDER]
        rows = [
            [name, *(_cell(intervals.get((world, name, metric, k, ""))) for k in BUDGETS), _seeds(tables, world, name)]
            for name in names
        ]
        if metric in ceiling(world, 1):
            rows.append(["*ceiling*", *(f"{ceiling(world, k)[metric]:.3f}" for k in BUDGETS), ""])
        parts.append(_markdown([EXPERIMENT_LABELS[metric], *(f"k = {k}" for k in BUDGETS), "seeds"], rows))
    return "\n".join(parts) or NOTHING


def _differences_table(tables: Tables, world: str) -> str:
    """Every method less GRPO, SFT and VPO: in words by the sign of the interval, and in numbers."""
    intervals, parts, budgets = _intervals(tables), [], (3, 6, 24)
    for other in ("grpo", "sft", "vpo"):
        for metric in _metrics(tables, world):
            rows = []
            for name in METHOD_ORDER:
                found = [intervals.get((world, name, metric, k, other)) for k in budgets]
                if any(found):
                    rows.append([name, *(f"{_word(one)} {_signed(one)}" if one else "–" for one in found)])
            if rows:
                header = f"{EXPERIMENT_LABELS[metric]}, less `{other}`"
                parts.append(_markdown([header, *(f"k = {k}" for k in budgets)], rows))
    return "\n".join(parts) or NOTHING


def _word(interval: Interval) -> str:
    return {1: "ahead", -1: "**behind**", 0: "undecided"}[sign_of(*interval[1:])]


def _ablations_table(tables: Tables, world: str) -> str:
    metrics = [metric for metric in _metrics(tables, world) if metric != "pass"]
    columns = [(metric, k) for metric in metrics for k in (3, 24)]
    rows = []
    for heading, variants in _ablations(tables, world).items():
        for name, found in variants.items():
            cells = [found[metric].get(k) for metric, k in columns]
            marked = [f"**{_signed(one)}**" if one and sign_of(*one[1:]) else _signed(one) for one in cells]
            rows.append([heading, f"`{name}`", *marked, _seeds(tables, world, name)])
    names = [f"{EXPERIMENT_LABELS[metric].removesuffix('@k')}, k = {k}" for metric, k in columns]
    return _markdown(["what changes", "less `vpo`", *names, "seeds"], rows)


def _two_by_two(tables: Tables) -> str:
    """One answer or M, a fixed scalar or random weightings: the four corners in a line."""
    intervals = _intervals(tables)
    corners = {
        "grpo": "one answer, fixed scalar",
        "random_weights": "one answer, random weights",
        "best_of_set": "M answers, fixed scalar",
        "vpo": "M answers, random weights",
    }
    rows = []
    for world in _worlds(tables):
        for metric in _metrics(tables, world):
            for k in (3, 24):
                found = [intervals.get((world, name, metric, k, "")) for name in corners]
                if any(found):
                    rows.append([world, EXPERIMENT_LABELS[metric], str(k), *map(_cell, found)])
    return _markdown(["world", "metric", "k", *(f"{text} (`{name}`)" for name, text in corners.items())], rows)


def _runs(tables: Tables, world: str, variant: str, column: str) -> list[float]:
    """A column of runs.csv, one value per seed."""
    return [row[column] for row in tables["runs"] if (row["world"], row["variant"]) == (world, variant)]


def _costs_table(tables: Tables) -> str:
    rows = []
    for world in _worlds(tables):
        usual = _mean_range(_runs(tables, world, "grpo", "generated_tokens"))[0]
        for name in _variants(tables, world):
            steps, m = (_runs(tables, world, name, column) for column in ("steps", "m"))
            tokens = _mean_range(_runs(tables, world, name, "generated_tokens"))[0]
            minutes = _cell(_mean_range(_runs(tables, world, name, "minutes")), ".1f")
            if np.isfinite(tokens):
                ratio = f"{tokens / usual:.2f}" if np.isfinite(usual) else "–"
                sampled = _answers(world, name, steps[0], m[0])
                rows.append([world, name, len(steps), steps[0], m[0], sampled, f"{tokens / 1e6:.2f}", ratio, minutes])
    header = ["world", "variant", "seeds", "steps", "answers in a rollout", "thousands of answers sampled"]
    return _markdown([*header, "millions of tokens sampled", "of GRPO's", "minutes"], rows)


def _answers(world: str, variant: str, steps: int, m: int) -> str:
    """How many answers a training samples, in thousands: the budget that is equal."""
    if variant not in VARIANTS:
        return "–"
    profile = Job(Path(), world, variant, 0).profile
    prompts = profile.rl.rollouts // profile.rl.group_size
    return f"{steps * prompts * rollouts_per_prompt(profile, VARIANTS[variant].method) * m / 1e3:.0f}"


def _temperature_table(tables: Tables) -> str:
    """The same policies sampled at the temperature of training and at the paper's."""
    intervals = _intervals(tables)
    columns = [(metric, k) for metric in ("best", "eum") for k in (3, 24)]
    rows = [
        [world, name, temperature, *(_cell(intervals.get((world, name + at, *column, ""))) for column in columns)]
        for world in _worlds(tables)
        for name in _variants(tables, world)
        if (world, f"{name}@{COOLER}", *columns[0], "") in intervals
        for temperature, at in (("1", ""), (COOLER, f"@{COOLER}"))
    ]
    names = [f"{LABELS[metric].removesuffix('@k')}, k = {k}" for metric, k in columns]
    return _markdown(["world", "variant", "temperature", *names], rows)


def _collinearity_table(tables: Tables) -> str:
    worlds = [world for world in _worlds(tables) if _variants(tables, world)]
    names = [n for n in METHOD_ORDER if any(_runs(tables, world, n, "correlation") for world in worlds)]
    rows = [
        [f"{name}{' (the start)' if name == 'sft' else ''}"]
        + [_cell(_mean_range(_runs(tables, world, name, "correlation")), ".2f") for world in worlds]
        for name in names
    ]
    return _markdown(["mean correlation of two objectives", *worlds], rows)


def _diversity_table(tables: Tables) -> str:
    columns = {
        "distinct_answers": "share of distinct answers",
        "reward_diversity": "distance of reward vectors",
        "entropy": "entropy of a token at the end of training (nats)",
    }
    rows = [
        [world, name, *(_cell(_mean_range(_runs(tables, world, name, column))) for column in columns)]
        for world in _worlds(tables)
        for name in _variants(tables, world)
        if name in METHOD_ORDER
    ]
    return _markdown(["world", "variant", *columns.values()], rows)


# --- Targets ------------------------------------------------------------------


def _targets_table(tables: Tables) -> str:
    """What was hoped for beforehand, what was measured, and whether that is met."""
    rows = [
        [world, text, _cell(found, form), _verdict(found, limit, "mean"), _verdict(found, limit, "interval")]
        for world, text, found, limit, form in (*_plain_targets(tables), *_pool_targets(tables))
    ]
    return _markdown(["world", "target", "measured", "met by the mean", "met by the whole interval"], rows)


def _verdict(found: Interval | None, limit: float, by: str) -> str:
    """Whether the mean, or the whole interval, reaches the limit."""
    if found is None or not np.isfinite(found[0]):
        return "not measured"
    met = [value >= limit for value in found]
    if by == "mean":
        return "yes" if met[0] else "**no**"
    return "yes" if met[1] else "undecided" if met[2] else "**no**"


def _plain_targets(tables: Tables):
    """VPO's targets: (world, text, measured, limit, format of the numbers)."""
    intervals = _intervals(tables)

    def less(other: str, metric: str, k: int) -> Interval | None:
        return intervals.get(("tiny", "vpo", metric, k, other))

    yield "tiny", "best@24 of VPO less GRPO's: 0.05 or more", less("grpo", "best", 24), 0.05, "+.3f"
    yield "tiny", "pass@24 of VPO less GRPO's: 0.10 or more", less("grpo", "pass", 24), 0.10, "+.3f"
    best = intervals.get(("tiny", "vpo", "best", 3, ""))
    share = tuple(value / ceiling("tiny", 3)["best"] for value in best) if best else None
    yield "tiny", "best@3 of VPO over its ceiling: 0.95 or more", share, 0.95, ".3f"
    for k in (6, 12, 24):
        yield "tiny", f"best@{k} of VPO less max@k training's: 0 or more", less("max_at_k", "best", k), 0.0, "+.3f"
    for k in (3, 24):
        text = f"hypervolume at k = {k} of VPO over GRPO's: 1.3 or more"
        yield "maze", text, _ratio(intervals, "maze", "vpo", "grpo", "hypervolume", k), 1.3, ".2f"


def _ratio(intervals: dict, world: str, name: str, other: str, metric: str, k: int) -> Interval | None:
    """1 + difference / the other's mean: the interval is that of the paired difference."""
    difference, base = intervals.get((world, name, metric, k, other)), intervals.get((world, other, metric, k, ""))
    if not difference or not base or base[0] <= 0:
        return None
    return tuple(1 + value / base[0] for value in difference)


def _pool_targets(tables: Tables):
    """The pool objective's targets; what grows with k is told seed by seed."""
    intervals = _intervals(tables)
    for world in WORLDS:
        for metric in ("best", "eum"):
            label = EXPERIMENT_LABELS[metric]
            for other in ("sft", "grpo", "max_at_k", "vpo"):
                found = intervals.get((world, "vpo_pool", metric, 24, other))
                yield world, f"{label} at k = 24 of `vpo_pool` less `{other}`'s: above 0", found, ABOVE_0, "+.3f"
            pool, grpo = (_by_budget(tables, world, name, metric) for name in ("vpo_pool", "grpo"))
            yield world, f"{label} of `vpo_pool` at k = 24 less at k = 3: above 0", _growth(pool), ABOVE_0, "+.3f"
            gap = {k: {s: pool[k][s] - grpo[k][s] for s in pool[k] if s in grpo.get(k, {})} for k in pool}
            yield (
                world,
                f"{label} of `vpo_pool` less `grpo`'s, growth from k = 3 to 24: above 0",
                _growth(gap),
                ABOVE_0,
                "+.3f",
            )


def _growth(by_budget: dict[int, dict[int, float]]) -> Interval | None:
    """From k = 3 to 24: the mean over seeds, the least and the most."""
    first, last = by_budget.get(3, {}), by_budget.get(24, {})
    return _mean_range([last[seed] - first[seed] for seed in last if seed in first]) if last else None


# Mark in a text -> rows of its table: what is measured, a variant or "a - b", a column, a budget k or 0. A world
# other than `tiny` stands before the variant.
EXPECTED = {
    "expected-sft": (
        ("best@1, asked for one answer", "sft", "best", 1),
        ("best@24, asked for one answer", "sft", "best", 24),
        ("pass@1, asked for one answer", "sft", "pass", 1),
        ("pass@24, asked for one answer", "sft", "pass", 24),
        ("best@3, one chain of three", "sft_chain", "best", 3),
        ("share of different answers among 24", "sft", "distinct_answers", 0),
    ),
    "expected-grpo": (
        ("best@1", "grpo", "best", 1),
        ("best@24", "grpo", "best", 24),
        ("best@1, GRPO minus its start", "grpo - sft", "best", 1),
        ("best@24, GRPO minus its start", "grpo - sft", "best", 24),
        ("share of different answers among 24", "grpo", "distinct_answers", 0),
        ("entropy of a token at the end of the training, nats", "grpo", "entropy", 0),
    ),
    "expected-vpo": (
        ("best@1", "vpo", "best", 1),
        ("best@3, one chain", "vpo", "best", 3),
        ("best@24, eight chains", "vpo", "best", 24),
        ("best@1, VPO minus GRPO", "vpo - grpo", "best", 1),
        ("best@3, VPO minus GRPO", "vpo - grpo", "best", 3),
        ("share of different answers among 24", "vpo", "distinct_answers", 0),
        ("entropy of a token at the end of the training, nats", "vpo", "entropy", 0),
    ),
    "expected-comparison": (
        ("best@3, VPO minus GRPO", "vpo - grpo", "best", 3),
        ("best@24, VPO minus GRPO", "vpo - grpo", "best", 24),
        ("pass@24, VPO minus GRPO", "vpo - grpo", "pass", 24),
        ("best@3, VPO minus its start in chains", "vpo - sft_chain", "best", 3),
        ("best@24, VPO minus its start, asked for one answer", "vpo - sft", "best", 24),
        ("mean correlation of two objectives at the start", "sft", "correlation", 0),
    ),
    "expected-set-or-vector": (
        ("tool calls, best@3: one answer for its mean (`grpo`)", "grpo", "best", 3),
        ("tool calls, best@3: a set for its best mean (`best_of_set`)", "best_of_set", "best", 3),
        ("tool calls, best@3: a set under random weightings (`vpo`)", "vpo", "best", 3),
        ("maze, expected utility of 3: `grpo`", "maze/grpo", "eum", 3),
        ("maze, expected utility of 3: `best_of_set`", "maze/best_of_set", "eum", 3),
        ("maze, expected utility of 3: `vpo`", "maze/vpo", "eum", 3),
    ),
    "expected-pool": (
        ("best@3: `vpo`", "vpo", "best", 3),
        ("best@3: `vpo_pool`", "vpo_pool", "best", 3),
        ("best@24: `vpo`", "vpo", "best", 24),
        ("best@24: `vpo_pool`", "vpo_pool", "best", 24),
    ),
}


def expected_table(tables: Tables, name: str) -> str:
    """The table of a mark as Markdown: the mean over seeds of one number, and the least and the most seen."""
    lines = ["| measured | mean | least | most | seeds |", "| --- | --- | --- | --- | --- |"]
    for title, variant, column, k in EXPECTED[name]:
        values = _over_seeds(tables, variant, column, k)
        if values:
            signed = "+" if " - " in variant else ""
            cells = (
                f"{number:{signed}.3f}".replace("-", "−") for number in (np.mean(values), min(values), max(values))
            )
            lines.append(f"| {title} | {' | '.join(cells)} | {len(values)} |")
    return "\n".join(lines) + "\n"


def _over_seeds(tables: Tables, variant: str, column: str, k: int) -> list[float]:
    """One number for each seed; of "a - b" the difference within a seed, where both were trained."""
    rows = tables["budgets"] if k else tables["runs"]
    by_seed = []
    for name in variant.split(" - "):
        key = (*(name.split("/") if "/" in name else ("tiny", name)), k)
        by_seed.append({r["seed"]: r[column] for r in rows if (r["world"], r["variant"], r.get("k", 0)) == key})
    first, *second = by_seed
    seeds = [seed for seed in first if all(seed in other for other in second)]
    values = [first[seed] - sum(other[seed] for other in second) for seed in seeds]
    return [value for value in values if np.isfinite(value)]


def own_numbers(name: str, pools: Mapping[str, Pool], logs: Mapping[str, list[dict]] | None = None) -> str:
    """The rows of a table as measured in one run, a line each: from its pools and training logs, by variant.

    A row whose pool, log or budget the run does not have is left out.
    """
    lines = []
    for title, variant, column, k in EXPECTED[name]:
        try:
            first, *second = (_measured(pools, logs or {}, one, column, k) for one in variant.split(" - "))
        except (KeyError, LabError):
            continue
        lines.append(f"{title:54} {first - sum(second):{'+' if second else ''}.3f}")
    return "\n".join(lines)


def _measured(pools: Mapping[str, Pool], logs: Mapping[str, list[dict]], variant: str, column: str, k: int) -> float:
    if column == "entropy":
        return final_entropy(logs[variant])
    pool = pools[variant]
    if k:
        return float(at_k(pool, column, k).mean())
    if column == "distinct_answers":
        return float(distinct_answers(pool).mean())
    correlation = collinearity(pool)
    return np.nan if correlation is None else correlation  # 0 is a correlation


def _filled(text: str, tables: Tables) -> str:
    """The text with every table of EXPECTED between its marks; what stands between other marks is kept."""
    return TABLE.sub(lambda m: m[1] + expected_table(tables, m[2]) + m[3] if m[2] in EXPECTED else m[0], text)


def update_expected(page: Path, tables: Tables) -> list[Path]:
    """Write the tables between the marks of a Markdown page, others than its own left alone; the page if it changed."""
    text = Path(page).read_text(encoding="utf-8")
    new = _filled(text, tables)
    if new != text:
        write_bytes(page, new.encode())
    return [Path(page)] if new != text else []


def update_notebooks(folder: Path, tables: Tables) -> list[Path]:
    """Write the tables between the marks `<!-- table: expected-... -->` of all notebooks; returns those that changed.

    Raises LabError for a mark that names no table.
    """
    changed = []
    for path in sorted(Path(folder).glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown" and (names := [match[2] for match in TABLE.finditer(source)]):
                if unknown := [name for name in names if name not in EXPECTED]:
                    raise LabError(f"{path} marks a table {unknown[0]!r}: the tables are {', '.join(EXPECTED)}")
                cell["source"] = _filled(source, tables).splitlines(keepends=True)
        new = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if new != text:
            write_bytes(path, new.encode())
            changed.append(path)
    return changed
