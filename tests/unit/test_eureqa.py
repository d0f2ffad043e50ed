"""EUREQA: rows of the published shape through loader, prompt and scorer; an independent scorer; texts of any kind."""

import json
import random
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from code_data import data_file
from reference_hops import eureqa as reference

from vpo_lab.errors import LabError
from vpo_lab.tasks import get_task
from vpo_lab.tasks.check import check_task
from vpo_lab.tasks.eureqa.reward import parse_answer, score

NAMES = ["Ada_Example", "The_Film", "St._Mary's_City", "River_Example", "Sea_Example"]
GOLD = json.dumps(NAMES)


def record(number: int, depth: int = 5) -> dict:
    names = [f"Name_{number}_{i}" for i in range(depth + 1)]
    masks = [f"Mask {letter}" for letter in "ABCDEF"[: depth + 1]]
    return {"idx": number, "question": [f"{masks[0]} is asked for."], "answer": names[0], "entities": names,
            "relation": [""] * depth, "facts": [[]] * depth, "entity_masks": masks}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    path = tmp_path_factory.mktemp("eureqa") / "data"
    path.mkdir()
    sizes = {"questions_hard_5": (21, 5), "questions_normal_5": (7, 5), "questions_hard_3": (4, 3)}
    for number, (name, (count, depth)) in enumerate(sizes.items()):
        rows = [record(100 * number + i, depth) for i in range(count)]
        pq.write_table(pa.Table.from_pylist(rows), path / f"{name}-00000-of-00001.parquet")
    return str(path.parent)


def test_the_published_parts_are_split_as_in_the_paper(folder):
    task = get_task("eureqa")
    train, test = task.load(folder, "train"), task.load(folder, "test")
    assert (len(train), len(test)) == (7 + 10, 11)
    assert {row["id"] for row in train}.isdisjoint(row["id"] for row in test)
    hard = task.load(folder, "questions_hard_5")
    assert test == [hard[i] for i in np.random.default_rng(0).permutation(21)[10:]]
    check_task(task, folder)


def test_the_shuffle_is_that_of_the_authors_library(folder):
    datasets = pytest.importorskip("datasets")
    shuffled = datasets.Dataset.from_dict({"i": list(range(1363))}).shuffle(seed=0)["i"]
    assert list(shuffled) == np.random.default_rng(0).permutation(1363).tolist()


def test_a_shorter_riddle_leaves_the_rest_not_asked(folder):
    rows = get_task("eureqa").load(folder, "questions_hard_3")
    rewards_ND = get_task("eureqa").score([row["answer"] for row in rows] + [""], [*rows, rows[0]])
    assert np.isnan(rewards_ND[:, 3:]).all() and (rewards_ND[:4, :3] == 1).all() and (rewards_ND[4, :3] == 0).all()


def test_the_invented_row_goes_through():
    path = str(data_file("eureqa_shape_invented.json"))
    (row,) = get_task("eureqa").load(path, "questions_hard_5")
    content = row["prompt"][0]["content"]
    assert "Film B was shot in City C." in content and "Atlantia" in content
    assert all(name not in content for name in json.loads(row["gold"]))
    assert get_task("eureqa").score([row["answer"]], [row]).tolist() == [[1, 1, 1, 1, 1]]


def tags(*names):
    return "\n".join(f"<entity_{letter}>{name}</entity_{letter}>" for letter, name in zip("ABCDE", names, strict=False))


@pytest.mark.parametrize(
    "text, vector",
    [
        (tags(*NAMES), [1, 1, 1, 1, 1]),
        (tags("ada example", "film", "ST MARYS CITY", " A River_Example. ", "Sea"), [1, 1, 1, 1, 0]),
        (tags("Ada"), [0, 0, 0, 0, 0]),
        ("<ENTITY_a>Ada Example</Entity_A>", [1, 0, 0, 0, 0]),
        ("<entity_A>x</entity_A><entity_A>Ada_Example</entity_A>", [0, 0, 0, 0, 0]),
        ("<entity_E>Sea_Example</entity_E> and <entity_A>Ada_Example", [0, 0, 0, 0, 1]),
        ("", [0, 0, 0, 0, 0]),
    ],
)
def test_exact_match_of_normalised_names(text, vector):
    assert score(text, GOLD).tolist() == vector


def test_mutations_score_as_an_independent_scorer_says():
    rng = random.Random(0)
    pieces = [*"<>/_. '-\n\t", "the_", "A ", "an", "X", "é", "<entity_B>", "</entity_b>", "<entity_A>", "</ENTITY_A>"]
    seen = set()
    for number in range(100):
        names = [rng.choice(["The ", "", "A_", ""]) + name + rng.choice(["", "_(film)", "!"]) for name in NAMES]
        gold = json.dumps(names[: rng.randint(1, 5)])
        for _ in range(10):
            text = tags(*rng.sample(names, 5) if number % 2 else names)
            for _ in range(rng.randint(0, 5)):
                at = rng.randrange(len(text) + 1)
                text = text[:at] + rng.choice(pieces) + text[at + rng.choice([0, 0, 1]) :]
            expected = reference(text, json.loads(gold))
            assert score(text, gold)[: len(expected)].tolist() == expected, text
            seen.add(tuple(expected))
    assert len(seen) > 20


@pytest.mark.parametrize(
    "text", ["<entity_A>" * 1_000_000, tags("the " * 1_000_000), "</entity_A>" * 1_000_000, "\ud800"], ids=range(4)
)
def test_any_text_scores_in_bounded_time(text):
    started = time.process_time()
    assert not score(text, GOLD).any() and time.process_time() - started < 4


def test_parsing_keeps_the_places():
    assert parse_answer("<entity_C>x</entity_C>") == ["", "", "x", "", ""]


def test_wrong_files_say_what_is_wrong(tmp_path):
    task = get_task("eureqa")
    with pytest.raises(LabError, match="split"):
        task.load(None, "dev")
    for number, bad in enumerate([{"idx": 1}, {**record(1), "entities": ["x"]}, {**record(1), "question": [3]}]):
        path = tmp_path / f"questions_hard_5-{number}.json"
        path.write_text(json.dumps([bad]))
        with pytest.raises(LabError, match=f"{number}.json, 1"):
            task.load(str(path), "test")


def test_the_pinned_commit_is_downloaded_once(folder, tmp_path, monkeypatch):
    """The hub takes whole hashes only: the short one is looked up in the history."""
    hub = pytest.importorskip("huggingface_hub")
    published, asked = Path(folder), []
    known = ["c045317" + "0" * 33, "61636e3" + "0" * 33]

    class Hub:
        def list_repo_commits(self, dataset, repo_type):
            return [SimpleNamespace(commit_id=commit) for commit in known]

        def list_repo_files(self, dataset, repo_type, revision):
            assert revision == known[0]
            return ["README.md", *(str(file.relative_to(published)) for file in published.rglob("*.parquet"))]

    def download(dataset, name, repo_type, revision, local_dir):
        asked.append((dataset, name, revision))
        (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (local_dir / name).write_bytes((published / name).read_bytes())

    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setenv("VPO_LAB_CACHE", str(tmp_path))
    task = get_task("eureqa")
    assert len(task.load(None, "test")) == 11 and task.load(None, "test") == task.load(folder, "test")
    assert asked == [("vincentleebang/EUREQA", "data/questions_hard_5-00000-of-00001.parquet", known[0])]
    known[0] = "ffff"
    with pytest.raises(LabError, match="c045317"):
        task.load(None, "questions_hard_3")
