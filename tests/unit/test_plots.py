"""Every picture on small and on odd data: one candidate, ties, constants, missing intervals."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from vpo_lab import show
from vpo_lab.errors import LabError
from vpo_lab.tasks.maze import draw
from vpo_lab.weights import dirichlet_weights, set_reward, winners

OBJECTIVES = ("format", "tool_name", "param_name", "param_value")


def method(m: int, budgets, level: float, tokens: float = 9.0, interval=(-0.02, 0.02)) -> dict:
    def around(x: float) -> list[float]:
        return [x, x + interval[0], x + interval[1]]

    return {
        "candidates_per_rollout": m,
        "k": {
            str(k): {**{name: around(level + 0.02 * k) for name in ("best", "pass", "eum")}, "tokens": tokens * k}
            for k in budgets
        },
        "set_diversity": around(level),
        "distinct_answers": around(level),
        "quality_by_position": [around(level + 0.01 * j) for j in range(m)],
    }


def summary(budgets=(1, 3, 6), level=0.5, spread=0.001, **options) -> dict:
    names = {"sft": 1, "sft_chain": 3, "grpo": 1, "vpo": 3}
    pairs = {
        f"vpo - {other}": {str(k): {name: [0.1, -0.1, 0.2] for name in ("best", "pass", "eum")} for k in budgets}
        for other in ("sft", "sft_chain", "grpo")
    }
    return {
        "profile": "tiny",
        "requests": 12,
        "interval": "95%",
        "methods": {n: method(m, budgets, level + spread * i, **options) for i, (n, m) in enumerate(names.items())},
        "paired_differences": pairs,
        "ceiling": {str(k): {"best": 0.9, "pass": 0.8} for k in budgets},
    }


def log(steps: int, value=0.5) -> list[dict]:
    names = ("set_reward", "distinct_rollouts", "entropy", "best_of_group")
    return [{"step": s, **dict.fromkeys(names, value), "once": 1.0} for s in range(1, steps + 1)]


def drawn(figure) -> np.ndarray:
    """The pixels of a figure, having drawn all of it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


SUMMARIES = {
    "normal": summary(),
    "close together": summary(spread=0.0),
    "one budget": summary(budgets=(1,)),
    "no intervals": summary(interval=(np.nan, np.nan)),
    "nothing learned": summary(level=0.0, spread=0.0, interval=(0.0, 0.0), tokens=0.0),
    "no ceiling, no description": {"methods": summary()["methods"], "ceiling": None}
    | {"paired_differences": summary()["paired_differences"]},
    "a method of one's own": {**summary(), "methods": {**summary()["methods"], "mine": method(2, (1, 3, 6), 0.4)}},
}
FROM_SUMMARY = {
    "best": lambda s: show.budget_curves(s, "best"),
    "headline": show.headline,
    "tokens": show.tokens_curve,
    "position": show.position_quality,
    "paired": show.paired_differences,
    "diversity": show.diversity,
}


@pytest.mark.parametrize("data", SUMMARIES, ids=str)
@pytest.mark.parametrize("draw", FROM_SUMMARY, ids=str)
def test_pictures_of_results(data, draw):
    pixels = drawn(FROM_SUMMARY[draw](SUMMARIES[data]))
    assert (pixels[0] == 255).all() and (pixels[..., 3] == 255).all(), "the background is not white"


@pytest.mark.parametrize("data", ["close together", "nothing learned", "every method"])
def test_labels_at_the_ends_of_lines_do_not_overlap(data):
    shown = SUMMARIES.get(data) or many()
    figure = show.headline(shown)
    drawn(figure)
    for axes in figure.axes:
        # Of the words alone: an annotation's own extent holds the line that leads to them.
        boxes = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
        assert len(boxes) == len(shown["methods"]) + 1
        assert all(low.y1 <= high.y0 + 2 for low, high in pairwise(boxes))


def test_a_method_looks_the_same_in_every_picture():
    styles = [show.method_style(name) for name in show.METHOD_STYLE]
    for key in ("color", "marker"):
        assert len({style[key] for style in styles}) == len(styles)
    colors = {line.get_color() for line in show.budget_curves(summary(), "pass").axes[0].lines}
    assert {show.method_style(name)["color"] for name in summary()["methods"]} <= colors


