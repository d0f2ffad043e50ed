"""Patches of a small Python program, one reward per hidden test: the tiny worlds `tiny_code` and `tiny_repair`.

The generative model
--------------------
A program tidies a record of six fields. Each field has one step, a line of Python that sets it, with eight
variants: 48 lines. The start is the program without steps, which returns the record as it is. A request names the
variant that it wants of every step, in one of two wordings, in shuffled order: 8**6 different wishes. An answer is a
patch of at most LIMIT lines; a line takes the place of its field's. Any Python about this field will do: it is run.

Six tests are hidden. Each fills one field of the record; the other fields hold values that every variant leaves as
they are. So three right lines pass three tests, and two such patches can pass all six: copies of the best answer cover
half of what a set can. No two variants of a step give the same, and the start passes no test. The inputs are the same
for all requests, what is expected is not.

Two kinds of request feed the warmup. "Write" is demonstrated without a mistake, so the policy learns which words
want which line. "Draft" is demonstrated by somebody in a hurry: a line is right with probability SKILL, else any of
the eight. Only drafts are trained by RL and tested: the start could, and does not.

`tiny_repair` also states a parent program and the tests that it fails; an answer patches the parent.

WORLD_SEED fixes the rows, so every run has the same. Train and test share no wish.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import combinations

import numpy as np

from vpo_lab.tasks import check_generated

WORLD_SEED = 20261126
LIMIT = 3  # lines of a patch
SKILL = 0.15  # how often a hurried line is chosen on purpose
FUNCTION = "tidy"
LONGEST = 200  # characters of a line
ROWS = {"test": 200, "train": 4096}
DRAFTS = 1024  # of the train rows; they come first, so that `rl.train_rows` can choose them

# field -> (value in a test that needs it, value that every variant leaves alone, {line: wordings})
_STEPS: dict[str, tuple[object, object, dict[str, tuple[str, str]]]] = {
    "name": (
        "ann LEE",
        "",
        {
            "name = name.upper()": ("in capitals", "shouted"),
            "name = name.lower()": ("in small letters", "whispered"),
            "name = name.title()": ("as in a title", "every word with a capital"),
            "name = name.swapcase()": ("capitals and small letters swapped", "with the other case"),
            "name = name[::-1]": ("read from the right", "backwards"),
            'name = name.replace(" ", "_")': ("underscores for spaces", "joined by underscores"),
            "name = name[:4]": ("cut after four letters", "only its first four letters"),
            'name = " ".join(name.split()[::-1])': ("family name first", "words in reverse"),
        },
    ),
    "note": (
        "call Bob back soon!",
        "",
        {
            "note = note.capitalize()": ("as a sentence", "only the first letter large"),
            'note = note.rstrip("!")': ("without shouting", "no mark at the end"),
            'note = note.replace("o", "0")': ("zeros for the letter o", "every o a zero"),
            "note = note + note": ("written twice", "doubled"),
            'note = " ".join(sorted(note.split()))': ("words in alphabetical order", "its words sorted"),
            'note = "".join([w[0] for w in note.split()])': ("initials only", "first letters of its words"),
            "note = note[-5:]": ("its last five letters", "only the end"),
            'note = note.partition(" ")[2]': ("without the first word", "all but its first word"),
        },
    ),
    "tags": (
        ["red", "blue", "red", "oak", "green", "blue"],
        [],
        {
            "tags = sorted(tags)": ("sorted", "from a to z"),
            "tags = tags[::-1]": ("last one first", "reversed"),
            "tags = sorted(set(tags))": ("sorted without repeats", "each once and sorted"),
            "tags = tags[:2]": ("first two", "no more than two"),
            "tags = tags[1:]": ("without the first", "all but the first"),
            "tags = sorted(tags, key=len)": ("shortest first", "by length"),
            "tags = [t.upper() for t in tags]": ("in large letters", "as loud labels"),
            "tags = list(dict.fromkeys(tags))": ("without repeats", "each only once"),
        },
    ),
    "marks": (
        [3, -2, 8, -5, 4],
        [],
        {
            "marks = [2 * m for m in marks]": ("doubled each", "twice as high"),
            "marks = [m for m in marks if m > 0]": ("positive ones", "nothing below one"),
            "marks = [abs(m) for m in marks]": ("without signs", "as sizes"),
            "marks = [-m for m in marks]": ("with the other sign", "turned around zero"),
            "marks = [m * m for m in marks]": ("squared", "each times itself"),
            "marks = sorted(marks, reverse=True)": ("best first", "from high to low"),
            "marks = [m for m in marks if m % 2 == 0]": ("even ones", "without odd ones"),
            "marks = [max(m, 0) for m in marks]": ("at least zero", "debts forgiven"),
        },
    ),
    "price": (
        47,
        0,
        {
            "price = price * 2": ("for two", "paid twice"),
            "price = -price": ("as a refund", "negative"),
            "price = price ** 2": ("as a square", "times itself"),
            "price = price // 3": ("shared by three", "a third of it"),
            "price = price % 7": ("rest of sevens", "what seven leaves"),
            "price = price // 10 * 10": ("in full tens", "rounded down to tens"),
            "price = price * 3": ("for three", "paid three times"),
            "price = int(str(price)[::-1])": ("digits turned", "with its digits in reverse"),
        },
    ),
    "stock": (
        {"tea": 0, "oil": 2, "jam": 7},
        {},
        {
            "stock = {k: n for k, n in stock.items() if n}": ("without what is gone", "only what is there"),
            "stock = {k: n + 1 for k, n in stock.items()}": ("one more of each", "after a delivery"),
            "stock = {k.upper(): n for k, n in stock.items()}": ("labels large", "keys in capitals"),
            "stock = {k: 2 * n for k, n in stock.items()}": ("twice of each", "with a second load"),
            "stock = {k: -n for k, n in stock.items()}": ("as owed", "counted below zero"),
            "stock = {k: n for k, n in stock.items() if n > 2}": ("plenty only", "more than two left"),
            "stock = {k: min(n, 5) for k, n in stock.items()}": ("at most five", "capped at five"),
            "stock = {k: 0 for k in stock}": ("all sold", "emptied"),
        },
    ),
}
FIELDS = tuple(_STEPS)
LINES = {field: tuple(lines) for field, (_, _, lines) in _STEPS.items()}
VARIANTS = 8
INPUTS = tuple(  # of the tests: each fills one field
    json.dumps([value if field == filled else neutral for field, (value, neutral, _) in _STEPS.items()])
    for filled in FIELDS
)


# --- Programs and patches ---------------------------------------------------------------------


def compose(lines: Mapping[str, str]) -> str:
    """Return the program with these lines, {field: line}, in the order of FIELDS."""
    body = "".join(f"    {lines[field]}\n" for field in FIELDS if field in lines)
    record = ", ".join(FIELDS)
    return f"def {FUNCTION}({record}):\n{body}    return [{record}]\n"


def parse_program(text: str) -> dict[str, str]:
    """Return the lines of a program as {field: line}, the inverse of `compose`; other lines are ignored."""
    found = (_step(line) for line in text.split("\n"))
    return {step[0]: step[1] for step in found if step is not None}


def parse_patch(answer: str) -> dict[str, str] | None:
    """Return the lines of a patch as {field: line}; None if it has no line, too many, or another than FIELD = ...

    Of two lines for one field the later counts. Never raises.
    """
    lines = [line for line in answer.split("\n") if line.strip()]
    if not 1 <= len(lines) <= LIMIT:
        return None
    steps = [_step(line) for line in lines]
    return None if None in steps else dict(step for step in steps if step is not None)


@lru_cache(maxsize=4096)
def _step(line: str) -> tuple[str, str] | None:
    """Return (field, line) of a line FIELD = EXPRESSION in which no other field occurs, else None."""
    line = line.strip()
    if len(line) > LONGEST:
        return None
    try:
        body = ast.parse(line).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if len(body) != 1 or not isinstance(body[0], ast.Assign) or len(body[0].targets) != 1:
        return None
    target = body[0].targets[0]
    if not isinstance(target, ast.Name) or target.id not in FIELDS:
        return None
    # A line sets its own field and no other: else one line could hold a whole program.
    others = set(FIELDS) - {target.id}
    for node in ast.walk(body[0]):
        if isinstance(node, ast.NamedExpr) or (isinstance(node, ast.Name) and node.id in others):
            return None
    return target.id, line


@cache
def _sandbox():
    """Open the sandbox of this process: Monty's language is enough here, and it is the fastest."""
    from vpo_lab.tasks.code.sandbox import monty, open_sandbox

    return open_sandbox(None if monty.problem() else "monty")


