"""What was measured, as pandas data frames: the tables of an experiment, of one run, and one beside the other.

`read` returns the experiment's rows; each table below is made of them and holds "mean [low, high]" in its cells.
Made of `intervals`, low and high are a 95% interval over seeds and requests; made of `runs` or `budgets`, they
are the least and the most over seeds. For the next question: `tables["intervals"].query(...)`, `over_seeds(...)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

import vpo_lab
from vpo_lab.config import Profile, get_profile
from vpo_lab.course.experiment import BUDGETS, CODE, OTHER_TEMPERATURE, VARIANTS, WORLDS, Job, final_entropy, renamed
from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_bytes
from vpo_lab.metrics import METRICS, crossed_bootstrap, verdict
from vpo_lab.runs import Run
from vpo_lab.search.evolution import BUDGETS as SEARCH_BUDGETS
from vpo_lab.search.pool import Pool, pool_names
from vpo_lab.search.summary import at_k, distinct_answers
from vpo_lab.search.summary import collinearity as mean_correlation
from vpo_lab.tasks import get_task
from vpo_lab.train.prompts import rollouts_per_step

Tables = dict[str, pd.DataFrame]

SAVED = Path(vpo_lab.__file__).resolve().parent.parent / "results"
BASE = "vpo_credit"  # the method of which the settings are changed one at a time
METHODS = ("sft", "sft_chain", *(name for name, variant in VARIANTS.items() if variant.method == name != "sft"))
CHANGES = {name: variant.changes for name, variant in VARIANTS.items()}
NAMES = list(dict.fromkeys((*WORLDS, *METRICS, *CHANGES.values(), *METHODS, *VARIANTS)))  # in the order of all tables
COLUMNS = {  # what each file must have, and of which type; budgets has `hypervolume` where a world's fronts are known
    "runs": {"seed": int, "m": int, "steps": int, "minutes": float, "generated_tokens": float, "entropy": float}
    | {"method": str, "distinct_answers": float, "reward_diversity": float, "correlation": float},
    "budgets": {"seed": int, "k": int, "tokens": float, "best": float, "pass": float, "eum": float},
    "curves": {"seed": int, "step": int, "distinct_rollouts": float, "entropy": float, "best_of_group": float},
    "intervals": {"metric": str, "k": int, "minus": str, "seeds": int, "mean": float, "low": float, "high": float},
    "search": {"seed": int, "id": str, "solved_at": float, "control": float, "reachable": "boolean", "programs": float},
}
HEADLINE = {"tiny": "best", "maze": "hypervolume"}  # the metric that tells most in a world
ALL_THREE = (*HEADLINE.items(), ("tiny_code", "covered"))
BESIDE_THE_PAPER = (  # what docs/paper.md compares: rows of intervals.csv.gz as (world, metric, variant, minus)
    *((*world, "vpo", "grpo") for world in (*ALL_THREE, ("maze", "best"))),
    *((*world, "vpo", "max_at_k") for world in (*ALL_THREE, ("maze", "best"))),
    *((*world, "vpo", "sft") for world in ALL_THREE),
    ("tiny", "best", "vpo_credit@0.7", "sft@0.7"),
    *((*world, "best_of_set_credit", "vpo_credit") for world in HEADLINE.items()),
    ("tiny_code", "covered", "best_of_set", "vpo"),
    *(("tiny_code", "covered", "grpo_kl0.2", other) for other in ("grpo", "vpo")),
)

# --- An experiment ------------------------------------------------------------


def read(folder: str | Path = SAVED / "experiment") -> Tables:
    """Return the tables that `vpo-lab experiment` wrote: "runs", "budgets", "curves" and "intervals".

    Variants carry today's names, whatever the files call them. Raises LabError if a file or a column is missing
    or holds no numbers where it should.
    """
    tables = {}
    for name, columns in COLUMNS.items():
        if name == "search" and not (Path(folder) / "search.csv").exists():
            continue  # only the worlds of code have searches
        path = Path(folder) / f"{name}.csv"
        path = packed if (packed := path.with_name(f"{name}.csv.gz")).exists() else path
        if not path.exists():
            raise LabError(f"{path} does not exist: `vpo-lab experiment` writes it")
        try:
            tables[name] = pd.read_csv(path, dtype={"world": str, "variant": str, **columns}).fillna({"minus": ""})
        except ValueError as error:
            raise LabError(f"{path} is damaged: {error}") from error
        if missing := {"world", "variant", *columns} - set(tables[name]):
            raise LabError(f"{path} has no column {min(missing)!r}: write it anew with `vpo-lab experiment`")
    today = renamed(tables["runs"].variant)
    for rows in tables.values():
        for column in {"variant", "minus"} & set(rows):
            rows[column] = rows[column].map(today)
    return tables


def worlds(tables: Tables) -> list[str]:
    """Return the worlds that were measured, in the usual order."""
    return sorted(tables["runs"].world.unique(), key=_rank)


def metrics(tables: Tables, world: str) -> list[str]:
    """Return the metrics of a world; one that is 0 for everybody, as pass@k in the maze, is left out."""
    told = tables["intervals"].query("world == @world and mean != 0").metric.unique()
    return sorted(told, key=_rank)


@lru_cache
def ceiling(world: str, k: int) -> dict[str, float]:
    """Return what no policy can beat in a world, by metric; {} where that is not known."""
    task = get_task(get_profile(world).task)
    return task.ceiling(k) if hasattr(task, "ceiling") else {}


def as_summary(tables: Tables, world: str, variants: Sequence[str] = METHODS) -> dict:
    """Return a world in the shape of `search.summary.summarize`, for figures; variants not measured are left out."""
    told = metrics(tables, world)
    rows = tables["intervals"].query("world == @world and minus == ''").set_index(["variant", "k", "metric"])
    tokens = tables["budgets"].query("world == @world").groupby(["variant", "k"]).tokens.mean()
    cells = rows[["mean", "low", "high"]].T
    methods = {
        name: {
            "k": {str(k): {m: tuple(cells[name, k, m]) for m in told} | {"tokens": tokens[name, k]} for k in BUDGETS}
        }
        for name in variants
        if told and all((name, k, m) in cells for k, m in product(BUDGETS, told))
    }
    return {"methods": methods, "ceiling": {str(k): ceiling(world, k) for k in BUDGETS} if methods else None}


def main(tables: Tables, world: str, metric: str) -> pd.DataFrame:
    """Return a metric of every method at every budget, with the world's ceiling and the number of seeds.

    In the worlds of code of every variant, GRPO's with a price on KL among them.
    """
    rows = tables["intervals"].query("world == @world and metric == @metric and minus == ''")
    table = _wide(rows := rows[_compared(rows, world)], "variant", "k")
    if metric in ceiling(world, 1):
        table.loc["ceiling"] = [f"{ceiling(world, k)[metric]:.3f}" for k in table.columns]
    table = table.rename(columns="k = {}".format).rename_axis(METRICS[metric])
    return table.assign(seeds=rows.groupby("variant").seeds.max().astype(str)).fillna("")


def differences(tables: Tables, world: str, metric: str, minus: str, ks: Sequence[int] = (3, 6, 24)) -> pd.DataFrame:
    """Return every method minus another on the same seeds and requests: ahead, behind or undecided, and by how much."""
    rows = tables["intervals"].query("world == @world and metric == @metric and minus == @minus and k in @ks")
    table = _wide(rows[_compared(rows, world)], "variant", "k", difference)
    return table.rename(columns="k = {}".format).rename_axis(f"{METRICS[metric]} minus {minus}")


def _compared(rows: pd.DataFrame, world: str) -> pd.Series:
    """The rows of the main comparison; in the worlds of code GRPO with a price on KL is among them."""
    return rows.variant.isin(METHODS) | ((world in CODE) & ~rows.variant.str.contains("@"))


def ablation_rows(tables: Tables, world: str) -> pd.DataFrame:
    """Return the rows of `intervals` that compare one changed setting with BASE at k = 3 and 24, with `changes`."""
    rows = tables["intervals"].query("world == @world and minus == @BASE and k in (3, 24)")
    rows = rows[rows.metric.isin(metrics(tables, world))]
    changes = [CHANGES.get(name, "") or ("" if name in METHODS or "@" in name else "others") for name in rows.variant]
    rows = rows.assign(changes=changes).query("changes != ''")
    return rows.sort_values(["changes", "variant"], key=lambda names: names.map(_rank), kind="stable")


def ablations(tables: Tables, world: str) -> pd.DataFrame:
    """Return BASE with one setting changed, minus BASE."""
    rows = ablation_rows(tables, world).query("metric != 'pass'")
    table = _wide(rows, ["changes", "variant"], ["metric", "k"], difference)
    return _flat(table).assign(seeds=rows.groupby(["changes", "variant"]).seeds.max().astype(str))


def two_by_two(tables: Tables) -> pd.DataFrame:
    """Return the four corners: one answer or M, a fixed scalar or random weights."""
    corners = {
        "grpo": "one answer, fixed scalar (grpo)",
        "random_weights": "one answer, random weights (random_weights)",
        "best_of_set_credit": "M answers, fixed scalar (best_of_set_credit)",
        "vpo_credit": "M answers, random weights (vpo_credit)",
    }
    rows = tables["intervals"].query("minus == '' and k in (3, 24) and variant in @corners")
    told = [metric in metrics(tables, world) for world, metric in zip(rows.world, rows.metric, strict=True)]
    return _wide(rows[told], ["world", "metric", "k"], "variant").rename(index=METRICS, columns=corners)


def temperature(tables: Tables) -> pd.DataFrame:
    """Return the same policies sampled at the temperature of training and at the paper's."""
    rows = tables["intervals"].query("minus == '' and metric in ('best', 'eum') and k in (3, 24)")
    parts = rows.variant.str.partition("@")
    rows = rows.assign(variant=parts[0], temperature=parts[2].replace("", "1"))
    rows = rows[rows.variant.isin(rows.variant[rows.temperature == str(OTHER_TEMPERATURE["tiny"])])]
    return _flat(_wide(rows, ["world", "variant", "temperature"], ["metric", "k"]))


