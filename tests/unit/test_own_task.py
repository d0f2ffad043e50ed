"""A task from outside the package: the template keeps the contract, a copy trains, a mistake is one clear line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpo_lab.chains import join_chain, split_chain
from vpo_lab.config import get_profile
from vpo_lab.errors import LabError
from vpo_lab.metrics import objective_collinearity
from vpo_lab.processes import SESSION, Session
from vpo_lab.runs import Run
from vpo_lab.search.pool import Pool, evaluate
from vpo_lab.search.summary import REPORTED, at_k, metrics_of, summarize
from vpo_lab.tasks import each, get_task, score_chains
from vpo_lab.tasks.check import check_task
from vpo_lab.tasks.maze.world import MazeTask
from vpo_lab.train.rl import train_stages
from vpo_lab.weights import dirichlet_weights, set_reward

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE, GUIDE = ROOT / "examples" / "my_task.py", ROOT / "docs" / "own-task.md"
SPEC = "examples/my_task.py:MyTask"
TASK = get_task(SPEC)
ROWS = {split: TASK.load(None, split) for split in ("train", "test")}


def score(answer, gold):
    """The reward vector of one answer."""
    return TASK.score([answer], [{"gold": gold}])[0]


@pytest.fixture(autouse=True)
def own_python_path(monkeypatch):
    """What a task adds to Python's path goes with the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv(SESSION, raising=False)


# --- The template -----------------------------------------------------------------------------


def test_the_template_is_short():
    assert len(TEMPLATE.read_text().splitlines()) < 45


def test_no_request_is_in_both_splits_or_there_twice():
    ids = [row["id"] for split in ("train", "test") for row in ROWS[split]]
    assert len(ids) == len(set(ids)) == 2200


def test_the_rows_are_the_same_in_every_process():
    code = f"import json; from vpo_lab.tasks import get_task; print(json.dumps(get_task({SPEC!r}).load(None, 'train')))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout) == ROWS["train"] == TASK.load(None, "train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_demonstrations_of_every_row_are_distinct_and_earn_something(split):
    rng = np.random.default_rng(0)
    for row in ROWS[split]:
        answers = TASK.demonstrations(row, 3, rng)
        assert len(set(answers)) == 3
        rewards_MD = np.array([score(answer, row["gold"]) for answer in answers])
        assert rewards_MD.shape == (3, 3) and rewards_MD.min() >= 0 and rewards_MD.max() <= 1
        assert (rewards_MD.sum(axis=1) > 1).all()
    assert split_chain(join_chain(answers), 3) == answers


def test_more_demonstrations_than_lunches_still_come():
    answers = TASK.demonstrations(ROWS["test"][0], 200, np.random.default_rng(0))
    assert len(answers) == 200 and len(set(answers)) > 40


texts = st.text(st.sampled_from([*"🍞🍲🥬 🍩a\n", "\x00", "\ud83c"]), max_size=5)


@given(st.one_of(st.text(), texts), st.sampled_from(ROWS["test"]))
def test_any_text_scores(answer, row):
    rewards_D = score(answer, row["gold"])
    assert rewards_D.shape == (3,) and ((rewards_D >= 0) & (rewards_D <= 1)).all()
    if len(set(answer.strip())) != 3:
        assert not rewards_D.any()


def test_what_is_not_in_the_kitchen_counts_nothing():
    assert np.allclose(score("🍞🍲🥬", "🍞🍲🥬🍕🍰🥓🍟🧀"), [18 / 30, 8 / 30, 16 / 30])
    assert np.allclose(score(" 🥬🍲🍞\n", "🍞🍲🥦🍕🍰🥓🍟🧀"), [15 / 30, 8 / 30, 6 / 30])


def test_objectives_vary_conflict_and_reward_a_set():
    rng, weights_KD = np.random.default_rng(0), dirichlet_weights(256, 3, seed=0)
    demonstrated, gains = [], []
    for row in ROWS["test"][:30]:
        demonstrated += [score(answer, row["gold"]) for answer in TASK.demonstrations(row, 3, rng)]
        answers = TASK.demonstrations(row, 400, rng)
        rewards_nD = np.unique([score(answer, row["gold"]) for answer in answers], axis=0)
        assert not (rewards_nD > 0.75).all(axis=1).any()  # no lunch has everything
        best_alone = set_reward(rewards_nD[[rewards_nD.mean(axis=1).argmax()]], weights_KD)
        gains.append(set_reward(rewards_nD[rewards_nD.argmax(axis=0)], weights_KD) - best_alone)
    correlation_DD = objective_collinearity(np.array(demonstrated))
    assert (correlation_DD[~np.eye(3, dtype=bool)] < -0.2).all()
    assert np.std(demonstrated, axis=0).min() > 0.1
    assert min(gains) > 0.05  # three specialists against the best compromise


