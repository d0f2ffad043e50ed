"""Weights that stay on the simplex, maps of who wins where, HTML that is escaped, a widget that leaves when told."""

from base64 import b64decode
from xml.etree import ElementTree

import numpy as np
import pytest

from vpo_lab.course import widgets
from vpo_lab.course.widgets import (
    CORNERS,
    HEADLESS,
    WeightExplorer,
    corner_utilities,
    rebalance,
    render_sets,
    short_answer,
    win_regions,
    winner_map,
)
from vpo_lab.errors import LabError
from vpo_lab.show.style import OKABE_ITO
from vpo_lab.tasks.maze.draw import maze_picture, maze_walks
from vpo_lab.tasks.maze.world import MazeTask, best_paths
from vpo_lab.weights import scalarize, winners

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


# --- Who wins where -----------------------------------------------------------------------------


def test_corner_utilities_are_w_r_of_every_division_of_what_the_three_have():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rewards, weights, point = rng.random((4, 5)), rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(3))
        dims = rng.choice(5, 3, replace=False)
        there = weights.copy()
        there[dims] = weights[dims].sum() * point
        mixed = corner_utilities(rewards, weights, dims) @ point
        assert np.allclose(mixed, scalarize(rewards, there[None])[0])


def test_regions_are_where_the_winners_win_and_fill_the_triangle():
    rng = np.random.default_rng(1)
    for trial in range(60):
        corners = rng.random((int(rng.integers(1, 12)), 3))
        if trial % 2:  # coarse values: ties
            corners = np.round(corners * 3) / 3
        regions = win_regions(corners)
        assert np.isclose(sum(share for _, _, share in regions), 1)
        draws = rng.dirichlet(np.ones(3), size=4000)
        groups, counts = np.unique(winners(corners, draws), axis=0, return_counts=True)
        counted = {
            tuple(np.flatnonzero(group).tolist()): count / 4000 for group, count in zip(groups, counts, strict=True)
        }
        for members, polygon, share in regions:
            assert share < 0.01 or abs(share - counted[members]) < 0.04
            middle = np.mean(polygon, axis=0)
            assert set(np.flatnonzero(winners(corners, middle[None])[0])) >= set(members)


def test_equal_candidates_share_a_region_and_dominated_ones_have_none():
    regions = win_regions([[1, 0, 0], [0.5, 0.5, 0.5], [1, 0, 0], [0.4, 0.5, 0.5]])
    assert [members for members, _, _ in regions] == [(0, 2), (1,)]
    assert np.isclose(regions[0][2], 0.25) and np.isclose(regions[1][2], 0.75)
    assert win_regions(np.ones((3, 3)))[0][:2] == ((0, 1, 2), list(CORNERS))