def costs(tables: Tables) -> pd.DataFrame:
    """Return what one training samples, and the minutes of its steps."""
    runs = tables["runs"].dropna(subset="generated_tokens")
    groups = runs[~runs.variant.str.contains("@")].groupby(["world", "variant"])
    tokens = groups.generated_tokens.mean()
    usual = tokens[tokens.index.get_level_values("variant") == "grpo"].droplevel("variant")
    table = pd.DataFrame(
        {"seeds": groups.size(), "steps": groups.steps.first(), "answers in a rollout": groups.m.first()}
    )
    table["thousands of answers sampled"] = [_answers(*row) for row in table.reset_index().drop(columns="seeds").values]
    table["millions of tokens sampled"] = (tokens / 1e6).map("{:.2f}".format)
    table["of GRPO's"] = tokens.div(usual, level="world").map("{:.2f}".format, na_action="ignore")
    table["minutes"] = _over_runs(tables, "minutes", ".1f")
    return _in_order(table).fillna("–")


def _answers(world: str, variant: str, steps: int, m: int) -> str:
    """How many answers a training samples, in thousands: the budget that is equal."""
    if variant not in VARIANTS:
        return "–"
    rollouts = rollouts_per_step(Job(Path(), world, variant, 0).profile, VARIANTS[variant].method)
    return f"{steps * rollouts * m / 1e3:.0f}"