# --- From outside the package -----------------------------------------------------------------


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Path:
    """A folder of a user, with a copy of the template under other names."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "kitchen.py").write_text(TEMPLATE.read_text().replace("MyTask", "Lunch").replace("my_task", "lunch"))
    return folder


@pytest.fixture(scope="module")
def run(outside) -> Path:
    """A run of SFT and VPO on the copy, with the smoke profile's settings, fewer steps and a smaller policy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(outside)
        patch.setattr(sys, "path", [*sys.path])
        train_stages("smoke", ["sft", "vpo_credit"], 0, outside / "run", OVERRIDES)
    return Run(outside / "run")


OVERRIDES = {
    "task": "kitchen.py:Lunch",
    "methods": ["vpo_credit"],
    "sft.steps": 30,
    "rl.steps": 3,
    "policy.hidden_size": 64,
    "policy.intermediate_size": 128,
}


@pytest.mark.parametrize("spec", ["kitchen.py:Lunch", "./kitchen.py:Lunch", "kitchen:Lunch"])
def test_every_spelling_finds_the_same_task(outside, spec, monkeypatch):
    monkeypatch.chdir(outside)
    monkeypatch.delitem(sys.modules, "kitchen", raising=False)
    task = get_task(spec)
    assert task.name == spec and task.objectives == ("cheap", "tasty", "healthy")
    assert task.load(None, "test") == ROWS["test"]


def test_it_trains(run):
    assert run.log("sft")[-1]["step"] == 30
    log = run.log("vpo_credit")
    assert [entry["step"] for entry in log] == [1, 2, 3]
    assert {f"objective/{name}/mean" for name in TASK.objectives} <= set(log[0])
    assert max(entry["set_reward"] for entry in log) > 0  # or nothing was trained
    start, end = ((run / stage / "policy" / "model.safetensors").read_bytes() for stage in ("sft", "vpo_credit"))
    assert start != end


@pytest.mark.parametrize("spec", ["kitchen.py:Lunch", "kitchen:Lunch"])
def test_its_pools_load_again_and_find_their_task(outside, run, spec, monkeypatch):
    monkeypatch.chdir(outside)
    suffix = f"@{spec.partition(':')[0]}"
    made = evaluate(get_profile("smoke", {**OVERRIDES, "task": spec}), "vpo_credit", run, 0, suffix=suffix)
    pool = Pool.load(run.pool(f"vpo_credit{suffix}"))
    assert pool.task == made.task == spec and pool.rewards_NCMD.shape == (6, 2, 3, 3)
    assert metrics_of(pool) == REPORTED and at_k(pool, "eum", 3).shape == (6,)
    rows = {row["id"]: row for row in get_task(pool.task).load(None, "test")}
    for n, row_id in enumerate(pool.ids):
        chains = [join_chain(chain) for chain in pool.answers[n]]
        again = score_chains(get_task(pool.task), chains, [rows[row_id]] * len(chains), 3)
        assert np.allclose(again, pool.rewards_NCMD[n], atol=1e-6)


def test_its_run_is_summarized(outside, run, monkeypatch):
    monkeypatch.chdir(outside)
    profile = get_profile("smoke", OVERRIDES)
    for name in ("sft", "sft_chain", "vpo_credit"):
        evaluate(profile, name, run, 0)
    summary = summarize(profile, run, 0)
    assert set(summary["methods"]["vpo_credit"]["objectives"]) == set(TASK.objectives) and summary["ceiling"] is None


def test_a_pool_is_read_without_its_task(outside, run, monkeypatch, tmp_path):
    monkeypatch.chdir(outside)
    profile = get_profile("smoke", OVERRIDES)
    evaluate(profile, "vpo_credit", run, 0)
    monkeypatch.chdir(tmp_path)
    pool = Pool.load(run.pool("vpo_credit"))
    assert at_k(pool, "best", 3).shape == (6,)
    with pytest.raises(LabError, match=r"no task file kitchen\.py in "):
        metrics_of(pool)


# --- Where it is looked for -------------------------------------------------------------------


def test_the_repository_is_looked_in_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert get_task(SPEC).load(None, "test") == ROWS["test"]


def test_notebooks_look_in_the_folder_where_their_run_was_started(outside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "kitchen", raising=False)
    with pytest.raises(LabError, match="no module 'kitchen'"):
        get_task("kitchen:Lunch")
    monkeypatch.setenv(SESSION, Session(task_folder=str(outside)).environment()[SESSION])
    assert get_task("kitchen.py:Lunch").objectives == get_task("kitchen:Lunch").objectives == TASK.objectives


