"""The pictures in figures/, drawn from saved results without training."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.course.experiment import FLAWED, JUDGED, PRICED, SEEDS, VARIANTS, label, read_examples
from vpo_lab.course.results import (
    BASE,
    HEADLINE,
    METHODS,
    Tables,
    ablation_rows,
    as_summary,
    metrics,
    read,
    solved_at,
    worlds,
)
from vpo_lab.files import read_json, write_bytes
from vpo_lab.runs import Run
from vpo_lab.search.evolution import BUDGETS as SEARCH_BUDGETS
from vpo_lab.search.pool import Pool
from vpo_lab.tasks import get_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = tuple(name for name in METHODS if name not in VARIANTS or VARIANTS[name].seeds == SEEDS)
FEW = ("sft", "grpo", "max_at_k", "multi_rlvr", "best_of_set_credit", "vpo", "vpo_credit", "vpo_search")  # headline
GRID = {"tiny": ("best", "pass"), "maze": ("best", "eum", "hypervolume")}
CURVES = ("distinct_rollouts", "entropy", "best_of_group")


def load_logs(folder: Path) -> dict[str, list[dict]]:
    """Return the training logs below a run or results folder, by stage."""
    return {log.parent.name: Run(folder).log(log.parent.name) for log in sorted(Path(folder).glob("*/log.jsonl"))}


def draw_figures(results: Path, out: Path) -> list[Path]:
    """Draw the figures of one run from its saved results; return the paths. What needs pools waits for them."""
    import matplotlib

    matplotlib.use("Agg")

    from vpo_lab import show

    summary, logs = read_json(results / "summary.json"), load_logs(results)
    rl_logs = {name: log for name, log in logs.items() if name != "sft"}
    paths = {name: Run(results).pool(name) for name in ("sft_chain", *list(summary["methods"])[2:])}
    pools = {name: Pool.load(path) for name, path in paths.items() if path.exists()}
    figures = {
        "mechanism": show.mechanism(),
        "headline": show.headline(summary),
        "training_curves": show.training_curves(rl_logs, ["set_reward", "mean_reward", "best_of_group"]),
        "collapse": show.collapse(rl_logs),
        "advantage_heatmap": _judged_group(pools["sft_chain"]) if "sft_chain" in pools else None,
        "fronts": _fronts(pools) if len(pools) == len(paths) else None,
    }
    return save_figures({name: figure for name, figure in figures.items() if figure}, out)


def _judged_group(pool: Pool) -> Figure | None:
    """The first request whose chains GRPO and VPO both tell apart, under both; None where there is none."""
    from vpo_lab import show

    number = show.group_with_signal(pool.rewards_NCMD)
    if number is None:
        return None
    rewards_GMD = pool.rewards_NCMD[number]
    subject = f"{pool.ids[number]}: {len(rewards_GMD)} chains of {pool.m} answers by the SFT start, as one group"
    return show.judged_group(rewards_GMD, pool.objectives, subject=subject)


def _fronts(pools: Mapping[str, Pool]) -> Figure | None:
    """The pools, cut into sets of a chain's size, by the tool's name and the values, else by the first objectives."""
    from vpo_lab import show

    objectives, requests = next((pool.objectives, len(pool.ids)) for pool in pools.values())
    if len(objectives) < 2:
        return None
    named = [objectives.index(name) for name in ("tool_name", "param_value") if name in objectives]
    dims = named if len(named) == 2 else [0, 1]
    size, sets = max(pool.m for pool in pools.values()), {}
    for name, pool in pools.items():
        rewards_Nn2 = pool.rewards_NCMD[..., dims].reshape(len(pool.ids), -1, 2)
        whole = rewards_Nn2.shape[1] // size * size
        sets[name] = rewards_Nn2[:, :whole].reshape(-1, size, 2)
    subject = f"{requests} held-out requests, sets of {size} answers"
    return show.fronts(sets, [objectives[d].replace("_", " ") for d in dims], subject=subject)


# --- An experiment ------------------------------------------------------------


def draw_experiment_figures(folder: Path, out: Path) -> list[Path]:
    """Draw what the experiment's CSV files show so far; return the paths of the PNG files."""
    import matplotlib

    matplotlib.use("Agg")

    from vpo_lab import show
    from vpo_lab.tasks.maze import draw

    tables = read(folder)
    figures: dict[str, Figure] = {}
    panels = {world: (as_summary(tables, world, FEW), HEADLINE.get(world, "best")) for world in worlds(tables)}
    if panels := {world: panel for world, panel in panels.items() if panel[0]["methods"]}:
        figures["headline"] = show.worlds(panels, _subject(tables, panels))
    for world in worlds(tables):
        summary, told = as_summary(tables, world, DRAWN), metrics(tables, world)
        grid = [metric for metric in GRID.get(world, ("best", "pass", "eum")) if metric in told]
        if not summary["methods"]:
            continue
        figures[world] = show.budget_grid(summary, grid)
        if curves := _curves(tables, world):
            figures[f"collapse_{world}"] = show.curves_over_seeds(curves, CURVES)
        if groups := _groups(tables, world):
            compared = [metric for metric in dict.fromkeys((*grid, "eum")) if metric in told and metric != "pass"]
            names = {name: label(name) for group in groups.values() for name in group}
            figures[f"ablations_{world}"] = show.forest(groups, compared, BASE, names)
        if world == "maze":
            figures["maze_paths"] = _some_maze()
    if sets := _maze_examples(folder):
        figures["maze_sets"] = draw.maze_sets(*sets)
        figures["winner_regions"] = _winner_regions(*sets)
    return save_figures({f"experiment_{name}": figure for name, figure in figures.items()}, out)


