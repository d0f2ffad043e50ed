"""A maze with gold in one corner and diamonds in another: every request has a Pareto front.

The generative model
--------------------
A square grid of n x n cells. The walk starts in one corner and the exit is in the opposite one; in
the block at a third corner lie three pieces of gold, in the block at the fourth three diamonds
(blocks of 2 x 2 cells for n = 5, of 3 x 3 for n = 9). On either side of the diagonal from start to
exit two cells (five for n = 9) are lava: it may be entered, at a price. A walk has 2(n-1) + 2 moves,
two more than the shortest: enough for either treasure and never for both. All eight orientations are
equally likely.

Within these rules the layout is uniform, and a maze is kept if the exact search finds that
1. walks to the exit reach gold, others reach diamonds, and none takes some of both;
2. there is a choice besides: FRONT_SIZE vectors or more are Pareto-optimal, so lava lies on a good way.

Unlike in tiny_tools nothing is hidden: the drawing in the prompt decides every reward. A policy cannot
know which objectives count. So no single answer is best for everyone, but a set of answers can be.

WORLD_SEED fixes the rows, so every run has the same. No train maze is a test maze, turned or mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.metrics import hypervolume, pareto_optimal
from vpo_lab.tasks import check_generated, each

WORLD_SEED = 20260522

MEANINGS = {
    "completion": "reaches the exit",
    "gold": "share of the gold taken",
    "diamond": "share of the diamonds taken",
    "avoid_lava": "1 for no lava, ½ for one cell, 0 for two",
}
OBJECTIVES = tuple(MEANINGS)

TREASURES = 3  # pieces of gold, and as many diamonds
LAVA_LIMIT = 2  # entering so many lava cells costs all of avoid_lava
FRONT_SIZE = 4  # the fewest Pareto-optimal vectors of a maze
SKILL = 0.15  # share of demonstrations that are walks of the Pareto front
SHORTEST = 0.7  # share of the other demonstrations without a detour

# No vector has both gold and diamonds: with a reference of 0 the hypervolume of every set would be 0.
REFERENCE = -0.1

# One code point per symbol, so that a cell or a move can be one token.
FLOOR, GOLD, DIAMOND, LAVA, EXIT, START = "⬜🟡💎🔥🏁🤖"

MOVES = {"↑": (-1, 0), "↓": (1, 0), "←": (0, -1), "→": (0, 1)}

Cell = tuple[int, int]  # row, column; the top left is (0, 0)


@dataclass(frozen=True)
class World:
    """Hold the sizes of one form of the task."""

    size: int
    block: int
    lava: int  # cells on each side
    rows: tuple[tuple[str, int], ...]  # test first, so that its rows stay when train grows


WORLDS = {5: World(5, 2, 2, (("test", 200), ("train", 4096))), 9: World(9, 3, 5, (("test", 100), ("train", 2048)))}


@dataclass(frozen=True)
class Maze:
    """Hold a maze as a drawing shows it."""

    size: int
    start: Cell
    exit: Cell
    gold: frozenset[Cell]
    diamonds: frozenset[Cell]
    lava: frozenset[Cell]
    budget: int


@lru_cache(maxsize=8192)
def parse_maze(gold: str) -> Maze:
    """Return the maze of a drawing, a line of the symbols above for each row; LabError if it is none."""
    lines = gold.split("\n")
    found: dict[str, list[Cell]] = {symbol: [] for symbol in (FLOOR, GOLD, DIAMOND, LAVA, EXIT, START)}
    for row, line in enumerate(lines):
        for column, symbol in enumerate(line):
            if symbol not in found or len(line) != len(lines):
                raise LabError(f"no maze: row {row + 1} of {len(lines)} is {line!r}")
            found[symbol].append((row, column))
    if not (len(found[START]) == len(found[EXIT]) == 1 and found[GOLD] and found[DIAMOND]):
        raise LabError(f"no maze: it needs one {START}, one {EXIT}, {GOLD} and {DIAMOND}: {gold!r}")
    treasure = frozenset(found[GOLD]), frozenset(found[DIAMOND])
    size = len(lines)
    return Maze(size, found[START][0], found[EXIT][0], *treasure, frozenset(found[LAVA]), _budget(size))


def _budget(size: int) -> int:
    return 2 * (size - 1) + 2


def walk(maze: Maze, answer: str) -> list[Cell] | None:
    """Return the cells of an answer, the start first; None if it holds other text or leaves the grid.

    The walk stops at the exit, or when the budget is spent; later moves are ignored, as is whitespace.
    """
    moves = "".join(answer.split())
    if not set(moves) <= MOVES.keys():
        return None
    row, column = maze.start
    cells = [maze.start]
    for move in moves[: maze.budget]:
        down, right = MOVES[move]
        row, column = row + down, column + right
        if not (0 <= row < maze.size and 0 <= column < maze.size):
            return None
        cells.append((row, column))
        if cells[-1] == maze.exit:
            break
    return cells


def score(answer: str, gold: str) -> np.ndarray:
    """Return the rewards (4,) in [0, 1]: exit reached, shares of gold and diamonds, 1 - (lava cells entered) / 2.

    All four are 0 unless `walk` ends at the exit. A cell counts once, however often it is entered.
    LabError if `gold` is no maze.
    """
    maze = parse_maze(gold)
    cells = walk(maze, answer)
    if cells is None or cells[-1] != maze.exit:
        return np.zeros(len(OBJECTIVES))
    entered = set(cells)
    gold_share, diamond_share = (len(kind & entered) / len(kind) for kind in (maze.gold, maze.diamonds))
    return np.array([1.0, gold_share, diamond_share, max(0.0, 1 - len(maze.lava & entered) / LAVA_LIMIT)])


# --- Exact search -----------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def front(gold: str) -> np.ndarray:
    """Return all Pareto-optimal reward vectors of walks within the budget: (P, 4), most gold first.

    Exact: dynamic programming over (moves, cell, set of treasure and lava cells entered so far).
    """
    points = np.array(sorted(_attainable(parse_maze(gold)), reverse=True))
    points = points[pareto_optimal(points)]
    points.setflags(write=False)
    return points


def _attainable(maze: Maze) -> set[tuple[float, ...]]:
    """Return the distinct reward vectors of all walks that reach the exit within the budget."""
    ends = 0
    for layer in _layers(maze):
        ends |= layer.get(maze.exit, 0)
    return set(map(tuple, _rewards(maze, _members(ends)).tolist()))


@lru_cache(maxsize=8192)
def best_paths(gold: str) -> tuple[str, ...]:
    """Return a walk for every point of `front`, in its order, with the fewest moves that earn the point."""
    maze = parse_maze(gold)
    layers, paths = _layers(maze), []
    for point in front(gold):
        for moves, layer in enumerate(layers):
            members = _members(layer.get(maze.exit, 0))
            hits = members[(_rewards(maze, members) == point).all(axis=1)]
            if len(hits):
                paths.append(_retrace(maze, layers, moves, int(hits[0])))
                break
    return tuple(paths)


def _items(maze: Maze) -> dict[Cell, int]:
    """Return the bit of each item in a set of entered cells: gold first, then diamonds, then lava."""
    return {cell: bit for bit, cell in enumerate([*sorted(maze.gold), *sorted(maze.diamonds), *sorted(maze.lava)])}


def _layers(maze: Maze) -> list[dict[Cell, int]]:
    """Return for every number of moves: cell -> the sets of items that a walk to it can have entered.

    A set of items is a number s below 2^items. The sets of a cell are one large integer: its bit s is 1
    if s occurs. Entering item b turns every s without b into s + 2^b, for all sets at once: a shift.
    Cells from which the exit is out of reach are left out.
    """
    items = _items(maze)
    layers = [{maze.start: 1}]
    for left in range(maze.budget - 1, -1, -1):
        layer: dict[Cell, int] = {}
        for cell, sets in layers[-1].items():
            for near in _neighbours(maze.size)[cell] if cell != maze.exit else ():
                if abs(near[0] - maze.exit[0]) + abs(near[1] - maze.exit[1]) <= left:
                    layer[near] = layer.get(near, 0) | sets
        for cell in layer.keys() & items.keys():
            bit = items[cell]
            without = layer[cell] & _sets_without(bit, len(items))
            layer[cell] = (layer[cell] ^ without) | without << (1 << bit)
        layers.append(layer)
    return layers


@lru_cache
def _neighbours(size: int) -> dict[Cell, tuple[Cell, ...]]:
    grid = [(row, column) for row in range(size) for column in range(size)]
    near = {cell: [(cell[0] + down, cell[1] + right) for down, right in MOVES.values()] for cell in grid}
    return {cell: tuple(n for n in cells if n in near) for cell, cells in near.items()}


@lru_cache
def _sets_without(bit: int, items: int) -> int:
    """Return the integer with a 1 at every set of items that lacks `bit`."""
    return sum(1 << s for s in range(1 << items) if not s >> bit & 1)


def _members(sets: int) -> np.ndarray:
    """Return the positions of the ones: the sets of items in an integer of `_layers`."""
    data = np.frombuffer(sets.to_bytes(sets.bit_length() // 8 + 1, "little"), dtype=np.uint8)
    return np.flatnonzero(np.unpackbits(data, bitorder="little"))


def _rewards(maze: Maze, members: np.ndarray) -> np.ndarray:
    """Return the reward vectors of walks to the exit that entered these sets of items: (sets, 4)."""
    n_gold, n_diamonds = len(maze.gold), len(maze.diamonds)
    gold = np.bitwise_count(members & (1 << n_gold) - 1) / n_gold
    diamonds = np.bitwise_count(members >> n_gold & (1 << n_diamonds) - 1) / n_diamonds
    lava = np.bitwise_count(members >> n_gold + n_diamonds) / LAVA_LIMIT
    return np.column_stack([np.ones(len(members)), gold, diamonds, np.maximum(0.0, 1 - lava)])


def _retrace(maze: Maze, layers: list[dict[Cell, int]], moves: int, entered: int) -> str:
    """Return a walk of so many moves to the exit that enters exactly this set of items."""
    items, cell, path = _items(maze), maze.exit, ""
    for layer in layers[:moves][::-1]:
        before = {entered} if cell not in items else {entered, entered & ~(1 << items[cell])}
        cell, entered, arrow = next(
            (near, sets, arrow)
            for arrow, (down, right) in MOVES.items()
            for near in [(cell[0] - down, cell[1] - right)]
            for sets in before
            if near != maze.exit and layer.get(near, 0) >> sets & 1
        )
        path = arrow + path
    return path


# --- The world --------------------------------------------------------------------------------


@lru_cache
def _grids(size: int, wanted: str) -> tuple[str, ...]:
    """Return the mazes of a split as drawings; those of all splits are distinct. No split is drawn that comes later."""
    rng = np.random.default_rng([WORLD_SEED, size])
    tested: set[str] = set()  # upright
    for split, count in WORLDS[size].rows:
        rows: dict[str, str] = {}  # as shown -> upright
        while len(rows) < count:
            upright = _draw_grid(WORLDS[size], rng)
            if upright not in tested and _is_dilemma(upright):
                rows[_turned(upright, rng)] = upright
        if split == wanted:
            return tuple(rows)
        tested |= set(rows.values())
    raise LabError(f"no split {wanted!r} of the mazes")


def _draw_grid(world: World, rng: np.random.Generator) -> str:
    """Draw a maze with the start at the top left, gold at the top right and diamonds at the bottom left."""
    grid = np.full((world.size, world.size), FLOOR)
    grid[0, 0], grid[-1, -1] = START, EXIT
    row, column = np.indices(grid.shape)
    for symbol, block, side in (
        (GOLD, grid[: world.block, -world.block :], column > row),
        (DIAMOND, grid[-world.block :, : world.block], column < row),
    ):
        block.flat[rng.choice(block.size, size=TREASURES, replace=False)] = symbol
        grid.flat[rng.choice(np.flatnonzero(side & (grid == FLOOR)), size=world.lava, replace=False)] = LAVA
    return _drawing(grid)


def _drawing(grid: np.ndarray) -> str:
    return "\n".join("".join(row) for row in grid)


def _turned(grid: str, rng: np.random.Generator) -> str:
    """Return a drawing in one of its eight orientations."""
    cells = np.rot90(np.array([list(line) for line in grid.split("\n")]), rng.integers(4))
    return _drawing(cells.T if rng.integers(2) else cells)


@lru_cache(maxsize=8192)
def _is_dilemma(grid: str) -> bool:
    """Return True if both treasures can be reached, no walk takes some of both, and the front is large enough."""
    points = _attainable(parse_maze(grid))
    any_gold, any_diamond = (any(point[i] for point in points) for i in (1, 2))
    both = any(point[1] and point[2] for point in points)
    return any_gold and any_diamond and not both and pareto_optimal(np.array(list(points))).sum() >= FRONT_SIZE


@lru_cache
def ceiling(size: int, k: int) -> dict[str, float]:
    """Return what no set of k answers can beat, as means over the test mazes, in [0, 1].

    "best": the best mean of the four objectives of one answer, whatever k; "pass": 0, because no answer
    earns everything; "eum": the best expected utility under uniform (Dirichlet) weights;
    "hypervolume": the best share of the front's hypervolume above REFERENCE. The last two are optima
    over all subsets of the front, which has 7 points at most. LabError for k < 1.
    """
    if k < 1:
        raise LabError(f"k = {k}: at least 1 is needed")
    weights_KD = np.random.default_rng(WORLD_SEED).dirichlet(np.ones(len(OBJECTIVES)), size=8192)
    reference = np.full(len(OBJECTIVES), REFERENCE)
    best, utility, volume = [], [], []
    for grid in _grids(size, "test"):
        points = front(grid)
        subsets = [list(chosen) for chosen in combinations(range(len(points)), min(k, len(points)))]
        utility_PK = points @ weights_KD.T
        best.append(points.mean(axis=1).max())
        utility.append(max(utility_PK[chosen].max(axis=0).mean() for chosen in subsets))
        volumes = [hypervolume(points[chosen], reference) for chosen in subsets]
        volume.append(max(volumes) / hypervolume(points, reference))
    return {
        "best": float(np.mean(best)),
        "pass": 0.0,
        "eum": float(np.mean(utility)),
        "hypervolume": float(np.mean(volume)),
    }


# --- The task ---------------------------------------------------------------------------------


class MazeTask:
    """Offer the mazes of 5 x 5 cells as a task. A row's gold is the drawing in its prompt."""

    name = "maze"
    size = 5
    objectives = OBJECTIVES
    reference = REFERENCE
    about = "No walk can take both treasures, and lava lies on some good ways. So no answer is best for everyone."
    meanings = MEANINGS

    score = staticmethod(each(score))

    def front(self, gold: str) -> np.ndarray:
        """Return the Pareto-optimal reward vectors of a maze: (P, 4)."""
        return front(gold)

    def title(self, row: dict) -> str:
        """Return the number of a maze in its split, from 1."""
        return f"Maze {int(row['id'].rpartition('-')[2]) + 1}"

    def picture(self, gold: str, answers: Sequence[str]) -> str:
        """Return a maze with the walks of M answers, as SVG."""
        from vpo_lab.tasks.maze.draw import maze_picture

        return maze_picture(gold, answers)

    @property
    def picture_key(self) -> str:
        """Return what the marks in a picture mean, as SVG and text."""
        from vpo_lab.tasks.maze.draw import maze_key

        return maze_key()

    def ceiling(self, k: int) -> dict[str, float]:
        """Return the bounds on any k answers; see the function of this name."""
        return ceiling(self.size, k)

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """Return the rows of a split, the same on every machine. LabError for a path or another split."""
        check_generated(self.name, path, split)
        system = (
            f"Walk from {START} to {EXIT} in at most {_budget(self.size)} moves. {GOLD} is gold, {DIAMOND} is a "
            f"diamond, {LAVA} is lava.\n\n**Output Format**\nOne arrow per move: {' '.join(MOVES)}"
        )
        return [
            {
                "id": f"{self.name}-{split}-{number}",
                "prompt": [{"role": "system", "content": system}, {"role": "user", "content": grid}],
                "gold": grid,
            }
            for number, grid in enumerate(_grids(self.size, split))
        ]

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` distinct walks to the exit; most of them ignore treasure and lava.

        With probability SKILL a walk of the Pareto front, else with SHORTEST any of the shortest walks, else any
        walk with one detour that enters no cell twice. Walks are sorted by their moves. A fixed order lets the model
        see which ways it has already gone, so it learns not to repeat itself.
        """
        maze = parse_maze(row["gold"])
        answers: list[str] = []
        while len(answers) < n:
            skilled = rng.random() < SKILL
            answer = str(rng.choice(best_paths(row["gold"]))) if skilled else _random_walk(maze, rng)
            if answer not in answers:
                answers.append(answer)
        return sorted(answers, key=lambda answer: [*map("↑↓←→".index, answer)])


class MazeTask9x9(MazeTask):
    """Offer the mazes of 9 x 9 cells, for a larger policy."""

    name = "maze_9x9"
    size = 9


def _random_walk(maze: Maze, rng: np.random.Generator) -> str:
    ahead = "↓↑" if maze.exit[0] else "↑↓", "→←" if maze.exit[1] else "←→"
    moves = [pair[0] for pair in ahead for _ in range(maze.size - 1)]
    if rng.random() >= SHORTEST:
        moves += ahead[rng.integers(2)]
    while True:
        answer = "".join(rng.permutation(moves))
        cells = walk(maze, answer)
        if cells is not None and len(set(cells)) == len(moves) + 1:
            return answer