def diversity(tables: Tables) -> pd.DataFrame:
    """Return how different the candidates are, in words and in rewards, and the policy's entropy after training."""
    columns = {
        "distinct_answers": "share of distinct answers",
        "reward_diversity": "distance of reward vectors",
        "entropy": "entropy of a token at the end of training (nats)",
    }
    table = pd.DataFrame({text: _over_runs(tables, column) for column, text in columns.items()})
    return _in_order(table.query("variant in @METHODS")).fillna("–")


def collinearity(tables: Tables) -> pd.DataFrame:
    """Return the mean correlation of two objectives over candidates, by method and world."""
    table = _over_runs(tables, "correlation", ".2f").unstack("world").query("variant in @METHODS")
    return _in_order(table).fillna("–")


def _over_runs(tables: Tables, column: str, form: str = ".3f") -> pd.Series:
    """Mean, least and most over seeds of a column of `runs`, as text, by world and variant."""
    runs = tables["runs"][~tables["runs"].variant.str.contains("@")]
    spread = runs.groupby(["world", "variant"])[column].agg(["mean", "min", "max"])
    return pd.Series([cell(*row, form) for row in spread.values], index=spread.index, dtype=object)


def solved_at(tables: Tables, world: str, column: str = "solved_at") -> dict[str, np.ndarray]:
    """Return after how many candidates each search solved its problems: variant -> (S, N), infinity for never.

    column: "solved_at" for the evolution, "control" for the same answers without it. Only seeds that have all problems.
    """
    rows = tables["search"].query("world == @world")
    found = {}
    for name in sorted(rows.variant.unique(), key=_rank):
        by_seed = rows[rows.variant == name].pivot(index="seed", columns="id", values=column)
        found[name] = by_seed.fillna(np.inf).to_numpy(dtype=float)
    return found