@pytest.mark.parametrize(
    "call",
    [
        lambda: show.budget_curves(summary(), "nonsense"),
        lambda: show.headline({"methods": {}}),
        lambda: show.paired_differences({**summary(), "paired_differences": {}}),
        lambda: show.training_curves({"grpo": log(3)}, ["nonsense"]),
        lambda: show.collapse({"grpo": []}),
        lambda: show.upper_envelope(np.ones((2, 3))),
        lambda: show.simplex_winners(np.ones((2, 2))),
        lambda: show.reward_vectors(np.ones((2, 3)), "abc", ["only one name"]),
        lambda: show.advantage_heatmap({"grpo": np.ones(2), "vpo": np.ones(3)}),
        lambda: show.pareto(np.zeros((0, 2))),
        lambda: show.worlds({}),
        lambda: show.worlds({"tiny": (summary(), "nonsense")}),
        lambda: show.forest({}, {"best": "best@k"}, "minus VPO"),
        lambda: show.forest({"one": {"k1": {}}}, {}, "minus VPO"),
        lambda: show.curves_over_seeds({}, ["entropy"]),
        lambda: draw.maze_paths("no maze", []),
        lambda: draw.maze_paths(MAZE, ["→"], np.zeros((2, 4))),
        lambda: draw.maze_paths(MAZE, ["→"], np.zeros((1, 3))),
        lambda: draw.maze_sets(MAZE, {}),
    ],
)
def test_wrong_input_is_one_clear_line(call):
    with pytest.raises(LabError) as error:
        call()
    assert "\n" not in str(error.value)


# --- Several worlds, seeds and settings ---------------------------------------------------------


def many(names=tuple(show.METHOD_STYLE)) -> dict:
    """A summary of all methods at once, crowded at the end."""
    return {**summary(), "methods": {name: method(3, (1, 3, 6), 0.5 + 0.001 * i) for i, name in enumerate(names)}}


def test_worlds_side_by_side():
    figure = show.worlds({"tiny": (many(), "best"), "maze": (summary(), "eum")}, "3 seeds")
    assert [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes] == ["tiny", "maze"]
    drawn(figure)
    drawn(show.worlds({"tiny": (summary(budgets=(1,)), "pass")}))


def test_a_method_with_its_trainings_has_a_line_for_each_and_no_band():
    runs_SK = np.linspace(0.2, 0.4, 6).reshape(2, 3)
    axes = show.worlds({"maze": (summary(), "best")}, runs={"maze": {"vpo": runs_SK}}).axes[0]
    thin = [line.get_ydata().tolist() for line in axes.lines if line.get_linewidth() < 1]
    assert thin == runs_SK.tolist()
    heights = [np.ptp(band.get_paths()[0].vertices[:, 1]) for band in axes.collections]
    assert heights[-1] < min(heights[:-1])


@pytest.mark.parametrize("budgets", [(3,), (3, 24), (1, 3, 6, 24)])
def test_forest(budgets):
    interval = {k: [0.01 * k, -0.1, 0.2] for k in budgets}
    groups = {"one": {"best_of_set": {"best": interval}, "k1": {"best": interval, "eum": {}}}, "two": {"mine": {}}}
    figure = show.forest(groups, {"best": "tiny", "eum": "maze"}, "minus VPO", {"k1": "K = 1 weighting"})
    drawn(figure)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["one", "best of set", "K = 1 weighting", "two", "mine"]


@pytest.mark.parametrize("steps", [1, 3, 60])
def test_curves_over_seeds(steps):
    band = np.linspace(1, 0, steps)[:, None] + [0, -0.1, 0.1]
    curves = {"grpo": {"step": np.arange(steps), "entropy": band}, "vpo": {"step": np.arange(steps)}}
    figure = show.curves_over_seeds({"tiny": curves, "maze": curves}, ["entropy", "distinct_rollouts"])
    drawn(figure)
    assert [len(axes.lines) for axes in figure.axes] == [1, 0, 1, 0]


# --- The maze -----------------------------------------------------------------------------------

MAZE = "🤖⬜🟡\n⬜🔥⬜\n💎⬜🏁"
WALKS = {
    "to the exit": ["→→↓↓", "↓↓→→", "→→↓↓"],
    "there and back": ["→←→→↓↓"],
    "not far": ["→", " ↓ "],
    "leaves the grid": ["↑↑"],
    "no walk": ["", "hello 🤖", "→ and ↓"],
    "many": ["→→↓↓"] * 12,
    "none": [],
}


@pytest.mark.parametrize("paths", WALKS.values(), ids=WALKS)
@pytest.mark.filterwarnings("error")
def test_walks_through_a_maze(paths):
    drawn(draw.maze_paths(MAZE, paths))
    drawn(draw.maze_paths(MAZE, paths, np.full((len(paths), 4), 0.25), [f"path {i}" for i in range(len(paths))]))
    drawn(draw.maze_sets(MAZE, {"sft": paths, "vpo": paths[:1]}))


