"""Put a policy into OpenEvolve: one iteration is one candidate, whatever M is, and no program runs outside the sandbox.

OpenEvolve chooses parents and keeps the programs. Its client here is ours, in its own worker process: it asks the
policy, puts the answer into the parent, has the task evaluate the child, and notes every candidate in a file. Written
after the source of OpenEvolve 0.4.0; what matters there:

* Every request to a server carries one seed, made from `random_seed`. Our client gives each a seed of its own.
* Markers of evolve blocks are not enforced in workers. Here only the task makes children, and a program that it did
  not make scores 0.
* A worker that dies ends the run early, without an error. The candidates are counted, and too few are an error.
* Answers without an effect, and those of an island's twin, are dropped without a trace. Our file has them all.
* It sets signal handlers, seeds and root logging of its process, and cannot run inside a notebook's event loop. So it
  gets a process of its own.
* Prompts, logs and checkpoints pile up. No prompt is kept, two checkpoints are, and nothing of a finished problem.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import vpo_lab
from vpo_lab.errors import LabError
from vpo_lab.files import explain_full_disk, read_json, write_json
from vpo_lab.metrics import SOLVED
from vpo_lab.processes import without_launcher
from vpo_lab.search.client import CHECKPOINT, Client, Problem, end_with_parent, hidden
from vpo_lab.search.evolution import BUDGETS, Evolution
from vpo_lab.search.loop import Rules, rewards_of, start_of
from vpo_lab.search.policies import Source, Trained
from vpo_lab.tasks import Task


def evolve_in_openevolve(
    task: Task,
    rows: Sequence[dict],
    source: Source | Sequence[Sequence[str]],
    candidates: int = BUDGETS[-1],
    *,
    folder: Path,
    sees_parent: bool = False,
    rules: Rules | None = None,
    seed: int = 0,
    on_problem: Callable[[int], None] | None = None,
) -> list[Evolution]:
    """Search a program for every row inside OpenEvolve, one problem after the other; as `loop.evolve` otherwise.

    `source`: a policy, or for every row the answers that were sampled before (at least `candidates`, without the
    parent). Finished problems are files in `folder` and not repeated; one that was cut short goes on from its last
    checkpoint. Two runs differ even with one seed: OpenEvolve's ids are random. Raises LabError if a file there was
    made with other settings, the package is missing, or a run ended too early.
    """
    try:
        import openevolve  # noqa: F401
    except ImportError as error:
        raise LabError("OpenEvolve is not installed: pip install 'vpo-lab[code]', or use the loop") from error
    starts = [start_of(task, row) for row in rows]
    # Here, so that the process from which workers are forked never opens a sandbox: they would share its pipes.
    rewards_ND = rewards_of(task, starts, rows)
    waiting = []
    for number, row in enumerate(rows):
        problem = {
            "task": task.name,
            "row": row,
            "start": starts[number],
            "start_rewards": [None if r != r else r for r in rewards_ND[number].tolist()],
            "candidates": candidates,
            "sees_parent": sees_parent,
            "rules": asdict(rules or Rules()),
            "seed": seed + number,
            "source": vars(source) if isinstance(source, Source) else list(source[number]),
        }
        if not isinstance(source, Source) and (sees_parent or len(source[number]) < candidates):
            raise LabError(f"{row['id']}: {candidates} candidates without the parent need as many answers")
        made_from = hashlib.sha256(json.dumps(problem, sort_keys=True).encode()).hexdigest()
        result, work = folder / f"{number:04}.json", folder / f"{number:04}"
        for kept in (result, work / "problem.json"):
            if kept.exists() and read_json(kept)["made_from"] != made_from:  # pyright: ignore
                raise LabError(f"{kept} was made with other settings: choose another --out")
        if not result.exists():
            write_json(work / "problem.json", {"made_from": made_from, **problem})
            waiting.append(work)
    done = len(rows) - len(waiting)
    for _ in _run(waiting, folder / "openevolve.log"):
        done += 1
        if on_problem:
            on_problem(done)
    return [Evolution.from_json(read_json(folder / f"{n:04}.json")["evolution"]) for n in range(len(rows))]  # pyright: ignore


def _run(folders: list[Path], log: Path):
    """Run OpenEvolve on these problems in a process of its own, and yield when one is finished."""
    if not folders:
        return
    command = [sys.executable, "-c", "from vpo_lab.search.evolve import _drive; _drive()", *map(str, folders)]
    package = str(Path(vpo_lab.__file__).parents[1])  # the one that runs here, whichever is installed
    environment = {**without_launcher(os.environ), "PYTHONPATH": os.pathsep.join([package, *_python_path()])}
    with explain_full_disk(log), open(log, "w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        try:
            yield from process.stdout  # pyright: ignore
            process.wait()
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if process.returncode:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise LabError(said[-1].removeprefix("error: ") if said else f"OpenEvolve ended: status {process.returncode}")


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


# --- In the process of OpenEvolve -------------------------------------------------------------


def _drive() -> None:
    """Search the problems whose folders are the arguments, and print each when it is done."""
    end_with_parent()
    try:
        for folder in map(Path, sys.argv[1:]):
            _search(folder)
            print(folder, flush=True)
    except LabError as error:
        sys.exit(f"error: {error}")


def _search(folder: Path) -> None:
    """Search one problem; its result takes the place of its folder."""
    problem = Problem(folder)
    data = problem.data
    if problem.tried < data["candidates"] and not problem.solved:
        checkpoint, iterations = _last_checkpoint(folder, problem.tried)
        problem.go_back_to(iterations)
        source = data["source"]
        if isinstance(source, dict) and _fits_in_a_fork(Source(**source)):
            Source(**source).load()
        _openevolve(folder, problem, data["candidates"] - iterations, checkpoint)
        problem = Problem(folder)  # as the worker left it
    if (folder / "error.txt").exists():
        raise LabError((folder / "error.txt").read_text())
    if problem.tried < data["candidates"] and not problem.solved:
        raise LabError(
            f"{problem.row['id']}: OpenEvolve ended after {problem.tried} of {data['candidates']} candidates, its "
            f"worker died (memory?): read {folder.parent / 'openevolve.log'}, then start again"
        )
    result = {"made_from": data["made_from"], "evolution": problem.evolution().as_json()}
    write_json(folder.with_suffix(".json"), result)
    shutil.rmtree(folder, ignore_errors=True)


def _fits_in_a_fork(source: Source) -> bool:
    """Return True for a tiny policy: loaded here once, each worker has it. A GPU does not outlive a fork."""
    return not source.server and Trained.find(Path(source.policy)).profile.policy.backend == "scratch"


def _openevolve(folder: Path, problem: Problem, iterations: int, checkpoint: Path | None) -> None:
    from openevolve import run_evolution
    from openevolve.config import Config, LLMModelConfig

    data, rules = problem.data, Rules(**problem.data["rules"])
    (folder / "prompts").mkdir(exist_ok=True)
    (folder / "prompts" / "full_rewrite_user.txt").write_text("{current_program}")
    (folder / "prompts" / "system_message.txt").write_text("")
    (folder / "start.py").write_text(hidden(problem.texts[0]), encoding="utf-8")
    (folder / "evaluator.py").write_text(
        "from vpo_lab.search.client import evaluator_of\n\nevaluate = evaluator_of(__file__)\n"
    )
    config = Config(language="python", random_seed=data["seed"], log_level="ERROR", diff_based_evolution=False)
    config.checkpoint_interval, config.max_code_length = CHECKPOINT, 10**9
    config.llm.models = [LLMModelConfig(name=str(folder), init_client=Client)]
    config.llm.evaluator_models = config.llm.models
    config.prompt.template_dir, config.prompt.include_artifacts = str(folder / "prompts"), False
    config.prompt.use_template_stochasticity = False
    config.prompt.num_top_programs = config.prompt.num_diverse_programs = 1
    config.database.log_prompts = False
    config.database.population_size, config.database.archive_size = rules.population, rules.elites
    config.database.num_islands, config.database.migration_interval = rules.islands, rules.migrate_every
    config.database.exploration_ratio, config.database.exploitation_ratio = rules.exploration, rules.exploitation
    config.evaluator.parallel_evaluations, config.evaluator.max_retries = 1, 0
    config.evaluator.cascade_evaluation = False
    try:
        run_evolution(
            str(folder / "start.py"),
            str(folder / "evaluator.py"),
            config,
            iterations=iterations,
            output_dir=str(folder),
            cleanup=False,
            target_score=SOLVED,
            checkpoint_path=str(checkpoint) if checkpoint else None,
        )
    finally:
        root = logging.getLogger()
        for handler in list(root.handlers):  # one more of each with every run
            root.removeHandler(handler)
            handler.close()


def _last_checkpoint(folder: Path, tried: int) -> tuple[Path | None, int]:
    """Return the newest whole checkpoint of a search that noted so many candidates, and its iteration, else 0.

    It is whole if the file that is written last is there and readable.
    """
    found = [(int(path.name.rpartition("_")[2]), path) for path in (folder / "checkpoints").glob("checkpoint_*")]
    for iteration, checkpoint in sorted(found, reverse=True):
        try:
            read_json(checkpoint / "best_program_info.json")
        except LabError:
            continue
        if iteration <= tried:
            return checkpoint, iteration
    return None, 0
