"""What a finished run says: a table in the terminal, figures on disk. Reads saved results only."""

from __future__ import annotations

import io
from pathlib import Path

from vpo_lab.storage import read_json, write_bytes
from vpo_lab.training import read_log

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
    console.print(f"summary: {path}", soft_wrap=True)


def load_logs(folder: Path) -> dict[str, list[dict]]:
    """The training logs below a run or results folder, by stage."""
    return {stage.parent.name: read_log(stage.parent) for stage in sorted(Path(folder).glob("*/log.jsonl"))}


def draw_figures(results: Path, out: Path) -> list[Path]:
    """Draw the figures of README and docs from saved results; returns the paths of the PNG files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from vpo_lab import plots

    summary, logs = read_json(results / "summary.json"), load_logs(results)
    rl_logs = {name: log for name, log in logs.items() if name != "sft"}
    figures = {
        "headline": plots.headline(summary),
        "best_at_k": plots.budget_curves(summary, "best"),
        "pass_at_k": plots.budget_curves(summary, "pass"),
        "expected_utility": plots.budget_curves(summary, "eum"),
        "tokens": plots.tokens_curve(summary),
        "position_quality": plots.position_quality(summary),
        "training_curves": plots.training_curves(rl_logs, ["set_reward", "mean_reward", "best_of_group"]),
        "collapse": plots.collapse(rl_logs),
    }
    paths = []
    for name, figure in figures.items():
        image = io.BytesIO()
        # No date in the file: the same results give the same bytes.
        figure.savefig(image, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        write_bytes(out / f"{name}.png", image.getvalue())
        paths.append(out / f"{name}.png")
    return paths
