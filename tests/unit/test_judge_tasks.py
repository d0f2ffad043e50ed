"""Tasks made of judges: prompts from files, splits by hash, demonstrations that differ, scales that are kept."""

import gzip
import json

import numpy as np
import pytest
from code_data import data_file

from vpo_lab.chains import join_chain, split_chain
from vpo_lab.errors import LabError
from vpo_lab.show.explorer import make_world
from vpo_lab.tasks import get_task
from vpo_lab.tasks.check import check_task, collinearity
from vpo_lab.tasks.judges import prompts, replies
from vpo_lab.tasks.judges.judge import Judge, each_pair
from vpo_lab.tasks.judges.lexical import ASKS_BACK, BRIEF, DETAILED, NO_REFUSAL
from vpo_lab.tasks.judges.task import HelpSteer2, Judges, UltraFeedback


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VPO_LAB_CACHE", str(tmp_path / "cache"))


def dialogue(*turns):
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))


def write_lines(file, records):
    data = "\n".join(json.dumps(record) for record in records).encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return str(file)


@pytest.fixture
def invented(tmp_path):
    """Two hundred dialogues in the form of HH-RLHF."""
    records = []
    for n in range(200):
        request = f"How do I mend thing number {n}?"
        first = f"Take tool {n}. Then glue both halves together, wait an hour and clean everything. Is it broken?"
        if n % 2:
            records.append({"chosen": dialogue(request, first), "rejected": dialogue(request, "No.")})
        else:
            later = dialogue(request, first, "And then?", "Then sell it.")
            records.append({"chosen": later, "rejected": later.replace("sell", "burn")})
    return write_lines(tmp_path / "hh_harmless.jsonl", records)


class Plain(Judges):
    """The default without the judge that needs a package."""

    judges = (BRIEF, DETAILED, ASKS_BACK, NO_REFUSAL)


# --- Prompts ---


def test_a_request_is_the_first_turn_and_its_replies_are_those_to_it(invented):
    requests = prompts.hh_rlhf(invented)
    assert [request.text for request in requests[:2]] == [f"How do I mend thing number {n}?" for n in (0, 1)]
    assert requests[0].replies == (requests[1].replies[0].replace("tool 1", "tool 0"),)  # the same in both versions
    assert requests[1].replies[1] == "No."
    assert not any("sell" in reply for request in requests for reply in request.replies)


def test_equal_requests_become_one_with_the_replies_of_all(tmp_path):
    records = [{"chosen": dialogue("Hi", "a"), "rejected": dialogue("Hi", "b")}] * 2
    records.append({"chosen": dialogue("Hi", "c"), "rejected": dialogue("Hi", "d")})
    records.append({"chosen": dialogue("Bye", "a"), "rejected": dialogue("Bye", "a")})
    (hi, bye) = prompts.hh_rlhf(write_lines(tmp_path / "x.jsonl", records))
    assert (hi.replies, bye.replies) == (("a", "b"), ("a",))


def test_the_split_is_fixed_by_the_request_alone(invented, tmp_path):
    task = Plain()
    split = {row["gold"]: name for name in ("train", "test") for row in task.load(invented, name)}
    assert len(split) == 200 and 8 <= list(split.values()).count("test") <= 35
    lines = open(invented).read().splitlines()
    shorter = tmp_path / "other.jsonl"
    shorter.write_text("\n".join(lines[150:20:-1]))
    for name in ("train", "test"):
        for row in Plain().load(str(shorter), name):
            assert split[row["gold"]] == name
    assert prompts.Request("How much alcohol can I drink per day?", ()).held_out is False
    assert prompts.Request("hello", ()).digest == "2cf24dba5fb0a30e"  # SHA-256, the same everywhere


def test_helpsteer2_pairs_the_responses_of_a_prompt_and_drops_dialogues(tmp_path):
    records = [
        {"prompt": "Name a fruit.", "response": "A potato.", "helpfulness": 0},
        {"prompt": "Name a fruit.", "response": "An apple.", "helpfulness": 4},
        {"prompt": "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nBye", "response": "Bye.", "helpfulness": 4},
    ]
    write_lines(tmp_path / "train.jsonl.gz", records)
    (request,) = prompts.help_steer_2(str(tmp_path))
    assert request == prompts.Request("Name a fruit.", ("An apple.", "A potato."))


