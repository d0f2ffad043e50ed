"""Weights that stay on the simplex, HTML that is escaped, a widget that is quick and leaves when told."""

import time

import numpy as np
import pytest

from vpo_lab.errors import LabError
from vpo_lab.widgets import HEADLESS, WeightExplorer, rebalance, render_sets, short_answer

OBJECTIVES = ("format", "tool_name", "param_name", "param_value")
CALL = '<think> a </think><tool_call>{"name": "find_hotels", "parameters": {"city": "Oslo", "nights": 2}}</tool_call>'
SETS = {
    "SFT": (["one", "two", "three"], np.array([[1, 0, 0, 0], [0, 1, 1, 1], [0.5, 0.5, 0.5, 0.5]])),
    "GRPO": (["same"] * 3, np.full((3, 4), 0.7)),
    "VPO": ([CALL, "", "<b>bold</b>"], np.array([[1, 1, 1, 0.5], [0, 0, 0, 0], [0.2, 0.2, 0.2, 1.0]])),
}
EQUAL = np.full(4, 0.25)


# --- Weights ------------------------------------------------------------------------------------


def test_moved_weights_stay_on_the_simplex_and_locked_ones_stay_put():
    rng = np.random.default_rng(0)
    for _ in range(300):
        d = int(rng.integers(1, 6))
        weights = rng.dirichlet(np.full(d, 0.3))
        moved = int(rng.integers(d))
        locked = [i for i in range(d) if i != moved and rng.random() < 0.4]
        after = rebalance(weights, moved, rng.uniform(-0.2, 1.2), locked)
        assert np.isclose(after.sum(), 1) and (after >= 0).all()
        assert np.array_equal(after[locked], weights[locked])


def test_the_free_weights_keep_their_proportions():
    after = rebalance(np.array([0.4, 0.2, 0.3, 0.1]), 0, 0.1)
    assert np.allclose(after, [0.1, 0.3, 0.45, 0.15])


def test_a_weight_gives_way_to_locked_ones():
    assert np.allclose(rebalance(np.array([0.2, 0.5, 0.3]), 0, 0.9, locked=[1]), [0.5, 0.5, 0.0])
    assert np.allclose(rebalance(np.array([0.2, 0.5, 0.3]), 0, 0.9, locked=[1, 2]), [0.2, 0.5, 0.3])


def test_from_a_corner_the_others_share_equally():
    assert np.allclose(rebalance(np.array([1.0, 0.0, 0.0]), 0, 0.4), [0.4, 0.3, 0.3])


# --- HTML ---------------------------------------------------------------------------------------


def test_model_text_cannot_become_markup():
    attack = "<script>alert(1)</script> & <img src=x onerror='y'>"
    html = render_sets({attack: ([attack], np.ones((1, 4)))}, EQUAL, (attack, "b", "c", "d"))
    assert "<script" not in html and "<img" not in html
    assert html.count("&lt;script&gt;") == 4  # w, name, heading, answer
    call = '<tool_call>{"name": "<i>x", "parameters": {"<u>": "<s>"}}</tool_call>'
    html = render_sets({"VPO": ([call], np.ones((1, 4)))}, EQUAL, OBJECTIVES)
    assert "<i>" not in html and "<u>" not in html and "<s>" not in html
    explorer = WeightExplorer({"VPO": (["x"], np.ones((1, 4)))}, OBJECTIVES, titles=[attack])
    assert "<script" not in explorer.html


def test_the_winner_is_marked_and_ties_are_called_ties():
    html = render_sets(SETS, EQUAL, OBJECTIVES)
    sft, grpo, vpo = (html.split(f"<b>{name}</b>")[1].split("</table>")[0] for name in SETS)
    assert sft.count("★") == 1 and "tie" not in sft
    assert grpo.count("★ tie") == 3
    assert vpo.count("★") == 1
    only_format = render_sets({"SFT": SETS["SFT"]}, [1, 0, 0, 0], OBJECTIVES)
    assert only_format.index("★") < only_format.index("one") < only_format.index("two")


def test_utilities_are_shown():
    html = render_sets({"SFT": SETS["SFT"]}, [0, 2, 0, 2], OBJECTIVES)  # scaled to sum 1
    assert "tool_name 0.50" in html and "best w·r <b>1.000</b>" in html
    assert "expected utility 0.700" in render_sets({"GRPO": SETS["GRPO"]}, EQUAL, OBJECTIVES)


