"""Draw shares and means as bars, and the positions of a toy policy as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.show.style import candidate_color, method_label, method_style, new_axes, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = "#DDDDDD"  # none of what is listed


@styled
def method_bars(panels: Mapping[str, Mapping[str, Sequence[float]]], title: str = "") -> Figure:
    """Draw a bar for every method, one panel for each world: title -> method -> [mean, least, most].

    The line on a bar goes from the least to the most. LabError without a world.
    """
    if not panels:
        raise LabError("no world to draw: give at least one")
    figure, axes = new_axes(len(panels), width=max(4.4 * len(panels), 5.0), height=3.2)
    for one, (name, values) in zip(axes, panels.items(), strict=True):
        for x, (method, (mean, least, most)) in enumerate(values.items()):
            one.bar(x, mean, color=method_style(method)["color"], width=0.7, alpha=0.85)
            one.vlines(x, least, most, color="#222222", linewidth=1.6)
            one.text(x, most, f"{mean:.2f}", ha="center", va="bottom")
        one.set_xticks(range(len(values)), [fill(method_label(method), 11) for method in values], fontsize=9)
        one.set_ylim(0, 1.15 * max(most for _, _, most in values.values()))
        one.grid(False, axis="x")
        one.set_title(f"{name}: {title}" if title else name)
    return figure


@styled
def position_shares(
    panels: Mapping[tuple[str, str], np.ndarray], labels: Sequence[str], subject: str = "answer j of a chain"
) -> Figure:
    """Draw what each position of a chain gives, as stacked bars: a row for each policy, a column for each kind.

    panels: (policy, kind) -> shares (M, n + 1), the last of them "none of them"; labels: the names of the n.
    LabError without a panel.
    """
    from matplotlib.patches import Patch

    rows, columns = (list(dict.fromkeys(key[i] for key in panels)) for i in (0, 1))
    if not panels:
        raise LabError("no shares to draw: give at least one policy and kind")
    size = {"width": 1.4 + 1.9 * len(columns), "height": 0.6 + 1.6 * len(rows)}
    figure, axes = new_axes(len(columns), len(rows), **size)
    for one, (row, column) in zip(axes, ((row, column) for row in rows for column in columns), strict=True):
        shares_MP = panels[row, column]
        for plan in range(shares_MP.shape[1]):
            color = NONE if plan == shares_MP.shape[1] - 1 else candidate_color(plan)
            bottom = shares_MP[:, :plan].sum(axis=1)
            one.bar(range(1, len(shares_MP) + 1), shares_MP[:, plan], bottom=bottom, color=color)
        one.set_title(column if row == rows[0] else "", fontsize=9)
        one.set_xticks(range(1, len(shares_MP) + 1))
        one.set_yticks([0, 1])
        one.set_ylabel(method_label(row) if column == columns[0] else "")
        one.grid(False)
    colors = [*map(candidate_color, range(len(labels))), NONE]
    handles = [Patch(color=color, label=text) for color, text in zip(colors, [*labels, "none of them"], strict=True)]
    figure.legend(handles=handles, loc="outside right center", fontsize=9)
    figure.supxlabel(subject, fontsize=10)
    return figure


@styled
def position_curves(history_TMA: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw the probabilities of a toy policy over T steps, one panel for each of its M positions, a line per answer."""
    figure, panels = new_axes(history_TMA.shape[1], width=max(3.2 * history_TMA.shape[1], 5.8), height=2.5)
    for j, axes in enumerate(panels):
        for i, name in enumerate(names):
            axes.plot(history_TMA[:, j, i], color=candidate_color(i), label=name)
        axes.set(xlabel="step", ylim=(-0.03, 1.03))
        axes.set_title(f"answer {j + 1}" if len(panels) > 1 else "")
    panels[0].set_ylabel("probability")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure
