"""The coding tasks: hidden tests as objectives, scored through the sandbox, on real rows and on rows of our own."""

import ast
import base64
import gzip
import json
import pickle
import zlib

import numpy as np
import pytest
from code_data import data_file, no_sandbox

from vpo_lab.errors import LabError
from vpo_lab.tasks import get_task
from vpo_lab.tasks.check import check_task
from vpo_lab.tasks.code import data
from vpo_lab.tasks.code.literals import calls_in, read_assert

pytestmark = pytest.mark.skipif(bool(no_sandbox()), reason=no_sandbox())


def fenced(program: str) -> str:
    return f"Here it is:\n\n```python\n{program.strip()}\n```\nIt is short."


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPO_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# --- HumanEval ---


@pytest.fixture(scope="module")
def human_eval():
    task = get_task("humaneval")
    return task, task.load(data_file("humaneval.jsonl.gz"), "test")


# Whose tests are loops over random inputs: no data.
LOOPS_ONLY = {"HumanEval/32", "HumanEval/38", "HumanEval/50"}


def test_every_canonical_solution_of_human_eval_passes(human_eval):
    task, rows = human_eval
    assert {row["id"] for row in rows} == {f"HumanEval/{n}" for n in range(164)} - LOOPS_ONLY
    rewards = task.score([row["answer"] for row in rows], rows)
    assert [row["id"] for row, earned in zip(rows, rewards, strict=True) if np.nanmin(earned) < 1] == []
    assert np.count_nonzero(~np.isnan(rewards)) > 800


def test_each_test_of_human_eval_that_is_left_out_has_its_reason():
    problems = data.human_eval(data_file("humaneval.jsonl.gz"))
    reasons = {
        problem.id: {reason for reason in problem.left_out if reason != "shown in the prompt"} for problem in problems
    }
    assert {name for name, found in reasons.items() if found} == {
        *LOOPS_ONLY, "HumanEval/33", "HumanEval/44", "HumanEval/53", "HumanEval/151",
    }  # fmt: skip
    assert all("loop" in "".join(reasons[name]) for name in LOOPS_ONLY)


def test_what_the_prompt_shows_is_no_objective(human_eval):
    _, rows = human_eval
    row = next(row for row in rows if row["id"] == "HumanEval/0")
    inputs = [json.loads(given) for given, _ in json.loads(row["gold"])["tests"]]
    shown = list(calls_in(row["prompt"][0]["content"], "has_close_elements"))
    assert len(shown) == 2 and len(inputs) == 7 and not [given for given in inputs if given in shown]