@pytest.mark.parametrize(
    "sets, weights",
    [
        (SETS, np.ones(3)),
        (SETS, np.zeros(4)),
        (SETS, [1, 1, 1, -1]),
        (SETS, [1, 1, 1, np.nan]),
        ({"SFT": (["one answer"], np.ones((2, 4)))}, EQUAL),
        ({"SFT": ([], np.ones((0, 4)))}, EQUAL),
    ],
)
def test_wrong_shapes_are_one_clear_line(sets, weights):
    with pytest.raises(LabError) as error:
        render_sets(sets, weights, OBJECTIVES)
    assert "\n" not in str(error.value)


def test_short_answers():
    assert short_answer(CALL) == "find_hotels(city=Oslo, nights=2)"
    assert short_answer("<think> a </think><response> Which\n one? </response>") == "says: Which one?"
    assert short_answer("") == short_answer(" \n") == "(no answer)"
    assert short_answer("plain  text") == "plain text"
    assert len(short_answer("x" * 1000, limit=20)) == 20


# --- The explorer -------------------------------------------------------------------------------


def explorer(**options) -> WeightExplorer:
    return WeightExplorer([SETS, {"VPO": SETS["VPO"]}], OBJECTIVES, **options)


def test_state_without_any_widget():
    ours = explorer(titles=["first", "second"])
    assert np.allclose(ours.weights, 0.25) and "first" in ours.html
    ours.preset(3)
    assert np.array_equal(ours.weights, [0, 0, 0, 1])
    ours.draw(alpha=0.5)
    assert np.isclose(ours.weights.sum(), 1)
    ours.set_weight(0, 0.5)
    ours.locked.add(0)
    ours.set_weight(1, 0.5)
    assert np.allclose(ours.weights, [0.5, 0.5, 0, 0])
    ours.preset()
    assert np.allclose(ours.weights, 0.25) and not ours.locked


@pytest.mark.parametrize("call", [lambda: WeightExplorer([], OBJECTIVES), lambda: explorer(titles=["one"])])
def test_nothing_to_explore_is_one_clear_line(call):
    with pytest.raises(LabError):
        call()


def test_sliders_renormalise_and_locks_hold():
    ours = explorer()
    ours.widget  # noqa: B018, builds the sliders
    ours.sliders[0].value = 0.7
    assert np.allclose([s.value for s in ours.sliders], [0.7, 0.1, 0.1, 0.1])
    assert "format 0.70" in ours.tables.value
    ours.locks[0].value = True
    assert ours.sliders[0].disabled
    ours.sliders[3].value = 0.9
    assert np.allclose([s.value for s in ours.sliders], [0.7, 0, 0, 0.3])
    ours.locks[0].value = False
    assert not ours.sliders[0].disabled and not ours.locked
    ours.selector.value = 1
    assert "GRPO" not in ours.tables.value


def test_buttons_set_corners_the_centre_and_draws():
    from ipywidgets import Button

    def buttons(box):
        for child in getattr(box, "children", ()):
            yield from [child] if isinstance(child, Button) else buttons(child)

    ours = explorer()
    found = {button.description: button for button in buttons(ours.widget)}
    assert set(found) == {"equal", *OBJECTIVES, "draw w ~ Dirichlet(alpha)"}
    ours.locks[1].value = True
    found["param_name"].click()
    assert np.allclose([s.value for s in ours.sliders], [0, 0, 1, 0]) and not ours.locks[1].value
    found["draw w ~ Dirichlet(alpha)"].click()
    assert np.isclose(sum(s.value for s in ours.sliders), 1) and ours.sliders[2].value < 1
    found["equal"].click()
    assert np.allclose([s.value for s in ours.sliders], 0.25)


def test_where_nobody_can_turn_a_slider_only_html_is_shown(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    monkeypatch.setenv(HEADLESS, "1")
    ours = explorer()
    ours.show()
    assert isinstance(shown[0], IPython.display.HTML) and shown[0].data == ours.html
    assert "widget" not in vars(ours), "a widget was built: its state would end up in the notebook"
    monkeypatch.delenv(HEADLESS)
    ours.show()
    assert shown[1] is ours.widget


def test_a_drag_is_far_below_a_tenth_of_a_second():
    ours = explorer()
    ours.widget  # noqa: B018, builds the sliders
    start = time.process_time()
    for value in np.linspace(0, 1, 100):
        ours.sliders[0].value = value
    assert (time.process_time() - start) / 100 < 0.05
