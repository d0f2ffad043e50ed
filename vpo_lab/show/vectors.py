"""Draw reward vectors: advantages, winners on the simplex, Pareto fronts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.methods import METHODS
from vpo_lab.metrics import pareto_optimal
from vpo_lab.show.style import (
    MANY,
    OKABE_ITO,
    SOFT,
    candidate_color,
    label_ends,
    method_label,
    method_style,
    new_axes,
    styled,
    write_subject,
)
from vpo_lab.weights import dirichlet_weights, set_reward, winners

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_HEIGHT = np.sqrt(3) / 2  # of the simplex, drawn as a triangle with sides of 1


# --- Reward vectors and advantages ----------------------------------------------------------------


def row_names(names: Sequence[str] | None, n: int) -> list[str]:
    """Return names of n rows: those given, or letters (beyond 26 rows numbers). LabError if not n of them."""
    names = [_letter(i) if n <= 26 else str(i + 1) for i in range(n)] if names is None else list(names)
    if len(names) != n:
        raise LabError(f"{len(names)} names for {n} rows: give one each")
    return names


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def as_vectors(rewards: np.ndarray, d: int | None = None) -> np.ndarray:
    """Return (M, D) rewards as floats; LabError for another shape, or if D is not `d`."""
    rewards = np.asarray(rewards, dtype=float)
    if rewards.ndim != 2 or 0 in rewards.shape or (d is not None and rewards.shape[1] != d):
        raise LabError(f"rewards of shape {rewards.shape}: expected (M, {d or 'D'}), none of them 0")
    return rewards


@styled
def reward_vectors(rewards_MD: np.ndarray, objectives: Sequence[str], names: Sequence[str] | None = None) -> Figure:
    """Draw reward vectors in [0, 1] as a table of colours with numbers; their plain mean stands apart."""
    rewards_MD = as_vectors(rewards_MD)
    names = row_names(names, len(rewards_MD))
    columns = [*objectives, "mean"]
    table = np.column_stack([rewards_MD, rewards_MD.mean(axis=1)])
    longest = max(map(len, names))
    figure, (axes,) = new_axes(width=1.1 + 0.085 * longest + 1.05 * len(columns), height=0.7 + 0.42 * len(names))
    axes.imshow(table, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.7 else "#222222")
    _cell_borders(axes, table.shape)
    axes.axvline(len(objectives) - 0.5, color="white", linewidth=7)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(names)), names)
    return figure


def _cell_borders(axes: Axes, shape: tuple[int, int]) -> None:
    """Draw white lines between the cells of a table of colours, and put its column names on top."""
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(1, shape[1]) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, shape[0]) - 0.5, minor=True)
    axes.grid(True, which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0, top=False, labeltop=True, bottom=False, labelbottom=False)


@styled
def advantage_heatmap(advantages: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> Figure:
    """Draw which of the same rollouts several methods would reinforce (+) or weaken (−).

    advantages: method -> (B,), all of one B; names: of the rollouts. LabError for other shapes.
    """
    if not advantages or len({len(np.atleast_1d(a)) for a in advantages.values()}) != 1:
        raise LabError("advantages: expected at least one method, and as many rollouts for each")
    table = np.array([np.atleast_1d(a) for a in advantages.values()], dtype=float)
    names = row_names(names, table.shape[1])
    width = max(0.72, 0.1 * max(map(len, names)) + 0.15)
    figure, (axes,) = new_axes(width=1.5 + width * len(names), height=0.65 + 0.5 * len(table))
    _draw_advantages(axes, dict(zip(advantages, table, strict=True)), names)
    return figure


def _draw_advantages(axes: Axes, advantages: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    table = np.array(list(advantages.values()), dtype=float)
    limit = max(float(np.nanmax(np.abs(table), initial=0.0)), 1e-9)
    image = axes.imshow(table, cmap="PuOr_r", vmin=-1.15 * limit, vmax=1.15 * limit, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        dark = image.to_rgba(value)[:3] @ np.array([0.299, 0.587, 0.114]) < 0.5
        text = "0" if abs(value) < 5e-3 else f"{value:+.2f}".replace("-", "−")
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else "#222222")
    _cell_borders(axes, table.shape)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(table)), [method_label(name) for name in advantages])


@styled
def upper_envelope(
    rewards_M2: np.ndarray, names: Sequence[str] | None = None, objectives: Sequence[str] = ("r₁", "r₂")
) -> Figure:
    """Draw w·r of every candidate as the weight moves from the second objective to the first.

    The upper envelope is the best candidate at each w. Weights from Dirichlet(1) are uniform in D = 2,
    so the shaded area is the set reward. The strip below shows the winner, ties in stripes.
    """
    rewards_M2 = as_vectors(rewards_M2, 2)
    names = row_names(names, len(rewards_M2))
    w = np.linspace(0, 1, 1001)
    scores_KM = np.column_stack([w, 1 - w]) @ rewards_M2.T
    best_K = scores_KM.max(axis=1)
    figure, (axes,) = new_axes(width=6.2, height=4.0)
    axes.fill_between(w, 0, best_K, color="#BBBBBB", alpha=0.35, linewidth=0)
    axes.plot(w, best_K, color="#222222", linewidth=5, alpha=0.25, solid_capstyle="round")
    ends = []
    for number, name in enumerate(names):
        axes.plot(w, scores_KM[:, number], color=candidate_color(number))
        ends.append((scores_KM[-1, number], name, candidate_color(number)))
    _winner_strip(axes, rewards_M2, w)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.11 * max(1.0, best_K.max()), max(1.0, best_K.max()) * 1.03)
    axes.set_yticks([tick for tick in axes.get_yticks() if -1e-9 <= tick <= max(1.0, best_K.max()) + 1e-9])
    axes.set_xlabel(f"weight on {objectives[0]}  (the rest on {objectives[1]})")
    axes.set_title(f"utility w·r; shaded area = set reward = {np.trapezoid(best_K, w):.3f}")
    label_ends(axes, ends)
    return figure


def _winner_strip(axes: Axes, rewards_M2: np.ndarray, w: np.ndarray) -> None:
    """Draw the winner at each w as a coloured bar under the axis, ties in stripes."""
    won_KM = winners(rewards_M2, np.column_stack([w, 1 - w]))
    strip = _striped(won_KM[None], range(len(rewards_M2)), width=12)
    axes.imshow(strip, extent=(0, 1, -0.085, -0.025), aspect="auto", interpolation="nearest", zorder=3)


def _striped(won_hwM: np.ndarray, numbers: Iterable[int], width: int) -> np.ndarray:
    """Return the winner's colour in every pixel, (h, w, 3); where several tie, in stripes of some pixels.

    numbers: of the M candidates, which decide their colours.
    """
    from matplotlib.colors import to_rgb

    colors_M3 = np.array([to_rgb(candidate_color(number)) for number in numbers])
    rows, columns = np.indices(won_hwM.shape[:2])
    turn_hw = (rows + columns) // width % won_hwM.sum(axis=-1)
    nth_hwM = np.cumsum(won_hwM, axis=-1) - 1
    return colors_M3[(won_hwM & (nth_hwM == turn_hw[..., None])).argmax(axis=-1)]


# --- The simplex of three objectives --------------------------------------------------------------


def simplex_xy(weights_K3: np.ndarray) -> np.ndarray:
    """Return weights of three objectives as points of a triangle with sides of 1: (K, 3) -> (K, 2)."""
    return np.asarray(weights_K3, dtype=float) @ np.array([[0.0, 0.0], [1.0, 0.0], [0.5, _HEIGHT]])


def _triangle(axes: Axes, objectives: Sequence[str]) -> None:
    corners = simplex_xy(np.eye(3))
    axes.plot(*np.vstack([corners, corners[:1]]).T, color="#666666", linewidth=1.2, zorder=4)
    for (x, y), name, offset in zip(corners, objectives, ((0, -0.05), (0, -0.05), (0, 0.03)), strict=True):
        axes.text(x + offset[0], y + offset[1], name, ha="center", va="top" if offset[1] < 0 else "bottom")
    axes.set_aspect("equal")
    axes.set_xlim(-0.12, 1.12)
    axes.set_ylim(-0.13, _HEIGHT + 0.12)
    axes.axis("off")


@styled
def simplex_scatter(
    weights: Mapping[float, np.ndarray], objectives: Sequence[str] = ("w = (1,0,0)", "w = (0,1,0)", "w = (0,0,1)")
) -> Figure:
    """Draw the weights of three objectives under several alphas: alpha -> (K, 3)."""
    figure, panels = new_axes(len(weights), width=3.2 * len(weights), height=3.2)
    for axes, (alpha, weights_K3) in zip(panels, weights.items(), strict=True):
        axes.scatter(*simplex_xy(as_vectors(weights_K3, 3)).T, s=9, color=OKABE_ITO[0], alpha=0.55, linewidths=0)
        _triangle(axes, objectives)
        axes.set_title(f"alpha = {alpha:g}", loc="center")
    return figure


@styled
def simplex_winners(
    rewards_M3: np.ndarray,
    names: Sequence[str] | None = None,
    objectives: Sequence[str] = ("r₁", "r₂", "r₃"),
    pixels: int = 420,
) -> Figure:
    """Draw who wins under all weights of three objectives: regions with a name and their share of the simplex.

    The share is the probability of being the best under Dirichlet(1). Ties are in stripes.
    """
    rewards_M3 = as_vectors(rewards_M3, 3)
    names = row_names(names, len(rewards_M3))
    weights_hw3, inside = _simplex_grid(pixels)
    won_hwM = winners(rewards_M3, weights_hw3.reshape(-1, 3)).reshape(*inside.shape, -1)
    colors_hw3 = _striped(won_hwM, range(len(names)), width=14)
    figure, (axes,) = new_axes(width=5.2, height=4.5)
    regions = [
        (f"{' = '.join(names[i] for i in group)}\n{share:.0%}", place)
        for group, share, place in _regions(won_hwM, inside)
    ]
    _draw_regions(axes, 0.35 + 0.65 * colors_hw3, inside, regions)  # pale, so that the names can be read
    _triangle(axes, objectives)
    return figure


def _draw_regions(axes: Axes, image_hw3: np.ndarray, inside: np.ndarray, names: Iterable[tuple]) -> None:
    """Draw an image of the simplex and names in it, given as (text, (x, y))."""
    from matplotlib.patheffects import withStroke

    image = np.dstack([image_hw3, inside.astype(float)])
    axes.imshow(image, origin="lower", extent=(0, 1, 0, _HEIGHT), interpolation="nearest", zorder=1)
    for text, (x, y) in names:
        stroke = [withStroke(linewidth=3, foreground="white")]
        axes.text(x, y, text, ha="center", va="center", fontweight="bold", zorder=5, path_effects=stroke)


def _simplex_grid(pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of every pixel of the triangle's box, (h, w, 3), and whether it lies inside, (h, w)."""
    height = round(pixels * _HEIGHT)
    x = (np.arange(pixels) + 0.5) / pixels
    y = (np.arange(height) + 0.5) / height * _HEIGHT
    third = np.broadcast_to((y / _HEIGHT)[:, None], (height, pixels))
    second = x[None, :] - third / 2
    weights_hw3 = np.dstack([1 - second - third, second, third])
    return weights_hw3, (weights_hw3 >= 0).all(axis=2)