def _subject(tables: Tables, worlds: Mapping[str, object]) -> str:
    rows = tables["intervals"].query("world in @worlds and variant in @FEW and minus == ''")
    count = " to ".join(map(str, sorted({rows.seeds.min(), rows.seeds.max()})))
    return f"{count} training seeds on the same test requests; band: 95%, seeds and requests both resampled"


def _curves(tables: Tables, world: str) -> dict[str, dict[str, np.ndarray]]:
    """Training curves for `curves_over_seeds`: mean, least and most over seeds, step by step."""
    curves = {}
    for name in DRAWN:
        rows = tables["curves"].query("world == @world and variant == @name")
        if len(rows):
            by_step = rows.groupby("step")[list(CURVES)].agg(["mean", "min", "max"])
            curves[name] = {"step": by_step.index.to_numpy()} | {
                metric: by_step[metric].to_numpy() for metric in CURVES
            }
    return curves


def _groups(tables: Tables, world: str) -> dict:
    """What changes -> variant -> metric -> k -> the difference to BASE, for `forest`."""
    groups: dict = {}
    for row in ablation_rows(tables, world).itertuples():
        metrics = groups.setdefault(row.changes, {}).setdefault(row.variant, {})
        metrics.setdefault(row.metric, {})[row.k] = (row.mean, row.low, row.high)
    return groups


def _some_maze() -> Figure:
    """The test maze with the most Pareto-optimal rewards, and a shortest walk for each."""
    from vpo_lab.tasks.maze import draw
    from vpo_lab.tasks.maze.world import best_paths, front

    gold = max((row["gold"] for row in get_task("maze").load(None, "test")), key=lambda gold: len(front(gold)))
    return draw.maze_paths(gold, best_paths(gold))


def _maze_examples(folder: Path) -> tuple[str, dict[str, list[str]]] | None:
    """The first maze of examples.json, and what the policies answered to it; None if there is none."""
    examples = read_examples(folder, "maze")
    if not examples:
        return None
    request, sets = next(iter(examples.items()))
    golds = {row["id"]: row["gold"] for row in get_task("maze").load(None, "test")}
    return golds[request], {name: sets[name]["answers"] for name in DRAWN if name in sets}


