"""What needs a GPU: skipped as a whole, with the reason, where torch sees none.

`--need gpu` makes every such skip a failure. VPO_LAB_GPU=cpu runs what plain transformers can do with a small model on
a CPU; VPO_LAB_GPU=small takes the small model on a GPU too.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu_measures import add_entry, card_here, entry_of, planned_bytes, record_path
from gpu_model import EVALUATION, ON_CPU, profile_here, sampling_changes, shape_here
from plan import plan
from small_qwen3 import copy_rows
from toolrl_rows import write_parquet

from vpo_lab.config import Profile
from vpo_lab.train.gpu import NEEDS

HERE = Path(__file__).parent
JOB_SECONDS = 3600  # a hung worker ends the test, not the night
PER_PROMPT = 256  # rollouts to each short prompt, see gpu_model.sampling_changes
SAMPLES = 2000  # of evaluation's sampling, to each short prompt
BACKENDS = ("transformers", "vllm", "unsloth")


def pytest_collection_modifyitems(config, items):
    ours = [item for item in items if HERE in item.path.parents]
    if not ours or ON_CPU or torch.cuda.is_available():
        return
    reason = "torch sees no CUDA device: run on a GPU machine, or VPO_LAB_GPU=cpu for what a CPU can do"
    if "gpu" in config.getoption("need"):
        raise pytest.UsageError(f"--need gpu, but {reason}")
    for item in ours:
        item.add_marker(pytest.mark.skip(reason=reason))


def missing(backend: str) -> str:
    """Why this machine cannot load the backend; "" if it can."""
    if ON_CPU and backend in NEEDS:
        return "needs a CUDA device"
    lacking = [package for package in NEEDS.get(backend, ()) if find_spec(package) is None]
    return f"{lacking[0]} is not installed: pip install -e '.[gpu]'" if lacking else ""


@pytest.fixture(params=BACKENDS, scope="session")
def backend(request) -> str:
    """Every backend that this machine can load, the others skipped."""
    if reason := missing(request.param):
        is_needed = "gpu" in request.config.getoption("need")
        (pytest.fail if is_needed else pytest.skip)(f"backend {request.param}: {reason}")
    return request.param


@pytest.fixture(scope="session")
def root(request, tmp_path_factory) -> Path:
    """A folder with rows in data/: ToolRL's, or where there are none, or on a CPU, shorter ones of our own."""
    root = tmp_path_factory.mktemp("gpu")
    (root / "data").mkdir()
    try:
        real = None if ON_CPU else request.getfixturevalue("toolrl_dir")
    except pytest.skip.Exception:
        real = None
    if real is not None:
        copy_rows(real, root / "data")
    else:
        for split in ("train", "test"):
            write_parquet(root / "data" / f"{split}.parquet")
    return root


