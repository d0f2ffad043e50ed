"""Turn the weights and see who wins: sets of candidates side by side, as HTML and with sliders.

`render_sets` is a pure function from arrays to HTML; `WeightExplorer` puts sliders in front of it:
move one to say what counts, the star shows the best answer of each set, the map below who wins where.
Where no one can turn a slider (papermill), only the HTML is shown: no widget, no widget state.
ipywidgets and IPython are loaded when something is shown. docs/explorer.html is the same without a
kernel: `vpo_lab/explorer.py` builds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from html import escape
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.files import encodable
from vpo_lab.processes import session
from vpo_lab.show.style import candidate_color
from vpo_lab.show.vectors import simplex_xy
from vpo_lab.tasks.maze.draw import MAZE_CELLS, _image, maze_picture
from vpo_lab.tasks.tool_calls.reward import parse_answer
from vpo_lab.weights import dirichlet_weights, scalarize, set_reward, winners

if TYPE_CHECKING:
    from ipywidgets import Widget


MAX_CHARS = 140

# A set: M answer texts and their reward vectors (M, D), as `evaluation.sample_sets` gives them.
CandidateSet = tuple[Sequence[str], np.ndarray]

# A point of a triangle as the mixture of its three corners: at least 0, sum 1.
Point = tuple[float, float, float]


# --- Weights that sum to 1 ----------------------------------------------------------------------


def rebalance(weights_D: np.ndarray, moved: int, value: float, locked: Sequence[int] = ()) -> np.ndarray:
    """The weighting after one weight was set by hand: (D,) on the simplex -> (D,) on the simplex.

    Locked weights stay, the others keep their proportions. `value` gives way where the locked ones
    leave no room for it, or where no other weight is free to take the rest.
    """
    weights_D = np.array(weights_D, dtype=float)
    held = [d for d in set(locked) if d != moved]
    free = [d for d in range(len(weights_D)) if d != moved and d not in held]
    room = max(1.0 - weights_D[held].sum(), 0.0)
    value = float(np.clip(value, 0.0, room)) if free else room
    weights_D[moved] = value
    if free:
        shares = weights_D[free] if weights_D[free].sum() > 1e-12 else np.ones(len(free))
        weights_D[free] = (room - value) * shares / shares.sum()
    return weights_D


@lru_cache(maxsize=32)
def utility_weights(d: int) -> np.ndarray:
    """The (128, d) weightings, uniform over the simplex, that expected utility (EUM) is a mean over."""
    return dirichlet_weights(128, d, seed=0)


# --- Who wins where -----------------------------------------------------------------------------

SLIVER = 1e-9  # a share of the triangle that is only a line

CORNERS: tuple[Point, ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def corner_utilities(rewards_MD: np.ndarray, weights_D: np.ndarray, dims: Sequence[int]) -> np.ndarray:
    """w.r at the corners of the triangle of three objectives: (M, D), (D,), three indices -> (M, 3).

    The three divide what they have now, the others keep their weights: so the present weighting is a
    point of the triangle, and as w.r is linear, every point is a mixture of the corners.
    """
    dims = list(dims)
    others_D = np.array(weights_D, dtype=float)
    room = others_D[dims].sum()
    others_D[dims] = 0.0
    return scalarize(rewards_MD, others_D[None]).T + room * np.asarray(rewards_MD, dtype=float)[:, dims]


def win_regions(corners_M3: np.ndarray, tolerance: float = 1e-9) -> list[tuple[tuple[int, ...], list[Point], float]]:
    """The parts of a triangle that candidates win: (tied candidates, polygon, share of the area) each.

    corners_M3: each candidate's utility at the three corners. Exact: utilities are linear, so a part is
    convex, cut by one line for each rival. Candidates that are equal everywhere share a part; who is
    best on a line at most has none.
    """
    rows = np.asarray(corners_M3, dtype=float).tolist()
    groups: list[list[int]] = []
    for number, row in enumerate(rows):
        for group in groups:
            if max(abs(a - b) for a, b in zip(row, rows[group[0]], strict=True)) <= tolerance:
                group.append(number)
                break
        else:
            groups.append([number])
    regions = []
    for group in groups:
        polygon = list(CORNERS)
        for rival in groups:
            if rival is not group and polygon:
                polygon = _clip(polygon, [a - b for a, b in zip(rows[group[0]], rows[rival[0]], strict=True)])
        share = _share(polygon)
        if share > SLIVER:
            regions.append((tuple(group), polygon, share))
    return regions


def _clip(polygon: list[Point], side: Sequence[float]) -> list[Point]:
    """The part of a convex polygon where point . side >= 0 (Sutherland and Hodgman)."""
    # Written out, not in numpy: a drag calls this hundreds of times with half a dozen points.
    a, b, c = side
    heights = [u * a + v * b + w * c for u, v, w in polygon]
    kept = []
    for i, height in enumerate(heights):
        low = heights[i - 1]
        if (height < 0) != (low < 0):
            t = low / (low - height)
            (u0, v0, w0), (u1, v1, w1) = polygon[i - 1], polygon[i]
            kept.append((u0 + t * (u1 - u0), v0 + t * (v1 - v0), w0 + t * (w1 - w0)))
        if height >= 0:
            kept.append(polygon[i])
    return kept


def _share(polygon: list[Point]) -> float:
    """The area of a polygon as a share of the triangle."""
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True)))


# --- Pictures -----------------------------------------------------------------------------------
# SVG in <img>: no text is left over where a page strips pictures, as untrusted notebooks do.

SIDE = 190  # pixels, of the triangle

STRIPE = 0.06  # of a side

HALO = 'paint-order="stroke" stroke="#fff" stroke-width="3" stroke-linejoin="round"'


def winner_map(rewards_MD: np.ndarray, weights_D: np.ndarray, dims: Sequence[int]) -> str:
    """Who wins where as an SVG picture: three objectives at the corners (left, right, top).

    Candidates have their numbers (from 1) and colours, ties stripes; the ring is the present weighting.
    """
    regions = win_regions(corner_utilities(rewards_MD, weights_D, dims))
    areas = "".join(
        _polygon(part, candidate_color(number)) for members, polygon, _ in regions
        for number, part in _stripes(members, polygon)
    )  # fmt: skip
    room = float(np.sum(np.asarray(weights_D)[list(dims)]))
    ring, here = "", None
    if room > 1e-9:
        here = _pixels([np.asarray(weights_D)[list(dims)] / room])[0]
        ring = "".join(
            f'<circle cx="{here[0]:.1f}" cy="{here[1]:.1f}" r="6" {style}/>'
            for style in ('fill="none" stroke="#fff" stroke-width="5"', 'fill="#fff" stroke="#000" stroke-width="2"')
        )
    names = "".join(_region_name(*region, here) for region in regions if region[2] > 0.02)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE + 20} {round(SIDE * 0.866) + 20}" '
        f'font-family="sans-serif" font-size="13" font-weight="bold" text-anchor="middle">'
        f"{_polygon(CORNERS, '#fff', 1)}{areas}<g {HALO}>{names}</g>{ring}</svg>"
    )


def _pixels(points: Sequence[Sequence[float]]) -> np.ndarray:
    """(n, 3) -> (n, 2): where points of the triangle stand in its picture."""
    return simplex_xy(points) * (SIDE, -SIDE) + (10, SIDE * 0.866 + 10)


def _polygon(points: Sequence[Point], color: str, opacity: float = 0.65) -> str:
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in _pixels(points).tolist())
    return f'<polygon points="{corners}" fill="{color}" fill-opacity="{opacity}"/>'


def _stripes(members: tuple[int, ...], polygon: list[Point]):
    """Yield (candidate, its part) of a region; tied ones take turns in slanting stripes."""
    if len(members) == 1:
        yield members[0], polygon
        return
    slant = (simplex_xy(CORNERS).sum(axis=1) / STRIPE).tolist()  # at the corners; linear in between
    for stripe in range(int(max(slant)) + 1):
        part = _clip(_clip(polygon, [s - stripe for s in slant]), [stripe + 1 - s for s in slant])
        if part:
            yield members[stripe % len(members)], part


def _region_name(members: tuple[int, ...], polygon: list[Point], share: float, ring: np.ndarray | None) -> str:
    x, y = _pixels(polygon).mean(axis=0)
    if ring is not None and abs(x - ring[0]) < 12 + 10 * min(len(members), 3) and abs(y - ring[1]) < 20:
        y = ring[1] + 22  # below the ring, not under it
    return (
        f'<text x="{x:.0f}" y="{y:.0f}">{_tied(members)}'
        f'<tspan x="{x:.0f}" dy="14" font-weight="normal">{share:.0%}</tspan></text>'
    )


def _tied(members: tuple[int, ...]) -> str:
    return " = ".join(str(m + 1) for m in members) if len(members) < 4 else f"{len(members)} tied"


# --- Sets as HTML -------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def short_answer(text: str, limit: int = MAX_CHARS) -> str:
    """An answer in one line: its calls, else its response, else its text, cut after `limit` characters."""
    parsed = parse_answer(text)
    if parsed.calls:
        line = "; ".join(f"{call.name}({_arguments(call.parameters)})" for call in parsed.calls)
    elif parsed.response:
        line = f"says: {' '.join(parsed.response.split())}"
    else:
        line = " ".join(str(text).split()) or "(no answer)"
    line = encodable(line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _arguments(parameters: dict) -> str:
    return ", ".join(f"{key}={value}" for key, value in parameters.items())


def render_sets(
    sets: Mapping[str, CandidateSet],
    weights: np.ndarray,
    objectives: Sequence[str],
    dims: Sequence[int] | None = None,
    maze: str = "",
) -> str:
    """Sets side by side under one weighting, as HTML: reward vectors, w.r, the winner of each set.

    sets: name -> (M answers, rewards (M, D)); weights (D,), at least 0, scaled to sum 1. A star marks the
    winner, "tie" where several are equal. Under each set: its best w.r now, and its expected utility
    (EUM) over uniform weightings. dims: three objectives (indices) for a map of who wins where; maze: the
    drawing that the answers walk through. All texts are escaped. Raises LabError on shapes that do not fit.
    """
    weights_D = np.asarray(weights, dtype=float)
    if weights_D.shape != (len(objectives),) or not np.isfinite(weights_D).all() or (weights_D < 0).any():
        raise LabError(f"weights of shape {weights_D.shape}: expected {len(objectives)} numbers >= 0, one an objective")
    if weights_D.sum() <= 0:
        raise LabError("all weights are 0: raise one of them")
    if dims is not None and (len(set(dims)) != 3 or not set(dims) <= set(range(len(objectives)))):
        raise LabError(f"a map of objectives {list(dims)}: name three different ones of 0 to {len(objectives) - 1}")
    weights_D = weights_D / weights_D.sum()
    shown = ", ".join(f"{escape(name)} {w:.2f}" for name, w in zip(objectives, weights_D, strict=True))
    tables = "".join(_render_set(name, *one, weights_D, objectives, dims, maze) for name, one in sets.items())
    keys = (_maze_key() if maze else "") + (MAP_KEY if dims is not None else "")
    return (
        f'<div class="vpo-sets" style="line-height:1.35"><p>w: {shown}</p>'
        f'<div style="display:flex;flex-wrap:wrap;gap:1.4em">{tables}</div>{keys}</div>'
    )


MAP_KEY = (
    "<p><small>Map: every point is a weighting, a corner gives one objective all that the three have now; the others "
    "keep their weights. Colour and number: who wins there; stripes: a tie; the ring: the present weights.</small></p>"
)


def _maze_key() -> str:
    glyphs = {"s": "■", "X": "✖", "o": "●", "D": "◆", "^": "▲"}
    marks = (
        f'<span style="color:{color};background:{face};padding:0 .2em">{glyphs[marker]}</span> {kind}'
        for kind, (face, marker, color) in MAZE_CELLS.items()
    )
    return f"<p><small>Maze: {', '.join(marks)}; winners' ways in full colour.</small></p>"


def _render_set(
    name: str,
    answers: Sequence[str],
    rewards_MD: np.ndarray,
    weights_D: np.ndarray,
    objectives: Sequence[str],
    dims: Sequence[int] | None,
    maze: str,
) -> str:
    rewards_MD = np.asarray(rewards_MD, dtype=float)
    if rewards_MD.shape != (len(answers), len(objectives)) or not len(answers):
        raise LabError(
            f"set {name!r}: {len(answers)} answers with rewards of shape {rewards_MD.shape}, expected (M, D)"
        )
    utility_M = scalarize(rewards_MD, weights_D[None])[0]
    won_M = winners(rewards_MD, weights_D[None])[0]
    mark = "★ tie" if won_M.sum() > 1 else "★"
    head = "".join(f"<th>{escape(text)}</th>" for text in ("", "#", *objectives, "w·r"))
    rows = "".join(
        _render_row(mark if won else "", number, short_answer(answer), [*vector, utility])
        for number, (won, answer, vector, utility) in enumerate(zip(won_M, answers, rewards_MD, utility_M, strict=True))
    )
    expected = set_reward(rewards_MD, utility_weights(len(objectives)))
    pictures = _image(maze_picture(maze, answers, won_M), f"the ways of {name} through the maze", 160) if maze else ""
    if dims is not None:
        pictures += _render_map(rewards_MD, weights_D, objectives, dims)
    return (
        f"<div><b>{escape(name)}</b>"
        f'<table cellpadding="4" style="{TABLE_STYLE}"><tr>{head}</tr>{rows}</table>'
        f"<p>best w·r <b>{utility_M.max():.3f}</b>, expected utility (EUM) {expected:.3f}</p>"
        f'<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:end">{pictures}</div></div>'
    )


# As narrow as its numbers: answers wrap above them, and several sets fit side by side.
TABLE_STYLE = "border-collapse:collapse;font-size:90%;width:min-content;min-width:24em;text-align:right"


def _render_row(mark: str, number: int, answer: str, numbers: Sequence[float]) -> str:
    # A tint that works on white and on black; the star says the same without colour.
    style = ' style="background:rgba(0,114,178,.22);font-weight:bold"' if mark else ""
    swatch = f"border-left:.6em solid {candidate_color(number)};vertical-align:top"
    cells = "".join(f"<td>{number:.2f}</td>" for number in numbers)
    text = f'<td colspan="{len(numbers)}" style="text-align:left;overflow-wrap:anywhere">{escape(answer)}</td>'
    return (
        f'<tr{style}><td rowspan="2" style="white-space:nowrap;vertical-align:top">{mark}</td>'
        f'<td rowspan="2" style="{swatch}">{number + 1}</td>{text}</tr><tr{style}>{cells}</tr>'
    )


def _render_map(rewards_MD: np.ndarray, weights_D: np.ndarray, objectives: Sequence[str], dims: Sequence[int]) -> str:
    """`winner_map` with the names of its corners around it: as HTML they have the reader's colours."""
    left, right, top = (escape(objectives[d]) for d in dims)
    picture = _image(winner_map(rewards_MD, weights_D, dims), "who wins where", SIDE + 20)
    return (
        f'<div style="font-size:85%;text-align:center"><div>{top}</div>{picture}'
        f'<div style="display:flex;justify-content:space-between"><span>{left}</span> <span>{right}</span></div></div>'
    )