def search(tables: Tables, world: str) -> pd.DataFrame:
    """Return the share of problems that each policy solves in evolution within a budget, and without evolution.

    `control` is the last budget without evolution. `reachable` is the share of problems whose solution can be
    reached by the steps that the policy was seen to take, in any number; a dash where that is not known.
    """
    control, rows = solved_at(tables, world, "control"), tables["search"].query("world == @world")
    table = {}
    for name, solved_SN in solved_at(tables, world).items():
        shares = {f"{budget}": _share(solved_SN <= budget) for budget in SEARCH_BUDGETS}
        known = rows[rows.variant == name].reachable.dropna()
        shares["control"] = _share(np.isfinite(control[name])) if len(known) else "–"
        shares["reachable"] = f"{known.mean():.2f}" if len(known) else "–"
        table[name] = shares | {"seeds": f"{len(solved_SN)}"}
    return pd.DataFrame(table).T.rename_axis("solved within")


def _share(solved_SN: np.ndarray) -> str:
    return cell(*crossed_bootstrap(solved_SN.astype(float)), ".2f")


def targets(tables: Tables) -> pd.DataFrame:
    """Return what was hoped for before the trainings, what was measured, and whether that is met."""
    index = ["world", "variant", "metric", "k", "minus"]
    measured = tables["intervals"].set_index(index)[["mean", "low", "high"]].T
    above_0, rows = 1e-9, []

    def found(*key: object) -> np.ndarray:
        return measured[key].to_numpy() if key in measured else np.full(3, np.nan)

    def target(world: str, text: str, found: np.ndarray, limit: float, form: str = "+.3f") -> None:
        mean, low, high = found
        by_mean = "yes" if mean >= limit else "no"
        by_interval = "yes" if low >= limit else "undecided" if high >= limit else "no"
        words = ["not measured"] * 2 if np.isnan(mean) else [by_mean, by_interval]
        rows.append([world, text, cell(*found, form), *words])

    for metric, limit in (("best", 0.05), ("pass", 0.10)):
        text = f"{metric}@24 of vpo_credit minus grpo: {limit:.2f} or more"
        target("tiny", text, found("tiny", "vpo_credit", metric, 24, "grpo"), limit)
    share = found("tiny", "vpo_credit", "best", 3, "") / ceiling("tiny", 3)["best"]
    target("tiny", "best@3 of vpo_credit over its ceiling: 0.95 or more", share, 0.95, ".3f")
    for k in (6, 12, 24):
        text = f"best@{k} of vpo_credit minus max_at_k: 0 or more"
        target("tiny", text, found("tiny", "vpo_credit", "best", k, "max_at_k"), 0.0)
    for k in (3, 24):  # the interval of a ratio is that of the paired difference over the other's mean
        ratio = found("maze", "vpo_credit", "hypervolume", k, "grpo") / found("maze", "grpo", "hypervolume", k, "")[0]
        target("maze", f"hypervolume at k = {k} of vpo_credit over grpo: 1.3 or more", 1 + ratio, 1.3, ".2f")
    for world, metric in product(WORLDS, ("best", "eum")):
        for other in ("sft", "grpo", "max_at_k", "vpo_credit"):
            text = f"{METRICS[metric]} at k = 24 of vpo_search minus {other}: above 0"
            target(world, text, found(world, "vpo_search", metric, 24, other), above_0)
        for other in ("", " - grpo"):  # the least and the most over seeds: every training has to grow
            late, early = (by_seed(tables, "vpo_search", f"{metric}@{k}{other}", world) for k in (24, 3))
            text = f"{METRICS[metric]} of vpo_search{other.replace('-', 'minus')}, growth from k = 3 to 24: above 0"
            target(world, text, (late - early).agg(["mean", "min", "max"]).to_numpy(), above_0)
    columns = ["world", "target", "measured", "met by the mean", "met by the whole interval"]
    return pd.DataFrame(rows, columns=columns).set_index(["world", "target"])


