"""Draw mazes and walks through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.show.style import MANY, candidate_color, method_label, new_axes, styled
from vpo_lab.show.vectors import as_vectors, row_names
from vpo_lab.tasks.maze.world import MOVES, OBJECTIVES, Maze, parse_maze, score, walk
from vpo_lab.weights import dirichlet_weights, set_reward

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MAZE_CELLS = {  # what lies in a cell -> its colour, the marker, the marker's colour
    "start": ("#FFFFFF", "s", "#444444"),
    "exit": ("#FFFFFF", "X", "#222222"),
    "gold": ("#FBE7B2", "o", "#C98A00"),
    "diamond": ("#D3EAF7", "D", "#3A8DC0"),
    "lava": ("#F3C1A9", "^", "#B8431A"),
}


@styled
def maze_paths(
    gold: str,
    paths: Sequence[str],
    rewards_n4: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw a maze, walks through it side by side in the candidates' colours, and the rewards of each.

    gold: the maze as text; paths: n answers in arrows, of which only walks are drawn and all are listed;
    rewards: (n, 4), scored here if left out. LabError for shapes that do not fit.
    """
    maze = parse_maze(gold)
    names = row_names(names, len(paths))
    if rewards_n4 is None and paths:
        rewards_n4 = np.stack([score(path, gold) for path in paths])
    rewards_n4 = as_vectors(rewards_n4, len(OBJECTIVES)) if paths else np.zeros((0, len(OBJECTIVES)))
    row_names(names, len(rewards_n4))
    side, moves = 0.62 * maze.size, 0.5 + 0.14 * maze.budget
    listed = 0.1 * max([4, *map(len, names)]) + moves + 0.95 * len(OBJECTIVES)
    figure, (grid, table) = new_axes(2, width=side + listed, height=max(side, 0.34 * (len(paths) + 2)) + 0.45)
    grid.get_gridspec().set_width_ratios([side, listed])
    _draw_maze(grid, maze)
    _maze_legend(grid, grid.legend, loc="upper center", bbox_to_anchor=(0.5, 0.0))
    for number, path in enumerate(paths):
        _draw_walk(grid, maze, path, number, len(paths))
    texts = [_moves(maze, path) for path in paths]
    _list_walks(table, texts, names, rewards_n4, moves / listed)
    return figure


@styled
def maze_sets(gold: str, sets: Mapping[str, Sequence[str]]) -> Figure:
    """Draw the same maze for every method with its set of walks, by the set reward: method -> answers.

    LabError without a method.
    """
    if not sets:
        raise LabError("no method to draw: give at least one set of answers")
    maze, weights_KD = parse_maze(gold), dirichlet_weights(MANY, len(OBJECTIVES))
    worth = {
        name: set_reward(np.stack([score(path, gold) for path in paths]), weights_KD) if paths else 0.0
        for name, paths in sets.items()
    }
    rows, side = 1 if len(sets) <= 4 else 2, 0.5 * maze.size
    columns = -(-len(sets) // rows)
    figure, panels = new_axes(columns, rows, width=max(side * columns, 4.6), height=(side + 0.5) * rows + 0.4)
    for axes, name in zip(panels, sorted(sets, key=worth.__getitem__), strict=False):
        _draw_maze(axes, maze)
        for number, path in enumerate(sets[name]):
            _draw_walk(axes, maze, path, number, len(sets[name]))
        axes.set_title(f"{method_label(name)}\nset reward {worth[name]:.2f}", fontsize=12)
    for axes in panels[len(sets) :]:
        axes.set_visible(False)
    _maze_legend(panels[0], figure.legend, loc="outside lower center")
    return figure


def _draw_maze(axes: Axes, maze: Maze) -> None:
    from matplotlib.patches import Rectangle

    for row, column in np.ndindex(maze.size, maze.size):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="#F4F4F4", edgecolor="white", linewidth=2))
    for kind, cells in _cells_of(maze).items():
        face, marker, color = MAZE_CELLS[kind]
        for row, column in cells:
            style = {"facecolor": face, "edgecolor": "white", "linewidth": 2}
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, hatch="////" if kind == "lava" else "", **style))
        rows, columns = np.array(sorted(cells)).reshape(-1, 2).T
        size = (2400 if kind == "exit" else 1600) / maze.size
        axes.scatter(columns, rows, s=size, marker=marker, color=color, alpha=0.8, linewidths=0, label=kind, zorder=2)
    axes.set_xlim(-0.5, maze.size - 0.5)
    axes.set_ylim(maze.size - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.axis("off")


def _cells_of(maze: Maze) -> dict[str, set | frozenset]:
    """Return the cells of every kind in MAZE_CELLS."""
    ends = {"start": {maze.start}, "exit": {maze.exit}}
    return ends | {"gold": maze.gold, "diamond": maze.diamonds, "lava": maze.lava}


def _lane(number: int, walks: int) -> float:
    """Return how far walk `number` keeps from the middle of the cells, so that walks run side by side."""
    return min(0.13, 0.62 / walks) * (number - (walks - 1) / 2)


def _maze_legend(axes: Axes, legend_of: Callable, **place) -> None:
    handles, labels = axes.get_legend_handles_labels()
    legend = legend_of(handles, labels, ncols=5, fontsize=9, handletextpad=0.1, columnspacing=0.9, **place)
    for handle in legend.legend_handles:
        handle.set_sizes([60])


def _draw_walk(axes: Axes, maze: Maze, path: str, number: int, walks: int) -> None:
    from matplotlib.patheffects import withStroke

    cells = walk(maze, path)
    if cells is None or len(cells) < 2:
        return
    y, x = np.array(cells, dtype=float).T + _lane(number, walks)
    color = candidate_color(number)
    halo = [withStroke(linewidth=4, foreground="white")]
    axes.plot(x, y, color=color, linewidth=2.2, zorder=3, path_effects=halo, solid_joinstyle="round")
    arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 2.2, "mutation_scale": 15, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (x[-1], y[-1]), xytext=(x[-2], y[-2]), arrowprops=arrow, zorder=4)