def _winner_regions(gold: str, answers: Mapping[str, list[str]]) -> Figure:
    """In one maze: who wins under which weighting, before training, after it, and among all walks."""
    from vpo_lab import show
    from vpo_lab.tasks.maze.world import OBJECTIVES, front, score

    kept = [OBJECTIVES.index(name) for name in ("gold", "diamond", "avoid_lava")]  # all 0 without the exit
    names = [name for name in ("sft_chain", "grpo", "best_of_set_credit", "vpo_credit") if name in answers]
    sets = {name: np.array([score(text, gold) for text in answers[name]])[:, kept] for name in names}
    sets["all walks"] = front(gold)[:, kept]
    return show.winner_regions(sets, [OBJECTIVES[d].replace("_", " ") for d in kept])


# --- The worlds of code -------------------------------------------------------

SEARCHED = ("sft", "grpo", "grpo@1.5", "grpo_kl0.2", "max_at_k", "best_of_set", "vpo")


def draw_code_figures(folder: Path, out: Path) -> list[Path]:
    """Draw what the experiment on code shows: tests covered by k answers, and problems solved by a search."""
    import matplotlib

    matplotlib.use("Agg")

    from vpo_lab import show

    tables = read(folder)
    summary = as_summary(tables, "tiny_code", [name for name in SEARCHED if "@" not in name])
    figures = {"tiny_code_covered": show.budget_curves(summary, "covered")}
    for world in worlds(tables):
        solved = {name: at for name, at in solved_at(tables, world).items() if name in SEARCHED}
        seeds = sorted({len(solved_SN) for solved_SN in solved.values()})
        subject = f"{world}: {' to '.join(map(str, seeds))} training seeds, 30 held-out requests each"
        figures[f"{world}_search"] = show.solved_curves(solved, SEARCH_BUDGETS, subject)
    return save_figures(figures, out)


# --- The worlds of judges -----------------------------------------------------


def draw_judges_figures(folder: Path, out: Path) -> list[Path]:
    """Draw the study of KL and hacking from its CSV files: optima as curves, trained policies as dots."""
    import matplotlib

    matplotlib.use("Agg")

    from vpo_lab import show
    from vpo_lab.course import tastes

    tables = tastes.read_judges(folder)
    measured = [world for world in JUDGED if world in set(tables["truths"].world)]
    rhos = tuple(np.round(np.linspace(-0.9, 1.0, 20), 2))
    figures = {
        "tiny_judges_dial": show.dial(tastes.dial_values(rhos), rhos, "two answers, each method at its best price")
    }
    for world in measured:
        title = {k: f"k = {k}: what people get" for k in tastes.BUDGETS}
        panels = {title[k]: _exact_and_trained(tables, world, k) for k in tastes.BUDGETS}
        seeds = tables["truths"].query("world == @world").seed.nunique()
        subject = f"{world}: curves are exact optima, dots {seeds} trainings each (least to most)"
        figures[f"{world}_kl"] = show.exact_and_trained(panels, subject=subject)
        if world in FLAWED:
            figures[f"{world}_truth"] = show.proxy_and_truth(_along(tables, world), subject=world)
            figures[f"{world}_remedies"] = show.remedies(
                tastes.remedies(tables, world), "what people get of 24 answers", world
            )
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
    """Proxy and truth of a rollout along the training at the lowest price, over seeds: for `show.proxy_and_truth`."""
    rows = tables["curves"].query("world == @world and price > 0 and not doubted")
    runs = {}
    for method in PRICED:
        mine = rows[rows.method == method]
        mine = mine[mine.price == mine.price.min()].groupby("step")
        if len(mine):
            bands = {
                kind: mine[column].agg(["mean", "min", "max"]).to_numpy()
                for kind, column in (("proxy", "set_reward"), ("truth", "truth"))
            }
            runs[method] = {"kl": mine.kl_answer.mean().to_numpy(), **bands}
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
