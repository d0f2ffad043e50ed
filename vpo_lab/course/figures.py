"""The pictures in figures/, drawn from saved results without training."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.course.experiment import FLAWED, PRICED, SEEDS, VARIANTS, label, read_mazes
from vpo_lab.course.results import (
    FEW,
    HEADLINE,
    TITLES,
    Tables,
    ablation_rows,
    as_summary,
    read,
    shown,
    solved_at,
    worlds,
)
from vpo_lab.files import read_json, write_bytes
from vpo_lab.runs import Run
from vpo_lab.search.evolution import BUDGETS as SEARCH_BUDGETS
from vpo_lab.tasks import get_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = ("distinct_rollouts", "best_of_group")


def load_logs(folder: Path) -> dict[str, list[dict]]:
    """Return the training logs below a run or results folder, by stage."""
    return {log.parent.name: Run(folder).log(log.parent.name) for log in sorted(Path(folder).glob("*/log.jsonl"))}


def draw_figures(results: Path, out: Path) -> list[Path]:
    """Draw the figures of one run from its summary and its logs; return the paths."""
    import matplotlib

    matplotlib.use("Agg")

    from vpo_lab import show

    summary, logs = read_json(results / "summary.json"), load_logs(results)
    rl_logs = {name: log for name, log in logs.items() if name != "sft"}
    figures = {
        "headline": show.headline(summary),
        "training_curves": show.training_curves(rl_logs, ["set_reward", "mean_reward", "best_of_group"]),
        "collapse": show.collapse(rl_logs),
    }
    return save_figures(figures, out)


# --- An experiment ------------------------------------------------------------


def draw_experiment_figures(folder: Path, out: Path) -> list[Path]:
    """Draw the mechanism, and what the experiment's CSV files show so far; return the paths of the PNG files."""
    import matplotlib

    matplotlib.use("Agg")

    from vpo_lab import show
    from vpo_lab.tasks.maze import draw

    tables = read(folder)
    figures: dict[str, Figure] = {"mechanism": show.mechanism()}
    panels = {world: (as_summary(tables, world, FEW), HEADLINE.get(world, "best")) for world in worlds(tables)}
    panels = {TITLES.get(world, world): panel for world, panel in panels.items() if panel[0]["methods"]}
    if panels:
        figures["headline"] = show.worlds(panels, _subject(tables), _trainings(tables))
    if curves := {title: by_method for title, by_method in _curves(tables).items() if by_method}:
        figures["collapse"] = show.curves_over_seeds(curves, CURVES, "line: mean over seeds; band: least to most")
    if groups := _groups(tables):
        figures["ablations"] = _ablations(tables, groups)
    if sets := _maze_examples(folder):
        figures["maze_sets"] = draw.maze_sets(*sets)
        figures["winner_regions"] = _winner_regions(*sets)
    return save_figures(figures, out)


def _subject(tables: Tables) -> str:
    """How many seeds are behind a line, and what a band is."""
    seeds = tables["intervals"].query("variant in @FEW and minus == ''").groupby("variant").seeds.max()
    usual = seeds.mode().iloc[0]
    others = [f"{label(name)}: {count}" for name, count in seeds[seeds != usual].items()]
    count = f"{usual} training seeds" + f" ({', '.join(others)})" * bool(others)
    return f"{count}, the same test requests; band: 95% over seeds and requests; thin lines: one training each"


def _trainings(tables: Tables) -> dict[str, dict[str, np.ndarray]]:
    """Each training's hypervolume at every budget, where there are five: title -> method -> (S, K)."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for world in worlds(tables):
        metric = HEADLINE.get(world)
        for name in FEW if metric == "hypervolume" else ():
            rows = tables["budgets"].query("world == @world and variant == @name")
            values = rows.pivot(index="seed", columns="k", values=metric)
            if len(values) == SEEDS:
                found.setdefault(TITLES[world], {})[name] = values.to_numpy()
    return found


def _curves(tables: Tables) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Training curves for `curves_over_seeds`: mean, least and most over seeds, step by step."""
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for world in worlds(tables):
        curves = found.setdefault(TITLES.get(world, world), {})
        for name in FEW:
            rows = tables["curves"].query("world == @world and variant == @name")
            if len(rows):
                by_step = rows.groupby("step")[list(CURVES)].agg(["mean", "min", "max"])
                curves[name] = {"step": by_step.index.to_numpy()} | {
                    metric: by_step[metric].to_numpy() for metric in CURVES
                }
    return found


