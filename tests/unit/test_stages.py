"""stages.py: what is finished, what was stopped by the clock, and whose time it is."""

import time
from pathlib import Path

import pytest

from vpo_lab.config import get_profile
from vpo_lab.files import write_json
from vpo_lab.runs import POLICY, STOPPED, TRAIN_UNTIL, _forget_pools, has_policy, read_log, stopped_at
from vpo_lab.train import rl as training


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run with a trained warmup, and VPO stopped by a clock that ran until 1000."""
    monkeypatch.delenv(TRAIN_UNTIL, raising=False)
    for stage in ("sft", "vpo"):
        (tmp_path / stage / POLICY).mkdir(parents=True)
    write_json(tmp_path / "vpo" / STOPPED, {"step": 3, "steps": 9, "until": 1000.0})
    return tmp_path


def test_a_stopped_stage_is_done_for_that_run_and_goes_on_in_the_next(run, monkeypatch):
    assert has_policy(run / "sft") and not has_policy(run / "grpo")
    assert not has_policy(run / "vpo") and stopped_at(run / "vpo")["step"] == 3
    later = time.time() + 100
    monkeypatch.setenv(TRAIN_UNTIL, str(later))
    assert not has_policy(run / "vpo")
    write_json(run / "vpo" / STOPPED, {"step": 4, "steps": 9, "until": later})
    assert has_policy(run / "vpo")


def test_where_no_time_is_left_what_is_there_is_taken(run, monkeypatch):
    monkeypatch.setenv(TRAIN_UNTIL, "2000.0")
    assert has_policy(run / "vpo") and not has_policy(run / "grpo")


def test_the_time_left_is_shared_by_those_that_wait(run, monkeypatch):
    profile = get_profile("smoke")
    assert training._stop_at(profile, run / "grpo") is None
    now = time.time()
    monkeypatch.setenv(TRAIN_UNTIL, str(now + 100))
    assert training._stop_at(profile, run / "grpo") == pytest.approx(now + 50, abs=2)  # GRPO and VPO
    (run / "grpo" / POLICY).mkdir(parents=True)
    assert training._stop_at(profile, run / "vpo") == pytest.approx(now + 100, abs=2)  # VPO alone
    monkeypatch.setenv(TRAIN_UNTIL, str(now - 100))
    assert training._stop_at(profile, run / "vpo") == pytest.approx(now, abs=2)


def test_a_new_policy_makes_its_old_answers_void(run):
    pools = run / "pools"
    pools.mkdir()
    names = ("sft", "sft_chain", "vpo", "vpo@0.7", "vpo_pool", "grpo")
    for name in names:
        (pools / f"{name}.json.gz").touch()
    _forget_pools(run / "vpo")
    assert sorted(path.name for path in pools.iterdir()) == sorted(
        f"{name}.json.gz" for name in names if name not in ("vpo", "vpo@0.7")
    )
    _forget_pools(run / "sft")
    assert {path.name for path in pools.iterdir()} == {"vpo_pool.json.gz", "grpo.json.gz"}


def test_looks_and_log_are_apart(run):
    (run / "vpo" / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    (run / "vpo" / "eval.jsonl").write_text('{"step": 2}\n')
    assert [entry["step"] for entry in read_log(run / "vpo")] == [1, 2]
    assert [entry["step"] for entry in read_log(run / "vpo", "eval.jsonl")] == [2]
