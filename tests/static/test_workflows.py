"""The CI workflows: what protects secrets, runners and results. Syntax is left to actionlint (`make workflows`)."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from test_pins import EXTRAS, locked

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".github" / "workflows"
# As GitHub reads it: text stays text, or `on:` would be true.
WORKFLOWS = {path.stem: yaml.load(path.read_text(), Loader=yaml.BaseLoader) for path in sorted(FOLDER.iterdir())}
GPU = WORKFLOWS["gpu"]["jobs"]["gpu"]


def steps(name: str) -> list[dict]:
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"]]


def scripts(name: str) -> list[str]:
    return [step["run"] for step in steps(name) if "run" in step]


def gpu_step(part: str) -> dict:
    """The step of the GPU workflow that uses or runs this."""
    (step,) = [step for step in GPU["steps"] if part in step.get("uses", "") + step.get("run", "")]
    return step


@pytest.fixture(params=WORKFLOWS)
def name(request) -> str:
    return request.param


def test_jobs_may_only_read_and_end_by_themselves(name):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    for job in WORKFLOWS[name]["jobs"].values():
        assert "permissions" not in job and int(job["timeout-minutes"]) <= 1560
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] == "false"


def test_actions_are_githubs_own_at_a_pinned_major(name):
    used = [step["uses"] for step in steps(name) if "uses" in step]
    assert used and [action for action in used if not re.fullmatch(r"actions/[\w-]+@v\d+", action)] == []


def test_no_expression_stands_in_a_script(name):
    """Text from an event or an input would be run as code: it comes by `env` instead."""
    assert [script for script in scripts(name) if "${{" in script] == []


def test_no_code_of_a_fork_runs_with_secrets_or_on_the_gpu_runner(name):
    assert "pull_request_target" not in WORKFLOWS[name]["on"]
    condition = GPU["if"]
    assert "github.event.pull_request.head.repo.full_name == github.repository" in condition
    assert "contains(github.event.pull_request.labels.*.name, 'gpu')" in condition
    by_hand, weekly, pull_request = condition.split("||", maxsplit=2)
    assert "workflow_dispatch" in by_hand and "schedule" in weekly
    # Both conditions hold together, for the one remaining event.
    assert pull_request.strip().startswith("(github.event_name == 'pull_request' &&")
    assert pull_request.count("||") == 1 and "(github.event.action != 'labeled' ||" in pull_request


def test_the_only_secret_goes_to_the_only_step_that_needs_it():
    secret = [step for name in WORKFLOWS for step in steps(name) if "secrets." in str(step)]
    assert [list(step["env"]) for step in secret] == [["WANDB_API_KEY"]] and "vpo-lab run" in secret[0]["run"]


def test_scripts_name_targets_and_files_that_exist(name):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for script in scripts(name):
        for words in re.findall(r"^\s*make ([\w ]+)(?= |$)", script, re.MULTILINE):
            assert set(words.split()) <= targets | {"LOCK"}, words
    hashed = re.findall(r"'([\w/]+\.\w+)'", gpu_step("actions/cache@")["with"]["key"])
    assert [path for path in hashed if not (ROOT / path).exists()] == []


def test_the_trainer_is_tried_on_trls_oldest_locked_and_newest_version():
    oldest, pinned, newest = WORKFLOWS["cpu"]["jobs"]["trl"]["strategy"]["matrix"]["trl"]
    (bounds,) = [line for line in EXTRAS["train"] if line.startswith("trl")]
    assert f">={oldest}".removesuffix(".0") in bounds and pinned == locked("course")["trl"]
    assert f"TRL ?= {newest}\n" in (ROOT / "Makefile").read_text()


def test_gpu_runs_never_share_a_runner_and_are_not_cancelled():
    label = "${{ inputs.runner || vars.GPU_RUNNER || 'gpu' }}"
    assert GPU["runs-on"] == label
    assert GPU["concurrency"] == {"group": f"gpu-{label}", "cancel-in-progress": "false"}


def test_gpu_tests_cannot_pass_by_skipping():
    assert gpu_step("make gpu")["env"]["PYTEST_ADDOPTS"] == "--need gpu"


def test_only_a_run_by_hand_is_a_long_one():
    assert GPU["env"]["SHORT"] == "${{ github.event_name != 'workflow_dispatch' && 'yes' || '' }}"
    assert "github.event_name == 'workflow_dispatch' && '20' || '1'" in GPU["env"]["MAX_HOURS"]


def test_gpu_settings_of_the_short_run_exist():
    from vpo_lab.cli import assignments
    from vpo_lab.config import PROFILES, get_profile

    profiles = WORKFLOWS["gpu"]["on"]["workflow_dispatch"]["inputs"]["profile"]
    assert set(profiles["options"]) <= set(PROFILES)
    short = re.findall(r"settings\+=\((.*)\)", gpu_step("vpo-lab run")["run"])
    words = [word for line in short for word in shlex.split(line)]
    assert get_profile(profiles["default"], assignments(words, "--set")).rl.steps == 4


def test_gpu_keeps_its_results_whatever_happens_and_no_checkpoints():
    minutes = [int(step["timeout-minutes"]) for step in GPU["steps"] if "run" in step]
    assert sum(minutes) <= int(GPU["timeout-minutes"])
    step, run = gpu_step("actions/upload-artifact@"), GPU["env"]["RUN"]
    assert step["if"] == "always()" and step["with"]["include-hidden-files"] == "true"
    kept = step["with"]["path"].split()
    assert {f"{run}/*.ipynb", f"{run}/.*.ipynb", f"{run}/summary.json", f"{GPU['env']['LOGS']}/"} <= set(kept)
    assert {f"{run}/*/policy/", f"{run}/pools/"} <= set(kept)  # what was paid for
    assert not [path for path in kept if "checkpoint" in path or path.rstrip("/") == run]


@pytest.mark.parametrize("file", [f"{name}.yml" for name in WORKFLOWS])
def test_actionlint_finds_nothing(file):
    command = os.environ.get("ACTIONLINT") or shutil.which("actionlint")
    if not command:
        pytest.skip("no actionlint: `make workflows` runs it by npx, or set ACTIONLINT to a command that lints a file")
    done = subprocess.run([*shlex.split(command), str(FOLDER / file)], capture_output=True, text=True, timeout=300)
    # npm's wrapper is content where it found no file.
    assert done.returncode == 0 and "No workflow files" not in done.stdout, done.stdout + done.stderr
