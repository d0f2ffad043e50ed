"""Draw the curves of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.show.style import (
    LOG_LABEL,
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


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Return the centred running mean of (n,) values, (n,); at the ends over the values that there are."""
    values = np.asarray(values, dtype=float)
    kernel = np.ones(min(max(window, 1), len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


@styled
def training_curves(logs: Mapping[str, list[dict]], metrics: Sequence[str]) -> Figure:
    """Draw logged metrics against the step, one panel each: smoothed in front, raw and pale behind.

    logs: stage -> entries of `Run.log`. A stage without a metric is left out of its panel, and a panel
    without a stage out of the figure. LabError if nothing is left. The mean runs over a fifteenth of the steps.
    """
    known = {key for log in logs.values() for entry in log for key in entry}
    shown = [metric for metric in metrics if metric in known]
    if not shown:
        raise LabError(
            f"no log has {', '.join(metrics)}; they have: {', '.join(sorted(known - {'step'})) or 'nothing'}"
        )
    columns = 2 if len(shown) == 4 else min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure, panels = new_axes(columns, rows, width=max(3.7 * columns, 5.4), height=3.1 * rows)
    for axes, metric in zip(panels, shown, strict=False):
        ends = [_draw_log(axes, log, metric, name) for name, log in logs.items()]
        axes.set_title(LOG_LABEL.get(metric, metric))
        axes.set_xlabel("step")
        label_ends(axes, [end for end in ends if end])
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    return figure


def collapse(logs: Mapping[str, list[dict]]) -> Figure:
    """Draw how alike a policy's rollouts become in training: distinct texts, entropy, best of a group."""
    return training_curves(logs, ("distinct_rollouts", "entropy", "best_of_group"))


@styled
def curves_over_seeds(
    worlds: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], metrics: Sequence[str], subject: str = ""
) -> Figure:
    """Draw logged metrics against the step, a row for each world: the mean over seeds, and their range as a band.

    worlds: title -> method -> {"step": (n,), metric: (n, 3) of mean, least, most}; a method without a metric is left
    out. LabError without a world.
    """
    if not worlds:
        raise LabError("no curves to draw: give at least one world")
    figure, panels = new_axes(len(metrics), len(worlds), width=4.9 * len(metrics), height=3.4 * len(worlds))
    for number, (axes, (title, metric)) in enumerate(zip(panels, product(worlds, metrics), strict=True)):
        ends = []
        for name, curve in worlds[title].items():
            if metric in curve:
                steps, bands = curve["step"], np.asarray(curve[metric], dtype=float)
                smoothed = np.column_stack([smooth(column, len(steps) // 15) for column in bands.T])
                ends.append(draw_band(axes, steps, smoothed, name, markevery=max(1, len(steps) // 6)))
        axes.set_title(f"{title}\n{LOG_LABEL.get(metric, metric)}")
        axes.set_xlabel("step" if number >= len(panels) - len(metrics) else "")
        axes.margins(x=0.02)
        label_ends(axes, ends)
    write_subject(figure, subject)
    return figure


def _draw_log(axes: Axes, log: list[dict], metric: str, name: str) -> tuple[float, str, str] | None:
    points = [(entry["step"], entry[metric]) for entry in log if np.isfinite(entry.get(metric, np.nan))]
    if not points:
        return None
    steps, values = np.array(points, dtype=float).T
    style = method_style(name)
    smoothed = smooth(values, len(values) // 15)
    # Without antialiasing: smooth noise would make the picture three times as large.
    axes.plot(steps, values, color=style["color"], linewidth=0.7, alpha=0.25, antialiased=False)
    axes.plot(steps, smoothed, **{**style, "marker": "o" if len(points) == 1 else ""})
    return float(smoothed[-1]), method_label(name), style["color"]
