"""Explore which answer of each set wins under the weights that a reader sets.

`explorer.js` draws the sliders, the winners and the triangle of winners. This module gives it data, in a notebook
through anywidget. Where no script runs (GitHub, papermill, nbconvert) a table is shown instead.
`vpo_lab.course.page` puts the same script into a page of its own.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import cached_property, lru_cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.files import encodable
from vpo_lab.show.live import someone_looks
from vpo_lab.show.style import OKABE_ITO
from vpo_lab.weights import dirichlet_weights, scalarize, set_reward, winners

SCRIPT = Path(__file__).with_name("explorer.js")

# A set: M answer texts and their reward vectors (M, D), NaN where a request does not ask for an objective.
CandidateSet = tuple[Sequence[str], np.ndarray]


def one_line(text: str, limit: int = 140) -> str:
    """Return a text in one line of at most `limit` characters; half of a surrogate pair becomes U+FFFD."""
    line = " ".join(encodable(str(text)).split()) or "(no answer)"
    return line if len(line) <= limit else line[: limit - 1] + "…"


@lru_cache
def utility_weights(d: int) -> np.ndarray:
    """Return the (128, d) weights, uniform over the simplex, that expected utility (EUM) is a mean over."""
    # Rounded: the last bits of a logarithm differ between processors, and a page must not.
    return dirichlet_weights(128, d, seed=0).round(9)


def explorer_data(worlds: Sequence[dict]) -> dict:
    """Return what `explorer.js` reads: worlds of `make_world`, EUM's weights by number of objectives, colours."""
    sizes = sorted({len(world["objectives"]) for world in worlds})
    weights = {str(d): utility_weights(d).tolist() for d in sizes}
    return {"worlds": list(worlds), "utility_weights": weights, "palette": list(OKABE_ITO)}


def make_world(
    requests: Sequence[Mapping[str, CandidateSet]],
    objectives: Sequence[str],
    titles: Sequence[str] | None = None,
    task: Any = None,
    rows: Sequence[Mapping[str, Any]] | None = None,
    start: str = "",
    apart: Container[str] = (),
) -> dict:
    """Return requests with the same objectives in the form of `explorer.js`; arguments and errors: see `Explorer`.

    Sets with a name in `apart` are not shown before a reader asks for them.
    """
    if not requests or not objectives:
        raise LabError("nothing to explore: at least one request and one objective are needed")
    if start and start not in objectives:
        raise LabError(f"start = {start!r} is no objective: choose one of {', '.join(objectives)}, or leave it out")
    for what, given in (("titles", titles), ("rows", rows)):
        if given is not None and len(given) != len(requests):
            raise LabError(f"{len(given)} {what} for {len(requests)} requests: give one each")
    drawn, d = rows is not None and hasattr(task, "picture"), len(objectives)
    name_row = getattr(task, "title", lambda row: row["id"])
    titles = titles or [name_row(row) for row in rows or ()] or [f"request {i + 1}" for i in range(len(requests))]
    shown = []
    for number, (title, sets) in enumerate(zip(titles, requests, strict=True)):
        made = []
        for name, (answers, rewards) in sets.items():
            rewards_MD = np.asarray(rewards, dtype=float)
            if rewards_MD.shape != (len(answers), d) or not len(answers):
                shape = rewards_MD.shape
                raise LabError(f"set {name!r}: {len(answers)} answers, rewards of shape {shape}: expected (M, {d})")
            made.append(
                {
                    "name": one_line(name),
                    "apart": name in apart,
                    "answers": [one_line(getattr(task, "short", str)(answer), 240) for answer in answers],
                    "rewards": np.where(np.isnan(rewards_MD), None, rewards_MD).tolist(),
                    "picture": task.picture(rows[number]["gold"], answers) if drawn else "",
                }
            )
        if not any(value is not None for one in made for row in one["rewards"] for value in row):
            raise LabError(f"rewards of {title!r} are NaN everywhere: a request asks for one objective at least")
        shown.append({"title": one_line(title, 200), "sets": made})
    return {
        "name": "",
        "about": getattr(task, "about", ""),
        "key": task.picture_key if drawn and hasattr(task, "picture_key") else "",
        "objectives": list(objectives),
        "start": start,
        "meanings": [getattr(task, "meanings", {}).get(objective, "") for objective in objectives],
        "requests": shown,
    }


