"""Run the notebooks in order, headless: papermill, resume, one progress display, a summary.

A notebook is done when its executed copy stands in the run folder under its own name; what a
notebook has trained or sampled is kept by the stages themselves. So a run that was killed at any
point continues where it was when it is started again.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from vpo_lab.config import Profile, get_profile
from vpo_lab.course.figures import small_png
from vpo_lab.course.worlds import World, worlds_of
from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_bytes
from vpo_lab.methods import get_method
from vpo_lab.metrics import power
from vpo_lab.processes import Session, session, without_launcher
from vpo_lab.runs import LOG, POOLS, Run, Stage, find_run, open_run
from vpo_lab.search.pool import pool_names
from vpo_lab.show.live import MEASURED, duration, projection
from vpo_lab.tasks import get_task
from vpo_lab.tasks.check import check_task
from vpo_lab.train.gpu import check_backend
from vpo_lab.train.watch import RESTARTS, end_group, stage_that_stands_still, stood_still

# Notebooks of one wave do not need each other and run side by side. 06 and 07 train two policies at a time, and search
# and draw on one core: together they leave none idle.
WAVES = (
    ("00_vpo_in_ten_minutes", "01_reward_vectors", "02_sft_warmup"),
    ("03_grpo_baseline", "04_vpo_training"),
    ("05_bestk_and_pareto", "06_code_and_search", "07_judges_and_hacking"),
)

FREE = "00_vpo_in_ten_minutes"  # numpy alone: it takes no parameters, opens no run and imports nothing of this package
# What trains the same policies in worlds of its own: notebook -> the profile's field that names the world, the folders.
ALONE = {"06_code_and_search": ("code", ("code",)), "07_judges_and_hacking": ("judges", ("judges", "judges_flawed"))}
TRAINING = ("02_sft_warmup", "03_grpo_baseline", "04_vpo_training")
EVALUATING = "05_bestk_and_pareto"

# What cells need beyond what a training needs.
COURSE_RULES = (
    "methods == ('grpo', 'vpo')  # 03 trains the one and 04 the other; train others with `vpo-lab train`",
    "rl.candidates >= 2  # the notebooks compare sets of answers",
    "evaluation.candidates >= 2 * rl.candidates  # 05 compares one chain with two",
)

SOLUTION = re.compile(r"<summary>Solution</summary>.*?```python\n(.*?)\n```.*?</details>", re.DOTALL)

FOR_EVALUATION = 0.15  # the share of --max-hours that is kept for it

SHARES = {  # how much of the time of a tiny run a notebook takes
    "00_vpo_in_ten_minutes": 0.01,
    "01_reward_vectors": 0.01,
    "02_sft_warmup": 0.17,
    "03_grpo_baseline": 0.21,
    "04_vpo_training": 0.17,
    "05_bestk_and_pareto": 0.02,
    "06_code_and_search": 0.17,
    "07_judges_and_hacking": 0.24,
}


@dataclass
class Job:
    """Follow one notebook of a run."""

    name: str
    source: Path
    target: Path
    started: float = 0.0
    seconds: float = 0.0
    error: BaseException | None = None
    thread: threading.Thread | None = field(default=None, repr=False)
    kernel: int = 0  # its process, while it runs
    began: float = 0.0  # when that was started, in seconds since 1970
    stood_still: bool = False

    @property
    def done(self) -> bool:
        return self.target.exists()

    @property
    def partial(self) -> Path:
        return self.target.with_name(f".{self.name}.partial.ipynb")


def trainings_of(profile: Profile, run: Run) -> dict[str, list[tuple[World, Stage]]]:
    """Return notebook -> the stages that it trains, one in each world of the run."""
    worlds = worlds_of(profile, run)
    return {
        name: [(world, world.stages[number]) for world in worlds if number < len(world.stages)]
        for number, name in enumerate(TRAINING)
    }


def watched_of(profile: Profile, run: Run) -> dict[str, list[str]]:
    """Return notebook -> the folders, within the run, in which it trains or samples."""
    trained = {name: [stage.folder for _, stage in found] for name, found in trainings_of(profile, run).items()}
    trained[EVALUATING] = [world.run / POOLS for world in worlds_of(profile, run)]
    return {name: [str(folder.relative_to(run.folder)) for folder in found] for name, found in trained.items()}


def waves_of(profile: Profile) -> list[tuple[str, ...]]:
    """Return the notebooks of a run, in waves that may run side by side; 06 and 07 where the profile names theirs."""
    left_out = {name for name, (key, _) in ALONE.items() if not getattr(profile, key)}
    return [tuple(name for name in wave if name not in left_out) for wave in WAVES]


def alone_of(profile: Profile, run: Run) -> dict[str, list[tuple[World, Stage]]]:
    """Return notebook -> the stages that it trains in worlds of its own, for 06 and 07."""
    found = {}
    for name, (key, folders) in ALONE.items():
        if own := getattr(profile, key):
            worlds = [World(get_profile(own), Run(run / folder, run.until)) for folder in folders]
            found[name] = [(world, world.run.stage(stage)) for world in worlds for stage in ("sft", *profile.methods)]
    return found


def notebook_folder() -> Path:
    """Return the repository's notebooks; LabError where the package runs without them."""
    folder = Path(__file__).resolve().parents[2] / "notebooks"
    if not (folder / "01_reward_vectors.ipynb").exists():
        raise LabError(f"no notebooks in {folder}: run from a clone of the repository (pip install -e .)")
    return folder


