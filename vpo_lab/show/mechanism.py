"""Draw VPO's mechanism in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.methods import METHODS
from vpo_lab.show.style import INK, MANY, METHOD_LABEL, PALE, SOFT, candidate_color, new_axes, styled
from vpo_lab.show.vectors import as_vectors
from vpo_lab.weights import dirichlet_weights, set_reward, winners

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


TOY_ANSWERS = MappingProxyType({"A": (1.0, 0.0), "B": (0.6, 0.6), "C": (0.0, 1.0)})  # as in notebook 04, section 3
TOY_CHAINS = ("AAA", "CCC", "BBB", "ACC", "ABC")


@styled
def mechanism(
    answers: Mapping[str, Sequence[float]] = TOY_ANSWERS,
    chains: Sequence[str] = TOY_CHAINS,
    objectives: Sequence[str] = ("r₁", "r₂"),
) -> Figure:
    """Draw VPO in one picture: a rollout and its vectors, the set reward as an area, a group under GRPO and VPO.

    answers: letter -> reward vector (2,); chains: the rollouts of one group, each a string of these
    letters, all of one length. The first two parts show the last chain. LabError for other chains.
    """
    letters, used = list(answers), set("".join(chains))
    if not used or len({len(chain) for chain in chains}) != 1:
        raise LabError("mechanism: expected chains of answers' letters, at least one, all of one length")
    if unknown := used - set(letters):
        raise LabError(f"mechanism: no answer is called {min(unknown)!r}; there are {', '.join(letters) or 'none'}")
    vectors = dict(zip(letters, as_vectors(list(answers.values()), 2), strict=True))
    rewards_GMD = np.array([[vectors[letter] for letter in chain] for chain in chains])
    colors = {letter: candidate_color(number) for number, letter in enumerate(letters)}
    paid, advantages = _payment(rewards_GMD)
    best = {name: chains[int(np.argmax(advantage_G))] for name, advantage_G in advantages.items()}
    favourites = f"GRPO reinforces {best['grpo']} most, VPO {best['vpo']}.\nDark bars: made likelier. Pale: made rarer."
    width, height = 11.0, 4.15
    figure, (page,) = new_axes(width=width, height=height)
    figure.set_layout_engine("none")
    page.set_position((0, 0, 1, 1))
    page.set(xlim=(0, width), ylim=(0, height))
    page.axis("off")
    utility = "R(S): utility of the best answer,\non average over all weightings."
    parts = (  # left edge, heading, what to see
        (0.0, "1  A rollout is a chain", "Every answer earns\na vector of rewards."),
        (2.75, "2  The set is paid for its best answer", utility),
        (6.6, "3  The group is compared", favourites),
    )
    for left, heading, sentence in parts:
        page.text(left, height - 0.15, heading, fontsize=11.5, fontweight="bold", va="center")
        page.text(left, 0.42, sentence, fontsize=10.5, color=SOFT, va="top", linespacing=1.3)
    _rollout(page, chains[-1], rewards_GMD[-1], colors, objectives, top=height - 0.7)
    envelope = figure.add_axes((3.2 / width, 1.05 / height, 2.65 / width, (height - 1.65) / height))
    _area(envelope, chains[-1], rewards_GMD[-1], colors, objectives)
    _arrow(page, (2.15, 2.3), (2.6, 2.3))
    _arrow(page, (6.05, 2.3), (6.45, 2.3))
    _judged(page, chains, paid, advantages, colors, left=6.6, top=height - 1.12)
    return figure


def _arrow(page: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": "#888888", "linewidth": 1.6, "mutation_scale": 15}
    page.annotate("", end, xytext=start, arrowprops={**style, "shrinkA": 0, "shrinkB": 0})


def _box(x: float, y: float, width: float, height: float, face, **style):
    """Return a rectangle with its lower left corner at x, y."""
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor=face, **{"edgecolor": "white", "linewidth": 1, **style})


def _tile(page: Axes, x: float, y: float, side: float, letter: str, color: str) -> None:
    """Draw a square of an answer's colour with its letter; x, y: its centre."""
    page.add_patch(_box(x - side / 2, y - side / 2, side, side, color))
    page.text(x, y - 0.01, letter, color="white", fontweight="bold", ha="center", va="center", fontsize=7 + 12 * side)


def _rollout(
    page: Axes, chain: str, rewards_MD: np.ndarray, colors: Mapping[str, str], objectives: Sequence[str], top: float
) -> None:
    """Draw the answers of a chain one below the other, and their reward vectors as a table of colours."""
    import matplotlib

    blues = matplotlib.colormaps["Blues"]
    step = min(0.8, 2.4 / len(chain))
    side = 0.55 * step
    for d, name in enumerate(objectives):
        page.text(1.12 + 0.62 * d, top, name, ha="center", va="center", color=SOFT, fontsize=11)
    page.text(0.25, top, "prompt", ha="center", va="center", color=SOFT)
    for m, (letter, rewards_D) in enumerate(zip(chain, rewards_MD, strict=True)):
        y = top - 0.55 - step * m
        _arrow(page, (0.25, y + step - side / 2 if m else top - 0.12), (0.25, y + side / 2 + 0.02))
        _tile(page, 0.25, y, side, letter, colors[letter])
        for d, value in enumerate(rewards_D):
            x, edge = 0.82 + 0.62 * d, {"edgecolor": "#BBBBBB", "linewidth": 0.6}
            page.add_patch(_box(x, y - side / 2, 0.6, side, blues(value / 1.15), **edge))
            color = "white" if value > 0.7 else INK
            page.text(x + 0.3, y, f"{value:.2g}", ha="center", va="center", color=color, fontsize=11)


