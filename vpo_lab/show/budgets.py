"""Draw what a budget of k candidates buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.metrics import METRIC_TITLES
from vpo_lab.show.style import (
    METHOD_STYLE,
    draw_band,
    label_ends,
    log2_axis,
    method_label,
    method_style,
    new_axes,
    styled,
    write_subject,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _budgets(summary: dict) -> list[int]:
    methods = summary.get("methods")
    if not methods:
        raise LabError("the summary has no methods: run 05 (or `vpo-lab run`) to write it")
    return [int(k) for k in next(iter(methods.values()))["k"]]


def _check_metric(metric: str) -> None:
    if metric not in METRIC_TITLES:
        raise LabError(f"unknown metric {metric!r}: choose one of {', '.join(METRIC_TITLES)}")


def _draw_budget(axes: Axes, summary: dict, metric: str, runs: Mapping[str, np.ndarray] | None = None) -> None:
    """Draw a metric against k; a method with `runs` (S, K) has a thin line for each training in place of its band."""
    _check_metric(metric)
    budgets, ends = _budgets(summary), []
    for name, method in summary["methods"].items():
        intervals = [method["k"][str(k)][metric] for k in budgets]
        if runs and name in runs:
            axes.plot(budgets, np.asarray(runs[name]).T, color=method_style(name)["color"], linewidth=0.7, alpha=0.55)
            intervals = [[mean] * 3 for mean, *_ in intervals]
        ends.append(draw_band(axes, budgets, intervals, name))
    ceiling = summary.get("ceiling") or {}
    limits = [ceiling.get(str(k), {}).get(metric, np.nan) for k in budgets]
    if np.isfinite(limits).any():
        axes.plot(budgets, limits, color="#222222", linewidth=1.2, linestyle=(0, (6, 3)))
        ends.append((limits[-1], "ceiling", "#222222"))
    log2_axis(axes, budgets, "k, candidates")
    axes.set_xticks(budgets, [str(k) for k in budgets])
    axes.set_title(METRIC_TITLES[metric])
    label_ends(axes, ends)


@styled
def budget_curves(summary: dict, metric: str = "best") -> Figure:
    """Draw one metric against the budget k: every method with its interval, and the task's ceiling.

    summary: what `search.summarize` returns; metric: a name in METRICS. LabError for another one.
    """
    figure, (axes,) = new_axes(width=6.2, height=3.8)
    _draw_budget(axes, summary, metric)
    axes.set_xlabel("k, candidates (band: 95%)")
    return figure


@styled
def headline(summary: dict) -> Figure:
    """Draw best@k and pass@k side by side: the whole comparison in one picture."""
    figure, axes = new_axes(2, width=9.6, height=4.0)
    for one, metric in zip(axes, ("best", "pass"), strict=True):
        _draw_budget(one, summary, metric)
    parts = [f"profile {summary['profile']}"] if "profile" in summary else []
    parts += [f"{summary['requests']} held-out requests"] if "requests" in summary else []
    parts += [f"band: {summary['interval']}"] if "interval" in summary else []
    write_subject(figure, ", ".join(parts))
    return figure


@styled
def tokens_curve(summary: dict, metric: str = "best") -> Figure:
    """Draw a metric against the tokens that the budget costs: k alone favours chains, which are longer."""
    figure, (axes,) = new_axes(width=6.2, height=3.8)
    _draw_tokens(axes, summary, metric)
    return figure


def _draw_tokens(axes: Axes, summary: dict, metric: str) -> None:
    _check_metric(metric)
    budgets = _budgets(summary)
    ends, spent = [], []
    for name, method in summary["methods"].items():
        tokens = [max(method["k"][str(k)]["tokens"], 1e-9) for k in budgets]
        spent += tokens
        ends.append(draw_band(axes, tokens, [method["k"][str(k)][metric] for k in budgets], name))
    log2_axis(axes, spent, f"tokens written for a request (points: k = {', '.join(map(str, budgets))})")
    low, high = axes.get_xlim()
    powers = 2.0 ** np.arange(np.ceil(np.log2(low)), np.floor(np.log2(high)) + 1)
    axes.set_xticks(powers, [f"{power:g}" for power in powers])  # 512 rather than 2^9
    axes.set_title(METRIC_TITLES[metric])
    label_ends(axes, ends)


@styled
def worlds(
    panels: Mapping[str, tuple[dict, str]],
    subject: str = "",
    runs: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> Figure:
    """Draw summaries of tasks side by side: title -> (summary, the metric to draw).

    runs: title -> method -> (S, K), the metric of each of S trainings at the K budgets, drawn as thin lines in place
    of the method's band. LabError without a summary, or for an unknown metric.
    """
    if not panels:
        raise LabError("no world to draw: give at least one summary and its metric")
    figure, axes = new_axes(len(panels), width=max(5.4 * len(panels), 6.4), height=4.2)
    for one, (title, (summary, metric)) in zip(axes, panels.items(), strict=True):
        _draw_budget(one, summary, metric, (runs or {}).get(title))
        one.set_title(f"{title}\n{METRIC_TITLES[metric]}")
    write_subject(figure, subject)
    return figure


FOREST_MARKERS = (("o", "white"), ("D", None), ("s", "white"), ("^", None))  # of the budgets in turn; None: filled


@styled
def forest(
    groups: Mapping[str, Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]]],
    panels: Mapping[str, str],
    x_label: str,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw paired differences of many variants to another, in groups: a dot and an interval per budget.

    groups: heading -> variant -> panel -> k -> [mean, low, high] of the difference, or nothing.
    panels: panel -> its title. labels: variant -> what to call it. LabError without a variant or a panel.
    """
    from matplotlib.lines import Line2D

    labels = labels or {}
    rows = [row for group, variants in groups.items() for row in ((group, ""), *((group, name) for name in variants))]
    if not panels or not any(name for _, name in rows):
        raise LabError("no variant to compare: the forest is empty")
    budgets = sorted({k for group in groups.values() for by in group.values() for p in panels for k in by.get(p, {})})
    width, height = 2.0 + 3.4 * len(panels), 1.5 + 0.3 * len(rows)
    figure, axes_P = new_axes(len(panels), width=width, height=height)
    for column, (axes, (panel, title)) in enumerate(zip(axes_P, panels.items(), strict=True)):
        for y, (group, name) in enumerate(rows):
            for number, k in enumerate(budgets):
                if name and k in groups[group][name].get(panel, {}):
                    _forest_dot(axes, groups[group][name][panel][k], y, number, len(budgets), name)
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
        axes.set_title(title)
        axes.set_xlabel(x_label)
    for label, (_, name) in zip(axes_P[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("normal" if name else "bold")
    style = {"color": "#444444", "linestyle": ""}
    handles = [
        Line2D([], [], marker=marker, markerfacecolor=face or "#444444", label=f"k = {k}", **style)
        for k, (marker, face) in zip(budgets, FOREST_MARKERS, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _forest_dot(axes: Axes, interval: Sequence[float], row: int, number: int, budgets: int, name: str) -> None:
    mean, low, high = interval
    marker, face = FOREST_MARKERS[number % len(FOREST_MARKERS)]
    color = method_style(name)["color"] if name in METHOD_STYLE else "#0072B2"
    y = row + 0.3 * (number - (budgets - 1) / 2)
    axes.hlines(y, low, high, color=color, linewidth=1.6)
    axes.plot([mean], [y], marker=marker, markerfacecolor=face or color, markeredgecolor=color, linestyle="")


@styled
def position_quality(summary: dict) -> Figure:
    """Draw the mean quality of the first, second, ... answer of a chain; single answers as a level line."""
    methods = summary["methods"]
    longest = max(len(method["quality_by_position"]) for method in methods.values())
    figure, (axes,) = new_axes(width=5.8, height=3.6)
    ends = []
    for name, method in methods.items():
        quality = method["quality_by_position"]
        if len(quality) > 1:
            ends.append(draw_band(axes, range(1, len(quality) + 1), quality, name))
        else:  # one answer at a time: the same at every position
            ends.append(draw_band(axes, [0.8, longest + 0.2], quality * 2, name, marker=""))
    axes.set_xticks(range(1, longest + 1))
    axes.set_xlim(0.8, longest + 0.2)
    axes.set_xlabel("position in the chain")
    axes.set_title("mean of the objectives, by position")
    label_ends(axes, ends)
    return figure


@styled
def paired_differences(summary: dict, metrics: Sequence[str] = ("best", "pass")) -> Figure:
    """Draw VPO minus each other method on the same requests; an interval that touches 0 decides nothing.

    LabError without a "vpo" pool beside another one.
    """
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
    """Draw how different the candidates of a request are: in their rewards and in their texts."""
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