def _moves(maze: Maze, path: str) -> str:
    """Return the moves of a walk, or why there is no walk."""
    arrows = "".join(path.split())
    if not arrows or not set(arrows) <= MOVES.keys():
        return "no walk"
    return arrows if walk(maze, path) else "leaves the grid"


def _list_walks(axes: Axes, texts: Sequence[str], names: Sequence[str], rewards_nD: np.ndarray, moves: float) -> None:
    """Write every walk's name and moves in its colour, and its reward vector."""
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(axes.figure.get_figheight() / 0.36 - 1.6, -1)  # rows of 0.36 inches, from the top
    first = 0.02 + 0.022 * max(map(len, names), default=0)
    columns = np.linspace(first + moves, 0.95, len(OBJECTIVES))
    for x, objective in zip(columns, OBJECTIVES, strict=True):
        axes.text(x, -0.4, objective.replace("_", " "), ha="center", va="center", fontsize=9.5, color="#444444")
    for row, (text, name) in enumerate(zip(texts, names, strict=True)):
        style = {"va": "center", "color": candidate_color(row), "fontweight": "bold"}
        axes.text(0, row + 0.4, name, **style)
        axes.text(first, row + 0.4, text, **style)
        for x, value in zip(columns, rewards_nD[row], strict=True):
            axes.text(x, row + 0.4, f"{value:.2f}", ha="center", va="center")


# --- As SVG, for the explorer ---------------------------------------------------------------------

MARKERS = {  # the markers of MAZE_CELLS as paths around (0, 0), in units of a cell
    "s": "M-.2-.2h.4v.4h-.4z",
    "o": "M-.22 0a.22.22 0 1 0 .44 0a.22.22 0 1 0-.44 0z",
    "D": "M0-.27L.27 0L0 .27L-.27 0z",
    "^": "M0-.25L.27 .2H-.27z",
    "X": "M-.27-.14L-.14-.27L0-.13L.14-.27L.27-.14L.13 0L.27 .14L.14 .27L0 .13L-.14 .27L-.27 .14L-.13 0z",
}


def maze_picture(gold: str, answers: Sequence[str]) -> str:
    """Return a maze with the walks of M answers as SVG; the group with data-candidate="m" holds walk m."""
    maze = parse_maze(gold)
    kind_of = {cell: kind for kind, cells in _cells_of(maze).items() for cell in cells}
    cells = "".join(
        f'<g transform="translate({column}.5 {row}.5)">{_cell(kind_of.get((row, column)))}</g>'
        for row, column in np.ndindex(maze.size, maze.size)
    )
    walks = "".join(
        f'<g data-candidate="{m}">{_walk_svg(maze, answer, m, len(answers))}</g>' for m, answer in enumerate(answers)
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {maze.size} {maze.size}">{cells}{walks}</svg>'


def maze_key() -> str:
    """Return what the marks in a maze mean, as SVG and text."""
    marks = (f'<svg viewBox="-.5 -.5 1 1" aria-hidden="true">{_cell(kind)}</svg> {kind}' for kind in MAZE_CELLS)
    return f"In the maze: {', '.join(marks)}. The walks of winners are in full colour."


def _cell(kind: str | None) -> str:
    """Return a cell around (0, 0) with what lies in it."""
    face, marker, color = MAZE_CELLS[kind] if kind else ("#F4F4F4", "", "")
    mark = f'<path d="{MARKERS[marker]}" fill="{color}" fill-opacity=".8"/>' if kind else ""
    return f'<rect x="-.48" y="-.48" width=".96" height=".96" fill="{face}"/>{mark}'


def _walk_svg(maze: Maze, answer: str, number: int, walks: int) -> str:
    """Return a line with an arrow at its end, "" for an answer that is no walk."""
    cells = walk(maze, answer)
    if cells is None or len(cells) < 2:
        return ""
    lane = _lane(number, walks) + 0.5
    points = [(column + lane, row + lane) for row, column in cells]
    line = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    (x0, y0), (x, y) = points[-2:]
    dx, dy = x - x0, y - y0  # one cell long
    tip = [(x + 0.16 * dx, y + 0.16 * dy)]
    tip += [(x - 0.14 * dx + side * dy, y - 0.14 * dy + side * dx) for side in (0.15, -0.15)]
    arrow = " ".join(f"{a:.2f},{b:.2f}" for a, b in tip)
    color = candidate_color(number)
    return (
        f'<g fill="none" stroke-linejoin="round"><polyline points="{line}" stroke="#fff" stroke-width=".15"/>'
        f'<polyline points="{line}" stroke="{color}" stroke-width=".08"/></g>'
        f'<polygon points="{arrow}" fill="{color}"/>'
    )