def _regions(won_hwM: np.ndarray, inside: np.ndarray, least: float = 0.004):
    """Yield (tied winners, share, (x, y) of a point well inside) for every region worth a name."""
    height, width = inside.shape
    groups, of_pixel = np.unique(won_hwM[inside], axis=0, return_inverse=True)
    rows, columns = np.nonzero(inside)
    for number, group in enumerate(groups):
        mine = of_pixel.reshape(-1) == number
        share = mine.mean()
        if share < least:
            continue  # a line between two regions, where both tie
        middle = columns[mine].mean(), rows[mine].mean()
        # The pixel nearest to the middle, because the middle of a region need not lie in it.
        nearest = np.argmin((columns[mine] - middle[0]) ** 2 + (rows[mine] - middle[1]) ** 2)
        x, y = columns[mine][nearest] / width, rows[mine][nearest] / height * _HEIGHT
        yield tuple(np.flatnonzero(group)), float(share), (x, y)


# --- Fronts -------------------------------------------------------------------------------------


def wins_somewhere(rewards_n2: np.ndarray, tolerance: float = 1e-9) -> np.ndarray:
    """Return which points are best under some weights w >= 0 of two objectives: (n, 2) -> bool (n,).

    Exact: point i beats j where w c_1 + (1 - w) c_2 >= 0, c = r_i - r_j, an interval of w for each j.
    """
    rewards_n2 = as_vectors(rewards_n2, 2)
    difference = rewards_n2[:, None] - rewards_n2[None]  # (n, n, 2): i against j
    slope, offset = difference[..., 0] - difference[..., 1], difference[..., 1] + tolerance
    with np.errstate(divide="ignore", invalid="ignore"):
        root = -offset / slope
    low = np.where(slope > tolerance, root, 0.0).max(axis=1)
    high = np.where(slope < -tolerance, root, 1.0).min(axis=1)
    never = ((np.abs(slope) <= tolerance) & (offset < 0)).any(axis=1)
    return (np.maximum(low, 0) <= np.minimum(high, 1) + tolerance) & ~never