def _groups(tables: Tables) -> dict:
    """What changes -> variant -> panel -> k -> the difference to its control, for `forest`; a panel per metric."""
    groups: dict = {}
    for world in worlds(tables):
        for row in ablation_rows(tables, world).itertuples():
            panels = groups.setdefault(row.changes, {}).setdefault(row.variant, {})
            panels.setdefault(f"{world} {row.metric}", {})[row.k] = (row.mean, row.low, row.high)
    return groups


def _ablations(tables: Tables, groups: Mapping) -> Figure:
    """The ablations of all worlds in one figure: best@k and pass@k on tool calls, hypervolume in the maze."""
    from vpo_lab import show
    from vpo_lab.metrics import METRICS

    panels = {}
    for world in worlds(tables):
        metrics = [HEADLINE[world]] if HEADLINE.get(world) == "hypervolume" else shown(tables, world)
        title = TITLES.get(world, world).partition(":")[0]
        panels |= {f"{world} {metric}": f"{title}: {METRICS[metric]}" for metric in metrics}
    controls = {name: VARIANTS[name].control for variants in groups.values() for name in variants}
    usual = max(controls.values(), key=list(controls.values()).count)
    names = {name: label(name) + f"\nminus {label(control)}" * (control != usual) for name, control in controls.items()}
    return show.forest(groups, panels, f"minus {label(usual)}", names)


def _maze_examples(folder: Path) -> tuple[str, dict[str, list[str]]] | None:
    """A typical maze of examples.json, and what the policies answered to it; None if there is none."""
    examples = read_mazes(folder)
    if not examples:
        return None
    request, sets = next(iter(examples.items()))
    golds = {row["id"]: row["gold"] for row in get_task("maze").load(None, "test")}
    return golds[request], {name: sets[name]["answers"] for name in FEW if name in sets}


def _winner_regions(gold: str, answers: Mapping[str, list[str]]) -> Figure:
    """In one maze: who wins under which weighting, in each policy's set and among all walks."""
    from vpo_lab import show
    from vpo_lab.tasks.maze.world import OBJECTIVES, front, score

    kept = [OBJECTIVES.index(name) for name in ("gold", "diamond", "avoid_lava")]  # all 0 without the exit
    names = [name for name in ("grpo", "best_of_set", "vpo") if name in answers]
    sets = {name: np.array([score(text, gold) for text in answers[name]])[:, kept] for name in names}
    sets["all walks"] = front(gold)[:, kept]
    return show.winner_regions(sets, [OBJECTIVES[d].replace("_", " ") for d in kept])


# --- The worlds of code -------------------------------------------------------

SEARCHES = {"tiny_code": "The policy sees the request alone", "tiny_repair": "It sees the program and its failed tests"}
SEARCHED = ("sft", "grpo", "grpo@1.5", "grpo_kl0.2", "max_at_k", "best_of_set", "vpo")


def draw_code_figures(folder: Path, out: Path) -> list[Path]:
    """Draw what the experiment on code shows: tests covered by k answers, and problems solved by a search."""
    import matplotlib

    matplotlib.use("Agg")

    from vpo_lab import show

    tables = read(folder)
    summary = as_summary(tables, "tiny_code", [name for name in SEARCHED if "@" not in name])
    solved = {
        title: {name: at for name, at in solved_at(tables, world).items() if name in SEARCHED}
        for world, title in SEARCHES.items()
        if world in worlds(tables)
    }
    seeds = sorted({len(solved_SN) for by_name in solved.values() for solved_SN in by_name.values()})
    subject = f"{' to '.join(map(str, seeds))} training seeds, 30 held-out requests each"
    figures = {
        "code_covered": show.budget_curves(summary, "covered"),
        "code_search": show.searches(solved, SEARCH_BUDGETS, subject),
    }
    return save_figures(figures, out)


# --- The worlds of judges -----------------------------------------------------


TASTES = {"tiny_judges": "Independent tastes", "tiny_judges_opposed": "Opposed tastes"}
HACKED = ("tiny_judges_own_flaws", *FLAWED)  # the first of these that was measured: all remedies were tried there