# --- Over seeds, and one run beside them --------------------------------------


def by_seed(tables: Tables, variant: str, measure: str, world: str = "tiny") -> pd.Series:
    """Return one number for each training seed, by seed.

    measure: "best@3" (a metric at a budget), a column of `runs` such as "entropy", or "best@3 - grpo", the
    difference to another variant within each seed that has both. Raises LabError on another measure.
    """
    measure, _, other = measure.partition(" - ")
    name, _, k = measure.partition("@")
    rows = tables["budgets" if k else "runs"].query("world == @world and variant == @variant").set_index("seed")
    if name not in rows:
        raise LabError(f"unknown measure {measure!r}: a metric at a budget, as best@3, or one of {', '.join(rows)}")
    values = rows[name][rows.k.astype(str) == k] if k else rows[name]
    return (values - by_seed(tables, other, measure, world) if other else values).dropna()


def over_seeds(
    tables: Tables, variants: str | Sequence[str], measures: Sequence[str], world: str = "tiny"
) -> pd.DataFrame:
    """Return mean, least, most and the number of seeds of each measure of each variant; see `by_seed`."""
    variants = [variants] if isinstance(variants, str) else variants
    rows = {}
    for key in product(variants, measures):
        values = by_seed(tables, *key, world)
        rows[key] = [*(round(float(number), 3) for number in values.agg(["mean", "min", "max"])), len(values)]
    index = pd.MultiIndex.from_tuples(rows, names=["variant", "measure"])
    return pd.DataFrame(rows.values(), index, ["mean", "least", "most", "seeds"])


def compare(
    run: Run | Path,
    variants: str | Sequence[str],
    measures: Sequence[str],
    world: str = "tiny",
    tables: Tables | None = None,
) -> pd.DataFrame:
    """Return a run's own numbers ("yours") beside the mean, the least and the most over the experiment's seeds.

    run: a run folder; variants: one of its policies, or several; measures: see `by_seed`. What the run does not have
    is NaN.
    """
    table = over_seeds(tables or read(), variants, measures, world)
    table.insert(0, "yours", [round(_measured(Run(Path(run)), *key), 3) for key in table.index])
    return table.droplevel("variant") if isinstance(variants, str) else table