@styled
def pareto(
    rewards_nD: np.ndarray,
    dims: tuple[int, int] = (0, 1),
    names: Sequence[str] | None = None,
    objectives: Sequence[str] | None = None,
) -> Figure:
    """Draw candidates by two objectives: dominated, Pareto-optimal, and best under some weights.

    The last two differ where the front is concave. Only the two objectives shown count.
    Equal points are drawn once, larger; names (n,) label the points, equal ones together.
    """
    rewards_n2 = as_vectors(rewards_nD)[:, list(dims)]
    points, where, counts = np.unique(rewards_n2, axis=0, return_inverse=True, return_counts=True)
    optimal, linear = pareto_optimal(points), wins_somewhere(points)
    linear &= optimal  # a weakly dominated point ties at a corner, which is no gain
    figure, (axes,) = new_axes(width=5.6, height=4.2)
    size = 45 + 130 * np.sqrt((counts - 1) / max(counts.max() - 1, 1))
    kinds = (  # label, which, face, edge, marker
        ("dominated", ~optimal, "#C8C8C8", "#888888", "o"),
        ("Pareto-optimal, wins for no w", optimal & ~linear, "white", "#D55E00", "D"),
        ("Pareto-optimal, wins for some w", linear, "#0072B2", "#004B76", "o"),
    )
    hull = points[linear]  # ascending in the first objective
    axes.plot(*hull.T, color="#0072B2", linewidth=1, linestyle="--", zorder=2)
    for label, mask, face, edge, marker in kinds:
        if mask.any():
            style = {"facecolor": face, "edgecolor": edge, "marker": marker, "linewidths": 1.6}
            axes.scatter(*points[mask].T, s=size[mask], label=label, zorder=3, **style)
    names = row_names(names, len(rewards_n2)) if names is not None else []
    for number, point in enumerate(points if names else ()):
        text = " = ".join(names[n] for n in np.flatnonzero(where.reshape(-1) == number))
        axes.annotate(text, point, xytext=(8, 6), textcoords="offset points", fontweight="bold", zorder=4)
    labels = objectives or [f"objective {d}" for d in range(np.shape(rewards_nD)[1])]
    axes.set_xlabel(labels[dims[0]])
    axes.set_ylabel(labels[dims[1]])
    axes.margins(0.12)
    legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1, fontsize=9.5)
    for handle in legend.legend_handles:
        handle.set_sizes([50])
    return figure