def test_sets_of_walks_stand_by_their_set_reward():
    figure = draw.maze_sets(MAZE, {"vpo": ["→→↓↓", "↓↓→→"], "grpo": ["→→↓↓"] * 2, "sft": ["↑"]})
    titles = [axes.get_title(loc="left").split("\n") for axes in figure.axes]
    assert [name for name, _ in titles] == ["SFT", "GRPO", "VPO"]
    worths = [float(text.rpartition(" ")[2]) for _, text in titles]
    assert worths[0] == 0 < worths[1] < worths[2]


def test_a_list_of_walks_says_what_each_earns():
    texts = [text.get_text() for text in draw.maze_paths(MAZE, ["→→ ↓↓", "↑", "what"]).axes[1].texts]
    expected = ["completion", "gold", "diamond", "avoid lava", "A", "→→↓↓", "1.00", "1.00", "0.00", "1.00"]
    assert texts == [*expected, "B", "leaves the grid", *["0.00"] * 4, "C", "no walk", *["0.00"] * 4]


def test_identical_walks_are_drawn_beside_each_other():
    lines = draw.maze_paths(MAZE, ["→→↓↓"] * 3).axes[0].lines
    assert len({tuple(line.get_ydata()) for line in lines}) == 3


# --- Training -----------------------------------------------------------------------------------


def test_a_metric_that_nobody_logged_has_no_panel():
    """Unsloth logs neither `mean_token_accuracy` nor `entropy`."""
    logged = [{"step": step, "loss": 1.0, "distinct_rollouts": 0.5} for step in range(1, 4)]
    assert len(show.training_curves({"sft": logged}, ["loss", "mean_token_accuracy"]).axes) == 1
    assert len(show.collapse({"grpo": logged}).axes) == 1


@pytest.mark.parametrize("steps", [1, 2, 40])
def test_training_curves_and_collapse(steps):
    logs = {"grpo": log(steps), "vpo": log(steps, np.nan)}
    drawn(show.training_curves(logs, ["set_reward", "entropy", "once", "best_of_group"]))
    drawn(show.collapse({**logs, "sft": [{"step": 1, "loss": 2.0}]}))


def test_smoothing_keeps_length_mean_and_constants():
    assert np.allclose(show.smooth([3.0] * 7, 5), 3.0)
    assert show.smooth([1.0, 2.0], 9).shape == (2,)
    assert np.allclose(show.smooth([0.0, 3.0, 0.0], 3), [1.5, 1.0, 1.5])
    assert np.allclose(show.smooth([1.0, 5.0], 0), [1.0, 5.0])


def test_spread_moves_labels_apart_and_no_further_than_needed():
    rng = np.random.default_rng(0)
    for _ in range(50):
        positions = rng.random(rng.integers(1, 8))
        moved = show.spread(positions, 0.1)
        order = np.argsort(positions, kind="stable")
        assert (np.diff(moved[order]) >= 0.1 - 1e-9).all()
        assert np.isclose(moved.mean(), positions.mean())
    assert np.allclose(show.spread([0.0, 1.0, 0.5], 0.1), [0.0, 1.0, 0.5])


# --- Vectors and weightings -----------------------------------------------------------------------

SETS_3 = {
    "three": np.array([[1, 0.2, 0.3], [0.2, 1, 0.3], [0.3, 0.2, 1.0]]),
    "one": np.array([[0.2, 0.4, 0.6]]),
    "all tied": np.full((3, 3), 0.5),
    "two the same": np.array([[1, 0, 0], [0, 1, 1], [0, 1, 1.0]]),
    "zeros": np.zeros((2, 3)),
}


@pytest.mark.parametrize("rewards_M3", SETS_3.values(), ids=SETS_3)
def test_pictures_of_vectors(rewards_M3):
    drawn(show.simplex_winners(rewards_M3, objectives=OBJECTIVES[:3]))
    drawn(show.upper_envelope(rewards_M3[:, :2]))
    drawn(show.reward_vectors(rewards_M3, OBJECTIVES[:3], [f"a longer name {i}" for i in range(len(rewards_M3))]))
    drawn(show.reward_vectors(rewards_M3, OBJECTIVES[:3]))
    drawn(show.pareto(rewards_M3, (0, 2), names=list("ABC")[: len(rewards_M3)], objectives=OBJECTIVES))
    drawn(show.advantage_heatmap({"grpo": rewards_M3[:, 0] - 0.5, "vpo": rewards_M3[:, 1]}))


def test_simplex_scatter():
    draws = {alpha: dirichlet_weights(50, 3, alpha=alpha) for alpha in (0.1, 1.0, 10.0)}
    drawn(show.simplex_scatter(draws))
    drawn(show.simplex_scatter({1.0: draws[1.0][:1]}))


