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
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.files import explain_full_disk, read_json, write_bytes, write_json
from vpo_lab.metrics import mean_reward
from vpo_lab.processes import without_launcher
from vpo_lab.search.loop import (
    BUDGETS,
    Evolution,
    Queue,
    Rules,
    child_of,
    messages_of,
    rewards_of,
    sampled,
    solved,
    start_of,
)
from vpo_lab.search.policies import Journal, Source
from vpo_lab.search.pool import SOLVED
from vpo_lab.tasks import Task, get_task

POPULATION = 200  # programs that OpenEvolve keeps; it hands all of them to its worker at every iteration
CHECKPOINT = 50  # iterations
_FENCE, _HIDDEN = "```", "`\u2060``"  # OpenEvolve takes a program to end at the first fence


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
    waiting = []
    for number, row in enumerate(rows):
        problem = {
            "task": task.name,
            "row": row,
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
        found = read_json(result if result.exists() else work / "problem.json") if _exists(result, work) else None
        if found is not None and found["made_from"] != made_from:  # pyright: ignore
            raise LabError(f"{folder} was made with other settings or problems: choose another --out")
        if not result.exists():
            write_json(work / "problem.json", {"made_from": made_from, **problem})
            waiting.append(work)
    done = len(rows) - len(waiting)
    for _ in _run(waiting, folder / "openevolve.log"):
        done += 1
        if on_problem:
            on_problem(done)
    return [Evolution.from_json(read_json(folder / f"{n:04}.json")["evolution"]) for n in range(len(rows))]  # pyright: ignore


def _exists(result: Path, work: Path) -> bool:
    return result.exists() or (work / "problem.json").exists()


def _run(folders: list[Path], log: Path):
    """Run OpenEvolve on these problems in a process of its own, and yield when one is finished."""
    if not folders:
        return
    command = [sys.executable, "-c", "from vpo_lab.search.evolve import _drive; _drive()", *map(str, folders)]
    with explain_full_disk(log), open(log, "w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=without_launcher(os.environ)
        )
        try:
            yield from process.stdout  # pyright: ignore
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                status = process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
    if status:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise LabError(said[-1].removeprefix("error: ") if said else f"OpenEvolve ended with status {status}")


# --- In the process of OpenEvolve -------------------------------------------------------------


def _drive() -> None:
    """Search the problems whose folders are the arguments, and print each when it is done."""
    _end_with_parent()
    try:
        for folder in map(Path, sys.argv[1:]):
            _search(folder)
            print(folder, flush=True)
    except LabError as error:
        sys.exit(f"error: {error}")


def _search(folder: Path) -> None:
    """Search one problem; its result takes the place of its folder."""
    problem = _Problem(folder)
    data, checkpoint = problem.data, _last_checkpoint(folder)
    left = data["candidates"] - problem.go_back_to(int(checkpoint.name.rpartition("_")[2]) if checkpoint else 0)
    if left and not any(map(solved, problem.rewards)):
        source = data["source"]
        if isinstance(source, dict) and _fits_in_a_fork(Source(**source)):
            Source(**source).load()
        _openevolve(folder, problem, left, checkpoint)
        problem = _Problem(folder)  # as the worker left it
    if (folder / "error.txt").exists():
        raise LabError((folder / "error.txt").read_text())
    if problem.tried < data["candidates"] and not any(map(solved, problem.rewards)):
        raise LabError(
            f"{problem.row['id']}: OpenEvolve ended after {problem.tried} of {data['candidates']} candidates, its worker "
            f"died (memory?): read {folder.parent / 'openevolve.log'}, then start again"
        )
    result = {"made_from": data["made_from"], "evolution": problem.evolution().as_json()}
    write_json(folder.with_suffix(".json"), result)
    shutil.rmtree(folder, ignore_errors=True)


def _fits_in_a_fork(source: Source) -> bool:
    """Return True for a tiny policy: loaded here once, each worker has it. A GPU does not outlive a fork."""
    from vpo_lab.search.policies import Trained

    return not source.server and Trained.find(Path(source.policy)).profile.policy.backend == "scratch"


def _openevolve(folder: Path, problem: _Problem, iterations: int, checkpoint: Path | None) -> None:
    from openevolve import run_evolution
    from openevolve.config import Config, LLMModelConfig

    data, rules = problem.data, Rules(**problem.data["rules"])
    (folder / "prompts").mkdir(exist_ok=True)
    (folder / "prompts" / "full_rewrite_user.txt").write_text("{current_program}")
    (folder / "prompts" / "system_message.txt").write_text("")
    (folder / "start.py").write_text(_hide(problem.texts[0]), encoding="utf-8")
    (folder / "evaluator.py").write_text(
        "from vpo_lab.search.evolve import evaluator_of\n\nevaluate = evaluator_of(__file__)\n"
    )
    config = Config(language="python", random_seed=data["seed"], log_level="ERROR", diff_based_evolution=False)
    config.checkpoint_interval, config.max_code_length = CHECKPOINT, 10**9
    config.llm.models = [LLMModelConfig(name=str(folder), init_client=Client)]
    config.llm.evaluator_models = config.llm.models
    config.prompt.template_dir, config.prompt.include_artifacts = str(folder / "prompts"), False
    config.prompt.use_template_stochasticity = False
    config.prompt.num_top_programs = config.prompt.num_diverse_programs = 1
    config.database.log_prompts = False
    config.database.population_size, config.database.archive_size = POPULATION, rules.elites
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


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint: its last file is there and readable."""
    found = sorted((folder / "checkpoints").glob("checkpoint_*"), key=lambda p: int(p.name.rpartition("_")[2]))
    for checkpoint in reversed(found):
        try:
            read_json(checkpoint / "best_program_info.json")
        except LabError:
            continue
        return checkpoint
    return None


def _end_with_parent() -> None:
    """End this process soon after the one that started it: an orphan would wait for work for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# --- In its worker ----------------------------------------------------------------------------


class Client:
    """Answer OpenEvolve's prompts, which hold the parent and nothing else. Made by `init_client`, one per process."""

    def __init__(self, config):
        self.model = config.name  # OpenEvolve wants this name; it is the problem's folder
        self.asked = False

    async def generate_with_context(self, system_message: str, messages: list[dict], **_) -> str:
        """Return the child of the program in the last message."""
        if not self.asked:
            _end_with_parent()
            self.asked = True
        folder = Path(self.model)
        try:
            return f"{_FENCE}python\n{_hide(problem_in(folder).propose(messages[-1]['content']))}\n{_FENCE}"
        except Exception as error:  # OpenEvolve would count it as a bad answer
            name = "" if isinstance(error, LabError) else f"{type(error).__name__}: "
            (folder / "error.txt").write_text(f"{name}{error}")
            os._exit(1)


def evaluator_of(file: str) -> Callable[[str], dict[str, float]]:
    """Return the `evaluate(path)` of an evaluator file in a problem's folder: the rewards of a program by name."""
    return lambda path: problem_in(Path(file).parent).metrics(Path(path).read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def problem_in(folder: Path) -> _Problem:
    """Return the problem of a folder, one for client and evaluator of a process."""
    return _Problem(folder)


class _Problem:
    """Know a problem's programs: ask for the next candidate, evaluate it, note it."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "candidates.jsonl"
        self.data: dict = read_json(folder / "problem.json")  # pyright: ignore[reportAttributeAccessIssue]
        self.row, self.task = self.data["row"], get_task(self.data["task"])
        self.queue = Queue(self.data["sees_parent"])
        source = self.data["source"]
        draw = sampled([source], [self.row]) if isinstance(source, list) else None
        self.ask = draw or Journal(Source(**source).draw, folder / "answers.jsonl")
        start = start_of(self.task, self.row)
        self._reset(start, rewards_of(self.task, [start], [self.row])[0])
        for line in self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []:
            try:
                self._add(json.loads(line))
            except ValueError:
                break  # cut short by a kill
        # Of answers that were sampled before, those that were tried are over.
        if isinstance(source, list) and self.tried:
            self.queue.put(self.ask([(self.row, [])])[0][self.tried :], 0)

    def _reset(self, start: str, rewards_D: np.ndarray) -> None:
        self.tried, self.lines = 0, []
        self.texts, self.parents, self.found, self.rewards = [start], [-1], [0], [rewards_D]
        self.known = {_key(start): 0}

    def _add(self, line: dict) -> None:
        self.tried += 1
        self.lines.append(line)
        if line["text"] is not None:
            self.known.setdefault(_key(line["text"]), len(self.texts))
            self.texts.append(line["text"])
            self.parents.append(line["parent"])
            self.found.append(self.tried)
            self.rewards.append(np.array(line["rewards"], dtype=float))

    def go_back_to(self, tried: int) -> int:
        """Forget the candidates after the first so many, which a checkpoint does not know; return how many are left."""
        lines = self.lines[:tried]
        write_bytes(self.log, "".join(json.dumps(line) + "\n" for line in lines).encode())
        (self.folder / "error.txt").unlink(missing_ok=True)
        self._reset(self.texts[0], self.rewards[0])
        for line in lines:
            self._add(line)
        return self.tried

    def propose(self, shown: str) -> str:
        """Return a child of the program that was shown (or of the one that a waiting answer was written for)."""
        chosen = self.known[_key(shown)]
        if not self.queue.waiting:
            parent = self.texts[chosen] if self.queue.sees_parent else None
            messages = messages_of(self.task, self.row, parent, self.rewards[chosen])
            self.queue.put(self.ask([(self.row, messages)])[0], chosen)
        answer, parent = self.queue.get(lambda: chosen)
        child = child_of(self.task, self.texts[parent], answer, self.row)
        line = {"parent": parent, "text": None, "rewards": None}
        if child != self.texts[parent]:
            rewards_D = rewards_of(self.task, [child], [self.row])[0]
            line |= {"text": child, "rewards": [None if np.isnan(r) else r for r in rewards_D.tolist()]}
        self._add(line)
        with explain_full_disk(self.log), open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.tried % CHECKPOINT == 0:
            for old in sorted((self.folder / "checkpoints").glob("*"), key=lambda path: path.stat().st_mtime)[:-2]:
                shutil.rmtree(old, ignore_errors=True)
        return child

    def metrics(self, text: str) -> dict[str, float]:
        """Return the rewards of a program by name, and their mean; 0 for a program that this search did not make."""
        number = self.known.get(_key(text))
        asked = ~np.isnan(self.rewards[0])
        rewards_D = np.where(asked, 0.0, np.nan) if number is None else self.rewards[number]
        named = zip(self.task.objectives, rewards_D.tolist(), strict=True)
        return {"combined_score": float(mean_reward(rewards_D)), **{name: r for name, r in named if r == r}}

    def evolution(self) -> Evolution:
        """Return what has been found so far."""
        lists = tuple(self.texts), tuple(self.parents), tuple(self.found)
        return Evolution(self.row["id"], self.task.objectives, self.tried, *lists, np.array(self.rewards))


def _hide(text: str) -> str:
    return text.replace(_FENCE, _HIDDEN)


def _key(text: str) -> str:
    """Return what a program is known by: OpenEvolve strips it, and fences are hidden from it."""
    return _hide(text).strip()
