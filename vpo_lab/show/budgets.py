"""Draw what a budget of k candidates buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.metrics import METRIC_TITLES
from vpo_lab.show.style import (
    METHOD_STYLE,
    new_axes,
    draw_band,
    label_ends,
    log2_axis,
    styled,
    method_label,
    method_style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# --- Results: what a budget of k candidates buys --------------------------------------------------


def _budgets(summary: dict) -> list[int]:
    methods = summary.get("methods")
    if not methods:
        raise LabError("the summary has no methods: run 05 (or `vpo-lab run`) to write it")
    return [int(k) for k in next(iter(methods.values()))["k"]]


def _draw_budget(axes: Axes, summary: dict, metric: str) -> None:
    budgets = _budgets(summary)
    ends = []
    for name, method in summary["methods"].items():
        ends.append(draw_band(axes, budgets, [method["k"][str(k)][metric] for k in budgets], name))
    ceiling = summary.get("ceiling") or {}
    limits = [ceiling.get(str(k), {}).get(metric, np.nan) for k in budgets]
    if np.isfinite(limits).any():
        axes.plot(budgets, limits, color="#222222", linewidth=1.2, linestyle=(0, (6, 3)))
        ends.append((limits[-1], "ceiling", "#222222"))
    log2_axis(axes, budgets, "k, candidates")
    axes.set_xticks(budgets, [str(k) for k in budgets])
    axes.set_title(METRIC_TITLES.get(metric, metric))
    label_ends(axes, ends)


def _check_metric(metric: str) -> None:
    if metric not in METRIC_TITLES:
        raise LabError(f"unknown metric {metric!r}: choose one of {', '.join(METRIC_TITLES)}")


@styled
def budget_curves(summary: dict, metric: str = "best") -> Figure:
    """One metric against the budget k, every method with its interval, and the world's ceiling.

    summary: what `evaluation.summarize` returns; metric "best", "pass" or "eum".
    """
    _check_metric(metric)
    figure, (axes,) = new_axes(width=6.2, height=3.8)
    _draw_budget(axes, summary, metric)
    axes.set_xlabel("k, candidates (band: 95%)")
    return figure


@styled
def headline(summary: dict) -> Figure:
    """best@k and pass@k side by side: the whole comparison in one picture."""
    figure, axes = new_axes(2, width=9.6, height=4.0)
    for one, metric in zip(axes, ("best", "pass"), strict=True):
        _draw_budget(one, summary, metric)
    if subject := _subject(summary):
        figure.suptitle(subject, x=0.01, ha="left", fontsize=10, color="#555555")
    return figure


def _subject(summary: dict) -> str:
    """What was measured, in the summary's own words."""
    parts = [f"profile {summary['profile']}"] if "profile" in summary else []
    parts += [f"{summary['requests']} held-out requests"] if "requests" in summary else []
    parts += [f"band: {summary['interval']}"] if "interval" in summary else []
    return ", ".join(parts)


@styled
def tokens_curve(summary: dict, metric: str = "best") -> Figure:
    """The same metric against the tokens that the budget costs: chains are longer, so k alone flatters them."""
    _check_metric(metric)
    figure, (axes,) = new_axes(width=6.2, height=3.8)
    _draw_tokens(axes, summary, metric)
    return figure


def _draw_tokens(axes: Axes, summary: dict, metric: str) -> None:
    budgets = _budgets(summary)
    ends, spent = [], []
    for name, method in summary["methods"].items():
        tokens = [max(method["k"][str(k)]["tokens"], 1e-9) for k in budgets]
        spent += tokens
        ends.append(draw_band(axes, tokens, [method["k"][str(k)][metric] for k in budgets], name))
    log2_axis(axes, spent, f"tokens written for a request (points: k = {', '.join(map(str, budgets))})")
    _plain_powers(axes, spent)
    axes.set_title(METRIC_TITLES[metric])
    label_ends(axes, ends)


