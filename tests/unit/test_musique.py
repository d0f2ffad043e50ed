"""MuSiQue: real rows through loader, prompt and scorer; an independent scorer; texts of any kind and length."""

import json
import random
import time

import numpy as np
import pytest
from code_data import data_file
from reference_hops import musique as reference

from vpo_lab.chains import join_chain
from vpo_lab.errors import LabError
from vpo_lab.tasks import get_task, score_chains
from vpo_lab.tasks.check import check_task
from vpo_lab.tasks.musique.reward import authors_scalar, parse_answer, score
from vpo_lab.tasks.musique.task import balanced

GOLD = json.dumps({"support": [6, 10], "answer": "G. Stanley Hall", "aliases": ["Stanley Hall"]})


@pytest.fixture(scope="module")
def file():
    return str(data_file("musique_train_100.json.gz"))


@pytest.fixture(scope="module")
def rows(file):
    return get_task("musique").load(file)


def answer(cited, text):
    return f"<support>{cited}</support>\n<answer>{text}</answer>"


# --- The reward -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, vector",
    [
        (answer("6, 10", "G. Stanley Hall"), [1, 1, 1]),
        (answer("10,6", "stanley hall!"), [1, 1, 1]),  # in any order; an alias
        (answer("1, 2, 6, 10", "Hall"), [1, 1, 2 / 3]),  # four citations leave room for two guesses
        (answer("1, 2, 3, 4, 6, 10", "Hall"), [0, 0, 2 / 3]),
        (answer("1, 1, 1, 1, 1, 6", "Hall"), [1, 0, 2 / 3]),  # different ones count
        (answer("[6], 10, seven, -6", "Hall"), [0, 1, 2 / 3]),
        ("<answer>Hall</answer>", [0, 0, 2 / 3]),
        (answer("6, 10", " "), [0, 0, 0]),  # citing alone earns nothing
        ("<support>6, 10</support>", [0, 0, 0]),
        (answer("", "x") + answer("6, 10", "Hall"), [0, 0, 0]),  # of each tag the first counts
        ("<answer>x</answer>" + answer("6, 10", "Hall"), [1, 1, 0]),
        (answer("6, 10", "the"), [1, 1, 0]),
        ("", [0, 0, 0]),
    ],
)
def test_hops_and_answer(text, vector):
    two, padded = score(text, GOLD), score(text, GOLD, absent=1.0)
    assert two[[0, 1, 4]] == pytest.approx(vector) and np.isnan(two[[2, 3]]).all()
    answered = bool(parse_answer(text)[1])
    assert padded[[0, 1, 4]] == pytest.approx(vector) and (padded[[2, 3]] == answered).all()


def test_the_authors_scalar():
    assert authors_scalar([1, 0, 1, 1, 0.5]) == pytest.approx((3 + 1.5) / 7)
    assert authors_scalar([1, 0, np.nan, np.nan, 0.5]) == pytest.approx((1 + 1.5) / 5)
    assert authors_scalar(np.ones((2, 3, 5))).shape == (2, 3)


def test_a_hundred_real_rows_and_mutations_score_as_an_independent_scorer_says(rows):
    rng = random.Random(0)
    pieces = [*"<>/,. '-_0123456789²٣\n\t", "the ", " a ", "An-", "6, 10"]
    pieces += ["<support>", "</support>", "<answer>", "</answer>"]
    compared = different = 0
    for row in rows:
        gold = json.loads(row["gold"])
        wanted = [gold["answer"], *gold["aliases"]]
        demonstrations = get_task("musique").demonstrations(row, 6, np.random.default_rng(compared))
        texts = [row["answer"], *demonstrations, answer(", ".join(map(str, range(20))), row["question"])]
        for text in list(texts):
            for _ in range(4):
                for _ in range(rng.randint(1, 4)):
                    at = rng.randrange(len(text) + 1)
                    text = text[:at] + rng.choice(pieces) + text[at + rng.choice([0, 0, 1, 5]) :]
                texts.append(text)
        seen = set()
        for text in texts:
            # Digits beyond ASCII are read as Python reads them; the description says nothing about them.
            expected = reference(text.replace("٣", "3").replace("²", "x"), gold["support"], wanted)
            vector = [0.0] * 5 if expected is None else list(map(float, expected))
            assert score(text, row["gold"], absent=1.0) == pytest.approx(vector, abs=1e-12), text
            asked = [*range(len(gold["support"])), 4]
            assert score(text, row["gold"])[asked] == pytest.approx(np.array(vector)[asked], abs=1e-12), text
            seen.add(tuple(vector))
            compared += 1
        different += len(seen)
    assert compared > 3000 and different > 4 * len(rows)  # mutations that change nothing would prove nothing