@lru_cache(maxsize=50_000)
def run_program(program: str) -> tuple[str | None, ...]:
    """Return what a program makes of the test inputs, (6,) JSON texts with sorted keys; None where it fails."""
    results = _sandbox().call(program, FUNCTION, list(INPUTS))
    return tuple(result and json.dumps(json.loads(result), sort_keys=True) for result in results)


def passed(program: str, wish: Sequence[int]) -> np.ndarray:
    """Return which tests of a wish a program passes: (6,) of 0.0 and 1.0. `wish` holds a variant per field."""
    expected = run_program(compose(wanted_lines(wish)))
    return np.array([float(a is not None and a == b) for a, b in zip(run_program(program), expected, strict=True)])


def wanted_lines(wish: Iterable[int]) -> dict[str, str]:
    """Return the line that a wish wants of every field."""
    return {field: LINES[field][variant] for field, variant in zip(FIELDS, wish, strict=True)}


MEANINGS = {f"test_{i + 1}": f"the {field} is right" for i, field in enumerate(FIELDS)}


# --- The tasks --------------------------------------------------------------------------------


class TinyCode:
    """Patch the empty program. A row's gold is the JSON list of the variant that is wanted of each field."""

    name = "tiny_code"
    objectives = tuple(f"test_{i + 1}" for i in range(len(FIELDS)))
    about = "A request asks for six changes, an answer holds three at most. Each objective is a hidden test."
    meanings = MEANINGS

    def score(self, answers: Sequence[str], rows: Sequence[dict]) -> np.ndarray:
        """Return which tests each patched program passes: (n, 6). A patch that cannot be read earns nothing."""
        return np.array([self._score(answer, row) for answer, row in zip(answers, rows, strict=True)]).reshape(
            -1, len(FIELDS)
        )

    def _score(self, answer: str, row: dict) -> np.ndarray:
        patch = parse_patch(answer)
        if patch is None:
            return np.zeros(len(FIELDS))
        return passed(compose(row.get("parent", {}) | patch), json.loads(row["gold"]))

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """Return the rows of a split: {"id", "prompt", "gold"}; those of "train" begin with the drafts."""
        check_generated(self.name, path, split)
        rows = []
        for number, (wish, wordings, order) in enumerate(_wishes(split)):
            kind = "Write" if split == "train" and number >= DRAFTS else "Draft"
            row = {"id": f"{split}-{number}", "gold": json.dumps(wish)}
            row |= self._parent(np.random.default_rng([WORLD_SEED, split == "train", number]), wish)
            row["request"] = f"{kind} a patch. {_words(wish, wordings, order)} Three lines at most."
            rows.append(row | {"prompt": self._prompt(row)})
        return rows

    def _prompt(self, row: dict) -> list[dict]:
        return [{"role": "user", "content": row["request"]}]

    def _parent(self, rng: np.random.Generator, wish: Sequence[int]) -> dict:
        return {}

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` patches of random fields: for "Write" without a mistake, for "Draft" mostly wrong.

        Who writes carefully patches only what the parent lacks, where there is a parent.
        """
        wish = json.loads(row["gold"])
        careful = row["prompt"][0]["content"].startswith("Write")
        wanted, parent = wanted_lines(wish), row.get("parent", {})
        lacking = [f for f, field in enumerate(FIELDS) if not careful or parent.get(field) != wanted[field]]
        answers = []
        for _ in range(n):
            lines = []
            for f in sorted(rng.choice(lacking, size=min(LIMIT, len(lacking)), replace=False)):
                right = careful or rng.random() < SKILL
                lines.append(LINES[FIELDS[f]][wish[f] if right else rng.integers(VARIANTS)])
            answers.append("\n".join(lines))
        return answers

    def ceiling(self, k: int) -> dict[str, float]:
        """Return the highest expected best@k and pass@k: half of the tests, and none of the requests, for every k."""
        return {"best": 0.5, "pass": 0.0}

    # What `show.Explorer` asks for.

    def title(self, row: dict) -> str:
        """Return the request."""
        return row["request"]

    def short(self, answer: str) -> str:
        """Return a patch in one line."""
        return "; ".join(line.strip() for line in answer.strip().splitlines() if line.strip())

    # What a search needs (`vpo_lab.search.loop`), and what tells whether it can succeed (`search.closure`).

    def start(self, row: dict) -> str:
        """Return the program that a search starts from: the one without steps."""
        return compose({})

    def child(self, parent: str, answer: str, row: dict) -> str:
        """Return the parent with the lines of a patch put in; the parent if the patch cannot be read."""
        patch = parse_patch(answer)
        return parent if patch is None else compose(parse_program(parent) | patch)

    def evaluate(self, programs: Sequence[str], rows: Sequence[dict]) -> np.ndarray:
        """Return which tests each program passes: (n, 6)."""
        pairs = zip(programs, rows, strict=True)
        return np.array([passed(program, json.loads(row["gold"])) for program, row in pairs]).reshape(-1, len(FIELDS))

    def solution(self, row: dict) -> str:
        """Return the program that a row wants."""
        return compose(wanted_lines(json.loads(row["gold"])))

    patch = staticmethod(parse_patch)
    lines = staticmethod(parse_program)


class TinyRepair(TinyCode):
    """Patch a parent program that has some of the lines, told which tests it fails."""

    name = "tiny_repair"
    about = "As tiny_code, but the request shows a program and the tests that it fails; the answer patches it."

    def _parent(self, rng: np.random.Generator, wish: Sequence[int]) -> dict:
        """Draw a parent as a search meets it: none to all fields set, most of them right."""
        kept = rng.random(len(FIELDS)) < rng.random()
        right = rng.random(len(FIELDS)) < 0.75
        variants = np.where(right, wish, rng.integers(VARIANTS, size=len(FIELDS)))
        if kept.all() and (variants == wish).all():
            kept[rng.integers(len(FIELDS))] = False  # nothing would be left to repair
        lines = {field: LINES[field][v] for field, v, k in zip(FIELDS, variants, kept, strict=True) if k}
        return {"parent": lines}

    def ceiling(self, k: int) -> dict[str, float]:
        """Return the highest expected best@k and pass@k, for every k: LIMIT lines more than the parent has right."""
        rows = self.load(None, "test")
        passed_N = np.array([passed(compose(row["parent"]), json.loads(row["gold"])).sum() for row in rows])
        best_N = np.minimum(passed_N + LIMIT, len(FIELDS)) / len(FIELDS)
        return {"best": float(best_N.mean()), "pass": float((best_N == 1).mean())}

    def _prompt(self, row: dict) -> list[dict]:
        program = compose(row["parent"])
        return self.prompt(row, program, passed(program, json.loads(row["gold"])))

    def prompt(self, row: dict, parent: str, rewards_D: np.ndarray) -> list[dict]:
        """Return the request with the lines of a parent program and the numbers of the tests that it fails."""
        lines = "".join(f"\n{line}" for line in parse_program(parent).values())
        failing = " ".join(str(number) for number, reward in enumerate(rewards_D, start=1) if not reward)
        told = f"\nHere is the program:{lines}\nIt fails tests {failing}"
        return [{"role": "user", "content": row["request"] + told}]


def _words(wish: Sequence[int], wordings: Sequence[int], order: Sequence[int]) -> str:
    phrases = []
    for f in order:
        field = FIELDS[f]
        phrases.append(f"{field.title()}: {_STEPS[field][2][LINES[field][wish[f]]][wordings[f]]}.")
    return " ".join(phrases)


@cache
def _wishes(split: str) -> tuple[tuple[list[int], list[int], list[int]], ...]:
    """Return (variant per field, wording per field, order of the fields) for each row; no wish comes twice."""
    rng = np.random.default_rng(WORLD_SEED)
    seen, found = set(), {}
    for name, count in ROWS.items():
        found[name] = []
        while len(found[name]) < count:
            wish, wordings = rng.integers(VARIANTS, size=len(FIELDS)), rng.integers(2, size=len(FIELDS))
            order = rng.permutation(len(FIELDS))
            if tuple(wish) not in seen:
                seen.add(tuple(wish))
                found[name].append((wish.tolist(), wordings.tolist(), order.tolist()))
    return tuple(found[split])


def best_patches(wish: Sequence[int]) -> list[str]:
    """Return the patches of LIMIT right lines: what no other answer of this size can beat."""
    lines = wanted_lines(wish)
    return ["\n".join(lines[field] for field in fields) for fields in combinations(FIELDS, LIMIT)]
