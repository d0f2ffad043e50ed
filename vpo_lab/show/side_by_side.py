"""Show the answers of several policies to one request side by side, with what each objective gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.show.explorer import CandidateSet
from vpo_lab.show.style import candidate_color, method_label

_SAME = 1e-9  # rewards this close are a tie
_CELL = "padding:.25em .6em;vertical-align:top;border-top:1px solid #ddd"


@dataclass(frozen=True)
class SideBySide:
    """Hold tables as HTML, which a notebook shows as the last line of a cell."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def side_by_side(
    title: str,
    sets: Mapping[str, CandidateSet],
    objectives: Sequence[str],
    meanings: Mapping[str, str] | None = None,
    most: int = 12,
) -> SideBySide:
    """Return a table for each set: its answers, their rewards, and whom each is best for.

    sets: name of a method -> (M answers, rewards (M, D), NaN where not asked). Equal answers share a row that counts
    them, so that twelve equal ones are seen as what they are. "best for" names the objectives in which no answer of the
    set is better, unless all are equal in it. The last row holds the best of the set in each objective: what somebody
    gets who cares for that one only. meanings: objective -> a few words, shown above the tables. Only the `most` most
    frequent answers are shown. LabError if rewards have another shape.
    """
    names = list(objectives)
    tables = "".join(_table(name, *one, names, most) for name, one in sets.items())
    known = [(name, (meanings or {}).get(name, "")) for name in names]
    legend = "; ".join(f"<b>{escape(name)}</b>: {escape(meaning)}" for name, meaning in known if meaning)
    return SideBySide(
        f'<section class="vpo-side-by-side"><h3>{escape(title)}</h3>{f"<p>{legend}</p>" if legend else ""}{tables}'
        "</section>"
    )


def _table(name: str, answers: Sequence[str], rewards: np.ndarray, objectives: list[str], most: int) -> str:
    rewards_MD = np.asarray(rewards, dtype=float)
    if not len(answers) or rewards_MD.shape != (len(answers), len(objectives)):
        raise LabError(
            f"set {name!r}: {len(answers)} answers, rewards of shape {rewards_MD.shape}: "
            f"expected (M, {len(objectives)})"
        )
    groups: dict[str, list[int]] = {}
    for number, answer in enumerate(answers):
        groups.setdefault(answer, []).append(number)
    # A lost judgement can make equal answers differ for once: the mean of a group stands for it.
    rows = [(answer, len(numbers), rewards_MD[numbers].mean(axis=0)) for answer, numbers in groups.items()]
    rows.sort(key=lambda row: -row[1])
    best_D, worst_D = rewards_MD.max(axis=0), rewards_MD.min(axis=0)
    head = "".join(f'<th style="text-align:left;{_CELL}">{escape(text)}</th>' for text in ("", "answer", *objectives))
    body = []
    for answer, count, rewards_D in rows[:most]:
        won_D = (rewards_D >= best_D - _SAME) & (best_D > worst_D + _SAME)
        best_for = ", ".join(objective for objective, won in zip(objectives, won_D, strict=True) if won)
        cells = [f"{count} ×" if count > 1 else "", escape(answer) or "<i>no answer</i>"]
        cells += [_mark(value, d, won) for d, (value, won) in enumerate(zip(rewards_D, won_D, strict=True))]
        body.append(_row([*cells, escape(best_for)]))
    if len(rows) > most:
        rest = sum(count for _, count, _ in rows[most:])
        body.append(_row(["", f"<i>{rest} more answers</i>", *[""] * len(objectives), ""]))
    body.append(_row(["", "<b>best of the set</b>", *(f"<b>{_number(value)}</b>" for value in best_D), ""]))
    return (
        f"<h4>{escape(method_label(name))}: {len(answers)} answers, {len(groups)} different</h4>"
        f'<table style="border-collapse:collapse"><thead><tr>{head}<th style="text-align:left;{_CELL}">best for</th>'
        f"</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def _row(cells: Sequence[str]) -> str:
    inner = "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells)
    return f"<tr>{inner}</tr>"


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"


def _mark(value: float, objective: int, won: bool) -> str:
    """Return a reward as a number over a bar, bold where it is the best of the set."""
    if np.isnan(value):
        return _number(value)
    number = f"<b>{_number(value)}</b>" if won else _number(value)
    bar = f"height:4px;width:{3 * min(1.0, max(0.0, value)):.2f}em;background:{candidate_color(objective)}"
    return f'{number}<div style="{bar}"></div>'