def _measured(run: Run, method: str, measure: str) -> float:
    """One number of a run, NaN if it has no such pool, log or budget."""
    measure, _, other = measure.partition(" - ")
    name, _, k = measure.partition("@")
    if other:
        return _measured(run, method, measure) - _measured(run, other, measure)
    try:
        if name == "entropy":
            return final_entropy(run.log(method))
        pool = Pool.load(run.pool(method))
        if k:
            return float(at_k(pool, name, int(k)).mean())
        value = distinct_answers(pool).mean() if name == "distinct_answers" else mean_correlation(pool)
        return np.nan if value is None else float(value)  # 0 is a correlation
    except LabError:
        return np.nan


# --- One run ------------------------------------------------------------------


def find_results(run: Run, profile: Profile, saved: Path = SAVED) -> Run:
    """Return the run folder if it has all pools, else the results in `saved`; LabError without both."""
    for folder in (run, Run(saved / profile.name)):
        if all(folder.pool(name).exists() for name in pool_names(profile)):
            return folder
    raise LabError(f"no candidate pools in {run} and none saved for profile {profile.name!r}: run 02, 03 and 04 first")


def run_table(summary: Mapping, metric: str) -> pd.DataFrame:
    """Return a metric of every pool of a run at every budget, with the ceiling; see `search.summary.summarize`."""
    methods = summary["methods"].items()
    cells = {
        name: {k: "{:.3f} [{:.2f}, {:.2f}]".format(*at[metric]) for k, at in one["k"].items()} for name, one in methods
    }
    if summary["ceiling"] and all(metric in limits for limits in summary["ceiling"].values()):
        cells["ceiling"] = {k: f"{limits[metric]:.3f}" for k, limits in summary["ceiling"].items()}
    return pd.DataFrame(cells).T.rename(columns="k = {}".format).rename_axis(METRICS[metric])


def verdicts(summary: Mapping) -> pd.DataFrame:
    """Return where VPO is ahead, behind or undecided against each other pool, by the paired interval."""
    words = {
        (pair.replace(" - ", " against "), METRICS[metric]): {
            f"k = {k}": verdict(*at[metric][1:]) for k, at in by_k.items()
        }
        for pair, by_k in summary["paired_differences"].items()
        for metric in next(iter(by_k.values()))
    }
    return pd.DataFrame(words.values(), pd.MultiIndex.from_tuples(words, names=["paired over requests", "metric"]))


def print_summary(path: Path) -> None:
    """Print a run's summary: every metric of every pool at every budget, and what was stopped early."""
    summary = read_json(path)
    print(f"{summary['profile']}, seed {summary['seed']}, {summary['requests']} requests; {summary['interval']}\n")
    for metric in METRICS:
        if all(metric in at for method in summary["methods"].values() for at in method["k"].values()):
            print(run_table(summary, metric).to_string(), end="\n\n")
    for name, at in summary.get("stopped", {}).items():
        print(f"{name} was stopped after {at}: the time was up")
    print(f"summary: {path}")


# --- Cells and pages ----------------------------------------------------------


def cell(mean: float, low: float, high: float, form: str = ".3f") -> str:
    """Return "mean [low, high]", a dash where nothing was measured."""
    return "–" if np.isnan(mean) else f"{mean:{form}} [{low:{form}}, {high:{form}}]".replace("-", "−")


def difference(mean: float, low: float, high: float) -> str:
    """Return a difference in words, by its interval, and in numbers."""
    return f"{verdict(low, high)} {cell(mean, low, high, '+.3f')}"


def _wide(rows: pd.DataFrame, index: str | list[str], columns: str | list[str], text=cell) -> pd.DataFrame:
    cells = pd.Series([text(*row) for row in rows[["mean", "low", "high"]].to_numpy()], rows.index, dtype=object)
    return _in_order(rows.assign(cell=cells).pivot(index=index, columns=columns, values="cell")).fillna("–")


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    """One row of headings, such as "best, k = 3"."""
    return table.set_axis([f"{METRICS[metric].removesuffix('@k')}, k = {k}" for metric, k in table], axis=1)


