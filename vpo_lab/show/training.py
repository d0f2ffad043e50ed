"""Draw the curves of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.show.style import LOG_LABEL, new_axes, draw_band, label_ends, styled, method_label, method_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# --- Training -----------------------------------------------------------------------------------


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Centred running mean, (n,) -> (n,); at the ends over what there is."""
    values = np.asarray(values, dtype=float)
    kernel = np.ones(min(max(window, 1), len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


@styled
def training_curves(logs: Mapping[str, list[dict]], metrics: Sequence[str], window: int = 0) -> Figure:
    """Logged metrics against the step, one panel each: smoothed in front, raw faint behind.

    logs: stage -> entries of `stages.read_log`; a stage without a metric is left out of its panel, and a panel
    without a stage out of the figure. LabError if nothing is left.
    window: steps of the running mean, 0 for a fifteenth of the run.
    """
    return _panels(logs, {metric: LOG_LABEL.get(metric, metric) for metric in metrics}, window)


@styled
def collapse(logs: Mapping[str, list[dict]], window: int = 0) -> Figure:
    """How alike a policy's rollouts become while it learns: distinct texts, entropy, best of a group."""
    return _panels(logs, {m: LOG_LABEL[m] for m in ("distinct_rollouts", "entropy", "best_of_group")}, window)


@styled
def curves_over_seeds(curves: Mapping[str, Mapping[str, np.ndarray]], metrics: Sequence[str]) -> Figure:
    """Logged metrics against the step, one panel each: the mean over seeds, and the range over seeds as a band.

    curves: method -> {"step": (n,), metric: (n, 3) of mean, least, most}; a method without a metric is left out.
    """
    if not curves:
        raise LabError("no curves to draw: give at least one method")
    figure, panels = new_axes(len(metrics), width=4.9 * len(metrics), height=4.0)
    for axes, metric in zip(panels, metrics, strict=True):
        ends = []
        for name, curve in curves.items():
            if metric in curve:
                steps, bands = curve["step"], np.asarray(curve[metric], dtype=float)
                smoothed = np.column_stack([smooth(column, len(steps) // 15) for column in bands.T])
                ends.append(draw_band(axes, steps, smoothed, name, every=max(1, len(steps) // 6)))
        axes.set_title(LOG_LABEL.get(metric, metric))
        axes.set_xlabel("step")
        axes.margins(x=0.02)
        label_ends(axes, ends)
    return figure


def _panels(logs: Mapping[str, list[dict]], titles: Mapping[str, str], window: int) -> Figure:
    known = {key for log in logs.values() for entry in log for key in entry}
    if not known & set(titles):
        raise LabError(f"no log has {', '.join(titles)}; they have: {', '.join(sorted(known - {'step'})) or 'nothing'}")
    titles = {metric: title for metric, title in titles.items() if metric in known}  # Unsloth logs fewer than TRL
    columns = 2 if len(titles) == 4 else min(len(titles), 3)
    rows = -(-len(titles) // columns)
    figure, panels = new_axes(columns, rows, width=max(3.7 * columns, 5.4), height=3.1 * rows)
    for axes, (metric, title) in zip(panels, titles.items(), strict=False):
        ends = [_draw_log(axes, log, metric, name, window) for name, log in logs.items()]
        ends = [end for end in ends if end]
        axes.set_title(title)
        axes.set_xlabel("step")
        label_ends(axes, ends)
    for axes in panels[len(titles) :]:
        axes.set_visible(False)
    return figure


def _draw_log(axes: Axes, log: list[dict], metric: str, name: str, window: int) -> tuple[float, str, str] | None:
    points = [(entry["step"], entry[metric]) for entry in log if np.isfinite(entry.get(metric, np.nan))]
    if not points:
        return None
    steps, values = np.array(points, dtype=float).T
    style = method_style(name)
    smoothed = smooth(values, window or len(values) // 15)
    # Without antialiasing: smooth noise would make the picture three times as large.
    axes.plot(steps, values, color=style["color"], linewidth=0.7, alpha=0.25, antialiased=False)
    axes.plot(steps, smoothed, **{**style, "marker": "o" if len(points) == 1 else ""})
    return float(smoothed[-1]), method_label(name), style["color"]