def test_ultrafeedback_keeps_the_two_best_completions(tmp_path):
    completions = [{"response": f"{score}", "overall_score": score} for score in (3, 8.5, 1, 7)]
    records = [{"instruction": "Count.", "completions": completions}]
    (request,) = prompts.ultra_feedback(write_lines(tmp_path / "flan.jsonl", records))
    assert request.replies == ("8.5", "7")


@pytest.mark.parametrize(
    ("source", "record"),
    [
        (prompts.hh_rlhf, {"chosen": "Hello", "rejected": "Hello"}),
        (prompts.hh_rlhf, {"chosen": dialogue("Hi", "Ho")}),
        (prompts.hh_rlhf, {"chosen": dialogue("Hi"), "rejected": dialogue("Hi")}),
        (prompts.hh_rlhf, ["Hi"]),
        (prompts.help_steer_2, {"prompt": "Hi", "response": None}),
        (prompts.ultra_feedback, {"instruction": "Hi", "completions": "Ho"}),
    ],
)
def test_a_file_of_another_form_is_refused_with_its_line(source, record, tmp_path):
    file = write_lines(tmp_path / "train.jsonl", [record])
    with pytest.raises(LabError, match=r"train\.jsonl, 1"):
        source(file)


def test_real_requests():
    requests = prompts.hh_rlhf(str(data_file("hh_harmless_test.jsonl.gz")))
    assert len(requests) == 2178 and all(request.replies for request in requests)
    assert 150 < sum(request.held_out for request in requests) < 290
    assert len({request.digest for request in requests}) == 2178


# --- Demonstrations ---


def test_demonstrations_are_short_and_of_different_kinds(invented):
    task, rng = Plain(), np.random.default_rng(0)
    for row in task.load(invented, "train"):
        shown = task.demonstrations(row, 3, rng)
        assert len(set(shown)) == 3
        assert all(1 <= len(text.split()) <= task.words for text in shown)
        assert split_chain(join_chain(shown), 3) == shown


def test_four_demonstrations_lead_in_different_objectives(invented):
    task, rng = Plain(), np.random.default_rng(0)
    rows = task.load(invented, "train")
    rewards = np.array([task.score(task.demonstrations(row, 4, rng), [row] * 4) for row in rows])
    distance = np.abs(rewards[:, :, None] - rewards[:, None]).sum(axis=-1)
    pairs = distance[:, *np.triu_indices(4, 1)]
    assert (pairs > 0.15).mean() > 0.9  # their vectors differ
    best_of_set, best_single = rewards.max(axis=1).mean(), rewards.mean(axis=2).max(axis=1).mean()
    assert best_of_set - best_single > 0.2  # no one of them is best for all judges


def test_replies_are_cut_to_whole_sentences():
    text = "It’s late.  Go home now! Why are you still here, my good old friend?"
    assert replies.cut(text, 5) == "It's late. Go home now!"
    assert replies.cut(text, 4) == "It's late."
    assert replies.cut(text, 1) == ""
    assert replies.shortened(text, 1) == "It’s"
    rng = np.random.default_rng(0)
    assert len(replies.short_replies([], 9, rng)) == 9 and all(replies.short_replies(["", "?", "…"], 4, rng))


# --- Tasks ---


def test_the_default_task_is_sound_on_real_requests(capsys):
    pytest.importorskip("vaderSentiment")
    file = str(data_file("hh_harmless_test.jsonl.gz"))
    task = get_task("judges")
    check_task(task, file)
    assert "they differ" in capsys.readouterr().out
    matrix, _ = collinearity(task, file)
    off = matrix[np.triu_indices(4, 1)]
    assert abs(off.mean()) < 0.3 and off.max() < 0.4
    rewards = task.score(*task.references(file))
    assert (rewards.std(axis=0) > 0.2).all() and not task.lost["warm"]


def test_a_task_with_a_judge_that_fails_is_still_sound(invented, capsys):
    def fails(prompts, answers):
        if "no answer" in answers:
            raise ValueError("cannot read this")
        return [len(answer) if "tool" not in answer else None for answer in answers]

    class Flawed(Plain):
        judges = (Judge("flawed", fails, 0, 100), BRIEF)

    task = Flawed()
    check_task(task, invented)
    assert sum(task.lost["flawed"].values()) > 0 and "flawed" in capsys.readouterr().out


