"""Turn the weights and see who wins: sets of candidates side by side, as HTML and with sliders.

`render_sets` is a pure function from arrays to HTML; `WeightExplorer` puts sliders in front of it.
Where no one can turn a slider (papermill), only the HTML is shown: no widget, no widget state.
ipywidgets and IPython are loaded when something is shown.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.scalarization import dirichlet_weights, scalarize, set_reward, winners
from vpo_lab.tasks.tool_reward import parse_answer

if TYPE_CHECKING:
    from ipywidgets import Widget

HEADLESS = "VPO_LAB_HEADLESS"  # the pipeline sets this to 1 while it executes notebooks
MAX_CHARS = 140

# A set: M answer texts and their reward vectors (M, D), as `evaluation.sample_sets` gives them.
CandidateSet = tuple[Sequence[str], np.ndarray]


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


# --- Sets as HTML -------------------------------------------------------------------------------


def short_answer(text: str, limit: int = MAX_CHARS) -> str:
    """An answer in one line: its calls, else its response, else its text, cut after `limit` characters."""
    parsed = parse_answer(text)
    if parsed.calls:
        line = "; ".join(f"{call.name}({_arguments(call.parameters)})" for call in parsed.calls)
    elif parsed.response:
        line = f"says: {' '.join(parsed.response.split())}"
    else:
        line = " ".join(str(text).split()) or "(no answer)"
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _arguments(parameters: dict) -> str:
    return ", ".join(f"{key}={value}" for key, value in parameters.items())


@lru_cache(maxsize=32)
def _draws(d: int) -> np.ndarray:
    return dirichlet_weights(128, d, seed=0)


def render_sets(sets: Mapping[str, CandidateSet], weights: np.ndarray, objectives: Sequence[str]) -> str:
    """Sets side by side under one weighting, as HTML: reward vectors, w.r, the winner of each set.

    sets: name -> (M answers, rewards (M, D)); weights (D,), at least 0, scaled to sum 1. A star marks the
    winner, "tie" where several are equal. Under each set: its best w.r now, and its expected utility
    over uniform weightings. All texts are escaped. Raises LabError on shapes that do not fit.
    """
    weights_D = np.asarray(weights, dtype=float)
    if weights_D.shape != (len(objectives),) or not np.isfinite(weights_D).all() or (weights_D < 0).any():
        raise LabError(f"weights of shape {weights_D.shape}: expected {len(objectives)} numbers >= 0, one an objective")
    if weights_D.sum() <= 0:
        raise LabError("all weights are 0: raise one of them")
    weights_D = weights_D / weights_D.sum()
    shown = ", ".join(f"{escape(name)} {w:.2f}" for name, w in zip(objectives, weights_D, strict=True))
    tables = "".join(_render_set(name, *one, weights_D, objectives) for name, one in sets.items())
    return f'<div><p>w: {shown}</p><div style="display:flex;flex-wrap:wrap;gap:1.2em">{tables}</div></div>'


def _render_set(
    name: str, answers: Sequence[str], rewards_MD: np.ndarray, weights_D: np.ndarray, objectives: Sequence[str]
) -> str:
    rewards_MD = np.asarray(rewards_MD, dtype=float)
    if rewards_MD.shape != (len(answers), len(objectives)) or not len(answers):
        raise LabError(
            f"set {name!r}: {len(answers)} answers with rewards of shape {rewards_MD.shape}, expected (M, D)"
        )
    utility_M = scalarize(rewards_MD, weights_D[None])[0]
    won_M = winners(rewards_MD, weights_D[None])[0]
    mark = "★ tie" if won_M.sum() > 1 else "★"
    head = "".join(f"<th>{escape(text)}</th>" for text in ("", "answer", *objectives, "w·r"))
    rows = "".join(
        _render_row(mark if won else "", short_answer(answer), [*vector, utility])
        for won, answer, vector, utility in zip(won_M, answers, rewards_MD, utility_M, strict=True)
    )
    expected = set_reward(rewards_MD, _draws(len(objectives)))
    return (
        f"<div><b>{escape(name)}</b>"
        f'<table cellpadding="4" style="border-collapse:collapse;font-size:90%"><tr>{head}</tr>{rows}</table>'
        f"<p>best w·r <b>{utility_M.max():.3f}</b>, expected utility {expected:.3f}</p></div>"
    )


def _render_row(mark: str, answer: str, numbers: Sequence[float]) -> str:
    # A tint that works on white and on black; the star says the same without colour.
    style = ' style="background:rgba(0,114,178,.22);font-weight:bold"' if mark else ""
    cells = "".join(f"<td>{number:.2f}</td>" for number in numbers)
    text = f'<td style="text-align:left;max-width:24em;overflow-wrap:anywhere">{escape(answer)}</td>'
    return f'<tr{style}><td style="white-space:nowrap">{mark}</td>{text}{cells}</tr>'


# --- Sliders ------------------------------------------------------------------------------------


class WeightExplorer:
    """Sliders over the weights of the objectives, in front of `render_sets`.

    requests: one dict of sets per request, or the dict itself if there is only one;
    titles: a line for each request, shown above the tables and in the selector.

        WeightExplorer(sample_sets(pools, 0), objectives).show()

    Its state (`weights`, `request`, `html`) works without any widget; `widget` builds them.
    """

    def __init__(
        self,
        requests: Mapping[str, CandidateSet] | Sequence[Mapping[str, CandidateSet]],
        objectives: Sequence[str],
        titles: Sequence[str] | None = None,
        seed: int = 0,
    ):
        self.requests = [requests] if isinstance(requests, Mapping) else list(requests)
        self.objectives = list(objectives)
        if not self.requests or not self.objectives:
            raise LabError("nothing to explore: at least one request and one objective are needed")
        self.titles = [f"request {i}" for i in range(len(self.requests))] if titles is None else list(titles)
        if len(self.titles) != len(self.requests):
            raise LabError(f"{len(self.titles)} titles for {len(self.requests)} requests: give one each")
        self.request = 0
        self.weights = np.full(len(self.objectives), 1 / len(self.objectives))
        self.locked: set[int] = set()
        self._rng = np.random.default_rng(seed)

    @property
    def html(self) -> str:
        """The present request under the present weights."""
        title = f"<p><b>{escape(self.titles[self.request])}</b></p>"
        return title + render_sets(self.requests[self.request], self.weights, self.objectives)

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
        """Display the sliders; where VPO_LAB_HEADLESS is 1, only the present tables."""
        from IPython.display import HTML, display

        display(HTML(self.html) if os.environ.get(HEADLESS) == "1" else self.widget)

    @cached_property
    def widget(self) -> Widget:
        """The sliders, locks, presets, the Dirichlet draw, the selector and the tables."""
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
        self.alpha = w.FloatLogSlider(
            base=10, min=-1, max=1.5, step=0.1, value=1.0, description="alpha", style=style, readout_format=".2f"
        )
        self.tables = w.HTML()
        for number, (slider, lock) in enumerate(zip(self.sliders, self.locks, strict=True)):
            slider.observe(lambda change, d=number: self._moved(d, change["new"]), "value")
            lock.observe(lambda change, d=number: self._lock(d, change["new"]), "value")
        self.selector.observe(lambda change: self._select(change["new"]), "value")
        presets = [self._button("equal", lambda: self.preset())]
        presets += [self._button(name, lambda d=d: self.preset(d)) for d, name in enumerate(self.objectives)]
        draw = self._button("draw w ~ Dirichlet(alpha)", lambda: self.draw(self.alpha.value), width="14em")
        rows = [w.HBox([slider, lock]) for slider, lock in zip(self.sliders, self.locks, strict=True)]
        wrap = w.Layout(flex_flow="row wrap")
        top = [self.selector] if len(self.requests) > 1 else []
        box = w.VBox([*top, *rows, w.HBox(presets, layout=wrap), w.HBox([self.alpha, draw], layout=wrap), self.tables])
        self._refresh()
        return box

    def _button(self, text: str, action, width: str = "auto"):
        import ipywidgets as w

        button = w.Button(description=text, layout=w.Layout(width=width))

        def clicked(_):
            action()
            self._refresh()

        button.on_click(clicked)
        return button

    def _moved(self, objective: int, value: float) -> None:
        if not self._refreshing:  # set by hand, not by `_refresh`
            self.set_weight(objective, value)
            self._refresh()

    def _lock(self, objective: int, on: bool) -> None:
        if not self._refreshing:
            (self.locked.add if on else self.locked.discard)(objective)
            self._refresh()

    def _select(self, request: int) -> None:
        self.request = request
        self._refresh()

    def _refresh(self) -> None:
        """Show the state: in the sliders, the locks and the tables."""
        self._refreshing = True
        try:
            for d, (slider, lock) in enumerate(zip(self.sliders, self.locks, strict=True)):
                slider.value = float(self.weights[d])
                slider.disabled = lock.value = d in self.locked
        finally:
            self._refreshing = False
        self.tables.value = self.html
