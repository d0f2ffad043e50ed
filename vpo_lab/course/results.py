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
from vpo_lab.course import tastes
from vpo_lab.course.experiment import BUDGETS, CODE, FLAWED, JUDGES, VARIANTS, WORLDS, Job, final_entropy, label
from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_bytes
from vpo_lab.methods import METHODS as KNOWN
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
# The methods and their rivals in the order of all tables: behind a method its variants that are no ablations.
METHODS = (
    "sft",
    "sft_chain",
    *dict.fromkeys(
        name
        for method in KNOWN
        for name in (method, *(n for n, v in VARIANTS.items() if v.method == method and not v.changes))
        if name in KNOWN or {*VARIANTS[name].worlds} & {*WORLDS, *CODE}
    ),
    "vpo_single",
)
# What pictures and small tables hold: a rival of each kind, and beside VPO always the control without a vector.
FEW = ("sft", "grpo", "max_at_k", "best_of_set", "vpo", "vpo_search")
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
CORNERS = {  # what separates the set from the vector: what a rollout holds, and what it is paid for
    "grpo": ("one answer", "its mean"),
    "random_weights": ("one answer", "a random weighting"),
    "multi_rlvr": ("a set", "the sum of its means"),
    "best_of_set": ("a set", "its best mean"),
    "vpo": ("a set", "its best under random weightings"),
}
HOPS = ("tiny_hops", "tiny_chain")  # the worlds of docs/hops.md
HEADLINE = {"tiny": "best", "maze": "hypervolume"}  # the metric that tells most in a world
SHOWN = {"tiny": ("best", "pass"), "maze": ("best", "hypervolume")}  # two that say different things
TITLES = {"tiny": "Tool calls: one right answer", "maze": "Maze: objectives compete"}
ALL_THREE = (*HEADLINE.items(), ("tiny_code", "covered"))
BESIDE_THE_PAPER = (  # what docs/paper.md compares, where it was measured: (world, metric, variant, minus)
    *((*world, "vpo", "grpo") for world in (*ALL_THREE, ("maze", "best"))),
    *((*world, "vpo", "max_at_k") for world in (*ALL_THREE, ("maze", "best"))),
    *((*world, "vpo", "sft") for world in ALL_THREE),
    *((world, "bag", "vpo", other) for world in WORLDS for other in ("grpo", "max_at_k")),
    ("tiny", "best", "vpo@0.7", "sft@0.7"),
    *((*world, "best_of_set", "vpo") for world in ALL_THREE),
    *((*world, "grpo_kl0.2", other) for world in ALL_THREE for other in ("grpo", "vpo")),
)

# --- An experiment ------------------------------------------------------------


def read(folder: str | Path = SAVED / "experiment") -> Tables:
    """Return the tables that `vpo-lab experiment` wrote: "runs", "budgets", "curves" and "intervals".

    Raises LabError if a file or a column is missing or holds no numbers where it should.
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


def shown(tables: Tables, world: str) -> list[str]:
    """Return the one or two metrics of a world that say different things."""
    return [metric for metric in SHOWN.get(world, ("best", "pass", "covered")) if metric in metrics(tables, world)]


def main(tables: Tables, world: str, metric: str) -> pd.DataFrame:
    """Return a metric of every method at every budget, with the world's ceiling and the number of seeds."""
    rows = tables["intervals"].query("world == @world and metric == @metric and minus == ''")
    table = _wide(rows := rows.query("variant in @METHODS"), "variant", "k")
    if metric in ceiling(world, 1):
        table.loc["ceiling"] = [f"{ceiling(world, k)[metric]:.3f}" for k in table.columns]
    table = table.rename(columns="k = {}".format).rename_axis(METRICS[metric])
    return table.assign(seeds=rows.groupby("variant").seeds.max().astype(str)).fillna("")


def differences(tables: Tables, world: str, metric: str, minus: str, ks: Sequence[int] = (3, 6, 24)) -> pd.DataFrame:
    """Return every method minus another on the same seeds and requests: ahead, behind or undecided, and by how much."""
    rows = tables["intervals"].query("world == @world and metric == @metric and minus == @minus and k in @ks")
    table = _wide(rows.query("variant in @METHODS"), "variant", "k", difference)
    return table.rename(columns="k = {}".format).rename_axis(f"{METRICS[metric]} minus {minus}")


