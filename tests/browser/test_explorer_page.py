"""docs/explorer.html in a real browser, offline: what a reader does, and the arithmetic against Python's."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from vpo_lab.course.widgets import corner_utilities, rebalance, utility_weights, win_regions
from vpo_lab.weights import scalarize, set_reward, winners

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explorer.html"


@pytest.fixture
def explorer(tab):
    """The page, opened as a file with the network blocked; it may ask for nothing else and say no error."""
    tab.context.set_offline(True)
    tab.context.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
    tab.goto(PAGE.as_uri())
    yield tab
    assert tab.troubles == []
    assert [url for url in tab.requests if not url.startswith("data:")] == [PAGE.as_uri()]


def weights_of(page) -> np.ndarray:
    return np.array(page.evaluate("state.weights"))


def sets_of(page) -> list[np.ndarray]:
    return [np.array(rewards) for rewards in page.evaluate("REQUESTS[state.at].request.sets.map((set) => set.rewards)")]


def stars_of(page) -> list[list[str]]:
    """For every set the mark of every candidate, as shown."""
    cards = page.locator(".card").all()
    return [[star.strip() for star in card.locator("tbody .star").all_text_contents()] for card in cards]


def check(page) -> list[list[str]]:
    """What is shown is what Python computes for the present weights; returns the stars."""
    weights, sets = weights_of(page), sets_of(page)
    assert np.isclose(weights.sum(), 1, atol=1e-12) and (weights >= 0).all()
    shown = [float(text) for text in page.locator(".weight output").all_text_contents()]
    assert np.allclose(shown, weights, atol=0.0051)
    stars = stars_of(page)
    meters = page.locator(".meter b").all_text_contents()
    for n, rewards in enumerate(sets):
        won = winners(rewards, weights[None])[0]
        mark = "★ tie" if won.sum() > 1 else "★"
        assert stars[n] == [mark if one else "" for one in won]
        best, worth = (float(re.match(r"[\d.]+", meters[2 * n + i])[0]) for i in (0, 1))
        assert abs(best - scalarize(rewards, weights[None]).max()) < 0.00051
        assert abs(worth - set_reward(rewards, utility_weights(len(weights)))) < 0.00051
    return stars


def press(page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def slider(page, name: str):
    return page.get_by_role("slider", name=name, exact=True)


# --- What a reader does -------------------------------------------------------------------------


def test_it_opens_offline_and_says_what_it_shows(explorer):
    check(explorer)
    text = explorer.locator("header").inner_text()
    for word in ("set", "Weights", "Winner", "EUM", "Triangle", "SFT", "GRPO", "VPO"):
        assert word in text
    assert explorer.locator(".card h2").all_text_contents() == ["SFT", "GRPO", "VPO"]
    assert "Best set for these weights" in explorer.locator("#summary").inner_text()


def test_dragging_a_slider_moves_the_others_and_the_winner(explorer):
    objectives = explorer.evaluate("world().objectives")
    press(explorer, f"only {objectives[1]}")
    before, seen = check(explorer), []
    handle = slider(explorer, objectives[2])
    box = handle.bounding_box()
    y, left = box["y"] + box["height"] / 2, box["x"] + 8
    explorer.mouse.move(left, y)
    explorer.mouse.down()
    for share in (0.2, 0.45, 0.55, 0.8, 1.0):
        explorer.mouse.move(left + share * (box["width"] - 16), y)
        seen.append(check(explorer))
        assert abs(weights_of(explorer)[2] - share) < 0.03
    explorer.mouse.up()
    assert weights_of(explorer)[2] > 0.98
    # Gold or diamonds: in one set at least the best answer for one is not the best for the other.
    assert seen[-1] != before


def test_the_keyboard_is_enough(explorer):
    objectives = explorer.evaluate("world().objectives")
    reached = []
    for _ in range(40):
        explorer.keyboard.press("Tab")
        reached.append(explorer.evaluate("document.activeElement.id || document.activeElement.textContent"))
        outline = explorer.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        if "draw" in reached:
            break
        assert outline == "solid", f"focus on {reached[-1]} cannot be seen"
    assert {"request", "w0", "l0", "w3", "l3", "all equal", f"only {objectives[1]}", "alpha", "draw"} <= set(reached)
    slider(explorer, objectives[1]).focus()
    explorer.keyboard.press("ArrowRight")
    assert np.allclose(weights_of(explorer), [0.74 / 3, 0.26, 0.74 / 3, 0.74 / 3])
    explorer.keyboard.press("End")
    assert np.allclose(weights_of(explorer), [0, 1, 0, 0])
    check(explorer)
    assert slider(explorer, objectives[1]).get_attribute("aria-valuetext") == "1.00"


def test_locks_hold(explorer):
    objectives = explorer.evaluate("world().objectives")
    slider(explorer, objectives[0]).fill("0.4")
    explorer.get_by_label(f"lock {objectives[0]}").check()
    assert slider(explorer, objectives[0]).is_disabled()
    slider(explorer, objectives[1]).fill("0.9")
    assert np.allclose(weights_of(explorer), [0.4, 0.6, 0, 0])
    assert slider(explorer, objectives[1]).input_value() == "0.6"  # it gave way
    check(explorer)
    explorer.get_by_label(f"lock {objectives[0]}").uncheck()
    slider(explorer, objectives[1]).fill("0.9")
    assert np.allclose(weights_of(explorer), [0.1, 0.9, 0, 0])


def test_presets_and_random_users(explorer):
    objectives = explorer.evaluate("world().objectives")
    explorer.get_by_label(f"lock {objectives[0]}").check()
    for d, name in enumerate(objectives):
        press(explorer, f"only {name}")
        assert np.array_equal(weights_of(explorer), np.eye(len(objectives))[d])
        check(explorer)
    assert not explorer.get_by_label(f"lock {objectives[0]}").is_checked()
    press(explorer, "all equal")
    assert np.allclose(weights_of(explorer), 1 / len(objectives))
    drawn = []
    for alpha in ("-1", "0", "1.5"):
        explorer.locator("#alpha").fill(alpha)
        press(explorer, "Draw")
        check(explorer)
        drawn.append(weights_of(explorer))
    assert explorer.locator("#alpha-value").inner_text() == "31.62"
    assert not np.allclose(drawn[0], drawn[1]) and drawn[2].max() < 0.6


def test_every_request_shows_its_sets(explorer):
    choices = explorer.locator("#request option").all()
    titles = set()
    for choice in choices:
        explorer.locator("#request").select_option(choice.get_attribute("value"))
        check(explorer)
        titles.add(choice.inner_text())
        maze = explorer.locator("optgroup").first.get_attribute("label") == "Mazes" and choice.inner_text().startswith(
            "Maze"
        )
        assert explorer.locator("svg.maze").count() == (3 if maze else 0)
        assert explorer.locator("svg.map").count() == 3
    assert len(titles) == len(choices) > 8
    slider(explorer, explorer.evaluate("world().objectives")[0]).fill("0.7")
    explorer.locator("#request").select_option("0")  # another world: other objectives, equal weights
    assert np.allclose(weights_of(explorer), 0.25)


def test_the_ways_of_winners_stand_out(explorer):
    if not explorer.locator("svg.maze").count():
        pytest.skip("the saved results hold no maze examples")
    for name in explorer.evaluate("world().objectives"):
        press(explorer, f"only {name}")
        for card, stars in zip(explorer.locator(".card").all(), check(explorer), strict=True):
            ways = card.locator("svg.maze .way").all()
            assert ["won" in way.get_attribute("class") for way in ways] == [bool(star) for star in stars]


# --- The triangle -------------------------------------------------------------------------------


def said(page) -> list[str]:
    return [svg.get_attribute("aria-label") for svg in page.locator("svg.map").all()]


def ring(page) -> tuple[float, float]:
    circle = page.locator("svg.map").first.locator("circle").first
    return float(circle.get_attribute("cx")), float(circle.get_attribute("cy"))


def test_the_map_follows_weights_corners_and_clicks(explorer):
    objectives = explorer.evaluate("world().objectives")
    at_start = ring(explorer)
    press(explorer, f"only {objectives[3]}")
    top = ring(explorer)
    assert top[1] < at_start[1] and top != at_start
    before = said(explorer)
    explorer.locator("#corners").select_option("0")  # without the only objective that has weight
    assert explorer.locator("svg.map circle").count() == 0
    assert said(explorer) != before
    press(explorer, "all equal")
    assert explorer.locator("svg.map circle").count() == 6
    expected = []
    for rewards in sets_of(explorer):
        regions = win_regions(corner_utilities(rewards, weights_of(explorer), (0, 1, 2)))
        expected.append([(len(members), share) for members, _, share in regions])
    for label, regions in zip(said(explorer), expected, strict=True):
        percents = [int(number) for number in re.findall(r"(\d+)%", label)]
        assert len(percents) == len(regions)
        assert all(abs(p - 100 * share) <= 0.51 for p, (_, share) in zip(percents, regions, strict=True))
    picture = explorer.locator("svg.map").first
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] / 2, "y": box["height"] * 0.2})  # near the top: the third objective
    weights = weights_of(explorer)
    assert weights[3] == 0.25 and weights[2] > 0.6 and np.isclose(weights.sum(), 1)
    check(explorer)
    explorer.get_by_label(f"lock {objectives[2]}").check()
    explorer.locator("svg.map").first.click(position={"x": box["width"] / 2, "y": box["height"] * 0.7})
    assert np.array_equal(weights_of(explorer), weights), "a locked weight moved"


# --- Its arithmetic is Python's -----------------------------------------------------------------


def cases(n: int):
    """Random reward matrices and weightings; half of them coarse, so that many tie."""
    rng = np.random.default_rng(20260522)
    for i in range(n):
        d, m = int(rng.integers(3, 7)), int(rng.integers(1, 9))
        rewards, weights = rng.random((m, d)), rng.dirichlet(np.full(d, rng.choice([0.1, 1, 10])))
        if i % 2:
            rewards = np.round(rewards * 3) / 3
        if i % 4 == 3:
            weights = rng.multinomial(10, np.full(d, 1 / d)) / 10
        if i % 2:
            rewards[rng.integers(m)] = rewards[(rewards @ weights).argmax()]
        locked = [j for j in range(d) if rng.random() < 0.35]
        yield {
            "rewards": rewards.tolist(),
            "weights": weights.tolist(),
            "moved": int(rng.integers(d)),
            "value": float(rng.uniform(-0.2, 1.2)),
            "locked": locked,
            "dims": [int(j) for j in rng.choice(d, 3, replace=False)],
            "weightings": utility_weights(d).tolist(),
        }


def call(page, function: str, argument):
    """What a function of the page makes of an argument; both travel as JSON, much faster than piece by piece."""
    text = page.evaluate(f"(text) => JSON.stringify(({function})(JSON.parse(text)))", json.dumps(argument))
    return json.loads(text)


def test_parity_with_python(explorer):
    everything = list(cases(400))
    computed = call(explorer, """(cases) => cases.map(({rewards, weights, moved, value, locked, dims, weightings}) => {
        const corners = lab.cornerUtilities(rewards, weights, dims);
        return {
            scores: lab.scalarize(rewards, weights), won: lab.winners(rewards, weights),
            worth: lab.setReward(rewards, weightings), after: lab.rebalance(weights, moved, value, locked),
            corners, regions: lab.winRegions(corners),
        };
    })""", everything)  # fmt: skip
    ties = multiple = 0
    for case, got in zip(everything, computed, strict=True):
        rewards, weights = np.array(case["rewards"]), np.array(case["weights"])
        won = winners(rewards, weights[None])[0]
        assert np.allclose(got["scores"], scalarize(rewards, weights[None])[0], atol=1e-12, rtol=0)
        assert got["won"] == won.tolist()
        assert abs(got["worth"] - set_reward(rewards, np.array(case["weightings"]))) < 1e-12
        after = rebalance(weights, case["moved"], case["value"], case["locked"])
        assert np.allclose(got["after"], after, atol=1e-12, rtol=0)
        corners = corner_utilities(rewards, weights, case["dims"])
        assert np.allclose(got["corners"], corners, atol=1e-12, rtol=0)
        regions = win_regions(corners)
        assert [tuple(region["members"]) for region in got["regions"]] == [members for members, _, _ in regions]
        for region, (_, polygon, share) in zip(got["regions"], regions, strict=True):
            assert abs(region["share"] - share) < 1e-9
            assert np.allclose(region["polygon"], polygon, atol=1e-9, rtol=0)
        ties += won.sum() > 1
        multiple += len(regions) > 1
    assert ties > 50 and multiple > 50, "the cases exercise too little"


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 4.0])
def test_random_users_are_dirichlet(explorer, alpha):
    n, d = 20_000, 4
    draw = (
        "({n, d, alpha}) => { const r = lab.generator(7); return [...Array(n)].map(() => lab.dirichlet(d, alpha, r)); }"
    )
    draws = np.array(call(explorer, draw, {"n": n, "d": d, "alpha": alpha}))
    assert np.allclose(draws.sum(axis=1), 1) and (draws >= 0).all()
    variance = (1 / d) * (1 - 1 / d) / (d * alpha + 1)
    assert np.allclose(draws.mean(axis=0), 1 / d, atol=5 * np.sqrt(variance / n))
    assert np.allclose(draws.var(axis=0), variance, rtol=0.08)


def test_tiny_alpha_ends_in_corners(explorer):
    draw = "() => { const r = lab.generator(3); return [...Array(200)].map(() => lab.dirichlet(3, 1e-4, r)); }"
    draws = call(explorer, draw, None)
    assert np.allclose(np.sum(draws, axis=1), 1) and {int(np.argmax(draw)) for draw in draws} == {0, 1, 2}


# --- What it looks like -------------------------------------------------------------------------

LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "narrow": {"color_scheme": "dark", "viewport": {"width": 380, "height": 780}},
}


@pytest.mark.parametrize("tab", LOOKS.values(), ids=LOOKS, indirect=True)
def test_light_dark_and_narrow(explorer, request):
    def luminance(color: str) -> float:
        return float(np.mean([int(part) for part in re.findall(r"\d+", color)[:3]])) / 255

    look = request.node.callspec.id
    ground, text = explorer.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    assert abs(luminance(ground) - luminance(text)) > 0.6
    assert (luminance(ground) < 0.5) == (look != "light")
    assert explorer.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    for number in range(explorer.locator("#request option").count()):
        explorer.locator("#request").select_option(str(number))
        wide = explorer.evaluate(
            "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth).length"
        )
        assert wide == 0, f"a table of request {number} is cut off"
    explorer.locator("#request").select_option("0")
    if look == "narrow":
        explorer.locator("#w1").scroll_into_view_if_needed()
        assert explorer.locator("#summary").bounding_box()["y"] < 780, "the verdict is out of sight of the sliders"
