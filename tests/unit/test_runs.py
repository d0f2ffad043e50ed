"""runs.py: run folders are not mixed and can be rescued, damaged checkpoints are passed over, one process at a time."""

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vpo_lab import runs
from vpo_lab.config import get_profile
from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_json
from vpo_lab.processes import Session
from vpo_lab.runs import (
    CHECKPOINT_SEAL,
    Run,
    commit,
    last_good_checkpoint,
    only_one_in,
    open_run,
    read_log,
    seal_checkpoint,
)


def line_of(caught) -> str:
    text = str(caught.value)
    assert text and "\n" not in text
    return text


# --- Paths ------------------------------------------------------------------------------------


def test_a_run_knows_its_paths_and_is_one(tmp_path):
    run = Run(tmp_path / "a")
    assert run / "x" == Path(run) / "x" == tmp_path / "a" / "x" and os.fspath(run) == str(run)
    assert run.pool("vpo") == run / "pools" / "vpo.json.gz" and run.summary.parent == run.folder
    stage = run.stage("vpo")
    assert stage.name == "vpo" and stage.policy.parent == stage.checkpoints.parent == run / "vpo"
    assert run.stage("sft").stage("sft_single").folder == run / "sft" / "sft_single"


def test_without_a_name_the_run_stands_under_its_profile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_run(SMOKE, 0).folder == tmp_path / "runs" / "smoke"
    (tmp_path / "vpo_lab").mkdir()
    (tmp_path / "vpo_lab" / "__init__.py").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert open_run(SMOKE, 0).folder == tmp_path / "runs" / "smoke"


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_run(SMOKE, 0, "~/mine").folder == tmp_path / "mine"


# --- Opening ----------------------------------------------------------------------------------

SMOKE = get_profile("smoke")
STEADY = get_profile("smoke", {"rl.schedule": "constant_with_warmup"})


def test_a_run_is_taken_up_again_with_the_same_settings(tmp_path):
    run = open_run(SMOKE, 3, tmp_path / "runs" / "a")
    before = run.manifest.read_bytes()
    assert open_run(get_profile("smoke"), 3, str(run)) == run
    assert run.manifest.read_bytes() == before


@pytest.mark.parametrize(
    "overrides",
    [
        {"rl.micro_rollouts": 4, "sft.micro_rows": 8},
        {"policy.gpu_share": 0.9, "policy.vllm_server": "http://127.0.0.1:8000"},
        {"evaluation.batch": 7, "rl.checkpoint_every": 1, "track": True, "minutes": "soon"},
    ],
)
def test_what_does_not_change_results_may_differ(tmp_path, overrides):
    run = open_run(SMOKE, 0, tmp_path)
    assert open_run(get_profile("smoke", overrides), 0, tmp_path) == run


@pytest.mark.parametrize(
    "profile, seed, names",
    [
        (get_profile("tiny"), 0, ["profile", "smoke", "tiny"]),
        (SMOKE, 1, ["seed 0", "1"]),
        (get_profile("smoke", {"rl.alpha": 2.5}), 0, ["rl.alpha 1.0", "2.5"]),
        (get_profile("smoke", {"sft.steps": 61, "methods": ["grpo"]}), 5, ["sft.steps 60", "61", "methods", "seed"]),
        (get_profile("smoke", {"evaluation.bootstrap": 99}), 0, ["evaluation.bootstrap 200", "99"]),
        (get_profile("smoke", {"rl.steps": 3}), 0, ["rl.steps 4", "3"]),  # it may grow, not shrink
    ],
)
def test_a_run_of_other_settings_is_refused_with_both_values(tmp_path, profile, seed, names):
    run = open_run(SMOKE, 0, tmp_path)
    before = run.manifest.read_bytes()
    with pytest.raises(LabError) as caught:
        open_run(profile, seed, tmp_path)
    message = line_of(caught)
    assert all(name in message for name in [str(tmp_path), "--run-dir", *names]) and "delete" not in message
    assert ("rl.alpha" in message) == ("rl.alpha 1.0" in names)  # nothing that is the same
    assert run.manifest.read_bytes() == before


def test_a_run_of_another_version_is_refused(tmp_path):
    run = open_run(SMOKE, 0, tmp_path)
    write_json(run.manifest, {**read_json(run.manifest), "version": "0.0.1"})
    with pytest.raises(LabError, match=r"version '0\.0\.1'"):
        open_run(SMOKE, 0, tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '"text"', '{"profile": "smoke"', "{}", "old"])