def ablation_rows(tables: Tables, world: str) -> pd.DataFrame:
    """Return the rows of `intervals` that compare one changed setting with its control at k = 3 and 24."""
    rows = tables["intervals"].query("world == @world and minus != '' and k in (3, 24)")
    rows = rows[rows.metric.isin(shown(tables, world)) & rows.variant.map(CHANGES).fillna("").ne("")]
    rows = rows[rows.minus == [VARIANTS[name].control for name in rows.variant]]
    rows = rows.assign(changes=rows.variant.map(CHANGES))
    return rows.sort_values(["changes", "variant"], key=lambda names: names.map(_rank), kind="stable")


def ablations(tables: Tables, world: str) -> pd.DataFrame:
    """Return each changed setting minus its control, in two metrics at k = 3 and 24."""
    index = ["changes", "variant", "minus"]
    rows = ablation_rows(tables, world)
    table = _wide(rows, index, ["metric", "k"], difference)
    return _flat(table).assign(seeds=rows.groupby(index).seeds.max().astype(str))


def two_by_two(tables: Tables) -> pd.DataFrame:
    """Return the four corners, one answer or M, a fixed scalarization or random weights, and M answers all paid."""
    corners = {name: f"{', '.join(texts)} ({name})" for name, texts in CORNERS.items()}
    rows = tables["intervals"].query("minus == '' and k in (3, 24) and variant in @CORNERS")
    told = [metric in metrics(tables, world) for world, metric in zip(rows.world, rows.metric, strict=True)]
    return _wide(rows.loc[np.array(told, dtype=bool)], ["world", "metric", "k"], "variant").rename(
        index=METRICS, columns=corners
    )


def _by_temperature(tables: Tables, world: str) -> pd.DataFrame:
    """The rows of the policies that were sampled at several temperatures, with `temperature` as text."""
    rows = tables["intervals"].query("world == @world and minus == '' and k in (3, 24)")
    rows = rows[rows.metric.isin(shown(tables, world))]
    at = rows.variant.str.extract("@(.+)", expand=False).fillna("1")  # or "best": see `experiment.collect`
    rows = rows.assign(variant=rows.variant.str.replace("@.*", "", regex=True), temperature=at)
    return rows[rows.variant.isin(rows.variant[rows.temperature != "1"])]


def temperature(tables: Tables, world: str) -> pd.DataFrame:
    """Return the same policies sampled at the temperature of training, 1, and at others."""
    rows = _by_temperature(tables, world).query("temperature != 'best'")
    return _flat(_wide(rows, ["variant", "temperature"], ["metric", "k"]))


def best_temperature(tables: Tables, world: str) -> pd.DataFrame:
    """Return each policy at the temperature that is best for it, by metric and budget, and which that is.

    The number of one half of the requests is that of the temperature which is best on the other half.
    """
    rows = _by_temperature(tables, world)
    key = ["variant", "metric", "k"]
    fixed, chosen = (rows[(rows.temperature == "best") == best] for best in (False, True))
    fixed = fixed.loc[fixed.groupby(key)["mean"].idxmax()].set_index(key).temperature
    texts = [f"{cell(*row[3:])} at {fixed[tuple(row[:3])]}" for row in chosen[[*key, "mean", "low", "high"]].to_numpy()]
    rows = chosen.assign(cell=pd.Series(texts, chosen.index, dtype=object))
    return _flat(_in_order(rows.pivot(index="variant", columns=["metric", "k"], values="cell")).fillna("–"))


