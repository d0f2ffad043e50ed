"""maze.py: valid and distinct mazes, a strict score, an exact front, one token per cell and per move."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from vpo_lab.chains import answer_prompt, join_chain
from vpo_lab.errors import LabError
from vpo_lab.metrics import hypervolume, pareto_optimal
from vpo_lab.tasks import get_task
from vpo_lab.tasks.maze.world import (
    DIAMOND,
    EXIT,
    FLOOR,
    GOLD,
    LAVA,
    MOVES,
    START,
    best_paths,
    front,
    parse_maze,
    score,
    walk,
)
from vpo_lab.train.tiny_model import train_tokenizer

TASKS = {name: get_task(name) for name in ("maze", "maze_9x9")}
SIZES = {"maze": (5, 2, 10, 4), "maze_9x9": (9, 3, 18, 10)}  # cells, block, moves, lava
SYMBOLS = FLOOR + GOLD + DIAMOND + LAVA + EXIT + START
ZERO = [0, 0, 0, 0]

HAND_MADE = """
🤖⬜🔥🟡🟡
⬜⬜🔥⬜🟡
⬜⬜⬜⬜⬜
💎⬜⬜⬜⬜
💎💎🔥🔥🏁
""".strip()


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, list[dict]]]:
    return {name: {split: task.load(None, split) for split in ("train", "test")} for name, task in TASKS.items()}


def all_rewards(gold: str) -> set[tuple[float, ...]]:
    """The reward vectors of all walks that end at the exit: a depth-first search that knows nothing of sets."""
    maze, found = parse_maze(gold), set()

    def visit(cell, path):
        if cell == maze.exit:
            found.add(tuple(score(path, gold).tolist()))
            return
        for move, (down, right) in MOVES.items():
            near = cell[0] + down, cell[1] + right
            distance = abs(near[0] - maze.exit[0]) + abs(near[1] - maze.exit[1])
            if 0 <= min(near) and max(near) < maze.size and len(path) + 1 + distance <= maze.budget:
                visit(near, path + move)

    visit(maze.start, "")
    return found


# --- Rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_every_maze_has_its_cells_in_their_corners(rows, name):
    size, block, budget, lava = SIZES[name]
    orientations = set()
    for row in [*rows[name]["train"], *rows[name]["test"]]:
        maze = parse_maze(row["gold"])
        assert (maze.size, maze.budget) == (size, budget)
        assert (len(maze.gold), len(maze.diamonds), len(maze.lava)) == (3, 3, lava)
        assert maze.start[0] % (size - 1) == maze.start[1] % (size - 1) == 0
        assert maze.exit == (size - 1 - maze.start[0], size - 1 - maze.start[1])
        beside = (maze.start[0], maze.exit[1]), (maze.exit[0], maze.start[1])
        gold_first = all(abs(r - beside[0][0]) < block > abs(c - beside[0][1]) for r, c in maze.gold)
        for corner, cells in zip(beside if gold_first else beside[::-1], (maze.gold, maze.diamonds), strict=True):
            assert all(abs(r - corner[0]) < block > abs(c - corner[1]) for r, c in cells)
        orientations.add((maze.start, gold_first))
    assert len(orientations) == 8


@pytest.mark.parametrize("name", TASKS)
def test_both_treasures_can_be_had_and_never_together(rows, name):
    every = [*rows[name]["test"], *rows[name]["train"]]
    for row in every if name == "maze" else every[::8]:
        points = front(row["gold"])
        assert len(points) >= 4
        assert points[:, 1].max() > 0 < points[:, 2].max() and (points[:, 1] * points[:, 2] == 0).all()
        # The grid is open, so that distances say the same: gold and diamonds are too far apart.
        maze = parse_maze(row["gold"])
        for one, other in [(g, d) for g in maze.gold for d in maze.diamonds]:
            legs = [(maze.start, one, other, maze.exit), (maze.start, other, one, maze.exit)]
            lengths = [sum(abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b in pairwise(leg)) for leg in legs]
            assert min(lengths) > maze.budget


@pytest.mark.parametrize("name, sizes", [("maze", (4096, 200)), ("maze_9x9", (2048, 100))])
def test_splits_are_distinct_even_when_turned_or_mirrored(rows, name, sizes):
    train, test = (rows[name][split] for split in ("train", "test"))
    assert (len(train), len(test)) == sizes
    assert len({row["id"] for row in train + test}) == len({row["gold"] for row in train + test}) == sum(sizes)

    def orientations(grid):
        cells = np.array([list(line) for line in grid.split("\n")])
        return {"".join(turned.ravel()) for i in range(4) for turned in (np.rot90(cells, i), np.rot90(cells, i).T)}

    shown = {row["gold"].replace("\n", "") for row in train}
    assert not any(orientations(row["gold"]) & shown for row in test)


@pytest.mark.parametrize("name", TASKS)
def test_prompts_state_the_budget_and_draw_the_maze(rows, name):
    system, user = rows[name]["train"][0]["prompt"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert f"at most {SIZES[name][2]} moves" in system["content"] and all(move in system["content"] for move in MOVES)
    assert len({row["prompt"][0]["content"] for split in rows[name].values() for row in split}) == 1
    assert all(row["prompt"][1]["content"] == row["gold"] for row in rows[name]["test"])


def test_worlds_are_generated_and_say_so():
    for name, task in TASKS.items():
        assert task.name == name and task.objectives == ("completion", "gold", "diamond", "avoid_lava")
        with pytest.raises(LabError, match=rf"{name} is generated and reads no file.*'x\.json'"):
            task.load("x.json")
        with pytest.raises(LabError, match=f"unknown split 'dev' of {name}"):
            task.load(None, "dev")


@pytest.mark.parametrize(
    "text", ["", "🤖🏁", "🤖🟡\n💎⬜", "🤖🟡\n💎🏁\n⬜⬜", "🤖🟡\n⬜🏁", "ab\ncd", "🤖🤖🟡\n💎⬜⬜\n⬜⬜🏁"]
)
def test_other_drawings_are_no_maze(text):
    with pytest.raises(LabError, match="no maze"):
        parse_maze(text)


# --- The score --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("→↓↓→→→↓↓", [1, 0, 0, 1]),  # a shortest way past everything
        ("→→→→↓↓↓↓", [1, 1, 0, 0.5]),  # all gold for one lava
        ("↓↓→→→↑→↓↓↓", [1, 1 / 3, 0, 1]),  # ten moves, the whole budget
        ("↓↓↓↓→→→→", [1, 0, 1, 0]),  # all diamonds for two lavas
        ("↓↓↓→→→→↓", [1, 0, 1 / 3, 1]),
        ("→→→←→→↓↓↓↓", [1, 1, 0, 0.5]),  # lava entered twice counts once
        ("→→↓→→↓↓↓", [1, 1 / 3, 0, 0]),  # two lavas
        ("→→↓↓↓↓→→", [1, 0, 0, 0]),  # four lavas: not below 0
        (" →↓\n↓→ →\t→↓↓ ", [1, 0, 0, 1]),  # whitespace means nothing
        ("→↓↓→→→↓↓←←", [1, 0, 0, 1]),  # the walk stops at the exit
        ("→↓↓→→→↓↓→→→→→", [1, 0, 0, 1]),  # so later moves cannot leave the grid
        ("→→→→↓↓↓", ZERO),  # one move short
        ("→←→←→→→→↓↓↓↓", ZERO),  # the exit at the twelfth move
        ("↑→→→→↓↓↓↓", ZERO),  # leaves the grid
        ("→→→→→", ZERO),
        ("", ZERO),
        ("→↓↓→→→↓↓.", ZERO),  # other text, even after the exit
        ("Answer: →↓↓→→→↓↓", ZERO),
        ("RDDRRRDD", ZERO),
    ],
)
def test_rules(answer, expected):
    rewards = score(answer, HAND_MADE)
    assert rewards.shape == (4,) and rewards.tolist() == pytest.approx(expected)
    assert TASKS["maze"].score([answer], [{"gold": HAND_MADE}]).tolist() == [rewards.tolist()]


def test_a_walk_is_its_cells_or_none():
    maze = parse_maze(HAND_MADE)
    assert walk(maze, "") == [(0, 0)]
    assert walk(maze, "→ ↓↑") == [(0, 0), (0, 1), (1, 1), (0, 1)]
    assert walk(maze, "→↓↓→→→↓↓↓")[-1] == (4, 4) and len(walk(maze, "→↓↓→→→↓↓↓")) == 9
    assert len(walk(maze, "→←" * 20)) == 11
    assert walk(maze, "←") is None and walk(maze, "→x") is None


def test_no_text_is_too_strange():
    rng = np.random.default_rng(0)
    alphabet = [*MOVES, *SYMBOLS, "\ud83d", "\udc8e", "\x00", "\u200d", "\ufe0f", "\u2028", "<answer_1>", "→️", "é", " "]
    hostile = ["→" * 100_000, "\ud800" * 50, "\x00", "→️→️", "".join(map(chr, range(0x2180, 0x21FF))), "</answer_1>"]
    hostile += ["".join(rng.choice(alphabet, size=rng.integers(30))) for _ in range(500)]
    hostile += ["".join(map(chr, rng.integers(0x110000, size=rng.integers(1, 20)))) for _ in range(500)]
    hostile += ["".join(rng.choice(list(MOVES), size=rng.integers(25))) for _ in range(2000)]
    for answer in hostile:
        rewards = score(answer, HAND_MADE)
        assert rewards.shape == (4,) and ((0 <= rewards) & (rewards <= 1)).all()
        assert rewards[0] in (0, 1) and (rewards[0] or not rewards.any())


# --- The front --------------------------------------------------------------------------------


def test_the_front_is_that_of_all_walks(rows):
    for gold in [HAND_MADE, *(row["gold"] for row in rows["maze"]["test"][:12])]:
        everything = np.array(sorted(all_rewards(gold)))
        expected = {tuple(point) for point in everything[pareto_optimal(everything)]}
        assert {tuple(point) for point in front(gold)} == expected and len(front(gold)) == len(expected)
        # No walk at all, optimal or not, takes some of both.
        assert not (everything[:, 1] * everything[:, 2]).any()


def test_the_search_itself_knows_no_conflict():
    gold = "🤖🟡⬜\n💎🔥⬜\n⬜⬜🏁"
    assert front(gold).tolist() == [[1, 1, 1, 1]] and (1, 1, 1, 1) in all_rewards(gold)
    assert score(best_paths(gold)[0], gold).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("name", TASKS)
def test_every_point_of_the_front_is_earned_by_its_path(rows, name):
    for row in rows[name]["test"][: 100 if name == "maze" else 30]:
        paths = best_paths(row["gold"])
        assert np.array([score(path, row["gold"]) for path in paths]).tolist() == front(row["gold"]).tolist()
        assert all(len(walk(parse_maze(row["gold"]), path)) == len(path) + 1 for path in paths)


@pytest.mark.parametrize("name", TASKS)
def test_no_random_walk_beats_the_front(rows, name):
    rng = np.random.default_rng(0)
    for row in rows[name]["test"][:40]:
        rewards = np.array([score(answer, row["gold"]) for answer in TASKS[name].demonstrations(row, 30, rng)])
        assert (front(row["gold"])[None] >= rewards[:, None]).all(axis=2).any(axis=1).all()


# --- Demonstrations ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_demonstrations_reach_the_exit_are_distinct_in_order_and_seldom_skilled(rows, name):
    rng, rewards, lengths, skilled, total = np.random.default_rng(0), [], [], 0, 0
    size, _, budget, _ = SIZES[name]
    for row in rows[name]["train"][:300]:
        answers, best = TASKS[name].demonstrations(row, 4, rng), best_paths(row["gold"])
        assert len(set(answers)) == 4
        assert answers == sorted(answers, key=lambda answer: ["↑↓←→".index(move) for move in answer])
        rewards += [score(answer, row["gold"]) for answer in answers]
        others = [answer for answer in answers if answer not in best]
        skilled, total = skilled + len(answers) - len(others), total + len(answers)
        lengths += [len(answer) for answer in others]
        for answer in others:
            cells = walk(parse_maze(row["gold"]), answer)
            assert len(set(cells)) == len(cells) == len(answer) + 1
    completion, gold, diamond, lava = np.mean(rewards, axis=0)
    assert completion == 1 and gold < 0.3 > diamond and 0.1 < lava < 0.6
    assert set(lengths) == {2 * size - 2, budget} and 0.65 < np.mean(np.array(lengths) < budget) < 0.75
    assert 0.1 < skilled / total < 0.2


def test_demonstrations_depend_on_the_generator_only(rows):
    first, again, other = (
        [TASKS["maze"].demonstrations(row, 3, rng) for row in rows["maze"]["train"][:50]]
        for rng in map(np.random.default_rng, (7, 7, 8))
    )
    assert first == again != other


# --- The ceiling ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_ceilings_rise_with_k_and_stay_below_one(name):
    ceilings = [TASKS[name].ceiling(k) for k in (1, 2, 3, 4, 8, 24)]
    for metric in ("best", "pass", "eum", "hypervolume"):
        values = [figures[metric] for figures in ceilings]
        assert all(low <= high for low, high in pairwise(values)) and 0 <= values[0] <= values[-1] <= 1 + 1e-9
    assert ceilings[0]["eum"] < ceilings[1]["eum"] < ceilings[2]["eum"] < ceilings[3]["eum"]
    assert ceilings[-1]["hypervolume"] == pytest.approx(1) and ceilings[2]["hypervolume"] < 1
    assert len({figures["best"] for figures in ceilings}) == 1 and ceilings[-1]["pass"] == 0
    with pytest.raises(LabError, match="k = 0: at least 1"):
        TASKS[name].ceiling(0)


def test_the_ceiling_of_the_hypervolume_is_that_of_the_best_pairs(rows):
    task = TASKS["maze"]
    reference = np.full(4, task.reference)
    shares = []
    for row in rows["maze"]["test"]:
        points = task.front(row["gold"])
        best = max(hypervolume(points[list(pair)], reference) for pair in combinations(range(len(points)), 2))
        shares.append(best / hypervolume(points, reference))
    assert task.ceiling(2)["hypervolume"] == pytest.approx(np.mean(shares))


# --- The tokenizer ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_cell_and_a_move_are_one_token_each(rows, name):
    task, rng = TASKS[name], np.random.default_rng(0)
    texts = []
    for row in rows[name]["train"][:400]:
        for m in (1, 3):
            messages = answer_prompt(row["prompt"], m)
            texts.append("".join(f"<|im_start|>{msg['role']}\n{msg['content']}<|im_end|>\n" for msg in messages))
            texts.append(join_chain(task.demonstrations(row, m, rng)))
    tokenizer = train_tokenizer(texts)
    assert all(len(symbol) == 1 for symbol in SYMBOLS)
    for symbol in [*SYMBOLS, *MOVES]:
        assert symbol in tokenizer.get_added_vocab()
    size = SIZES[name][0]
    for row in rows[name]["test"]:
        prompt = tokenizer(row["gold"], add_special_tokens=False)["input_ids"]
        assert len(prompt) == size * size + size - 1 and tokenizer.decode(prompt) == row["gold"]
        answers = task.demonstrations(row, 3, rng)
        chain = tokenizer(join_chain(answers), add_special_tokens=False)["input_ids"]
        assert len(chain) <= sum(map(len, answers)) + 6 and tokenizer.decode(chain) == join_chain(answers)