def run_pipeline(
    profile_name: str = "tiny",
    seed: int = 0,
    run_dir: str = "",
    overrides: dict | None = None,
    parameters: dict | None = None,
    side_by_side: bool | None = None,
    max_hours: float | None = None,
    price: float | None = None,
    execute: Callable[[Job, dict, dict[str, str]], None] | None = None,
) -> Path:
    """Execute all notebooks into the run folder; returns the path of its `summary.json`.

    `overrides` changes profile fields by dotted name; `parameters` are further papermill
    parameters, which every notebook but 00 has to declare. `side_by_side` None: where there are two cores.
    `max_hours`, from now: RL ends in time for an evaluation, each method with an equal share; 0: what is
    trained is evaluated as it is; None: no limit. `price` is that of an hour here: what the rest will cost is
    told. `execute(job, parameters, environment)` runs one notebook; None: papermill does.
    Raises LabError with one line on a wrong setting, a run folder of another run, a failed notebook.
    """
    profile = get_profile(profile_name, overrides)
    for method in profile.methods:
        get_method(method)
    for each in (profile, *([get_profile(profile.maze)] if profile.maze else [])):
        each.checked(COURSE_RULES)
    if max_hours is not None and not max_hours >= 0:
        raise LabError(f"--max-hours = {max_hours}: 0 or more, or leave it out")
    check_backend(profile)
    rows = check_task(get_task(profile.task), profile.data or None)  # a wrong path ends here, not in 02
    if profile.evaluation.held_out:
        found = rows["test"] + profile.evaluation.held_out
        print(f"evaluation: {power(min(profile.evaluation.requests or found, found))}", file=sys.stderr)
    # Absolute: kernels work in the notebooks' folder, the user names folders from here.
    folder = find_run(profile, run_dir).folder
    values = {"profile": profile_name, "seed": seed, "run_dir": str(folder), "overrides": overrides or {}}
    values.update(parameters or {})
    waves = waves_of(profile)
    sources = {name: notebook_folder() / f"{name}.ipynb" for wave in waves for name in wave}
    told = {name: {} if name == FREE else values for name in sources}
    for name, source in sources.items():
        check_parameters(source, told[name])
    until = None if max_hours is None else time.time() + 3600 * max_hours * (1 - FOR_EVALUATION)
    run = replace(open_run(profile, seed, folder), until=until)
    if side_by_side is None:
        side_by_side = (os.cpu_count() or 1) >= 2 and profile.policy.backend == "scratch"
    jobs = {name: Job(name, source, run / f"{name}.ipynb") for name, source in sources.items()}
    environment = kernel_environment(profile, until, price)
    with run.lock():
        _take_up_stopped(jobs, profile, run)
        display = Display(profile, run, list(jobs.values()), price)
        for wave in waves:
            waiting = [jobs[name] for name in wave if not jobs[name].done]
            for batch in [waiting] if side_by_side else [[job] for job in waiting]:
                _run_batch(
                    batch, lambda job: (execute or _execute)(job, told[job.name], environment), display, profile, run
                )
        display.close()
    if not run.summary.exists():
        raise LabError(f"05 ended without {run.summary}: delete {run / '05_bestk_and_pareto.ipynb'} and run again")
    return run.summary