def _rank(name: object) -> object:
    return name if not isinstance(name, str) else NAMES.index(name) if name in NAMES else len(NAMES)


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rows and columns in the order of NAMES, what is not there last."""
    for axis in (0, 1):
        table = table.sort_index(axis=axis, key=lambda level: level.map(_rank), kind="stable")
    return table


def to_markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown, its index as the first columns."""
    return table.reset_index().to_markdown(index=False, disable_numparse=True) + "\n"


TABLE = re.compile(r"(<!-- table: ([\w-]+)[^\n]*-->\n).*?(<!-- /table -->)", re.DOTALL)


def page_tables(summary: Mapping, tables: Tables) -> dict[str, str]:
    """Return what stands between the marks of README.md and results/README.md, by the name in the mark."""
    title = (
        f"`vpo-lab run --profile {summary['profile']} --seed {summary['seed']}`, {summary['requests']} held-out "
        f"requests, {summary['interval']}. `sft` writes one answer at a time, `sft_chain` three in a chain."
    )
    lines, ks = [], np.array(list(next(iter(summary["methods"].values()))["k"]))
    for pair, rows in verdicts(summary).groupby(level=0, sort=False):
        found = [
            f"{f'**{word}**' if word == 'behind' else word} at {metric} for k = {', '.join(ks[row == word])}"
            for (_, metric), row in rows.iterrows()
            for word in ("ahead", "behind", "undecided")
            if (row == word).any()
        ]
        lines.append(f"- {pair}: {'; '.join(found)}.\n")
    best, solved = (to_markdown(run_table(summary, metric)) for metric in ("best", "pass"))
    main_tables = {world: to_markdown(main(tables, world, metric)) for world, metric in HEADLINE.items()}
    return {"run": f"{best}\n{solved}\n{title}\n\n{''.join(lines)}", **main_tables}


def code_tables(tables: Tables) -> dict[str, str]:
    """Return the tables of the worlds of code, by the name in the mark of a page."""
    searches = {f"{world}_search": to_markdown(search(tables, world)) for world in worlds(tables)}
    return {"tiny_code": to_markdown(main(tables, "tiny_code", "covered")), **searches}


def paper_tables(tables: Tables, code: Tables) -> dict[str, str]:
    """Return the tables of docs/paper.md, by the name in the mark: the gaps and the diversity of rewards."""
    rows = pd.concat([tables["intervals"], code["intervals"]]).set_index(["world", "metric", "variant", "minus", "k"])
    gaps = {}
    for world, metric, variant, minus in BESIDE_THE_PAPER:
        at = [rows.loc[(world, metric, variant, minus, k)] for k in (3, 24)]
        texts = [difference(*row[["mean", "low", "high"]]) for row in at]
        gaps[f"{variant} minus {minus}", world, METRICS[metric]] = [*texts, f"{int(at[0].seeds)}"]
    index = pd.MultiIndex.from_tuples(gaps, names=["variant minus another", "world", "metric"])
    gaps = pd.DataFrame(gaps.values(), index, ["k = 3", "k = 24", "seeds"])
    runs = pd.concat([_over_runs(each, "reward_diversity", ".2f") for each in (tables, code)])
    spread = pd.DataFrame(runs.unstack("variant")).filter(["grpo", "max_at_k", "multi_rlvr", "vpo"])
    spread = _in_order(pd.DataFrame(spread)).fillna("–")
    return {"paper_gaps": to_markdown(gaps), "paper_diversity": to_markdown(spread)}


def update_page(page: Path, texts: Mapping[str, str]) -> None:
    """Write each text between the marks of its name on a Markdown page; LabError for an unknown or a missing mark."""
    old = Path(page).read_text(encoding="utf-8")
    names = [match[2] for match in TABLE.finditer(old)]
    if not names or set(names) - set(texts):
        raise LabError(f"{page} marks the tables {names}: mark some of {', '.join(texts)} by '<!-- table: NAME -->'")
    write_bytes(page, TABLE.sub(lambda mark: mark[1] + texts[mark[2]] + mark[3], old).encode())