def costs(tables: Tables) -> pd.DataFrame:
    """Return what one training samples, and the minutes of its steps."""
    runs = tables["runs"].dropna(subset="generated_tokens")
    groups = runs[runs.variant.isin(VARIANTS)].groupby(["world", "variant"])  # trainings, not their further pools
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
    """Return how two objectives correlate over candidates: the mean of all pairs, and the pair that competes most."""
    columns = {"correlation": "mean of pairs", "least_correlation": "smallest pair"}
    there = {text: _over_runs(tables, name, ".2f") for name, text in columns.items() if name in tables["runs"]}
    table = pd.DataFrame(there).unstack("world").query("variant in @METHODS").swaplevel(axis=1)
    return _in_order(pd.DataFrame(table)).fillna("–")


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
    """Return where VPO is ahead, behind or undecided against each other pool, by the paired interval.

    A metric that is the same for both everywhere, as pass@k in the maze, is left out.
    """
    words = {
        (pair.replace(" - ", " against "), METRICS[metric]): {
            f"k = {k}": verdict(*at[metric][1:]) for k, at in by_k.items()
        }
        for pair, by_k in summary["paired_differences"].items()
        for metric in next(iter(by_k.values()))
        if any(any(at[metric]) for at in by_k.values())
    }
    pairs = list(zip(*words, strict=True)) or [[], []]
    return pd.DataFrame(words.values(), pd.MultiIndex.from_arrays(pairs, names=["paired over requests", "metric"]))


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
    tempered = best_temperature(tables, "tiny")
    small = {world: main(tables, world, metric) for world, metric in HEADLINE.items()}
    small = {world: table.drop(columns=["k = 6", "k = 12"], errors="ignore") for world, table in small.items()}
    small["tiny_temperature"] = tempered[tempered.index.isin([*FEW, "vpo_credit"])]
    texts = {name: to_markdown(table) for name, table in small.items()}
    return {"run": f"{to_markdown(front_page(tables))}\n{one_training(summary, tables)}", **texts}


def front_page(tables: Tables, name: str = "vpo") -> pd.DataFrame:
    """Return where VPO is ahead of four others, behind them or undecided, in the two worlds at k = 1, 3 and 24."""
    index = ["world", "metric", "variant", "minus", "k"]
    rows = tables["intervals"].set_index(index)[["mean", "low", "high", "seeds"]]
    table: dict[str, dict[str, str]] = {}
    for other, (world, metric), k in product(("grpo", "sft", "max_at_k", "best_of_set"), HEADLINE.items(), (1, 3, 24)):
        if (key := (world, metric, name, other, k)) in rows.index:
            mean, low, high, _ = rows.loc[key]
            word = verdict(low, high).replace("behind", "**behind**")
            column = f"{TITLES[world].partition(':')[0].lower()}, k = {k}"
            number = f"{round(mean, 2) or 0.0:+.2f}".replace("-", "−")
            table.setdefault(f"VPO minus {label(other)}", {})[column] = f"{word} {number}"
    seeds = rows.query("variant == @name and minus != ''").seeds
    counted = f"{' to '.join(map(str, sorted({*seeds.astype(int)}))) or 'no'} seeds"
    return pd.DataFrame(table).T.fillna("–").rename_axis(counted)


def one_training(summary: Mapping, tables: Tables) -> str:
    """Return a sentence that puts the course's own run beside the seeds of the experiment; "" if it has no VPO."""
    pairs = summary["paired_differences"]
    pair = next((pair for pair in pairs if pair.endswith(" - grpo") and "3" in pairs[pair]), "")
    name, world = pair.partition(" - ")[0], summary["profile"]
    if not pair or not len(values := by_seed(tables, name, "best@3 - grpo", world)):
        return ""
    mine = pairs[pair]["3"]["best"][0]
    numbers = [f"{number:+.2f}".replace("-", "−") for number in (mine, values.mean(), values.min(), values.max())]
    return (
        f"The notebooks show one training, seed {summary['seed']}: best@3 of `{name}` minus GRPO's is {numbers[0]}. "
        f"Over {len(values)} seeds it is {numbers[1]}, from {numbers[2]} to {numbers[3]}.\n"
    )


def code_tables(tables: Tables) -> dict[str, str]:
    """Return the table of the worlds of code, by the name in the mark of a page."""
    covered = main(tables, "tiny_code", "covered")[["k = 1", "k = 3"]].add_prefix("covered, ")
    columns = {"24": "solved within 24", "384": "within 384", "reachable": "reachable"}
    blind = search(tables, "tiny_code")[[*columns]].rename(columns=columns)
    seen = search(tables, "tiny_repair")[["24", "384"]].add_prefix("shown the parent: ")
    table = _in_order(covered.join([blind, seen], how="outer")).fillna("–")
    return {"code": to_markdown(table.rename_axis("patches of code"))}


def hops_tables(tables: Tables) -> dict[str, str]:
    """Return the tables of docs/hops.md, best@k and pass@k, by the name in the mark: that of the world."""
    texts = {}
    for world in HOPS:
        parts = {metric: main(tables, world, metric) for metric in ("best", "pass")}
        cells = {
            f"{METRICS[metric].removesuffix('@k')}, {k}": table[k]
            for metric, table in parts.items()
            for k in ("k = 1", "k = 3", "k = 24")
        }
        table = pd.DataFrame(cells).assign(seeds=parts["best"].seeds)
        texts[world] = to_markdown(table.rename_axis(world))
    return texts