def test_the_shares_of_the_winner_map_are_the_chances_to_win():
    rewards_M3 = np.array([[1, 0.2, 0.3], [0.2, 1, 0.3], [0.3, 0.2, 1.0], [0.3, 0.2, 1.0], [0.55, 0.6, 0.5]])
    figure = show.simplex_winners(rewards_M3)
    shown = dict(text.get_text().split("\n") for text in figure.axes[0].texts if "%" in text.get_text())
    weights_K3 = dirichlet_weights(2**14, 3)
    chances_M = winners(rewards_M3, weights_K3).mean(axis=0)
    assert set(shown) == {"A", "B", "C = D", "E"}
    for names, share in shown.items():
        assert abs(float(share[:-1]) / 100 - chances_M["ABCDE".index(names[0])]) < 0.012


def test_the_title_of_the_envelope_is_the_set_reward():
    rewards_M2 = np.array([[1, 0], [0, 1], [0.6, 0.6]])
    title = show.upper_envelope(rewards_M2).axes[0].get_title(loc="left")
    assert title.endswith("0.760")
    assert abs(set_reward(rewards_M2, dirichlet_weights(4096, 2)) - 0.76) < 1e-3


def test_wins_somewhere_agrees_with_a_dense_search():
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, 2521)  # in steps of 1/2520: points on a line tie at one of these weights
    weights_K2 = np.column_stack([t, 1 - t])
    for _ in range(60):
        points_n2 = rng.integers(0, 6, size=(rng.integers(1, 9), 2)) / 5
        assert (show.wins_somewhere(points_n2) == winners(points_n2, weights_K2).any(axis=0)).all()


def test_a_point_in_a_dent_of_the_front_is_optimal_and_wins_nowhere():
    figure = show.pareto(np.array([[1, 0], [0, 1], [0.4, 0.4], [0.1, 0.1]]))
    labels = [handle.get_label() for handle in figure.axes[0].collections]
    assert labels == ["dominated", "Pareto-optimal, wins for no w", "Pareto-optimal, wins for some w"]


def test_pareto_3d_has_a_cloud_for_each_method():
    pytest.importorskip("plotly")
    clouds = {name: np.random.default_rng(0).random((5, 4)) for name in ("sft", "vpo")}
    figure = show.pareto_3d(clouds, (0, 2, 3), OBJECTIVES)
    assert [trace.name for trace in figure.data] == ["SFT", "VPO"]
    assert figure.layout.scene.yaxis.title.text == "param_name"


# --- Manners ------------------------------------------------------------------------------------


def test_figures_do_not_pile_up_and_settings_stay():
    import matplotlib.pyplot as plt

    before = plt.rcParams["font.size"]
    show.headline(summary())
    assert plt.get_fignums() == [] and plt.rcParams["font.size"] == before


def test_importing_plots_and_the_explorer_loads_no_plotting_library():
    heavy = {"matplotlib", "plotly", "anywidget", "ipywidgets", "IPython", "torch"}
    code = f"import sys, vpo_lab.show.explorer; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# --- Bars -------------------------------------------------------------------------------------


def test_bars_of_methods_have_a_panel_for_each_world_and_lines_from_the_least_to_the_most():
    values = {"grpo": (0.5, 0.4, 0.6), "vpo": (0.9, 0.8, 0.95)}
    first, second = show.method_bars({"a": values, "b": values}, "best@3").axes
    assert [bar.get_height() for bar in first.patches] == [0.5, 0.9] and second.get_title(loc="left") == "b: best@3"
    ends = [line.get_segments()[0][:, 1].tolist() for line in first.collections]
    assert ends == [[0.4, 0.6], [0.8, 0.95]] and first.get_ylim()[1] > 0.95
    with pytest.raises(LabError, match="no world"):
        show.method_bars({})


def test_shares_of_positions_are_stacked_to_one():
    shares_MP = np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    figure = show.position_shares({("sft", "x"): shares_MP, ("vpo", "x"): shares_MP[:, 1:]}, ["first", "second"])
    above, below = figure.axes
    assert len(above.patches) == 6 and len(below.patches) == 4
    tops = {bar.get_x(): bar.get_y() + bar.get_height() for bar in above.patches}
    assert np.allclose(list(tops.values()), 1)
    with pytest.raises(LabError, match="no shares"):
        show.position_shares({}, [])


@pytest.mark.parametrize("positions", [1, 3])
def test_curves_of_positions(positions):
    history_TMA = np.random.default_rng(0).dirichlet(np.ones(2), size=(5, positions))
    panels = show.position_curves(history_TMA, "AB").axes
    assert len(panels) == positions
    assert np.allclose(panels[-1].lines[1].get_ydata(), history_TMA[:, -1, 1])
