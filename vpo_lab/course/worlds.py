"""The worlds of a run: the profile's own task, and the maze that it names, in a folder within the run."""

from __future__ import annotations

from dataclasses import dataclass

from vpo_lab.config import Profile, get_profile
from vpo_lab.runs import Run, Stage, open_run
from vpo_lab.tasks import Task, get_task

MAZE = "maze"  # the folder within the run

TITLES = {"tiny_tools": "tool calls", "toolrl": "tool calls"}


@dataclass(frozen=True)
class World:
    """Hold what is trained in one world: its profile and its run folder."""

    settings: Profile
    run: Run

    @property
    def task(self) -> Task:
        """Return the world's task."""
        return get_task(self.settings.task)

    @property
    def title(self) -> str:
        """Return what to call it in a table or a figure."""
        return TITLES.get(self.settings.task, self.task.name)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return its stages in the order of training: the SFT policy, then the methods."""
        return tuple(self.run.stage(name) for name in ("sft", *self.settings.methods))


def worlds_of(profile: Profile, run: Run) -> list[World]:
    """Return the worlds of a run without a look into its folders: the profile's own, then its maze if it names one."""
    mazes = [World(get_profile(profile.maze), Run(run / MAZE, run.until))] if profile.maze else []
    return [World(profile, run), *mazes]


def open_worlds(profile: Profile, run: Run, seed: int) -> list[World]:
    """Return the same, the run folder of the maze opened; LabError if that was made with other settings."""
    own, *mazes = worlds_of(profile, run)
    return [own, *(World(maze.settings, open_run(maze.settings, seed, maze.run.folder)) for maze in mazes)]
