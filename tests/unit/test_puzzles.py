"""Knights and zebras: solved again from the words of their prompts; scores; texts of any kind."""

import json
import re
import time
from itertools import permutations, product

import numpy as np
import pytest

from vpo_lab.tasks import get_task
from vpo_lab.tasks.check import check_task
from vpo_lab.tasks.puzzles import knights, zebra

SAMPLE = 40


@pytest.fixture(scope="module", params=["knights", "zebra"])
def task(request):
    return get_task(request.param)


def content(row):
    return row["prompt"][0]["content"]


def test_puzzles_are_sound_and_no_split_shares_one(task):
    check_task(task)
    rows = {split: task.load(None, split) for split in ("train", "test")}
    assert {content(row) for row in rows["train"]}.isdisjoint(map(content, rows["test"]))
    module = knights if task.name == "knights" else zebra
    keys = {split: {p.statements if task.name == "knights" else frozenset(p.clues) for p in module.puzzles(split)}
            for split in rows}  # fmt: skip
    assert keys["train"].isdisjoint(keys["test"])
    assert all(len(keys[split]) == len(rows[split]) for split in rows)
    rewards_ND = task.score([row["answer"] for row in rows["test"]], rows["test"])
    assert np.nanmin(rewards_ND) == 1 and np.isnan(rewards_ND).any()
    assert not np.isnan(rewards_ND).all(axis=0).any()  # every objective is asked somewhere


def test_demonstrations_are_distinct_and_mostly_right(task):
    for row in task.load(None, "test")[:SAMPLE]:
        texts = task.demonstrations(row, 4, np.random.default_rng(0))
        rewards_ND = task.score(texts, [row] * 4)
        assert len(set(texts)) == 4 and row["answer"] in texts
        assert (np.nansum(rewards_ND < 1, axis=1) <= 2).all()


# --- Knights ----------------------------------------------------------------------------------


def is_true(sentence: str, speaker: str, kinds: dict[str, str]) -> bool:
    """Whether a sentence is true, read from its words."""
    sentence = re.sub(r"\bI\b", speaker, sentence.rstrip(".")).replace(" am ", " is ")
    if found := re.fullmatch(r"(\w+) and (\w+) are (the same|different)", sentence):
        return (kinds[found[1]] == kinds[found[2]]) == (found[3] == "the same")
    if found := re.fullmatch(r"(\w+) and (\w+) are both (\w+)s", sentence):
        return kinds[found[1]] == kinds[found[2]] == found[3]
    parts = [re.fullmatch(r"(\w+) is a (\w+)", part) for part in sentence.split(" or ")]
    return any(kinds[part[1]] == part[2] for part in parts)


def test_each_puzzle_of_knights_has_one_solution_and_it_is_the_gold():
    forms = set()
    for row in get_task("knights").load(None, "test"):
        said = dict(re.findall(r'^(\w+) says: "(.*)"$', content(row), flags=re.MULTILINE))
        solutions = []
        for kinds in product(("knight", "knave"), repeat=len(said)):
            kinds = dict(zip(said, kinds, strict=True))
            if all(is_true(s, who, kinds) == (kinds[who] == "knight") for who, s in said.items()):
                solutions.append(kinds)
        assert solutions == [json.loads(row["gold"])]
        forms |= {word for s in said.values() for word in ("I ", " or ", "same", "different", "both") if word in s}
    assert len(forms) == 5


def test_each_person_counts_alone():
    gold = json.dumps({"Anna": "knight", "Boris": "knave", "Clara": "knave"})
    for answer, right in {
        "Anna: knight\nBoris: knave\nClara: knight": [1, 1, 0],
        "- ANNA : Knight.\nthen\n**Clara**: knave": [1, 0, 1],
        "Anna: knave\nAnna: knight": [0, 0, 0],  # the first line counts
        "Anna: knight or knave": [0, 0, 0],
        "": [0, 0, 0],
    }.items():
        rewards_D = knights.score(answer, gold)
        assert rewards_D[:3].tolist() == right and np.isnan(rewards_D[3:]).all()


# --- Zebras -----------------------------------------------------------------------------------


def fits(clue: str, house_of: dict[str, int], houses: int) -> bool:
    """Whether a clue holds, read from its words; houses are counted from 1."""
    things = [house_of[word] for word in re.findall(r"[\w]+", clue) if word in house_of]
    if "is not" in clue:
        return things[0] != things[1]
    if "directly left" in clue:
        return things[0] + 1 == things[1]
    if "beside" in clue:
        return abs(things[0] - things[1]) == 1
    if "first house or in the last" in clue:
        return things[0] in (1, houses)
    if found := re.search(r"lives in house (\d)", clue):
        return things[0] == int(found[1])
    assert " is " in clue and len(things) == 2
    return things[0] == things[1]


def test_each_zebra_puzzle_has_one_solution_and_needs_every_clue():
    small = [row for row in get_task("zebra").load(None, "test") if len(json.loads(row["gold"])) <= 12]
    words = set()
    for row in small[:SAMPLE]:
        gold, text = json.loads(row["gold"]), content(row)
        houses = int(text[0])
        kinds = [line.partition(": ")[2].split(", ") for line in text.splitlines()[1 : 1 + len(gold) // houses]]
        clues = re.findall(r"^\d+\. (.*)$", text, flags=re.MULTILINE)
        met = []  # of each arrangement, which clues it meets
        for ways in product(*(permutations(range(1, houses + 1)) for _ in kinds)):
            house_of = {v: h for values, way in zip(kinds, ways, strict=True) for v, h in zip(values, way, strict=True)}
            met.append([])
            for clue in clues:
                met[-1].append(fits(clue, house_of, houses))
                if met[-1].count(False) > 1:
                    break
            if met[-1].count(False) == 0:
                table = {place: v for place, v in gold.items() if house_of[v] == int(place.split("_")[1])}
                assert table == gold
        missed = [marks.index(False) for marks in met if len(marks) == len(clues) and marks.count(False) == 1]
        assert sum(all(marks) for marks in met) == 1
        assert set(missed) == set(range(len(clues)))  # without any clue another arrangement would fit
        known = ("is not", "is the", "left", "beside", "first house", "in house")
        words |= {word for clue in clues for word in known if word in clue}
    assert len(words) == 6


def test_each_place_of_the_table_counts_alone():
    gold = {"house_1_person": "Anna", "house_1_drink": "tea", "house_2_person": "Boris", "house_2_drink": "milk"}
    for answer, right in {
        "House 1: Anna, tea\nHouse 2: Boris, milk": [1, 1, 1, 1],
        "house 2: MILK, Boris\nHouse 1: Anna": [1, 0, 1, 1],
        "House 1: Anna, Boris\nHouse 2: Anna, Boris, milk": [0, 0, 0, 1],  # no two people in one place
        "House 1: Boris, tea\nHouse 1: Anna, tea": [0, 1, 0, 0],
        "": [0, 0, 0, 0],
    }.items():
        rewards_D = zebra.score(answer, json.dumps(gold))
        assert rewards_D[~np.isnan(rewards_D)].tolist() == right and np.isnan(rewards_D).sum() == 12


@pytest.mark.parametrize(
    "text", ["House 1: " + "," * 10**6, "Anna:" * 10**5, "a:b\n" * 10**5, "\ud800: \0"], ids=range(4)
)
def test_any_text_scores_in_bounded_time(task, text):
    row, started = task.load(None, "test")[0], time.process_time()
    assert not np.nansum(task.score([text], [row])) and time.process_time() - started < 4
