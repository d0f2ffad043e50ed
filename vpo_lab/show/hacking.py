"""Draw what KL buys and what a flawed reward costs: exact optima as curves, trained policies as dots on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.show.style import (
    INK,
    SOFT,
    draw_band,
    label_ends,
    method_label,
    method_style,
    new_axes,
    styled,
    write_subject,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Mapping[str, np.ndarray]  # method -> rows of numbers


@styled
def exact_and_trained(
    panels: Mapping[str, Mapping[str, Points]],
    x_label: str = "KL of an answer from the start (nats)",
    subject: str = "",
) -> Figure:
    """Draw optima as curves and trained policies as dots, a panel each: title -> {"curves": ..., "dots": ...}.

    curves: method -> (n, 2) of x and y, in the order of the price. dots: method -> (n, 4) of x, y, low, high. A method
    without dots has its curve alone. "marks" (n, 2), if given, are drawn as small rings: where a price per token
    settles. LabError without a panel.
    """
    if not panels:
        raise LabError("nothing to draw: give at least one panel")
    columns = 2 if len(panels) == 4 else len(panels)
    rows = len(panels) // columns
    figure, axes_P = new_axes(columns, rows, width=max(4.3 * columns, 6.0), height=4.0 * rows)
    for axes, (title, panel) in zip(axes_P, panels.items(), strict=True):
        ends = [_curve(axes, name, points) for name, points in panel.get("curves", {}).items()]
        for name, points in panel.get("marks", {}).items():
            x, y = np.asarray(points, dtype=float).T
            axes.scatter(
                x, y, s=26, facecolors="none", edgecolors=method_style(name)["color"], linewidths=0.9, zorder=3
            )
        for name, points in panel.get("dots", {}).items():
            _dots(axes, name, points)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.margins(x=0.03)
        label_ends(axes, ends)
    write_subject(figure, subject)
    return figure


def _curve(axes: Axes, name: str, points: np.ndarray) -> tuple[float, str, str]:
    x, y = np.asarray(points, dtype=float).T
    style = method_style(name)
    axes.plot(x, y, color=style["color"], linestyle=style["linestyle"], linewidth=1.6)
    return float(y[-1]), method_label(name), style["color"]


def _dots(axes: Axes, name: str, points: np.ndarray) -> None:
    x, y, low, high = np.asarray(points, dtype=float).T
    style = method_style(name)
    bars = np.maximum(np.stack([y - low, high - y]), 0.0)
    axes.errorbar(
        x, y, yerr=bars, fmt=style["marker"], color=style["color"], markeredgecolor="white", elinewidth=1.2, zorder=4
    )


@styled
def proxy_and_truth(runs: Mapping[str, Mapping[str, np.ndarray]], subject: str = "") -> Figure:
    """Draw the score that is trained and what people really think against the KL spent, a panel for each method.

    runs: method -> {"kl": (n,), "proxy": (n, 3) of mean, low, high, "truth": (n, 3)}. LabError without a method.
    """
    if not runs:
        raise LabError("nothing to draw: give at least one method")
    figure, axes_P = new_axes(len(runs), width=max(3.9 * len(runs), 6.0), height=3.6)
    low = min(float(np.min(run[kind])) for run in runs.values() for kind in ("proxy", "truth"))
    high = max(float(np.max(run[kind])) for run in runs.values() for kind in ("proxy", "truth"))
    for axes, (name, run) in zip(axes_P, runs.items(), strict=True):
        ends = []
        for kind, look in (("proxy", {"linestyle": (0, (4, 2)), "color": SOFT}), ("truth", {"linestyle": "-"})):
            look = {"color": method_style(name)["color"], "marker": ""} | look
            y, _, color = draw_band(axes, run["kl"], run[kind], name, **look)
            ends.append((y, kind, color))
        axes.set_ylim(low - 0.03, high + 0.03)
        axes.set_title(method_label(name))
        axes.set_xlabel("KL of an answer, in training (nats)")
        label_ends(axes, ends)
    write_subject(figure, subject)
    return figure


@styled
def dial(values: Mapping[str, np.ndarray], rhos: Sequence[float], title: str, subject: str = "") -> Figure:
    """Draw what each method is worth against how far people agree: method -> (n,), one for each correlation."""
    figure, (axes,) = new_axes(width=6.6, height=3.8)
    ends = []
    for name, value_n in values.items():
        style = method_style(name)
        axes.plot(rhos, value_n, markevery=max(1, len(rhos) // 8), **style)
        ends.append((float(value_n[-1]), method_label(name), style["color"]))
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.set_xlabel("correlation of the people: opposed pairs | independent | one taste")
    axes.set_title(title)
    label_ends(axes, ends)
    write_subject(figure, subject)
    return figure


@styled
def remedies(rows: Mapping[str, Points], title: str, subject: str = "") -> Figure:
    """Draw what each remedy leaves people with: remedy -> method -> (3,) of mean, low, high; a row for each remedy.

    LabError without a remedy.
    """
    if not rows:
        raise LabError("no remedy to draw: give at least one")
    figure, (axes,) = new_axes(width=7.4, height=0.9 + 0.55 * len(rows))
    methods = list(dict.fromkeys(name for row in rows.values() for name in row))
    for place, row in enumerate(rows.values()):
        for name, (mean, low, high) in row.items():
            style, shift = method_style(name), 0.18 * (methods.index(name) - (len(methods) - 1) / 2)
            label = method_label(name) if place == 0 else None
            bars = [[max(mean - low, 0.0)], [max(high - mean, 0.0)]]
            axes.errorbar(
                [mean],
                [place + shift],
                xerr=bars,
                fmt=style["marker"],
                color=style["color"],
                label=label,
                elinewidth=1.2,
            )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_title(title)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    write_subject(figure, subject)
    return figure
