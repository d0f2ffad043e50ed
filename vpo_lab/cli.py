"""The command line: run, train, experiment, evolve, figures, report, explorer, replies, publish, doctor."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated

try:
    import typer
except ModuleNotFoundError:
    sys.exit("error: the command line needs more packages: pip install 'vpo-lab[course]'")

from vpo_lab import __version__
from vpo_lab.errors import LabError

app = typer.Typer(add_completion=False, no_args_is_help=True)
Setting = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a profile field, e.g. rl.steps=20.")
]

Hours = Annotated[
    float | None,
    typer.Option(
        help="End RL in time for an evaluation, hours from now; 0: evaluate what is there; default: no limit."
    ),
]


Price = Annotated[
    float | None, typer.Option(help="Of this machine an hour: after 20 steps it is told what the rest will cost.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vpo-lab {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Learn, run and trust Vector Policy Optimization."""


@app.command()
def run(
    profile: Annotated[str, typer.Option(help="tiny, maze, tiny_code, smoke, qwen3-1.7b ...")] = "tiny",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    run_dir: Annotated[str, typer.Option(help="Where results go; default runs/PROFILE.")] = "",
    data: Annotated[str, typer.Option(help="A parquet file or folder, instead of the task's own source.")] = "",
    settings: Setting = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="A further notebook parameter.")
    ] = None,
    one_at_a_time: Annotated[bool, typer.Option(help="Never run two notebooks side by side.")] = False,
    max_hours: Hours = None,
    price: Price = None,
) -> None:
    """Run the notebooks; started again after a kill, continue where it was."""
    from vpo_lab.course.notebooks import run_pipeline
    from vpo_lab.course.results import print_summary

    overrides = overrides_of(settings, data)
    parameters = assignments(parameter, "-p")
    try:
        together = False if one_at_a_time else None
        path = run_pipeline(profile, seed, run_dir, overrides, parameters, together, max_hours, price)
    except KeyboardInterrupt:  # here, because typer ends the process before main() could see it
        print("stopped; the same command continues where it was", file=sys.stderr)
        raise typer.Exit(130) from None
    print_summary(path)


@app.command()
def train(
    stages: Annotated[list[str], typer.Argument(help="sft or methods, e.g. sft grpo vpo.")],
    profile: Annotated[str, typer.Option(help="tiny, maze, tiny_code, smoke, qwen3-1.7b ...")] = "tiny",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    run_dir: Annotated[str, typer.Option(help="Where results go; default runs/PROFILE.")] = "",
    data: Annotated[str, typer.Option(help="A parquet file or folder, instead of the task's own source.")] = "",
    settings: Setting = None,
    max_hours: Hours = None,
    price: Price = None,
) -> None:
    """Train stages without notebooks, e.g. on several GPUs: accelerate launch -m vpo_lab.cli train sft vpo.

    `vpo-lab run` with the same options then finds them trained, evaluates and reports.
    """
    from vpo_lab.config import get_profile
    from vpo_lab.processes import print0, session
    from vpo_lab.train.rl import train_stages
    from vpo_lab.train.watch import is_to_watch, watch

    if price is not None:
        os.environ.update(replace(session(), price=price).environment())
    overrides = overrides_of(settings, data)
    chosen = get_profile(profile, overrides)
    if is_to_watch(chosen):
        raise typer.Exit(watch(sys.argv[1:], chosen, stages, run_dir, max_hours))
    for policy in train_stages(profile, stages, seed, run_dir, overrides, max_hours):
        print0(str(policy))


