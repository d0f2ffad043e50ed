"""The package as pip installs it: outside a checkout, with the base's packages alone or with those of an extra."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import vpo_lab
from vpo_lab.course import doctor

# What `pip install vpo-lab` brings: numpy, scipy, moocore and what they need. All other packages are hidden.
BASE = ("numpy", "scipy", "moocore", "cffi", "_cffi_backend", "platformdirs", "pycparser", "vpo_lab")
HIDE = f"""
import sys
from importlib.metadata import packages_distributions

hidden = packages_distributions().keys() - {{*{BASE!r}, *sys.argv[1].split(",")}}

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

if sys.argv[1] != "all":
    sys.meta_path.insert(0, Hidden())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the package and nothing else of the repository."""
    folder = tmp_path_factory.mktemp("site")
    source = Path(vpo_lab.__file__).parent
    shutil.copytree(source, folder / "vpo_lab", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(site: Path, code: str, also: str = "", *arguments: str) -> subprocess.CompletedProcess:
    """Run the code in a process that sees the base and the packages in `also` ("all": any), in the folder."""
    command = [sys.executable, "-c", f"{HIDE}\n{code}", also, *arguments]
    environment = {"PYTHONPATH": str(site), "PATH": "", "HOME": str(site)}
    return subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, timeout=120)


def test_the_base_is_enough_for_the_method_and_for_the_set_reward(site):
    done = run(
        site,
        "import numpy, vpo_lab\n"
        "from vpo_lab import METHODS, SetReward\n"
        "for method in (METHODS['grpo'], METHODS['vpo']):\n"
        "    m = 3 if method.multi_answer else 1\n"
        "    advantages = method.advantages(numpy.random.rand(8, m, 2), 4, numpy.random.default_rng(0))\n"
        "    assert len(advantages) == 8\n"
        "long = SetReward([lambda completions, **_: [min(len(c), 9) / 9 for c in completions]] * 2, candidates=2)\n"
        "print(long(prompts=['a'], completions=['<answer 1>abc</answer 1>']), vpo_lab.__file__)",
    )
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stdout


CLI = "import sys; sys.argv[1:2] = []; from vpo_lab.cli import main; main()"


def test_the_command_line_without_its_packages_says_what_to_install(site):
    done = run(site, CLI, "", "doctor")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "pip install 'vpo-lab[course]'" in done.stderr


@pytest.mark.parametrize("command", [["run"], ["train", "sft"]])
def test_a_command_without_its_package_is_one_line(site, command):
    done = run(site, CLI, "typer,click,typing_extensions,shellingham,annotated_doc", *command)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("command", ["run", "explorer"])
def test_what_needs_a_clone_says_so_in_one_line(site, command):
    done = run(site, CLI, "all", command)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_outside_a_clone_the_doctor_does_not_promise_a_run(site):
    done = run(site, CLI, "all", "doctor")
    assert done.returncode == 1 and "can run here" not in done.stdout, done.stderr
    assert "notebooks" in done.stdout.splitlines()[-1]


# --- The doctor -------------------------------------------------------------------------------


def test_an_extra_brings_those_that_it_names():
    course, train = ({r.name for r in doctor.needed(extra)} for extra in ("course", "train"))
    assert {"numpy", "scipy", "moocore", "torch", "trl"} <= train < course and "papermill" in course


def test_a_package_out_of_range_is_named_with_its_range_and_version(monkeypatch):
    wanted = [Requirement("numpy<1"), Requirement("no-such-package>=3"), Requirement("scipy>=1")]
    monkeypatch.setattr(doctor, "needed", lambda extra: wanted)
    what, state, finding = doctor.packages("train")
    assert (what, state) == ("packages", doctor.FAIL)
    assert "numpy<1 (" in finding and "no-such-package>=3 (absent)" in finding and "scipy" not in finding


def test_a_kernel_of_another_python_is_told(tmp_path, monkeypatch):
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text('{"argv": ["/opt/old/bin/python", "-m", "ipykernel"], "display_name": "old"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    rows = {what: (state, finding) for what, state, finding in doctor.checks()}
    assert rows["kernel"][0] == doctor.WARN and "/opt/old/bin/python" in rows["kernel"][1]
