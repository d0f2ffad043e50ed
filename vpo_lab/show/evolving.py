"""Draw a search for programs: how one program came about, and how many problems a budget solves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.metrics import crossed_bootstrap
from vpo_lab.show.style import INK, PALE, SOFT, draw_band, label_ends, log2_axis, new_axes, styled, write_subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIT = "#009E73"


@styled
def lineage(found: Sequence[int], rewards_PD: np.ndarray, steps: Sequence[str], subject: str = "") -> Figure:
    """Draw the way from a start to a program: a row for each ancestor, a cell for each test, lit where it passes.

    found: (P,) at which candidate each was tried, 0 for the start. rewards_PD: what each passes, in [0, 1], NaN where
    not asked. steps: (P,) what each changed in its parent, in a line or more. LabError unless all have P entries.
    """
    programs, tests = rewards_PD.shape
    if not len(found) == len(steps) == programs:
        raise LabError(f"{len(found)} numbers, {len(steps)} steps and {programs} programs: give one of each")
    heights = [max(1, step.count("\n") + 1) for step in steps]
    tops = np.concatenate([[0], np.cumsum(heights)])
    figure, (axes,) = new_axes(width=8.6, height=0.8 + 0.21 * tops[-1])
    for top, height, number, rewards_D, step in zip(tops, heights, found, rewards_PD, steps, strict=False):
        middle = top + height / 2
        for d, reward in enumerate(rewards_D):
            color = PALE if np.isnan(reward) else LIT if reward >= 1 else "white"
            axes.add_patch(_cell(d, top + 0.06, height - 0.12, color))
        axes.text(-0.4, middle, "start" if number == 0 else f"{number}", ha="right", va="center", color=SOFT)
        axes.text(tests + 0.4, middle, step, va="center", family="monospace", fontsize=8.5, color=INK)
        axes.text(tests + 11.4, middle, f"{np.nanmean(rewards_D):.0%}", va="center", ha="right", color=INK)
    for d in range(tests):
        axes.text(d + 0.5, -0.15, str(d + 1), ha="center", va="bottom", color=SOFT, fontsize=9)
    axes.text(tests / 2, -0.75, "test", ha="center", va="bottom", color=SOFT, fontsize=9)
    axes.text(-0.4, -0.15, "candidate", ha="right", va="bottom", color=SOFT, fontsize=9)
    axes.text(tests + 0.4, -0.15, "what it changed in its parent", va="bottom", color=SOFT, fontsize=9)
    axes.text(tests + 11.4, -0.15, "passed", va="bottom", ha="right", color=SOFT, fontsize=9)
    axes.set(xlim=(-2.2, tests + 11.6), ylim=(tops[-1] + 0.1, -1.1))
    axes.set_axis_off()
    write_subject(figure, subject)
    return figure


def _cell(x: float, y: float, height: float, color: str):
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.06, y), 0.88, height, facecolor=color, edgecolor="#AAAAAA", linewidth=0.7)


@styled
def solved_curves(solved_at: Mapping[str, np.ndarray], budgets: Sequence[int], subject: str = "") -> Figure:
    """Draw the share of requests that each policy solves within a budget of candidates.

    solved_at: name -> (S, N) by training seed and problem, after how many candidates it was solved, infinity for
    never. The band is 95% over seeds and problems. LabError without a policy.
    """
    return _searches({"": solved_at}, budgets, subject, width=7.2)


@styled
def searches(panels: Mapping[str, Mapping[str, np.ndarray]], budgets: Sequence[int], subject: str = "") -> Figure:
    """Draw `solved_curves` side by side: title -> name -> (S, N). LabError without a search."""
    return _searches(panels, budgets, subject, width=5.4 * len(panels))


def _searches(
    panels: Mapping[str, Mapping[str, np.ndarray]], budgets: Sequence[int], subject: str, width: float
) -> Figure:
    if not panels or not all(panels.values()):
        raise LabError("no search to draw: give the solved_at of at least one policy")
    figure, axes_P = new_axes(len(panels), width=width, height=4.0)
    for axes, (title, solved_at) in zip(axes_P, panels.items(), strict=True):
        ends = []
        for name, solved_SN in solved_at.items():
            shares = [crossed_bootstrap((np.asarray(solved_SN) <= budget).astype(float)) for budget in budgets]
            ends.append(draw_band(axes, budgets, shares, name))
        log2_axis(axes, budgets, "candidates tried for a request (band: 95%)")
        axes.set_xticks(budgets, [str(budget) for budget in budgets])
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(f"{title}\nshare of requests solved".strip())
        label_ends(axes, ends)
    write_subject(figure, subject)
    return figure