def draw_judges_figures(folder: Path, out: Path) -> list[Path]:
    """Draw what KL buys, how a flawed reward is hacked and what helps, from the CSV files of these worlds."""
    import matplotlib

    matplotlib.use("Agg")

    from vpo_lab import show
    from vpo_lab.course import tastes

    tables, figures = tastes.read_judges(folder), {}
    measured = set(tables["truths"].world)
    panels = {
        f"{title}, k = {k}\nwhat people get": _exact_and_trained(tables, world, k)
        for world, title in TASTES.items()
        for k in (tastes.BUDGETS[0], tastes.BUDGETS[-1])
        if world in measured
    }
    if panels:
        seeds = tables["truths"].query("world in @TASTES").seed.nunique()
        subject = f"curves: exact optima; rings: where a price per token settles; dots: {seeds} trainings each"
        figures["judges_kl"] = show.exact_and_trained(panels, subject=subject)
    if flawed := next((world for world in HACKED if world in measured), ""):
        figures["judges_hacking"] = show.proxy_and_truth(_along(tables, flawed))
        figures["judges_remedies"] = show.remedies(tastes.remedies(tables, flawed), "what people get of 24 answers")
    return save_figures(figures, out)


def _exact_and_trained(tables: Tables, world: str, k: int) -> dict[str, dict[str, np.ndarray]]:
    """A panel of `show.exact_and_trained`: what the picked answer is really worth against KL."""
    from vpo_lab.course.tastes import over_seeds

    panel: dict[str, dict[str, np.ndarray]] = {"curves": {}, "marks": {}, "dots": {}}
    exact = tables["exact"].query("world == @world and k == @k")
    trained = tables["truths"].query("world == @world and k == @k and price > 0 and not doubted")
    for method in PRICED:
        mine = exact[exact.method == method]
        if len(curve := mine.query("kind == 'optimum'").sort_values("kl")):
            panel["curves"][method] = curve[["kl", "truth"]].to_numpy()
        if len(marks := mine.query("kind == 'settled'")):
            panel["marks"][method] = marks[["kl", "truth"]].to_numpy()
        parts = [part for _, part in trained[trained.method == method].groupby("price")]
        if parts:
            panel["dots"][method] = np.array([[part.kl.mean(), *over_seeds(part, "truth")] for part in parts])
    return panel


def _along(tables: Tables, world: str) -> dict[str, dict[str, np.ndarray]]:
    """Proxy and truth of a rollout against the KL spent, at the lowest price: for `show.proxy_and_truth`.

    Steps of about the same KL, within half a nat, make one point of each seed: seeds find a flaw at different
    steps. The band goes from the least seed to the most.
    """
    rows = tables["curves"].query("world == @world and price > 0 and not doubted")
    rows = rows.assign(kl=(rows.kl_answer * 2).round() / 2)
    runs = {}
    for method in PRICED:
        mine = rows[rows.method == method]
        mine = mine[mine.price == mine.price.min()].groupby(["kl", "seed"])[["set_reward", "truth"]].mean()
        if len(mine):
            points = mine.groupby("kl").agg(["mean", "min", "max"])
            bands = {kind: points[name].to_numpy() for kind, name in (("proxy", "set_reward"), ("truth", "truth"))}
            runs[method] = {"kl": points.index.to_numpy(), **bands}
    return runs


# --- Files --------------------------------------------------------------------


def save_figures(figures: Mapping[str, Figure], out: Path) -> list[Path]:
    """Write each figure as OUT/NAME.png, the same bytes for the same figure; return the paths."""
    paths = []
    for name, figure in figures.items():
        drawn = io.BytesIO()
        # No date in the file: the same results give the same bytes. A white margin: a card on a dark page.
        figure.savefig(drawn, format="png", dpi=120, bbox_inches="tight", pad_inches=0.2, metadata={"Software": None})
        write_bytes(out / f"{name}.png", small_png(drawn.getvalue()))
        paths.append(out / f"{name}.png")
    return paths


def small_png(png: bytes) -> bytes:
    """Return the picture in 256 colours: to the eye the same, and a third of the bytes where bands overlap."""
    from PIL import Image

    small = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()
