"""The CI workflows: their structure always, and actionlint over them where there is one (`make workflows`)."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".github" / "workflows"
NAMES = ["cpu", "gpu"]
# As GitHub reads it: text stays text, or `on:` would be true.
WORKFLOWS = {path.stem: yaml.load(path.read_text(), Loader=yaml.BaseLoader) for path in sorted(FOLDER.glob("*.yml"))}
BROKEN = """\
on: push
jobs:
  one:
    runs-on: ubuntu-latest
    needs: nobody
    steps:
      - run: echo ${{ github.nothing }}
      - uses: actions/checkout@v4
        with:
          no-such-input: 1
"""


def steps(name: str) -> list[dict]:
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"]]


def scripts(name: str) -> list[str]:
    return [step["run"] for step in steps(name) if "run" in step]


def uses(name: str, action: str) -> dict:
    """The step that uses this action."""
    (step,) = [step for step in steps(name) if step.get("uses", "").startswith(f"{action}@")]
    return step


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


def test_there_are_these_and_no_others():
    assert sorted(WORKFLOWS) == NAMES
    assert sorted(path.name for path in FOLDER.iterdir()) == [f"{name}.yml" for name in NAMES]


# --- Both -------------------------------------------------------------------------------------


def test_jobs_may_only_read_and_end_by_themselves(name):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    for job in WORKFLOWS[name]["jobs"].values():
        assert "permissions" not in job
        assert int(job["timeout-minutes"]) <= 1560
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] == "false"


def test_actions_are_githubs_own_at_a_pinned_major(name):
    used = [step["uses"] for step in steps(name) if "uses" in step]
    assert used and [action for action in used if not re.fullmatch(r"actions/[\w-]+@v\d+", action)] == []


def test_no_expression_stands_in_a_script(name):
    """Text from an event or an input would be run as code: it comes by `env` instead."""
    assert [script for script in scripts(name) if "${{" in script] == []


def test_pull_request_target_is_not_used(name):
    """It would run a fork's code with this repository's secrets."""
    assert "pull_request_target" not in WORKFLOWS[name]["on"]


def test_scripts_name_targets_and_files_that_exist(name):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for script in scripts(name):
        assert set(re.findall(r"^\s*make (\w+)", script, re.MULTILINE)) <= targets
    hashed = re.findall(r"'([\w/]+\.\w+)'", uses(name, "actions/cache")["with"]["key"]) if name == "gpu" else []
    assert [path for path in hashed if not (ROOT / path).exists()] == []


# --- cpu.yml ----------------------------------------------------------------------------------


def test_cpu_tests_every_pull_request_with_both_pythons():
    workflow = WORKFLOWS["cpu"]
    assert set(workflow["on"]) == {"pull_request", "push"} and workflow["on"]["push"] == {"branches": ["main"]}
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert uses("cpu", "actions/setup-python")["with"]["python-version"] == "${{ matrix.python }}"
    (test,) = [step for step in job["steps"] if step.get("run") == "make test"]
    assert "if" not in test and "continue-on-error" not in test


def test_cpu_ends_the_run_of_an_older_push():
    concurrency = WORKFLOWS["cpu"]["concurrency"]
    assert "github.ref" in concurrency["group"]
    assert concurrency["cancel-in-progress"] == "${{ github.event_name == 'pull_request' }}"


def test_cpu_lints_the_workflows_and_rehearses_the_tests_for_a_gpu():
    assert "make workflows" in scripts("cpu")
    (rehearsal,) = [step for step in steps("cpu") if step.get("run") == "make gpu"]
    assert rehearsal["env"] == {"VPO_LAB_GPU_TESTS_ON_CPU": "1"}


# --- gpu.yml ----------------------------------------------------------------------------------


def test_gpu_starts_by_hand_weekly_and_for_labelled_pull_requests():
    on = WORKFLOWS["gpu"]["on"]
    assert set(on) == {"workflow_dispatch", "schedule", "pull_request"}
    assert set(on["workflow_dispatch"]["inputs"]) == {"runner", "max_hours", "profile", "settings"}
    (schedule,) = on["schedule"]
    minute, hour, day, month, weekday = schedule["cron"].split()
    assert minute.isdigit() and hour.isdigit() and (day, month) == ("*", "*") and weekday.isdigit()
    assert "labeled" in on["pull_request"]["types"]


def test_gpu_runs_no_code_of_forks_and_none_without_the_label():
    condition = WORKFLOWS["gpu"]["jobs"]["gpu"]["if"]
    assert "github.event.pull_request.head.repo.full_name == github.repository" in condition
    assert "contains(github.event.pull_request.labels.*.name, 'gpu')" in condition
    by_hand, weekly, pull_request = condition.split("||", maxsplit=2)
    assert "workflow_dispatch" in by_hand and "schedule" in weekly
    # Both conditions hold together, for the one remaining event.
    assert pull_request.strip().startswith("(github.event_name == 'pull_request' &&")
    assert pull_request.count("||") == 1 and "(github.event.action != 'labeled' ||" in pull_request


def test_gpu_runs_never_share_a_runner_and_are_not_cancelled():
    job = WORKFLOWS["gpu"]["jobs"]["gpu"]
    label = "${{ inputs.runner || vars.GPU_RUNNER || 'gpu' }}"
    assert job["runs-on"] == label
    assert job["concurrency"] == {"group": f"gpu-{label}", "cancel-in-progress": "false"}


def test_gpu_does_everything_in_order():
    text = "\n".join(step.get("run", step.get("uses", "")) for step in steps("gpu"))
    wanted = ["actions/checkout@", "actions/setup-python@", "actions/cache@", "make setup", '".[gpu,dev]"']
    wanted += ["vpo-lab doctor", "vpo-lab plan", "make gpu", "vpo-lab run", "vpo-lab figures"]
    wanted += ["actions/upload-artifact@"]
    places = [text.find(part) for part in wanted]
    assert -1 not in places and places == sorted(places), dict(zip(wanted, places, strict=True))
    assert uses("gpu", "actions/setup-python")["with"]["python-version"] == "3.11"


def test_gpu_tests_cannot_pass_by_skipping():
    (step,) = [step for step in steps("gpu") if "make gpu" in step.get("run", "")]
    assert step["env"]["VPO_LAB_REQUIRE_GPU"] == "1"


def test_gpu_has_the_hours_and_profile_of_the_inputs_and_the_key_only_where_it_is_needed():
    environment = WORKFLOWS["gpu"]["jobs"]["gpu"]["env"]
    assert environment["PROFILE"] == "${{ inputs.profile || 'qwen3-1.7b' }}"
    assert environment["MAX_HOURS"].startswith("${{ inputs.max_hours ||")
    (run,) = [script for script in scripts("gpu") if "vpo-lab run" in script]
    assert '--profile "$PROFILE"' in run and '--max-hours "$MAX_HOURS"' in run
    secret = [step for step in steps("gpu") if "secrets." in str(step)]
    assert [list(step["env"]) for step in secret] == [["WANDB_API_KEY"]] and "vpo-lab run" in secret[0]["run"]


def test_gpu_profiles_and_settings_of_the_short_run_exist():
    from vpo_lab.cli import _assignments
    from vpo_lab.config import PROFILES, get_profile

    profiles = WORKFLOWS["gpu"]["on"]["workflow_dispatch"]["inputs"]["profile"]
    assert set(profiles["options"]) <= set(PROFILES) and profiles["default"] in profiles["options"]
    (run,) = [script for script in scripts("gpu") if "vpo-lab run" in script]
    short = [word for words in re.findall(r"settings\+=\((.*)\)", run) for word in shlex.split(words)]
    assert get_profile(profiles["default"], _assignments(short, "--set")).rl.steps == 4


def test_gpu_steps_fit_into_the_time_of_the_job():
    job = WORKFLOWS["gpu"]["jobs"]["gpu"]
    minutes = [int(step["timeout-minutes"]) for step in job["steps"] if "timeout-minutes" in step]
    assert len(minutes) == len(scripts("gpu")) and sum(minutes) <= int(job["timeout-minutes"])


def test_gpu_keeps_its_results_whatever_happens():
    step = uses("gpu", "actions/upload-artifact")
    assert step["if"] == "always()" and step["with"]["include-hidden-files"] == "true"
    environment = WORKFLOWS["gpu"]["jobs"]["gpu"]["env"]
    kept = step["with"]["path"].split()
    run, logs = environment["RUN"], environment["LOGS"]
    wanted = {f"{run}/*.ipynb", f"{run}/.*.ipynb", f"{run}/figures/", f"{run}/summary.json", f"{run}/*/log.jsonl"}
    assert wanted | {f"{logs}/"} <= set(kept)
    assert not [path for path in kept if "checkpoint" in path or path.rstrip("/") == run]
    # The record of the GPU tests lies among the logs.
    (tests,) = [step for step in steps("gpu") if "make gpu" in step.get("run", "")]
    assert tests["env"]["VPO_LAB_GPU_RECORD"] == logs


# --- actionlint -------------------------------------------------------------------------------


def actionlint(path: Path) -> subprocess.CompletedProcess:
    """actionlint on one file; skips, with the reason, where there is none."""
    command = os.environ.get("ACTIONLINT") or shutil.which("actionlint")
    if not command:
        pytest.skip("no actionlint: `make workflows` runs it by npx, or set ACTIONLINT to a command that lints a file")
    done = subprocess.run([*shlex.split(command), str(path)], capture_output=True, text=True, timeout=300)
    # npm's wrapper is content where it found no file.
    assert "No workflow files" not in done.stdout, done.stdout
    return done


@pytest.mark.parametrize("file", [f"{name}.yml" for name in NAMES])
def test_actionlint_finds_nothing(file):
    done = actionlint(FOLDER / file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_finds_what_is_broken(tmp_path):
    """Else its silence would say nothing."""
    path = tmp_path / "broken.yml"
    path.write_text(BROKEN)
    done = actionlint(path)
    assert done.returncode != 0
    for found in ('"nobody"', '"nothing"', '"no-such-input"'):
        assert found in done.stdout, done.stdout + done.stderr
