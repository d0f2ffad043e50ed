"""Hold what all figures share: colours, names, axes, labels at the ends of lines.

Functions of `show` take arrays and dicts, touch no file, and load matplotlib when they are called. They return a
`Figure` that pyplot has closed, so that a notebook shows it once; `pareto_3d` returns a plotly figure.
Axes: M candidates, D objectives, K weight draws, B rollouts, G rollouts of a group, S sets, n points.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from vpo_lab.methods import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's palette for any colour vision, without its yellow, which is too pale on white.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

METHOD_STYLE = {  # colour, marker, line; one of them is enough to tell methods apart, in print too
    "sft": ("#7A7A7A", "s", ":"),
    "sft_chain": ("#CC79A7", "D", "--"),
    "grpo": ("#D55E00", "^", "-"),
    "vpo": ("#3C9AD8", "h", (0, (5, 1))),
    "vpo_credit": ("#0072B2", "o", "-"),
    "vpo_search": ("#000070", "*", (0, (7, 1.5))),
    "max_at_k": ("#704010", "<", (0, (4, 1.5, 1, 1.5, 1, 1.5))),
    "multi_rlvr": ("#009E73", "v", "-."),
    "random_weights": ("#E69F00", "P", (0, (1, 1))),
    "gdpo": ("#56B4E9", "X", (0, (3, 2))),
    "goal_conditioned": ("#8F60FF", "p", (0, (6, 2, 2, 2))),
    "maxrl": ("#A8A850", ">", (0, (2, 1))),
    "best_of_set": ("#C050A0", "8", (0, (2, 1, 1, 1))),
    "best_of_set_credit": ("#A0006E", "d", (0, (1, 2.5))),
}

METHOD_LABEL = {"sft": "SFT", "sft_chain": "SFT chains", "vpo_single": "VPO, asked for one"} | {
    method.name: method.label for method in METHODS.values()
}

INK, SOFT, PALE = "#222222", "#555555", "#E9E9E9"  # texts and lines; second to them; areas

MANY = 2**15  # weight draws of a set reward in a figure: enough for three decimals

LOG_LABEL = {  # metric in a log -> its title
    "set_reward": "set reward R(S)",
    "mean_reward": "mean reward of an answer",
    "best_of_rollout": "best answer of a rollout",
    "best_of_group": "best of a group (G × M answers)",
    "distinct_rollouts": "different rollouts in a group",
    "silent_groups": "groups without a signal",
    "truncated": "rollouts cut off before their end",
    "entropy": "entropy of a token (nats)",
    "completions/mean_length": "tokens of a rollout",
    "loss": "loss",
    "mean_token_accuracy": "token accuracy",
}

STYLE = {
    "figure.dpi": 86,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "text.color": "#222222",
    "axes.labelcolor": "#222222",
    "axes.edgecolor": "#888888",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "legend.frameon": False,
}


def styled(draw: Callable) -> Callable:
    """Make a plot function draw in the common style, whatever the reader's own settings are."""

    @wraps(draw)
    def in_style(*args, **kwargs):
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


def new_axes(columns: int = 1, rows: int = 1, *, width: float = 6.4, height: float = 3.9) -> tuple[Figure, list[Axes]]:
    """Return a white figure of some inches and its axes, row by row; pyplot has closed it already."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    figure.set_facecolor("white")
    plt.close(figure)
    return figure, list(axes.ravel())


def write_subject(figure: Figure, subject: str) -> None:
    """Write above the panels, in small letters, what a figure is about; nothing for ""."""
    if subject:
        figure.suptitle(subject, x=0.01, ha="left", fontsize=10, color=SOFT)


def method_style(name: str) -> dict:
    """Return colour, marker and line of a method, always the same. Unknown names share a small cycle.

    A method with a price on KL, or at another temperature ("grpo_kl0.2", "grpo@1.5"), has the method's colour.
    """
    number, base = sum(name.encode()), re.split("_kl|@", name)[0]
    usual = METHOD_STYLE.get(base, (OKABE_ITO[number % len(OKABE_ITO)],))[0]
    own = (usual, "8hpHd"[number % 5], (0, (3, 1, 1, 1)))
    color, marker, line = METHOD_STYLE.get(name, own)
    return {"color": color, "marker": marker, "linestyle": line}


def method_label(name: str) -> str:
    """Return what to call a method in a figure: its label, or its name where it has none.

    "grpo_kl0.2" and "grpo@1.5" are called after the method, with the price on KL or the temperature.
    """
    base, at, temperature = name.partition("@")
    base, kl, price = base.partition("_kl")
    return METHOD_LABEL.get(base, base) + (f", KL {price}" if kl else "") + (f" at T = {temperature}" if at else "")


def candidate_color(number: int) -> str:
    """Return the colour of candidate `number` (from 0) in every picture of candidates."""
    return OKABE_ITO[number % len(OKABE_ITO)]


# --- Labels at the ends of lines ----------------------------------------------------------------


def spread(positions: Sequence[float], gap: float) -> np.ndarray:
    """Return (n,) positions moved as little as possible, until neighbours are at least `gap` apart.

    Least squares: isotonic regression of the sorted positions minus i * gap.
    """
    from scipy.optimize import isotonic_regression

    order, steps = np.argsort(positions, kind="stable"), np.arange(len(positions)) * gap
    moved = np.empty(len(order))
    moved[order] = isotonic_regression(np.asarray(positions, dtype=float)[order] - steps).x + steps
    return moved


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write names at the right ends of lines, given as (y, text, colour), without overlap.

    A thin line leads from each end to its name, so that readers need not rely on colour.
    """
    ends = [end for end in ends if np.isfinite(end[0])]
    if not ends:
        return
    low, high = axes.get_ylim()
    rows = axes.get_subplotspec().get_gridspec().nrows
    inches = 0.74 * axes.figure.get_figheight() / rows
    heights = spread([(y - low) / (high - low) for y, _, _ in ends], gap=0.185 / inches)
    for height, (y, text, color) in zip(heights, ends, strict=True):
        leader = {"arrowstyle": "-", "color": color, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)}
        axes.annotate(
            text, (0.985, (y - low) / (high - low)), xycoords="axes fraction", xytext=(1.035, height),
            textcoords="axes fraction", color=color, va="center", ha="left", annotation_clip=False, fontsize=10,
            fontweight="bold", arrowprops=leader,
        )  # fmt: skip


def log2_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """Make the x-axis logarithmic over the range of `values`, without minor ticks."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(values) / 1.12, max(values) * 1.12)
    axes.minorticks_off()
    axes.set_xlabel(label)


def draw_band(
    axes: Axes, x: Sequence[float], intervals: Sequence[Sequence[float]], name: str, **style: Any
) -> tuple[float, str, str]:
    """Draw a method's line over x and its interval as a band; return the line's end for `label_ends`.

    intervals: [mean, low, high] at every x. `style` overrides the method's marker or line.
    """
    mean, low, high = np.array(intervals, dtype=float).T
    style = method_style(name) | style
    axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0, antialiased=False)
    axes.plot(x, mean, **style)
    return float(mean[-1]), method_label(name), style["color"]