def _plain_powers(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at powers of two inside the data, written as numbers."""
    powers = 2.0 ** np.arange(np.floor(np.log2(min(values))), np.ceil(np.log2(max(values))) + 1)
    low, high = axes.get_xlim()
    powers = powers[(powers >= low) & (powers <= high)]
    axes.set_xticks(powers, [f"{power:g}" for power in powers])


@styled
def worlds(panels: Mapping[str, tuple[dict, str]], subject: str = "") -> Figure:
    """Worlds side by side: what to call each -> (its summary, the metric that counts there)."""
    if not panels:
        raise LabError("no world to draw: give at least one summary and its metric")
    figure, axes = new_axes(len(panels), width=max(5.4 * len(panels), 6.4), height=4.2)
    for one, (name, (summary, metric)) in zip(axes, panels.items(), strict=True):
        _check_metric(metric)
        _draw_budget(one, summary, metric)
        one.set_title(f"{name}\n{METRIC_TITLES[metric]}")
    if subject:
        figure.suptitle(subject, x=0.01, ha="left", fontsize=10, color="#555555")
    return figure


@styled
def budget_grid(summary: dict, metrics: Sequence[str]) -> Figure:
    """Every metric against the candidates k (above) and against the tokens they cost (below)."""
    figure, panels = new_axes(len(metrics), 2, width=5.5 * len(metrics), height=7.8)
    for column, metric in enumerate(metrics):
        _check_metric(metric)
        _draw_budget(panels[column], summary, metric)
        _draw_tokens(panels[len(metrics) + column], summary, metric)
    return figure


FOREST_MARKERS = (("o", "white"), ("D", None), ("s", "white"), ("^", None))  # one for each budget; None: filled


@styled
def forest(
    groups: Mapping[str, Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]]],
    metrics: Sequence[str],
    other: str,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw paired differences of many variants to one other, grouped: a dot and an interval for each budget.

    groups: heading -> variant -> metric -> k -> [mean, low, high] of the difference; what is missing
    stays empty. `other`: whom they are compared with, the line at 0. `labels`: names of variants.
    """
    labels = labels or {}
    rows = [row for group, variants in groups.items() for row in ((group, ""), *((group, name) for name in variants))]
    if not any(name for _, name in rows):
        raise LabError("no variant to compare: the forest is empty")
    budgets = sorted({k for group in groups.values() for by in group.values() for m in metrics for k in by.get(m, {})})
    width, height = 2.0 + 3.9 * len(metrics), 1.5 + 0.3 * len(rows)
    figure, panels = new_axes(len(metrics), width=width, height=height)
    for column, (axes, metric) in enumerate(zip(panels, metrics, strict=True)):
        _check_metric(metric)
        for y, (group, name) in enumerate(rows):
            for number, k in enumerate(budgets):
                if name and k in groups[group][name].get(metric, {}):
                    _forest_dot(axes, groups[group][name][metric][k], y, number, len(budgets), name)
        axes.axvline(0, color="#222222", linewidth=1)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        names = [labels.get(name, method_label(name)) if name else group for group, name in rows]
        axes.set_yticks(range(len(rows)), names if column == 0 else [""] * len(rows))
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)
        for y, (_, name) in enumerate(rows):
            if not name:
                axes.axhline(y, color="#F2F2F2", linewidth=14, zorder=0)
        axes.set_title(METRIC_TITLES[metric])
        axes.set_xlabel(f"difference to {method_label(other)}")
    for label, (_, name) in zip(panels[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("normal" if name else "bold")
    _forest_legend(figure, budgets)
    return figure


def _forest_dot(axes: Axes, interval: Sequence[float], row: int, number: int, budgets: int, name: str) -> None:
    mean, low, high = interval
    marker, face = FOREST_MARKERS[number % len(FOREST_MARKERS)]
    color = method_style(name)["color"] if name in METHOD_STYLE else "#0072B2"
    y = row + 0.3 * (number - (budgets - 1) / 2)
    axes.hlines(y, low, high, color=color, linewidth=1.6)
    axes.plot([mean], [y], marker=marker, markerfacecolor=face or color, markeredgecolor=color, linestyle="")


def _forest_legend(figure: Figure, budgets: Sequence[int]) -> None:
    from matplotlib.lines import Line2D

    style = {"color": "#444444", "linestyle": ""}
    handles = [
        Line2D([], [], marker=marker, markerfacecolor=face or "#444444", label=f"k = {k}", **style)
        for k, (marker, face) in zip(budgets, FOREST_MARKERS, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


@styled
def position_quality(summary: dict) -> Figure:
    """Mean quality of the first, second, ... answer of a chain; single answers as a level line."""
    methods = summary["methods"]
    longest = max(len(method["quality_by_position"]) for method in methods.values())
    figure, (axes,) = new_axes(width=5.8, height=3.6)
    ends = []
    for name, method in methods.items():
        quality = method["quality_by_position"]
        if len(quality) == 1:  # one answer at a time: the same at every position
            ends.append(_level(axes, quality[0], longest, name))
        else:
            ends.append(draw_band(axes, range(1, len(quality) + 1), quality, name))
    axes.set_xticks(range(1, longest + 1))
    axes.set_xlim(0.8, longest + 0.2)
    axes.set_xlabel("position in the chain")
    axes.set_title("mean of the objectives, by position")
    label_ends(axes, ends)
    return figure


def _level(axes: Axes, interval: Sequence[float], longest: int, name: str) -> tuple[float, str, str]:
    mean, low, high = interval
    style = {**method_style(name), "marker": ""}
    axes.fill_between([0.8, longest + 0.2], low, high, color=style["color"], alpha=0.13, linewidth=0, antialiased=False)
    axes.plot([0.8, longest + 0.2], [mean, mean], **style)
    return mean, method_label(name), style["color"]


@styled
def paired_differences(summary: dict, metrics: Sequence[str] = ("best", "pass")) -> Figure:
    """VPO less each other pool on the same requests: an interval that touches 0 decides nothing."""
    pairs = summary.get("paired_differences") or {}
    if not pairs:
        raise LabError("the summary has no paired differences: they need a 'vpo' pool beside another one")
    budgets = _budgets(summary)
    figure, panels = new_axes(len(metrics), width=4.8 * len(metrics), height=3.8)
    for axes, metric in zip(panels, metrics, strict=True):
        _check_metric(metric)
        ends = []
        for number, (pair, by_k) in enumerate(pairs.items()):
            other = pair.partition(" - ")[2]
            mean, low, high = np.array([by_k[str(k)][metric] for k in budgets], dtype=float).T
            style = method_style(other)
            dodge = 2 ** (0.09 * (number - (len(pairs) - 1) / 2))
            x = np.array(budgets) * dodge
            axes.vlines(x, low, high, color=style["color"], linewidth=1.6)
            axes.plot(x, mean, **style, alpha=0.9)
            ends.append((float(mean[-1]), method_label(other), style["color"]))
        axes.axhline(0, color="#222222", linewidth=1)
        log2_axis(axes, budgets, "k, candidates")
        axes.set_xlim(min(budgets) / 1.25, max(budgets) * 1.25)
        axes.set_xticks(budgets, [str(k) for k in budgets])
        axes.set_title(f"VPO minus another, {metric}@k" if metric != "eum" else "VPO minus another, expected utility")
        label_ends(axes, ends)
    return figure


@styled
def diversity(summary: dict) -> Figure:
    """How different the candidates of a request are: in what they earn and in what they say."""
    names = list(summary["methods"])
    figure, panels = new_axes(2, width=8.6, height=0.9 + 0.42 * len(names))
    fields = {"set_diversity": "mean L1 distance of reward vectors", "distinct_answers": "share of distinct answers"}
    for axes, (field, title) in zip(panels, fields.items(), strict=True):
        for row, name in enumerate(names):
            mean, low, high = summary["methods"][name][field]
            style = {**method_style(name), "linestyle": ""}
            axes.hlines(row, low, high, color=style["color"], linewidth=2)
            axes.plot([mean], [row], **style, markersize=8)
        axes.set_yticks(range(len(names)), [method_label(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.set_title(title)
    return figure
