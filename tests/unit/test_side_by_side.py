"""Answers side by side: equal ones share a row, and each says whom it is best for."""

import numpy as np
import pytest

from vpo_lab.errors import LabError
from vpo_lab.show import side_by_side


def shown(sets, objectives=("warm", "brief"), **more):
    return side_by_side("a <request>", sets, objectives, **more).html


def rows_of(html):
    return [part.split("</tr>")[0] for part in html.split("<tbody>")[1].split("<tr>")[1:]]


def test_equal_answers_share_a_row_that_counts_them():
    html = shown({"grpo": (["yes"] * 11 + ["no"], np.array([[1, 0.5]] * 11 + [[0, 1]]))})
    first, second, best = rows_of(html)
    assert "11 ×" in first and "yes" in first and "×" not in second and "no" in second
    assert first.endswith("warm</td>") and second.endswith("brief</td>")
    assert best.count("1.00") == 2


def test_nobody_chooses_by_an_objective_in_which_all_are_equal():
    (only, _) = rows_of(shown({"grpo": (["yes"] * 3, np.ones((3, 2)))}))
    assert "warm" not in only and "brief" not in only


def test_an_objective_that_is_not_asked_is_a_dash():
    (first, second, best) = rows_of(shown({"vpo": (["a", "b"], np.array([[np.nan, 0.2], [np.nan, 0.4]]))}))
    assert "–" in first and "–" in best and second.endswith("brief</td>")


def test_texts_cannot_break_the_page():
    html = shown({"vpo": (["<script>x</script>", ""], np.zeros((2, 2)))}, meanings={"warm": "<b>"})
    assert "<script>" not in html and "a &lt;request&gt;" in html and "&lt;b&gt;" in html


def test_many_answers_are_cut_and_counted():
    html = shown({"sft": ([f"answer {n}" for n in range(9)], np.zeros((9, 2)))}, most=4)
    assert len(rows_of(html)) == 6 and "5 more" in html


def test_shapes_that_do_not_fit_are_refused():
    for answers, rewards in ((["a"], np.zeros((2, 2))), ([], np.zeros((0, 2))), (["a"], np.zeros((1, 3)))):
        with pytest.raises(LabError, match="expected"):
            shown({"vpo": (answers, rewards)})


def test_a_notebook_shows_it():
    made = side_by_side("r", {"vpo": (["a"], np.zeros((1, 1)))}, ["x"])
    assert made._repr_html_() == made.html