@app.command()
def experiment(
    worlds: Annotated[list[str] | None, typer.Option("--world", help="A profile; default tiny and maze.")] = None,
    variants: Annotated[list[str] | None, typer.Option("--variant", help="A variant; default all of them.")] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="A seed; default 0 to 4, ablations to 2.")] = None,
    folder: Annotated[str, typer.Option(help="Where runs are kept.")] = "runs/experiment",
    out: Annotated[str, typer.Option(help="Where the CSV files go.")] = "results/experiment",
    workers: Annotated[int, typer.Option(help="Trainings at a time; 0: one per core.")] = 0,
    collect_only: Annotated[bool, typer.Option(help="Train nothing, write the CSV files of what is done.")] = False,
) -> None:
    """Train methods x seeds x worlds, resumable; write all that is done below the folder to CSV files."""
    from vpo_lab.course.experiment import collect, finished, plan, run_experiment

    jobs = plan(_path(folder), worlds or [], variants or [], seeds or [])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its trainings end with it, as after Ctrl-C
    try:
        undone = [] if collect_only else run_experiment(jobs, workers)
    except KeyboardInterrupt:
        print("stopped; the same command continues where it was", file=sys.stderr)
        raise typer.Exit(130) from None
    for path in collect(finished(_path(folder)), _path(out)):
        print(path)
    if undone:
        raise LabError(f"{len(undone)} jobs failed, first {undone[0].folder / undone[0].variant / 'job.log'}: read it")


@app.command()
def evolve(
    policy: Annotated[str, typer.Option(help="A trained policy, RUN/STAGE, e.g. runs/tiny/code/vpo.")],
    problems: Annotated[int, typer.Option(help="How many test problems.")] = 20,
    iterations: Annotated[int, typer.Option(help="Candidates per problem; one iteration is one candidate.")] = 96,
    engine: Annotated[str, typer.Option(help="openevolve, or loop: the short one of this lab.")] = "openevolve",
    parent: Annotated[bool, typer.Option(help="Show the policy a parent and the tests that it fails.")] = False,
    unsolved: Annotated[
        str, typer.Option(metavar="POOL", help="Only problems that this pool of the run does not solve, e.g. sft.")
    ] = "",
    server: Annotated[str, typer.Option(help="Ask an OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1.")] = "",
    model: Annotated[str, typer.Option(help="The model's name on the server; default its first.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the policy and of the search.")] = 0,
    out: Annotated[str, typer.Option(help="Where results go; default RUN/evolution/...")] = "",
) -> None:
    """Search programs with a trained policy; started again after a kill, continue where it was."""
    from vpo_lab.search.problems import budget_table, search_problems

    folder = _path(out) if out else None
    options = {"engine": engine, "sees_parent": parent, "unsolved": unsolved, "server": server, "model": model}
    try:
        found, file = search_problems(_path(policy), problems, iterations, **options, seed=seed, folder=folder)
    except KeyboardInterrupt:
        print("stopped; the same command continues where it was", file=sys.stderr)
        raise typer.Exit(130) from None
    print(budget_table(found, iterations))
    print(file)


@app.command()
def figures(
    results: Annotated[str, typer.Option(help="A run folder: draw its own figures, and no others.")] = "",
    experiment: Annotated[
        str, typer.Option(help="CSV files of an experiment, if there are any.")
    ] = "results/experiment",
    code: Annotated[str, typer.Option(help="CSV files of an experiment on code, if there are any.")] = "results/code",
    judges: Annotated[str, typer.Option(help="CSV files of an experiment on judges, if any.")] = "results/judges",
    out: Annotated[str, typer.Option(help="Where the PNG files go.")] = "figures",
) -> None:
    """Draw the figures of the gallery from saved results, or those of one run, without training."""
    from vpo_lab.course.figures import draw_code_figures, draw_experiment_figures, draw_figures, draw_judges_figures

    drawings = {experiment: draw_experiment_figures, code: draw_code_figures, judges: draw_judges_figures}
    if results:
        drawings = {results: draw_figures}
    elif not any(_path(folder).is_dir() for folder in drawings):
        raise LabError(f"none of {', '.join(drawings)} is a folder: name one, or a run by --results")
    drawn = (draw(_path(folder), _path(out)) for folder, draw in drawings.items() if results or _path(folder).is_dir())
    for path in chain.from_iterable(drawn):
        print(path)


@app.command()
def report() -> None:
    """Execute results/report.ipynb, which holds all tables, and write those of the README and docs pages."""
    from vpo_lab.course.notebooks import write_report

    for path in write_report():
        print(path)


