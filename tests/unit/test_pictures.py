"""The pictures that tell the story show the numbers of the library, and their panels are named."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from vpo_lab import show
from vpo_lab.errors import LabError
from vpo_lab.methods import METHODS
from vpo_lab.weights import dirichlet_weights, set_reward

TOY = np.array([[show.TOY_ANSWERS[letter] for letter in chain] for chain in show.TOY_CHAINS])
OBJECTIVES = ("gold", "diamond", "avoid lava")


def drawn(figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


# --- The mechanism --------------------------------------------------------------------------------


def test_the_mechanism_shows_what_the_library_computes():
    page, envelope = show.mechanism().axes
    weights_KD = dirichlet_weights(2**14, 2)
    paid = [f"{value:.2f}" for value in (*TOY.mean(axis=(1, 2)), *set_reward(TOY, weights_KD))]
    assert [text for text in texts(page) if text.startswith("0.") and len(text) == 4] == paid
    assert paid[-1] == "0.76" and "area = R(S) = 0.76" in texts(envelope)
    assert any("GRPO reinforces BBB most, VPO ABC." in text for text in texts(page))


def test_the_bars_of_the_mechanism_are_the_advantages():
    page = show.mechanism().axes[0]
    bars = [p for p in page.patches if isinstance(p, Rectangle) and np.isclose(p.get_height(), 0.22)]
    expected = []
    for name in ("grpo", "vpo"):
        options = {"weight_draws": 2**13} if name == "vpo" else {}
        judge = METHODS[name].with_options(**options)
        expected += list(judge.advantages(TOY, len(TOY), np.random.default_rng(3)))
    widths = np.array([bar.get_width() for bar in bars])
    assert np.allclose(widths / np.abs(widths).max(), np.array(expected) / np.abs(expected).max(), atol=0.01)
    dark = [np.mean(bar.get_facecolor()[:3]) < 0.5 for bar in bars]
    assert dark == [advantage > 0 for advantage in expected]


def test_the_winner_strip_of_the_mechanism_covers_all_weights():
    envelope = show.mechanism().axes[1]
    strip = sorted((p.get_x(), p.get_width(), p.get_facecolor()[:3]) for p in envelope.patches)
    assert [color for *_, color in strip] == [to_rgb(show.candidate_color(number)) for number in (2, 1, 0)]
    assert np.allclose([x for x, *_ in strip], [0, 0.4, 0.6], atol=2e-3)
    assert np.isclose(sum(width for _, width, _ in strip), 1, atol=4e-3)


@pytest.mark.parametrize("chains", [["A"], ["AB", "BB"], ["AAAAA", "ABABA"]])
def test_the_mechanism_of_other_chains(chains):
    pixels = drawn(show.mechanism({"A": (1, 0.2), "B": (0, 0.7)}, chains))
    assert (pixels[0] == 255).all() and (pixels[..., 3] == 255).all()


# --- A real group ---------------------------------------------------------------------------------


def test_the_first_group_with_a_signal():
    same, mean_only = np.full((4, 3, 2), 0.5), np.zeros((4, 3, 2))
    mean_only[0, :2] = mean_only[1:, 0] = 1.0  # the best answers are all alike, their number is not
    both = np.random.default_rng(0).random((4, 3, 2))
    assert show.group_with_signal(np.stack([same, mean_only, both, both])) == 2
    assert show.group_with_signal(np.stack([same, mean_only, both]), ["grpo"]) == 1
    assert show.group_with_signal(np.stack([same, same])) is None


def test_a_judged_group_shows_the_advantages_and_the_vectors():
    rewards_GMD = np.random.default_rng(1).random((5, 3, 2))
    above, table = show.judged_group(rewards_GMD, ["x", "long_name"], subject="five chains").axes
    shown = [float(text.replace("−", "-")) for text in texts(above)]
    expected = [METHODS[name].advantages(rewards_GMD, 5, np.random.default_rng(0)) for name in ("grpo", "vpo")]
    assert np.allclose(shown, np.concatenate(expected), atol=0.0051)
    assert [label.get_text() for label in above.get_yticklabels()] == ["GRPO", "VPO"]
    assert np.allclose([image.get_array() for image in table.images], rewards_GMD)
    assert table.get_xlabel().endswith("columns: x, long name")
    assert [label.get_text() for label in table.get_yticklabels()] == ["answer 1", "answer 2", "answer 3"]


# --- Before and after -----------------------------------------------------------------------------


def test_winner_regions_name_sets_vectors_and_utilities():
    gold, diamond = (1.0, 0.0, 0.5), (0.0, 1.0, 0.5)
    sets = {"grpo": np.array([diamond, diamond, (0, 0, 0)]), "vpo": np.array([gold, diamond, (0.1, 0, 0)])}
    figure = show.winner_regions(sets, OBJECTIVES, pixels=80)
    assert [axes.get_title() for axes in figure.axes] == ["GRPO\none answer for all", "VPO\n2 answers win"]
    grpo, vpo = map(texts, figure.axes)
    weights_K3 = dirichlet_weights(2**14, 3)
    assert grpo == ["A", *OBJECTIVES, f"set reward {set_reward(sets['grpo'], weights_K3):.2f}"]
    assert sorted(vpo[:2]) == ["A", "B"] and vpo[-1] == f"set reward {set_reward(sets['vpo'], weights_K3):.2f}"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["A = (0, 1, 0.5)", "B = (1, 0, 0.5)"]  # one letter in all triangles, losers have none
    drawn(figure)


def test_a_region_is_white_where_nothing_is_gained_and_full_where_all_is():
    image = show.winner_regions({"x": np.array([[0.0, 1.0, 0.0]])}, OBJECTIVES, pixels=80).axes[0].images[0]
    pixels = image.get_array()
    assert np.allclose(pixels[0, 0, :3], 1, atol=0.05)
    assert np.allclose(pixels[0, -1, :3], to_rgb(show.candidate_color(0)), atol=0.07)


@pytest.mark.filterwarnings("error")
def test_winner_regions_with_ties_and_zeros():
    tied = np.array([[1, 0, 0], [0, 1, 1], [0, 0.5, 1.5]])
    for rewards_M3 in (np.zeros((3, 3)), tied, np.random.default_rng(0).random((9, 3))):
        drawn(show.winner_regions({"sft": rewards_M3}, OBJECTIVES, pixels=60, subject="a subject"))


# --- Wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: show.mechanism({}, ["A"]),
        lambda: show.mechanism(chains=[]),
        lambda: show.mechanism(chains=["", ""]),
        lambda: show.mechanism(chains=["AB", "A"]),
        lambda: show.mechanism(chains=["AX"]),
        lambda: show.mechanism({"A": (1, 0, 0)}, ["A"]),
        lambda: show.judged_group(np.zeros((0, 3, 2)), "xy"),
        lambda: show.judged_group(np.zeros((4, 3, 2)), "xyz"),
        lambda: show.winner_regions({}, OBJECTIVES),
        lambda: show.winner_regions({"vpo": np.zeros((2, 2))}, OBJECTIVES),
    ],
)
def test_wrong_input_is_one_clear_line(call):
    with pytest.raises(LabError) as error:
        call()
    assert "\n" not in str(error.value)