def test_an_absolute_path_and_the_python_path_are_found(outside, tmp_path, monkeypatch):
    assert get_task(f"{outside / 'kitchen.py'}:Lunch").objectives == TASK.objectives
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "task_of_far.py").write_text(GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert get_task("far.task_of_far:Mine").objectives == ("a", "b")


def test_the_projects_own_tasks_are_as_before():
    assert type(get_task("maze")) is MazeTask and get_task("maze").name == "maze"


GOOD = """
from dataclasses import dataclass

import numpy as np

class Mine:
    name = "mine"
    objectives = ("a", "b")

    def score(self, answers, rows):
        return np.array([self.one(answer) for answer in answers])

    def one(self, answer):
        return [0.5, 1.0]

    def load(self, path=None, split="train"):
        return [{"id": "0", "prompt": [{"role": "user", "content": "x"}], "gold": "g"}]

    def demonstrations(self, row, n, rng):
        return [str(i) for i in range(n)]

@dataclass(frozen=True)
class Frozen(Mine):
    reference: float = 0.0

    def front(self, gold):
        return np.ones((1, 2))
"""


def test_what_a_task_has_beside_the_five_is_passed_through(tmp_path):
    (tmp_path / "more.py").write_text(GOOD)
    task = get_task(f"{tmp_path / 'more.py'}:Frozen")
    assert task.front("g").shape == (1, 2) and task.reference == 0.0
    assert not hasattr(task, "ceiling") and task.name.endswith(":Frozen")


def test_a_file_that_has_changed_is_read_anew_and_may_import_its_neighbour(tmp_path):
    (tmp_path / "neighbour_of_own.py").write_text("NAMES = ('c', 'd', 'e')\n")
    file = tmp_path / "changing.py"
    file.write_text(GOOD)
    assert get_task(f"{file}:Mine").objectives == ("a", "b")
    file.write_text("from neighbour_of_own import NAMES\n" + GOOD.replace('("a", "b")', "NAMES"))
    assert get_task(f"{file}:Mine").objectives == ("c", "d", "e")


# --- Mistakes ---------------------------------------------------------------------------------


def complaint(spec: str, act=lambda task: None) -> str:
    with pytest.raises(LabError) as caught:
        act(get_task(spec))
    text = str(caught.value)
    assert "\n" not in text and ": " in text  # one line, and what to do
    return text


@pytest.mark.parametrize(
    "spec, message",
    [
        ("lunch", r"unknown task 'lunch': choose one of tiny_tools, .* or a class of your own as FILE\.py:CLASS"),
        (":Lunch", "unknown task ':Lunch'"),
        ("kitchen.py:", r"unknown task 'kitchen\.py:'"),
        ("no/where.py:Lunch", r"no task file no/where\.py in .* or .*: write the path of a \.py file"),
        ("docs/own-task.md:Lunch", r"no task file docs/own-task\.md"),
        ("no_such_module:Lunch", "no module 'no_such_module' where Python looks or in .*: check name and PYTHONPATH"),
        ("numpy.no_such_part:Lunch", r"no module 'numpy\.no_such_part'"),
        ("no-module:Lunch", "'no-module' is neither a module nor a file"),
        ("examples/my_task.py:Lunch", r"no class 'Lunch' in examples/my_task\.py \(it has: MyTask\): write "),
        ("examples/my_task.py:FOODS", r"no class 'FOODS' in "),
    ],
)
def test_what_cannot_be_found_is_said(spec, message):
    assert re.match(message, complaint(spec))


@pytest.mark.parametrize(
    "text, message",
    [
        ("class Mine\n", r"cannot be imported \(SyntaxError: .*line 1\)"),
        ("x = 1\ny = x / 0\n", r"cannot be imported \(ZeroDivisionError: division by zero, broken\.py line 2\)"),
        ("import no_such_package\n", r"cannot be imported \(ModuleNotFoundError: .*line 1\).*install what it needs"),
        (GOOD.replace("class Mine:", "class Mine:\n    def __init__(self, x): ..."), r"cannot be made \(TypeError: "),
    ],
)
def test_a_class_that_is_no_task_is_refused(tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text)
    assert re.search(rf"broken\.py(:Mine)?:? {message}", complaint(f"{tmp_path / 'broken.py'}:Mine"))


def test_a_module_that_needs_what_is_not_there_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    assert "needs_more cannot be imported (ModuleNotFoundError: " in complaint("needs_more:Mine")


ONE, LOADED, NAMES = "return [0.5, 1.0]", 'return [{"id": "0", ', '("a", "b")'


@pytest.mark.parametrize(
    "old, new, named",
    [
        (f"objectives = {NAMES}", "", "objectives"),
        ("def score", "def scores", "score"),
        ("def load", "load = 3\n    def rows", "load"),
        ("def demonstrations", "def shown", "demonstrations"),
        (NAMES, '"ab"', "objectives"),
        (NAMES, "()", "objectives"),
        (NAMES, '("a", "a")', "objectives"),
        (ONE, "return 0.5", "(5, 2)"),
        (ONE, "return np.ones(3)", "(5, 2)"),
        (ONE, "return [0.5, 1.0] if answer else 0", "score"),
        (ONE, "pass", "score"),
        (ONE, "return ['a', 'b']", "score"),
        ("def score(self, answers, rows)", "def score(self, answer, gold, more)", "score"),
        (ONE, "return [0.5, 1.1]", "'0'"),
        (ONE, "return [-1, 1]", "'0'"),
        (ONE, "return [float('nan')] * 2", "NaN"),
        (ONE, "return [float('nan'), 1] if answer else [0, 0]", "NaN"),
        (ONE, "return [np.random.random(), 1]", "alone"),
        (ONE, "return [answer[9], 0]", "broken.py line"),
        (LOADED, "raise KeyError('price')\n        " + LOADED, "broken.py line"),
        (LOADED, "return []\n        " + LOADED, "'train'"),
        (LOADED, "return\n        " + LOADED, "'train'"),
        ('"gold": "g"', '"answer": "g"', "train row 0"),
        ('[{"role": "user", "content": "x"}]', '"x"', "train row 0"),
        ('"role": "user", ', "", "train row 0"),
        ('"gold": "g"}]', '"gold": "g"}] * 2', "train row 1"),
        ("range(n)]", "range(2)]", "demonstrations"),
        ("[str(i)", "[i", "demonstrations"),
        ("[str(i)", "['<answer_1>' + str(i)", "'<answer_'"),
    ],
)
def test_the_check_names_the_first_mistake(tmp_path, old, new, named):
    assert old in GOOD
    (tmp_path / "broken.py").write_text(GOOD.replace(old, new))
    said = complaint(f"{tmp_path / 'broken.py'}:Mine", check_task)
    assert "broken.py:Mine" in said or "Mine" in said
    assert named in said


@pytest.mark.parametrize("one", [ONE, "return [1 + 2e-16, -1e-17]", "return [float('nan'), 1]"])
def test_a_sound_task_passes_the_check(tmp_path, one):
    (tmp_path / "sound.py").write_text(GOOD.replace(ONE, one))
    task = get_task(f"{tmp_path / 'sound.py'}:Mine")
    assert check_task(task) == {split: len(task.load(None, split)) for split in ("train", "test")}


@pytest.mark.parametrize("name", ["tiny_tools", "maze", SPEC])
def test_the_tasks_of_the_course_are_sound(name):
    check_task(get_task(name))


def test_what_a_task_says_itself_is_not_reworded(tmp_path):
    text = GOOD.replace(LOADED, f"raise LabError('no such split: choose another')\n        {LOADED}")
    (tmp_path / "broken.py").write_text("from vpo_lab.errors import LabError\n" + text)
    assert complaint(f"{tmp_path / 'broken.py'}:Mine", check_task) == "no such split: choose another"


def test_equal_pairs_are_scored_once():
    met = []

    def one(answer, gold):
        met.append((answer, gold))
        return np.array([len(answer), len(gold)])

    found = each(one)(["a", "bb", "a", "a"], [{"gold": "g"}, {"gold": "g"}, {"gold": "g"}, {"gold": "hh"}])
    assert found.tolist() == [[1, 1], [2, 1], [1, 1], [1, 2]] and len(met) == 3


def test_a_missing_answer_is_worth_nothing_where_its_row_asks():
    class Ragged:
        objectives = ("a", "b")

        def score(self, answers, rows):
            return np.array([[0.5, np.nan if row["gold"] == "a" else 0.7] for row in rows])

    rewards_BMD = score_chains(Ragged(), ["<answer_1>x</answer_1>", "nothing"], [{"gold": "a"}, {"gold": "ab"}], 2)
    assert np.array_equal(rewards_BMD, [[[0.5, np.nan], [0, np.nan]], [[0, 0], [0, 0]]], equal_nan=True)


# --- The guide --------------------------------------------------------------------------------


def test_the_guides_measurement_gives_what_the_guide_shows(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code, shown = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", GUIDE.read_text(), re.DOTALL).groups()
    exec(code, {})
    assert capsys.readouterr().out == shown