def check_parameters(notebook: Path, values: dict) -> None:
    """Raise a LabError if the notebook does not declare one of these parameters (papermill only warns)."""
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    tagged = [cell.source for cell in cells if _tagged(cell, "parameters")]
    declared = {
        line.split(":")[0].split("=")[0].strip()
        for source in tagged
        for line in source.splitlines()
        if "=" in line and not line.lstrip().startswith("#")
    }
    for name in values:
        if name not in declared:
            raise LabError(
                f"parameter {name!r} is not declared by {notebook.name}: it has {', '.join(sorted(declared))}"
            )


def _take_up_stopped(jobs: dict[str, Job], profile: Profile, run: Run) -> None:
    """Run the notebook of a stage that was stopped or is to grow again, and those behind it; some train their own."""
    names = [name for name in jobs if name not in ALONE]
    for name, trained in trainings_of(profile, run).items():
        if jobs[name].done and any(stage.stopped and not stage.has_policy() for _, stage in trained):
            for later in names[names.index(name) :]:
                jobs[later].target.unlink(missing_ok=True)
    for name, trained in alone_of(profile, run).items():
        if jobs[name].done and any(stage.stopped and not stage.has_policy() for _, stage in trained):
            jobs[name].target.unlink()


def kernel_environment(profile: Profile, until: float | None, price: float | None = None) -> dict[str, str]:
    """Return the environment of every kernel: this shell's, without the variables meant for other programs."""
    # A path to a task of one's own is meant from here.
    told = Session(task_folder=session().task_folder or os.getcwd(), until=until, headless=True, price=price)
    environment = {**without_launcher(os.environ), **told.environment()}
    environment["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # a server's Agg would show no picture
    environment.setdefault("OMP_NUM_THREADS", "1")
    if profile.policy.backend == "unsloth":  # it trains on one GPU, and must see no other from the very start
        environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
    return environment


def _run_batch(jobs: list[Job], execute: Callable[[Job], None], display: Display, profile: Profile, run: Run) -> None:
    """Run notebooks side by side; one that stands still while it trains or samples is started again."""
    watched = watched_of(profile, run)

    def note_errors(job: Job) -> None:
        try:
            for tries in range(RESTARTS + 1):
                job.kernel, job.began, job.stood_still = 0, time.time(), False
                try:
                    return execute(job)
                except BaseException:
                    if not job.stood_still or tries == RESTARTS:
                        raise
        except BaseException as error:
            job.error = error
        finally:
            job.seconds = time.monotonic() - job.started

    for job in jobs:
        job.started = time.monotonic()
        # Daemons: an interrupt ends this process, and ipykernel ends kernels whose parent is gone.
        job.thread = threading.Thread(target=note_errors, args=(job,), daemon=True)
        job.thread.start()
    while alive := [job for job in jobs if job.thread.is_alive()]:
        display.refresh()
        for job in alive:
            if not job.kernel or job.stood_still or job.name not in watched:
                continue
            if still := stage_that_stands_still(run, watched[job.name], job.began, profile.patience):
                print(f"\n{job.name}, {stood_still(still, profile.patience)}", file=sys.stderr)
                job.stood_still = True
                end_group(job.kernel)
        alive[0].thread.join(0.5)
    failed = [job for job in jobs if job.error is not None]
    if failed:
        display.close()
        raise LabError("; ".join(_explain(job) for job in failed)) from failed[0].error


def _execute(job: Job, values: dict, environment: dict[str, str]) -> None:
    import nbformat
    import papermill

    papermill.execute_notebook(
        with_solutions(nbformat.read(job.source, as_version=4)),
        _literal(job.partial),
        parameters=values,
        kernel_name="python3",
        kernel_manager_class=kernel_of_this_python(environment, job),
        cwd=str(job.source.parent),
        progress_bar=False,
        log_output=False,
        # Kernels warn about their transport and about a parent that is gone; both are meant.
        extra_arguments=["--IPKernelApp.log_level=50"],
    )
    os.replace(job.partial, job.target)


def with_solutions(notebook):
    """Return the notebook with each exercise's folded solution in the empty cell below it, so that a run checks it."""
    for exercise, cell in pairwise(notebook.cells):
        if _tagged(cell, "answer"):
            (cell.source,) = SOLUTION.findall(exercise.source)
    return notebook


def _tagged(cell, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def _literal(path: Path) -> str:
    """Return the path as papermill takes it: it would fill in parameters between braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def kernel_of_this_python(environment: dict[str, str], job: Job) -> type:
    """Return a kernel manager that starts this interpreter; a kernelspec "python3" may name another one.

    It notes the process in the job.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class Kernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name="Python 3", language="python")

        async def start_kernel(self, **options) -> None:
            await super().start_kernel(env=environment, **options)
            job.kernel = self.provisioner.process.pid

    return Kernel


def _explain(job: Job) -> str:
    """One line: the notebook, what its cell raised, where to look."""
    from papermill import PapermillExecutionError

    error = job.error
    if isinstance(error, PapermillExecutionError):
        return f"{job.name}: {error.ename}: {str(error.evalue).strip()} (cell {error.exec_count}, see {job.partial})"
    return f"{job.name}: {type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}"


class Display:
    """Show the progress of the whole run: a live line in a terminal, now and then one in a log."""

    def __init__(self, profile: Profile, run: Run, jobs: list[Job], price: float | None = None):
        self.profile, self.run, self.jobs, self.price = profile, run, jobs, price
        self.trained = trainings_of(profile, run) | alone_of(profile, run)
        self.seen: dict[str, tuple[int, float]] = {}  # of each method: a step, and when it was over
        self.start = time.monotonic()
        self.first = self.fraction()
        self.shown_at, self.live = 0.0, sys.stderr.isatty()
        already = [job.name[:2] for job in jobs if job.done]
        print(f"profile {profile.name} -> {run}  ({profile.minutes})", file=sys.stderr)
        if already:
            print(f"already done: {', '.join(already)}", file=sys.stderr)

    def fraction(self) -> float:
        """Return how much of the run is done, 0 to 1, by the shares of a tiny run."""
        return sum(SHARES[job.name] * self._part(job)[0] for job in self.jobs) / sum(SHARES.values())

    def _part(self, job: Job) -> tuple[float, str]:
        if job.done:
            return 1.0, "done"
        trained = self.trained.get(job.name)
        if not trained:
            return 0.0, "running" if job.started else ""
        parts, texts = [], []
        for world, stage in trained:
            steps = world.settings.sft.steps if stage.name == "sft" else world.settings.rl.steps
            step = stage.last_step()
            parts.append(min(step / max(steps, 1), 1.0))
            texts += [f"{stage.folder.relative_to(self.run.folder)} {step}/{steps}"] if job.started and step else []
        return 0.9 * sum(parts) / len(parts), ", ".join(texts) or ("running" if job.started else "")

    def rest(self, now: float) -> str:
        """Return the time and price of the RL that is left, by the method that trains now, once 20 steps were seen.

        Nothing where that is less than an hour and costs nothing. The maze's RL is left out: it costs minutes.
        """
        waiting = [method for method in self.profile.methods if not self.run.stage(method).has_policy()]
        left = sum(max(0, self.profile.rl.steps - self.run.stage(method).last_step()) for method in waiting)
        for method in waiting:
            step = self.run.stage(method).last_step()
            first, at = self.seen.setdefault(method, (step, now)) if step else (0, now)
            if step - first >= MEASURED:
                seconds = (now - at) / (step - first)
                return f"   RL: {projection(seconds, left, self.price)}" if self.price or seconds * left > 3600 else ""
        return ""

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self.shown_at < (0.5 if self.live else 30):
            return
        self.shown_at = now
        fraction, spent = self.fraction(), now - self.start
        gained = fraction - self.first
        eta = duration(spent / gained * (1 - fraction)) if gained > 0.01 else "--"
        running = [f"{j.name[:2]} {self._part(j)[1]}" for j in self.jobs if j.started and not j.done]
        line = f"{fraction:4.0%}  {duration(spent)} spent, ETA {eta}   {'   '.join(running)}{self.rest(now)}"
        width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be written over
        line = f"\r{line[:width]:<{width}}" if self.live else line
        print(line, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live:
            print(file=sys.stderr)
        for job in self.jobs:
            if job.seconds:
                ending = "failed" if job.error else "done"
                print(f"{job.name:<22} {ending} in {duration(job.seconds)}", file=sys.stderr)


# --- Publishing -------------------------------------------------------------------------------


def publish(run: Run) -> list[Path]:
    """Copy a finished run into the repository: executed notebooks, pools, logs, summary.

    What a reader sees in notebooks/ and results/ is then what this run did. Returns the paths.
    """
    import nbformat

    profile = get_profile(read_json(run.summary)["profile"])
    written = []
    for name in [name for wave in waves_of(profile) for name in wave]:
        executed = run / f"{name}.ipynb"
        if not executed.exists():
            raise LabError(f"{executed} does not exist: finish the run before publishing it")
        target = notebook_folder() / f"{name}.ipynb"
        notebook = as_committed(nbformat.read(executed, as_version=4), nbformat.read(target, as_version=4))
        write_bytes(target, nbformat.writes(notebook).encode() + b"\n")
        written.append(target)
    for world in worlds_of(profile, run):
        results = notebook_folder().parent / "results" / world.settings.name
        copies = [world.run.summary, *(stage / LOG for stage in world.stages)]
        copies += [world.run.pool(name) for name in pool_names(world.settings)]
        for path in copies:
            written.append(results / path.relative_to(world.run))
            write_bytes(written[-1], path.read_bytes())
    return written


def write_report(root: Path | None = None) -> list[Path]:
    """Execute results/report.ipynb in place and write the tables of the pages that show results; return the paths.

    `root` is the repository. Raises LabError if a cell fails, or a page or the saved results are missing.
    """
    import nbformat

    from vpo_lab.course.results import update_pages

    root = root or notebook_folder().parent
    source = root / "results" / "report.ipynb"
    with TemporaryDirectory() as folder:
        job = Job("report", source, Path(folder) / "report.ipynb")
        try:
            _execute(job, {}, without_launcher(os.environ))
        except Exception as error:
            job.error = error
            raise LabError(_explain(job)) from error
        notebook = as_committed(nbformat.read(job.target, as_version=4), nbformat.read(source, as_version=4))
    write_bytes(source, nbformat.writes(notebook).encode() + b"\n")
    return [source, *update_pages(root)]


def as_committed(executed, source):
    """Return the source notebook with the outputs of its executed copy, without timings and paths, and made small.

    Cells tagged "answer" stay without: they would answer the question above them.
    """
    cells = {cell.id: cell for cell in executed.cells}
    for cell in source.cells:
        if cell.cell_type == "code" and cell.id in cells:
            cell.outputs = [] if _tagged(cell, "answer") else cells[cell.id].outputs
            cell.execution_count = cells[cell.id].execution_count
    # papermill adds a cell of its own, so that counts in the copy do not start at 1.
    counter = 0
    for cell in source.cells:
        if cell.cell_type == "code":
            counter += 1
            cell.execution_count = counter
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = counter
                data = output.get("data", {})
                if png := data.get("image/png"):
                    data["image/png"] = b64encode(small_png(b64decode(png))).decode()
                if "dataframe" in data.get("text/html", ""):
                    data["text/html"] = small_table(data["text/html"])
                    data.pop("text/plain", None)
    return source


def small_table(html: str) -> str:
    """Return a data frame's HTML without its style, a row on each line."""
    return re.sub(r"(?s)<style.*?</style>\n|\n\s*(?=<td|<th>|<th |</tr)", "", html)
