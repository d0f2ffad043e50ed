"""processes.py: what `vpo-lab run` tells its kernels, and who is one of several processes."""

import os

import pytest

from vpo_lab.config import get_profile
from vpo_lab.processes import LAUNCHER, SESSION, Session, rank, session, stand_alone, without_launcher, world_size
from vpo_lab.runs import open_run


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No variable of a session or a launcher, and whatever a test sets is taken back."""
    for name in (SESSION, *LAUNCHER):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_session_is_handed_on_by_one_variable(monkeypatch):
    assert session() == Session()
    told = Session(task_folder="/a b/é", until=12.5, headless=True)
    ((name, value),) = told.environment().items()
    monkeypatch.setenv(name, value)
    assert session() == told


SCHEDULER = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_a_job_schedulers_variables_do_not_make_a_reader_one_of_several(tmp_path, monkeypatch):
    for name, value in SCHEDULER.items():
        monkeypatch.setenv(name, value)
    assert "RANK" not in without_launcher(os.environ) and "PATH" in without_launcher(os.environ)
    open_run(get_profile("smoke"), 0, tmp_path)
    assert (world_size(), rank()) == (1, 0) and "MASTER_PORT" not in os.environ


def test_a_launcher_does(monkeypatch):
    for name, value in {**SCHEDULER, "TORCHELASTIC_RUN_ID": "a"}.items():
        monkeypatch.setenv(name, value)
    stand_alone()
    assert (world_size(), rank()) == (2, 1)