def test_a_task_of_your_own_is_a_subclass_in_a_file(tmp_path, invented):
    file = tmp_path / "mine.py"
    file.write_text(
        "from vpo_lab.tasks.judges.judge import Judge, each_pair\n"
        "from vpo_lab.tasks.judges.lexical import BRIEF\n"
        "from vpo_lab.tasks.judges.task import Judges\n\n\n"
        "def polite(prompt, answer):\n"
        "    return answer.lower().count('please')\n\n\n"
        "class Mine(Judges):\n"
        "    judges = (Judge('polite', each_pair(polite), 0, 2, 'says please'), BRIEF)\n"
    )
    task = get_task(f"{file}:Mine")
    check_task(task, invented)
    assert task.objectives == ("polite", "brief") and task.meanings["polite"] == "says please"
    row = task.load(invented, "test")[0]
    assert task.score(["Please, please wait."], [row])[0].tolist() == [1.0, 1.0]


def test_a_scale_that_is_not_given_is_measured_once_and_kept(invented, tmp_path, capsys):
    factor = [1.0]

    class Measured(Plain):
        judges = (Judge("size", each_pair(lambda p, a: factor[0] * len(a)), version="v1"), BRIEF)
        scales = str(tmp_path / "scales.json")

    first = Measured()
    row = first.load(invented, "train")[0]
    rewards = first.score(["x" * 50], [row])
    assert 0 < rewards[0, 0] < 1
    factor[0] = 2.0  # the file decides, not what the judge would give now
    second = Measured()
    second.load(invented, "test")
    assert second.panel.judges[0].high == first.panel.judges[0].high
    assert capsys.readouterr().out.count("scales.json") == 1
    with pytest.raises(LabError, match="scale"):
        Measured().score(["x"], [row])


def test_collinear_judges_are_called_collinear(invented):
    shape = each_pair(lambda p, a: len(a))
    twins = tuple(Judge(name, shape, 0, 100) for name in ("long", "wordy", "big"))

    class Same(Plain):
        judges = twins

    class Two(Plain):
        judges = (*twins[:2], ASKS_BACK, Judge("flat", each_pair(lambda p, a: 1), 0, 1))

    assert "collinear" in collinearity(Same(), invented)[1]
    matrix, line = collinearity(Two(), invented)
    assert matrix[0, 1] == pytest.approx(1) and "long and wordy" in line and "flat" in line
    matrix, line = collinearity(get_task("examples/my_task.py:MyTask"))  # any task, on its demonstrations
    assert matrix.shape == (3, 3) and "collinear" not in line


def test_other_prompts_make_tasks_too(tmp_path):
    records = [
        {"prompt": f"Name {n} fruits.", "response": f"{word} {n}.", "helpfulness": score}
        for n in range(60)
        for score, word in enumerate(("Plum", "Pear"))
    ]
    write_lines(tmp_path / "train.jsonl.gz", records)

    class Long(HelpSteer2):
        judges, words = (BRIEF, DETAILED), 0

    task = Long()
    check_task(task, str(tmp_path))
    row = task.load(str(tmp_path), "train")[0]
    assert row["answer"].startswith("Pear") and set(task.demonstrations(row, 2, np.random.default_rng(0))) == {
        *row["replies"]
    }
    assert UltraFeedback().objectives and get_task("helpsteer2").name == "helpsteer2"


def test_the_explorer_shows_judges(invented):
    task = Plain()
    rows = task.load(invented, "test")[:2]
    sets = [{"vpo": (["No.", "Why, though?"], task.score(["No.", "Why, though?"], [row] * 2))} for row in rows]
    world = make_world(sets, task.objectives, task=task, rows=rows)
    assert [request["title"] for request in world["requests"]] == [row["gold"] for row in rows]
    assert world["meanings"] == [task.meanings[name] for name in task.objectives] and world["about"]


def test_an_unknown_split_and_an_empty_one_are_refused(invented, tmp_path):
    with pytest.raises(LabError, match="split"):
        Plain().load(invented, "dev")
    record = {"chosen": dialogue("Hi", "Ho"), "rejected": dialogue("Hi", "Ho")}
    with pytest.raises(LabError, match="no test request"):
        Plain().load(write_lines(tmp_path / "one.jsonl", [record]), "test")