def judges_tables(tables: Tables) -> dict[str, str]:
    """Return the tables of docs/tastes.md, by the name in the mark; `tables` are those of `tastes.read_judges`.

    What a price on KL is best for each method, what each remedy leaves of the truth, and what a true judge finds.
    """
    measured = [world for world in (*JUDGES, *FLAWED) if world in set(tables["truths"].world)]
    flawed = [world for world in measured if world in FLAWED]
    best = {world: tastes.tuned(tables, world) for world in measured if world in JUDGES}
    helped = {
        (world, remedy): {method: cell(*numbers, ".2f") for method, numbers in by_method.items()}
        for world in flawed
        for remedy, by_method in tastes.remedies(tables, world).items()
    }
    found = {world: tastes.second_judge(tables, world).loc[[tastes.BUDGETS[-1]]] for world in flawed}
    texts = {
        "judges_tuned": pd.concat(best, names=["world"]),
        "judges_remedies": pd.DataFrame(helped).T.rename_axis(["world", "remedy"]).fillna("–"),
        "judges_found": pd.concat(found, names=["world"]),
    }
    return {name: to_markdown(table) for name, table in texts.items()}


def paper_tables(tables: Tables, code: Tables) -> dict[str, str]:
    """Return the tables of docs/paper.md, by the name in the mark: the gaps and the diversity of rewards."""
    rows = pd.concat([tables["intervals"], code["intervals"]]).set_index(["world", "metric", "variant", "minus", "k"])
    gaps = {}
    for world, metric, variant, minus in BESIDE_THE_PAPER:
        if (world, metric, variant, minus, 3) in rows.index:
            at = [rows.loc[(world, metric, variant, minus, k)] for k in (3, 24)]
            texts = [difference(*row[["mean", "low", "high"]]) for row in at]
            gaps[f"{variant} minus {minus}", world, METRICS[metric]] = [*texts, f"{int(at[0].seeds)}"]
    index = pd.MultiIndex.from_tuples(gaps, names=["variant minus another", "world", "metric"])
    gaps = pd.DataFrame(gaps.values(), index, ["k = 3", "k = 24", "seeds"])
    runs = pd.concat([_over_runs(each, "reward_diversity", ".2f") for each in (tables, code)])
    spread = pd.DataFrame(runs.unstack("variant")).filter(["sft", "grpo", "max_at_k", "multi_rlvr", "vpo"])
    spread = _in_order(pd.DataFrame(spread)).fillna("–")
    return {"paper_gaps": to_markdown(gaps), "paper_diversity": to_markdown(spread)}


def update_pages(root: Path) -> list[Path]:
    """Write the tables of README.md, results/README.md and those pages of docs/ whose results are there: the paths.

    `root` is the repository. LabError if a page or the results of the experiment are missing.
    """
    saved = root / "results"
    tables = read(saved / "experiment")
    texts = page_tables(read_json(saved / "tiny" / "summary.json"), tables)
    pages = [root / "README.md", saved / "README.md"]
    if (saved / "code" / "runs.csv").exists():
        code = read(saved / "code")
        texts |= code_tables(code) | paper_tables(tables, code)
        pages.append(root / "docs" / "paper.md")
    if (saved / "judges" / "runs.csv").exists():
        texts |= judges_tables(tastes.read_judges(saved / "judges"))
        pages.append(root / "docs" / "tastes.md")
    if (saved / "hops" / "runs.csv").exists():
        texts |= hops_tables(read(saved / "hops"))
        pages.append(root / "docs" / "hops.md")
    for page in pages:
        update_page(page, texts)
    return pages


def update_page(page: Path, texts: Mapping[str, str]) -> None:
    """Write each text between the marks of its name on a Markdown page; LabError for an unknown or a missing mark."""
    old = Path(page).read_text(encoding="utf-8")
    names = [match[2] for match in TABLE.finditer(old)]
    if not names or set(names) - set(texts):
        raise LabError(f"{page} marks the tables {names}: mark some of {', '.join(texts)} by '<!-- table: NAME -->'")
    write_bytes(page, TABLE.sub(lambda mark: mark[1] + texts[mark[2]] + mark[3], old).encode())