def test_a_manifest_that_does_not_say_everything_is_one_line(tmp_path, content):
    """A damaged one, or one of a version that kept a fingerprint only."""
    manifest = open_run(SMOKE, 0, tmp_path).manifest
    if content == "old":
        kept = read_json(manifest)
        kept["fingerprint"] = "0" * 12
        del kept["settings"]
        write_json(manifest, kept)
    else:
        manifest.write_text(content)
    with pytest.raises(LabError) as caught:
        open_run(SMOKE, 0, tmp_path)
    assert str(tmp_path) in line_of(caught)


def test_a_run_folder_that_cannot_be_one_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(LabError) as caught:
            open_run(SMOKE, 0, folder)
        assert str(folder) in line_of(caught)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_that_no_generator_takes_leaves_no_folder(tmp_path, seed):
    with pytest.raises(LabError, match="seed"):
        open_run(SMOKE, seed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- More steps -------------------------------------------------------------------------------


def trained(run: Run, *stages: str) -> None:
    for stage in stages:
        (run / stage / "checkpoints").mkdir(parents=True)
        run.stage(stage).policy.mkdir()


def more(profile, steps: int):
    return replace(profile, rl=replace(profile.rl, steps=steps))


def test_more_steps_let_finished_methods_continue(tmp_path):
    run = open_run(STEADY, 0, tmp_path)
    trained(run, "sft", "grpo")
    (run / "vpo" / "checkpoints").mkdir(parents=True)  # killed on its way
    assert open_run(more(STEADY, 9), 0, tmp_path) == run
    assert run.stage("sft").has_policy() and not run.stage("grpo").has_policy()
    assert run.stage("grpo").stopped["step"] == 4 and run.stage("vpo").stopped is None
    assert replace(run, until=1.0).stage("grpo").has_policy()  # no time left: it is evaluated as it is
    open_run(more(STEADY, 9), 0, tmp_path)
    with pytest.raises(LabError, match=r"rl\.steps 9, now 4"):
        open_run(STEADY, 0, tmp_path)


def test_where_learning_rates_depend_on_the_steps_they_grow_only_before_rl(tmp_path):
    run = open_run(SMOKE, 0, tmp_path)
    trained(run, "sft")
    open_run(more(SMOKE, 9), 0, tmp_path)
    trained(run, "vpo")
    with pytest.raises(LabError, match=r"rl\.steps 9, now 12.*rl\.schedule"):
        open_run(more(SMOKE, 12), 0, tmp_path)


# --- Stopped by the clock ---------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Run:
    """A run with a trained warmup, and VPO stopped by a clock that ran until 1000."""
    run = Run(tmp_path)
    trained(run, "sft", "vpo")
    run.stage("vpo").stop(3, 9, until=1000.0)
    return run


def test_a_stopped_stage_is_done_for_that_run_and_goes_on_in_the_next(run):
    assert run.stage("sft").has_policy() and not run.stage("grpo").has_policy()
    assert not run.stage("vpo").has_policy() and run.stage("vpo").stopped["step"] == 3
    later = replace(run, until=time.time() + 100)
    assert not later.stage("vpo").has_policy()
    run.stage("vpo").stop(4, 9, later.until)
    assert later.stage("vpo").has_policy()


def test_where_no_time_is_left_what_is_there_is_taken(run):
    late = replace(run, until=2000.0)
    assert late.stage("vpo").has_policy() and not late.stage("grpo").has_policy()


def test_the_time_left_is_shared_by_those_that_wait(run):
    assert run.stop_at(SMOKE.methods) is None
    now = time.time()
    hurried = replace(run, until=now + 100)
    assert hurried.stop_at(SMOKE.methods) == pytest.approx(now + 50, abs=5)  # GRPO and VPO
    trained(run, "grpo")
    assert hurried.stop_at(SMOKE.methods) == pytest.approx(now + 100, abs=5)  # VPO alone
    assert replace(run, until=now - 100).stop_at(SMOKE.methods) == pytest.approx(now, abs=5)


def test_kernels_are_told_the_time(tmp_path, monkeypatch):
    for name, value in Session(until=123.0).environment().items():
        monkeypatch.setenv(name, value)
    assert open_run(SMOKE, 0, tmp_path).stage("vpo").until == 123.0


def test_a_new_policy_makes_its_old_answers_void(run):
    names = ("sft", "sft_chain", "vpo", "vpo@0.7", "vpo_search", "grpo")
    run.pool("vpo").parent.mkdir()
    for name in names:
        run.pool(name).touch()
    run.stage("vpo").forget_pools()
    assert [name for name in names if run.pool(name).exists()] == ["sft", "sft_chain", "vpo_search", "grpo"]
    run.stage("sft").forget_pools()
    assert [name for name in names if run.pool(name).exists()] == ["vpo_search", "grpo"]


# --- Logs -------------------------------------------------------------------------------------


def test_logs_are_apart_and_a_line_cut_by_a_kill_is_skipped(run):
    stage = run.stage("vpo")
    assert stage.last_step() == 0
    (stage / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n{"st')
    (stage / "eval.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    assert run.log("vpo") == stage.log() == [{"step": 1}, {"step": 3}] and stage.last_step() == 3
    assert stage.eval_log() == [{"step": 2}, {"step": 4}]
    stage.forget_steps_after(2)
    assert stage.log() == [{"step": 1}] and stage.eval_log() == [{"step": 2}]
    with pytest.raises(LabError, match="sft"):
        read_log(run / "sft")


# --- One process at a time --------------------------------------------------------------------


def test_a_second_process_is_refused(tmp_path):
    with only_one_in(tmp_path), pytest.raises(LabError, match=str(tmp_path)), only_one_in(tmp_path):
        pass
    with only_one_in(tmp_path):
        pass


def test_the_lock_holds_between_processes(tmp_path):
    code = (
        f"from vpo_lab.runs import Run; from pathlib import Path\nwith Run(Path({str(tmp_path)!r})).lock(): print('in')"
    )
    with Run(tmp_path).lock():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "LabError" in done.stderr and not done.stdout


def test_a_file_system_that_cannot_lock_is_told_once_and_works(tmp_path, capsys):
    def no_flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    for _ in range(2):
        with only_one_in(tmp_path, flock=no_flock):
            pass
    assert capsys.readouterr().out.count(str(tmp_path)) == 1


@pytest.mark.parametrize("code", [errno.EWOULDBLOCK, errno.EAGAIN])
def test_only_a_taken_lock_is_in_use(tmp_path, code):
    def taken(file, operation):
        assert operation == fcntl.LOCK_EX | fcntl.LOCK_NB
        raise OSError(code, "taken")

    with pytest.raises(LabError, match="in use"), only_one_in(tmp_path, flock=taken):
        pass


def test_a_folder_of_somebody_else_is_one_line():
    """Root may write everywhere, so a process without privileges tries."""
    code = (
        "import os, sys; from pathlib import Path; from vpo_lab.errors import LabError; from vpo_lab.runs import Run\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try:\n  with Run(Path(sys.argv[1])).lock(): pass\nexcept LabError as error: print(error)"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may not even be entered
        os.chmod(folder, 0o555)
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]
    assert folder in done.stdout and done.stdout.count("\n") == 1


# --- Checkpoints ------------------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path) -> Path:
    """Three sealed checkpoints, at steps 50, 100 and 150."""
    for step in (50, 100, 150):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "inner").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"w" * 100)
        (folder / "inner" / "optimizer.pt").write_bytes(b"o" * 10)
        seal_checkpoint(folder)
    return tmp_path


DAMAGES = {
    "weights cut": lambda folder: (folder / "model.safetensors").write_bytes(b"w" * 50),
    "a file lost": lambda folder: (folder / "inner" / "optimizer.pt").unlink(),
    "no seal": lambda folder: (folder / CHECKPOINT_SEAL).unlink(),
    "seal cut": lambda folder: (folder / CHECKPOINT_SEAL).write_text('{"model'),
    "empty seal": lambda folder: (folder / CHECKPOINT_SEAL).write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_complaint(checkpoints, damage):
    assert last_good_checkpoint(checkpoints) == (checkpoints / "checkpoint-150", [])
    damage(checkpoints / "checkpoint-150")
    found, complaints = last_good_checkpoint(checkpoints)
    assert found == checkpoints / "checkpoint-100"
    assert len(complaints) == 1 and "checkpoint-150" in complaints[0]
    for step in (50, 100):
        damage(checkpoints / f"checkpoint-{step}")
    found, complaints = last_good_checkpoint(checkpoints)
    assert found is None and len(complaints) == 3


def test_steps_are_compared_as_numbers_and_other_names_ignored(checkpoints):
    for name in ("checkpoint-1000", "checkpoint-best", "other-2000"):
        (checkpoints / name).mkdir()
        (checkpoints / name / "model.safetensors").write_bytes(b"w")
        seal_checkpoint(checkpoints / name)
    assert last_good_checkpoint(checkpoints) == (checkpoints / "checkpoint-1000", [])
    assert last_good_checkpoint(checkpoints / "nowhere") == (None, [])


# --- The commit -------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A repository with a package folder in it, and one further down that belongs to somebody else's code."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for folder in (tmp_path / "pkg", tmp_path / "env" / "pkg"):
        folder.mkdir(parents=True)
        (folder / "a.py").write_text("1\n")
    for command in (
        ["init", "-q"],
        ["add", "pkg"],
        ["-c", "user.email=a@b", "-c", "user.name=n", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path


def test_the_commit_is_that_of_the_packages_own_repository(checkout, tmp_path_factory, monkeypatch):
    head = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert commit(checkout / "pkg") == head
    assert commit(checkout / "env" / "pkg") == ""  # installed into an environment inside of it
    assert commit(tmp_path_factory.mktemp("nowhere")) == ""
    other = tmp_path_factory.mktemp("other")
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as in a hook
    assert commit(checkout / "pkg") == head
    (checkout / "pkg" / "a.py").write_text("2\n")
    assert commit(checkout / "pkg") == head + "+"
    assert len(runs.versions()) > 5


# --- Several machines, and a stage that stands still ------------------------------------------


def test_a_run_folder_that_not_all_processes_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SHARED_SECONDS", 0.1)
    monkeypatch.setattr(runs, "world_size", lambda: 2)
    monkeypatch.setattr(runs, "broadcast", lambda value: value)
    monkeypatch.setattr(runs, "wait_for_all", lambda: None)
    monkeypatch.setattr(runs, "gather", lambda mine: ([True, *mine], slice(1, 2)))
    monkeypatch.setattr(runs, "rank", lambda: 1)
    with pytest.raises(LabError, match=r"processes \[1\] do not see") as caught:
        runs.check_shared(Run(tmp_path))
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(runs, "rank", lambda: 0)  # it writes the file itself
    runs.check_shared(Run(tmp_path))


def test_a_sampling_stands_still_when_no_answer_comes_and_leaves_nothing_behind(tmp_path):
    stage, now = Run(tmp_path).stage("sft"), time.time()
    sign = stage / runs.SAMPLING
    with stage.sampling() as beat:
        assert sign.exists() and not stage.stands_still(now - 200, 1)
        os.utime(sign, (now - 120, now - 120))
        assert stage.stands_still(now - 200, 1)
        assert not stage.stands_still(now - 100, 1)  # of a process before this one
        beat()
        assert not stage.stands_still(now - 200, 1)
    assert not sign.exists() and not stage.stands_still(0, 1)


def test_a_stage_stands_still_when_its_log_does_until_it_has_a_policy(tmp_path):
    stage, now = Run(tmp_path).stage("vpo"), time.time()
    assert not stage.stands_still(0, 1)  # not begun: it loads, or samples
    stage.folder.mkdir()
    for name in (runs.LOG, runs.EVAL_LOG):
        (stage / name).touch()
        os.utime(stage / name, (now - 120, now - 120))
    assert stage.stands_still(now - 200, 1) and not stage.stands_still(now - 200, 3)
    assert not stage.stands_still(now - 100, 1)  # of an earlier start
    assert not stage.stands_still(now - 200, 0)  # no limit
    os.utime(stage / runs.EVAL_LOG)  # a look
    assert not stage.stands_still(now - 200, 1)
    os.utime(stage / runs.EVAL_LOG, (now - 120, now - 120))
    stage.policy.mkdir()
    os.utime(stage.policy, (now - 150, now - 150))  # an earlier one: rl.steps has grown
    assert stage.stands_still(now - 200, 1)
    os.utime(stage.policy, (now - 110, now - 110))
    stage.stop(1, 2, until=now)
    assert not stage.stands_still(now - 200, 1)  # it ended, here by the clock
