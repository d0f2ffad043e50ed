"""Read coding problems with their tests as data: HumanEval, MBPP+, LiveCodeBench and DeepCoder's collection.

The project ships none of them. Each loader reads your own copy, or downloads into the cache. A test is what goes in and
what should come out, as text; one that cannot be written so is left out, and the problem says why.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import io
import json
import pickle
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vpo_lab.errors import LabError
from vpo_lab.files import cache_folder, read_json, write_json
from vpo_lab.tasks.code.literals import as_json, calls_in, is_plain, like, read_assert
from vpo_lab.tasks.download import (
    OWN_COPY,
    fetch_file,
    fetch_from_hub,
    own_files,
    read_records,
)

CACHE = "code"  # the name of its folder
TESTS = 16  # hidden tests of a problem, at most
TEST_BYTES = 8192  # of a test, in and out together; as the authors
UNPACKED_BYTES = 1 << 28  # of one problem's private tests

HUMAN_EVAL = (
    "https://raw.githubusercontent.com/openai/human-eval/6d43fb980f9fee3c892a914eda09951f772ad10d/data/HumanEval.jsonl.gz",
    "humaneval.jsonl.gz",
    "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
)
MBPP_PLUS = (
    "https://raw.githubusercontent.com/evalplus/mbppplus_release/v0.2.0/MbppPlus-NoExtreme.jsonl.gz",
    "mbppplus.jsonl.gz",
    "72d32acaea73d5606cb97041b30d45bbda9435a675369d3e31965513ee94e564",
)
LIVE_CODE_BENCH, TEST_FROM, TEST_UNTIL = "livecodebench/code_generation_lite", "2025-02-01", "2025-05-01"
DEEP_CODER = "agentica-org/DeepCoder-Preview-Dataset"
DEEP_CODER_PARTS = {"train": ("primeintellect/train", "taco/train", "lcbv5/train"), "test": ("lcbv5/test",)}

# EvalPlus compares these without order although their example is written with one: the request leaves it open.
ANY_ORDER = ("find_dissimilar", "intersection_array", "Diff")
FLOATS = 1e-6  # how far floats of MBPP+ may differ where the data set says nothing: EvalPlus's rule


@dataclass(frozen=True)
class Problem:
    """Hold one coding problem. `tests` are hidden: pairs of what goes in and what should come out.

    A function gets the JSON text of its argument list (`literal`: of a list with one Python literal, where JSON has no
    such types) and should return a JSON value; a program gets and prints text.
    """

    id: str
    request: str
    function: str = ""  # "": a program that reads standard input
    given: str = ""  # code that is there already: imports and helpers of the request
    signature: str = ""  # what the answer may begin with
    solution: str = ""  # a right answer, where the data set has one
    tests: tuple[tuple[str, str], ...] = ()
    literal: bool = False
    wrap: str = ""  # "bool" or "list": what is done to the returned value
    as_set: bool = False
    in_class: bool = False  # the function may be a method of a class Solution
    tolerance: float = 0.0
    date: str = ""
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> tests


# --- Choosing tests ---------------------------------------------------------------------------


def choose(tests: Iterable[tuple[str, str]], n: int = TESTS, *, smallest: bool = False) -> tuple[tuple[str, str], ...]:
    """Return at most `n` of the tests, shortest first: half of them the shortest, half the longest.

    Small tests alone say nearly the same; `smallest` takes only them, as the authors do for LiveCodeBench. Equal
    lengths are ordered by a hash, so that the choice is the same everywhere.
    """
    ordered = sorted(dict.fromkeys(tests), key=_order)
    if len(ordered) <= n:
        return tuple(ordered)
    half = n if smallest else n - n // 2
    return (*ordered[:half], *ordered[len(ordered) - (n - half) :])


def _order(test: tuple[str, str]) -> tuple[int, str]:
    return _size(test), hashlib.sha256("\0".join(test).encode("utf-8", "surrogatepass")).hexdigest()


def _size(test: tuple[str, str]) -> int:
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in test)


def _fitting(tests: Iterable[tuple[str, str]], reasons: Counter) -> list[tuple[str, str]]:
    """Return the tests that are not too long, and count the others."""
    kept = []
    for test in tests:
        if _size(test) <= TEST_BYTES:
            kept.append(test)
        else:
            reasons[f"longer than {TEST_BYTES:,} bytes"] += 1
    return kept


def _field(record: Any, name: str, where: str) -> str:
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise LabError(f"{where}: no text in {name!r}: {OWN_COPY}, in the published format")
    return value


# --- HumanEval --------------------------------------------------------------------------------


def human_eval(path: str | None = None) -> list[Problem]:
    """Return HumanEval's 164 problems (github.com/openai/human-eval, MIT), the asserts of its `check` as data.

    Asserts on calls that the prompt shows are no tests, unless there are no others. LabError for a wrong file.
    """
    files = own_files(path, "humaneval") if path else [fetch_file(*HUMAN_EVAL, cache_folder(CACHE))]
    return [_human_eval(record, f"{file}, {n}") for file in files for n, record in enumerate(read_records(file), 1)]


def _human_eval(record: dict, where: str) -> Problem:
    name, prompt, test, solution = (
        _field(record, key, where) for key in ("task_id", "prompt", "test", "canonical_solution")
    )
    function = _field(record, "entry_point", where)
    try:
        definition = _definition(prompt, function)
        body = _definition(test, "check").body
    except (SyntaxError, ValueError) as error:
        raise LabError(f"{where}: prompt or test is no Python with the function {function}: {OWN_COPY}") from error
    asserted, reasons = [], Counter()
    for statement in body:
        if isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Constant):
            continue  # `assert True`
        if not isinstance(statement, ast.Assert):
            if any(isinstance(node, ast.Assert) for node in ast.walk(statement)):
                reasons["a loop, not data"] += 1
            continue
        try:
            found = read_assert(statement.test, "candidate")
            asserted.append((found, as_json(found.wanted)))
        except ValueError as error:
            reasons[str(error)] += 1
    shown = [repr(arguments) for arguments in calls_in(prompt, function)]
    hidden = [pair for pair in asserted if repr(pair[0].arguments) not in shown]
    if hidden and len(hidden) < len(asserted):
        reasons["shown in the prompt"] += len(asserted) - len(hidden)
    kept = hidden or asserted
    wraps = {(found.wrap, found.as_set) for found, _ in kept} or {("", False)}
    if len(wraps) > 1:
        raise LabError(f"{where}: asserts of different forms, {wraps}: {OWN_COPY}")
    wrap, as_set = wraps.pop()
    given, literal = _write_arguments([found.arguments for found, _ in kept])
    tests = _fitting(zip(given, (wanted for _, wanted in kept), strict=True), reasons)
    return Problem(
        id=name,
        request=f"Complete this Python function:\n\n```python\n{prompt.rstrip()}\n```",
        function=function,
        given="\n".join(prompt.splitlines()[: definition.lineno - 1]).strip(),
        signature=prompt,
        solution=prompt + solution,
        tests=choose(tests),
        literal=literal,
        wrap=wrap,
        as_set=as_set,
        tolerance=max((found.tolerance for found, _ in kept), default=0.0),
        left_out=dict(reasons),
    )


def _definition(code: str, name: str) -> ast.FunctionDef:
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    raise ValueError(name)


def _write_arguments(lists: Sequence[list]) -> tuple[list[str], bool]:
    """Return argument lists as JSON texts, and whether each holds one Python literal instead of the arguments."""
    literal = not all(map(is_plain, lists))
    return [json.dumps([repr(tuple(given))] if literal else given) for given in lists], literal


# --- MBPP+ ------------------------------------------------------------------------------------

# problems -> for each, what its own solution returns for its tests, as JSON texts; None where that is no plain data
Solve = Callable[[Sequence[Problem]], list[list[str | None]]]


def mbpp_plus(path: str | None, solve: Solve) -> list[Problem]:
    """Return MBPP+'s 378 problems (github.com/evalplus/mbppplus_release, Apache-2.0).

    The data set has inputs only: what should come out is what its own solution returns, computed by `solve` once and
    kept in the cache. Asked twice, in two processes: what differs hangs on the order of a set, and is no test.
    """
    files = own_files(path, "mbppplus") if path else [fetch_file(*MBPP_PLUS, cache_folder(CACHE))]
    asked = [_mbpp_plus(record, f"{file}, {n}") for file in files for n, record in enumerate(read_records(file), 1)]
    known = _expected(asked, solve)
    problems = []
    for problem in asked:
        reasons, tests = Counter(problem.left_out), []
        for (given, _), (wanted, why) in zip(problem.tests, known[problem.id], strict=True):
            if wanted is None:
                reasons[why] += 1
            else:
                tests.append((given, wanted))
        problems.append(replace(problem, tests=choose(_fitting(tests, reasons)), left_out=dict(reasons)))
    return problems


def _mbpp_plus(record: dict, where: str) -> Problem:
    name, prompt, function, solution = (
        _field(record, key, where) for key in ("task_id", "prompt", "entry_point", "canonical_solution")
    )
    words, _, example = prompt.strip().strip('"').strip().partition("\nassert ")
    shown = next(calls_in(prompt, function), None)
    if not example or shown is None:
        raise LabError(f"{where}: the prompt shows no assert on {function}: {OWN_COPY}")
    try:
        form = read_assert(ast.parse(example.strip(), mode="eval").body, function)
        wrap, as_set = form.wrap, form.as_set
    except (SyntaxError, ValueError):  # math.isclose, with a tolerance of its own
        wrap, as_set = "", False
    if function in ANY_ORDER:
        wrap, as_set = "list", True
    if any(isinstance(value, complex) for value in shown):
        shown = list(map(complex, shown))
    lists = [given for key in ("base_input", "plus_input") for given in record.get(key) or []]
    typed = [[like(value, shown[i] if i < len(shown) else None) for i, value in enumerate(given)] for given in lists]
    typed = [given for given in typed if repr(given) != repr(shown)]
    given, literal = _write_arguments(typed)
    reasons = Counter({"shown in the prompt": len(lists) - len(typed)} if len(typed) < len(lists) else {})
    # A few more than are kept: some may turn out to be no data.
    inputs = choose(_fitting(((text, "") for text in given), reasons), 2 * TESTS)
    return Problem(
        id=name,
        request=f"{words.strip()}\n\nIt passes this test:\n\n```python\nassert {example.strip()}\n```",
        function=function,
        solution=solution.strip("\n"),
        tests=inputs,
        literal=literal,
        wrap=wrap,
        as_set=as_set,
        tolerance=float(record.get("atol") or FLOATS),
        left_out=dict(reasons),
    )


def _expected(problems: list[Problem], solve: Solve) -> dict[str, list[tuple[str | None, str]]]:
    """Return for each problem what should come out of its tests, or None and why not; from the cache if it is there."""
    text = json.dumps([[p.id, p.solution, p.function, p.wrap, p.tests] for p in problems])
    file = cache_folder(CACHE) / f"mbppplus-expected-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json.gz"
    if not file.exists():
        write_json(
            file,
            {
                problem.id: [_agreed(*pair) for pair in zip(one, other, strict=True)]
                for problem, one, other in zip(problems, solve(problems), solve(problems), strict=True)
            },
        )
    known: Any = read_json(file)
    return known


def _agreed(one: str | None, other: str | None) -> tuple[str | None, str]:
    if one is None or other is None:
        return None, "its own solution fails, is late or returns no plain data"
    return (one, "") if one == other else (None, "its own solution returns another value each time")


# --- LiveCodeBench ----------------------------------------------------------------------------


def live_code_bench(path: str | None = None, split: str = "train") -> list[Problem]:
    """Return LiveCodeBench's problems of a split, by contest date: train before 2025-02-01, test until 2025-05-01.

    The files are those of huggingface.co/datasets/livecodebench/code_generation_lite (JSON Lines; the texts are the
    contest sites', do not pass them on). Private tests only, the 16 smallest, as the authors choose them.
    """
    # The newest file holds the whole test split: 134 MB instead of 4.5 GB.
    wanted = ["test6.jsonl"] if split == "test" else ["test*.jsonl"]
    files = own_files(path, "test") if path else fetch_from_hub(LIVE_CODE_BENCH, wanted, cache_folder(CACHE))
    problems = []
    for file in files:
        for number, record in enumerate(read_records(file), 1):
            where = f"{file}, {number}"
            date = _field(record, "contest_date", where)[:10]
            if date < TEST_FROM if split == "train" else TEST_FROM <= date < TEST_UNTIL:
                problems.append(_live_code_bench(record, date, where))
    return problems


def _live_code_bench(record: dict, date: str, where: str) -> Problem:
    tests = read_private_tests(_field(record, "private_test_cases", where), where)
    starter, metadata = _field(record, "starter_code", where), json.loads(record.get("metadata") or "{}")
    function = metadata.get("func_name") or ""
    problem = Problem(
        id=f"lcb-{_field(record, 'question_id', where)}",
        request=_field(record, "question_content", where).strip(),
        signature=starter,
        date=date,
    )
    return _with_cases(problem, tests, function, where, smallest=True)


def read_private_tests(text: str, where: str = "private tests") -> list[dict]:
    """Return LiveCodeBench's private tests: JSON, or base64 of zlib of a pickle of JSON. LabError for anything else.

    The pickle may hold one text and nothing else: plain `pickle.loads` would run what a stranger wrote.
    """
    try:
        if not text.lstrip().startswith("["):
            unpacking = zlib.decompressobj()
            data = unpacking.decompress(base64.b64decode(text, validate=True), UNPACKED_BYTES)
            if not unpacking.eof:
                raise ValueError(f"damaged, or more than {UNPACKED_BYTES:,} bytes")
            text = _TextOnly(io.BytesIO(data)).load()
            if not isinstance(text, str):
                raise ValueError(f"the pickle holds {type(text).__name__}")
        tests = json.loads(text)
        if not isinstance(tests, list) or not all(isinstance(test, dict) for test in tests):
            raise ValueError("no list of tests")
        return tests
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise LabError(f"{where}: private tests cannot be read ({reason}): download the file again") from error


class _TextOnly(pickle.Unpickler):
    """Refuse every class and function: a text needs none."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("the pickle refers to something outside")


def _with_cases(problem: Problem, cases: list[dict], function: str, where: str, *, smallest: bool = False) -> Problem:
    """Add tests as {input, output, testtype} to a problem: arguments as JSON values, one a line, or standard input."""
    reasons, tests = Counter(), []
    functional = any(case.get("testtype") == "functional" or case.get("type") == "function_call" for case in cases)
    if functional and not function:
        raise LabError(f"{where}: tests of a function without its name: {OWN_COPY}, in the published format")
    for case in cases:
        given, wanted = _text(case.get("input")), _text(case.get("output"))
        if functional:
            try:
                given = json.dumps([json.loads(line) for line in given.split("\n") if line.strip()])
                wanted = json.dumps(json.loads(wanted))
            except ValueError:
                reasons["no JSON"] += 1
                continue
        tests.append((given, wanted))
    tests = choose(_fitting(tests, reasons), smallest=smallest)
    return replace(
        problem,
        function=function if functional else "",
        tests=tests,
        in_class=functional,
        left_out=dict(reasons),
    )


def _text(value: Any) -> str:
    """Return a test's input or output as text: some files hold a list of lines."""
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value)