class Lab:
    """Runs each job once in a process of its own and remembers what it found."""

    def __init__(self, root: Path):
        self.root, self.shape, self.done = root, shape_here(), {}
        prompts = {"policy.max_prompt_tokens": 256} if ON_CPU else {}
        self.longest_settings = prompts | {"rl.steps": 1, "evaluation.every": 0, "evaluation.held_out": 0}
        self.machine = self.need(self.run("build", "transformers", longest=self.longest_settings), "versions")
        total = self.machine["total_bytes"]
        self.card = card_here(self.machine["device"], total) if total else None

    def profile(self, backend: str, data: str, changes: dict | None = None) -> Profile:
        return profile_here(self.root / "model", self.root / data, backend, changes)

    def run(self, job: str, backend: str, data: str = "data", settings: dict | None = None, **more) -> dict:
        """What a job found; with "error" and the end of its "output" where it failed."""
        key = (job, backend, more.get("sampled", ""))
        if key not in self.done:
            folder = self.root / "-".join((job, backend, str(len(self.done))))
            folder.mkdir()
            spec = {"job": job, "backend": backend, "root": self.root, "folder": folder / "run"}
            spec |= {"out": folder / "out.json", "data": self.root / data, "settings": settings or {}, **more}
            (folder / "spec.json").write_text(json.dumps(spec, default=str))
            self.done[key] = {"out": folder / "out.json", **work(folder)}
        return self.done[key]

    def need(self, found: dict, name: str) -> dict:
        """The found job itself, if it came as far as `name`; else the test fails with what the job printed last."""
        if name not in found:
            pytest.fail(
                f"the worker ended before {name!r} was there: {found['ended']}\n"
                f"{found['out'].parent}\n{found['output']}",
                pytrace=False,
            )
        return found

    # --- Jobs -----------------------------------------------------------------------------

    def micro(self, profile: Profile) -> int:
        """The micro batch that `vpo-lab plan` names for this card, 0 if nothing fits; the profile's on a CPU."""
        return plan(profile, self.shape, self.card).micro if self.card else profile.rl.micro_rollouts

    def stage(self, backend: str, stage: str) -> dict:
        """What a stage of the job "stages" left; it is added to the record."""
        profile = self.profile(backend, "data")
        micro = min(self.micro(profile) or 1, profile.rl.micro_rollouts)
        found = self.run("stages", backend, settings={"rl.micro_rollouts": micro})
        return self.noted(backend, stage, self.need(found, stage)[stage], profile, micro)

    def longest(self, backend: str) -> dict:
        """What a step of the longest prompts and answers left, with the micro batch that is planned for this card."""
        answers = {} if ON_CPU else {"policy.max_answer_tokens": 512}
        settings = self.longest_settings | answers
        profile = self.profile(backend, "longest", settings)
        micro = self.micro(profile)
        if not micro:
            pytest.skip(f"the plan for {self.card.name.strip()} says that not one longest rollout fits with {backend}")
        found = self.run("longest", backend, "longest", settings | {"rl.micro_rollouts": micro})
        return self.noted(backend, "longest", self.need(found, "longest")["longest"], profile, micro)

    def noted(self, backend: str, stage: str, seen: dict, profile: Profile, micro: int) -> dict:
        """The same with the plan's figure, put on record."""
        if self.card:
            seen["planned_bytes"] = planned_bytes(profile, self.shape, self.card, self.machine["total_bytes"], micro)
        machine = {
            "device": self.machine["device"],
            "total_bytes": self.machine["total_bytes"],
            "card": self.card.name if self.card else None,
            "bandwidth_gb_per_second": self.card.bandwidth if self.card else None,
            "versions": self.machine["versions"],
            "shape": self.shape.name,
            "parameters": self.machine["parameters"],
        }
        add_entry(record_path(), machine, entry_of(profile, self.shape, self.card, backend, stage, seen))
        return seen

    def sampled(self, backend: str) -> SimpleNamespace:
        """Samples of a backend and what plain transformers says of the same prompts and rollouts."""
        settings = sampling_changes(PER_PROMPT)
        found = self.run("sampling", backend, "short", settings, samples=SAMPLES, **EVALUATION)
        self.need(found, "prompts")
        probabilities = found["out"].with_name("probabilities.npz")
        more = {"sampled": str(found["out"]), "probabilities": str(probabilities)}
        exact = self.run("exact", "transformers", "short", settings, **more)
        return SimpleNamespace(found=found, exact=self.need(exact, "rollouts"), probabilities=probabilities)


def work(folder: Path) -> dict:
    """Run the worker on a spec; what it reported, and the end of what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one GPU is measured
    own = (HERE.parents[1], HERE.parent, HERE.parents[1] / "tools")
    environment |= {
        "PYTHONPATH": os.pathsep.join([*map(str, own), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi counts
        "UNSLOTH_COMPILE_LOCATION": str(folder.parent / "unsloth_compiled_cache"),
    }
    with open(folder / "output.txt", "w") as output:
        command = [sys.executable, str(HERE / "gpu_worker.py"), str(folder / "spec.json")]
        try:
            done = subprocess.run(
                command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT, timeout=JOB_SECONDS
            )
            ended = f"exit status {done.returncode}"  # negative: the number of a signal
        except subprocess.TimeoutExpired:
            ended = f"not over after {JOB_SECONDS} s"
    out = folder / "out.json"
    found = json.loads(out.read_text()) if out.exists() else {}
    ended = found.get("error", ended)
    return {**found, "ended": ended, "output": (folder / "output.txt").read_text(errors="replace")[-6000:]}


@pytest.fixture(scope="session")
def lab(root) -> Lab:
    """The model is built and the machine known."""
    return Lab(root)
