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


@dataclass(frozen=True)
class Row:
    """Hold equal answers of a set: how many they are, their rewards (D,), and in which objectives none is better."""

    answer: str
    count: int
    rewards_D: np.ndarray
    won_D: np.ndarray


def rows_of(name: str, answers: Sequence[str], rewards: np.ndarray, objectives: Sequence[str]) -> list[Row]:
    """Group the equal answers of a set, the most frequent first. An objective in which all are equal is won by none.

    rewards: (M, D), NaN where not asked. LabError that names the set if they have another shape.
    """
    rewards_MD = np.asarray(rewards, dtype=float)
    if not len(answers) or rewards_MD.shape != (len(answers), len(objectives)):
        raise LabError(
            f"set {name!r}: {len(answers)} answers, rewards of shape {rewards_MD.shape}: "
            f"expected (M, {len(objectives)})"
        )
    groups: dict[str, list[int]] = {}
    for m, answer in enumerate(answers):
        groups.setdefault(answer, []).append(m)
    best_D, worst_D = rewards_MD.max(axis=0), rewards_MD.min(axis=0)
    rows = []
    for answer, numbers in groups.items():
        # A lost judgement can make equal answers differ for once: the mean of a group stands for it.
        rewards_D = rewards_MD[numbers].mean(axis=0)
        won_D = (rewards_D >= best_D - _SAME) & (best_D > worst_D + _SAME)
        rows.append(Row(answer, len(numbers), rewards_D, won_D))
    return sorted(rows, key=lambda row: -row.count)


def _table(name: str, answers: Sequence[str], rewards: np.ndarray, objectives: list[str], most: int) -> str:
    rows = rows_of(name, answers, rewards, objectives)
    best_D = np.asarray(rewards, dtype=float).max(axis=0)
    head = "".join(f'<th style="text-align:left;{_CELL}">{escape(text)}</th>' for text in ("", "answer", *objectives))
    body = []
    for row in rows[:most]:
        best_for = ", ".join(objective for objective, won in zip(objectives, row.won_D, strict=True) if won)
        cells = [f"{row.count} ×" if row.count > 1 else "", escape(row.answer) or "<i>no answer</i>"]
        cells += [_mark(value, d, won) for d, (value, won) in enumerate(zip(row.rewards_D, row.won_D, strict=True))]
        body.append(_row([*cells, escape(best_for)]))
    if len(rows) > most:
        rest = sum(row.count for row in rows[most:])
        body.append(_row(["", f"<i>{rest} more answers</i>", *[""] * len(objectives), ""]))
    body.append(_row(["", "<b>best of the set</b>", *(f"<b>{number(value)}</b>" for value in best_D), ""]))
    return (
        f"<h4>{escape(method_label(name))}: {len(answers)} answers, {len(rows)} different</h4>"
        f'<table style="border-collapse:collapse"><thead><tr>{head}<th style="text-align:left;{_CELL}">best for</th>'
        f"</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def _row(cells: Sequence[str]) -> str:
    inner = "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells)
    return f"<tr>{inner}</tr>"


def number(value: float) -> str:
    """Return a reward in two decimals, a dash where it is NaN."""
    return "–" if np.isnan(value) else f"{value:.2f}"


def _mark(value: float, objective: int, won: bool) -> str:
    """Return a reward as a number over a bar, bold where it is the best of the set."""
    if np.isnan(value):
        return number(value)
    told = f"<b>{number(value)}</b>" if won else number(value)
    bar = f"height:4px;width:{3 * min(1.0, max(0.0, value)):.2f}em;background:{candidate_color(objective)}"
    return f'{told}<div style="{bar}"></div>'
