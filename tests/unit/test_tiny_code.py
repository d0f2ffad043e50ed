"""The patch world: what its hidden tests isolate, what one answer and what a set can reach."""

import itertools
import json

import numpy as np
import pytest

from vpo_lab.tasks import get_task
from vpo_lab.tasks.check import check_task
from vpo_lab.tasks.code import tiny
from vpo_lab.tasks.code.sandbox import open_sandbox
from vpo_lab.weights import dirichlet_weights, set_reward

pytest.importorskip("pydantic_monty")


def outputs(lines: dict[str, str]) -> tuple:
    return tiny.run_program(tiny.compose(lines))


@pytest.fixture(scope="module")
def task():
    return get_task("tiny_code")


@pytest.fixture(scope="module")
def row(task):
    return task.load(None, "test")[0]


def test_a_test_depends_on_its_fields_alone():
    stub = outputs({})
    for field, lines in tiny.LINES.items():
        by_variant = [outputs({field: line}) for line in lines]
        assert all(output is not None for variant in by_variant for output in variant)
        for t, filled in enumerate(tiny.FIELDS):
            values = {variant[t] for variant in by_variant}
            if field == filled:
                assert len(values) == tiny.VARIANTS and stub[t] not in values
            else:
                assert values == {stub[t]}


def test_all_lines_mean_the_same_in_both_pythons():
    try:
        fork = open_sandbox("fork")
    except Exception:
        pytest.skip("no fork server here")
    with fork:
        for field, lines in tiny.LINES.items():
            for line in lines:
                program = tiny.compose({field: line})
                texts = fork.call(program, tiny.FUNCTION, list(tiny.INPUTS))
                assert tuple(json.dumps(json.loads(text), sort_keys=True) for text in texts) == tiny.run_program(
                    program
                )


def test_what_one_answer_and_a_set_reach(task, row):
    patches = tiny.best_patches(json.loads(row["gold"]))
    rewards_ND = task.score(patches, [row] * len(patches))
    assert rewards_ND.mean(axis=1).max() == 0.5 == task.ceiling(1)["best"]
    pairs = itertools.combinations(range(len(patches)), 2)
    assert any((rewards_ND[i] + rewards_ND[j] > 0).all() for i, j in pairs)  # two answers pass all tests
    weights_KD = dirichlet_weights(2048, 6, seed=0)
    copies = set_reward(rewards_ND[[0] * 3][None], weights_KD)[0]
    triples = [rewards_ND[list(c)] for c in itertools.combinations(range(len(patches)), 3)]
    assert copies == pytest.approx(0.5, abs=0.01)
    assert set_reward(np.array(triples), weights_KD).max() == pytest.approx(0.688, abs=0.005)


def test_the_whole_wish_passes_and_a_wrong_line_costs_its_tests(task, row):
    lines = tiny.wanted_lines(json.loads(row["gold"]))
    wish = json.loads(row["gold"])
    assert tiny.passed(tiny.compose(lines), wish).all()
    wrong = dict(lines, note=next(line for line in tiny.LINES["note"] if line != lines["note"]))
    assert tiny.passed(tiny.compose(wrong), wish).tolist() == [1, 0, 1, 1, 1, 1]
    assert not tiny.passed(tiny.compose({}), wish).any()


def test_any_python_counts_if_it_does_what_is_wanted(task):
    row = {"gold": "[0, 0, 0, 0, 0, 0]"}
    own = "name = ''.join([c.upper() for c in name])\nprice = price + price"
    assert task.score([own], [row])[0].tolist() == [1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "name.upper()",
        "name = ",
        "name = name.upper(); price = 1",
        "other = 1",
        "name, note = note, name",
        "name = note = ''",
        "name += '!'",
        "name = 1\nnote = 2\ntags = 3\nmarks = 4",
        "name = " + "(" * 150 + ")" * 150,
        "name = '" + "x" * 300 + "'",
        "name = '\0'",
        "name = (lambda: [][0])()",
        "return 1",
        "name = ((note := 'x'), (tags := []), name.upper())[-1]",
        "name = (tags.sort(), name.upper())[1]",
        "name = [name.upper() for note in [1]][0]",
        "```python\nname = name.upper()\n```",
    ],
)
def test_other_texts_earn_nothing(task, row, answer):
    assert not task.score([answer], [row]).any()


def test_programs_are_read_as_they_are_written():
    lines = {"stock": tiny.LINES["stock"][3], "name": tiny.LINES["name"][7]}
    assert tiny.parse_program(tiny.compose(lines)) == lines
    assert list(tiny.parse_program(tiny.compose(lines))) == ["name", "stock"]


@pytest.mark.parametrize("name", ["tiny_code", "tiny_repair"])
def test_worlds_are_sound(name):
    task = get_task(name)
    check_task(task)
    train, test = task.load(None, "train"), task.load(None, "test")
    assert {row["gold"] for row in train}.isdisjoint(row["gold"] for row in test)
    drafts = [row["prompt"][0]["content"].startswith("Draft") for row in train]
    assert all(drafts[: tiny.DRAFTS]) and not any(drafts[tiny.DRAFTS :])
    assert all(row["prompt"][0]["content"].startswith("Draft") for row in test)


def test_hurried_demonstrations_are_mostly_wrong_and_careful_ones_right(task):
    rng = np.random.default_rng(0)
    rows = task.load(None, "train")
    drafts, careful = rows[:300], rows[-300:]
    score = {kind: task.score([task.demonstrations(r, 1, rng)[0] for r in of], of) for kind, of in
             (("draft", drafts), ("careful", careful))}  # fmt: skip
    assert 0.1 < score["draft"].mean() < 0.15 and score["careful"].mean() == 0.5
    correlation_DD = np.corrcoef(score["draft"].T)
    assert np.abs(correlation_DD[~np.eye(6, dtype=bool)]).mean() < 0.15


def test_a_parent_is_patched_not_replaced():
    task = get_task("tiny_repair")
    row = next(row for row in task.load(None, "test") if len(row["parent"]) == 2)
    wish = json.loads(row["gold"])
    missing = [field for field in tiny.FIELDS if field not in row["parent"]][:3]
    before = tiny.passed(tiny.compose(row["parent"]), wish)
    after = task.score(["\n".join(tiny.wanted_lines(wish)[field] for field in missing)], [row])[0]
    assert (after >= before).all() and after.sum() >= before.sum() + 3
    assert all(line in row["prompt"][0]["content"] for line in row["parent"].values())


def test_careful_repairs_patch_what_the_parent_lacks():
    task, rng = get_task("tiny_repair"), np.random.default_rng(0)
    rows = task.load(None, "train")[-100:]
    for row in rows:
        wanted = tiny.wanted_lines(json.loads(row["gold"]))
        lacking = {field for field, line in wanted.items() if row["parent"].get(field) != line}
        patch = tiny.parse_patch(task.demonstrations(row, 1, rng)[0])
        assert patch.items() <= wanted.items() and patch.keys() <= lacking and len(patch) == min(3, len(lacking))


def test_the_ceiling_of_repairs_is_what_the_best_patches_reach():
    task = get_task("tiny_repair")
    rows = task.load(None, "test")
    best = []
    for row in rows:
        patches = tiny.best_patches(json.loads(row["gold"]))
        best.append(task.score(patches, [row] * len(patches)).mean(axis=1).max())
    ceiling = task.ceiling(3)
    assert ceiling["best"] == pytest.approx(np.mean(best)) and ceiling["pass"] == pytest.approx(
        np.mean(np.equal(best, 1))
    )
