"""Arrays and dicts in, figures out: no file is read or written here, and nothing is claimed in a title.

Axes: M candidates, D objectives, K weight draws, B rollouts, n points. Every function returns a
matplotlib `Figure` that pyplot has forgotten already, so a notebook shows it once and nothing piles
up; `pareto_3d` returns a plotly figure. matplotlib and plotly are loaded when a function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.methods import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's palette: told apart with any colour vision. Yellow is left out, too pale on white.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

METHOD_STYLE = {  # colour, marker, line: each alone tells the methods apart, in print too
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

METHOD_LABEL = {"sft": "SFT", "sft_chain": "SFT chains"} | {method.name: method.label for method in METHODS.values()}

LOG_LABEL = {
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
    """Run a plot function under the common style, whatever the reader's own settings are."""

    @wraps(draw)
    def styled(*args, **kwargs):
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def new_axes(columns: int = 1, rows: int = 1, *, width: float = 6.4, height: float = 3.9) -> tuple[Figure, list[Axes]]:
    """A white figure and its axes, row by row; closed in pyplot, so that it is shown only when asked."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    figure.set_facecolor("white")
    plt.close(figure)
    return figure, list(axes.ravel())


def method_style(name: str) -> dict:
    """Return colour, marker and line of a method, always the same; one of your own gets the next of a cycle."""
    number = sum(name.encode())
    own = (OKABE_ITO[number % len(OKABE_ITO)], "8hpHd"[number % 5], (0, (3, 1, 1, 1)))
    color, marker, line = METHOD_STYLE.get(name, own)
    return {"color": color, "marker": marker, "linestyle": line}


def method_label(name: str) -> str:
    """Return what to call a method in a figure; a start or a method of your own by its name."""
    return METHOD_LABEL.get(name, name)


def candidate_color(number: int) -> str:
    """The colour of candidate `number` (from 0) in every picture of candidates."""
    return OKABE_ITO[number % len(OKABE_ITO)]


# --- Labels at the ends of lines ----------------------------------------------------------------


def spread(positions: Sequence[float], gap: float) -> np.ndarray:
    """Return positions moved apart, as little as possible, until neighbours are at least `gap` from each other.

    (n,) -> (n,), in the order given. Least squares: isotonic regression of the positions minus i * gap.
    """
    from scipy.optimize import isotonic_regression

    order, steps = np.argsort(positions, kind="stable"), np.arange(len(positions)) * gap
    moved = np.empty(len(order))
    moved[order] = isotonic_regression(np.asarray(positions, dtype=float)[order] - steps).x + steps
    return moved


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's name at its right end: (y, text, colour), moved apart where they would overlap.

    A thin line leads from a line's end to its name, so that the colour is not needed to find it.
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
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(values) / 1.12, max(values) * 1.12)
    axes.minorticks_off()
    axes.set_xlabel(label)


def draw_band(
    axes: Axes, x: Sequence[float], intervals: Sequence[Sequence[float]], name: str, every: int = 1
) -> tuple[float, str, str]:
    """A method's line, a marker at `every` so many points, and its interval; returns its end for `label_ends`."""
    mean, low, high = np.array(intervals, dtype=float).T
    style = method_style(name)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0, antialiased=False)
    axes.plot(x, mean, **style, markevery=every)
    return float(mean[-1]), method_label(name), style["color"]


INK, SOFT, PALE = "#222222", "#555555", "#E9E9E9"

MANY = 2**15  # weightings: the set reward to three decimals