# --- DeepCoder --------------------------------------------------------------------------------


def deep_coder(path: str | None = None, split: str = "train") -> list[Problem]:
    """Return the problems of DeepCoder's collection (what the paper trained on; test: LiveCodeBench v5's, 279).

    The files are those of huggingface.co/datasets/agentica-org/DeepCoder-Preview-Dataset, or any JSON or parquet file
    with the fields problem and tests, in one of its two layouts. Half of the tests are the shortest, half the longest.
    """
    parts = DEEP_CODER_PARTS[split]
    if path:
        folder = Path(path).expanduser()
        present = [file for part in parts for file in sorted(folder.glob(f"{part}*.parquet"))]
        files = present or own_files(path, split)
    else:
        files = fetch_from_hub(DEEP_CODER, [f"{part}*.parquet" for part in parts], cache_folder(CACHE))
    return [
        _deep_coder(record, f"{file}, {n}", f"deepcoder-{file.parent.name}-{file.stem.split('.')[0]}-{n}")
        for file in files
        for n, record in enumerate(read_records(file), 1)
    ]


def _deep_coder(record: dict, where: str, name: str) -> Problem:
    tests, request = record.get("tests"), _field(record, "problem", where)
    try:
        tests = json.loads(tests) if isinstance(tests, str) else tests
    except ValueError as error:
        raise LabError(f"{where}: 'tests' is no JSON: {OWN_COPY}, in the published format") from error
    metadata = record.get("metadata") or {}
    metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
    solutions = record.get("solutions") or [""]
    problem = Problem(
        id=name,
        request=request.strip(),
        signature=record.get("starter_code") or "",
        solution=_program(solutions if isinstance(solutions, str) else solutions[0]),
    )
    if isinstance(tests, dict):
        function = tests.get("fn_name") or ""
        pairs = list(zip(tests.get("inputs") or [], tests.get("outputs") or [], strict=False))
        if function:
            return _with_calls(problem, pairs, function)
        tests = [{"input": given, "output": wanted} for given, wanted in pairs]
    if not isinstance(tests, list) or not all(isinstance(test, dict) for test in tests):
        raise LabError(f"{where}: 'tests' is neither a list of tests nor inputs and outputs: {OWN_COPY}")
    inner = next((test["metadata"] for test in tests if isinstance(test.get("metadata"), dict)), {})
    function = inner.get("func_name") or metadata.get("func_name") or ""
    return _with_cases(problem, tests, function, where)


def _with_calls(problem: Problem, pairs: list[tuple[Any, Any]], function: str) -> Problem:
    """Add tests as {inputs, outputs, fn_name}: lists of arguments, and values each in a list of one."""
    reasons, tests = Counter(), []
    for given, wanted in pairs:
        if not isinstance(given, list):
            reasons["no list of arguments"] += 1
            continue
        value = wanted[0] if isinstance(wanted, list) and len(wanted) == 1 else wanted
        tests.append((json.dumps(given), json.dumps(value)))
    return replace(
        problem, function=function, in_class=True, tests=choose(_fitting(tests, reasons)), left_out=dict(reasons)
    )


def _program(solution: Any) -> str:
    """Return a solution without the fence that some of them stand in."""
    return re.sub(r"^```\w*\n|\n?```\s*$", "", solution.strip()) if isinstance(solution, str) else ""