def _area(axes: Axes, chain: str, rewards_MD: np.ndarray, colors: Mapping[str, str], objectives: Sequence[str]) -> None:
    """Draw the utilities of a chain's answers over the weight; the area under the best is the set reward."""
    w = np.linspace(0, 1, 1001)
    weights_KD = np.column_stack([w, 1 - w])
    kinds = list(dict.fromkeys(chain))
    vectors_MD = np.array([rewards_MD[chain.index(letter)] for letter in kinds])
    utility_KM = weights_KD @ vectors_MD.T
    best_K = utility_KM.max(axis=1)
    axes.fill_between(w, 0, best_K, color=PALE, linewidth=0)
    won_KM = winners(vectors_MD, weights_KD)
    for m, letter in enumerate(kinds):
        axes.plot(w, utility_KM[:, m], color=colors[letter], linewidth=1.4)
        where = won_KM[:, m]
        if where.sum() < 2:
            continue  # best nowhere, or only where two others meet
        first, last = w[where][[0, -1]]
        axes.plot(w[where], best_K[where], color=colors[letter], linewidth=5, solid_capstyle="butt", clip_on=False)
        axes.add_patch(_box(first, -0.19, last - first, 0.15, colors[letter], clip_on=False))
        axes.text((first + last) / 2, -0.118, letter, color="white", fontweight="bold", ha="center", va="center")
    reward = set_reward(rewards_MD, dirichlet_weights(MANY, 2))
    axes.text(-0.03, -0.118, "best", color=SOFT, ha="right", va="center")
    axes.text(0.5, 0.11, f"area = R(S) = {reward:.2f}", ha="center", va="center", fontweight="bold", fontsize=11)
    top = max(1.0, float(best_K.max()))
    axes.set(xlim=(0, 1), ylim=(-0.2, 1.03 * top))
    axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.set_xticks([0, 0.5, 1], [f"only {objectives[1]}", "weighting w", f"only {objectives[0]}"])
    axes.set_ylabel("utility w·r", labelpad=3)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _payment(rewards_GMD: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return each rollout's payment and its advantage in the group: method -> (G,), for GRPO and VPO."""
    weights_KD = dirichlet_weights(MANY, rewards_GMD.shape[2])
    paid = {"grpo": rewards_GMD.mean(axis=(1, 2)), "vpo": set_reward(rewards_GMD, weights_KD)}
    judges = {"grpo": METHODS["grpo"], "vpo": METHODS["vpo"].with_options(weight_draws=MANY)}
    rng = np.random.default_rng(0)
    return paid, {name: judge.advantages(rewards_GMD, len(rewards_GMD), rng) for name, judge in judges.items()}


def _judged(
    page: Axes,
    chains: Sequence[str],
    paid: Mapping[str, np.ndarray],
    advantages: Mapping[str, np.ndarray],
    colors: Mapping[str, str],
    left: float,
    top: float,
) -> None:
    """Draw every rollout of the group with its payment, and its advantage as a bar, under each method."""
    limit = max(np.abs(advantage_G).max() for advantage_G in advantages.values()) or 1.0
    step, side = min(0.48, 2.4 / len(chains)), 0.27
    right, bottom = left + 0.3 * len(chains[0]), top - step * len(chains)
    page.add_patch(_box(left - 0.07, bottom + 0.02, right + 3.6 - left, step - 0.04, "#EFEFEF"))
    for number, (name, what) in enumerate((("grpo", "set mean"), ("vpo", "R(S)"))):
        at = right + 0.25 + 1.8 * number
        zero = at + 1.0
        page.text(at, top + 0.42, f"{METHOD_LABEL[name]}: {what}", va="center", fontweight="bold", fontsize=11.5)
        page.text(at, top + 0.14, "paid", va="center", color=SOFT)
        page.text(zero, top + 0.14, "advantage", va="center", ha="center", color=SOFT)
        page.plot([zero, zero], [bottom + 0.05, top - 0.05], color="#888888", linewidth=1)
        for g, (value, advantage) in enumerate(zip(paid[name], advantages[name], strict=True)):
            y = top - step * (g + 0.5)
            weight = "bold" if advantage >= advantages[name].max() - 1e-9 else "normal"
            page.text(at, y, f"{value:.2f}", va="center", fontweight=weight)
            face = "#333333" if advantage > 0 else "#C4C4C4"
            page.add_patch(_box(zero, y - 0.11, 0.55 * advantage / limit, 0.22, face, edgecolor="#777777"))
    for g, chain in enumerate(chains):
        for m, letter in enumerate(chain):
            _tile(page, left + side / 2 + 0.3 * m, top - step * (g + 0.5), side, letter, colors[letter])