CHEATS = {
    "an equality that always holds": """
class Same(list):
    def __eq__(self, other): return True
    __ne__ = lambda self, other: False
    __hash__ = None
def has_close_elements(numbers, threshold): return Same()
""",
    "a truth that always holds": """
class Same(int):
    def __eq__(self, other): return True
    def __bool__(self): return True
def has_close_elements(numbers, threshold): return Same(7)
""",
    "the caller's variables": """
import sys
def has_close_elements(numbers, threshold):
    frame = sys._getframe()
    while frame:
        for space in (frame.f_locals, frame.f_globals):
            for name in ("wanted", "expected", "_expected", "expected_output", "gold", "tests"):
                if name in space: return space[name]
        frame = frame.f_back
""",
    "patched builtins": """
import builtins, json
builtins.bool = lambda value: True
json.loads = lambda text: [True]
builtins.isinstance = lambda value, kind: True
def has_close_elements(numbers, threshold): return numbers
""",
    "nothing but an exit": "import os\ndef has_close_elements(*given): os._exit(0)",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_earns_nothing(human_eval, cheat):
    task, rows = human_eval
    row = next(row for row in rows if row["id"] == "HumanEval/0")
    assert np.nansum(task.score([fenced(CHEATS[cheat])], [row])) == 0


def test_any_text_scores_and_a_batch_scores_as_its_answers_do(human_eval):
    task, rows = human_eval
    texts = ["", "no", "```python\n```", "```python\ndef (", "\0", "```python\nx = '\ud800'\n```", "```python\n\0\n```",
             rows[3]["answer"], fenced("raise SystemExit"), fenced("while True: pass")]  # fmt: skip
    rewards = task.score(texts, [rows[3]] * len(texts))
    assert rewards.shape == (len(texts), 16)
    asked = ~np.isnan(rewards)
    assert (asked == asked[0]).all() and asked.any()
    assert np.nansum(rewards, axis=1).tolist() == [0] * 7 + [asked[0].sum(), 0, 0]
    again = np.concatenate([task.score([text], [rows[3]]) for text in texts[:-1]])
    assert np.array_equal(again, rewards[:-1], equal_nan=True)


# --- MBPP+: right, and nearly right ---

SOLUTIONS = {
    "Mbpp/2": (
        "def similar_elements(a, b):\n    return [x for x in b if x in a]",  # neither tuple nor order nor number counts
        "def similar_elements(a, b):\n    return tuple(a)",
    ),
    "Mbpp/8": (
        "def square_nums(nums):\n    return [n * n for n in nums]",
        "def square_nums(nums):\n    return sorted(n * n for n in nums)",
    ),
    "Mbpp/62": (
        "def smallest_num(xs):\n    return sorted(xs)[0]",
        "def smallest_num(xs):\n    best = 0\n    for x in xs:\n        best = min(best, x)\n    return best",
    ),
    "Mbpp/72": (
        "def dif_Square(n):\n    return n % 4 != 2",
        "def dif_Square(n):\n    return n % 2 == 1",
    ),
    "Mbpp/80": (
        "def tetrahedral_number(n):\n    return n * (n + 1) * (n + 2) // 6",  # an int for the float that is expected
        "def tetrahedral_number(n):\n    return float(min(n, 10) * (n + 1) * (n + 2) / 6)",
    ),
    "Mbpp/165": (
        "def count_char_position(s):\n    return sum(i == ord(c) - 97 for i, c in enumerate(s.lower()))",
        "def count_char_position(s):\n    return sum(i == ord(c) - 97 for i, c in enumerate(s))",
    ),
    "Mbpp/226": (
        "def odd_values_string(s):\n    return ''.join(c for i, c in enumerate(s) if not i % 2)",
        "def odd_values_string(s):\n    return s[:-1:2]",
    ),
    "Mbpp/256": (
        "def count_Primes_nums(n):\n    return sum(all(k % d for d in range(2, int(k**.5) + 1)) for k in range(2, n))",
        "def count_Primes_nums(n):\n    return sum(all(k % d for d in (2, 3)) for k in range(2, n))",
    ),
    "Mbpp/262": (
        "def split_two_parts(xs, n):\n    return [xs[:n], xs[n:]]",
        "def split_two_parts(xs, n):\n    return (xs[:n], [x for x in xs if x not in xs[:n]])",
    ),
    "Mbpp/292": (
        "def find(n, m):\n    return n // m",
        "def find(n, m):\n    return int(n / m)",
    ),
    "Mbpp/388": (
        "def highest_Power_of_2(n):\n    return 1 << (n.bit_length() - 1)",
        "def highest_Power_of_2(n):\n    p = 1\n    while p * 2 < n:\n        p *= 2\n    return p",
    ),
    "Mbpp/394": (
        "def check_distinct(t):\n    return not any(t[i] in t[:i] for i in range(len(t)))",
        "def check_distinct(t):\n    return all(a != b for a, b in zip(t, t[1:]))",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def mbpp(tmp_path_factory):
    """The task and the rows of the problems above and of every 20th, by id."""
    lines = gzip.decompress(data_file("mbppplus.jsonl.gz").read_bytes()).decode().splitlines()
    kept = [line for n, line in enumerate(lines) if n % 20 == 0 or json.loads(line)["task_id"] in SOLUTIONS]
    file = tmp_path_factory.mktemp("mbpp") / "mbppplus.jsonl"
    file.write_text("\n".join(kept))
    task = get_task("mbppplus")
    return task, {row["id"]: row for split in ("train", "test") for row in task.load(file, split)}, file


def test_canonical_solutions_of_mbpp_plus_pass(mbpp):
    task, rows, _ = mbpp
    rewards = task.score([row["answer"] for row in rows.values()], list(rows.values()))
    assert [name for name, earned in zip(rows, rewards, strict=True) if np.nanmin(earned) < 1] == []
    assert len(rows) > 25 and np.count_nonzero(~np.isnan(rewards)) > 15 * len(rows)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_right_earns_all_and_nearly_right_a_part(mbpp, name):
    task, rows, _ = mbpp
    right, nearly = task.score([fenced(text) for text in SOLUTIONS[name]], [rows[name]] * 2)
    assert np.nanmin(right) == 1
    assert 0 < np.nansum(nearly) < np.count_nonzero(~np.isnan(nearly))


def test_mbpp_plus_keeps_mbpp_s_split_and_its_expected_values(mbpp, monkeypatch):
    task, rows, file = mbpp
    train, test = (task.load(file, split) for split in ("train", "test"))
    assert {row["id"] for row in test} == {name for name in rows if int(name.removeprefix("Mbpp/")) <= 510}
    assert len(train) + len(test) == len(rows) and train

    def refuse(problems):
        raise AssertionError("computed again")

    monkeypatch.setattr("vpo_lab.tasks.code.problems.solve", refuse)
    assert task.load(file, "test") == test


def test_tuples_reach_the_function_as_tuples(mbpp):
    task, rows, _ = mbpp
    looks = "def check_distinct(t):\n    assert type(t) is tuple\n    return len({repr(x) for x in t}) == len(t)"
    rewards = task.score([fenced(looks)], [rows["Mbpp/394"]])
    assert np.nansum(rewards) > 0


# --- Contests ---


@pytest.fixture
def contest(tmp_path):
    """A file in LiveCodeBench's layout with invented problems on both sides of the dates."""
    tests = [{"input": "3\n1 2 3", "output": "6\n", "testtype": "stdin"}]
    tests += [{"input": f"{n}\n{' '.join(['5'] * n)}", "output": f"{5 * n}", "testtype": "stdin"} for n in range(4, 30)]
    tests += [{"input": "9" * 9000, "output": "0", "testtype": "stdin"}]
    record = dict(
        question_title="sum", question_content="Add the numbers of the second line.", platform="atcoder",
        contest_id="x", starter_code="", difficulty="easy", public_test_cases="[]", metadata="{}",
        private_test_cases=base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode(),
    )  # fmt: skip
    dates = ["2024-12-31T10:00:00", "2025-01-31T23:59:00", "2025-02-01T00:00:00", "2025-04-30T00:00:00", "2025-05-01"]
    records = [{**record, "question_id": f"q{n}", "contest_date": date} for n, date in enumerate(dates)]
    records[1]["private_test_cases"] = json.dumps(tests[:1])
    file = tmp_path / "test6.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    return file


def test_live_code_bench_is_split_by_date_and_keeps_the_smallest_tests(contest):
    task = get_task("livecodebench")
    train, test = (task.load(contest.parent, split) for split in ("train", "test"))
    assert [row["id"] for row in train] == ["lcb-q0", "lcb-q1"]
    assert [row["id"] for row in test] == ["lcb-q2", "lcb-q3"]
    kept = json.loads(test[0]["gold"])["tests"]
    assert [int(given.split()[0]) for given, _ in kept] == list(range(3, 19))
    assert test[0]["left_out"] == {"longer than 8,192 bytes": 1}
    right = fenced("input()\nprint(sum(map(int, input().split())))")
    nearly = fenced("n = int(input())\nprint(5 * n)")
    rewards = task.score([right, nearly, right], [test[0], test[0], train[1]])
    assert rewards[0].tolist() == [1] * 16 and rewards[1].tolist() == [0] + [1] * 15
    assert rewards[2][0] == 1 and np.isnan(rewards[2][1:]).all()
    check_task(task, str(contest))


class Touch:
    """Unpickles as a call of `open`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_malicious_pickle_is_refused_and_does_nothing(contest, tmp_path):
    marker, whole = tmp_path / "was_here", json.loads(contest.read_text().splitlines()[2])
    for held in (Touch(marker), [Touch(marker)], 7, b"[]"):
        text = base64.b64encode(zlib.compress(pickle.dumps(held))).decode()
        with pytest.raises(LabError, match="private tests"):
            data.read_private_tests(text)
        contest.write_text(json.dumps({**whole, "private_test_cases": text}))
        with pytest.raises(LabError, match=contest.name):
            get_task("livecodebench").load(contest, "test")
    assert not marker.exists()


def test_a_pickle_that_swells_or_is_cut_is_refused(monkeypatch):
    monkeypatch.setattr(data, "UNPACKED_BYTES", 1000)
    whole = zlib.compress(pickle.dumps("[]" + " " * 5000))
    for packed in (whole, whole[:-5], b"no zlib"):
        with pytest.raises(LabError, match="private tests"):
            data.read_private_tests(base64.b64encode(packed).decode())


@pytest.mark.parametrize(
    "program",
    [
        "def f(a: List[int], k: int) -> int:\n    return {body}",
        "class Solution:\n    def f(self, a: List[int], k: int) -> int:\n        return {body}",
        "from __future__ import annotations\n\nclass Solution:\n    def f(self, a, k):\n        return {body}",
    ],
)
def test_a_function_problem_of_live_code_bench(program):
    task = get_task("livecodebench")
    (row,) = task.load(data_file("lcb_shape_invented.json"), "test")  # sums 1, 2, 3 to 5 and nothing to 0
    assert "def f(self" in row["prompt"][0]["content"]
    right, nearly = task.score(
        [fenced(program.format(body="max(0, sum(a) - 1)")), fenced(program.format(body="sum(a) + k - 3"))], [row, row]
    )
    assert right[:2].tolist() == [1, 1] and np.isnan(right[2:]).all()
    assert nearly[:2].tolist() == [0, 1] or nearly[:2].tolist() == [1, 0]


def test_the_few_shot_problems_pass_in_the_layout_of_their_data_set(tmp_path):
    """LiveCodeBench's own answers to its examples, on tests that those texts show."""
    (function, _), (program, _) = (
        json.loads(data_file(f"lcb_fewshot_{kind}.json").read_text()) for kind in ("func", "stdin")
    )
    base = dict(contest_date="2025-03-01", difficulty="easy", public_test_cases="[]")
    triplets = [dict(input="[4,4,2,4,3]", output="3", testtype="functional"),
                dict(input="[1,1,1,1,1]", output="0", testtype="functional")]  # fmt: skip
    gifts = [dict(input="1\n3\n3 5 6\n3 2 3\n", output="6", testtype="stdin")]
    records = [
        dict(base, question_id="a", question_content=function["question"], starter_code=function["sample_code"],
             metadata=json.dumps({"func_name": "unequalTriplets"}), private_test_cases=json.dumps(triplets)),
        dict(base, question_id="b", question_content=program["question"], starter_code="", metadata="{}",
             private_test_cases=json.dumps(gifts)),
    ]  # fmt: skip
    file = tmp_path / "test6.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    task = get_task("livecodebench")
    rows = task.load(file, "test")
    rewards = task.score([fenced(function["answer"]), fenced(program["answer"])], rows)
    assert rewards[0][:2].tolist() == [1, 1] and rewards[1][0] == 1


def test_programs_of_deep_coder(tmp_path):
    task = get_task("deepcoder")
    rows = task.load(data_file("deepcoder_code_contests_8.json"), "train")
    assert len(rows) == 8 and {len(json.loads(row["gold"])["tests"]) for row in rows} == {9, 10, 16}
    right = "m = 10**9 + 7\nfor _ in range(int(input())):\n    p = 1\n    for k in range(3, 2 * int(input()) + 1):\n"
    right += "        p = p * k % m\n    print(p)"
    one_case = right.replace("int(input())):", "1):", 1).replace("p = 1", "input(); p = 1")
    rewards = task.score([fenced(right), fenced(one_case)], [rows[6]] * 2)
    assert np.nanmin(rewards[0]) == 1
    assert 0 < np.nansum(rewards[1]) < np.nansum(rewards[0])


def test_both_layouts_of_deep_coder_hold_the_same_tests(tmp_path):
    pairs = [("1 2", "3"), ("4 5", "9")]
    listed = [{"input": given, "output": wanted, "testtype": "stdin_stdout"} for given, wanted in pairs]
    split = {"inputs": [given for given, _ in pairs], "outputs": [wanted for _, wanted in pairs]}
    calls = {"fn_name": "add", "inputs": [[1, 2], [4, 5]], "outputs": [[3], [9]]}
    function = [{"input": "1\n2", "output": "3", "testtype": "functional", "metadata": {"func_name": "add"}}]
    records = [
        {"problem": "Add.", "tests": tests, "starter_code": "", "solutions": ["```python\nprint(0)\n```"]}
        for tests in (json.dumps(listed), listed, split, json.dumps(split), calls, function)
    ]
    file = tmp_path / "train.json"
    file.write_text(json.dumps(records))
    task = get_task("deepcoder")
    rows = task.load(file, "train")
    assert len({row["gold"] for row in rows[:4]}) == 1
    programs = [fenced("print(sum(map(int, input().split())))")] * 4 + [fenced("def add(a, b): return a + b")] * 2
    assert [np.nanmin(earned) for earned in task.score(programs, rows)] == [1] * 6
    assert task.demonstrations(rows[0], 1, np.random.default_rng(0)) == ["```python\nprint(0)\n```"]


# --- Tests as data, and where they come from ---


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("f(1, [2]) == (3, 4)", ([1, [2]], (3, 4), "", False, 0)),
        ("f(3 * 19) == 2 + 1", ([57], 3, "", False, 0)),
        ("f('a' + 'b') is None", (["ab"], None, "", False, 0)),
        ("abs(f(1.5) - 0.5) < 1e-6", ([1.5], 0.5, "", False, 1e-6)),
        ("set(f((1, 2))) == set([1])", ([(1, 2)], [1], "list", True, 0)),
        ("tuple(f([1])) == tuple([1])", ([[1]], [1], "list", False, 0)),
        ("f(1) == {2}", ([1], [2], "list", True, 0)),
        ("not f(1)", ([1], False, "bool", False, 0)),
        ("f(-1)", ([-1], True, "bool", False, 0)),
    ],
)
def test_asserts_become_data(text, found):
    read = read_assert(ast.parse(text, mode="eval").body, "f")
    assert (read.arguments, read.wanted, read.wrap, read.as_set, read.tolerance) == found


@pytest.mark.parametrize(
    "text",
    [
        "f(x) == 1",
        "f(1) == g(1)",
        "f(1) > 0",
        "1 == f(1)",
        "f(a=1) == 1",
        "f(9**9**9) == 1",
        "f(1) == 1 and f(2) == 2",
        "f([1] * 10**9) == 1",
    ],
)
def test_an_assert_that_is_no_data_says_why(text):
    with pytest.raises(ValueError, match=r"\w"):
        read_assert(ast.parse(text, mode="eval").body, "f")


def test_the_choice_of_tests_is_half_short_half_long_and_always_the_same():
    tests = [("x" * n, "1") for n in range(1, 41)]
    chosen = data.choose(tests)
    assert sorted(len(given) for given, _ in chosen) == [*range(1, 9), *range(33, 41)]
    assert data.choose(tests[::-1]) == chosen
    assert [len(given) for given, _ in data.choose(tests, smallest=True)] == list(range(1, 17))
    equal = [(f"{n:03d}", "1") for n in range(100)]
    assert data.choose(equal) == data.choose(equal[::-1]) and len(data.choose(equal)) == 16
    assert data.choose(equal) != tuple(equal[:16])


def test_a_wrong_file_split_or_no_network_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "humaneval.jsonl").write_text('{"task_id": "x"}\n')
    (tmp_path / "mbppplus.jsonl").write_text("{")
    (tmp_path / "test.jsonl").write_text('{"contest_date": 3}')
    for name, path, split, word in [
        ("humaneval", tmp_path, "test", "prompt"),
        ("humaneval", tmp_path / "none", "test", "humaneval"),
        ("humaneval", tmp_path, "train", "mbppplus"),
        ("mbppplus", tmp_path, "train", "mbppplus.jsonl"),
        ("livecodebench", tmp_path, "test", "contest_date"),
        ("code", tmp_path, "dev", "dev"),
        ("deepcoder", tmp_path, "train", "train"),
    ]:
        with pytest.raises(LabError) as caught:
            get_task(name).load(str(path), split)
        assert word in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setenv("VPO_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "HUMAN_EVAL", ("http://127.0.0.1:9/x.gz", "x.gz", "0" * 64))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for name in ("humaneval", "livecodebench", "deepcoder"):
        with pytest.raises(LabError, match="--data") as caught:
            get_task(name).load(None, "test")
        assert "\n" not in str(caught.value)


def test_the_task_of_the_profile_is_sound(mbpp, tmp_path):
    _, _, file = mbpp
    (tmp_path / "mbppplus.jsonl").write_text("\n".join(file.read_text().splitlines()[:4]))
    lines = gzip.decompress(data_file("humaneval.jsonl.gz").read_bytes()).decode().splitlines()
    (tmp_path / "humaneval.jsonl").write_text("\n".join(lines[:3]))
    check_task(get_task("code"), str(tmp_path))


def test_a_search_tells_which_tests_a_parent_fails():
    task, row = get_task("humaneval"), {"prompt": [{"role": "user", "content": "Add."}], "gold": ""}
    parent = "So:\n```python\ndef add(a, b):\n    return a - b\n```"
    (message,) = task.prompt(row, parent, np.array([1.0, 0.0, np.nan, 0.0]))
    assert message["content"].startswith("Add.") and "2, 4" in message["content"]
    assert "```python\ndef add(a, b):\n    return a - b\n```" in message["content"] and "So:" not in message["content"]
    assert task.prompt(row, "", np.array([0.0])) == row["prompt"]