# --- Sliders ------------------------------------------------------------------------------------


class WeightExplorer:
    """Sliders over the weights of the objectives, in front of `render_sets`.

    requests: one dict of sets per request, or the dict itself if there is only one;
    titles: a line for each request, shown above the tables and in the selector;
    mazes: for the maze task, each request's drawing (a row's gold), to show the ways in it.

        WeightExplorer(sample_sets(pools, 0), objectives).show()

    Its state (`weights`, `request`, `dims`, `html`) works without any widget; `widget` builds them.
    """

    def __init__(
        self,
        requests: Mapping[str, CandidateSet] | Sequence[Mapping[str, CandidateSet]],
        objectives: Sequence[str],
        titles: Sequence[str] | None = None,
        seed: int = 0,
        mazes: Sequence[str] | None = None,
    ):
        self.requests = [requests] if isinstance(requests, Mapping) else list(requests)
        self.objectives = list(objectives)
        if not self.requests or not self.objectives:
            raise LabError("nothing to explore: at least one request and one objective are needed")
        self.titles = [f"request {i}" for i in range(len(self.requests))] if titles is None else list(titles)
        self.mazes = [""] * len(self.requests) if mazes is None else list(mazes)
        for what, given in (("titles", self.titles), ("mazes", self.mazes)):
            if len(given) != len(self.requests):
                raise LabError(f"{len(given)} {what} for {len(self.requests)} requests: give one each")
        self.request = 0
        d = len(self.objectives)
        self.weights = np.full(d, 1 / d)
        self.dims = tuple(range(d))[-3:] if d >= 3 else None  # the last ones: the first is mostly fulfilled
        self.locked: set[int] = set()
        self._rng = np.random.default_rng(seed)

    @property
    def html(self) -> str:
        """The present request under the present weights."""
        title = f"<p><b>{escape(self.titles[self.request])}</b></p>"
        sets, maze = self.requests[self.request], self.mazes[self.request]
        return title + render_sets(sets, self.weights, self.objectives, self.dims, maze)

    def set_weight(self, objective: int, value: float) -> None:
        """Move one weight; the unlocked others make room, in proportion."""
        self.weights = rebalance(self.weights, objective, value, sorted(self.locked))

    def preset(self, objective: int | None = None) -> None:
        """All weight on one objective; None: the same on each. Unlocks all."""
        d = len(self.objectives)
        self.locked.clear()
        self.weights = np.full(d, 1 / d) if objective is None else np.eye(d)[objective]

    def draw(self, alpha: float = 1.0) -> None:
        """A weighting from Dirichlet(alpha). Unlocks all."""
        self.locked.clear()
        self.weights = dirichlet_weights(1, len(self.objectives), alpha=alpha, method="iid", seed=self._rng)[0]

    def show(self) -> None:
        """Display the sliders; under `vpo-lab run` only the present tables."""
        from IPython.display import HTML, display

        display(HTML(self.html) if session().headless else self.widget)

    @cached_property
    def widget(self) -> Widget:
        """The sliders, locks, presets, the Dirichlet draw, the selectors and the tables."""
        import ipywidgets as w

        self._refreshing = False
        style = {"description_width": "8em"}
        self.sliders = [
            w.FloatSlider(min=0, max=1, step=0.01, description=name, style=style, readout_format=".2f")
            for name in self.objectives
        ]
        self.locks = [
            w.Checkbox(description="lock", indent=False, layout=w.Layout(width="5em")) for _ in self.objectives
        ]
        self.selector = w.Dropdown(
            options=[(title, i) for i, title in enumerate(self.titles)], description="request", style=style
        )
        self.selector.layout.width = "min(100%, 48em)"
        triples = combinations(range(len(self.objectives)), 3)
        self.corners = w.Dropdown(
            options=[(", ".join(self.objectives[d] for d in dims), dims) for dims in triples],
            value=self.dims, description="map of", style=style,
        )  # fmt: skip
        self.corners.layout.width = "min(100%, 36em)"
        self.alpha = w.FloatLogSlider(
            base=10, min=-1, max=1.5, step=0.1, value=1.0, description="alpha", style=style, readout_format=".2f"
        )
        self.tables = w.HTML()
        for number, (slider, lock) in enumerate(zip(self.sliders, self.locks, strict=True)):
            slider.observe(lambda change, d=number: self._moved(d, change["new"]), "value")
            lock.observe(lambda change, d=number: self._lock(d, change["new"]), "value")
        self.selector.observe(lambda change: self._select(request=change["new"]), "value")
        self.corners.observe(lambda change: self._select(dims=change["new"]), "value")
        presets = [self._button("all equal", lambda: self.preset())]
        presets += [self._button(f"only {name}", lambda d=d: self.preset(d)) for d, name in enumerate(self.objectives)]
        draw = self._button("draw w ~ Dirichlet(alpha)", lambda: self.draw(self.alpha.value))
        rows = [w.HBox([slider, lock]) for slider, lock in zip(self.sliders, self.locks, strict=True)]
        wrap = w.Layout(flex_flow="row wrap")
        rows += [w.HBox(presets, layout=wrap), w.HBox([self.alpha, draw], layout=wrap)]
        rows = [self.selector] * (len(self.requests) > 1) + rows + [self.corners] * (len(self.objectives) > 3)
        self._refresh()
        return w.VBox([*rows, self.tables])

    def _button(self, text: str, action):
        import ipywidgets as w

        button = w.Button(description=text, layout=w.Layout(width="auto"))

        def clicked(_):
            action()
            self._refresh()

        button.on_click(clicked)
        return button

    def _moved(self, objective: int, value: float) -> None:
        # A browser sends back what it was shown, too; taken for a move it would go on for ever.
        if not self._refreshing and abs(value - self._shown(objective)) > 1e-6:
            self.set_weight(objective, value)
            self._refresh()

    def _shown(self, objective: int) -> float:
        """A weight in whole steps of its slider: a browser would round it and call that a move."""
        return round(float(self.weights[objective]), 2)

    def _lock(self, objective: int, on: bool) -> None:
        if not self._refreshing:
            (self.locked.add if on else self.locked.discard)(objective)
            self._refresh()

    def _select(self, **state) -> None:
        vars(self).update(state)
        self._refresh()

    def _refresh(self) -> None:
        """Show the state: in the sliders, the locks and the tables."""
        self._refreshing = True
        try:
            for d, (slider, lock) in enumerate(zip(self.sliders, self.locks, strict=True)):
                slider.value = self._shown(d)
                slider.disabled = lock.value = d in self.locked
        finally:
            self._refreshing = False
        self.tables.value = self.html
