"""search/evolve.py: the real OpenEvolve with scripted policies, and what it does by itself that must not happen."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from patch_world import answers_of

from vpo_lab.chains import join_chain
from vpo_lab.config import get_profile
from vpo_lab.errors import LabError
from vpo_lab.files import write_json
from vpo_lab.runs import open_run
from vpo_lab.search.client import CHECKPOINT, evaluator_of
from vpo_lab.search.evolution import solved_within
from vpo_lab.search.evolve import evolve_in_openevolve
from vpo_lab.search.loop import evolve, sampled
from vpo_lab.search.policies import Source, Trained
from vpo_lab.search.problems import search_problems
from vpo_lab.tasks import get_task

HERE = Path(__file__).resolve()


def own(name: str):
    """A task of tests/patch_world.py, as another process finds it."""
    return get_task(f"{HERE.parents[1] / 'patch_world.py'}:{name}")


WORLD = own("PatchWorld")
ROWS = WORLD.load(None, "test")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def inside(kind: str, n: int, rows, folder: Path, task=WORLD, **options):
    folder.mkdir(exist_ok=True)
    return evolve_in_openevolve(task, rows, [answers_of(kind, row, n) for row in rows], n, folder=folder, **options)


# --- Beside the loop --------------------------------------------------------------------------


def test_it_solves_what_the_loop_solves(tmp_path):
    rows = ROWS[:2]
    for kind, solves in {"collapsed": False, "spread": True, "guess": None}.items():
        found = inside(kind, 36, rows, tmp_path / kind)
        loop = evolve(WORLD, rows, sampled([answers_of(kind, row, 36) for row in rows], rows), 36)
        for one, row in zip(found, rows, strict=True):
            assert one.id == row["id"] and one.candidates == min(36, one.solved_at)
            assert all(0 <= p < n for n, p in enumerate(one.parents) if n)
            assert one.rewards_PD.tolist() == WORLD.evaluate(one.texts, [row] * len(one.texts)).tolist()
        if solves is not None:
            assert (solved_within(found, 36) == solves).all() and (solved_within(loop, 36) == solves).all()
        if kind == "collapsed":
            assert [one.best(36) for one in found] == [0.5, 0.5] == [one.best(36) for one in loop]
        kept = sorted(path.name for path in (tmp_path / kind).iterdir())
        assert kept == ["0000.json", "0001.json", "openevolve.log"]  # no checkpoint, prompt or log of OpenEvolve


def test_a_finished_search_is_read_and_another_one_refused(tmp_path):
    found = inside("spread", 24, ROWS[:1], tmp_path / "a")
    before = time.monotonic()
    assert inside("spread", 24, ROWS[:1], tmp_path / "a")[0].texts == found[0].texts
    assert time.monotonic() - before < 0.5
    for rows, n in ((ROWS[:1], 25), (ROWS[1:2], 24)):
        with pytest.raises(LabError, match=r"0000\.json"):
            inside("spread", n, rows, tmp_path / "a")
    with pytest.raises(LabError, match="24"):
        evolve_in_openevolve(WORLD, ROWS[:1], [["a = 1"]], 24, folder=tmp_path / "b")


def test_it_runs_inside_an_event_loop_and_programs_may_hold_fences(tmp_path):
    async def cell():
        return inside("spread", 24, ROWS[:1], tmp_path / "a", own("Fenced"))

    (found,) = asyncio.run(cell())
    assert found.solved_at < 24
    assert all(text.startswith(" ```\n") and text.endswith("\n```\n") for text in found.texts[1:])


# --- What it does not tell --------------------------------------------------------------------


def test_a_worker_that_dies_is_an_error_that_says_how_far_it_came(tmp_path):
    with pytest.raises(LabError, match=r"test/0: .* of 30 "):
        inside("guess", 30, ROWS[:1], tmp_path / "a", own("Dies"))


def test_an_error_in_the_task_ends_the_search_with_its_words(tmp_path):
    with pytest.raises(LabError, match="no such step"):
        inside("guess", 30, ROWS[:1], tmp_path / "a", own("Fails"))


def test_a_program_that_the_search_did_not_make_earns_nothing(tmp_path):
    row, others = ROWS[0], {name: 0.0 for name in WORLD.objectives if name not in ("test_a", "test_b")}
    write_json(
        tmp_path / "problem.json",
        {
            "task": WORLD.name, "row": row, "sees_parent": False, "source": [],
            "start": "a = 9", "start_rewards": [1.0, None, *[0.0] * 6],
        },
    )  # fmt: skip
    evaluate = evaluator_of(str(tmp_path / "evaluator.py"))
    for text, a in {"a = 9\n": 1.0, WORLD.solution(row): 0.0, "": 0.0}.items():
        (tmp_path / "program.py").write_text(text)
        metrics = evaluate(str(tmp_path / "program.py"))
        assert metrics == {**others, "test_a": a, "combined_score": a / 7}  # names and figures, nothing expected


def test_killed_it_leaves_no_process_and_goes_on_from_its_checkpoint(tmp_path):
    script = tmp_path / "script.py"
    n = 5 * CHECKPOINT
    script.write_text(
        f"import sys; sys.path[:0] = {[str(HERE.parents[n]) for n in range(3)]}\n"
        "from pathlib import Path\n"
        "from test_openevolve import ROWS, inside, own\n"
        f"inside('wrong', {n}, ROWS[:1], Path('a'), own('Slow'))\n"
    )
    process = subprocess.Popen([sys.executable, script], start_new_session=True)
    log, checkpoints = tmp_path / "a" / "0000" / "candidates.jsonl", tmp_path / "a" / "0000" / "checkpoints"
    deadline = time.monotonic() + 180
    while not list(checkpoints.glob("*/best_program_info.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    group = os.getpgid(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while members(group):
        assert time.monotonic() < deadline, "OpenEvolve outlives the process that started it"
        time.sleep(0.2)
    before = log.read_text().splitlines()
    last = max(int(path.parent.name.rpartition("_")[2]) for path in checkpoints.glob("*/best_program_info.json"))
    assert CHECKPOINT <= last <= len(before) < n
    (found,) = inside("wrong", n, ROWS[:1], tmp_path / "a", own("Slow"))
    assert found.candidates == n
    kept = [text for line in before[:last] if (text := json.loads(line)["text"]) is not None]
    assert list(found.texts[1 : len(kept) + 1]) == kept


def members(group: int) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    lines = (line.split(None, 2) for line in listed.splitlines())
    return [line[2] for line in lines if line[0] == str(group) and not line[1].startswith("Z")]


# --- Behind a server --------------------------------------------------------------------------


class Model(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that honours seeds: equal requests get equal answers."""

    seen: list[dict]

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.reply({"object": "list", "data": [{"id": "served", "object": "model", "created": 0, "owned_by": ""}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(asked)
        number = int(asked["messages"][-1]["content"].split("Secret ")[1].split(".")[0])
        chain = join_chain(answers_of("guess", ROWS[number], 3, seed=asked["seed"], right=0.9))
        message = {"role": "assistant", "content": chain}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        self.reply({"id": "1", "object": "chat.completion", "created": 0, "model": "served", "choices": choices})

    def reply(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server():
    Model.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{one.server_port}/v1"
        one.shutdown()


@pytest.fixture
def policy(tmp_path) -> Path:
    """RUN/vpo of a run in the world of patches; nothing is trained there."""
    profile = get_profile("smoke", {"task": WORLD.name, "methods": ["grpo", "vpo"], "policy.max_answer_tokens": 40})
    run = open_run(profile, 0, tmp_path / "run")
    (run / "vpo" / "policy").mkdir(parents=True)
    return run / "vpo"


@pytest.mark.parametrize("sees_parent", [False, True])
def test_a_server_is_asked_for_chains_each_with_a_seed_of_its_own(tmp_path, server, policy, sees_parent):
    (tmp_path / "a").mkdir()
    source = Source(str(policy), seed=3, server=server)
    (found,) = evolve_in_openevolve(WORLD, ROWS[4:5], source, 36, folder=tmp_path / "a", sees_parent=sees_parent)
    assert found.solved_at <= 36
    assert len(Model.seen) == len({asked["seed"] for asked in Model.seen}) >= found.candidates / 3
    for asked in Model.seen:
        assert asked["model"] == "served" and asked["max_tokens"] == 120 and asked["temperature"] == 1.0
        prompt = asked["messages"][-1]["content"]
        assert "3 different answers" in prompt and ("Fails: test_" in prompt) is sees_parent


def test_the_loop_asks_it_too_and_a_server_that_is_away_is_one_line(server, policy):
    found = evolve(WORLD, ROWS[:3], lambda requests: Source(str(policy), server=server).draw(requests, 0), 6)
    assert [one.candidates for one in found] and all(len(one.texts) > 1 for one in found)
    with pytest.raises(LabError, match=r"127\.0\.0\.1:9"):
        Source(str(policy), server="http://127.0.0.1:9/v1").draw([(ROWS[0], ROWS[0]["prompt"])], 0)


# --- A policy of this lab ---------------------------------------------------------------------


@pytest.fixture
def untrained(policy) -> Path:
    from vpo_lab.train.policy import load_policy

    model, tokenizer = load_policy(Trained.find(policy).profile, WORLD, None, 0)
    model.save_pretrained(policy / "policy")
    tokenizer.save_pretrained(policy / "policy")
    return policy


def test_a_policy_searches_the_test_problems_of_its_run(untrained, capsys):
    for engine, sees_parent in (("loop", False), ("loop", True), ("openevolve", False)):
        options = {"engine": engine, "sees_parent": sees_parent}
        found, file = search_problems(untrained, 2, 6, **options)
        assert [one.id for one in found] == [row["id"] for row in ROWS[:2]] and {one.candidates for one in found} == {6}
        assert sorted(path.name for path in file.parent.iterdir()) == [".lock", "evolutions.json.gz", "settings.json"]
        before = file.stat().st_mtime_ns
        again, _ = search_problems(untrained, 2, 6, **options)
        assert [one.as_json() for one in again] == [one.as_json() for one in found]
        assert file.stat().st_mtime_ns == before
        with pytest.raises(LabError, match="candidates"):
            search_problems(untrained, 2, 7, **options)


def test_how_a_policy_is_asked_is_read_from_its_run(policy, tmp_path):
    assert Trained.find(policy).m == 3 and Trained.find(policy).method == "vpo"
    for name in ("grpo", "sft"):
        (policy.parent / name / "policy").mkdir(parents=True)
    assert [Trained.find(policy.parent / name).m for name in ("grpo", "sft", "sft_chain")] == [1, 1, 3]
    profile = Trained.find(policy).profile
    assert (profile.task, profile.policy.max_answer_tokens) == (WORLD.name, 40)
    job = tmp_path / "experiment" / "maze" / "seed-0" / "search8"
    (job / "policy").mkdir(parents=True)
    write_json(job / "settings.json", {"method": "vpo_search", **get_profile("maze", {"rl.search_k": 8}).settings()})
    found = Trained.find(job)
    assert (found.method, found.m, found.profile.task, found.profile.rl.search_k) == ("vpo_search", 3, "maze", 8)
    for folder in (tmp_path, policy.parent / "max_at_k"):
        with pytest.raises(LabError, match="no policy"):
            Trained.find(folder)