class Explorer:
    """Show sets of answers under weights that a reader sets: as the last line of a cell, or by `show()`.

    requests: one dict of sets per request, name -> (M answers, rewards (M, D) in [0, 1], NaN where the request does
    not ask for an objective), or that dict itself; objectives: D names; titles: a line for each request.
    task: an object that may offer `short(answer)` and `title(row)`, one line each; `meanings`, objective -> a few
    words; `about`; `picture(gold, answers)`, an SVG in which what belongs to answer m carries data-candidate="m";
    `picture_key`, markup. rows: the task's rows of these requests. start: the objective that has all weight at first,
    "": equal weights. The game is to find weights under which the last set loses. Raises LabError if shapes, lengths or
    names do not fit.

        Explorer(sample_sets(pools, 0), task.objectives, task=task)
    """

    def __init__(
        self,
        requests: Mapping[str, CandidateSet] | Sequence[Mapping[str, CandidateSet]],
        objectives: Sequence[str],
        titles: Sequence[str] | None = None,
        task: Any = None,
        rows: Sequence[Mapping[str, Any]] | None = None,
        start: str = "",
    ):
        requests = [requests] if isinstance(requests, Mapping) else list(requests)
        self.data = explorer_data([make_world(requests, objectives, titles, task, rows, start)])

    @cached_property
    def widget(self) -> Any:
        """Return the anywidget; its trait `weights` (D numbers) follows the sliders, and they follow it."""
        return _widget_class()(data=self.data)

    @property
    def html(self) -> str:
        """Return the first request under the weights of the start, as tables."""
        world = self.data["worlds"][0]
        request, names, start = world["requests"][0], world["objectives"], world["start"]
        weights_D = np.array([name == start for name in names]) if start else np.full(len(names), 1 / len(names))
        tables = "".join(_table(one, names, weights_D[None].astype(float)) for one in request["sets"])
        said = f"All weight on {escape(start)}:" if start else "All weights equal:"
        return f'<div class="vpo-sets"><p><b>{escape(request["title"])}</b></p><p>{said}</p>{tables}</div>'

    def show(self) -> None:
        """Display the explorer."""
        from IPython.display import display

        display(self)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict, dict]:
        static = {"text/plain": "Explorer", "text/html": self.html}
        if not someone_looks():  # a widget would save its state into the notebook
            return static, {}
        bundle, metadata = self.widget._repr_mimebundle_()
        return bundle | static, metadata


@lru_cache
def _widget_class() -> type:
    import anywidget
    import traitlets

    class View(anywidget.AnyWidget):
        _esm = SCRIPT.read_text(encoding="utf-8")
        data = traitlets.Dict().tag(sync=True)
        weights = traitlets.List(traitlets.Float()).tag(sync=True)

    return View


def _table(one: dict, objectives: Sequence[str], weights_1D: np.ndarray) -> str:
    """Return a set as a table: the star, the answer, its rewards and w.r; no star for an answer that earns 0."""
    rewards_MD = np.array(one["rewards"], dtype=float)
    utility_M = scalarize(rewards_MD, weights_1D)[0]
    won_M = winners(rewards_MD, weights_1D)[0] & (utility_M > 1e-9)
    mark = "★ tie" if won_M.sum() > 1 else "★"
    rows = [["", one["name"], *objectives, "w·r"]]
    for answer, vector, utility, won in zip(one["answers"], rewards_MD, utility_M, won_M, strict=True):
        numbers = ["–" if np.isnan(value) else f"{value:.2f}" for value in (*vector, utility)]
        rows.append([mark if won else "", answer, *numbers])
    cells = ["".join(f"<td>{escape(text)}</td>" for text in row) for row in rows]
    best, expected = utility_M.max(), set_reward(rewards_MD, utility_weights(len(objectives)))
    return (
        f"<table><thead><tr>{cells[0].replace('td>', 'th>')}</tr></thead><tbody>"
        f"{''.join(f'<tr>{row}</tr>' for row in cells[1:])}</tbody></table>"
        f"<p>best w·r <b>{best:.3f}</b>, expected utility (EUM) {expected:.3f}</p>"
    )