def parts(svg: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{tag}"))


def test_the_map_has_colours_stripes_and_the_present_weights():
    alone = winner_map(np.eye(4)[1:], EQUAL, (1, 2, 3))
    colors = [part.get("fill") for part in parts(alone, "polygon")]
    assert colors == ["#fff", *OKABE_ITO[:3]]
    assert [name.text for name in parts(alone, "text")] == ["1", "2", "3"]
    assert len(parts(alone, "circle")) == 2
    tied = winner_map(SETS["GRPO"][1], EQUAL, (0, 1, 2))
    assert [name.text for name in parts(tied, "text")] == ["1 = 2 = 3"]
    fills = [part.get("fill") for part in parts(tied, "polygon")][1:]
    assert fills[:3] == fills[3:6] == colors[1:]
    nothing_left = winner_map(SETS["SFT"][1], np.array([1.0, 0, 0, 0]), (1, 2, 3))
    assert not parts(nothing_left, "circle"), "the three have no weight: there is no present point"


def test_the_ring_follows_the_weights():
    rings = [parts(winner_map(np.eye(3), np.array(w), (0, 1, 2)), "circle")[0] for w in ([1, 0, 0], [0, 1, 0])]
    left, right = (float(ring.get("cx")) for ring in rings)
    assert right - left == pytest.approx(widgets.SIDE)


# --- The maze -----------------------------------------------------------------------------------

MAZE = MazeTask().load(split="test")[0]["gold"]
MAZE_ANSWER = best_paths(MAZE)[0]


def test_ways_are_drawn_from_start_to_exit_and_what_is_no_walk_is_not():
    paths = best_paths(MAZE)[:2]
    ways = maze_walks(MAZE, [*paths, "no arrows"])
    assert ways[2] == ""
    line = ElementTree.fromstring(f"<svg>{ways[0]}</svg>").find("g/polyline").get("points").split()
    assert len(line) == len(paths[0]) + 1
    picture = maze_picture(MAZE, [*paths, "no arrows"], [True, False, False])
    assert [group.get("opacity") for group in parts(picture, "g") if group.get("opacity")] == ["1", "0.35", "0.35"]
    assert len(parts(picture, "rect")) == 25


# --- HTML ---------------------------------------------------------------------------------------


def test_model_text_cannot_become_markup():
    attack = "<script>alert(1)</script> & <img src=x onerror='y'>"
    html = render_sets({attack: ([attack], np.ones((1, 4)))}, EQUAL, (attack, "b", "c", "d"))
    assert "<script" not in html and "<img" not in html
    assert html.count("&lt;script&gt;") == 4  # w, name, heading, answer
    html = render_sets({"VPO": (["a"], np.ones((1, 3)))}, [1, 1, 1], (attack, "b", attack), (0, 1, 2))
    assert "<script" not in html and html.count("&lt;script&gt;") == 6  # the corners of the map too
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
    assert "expected utility (EUM) 0.700" in render_sets({"GRPO": SETS["GRPO"]}, EQUAL, OBJECTIVES)


def images(html: str) -> list[str]:
    """The SVG pictures of a page."""
    return [b64decode(rest.split('"')[0]).decode() for rest in html.split("data:image/svg+xml;base64,")[1:]]


def test_maps_and_mazes_are_pictures_that_leave_no_text_where_pictures_are_stripped():
    assert "<img" not in render_sets(SETS, EQUAL, OBJECTIVES)
    html = render_sets(SETS, EQUAL, OBJECTIVES, (1, 2, 3))
    assert len(images(html)) == 3 and "<svg" not in html and "<text" not in html
    html = render_sets({"SFT": ([MAZE_ANSWER], np.ones((1, 4)))}, EQUAL, OBJECTIVES, (1, 2, 3), MAZE)
    assert [len(parts(svg, "rect")) for svg in images(html)] == [25, 0]


@pytest.mark.parametrize("dims", [(0, 1), (0, 1, 1), (0, 1, 4)])
def test_a_map_needs_three_objectives(dims):
    with pytest.raises(LabError, match="three different ones"):
        render_sets(SETS, EQUAL, OBJECTIVES, dims)


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


@pytest.mark.parametrize(
    "call",
    [lambda: WeightExplorer([], OBJECTIVES), lambda: explorer(titles=["one"]), lambda: explorer(mazes=[MAZE])],
)
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
    assert set(found) == {"all equal", *(f"only {name}" for name in OBJECTIVES), "draw w ~ Dirichlet(alpha)"}
    ours.locks[1].value = True
    found["only param_name"].click()
    assert np.allclose([s.value for s in ours.sliders], [0, 0, 1, 0]) and not ours.locks[1].value
    found["draw w ~ Dirichlet(alpha)"].click()
    assert np.allclose([s.value for s in ours.sliders], ours.weights, atol=0.005) and ours.sliders[2].value < 1
    found["all equal"].click()
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


def test_what_a_browser_sends_back_is_no_move():
    ours = explorer()
    ours.widget  # noqa: B018, builds the sliders
    for _ in range(20):
        ours.draw()
        ours._refresh()
        before = ours.weights
        for slider in ours.sliders:
            steps = slider.value / slider.step  # a browser rounds to whole steps, and a bit off
            assert steps == pytest.approx(round(steps)), "a browser would round this and send it back"
            slider.value += 1e-12
        assert ours.weights is before
    ours.sliders[0].value = round(ours.sliders[0].value + 0.01, 2)  # the smallest step of a reader
    assert ours.weights[0] == ours.sliders[0].value and np.isclose(ours.weights.sum(), 1)


def test_a_drag_step_renders_the_tables_once(monkeypatch):
    ours, rendered = explorer(), []
    ours.widget  # noqa: B018, builds the sliders
    monkeypatch.setattr(widgets, "render_sets", lambda *args: rendered.append(args) or "")
    for value in (0.3, 0.4, 0.5):
        ours.sliders[0].value = value
    assert len(rendered) == 3  # the other sliders move along without a step of their own


def test_the_map_shows_the_three_objectives_that_were_chosen():
    ours = explorer()
    ours.widget  # noqa: B018, builds the sliders
    before = ours.tables.value
    assert ours.corners.value == (1, 2, 3) and len(ours.corners.options) == 4
    ours.corners.value = (0, 1, 2)
    assert ours.dims == (0, 1, 2) and images(ours.tables.value) != images(before)
    two = WeightExplorer({"SFT": (["a"], np.ones((1, 2)))}, ["a", "b"])
    two.widget  # noqa: B018, no map with fewer than three objectives
    assert two.dims is None and not images(two.html)


def test_mazes_are_drawn_with_the_winner_in_full_colour():
    paths = list(best_paths(MAZE)[:2])
    rewards = np.stack([MazeTask().score(path, MAZE) for path in paths])
    ours = WeightExplorer({"VPO": (paths, rewards)}, MazeTask.objectives, mazes=[MAZE])
    for objective in (1, 2):  # all weight on gold, then on diamonds
        ours.preset(objective)
        best = rewards[:, objective] == rewards[:, objective].max()
        picture = images(ours.html)[0]
        shown = [group.get("opacity") == "1" for group in parts(picture, "g") if group.get("opacity")]
        assert shown == best.tolist()