def pareto_3d(
    rewards: Mapping[str, np.ndarray], dims: tuple[int, int, int] = (0, 1, 2), objectives: Sequence[str] | None = None
):
    """Return a plotly figure to turn: candidates of several policies by three objectives, equal points larger.

    rewards: method -> (n, D). GitHub does not show it, so do not save it in a notebook.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, rewards_nD in rewards.items():
        points, counts = np.unique(as_vectors(rewards_nD)[:, list(dims)], axis=0, return_counts=True)
        x, y, z = points.T
        size = 4 + 10 * np.sqrt(counts / counts.max())
        marker = {"size": size, "color": method_style(name)["color"], "opacity": 0.75}
        text = [f"{count} candidates" for count in counts]
        figure.add_trace(go.Scatter3d(x=x, y=y, z=z, mode="markers", name=method_label(name), text=text, marker=marker))
    labels = objectives or [f"objective {d}" for d in range(max(dims) + 1)]
    axes = {f"{axis}axis_title": labels[d] for axis, d in zip("xyz", dims, strict=True)}
    return figure.update_layout(scene=axes, template="plotly_white", margin={"l": 0, "r": 0, "t": 20, "b": 0})


# --- A group under several methods ----------------------------------------------------------------


def group_with_signal(rewards_NGMD: np.ndarray, names: Sequence[str] = ("grpo", "vpo")) -> int | None:
    """Return the number of the first request whose G rollouts get a signal from every method; None without one."""
    for number, rewards_GMD in enumerate(np.asarray(rewards_NGMD, dtype=float)):
        if all(np.any(advantage_G) for advantage_G in _advantages(rewards_GMD, names).values()):
            return number
    return None


def _advantages(rewards_GMD: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    group_size = len(rewards_GMD)
    return {name: METHODS[name].advantages(rewards_GMD, group_size, np.random.default_rng(0)) for name in names}


@styled
def judged_group(
    rewards_GMD: np.ndarray, objectives: Sequence[str], names: Sequence[str] = ("grpo", "vpo"), subject: str = ""
) -> Figure:
    """Draw a group of chains under several methods: the advantages as a heat map, the reward vectors below.

    rewards (G, M, D): column g of the figure is chain g, each of its M rows an answer with D cells,
    dark for 1. subject: what the group is. LabError for another shape.
    """
    rewards_GMD = np.asarray(rewards_GMD, dtype=float)
    if rewards_GMD.ndim != 3 or 0 in rewards_GMD.shape or rewards_GMD.shape[2] != len(objectives):
        raise LabError(f"rewards of shape {rewards_GMD.shape}: expected (G, M, {len(objectives)}), none of them 0")
    chains, answers, _ = rewards_GMD.shape
    advantages = _advantages(rewards_GMD, names)
    below = 0.3 * answers
    figure, (above, table) = new_axes(
        1, 2, width=1.5 + 0.95 * chains, height=1.5 + 0.5 * len(advantages) + below + 0.3 * bool(subject)
    )
    above.get_gridspec().set_height_ratios([0.5 * len(advantages), below])
    _draw_advantages(above, advantages, ["chain 1", *(str(g + 1) for g in range(1, chains))])
    _draw_vectors(table, rewards_GMD, objectives)
    write_subject(figure, subject)
    return figure


def _draw_vectors(axes: Axes, rewards_GMD: np.ndarray, objectives: Sequence[str]) -> None:
    """Draw the reward vectors of every chain as a small table of blues: M rows, D columns."""
    chains, answers, d = rewards_GMD.shape
    pad = 0.12  # of a column, on either side
    lines = {"color": "#BBBBBB", "linewidth": 0.6, "clip_on": False}
    for g, rewards_MD in enumerate(rewards_GMD):
        left, right = g - 0.5 + pad, g + 0.5 - pad
        style = {"cmap": "Blues", "vmin": 0, "vmax": 1.15, "aspect": "auto", "interpolation": "nearest"}
        axes.imshow(rewards_MD, extent=(left, right, answers - 0.5, -0.5), **style)
        axes.vlines(np.linspace(left, right, d + 1), -0.5, answers - 0.5, **lines)
        axes.hlines(np.arange(answers + 1) - 0.5, left, right, **lines)
    axes.set(xlim=(-0.5, chains - 0.5), ylim=(answers - 0.5, -0.5), xticks=[])
    axes.set_yticks(range(answers), [f"answer {m + 1}" for m in range(answers)])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    columns = ", ".join(name.replace("_", " ") for name in objectives)
    axes.set_xlabel(f"rewards of each answer, white 0, dark 1; columns: {columns}", fontsize=10, color=SOFT, loc="left")


# --- Before and after training --------------------------------------------------------------------


@styled
def winner_regions(
    sets: Mapping[str, np.ndarray], objectives: Sequence[str], pixels: int = 360, subject: str = ""
) -> Figure:
    """Draw who wins under all weights of three objectives, one triangle for each set of answers.

    sets: name -> (M, 3). A region belongs to the reward vector that is best there, with one letter and
    colour in all triangles. The fuller the colour, the higher its w·r there, from 0 to 1. The number below
    is the mean of that, the set reward. Above stands how many answers share the triangle. LabError without a set.
    """
    from matplotlib.lines import Line2D

    if not sets:
        raise LabError("no set to draw: give at least one")
    vectors = {name: np.unique(as_vectors(rewards_M3, 3).round(6), axis=0) for name, rewards_M3 in sets.items()}
    weights_hw3, inside = _simplex_grid(pixels)
    weights_K3 = dirichlet_weights(MANY, 3)
    figure, panels = new_axes(len(vectors), width=max(2.6 * len(vectors), 3.4), height=3.7 + 0.3 * bool(subject))
    numbers: dict[tuple, int] = {}  # of the vectors that win somewhere, in order of appearance
    for axes, (name, vectors_M3) in zip(panels, vectors.items(), strict=True):
        won_hwM = winners(vectors_M3, weights_hw3.reshape(-1, 3)).reshape(*inside.shape, -1)
        regions = list(_regions(won_hwM, inside))
        for m in (m for group, _, _ in regions for m in group):
            numbers.setdefault(tuple(vectors_M3[m]), len(numbers))
        image_hw3 = _worth(vectors_M3, won_hwM, weights_hw3, numbers)
        letters = {m: _letter(numbers[tuple(vectors_M3[m])]) for group, _, _ in regions for m in group}
        texts = [(" = ".join(letters[m] for m in group), place) for group, _, place in regions]
        _draw_regions(axes, image_hw3, inside, texts)
        _triangle(axes, objectives)
        winning = {m for group, _, _ in regions for m in group}
        axes.set_title(f"{method_label(name)}\n{_shared(len(winning))}", loc="center", pad=10)
        worth = f"set reward {set_reward(vectors_M3, weights_K3):.2f}"
        axes.text(0.5, -0.25, worth, ha="center", va="center", fontsize=11)
        axes.set_ylim(-0.32, _HEIGHT + 0.12)
    handles = [
        Line2D([], [], linestyle="", marker="s", markersize=9, color=candidate_color(number),
               label=f"{_letter(number)} = ({', '.join(f'{value:.2g}' for value in vector)})")
        for vector, number in numbers.items()
    ]  # fmt: skip
    title = f"best there, with rewards ({', '.join(objectives)}); the fuller the colour, the higher w·r"
    figure.legend(handles=handles, title=title, loc="outside lower center", ncols=min(len(handles), 6), fontsize=10)
    write_subject(figure, subject)
    return figure


def _shared(answers: int) -> str:
    """Say how many different answers win somewhere."""
    return "one answer for all" if answers == 1 else f"{answers} answers win"


def _worth(vectors_M3: np.ndarray, won_hwM: np.ndarray, weights_hw3: np.ndarray, numbers: Mapping) -> np.ndarray:
    """Return the triangle's pixels (h, w, 3): the winner's colour, from white at w·r = 0 to full at 1.

    In sixteen steps, and a dark line where the winner changes.
    """
    full_hw3 = _striped(won_hwM, (numbers.get(tuple(vector), 0) for vector in vectors_M3), width=10)
    worth_hw1 = (weights_hw3 @ vectors_M3.T).max(axis=2, keepdims=True).clip(0, 1)
    image_hw3 = 1 - np.round(16 * worth_hw1) / 16 * (1 - full_hw3)
    for axis in (0, 1):
        changes = (won_hwM != np.roll(won_hwM, 1, axis=axis)).any(axis=2)
        image_hw3[changes] = 0.25
    return image_hw3