@pytest.mark.parametrize(
    "text",
    [
        "<support>" + "," * 3_000_000 + "</support><answer>Hall</answer>",
        "<support>" + "7," * 1_000_000 + "6</support><answer>Hall</answer>",
        "<support>" * 1_000_000 + "<answer>" * 1_000_000,
        "<answer>" + "the " * 1_000_000 + "</answer>",
        answer("9" * 1_000_000 + ", 6", "Hall " * 300_000),
        answer("²,6", "\0\ud800"),
        "</answer>" * 500_000 + "<answer>x",
    ],
    ids=range(7),
)
def test_any_text_scores_in_bounded_time(text):
    started = time.process_time()
    rewards_D = score(text, GOLD)
    assert time.process_time() - started < 4
    assert ((rewards_D[[0, 1, 4]] >= 0) & (rewards_D[[0, 1, 4]] <= 1)).all()


# --- Rows -------------------------------------------------------------------------------------


def test_real_rows_are_sound(file, rows):
    for name in ("musique", "musique_all_hops"):
        check_task(get_task(name), file)
    assert len(rows) == 100
    rewards_ND = get_task("musique").score([row["answer"] for row in rows], rows)
    assert np.nanmin(rewards_ND) == 1 and (~np.isnan(rewards_ND)).sum(axis=1).tolist() == [
        len(row["steps"]) + 1 for row in rows
    ]


def test_a_prompt_shows_question_and_all_paragraphs_by_number(rows):
    (message,) = rows[0]["prompt"]
    assert rows[0]["question"] in message["content"]
    assert all(f"\n[{number}] " in message["content"] for number in range(20))
    assert "[10] " in message["content"] and "<support>" in message["content"] and "<answer>" in message["content"]


def test_the_test_split_is_balanced_and_the_released_one_is_not(file, rows):
    task = get_task("musique")
    test, released = task.load(file, "test"), task.load(file, "released")
    hops = [len(row["steps"]) for row in test]
    assert [hops.count(n) for n in (2, 3, 4)] == [5, 5, 5] and released == rows
    assert test == task.load(file, "test")
    many = [{"gold": json.dumps({"support": [0] * hops}), "n": n} for n, hops in enumerate([2, 3, 2, 4] * 150)]
    drawn = balanced(many)
    assert len(drawn) == 300 and drawn == sorted(drawn, key=lambda row: row["n"])
    assert [sum(row["gold"].count("0") == hops for row in drawn) for hops in (2, 3, 4)] == [100, 100, 100]


def test_a_chain_is_scored_answer_by_answer(rows):
    task, row = get_task("musique"), rows[0]
    chain = join_chain([row["answer"], answer("6", "nobody"), answer("6, 10", "")])
    rewards_MD = score_chains(task, [chain], [row], 4)[0]
    assert rewards_MD[:, [0, 1, 4]].tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert np.isnan(rewards_MD[:, [2, 3]]).all()


def test_demonstrations_are_distinct_and_one_slip_from_the_gold(rows):
    task = get_task("musique")
    for row in rows[:30]:
        texts = task.demonstrations(row, 5, np.random.default_rng(0))
        rewards_ND = task.score(texts, [row] * 5)
        assert len(set(texts)) == 5 and row["answer"] in texts
        assert (np.nansum(rewards_ND < 1, axis=1) <= 1).all()


def test_wrong_files_say_what_is_wrong(tmp_path):
    task = get_task("musique")
    with pytest.raises(LabError, match="split"):
        task.load(None, "dev")
    for number, record in enumerate([{"id": "2hop__1"}, {**_record(), "answer": 3}, {**_record(), "paragraphs": []}]):
        path = tmp_path / f"musique_{number}.jsonl"
        path.write_text(json.dumps(record))
        with pytest.raises(LabError, match=f"musique_{number}.jsonl, 1"):
            task.load(str(path))
    (tmp_path / "musique_ans_v1.0_dev.jsonl").write_text("\n".join(
        json.dumps(record) for record in (_record(), {**_record(), "id": "2hop__2", "answerable": False})
    ))  # fmt: skip
    assert [row["id"] for row in task.load(str(tmp_path), "validation")] == ["2hop__1"]
    with pytest.raises(LabError, match="train"):
        task.load(str(tmp_path), "train")


def _record():
    steps = [{"id": i, "question": "?", "answer": "x", "paragraph_support_idx": i} for i in range(2)]
    paragraphs = [{"idx": i, "title": "T", "paragraph_text": "text", "is_supporting": True} for i in range(3)]
    return {"id": "2hop__1", "question": "?", "answer": "x", "answer_aliases": [], "answerable": True,
            "question_decomposition": steps, "paragraphs": paragraphs}  # fmt: skip