@app.command()
def explorer(
    results: Annotated[str, typer.Option(help="A run folder or a folder of saved results.")] = "results/tiny",
    experiment: Annotated[str, typer.Option(help="An experiment's folder, for its mazes.")] = "results/experiment",
    code: Annotated[str, typer.Option(help="That of an experiment on code.")] = "results/code",
    optima: Annotated[str, typer.Option(help="Sets of the judges' world.")] = "results/optima.json",
    replies: Annotated[str, typer.Option(help="Replies of a real model.")] = "results/replies.json",
    draw_optima: Annotated[bool, typer.Option("--draw-optima", help="Write that file anew first.")] = False,
    out: Annotated[str, typer.Option(help="The page, one file.")] = "docs/explorer.html",
    picture: Annotated[str, typer.Option(help="A PNG of the page, taken with Chromium.")] = "",
) -> None:
    """Build the page on which anyone can weigh the objectives in a browser, without a kernel."""
    from vpo_lab.course.page import take_picture, write_explorer, write_optima

    if draw_optima:
        print(write_optima(_path(optima)))
    page = write_explorer(_path(results), _path(experiment), _path(out), _path(code), _path(optima), _path(replies))
    print(page)
    if picture:
        print(take_picture(page, _path(picture)))


@app.command()
def replies(
    run_dirs: Annotated[
        list[str] | None, typer.Argument(help="Runs of judges with their pools; none: only draw the page.")
    ] = None,
    requests: Annotated[list[str] | None, typer.Option("--request", help="The id of a request to show.")] = None,
    data: Annotated[str, typer.Option(help="Where the run's rows are, as in `train --data`.")] = "",
    saved: Annotated[str, typer.Option(help="The file that keeps them.")] = "results/replies.json",
    out: Annotated[str, typer.Option(help="The page.")] = "docs/replies.md",
) -> None:
    """Put the replies of policies to a few requests side by side, with what each judge gives them."""
    from vpo_lab.course.replies import save_replies, write_replies
    from vpo_lab.runs import Run

    if run_dirs:
        print(save_replies([Run(_path(folder)) for folder in run_dirs], requests or [], _path(saved), data))
    print(write_replies(_path(saved), _path(out)))


@app.command()
def publish(run_dir: Annotated[str, typer.Argument(help="A finished run folder.")] = "runs/tiny") -> None:
    """Copy a finished run's notebooks and results into the repository; `figures` and `report` show them."""
    from vpo_lab.course.notebooks import publish as publish_run
    from vpo_lab.runs import Run

    run = Run(_path(run_dir))
    for path in publish_run(run):
        print(path)


@app.command()
def doctor(extra: Annotated[str, typer.Option(help="train, course, gpu, docs or dev.")] = "course") -> None:
    """Say what this machine can run and what is missing."""
    from vpo_lab.course.doctor import print_report

    raise typer.Exit(print_report(extra))


def overrides_of(settings: list[str] | None, data: str) -> dict:
    """Return profile fields to change. Folders named from here become absolute: notebooks run in another folder."""
    overrides = assignments(settings, "--set") | ({"data": data} if data else {})
    for name in ("data", "policy.model"):
        value = overrides.get(name)
        if isinstance(value, str) and value and (name == "data" or _path(value).is_dir()):
            overrides[name] = str(_path(value).resolve())
    return overrides


def _path(text: str) -> Path:
    """Return the path that a user wrote; shells leave the "~" of `--out=~/x` as it is."""
    return Path(text).expanduser()


def assignments(items: list[str] | None, option: str) -> dict:
    values = {}
    for item in items or []:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise LabError(f"{option} {item!r}: write NAME=VALUE")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def main() -> None:
    """Run the command line; a LabError, or a package that is missing, is one line on stderr and exit status 1."""
    try:
        app()
    except LabError as error:
        line = str(error)
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == "vpo_lab":
            raise
        line = f"this command needs the package {error.name}: pip install 'vpo-lab[course]'"
    else:
        return
    print(f"error: {line}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
