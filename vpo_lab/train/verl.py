"""VPO in verl: a data set that asks for M answers, and a reward function. No fork, no estimator.

A reward vector does not reach an estimator of verl's default trainer: it fetches one number per rollout. R(S) is one
number per rollout, so `algorithm.adv_estimator=grpo` trains VPO. With reward functions of your own (my_rewards.py):

    compute_score = SetReward([correct, brief], candidates=3).verl

    python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo \\
        reward.custom_reward_function.path=$PWD/my_rewards.py \\
        data.custom_cls.path=pkg://vpo_lab.train.verl data.custom_cls.name=VPODataset +data.candidates=3 ...

With a task of the lab, `python -m vpo_lab.train.verl TASK FOLDER` writes its data, and
reward.custom_reward_function.path=pkg://vpo_lab.train.verl scores them. What was checked: docs/drop-in.md.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import threading
from pathlib import Path

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.set_reward import SetReward, ask, check_candidates, unask
from vpo_lab.tasks import Task, get_task

CANDIDATES = 3
# verl scores in threads. A task may hold a sandbox, which answers one caller at a time.
_LOCK = threading.Lock()


def __getattr__(name: str):
    """Build VPODataset when it is asked for: it needs verl."""
    if name != "VPODataset":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _dataset_class()


@functools.cache
def _dataset_class() -> type:
    try:
        base = importlib.import_module("verl.utils.dataset.rl_dataset").RLHFDataset
    except ModuleNotFoundError as error:
        raise LabError(f"VPODataset needs {error.name}, which is not installed: pip install 'verl>=0.9'") from error

    class VPODataset(base):
        """verl's data set with a request for `data.candidates` answers (3) in its prompts.

        Every row's extra_info holds that number and the prompt without the request, for `SetReward.verl`.
        """

        @property
        def candidates(self) -> int:
            return check_candidates(self.config.get("candidates", CANDIDATES))

        def maybe_filter_out_long_prompts(self, dataframe=None):
            # Here, so that the request counts in the length. It is called anew when a run is resumed.
            key, m = self.prompt_key, self.candidates
            asked = dataframe.map(lambda prompt: {key: ask(unask(prompt, m), m)}, input_columns=[key])
            return super().maybe_filter_out_long_prompts(asked)

        def __getitem__(self, item):
            row = super().__getitem__(item)
            told = {"candidates": self.candidates, "prompt": unask(row[self.prompt_key], self.candidates)}
            return {**row, "extra_info": {**row["extra_info"], **told}}

    VPODataset.__module__, VPODataset.__qualname__ = __name__, "VPODataset"  # where pickle looks for it
    return VPODataset


# --- Tasks of the lab -----------------------------------------------------------------------------


class TaskReward(SetReward):
    """Score rollouts of a task of the lab by its objectives. `write_data` puts the rows into extra_info."""

    def __init__(self, task: Task, candidates: int = CANDIDATES, **options):
        super().__init__([task.score] * len(task.objectives), candidates, **options)
        self.task, self.names = task, list(task.objectives)

    def score(self, answers: list, columns: dict) -> np.ndarray:
        """Return the reward vectors of n answers to n rows: (n, D)."""
        rows = [json.loads(told["row"]) for told in columns["extra_info"]]
        with _LOCK:
            return np.asarray(self.task.score(answers, rows), dtype=float)


def compute_score(data_source="", solution_str="", ground_truth=None, extra_info=None, **_) -> dict[str, float | None]:
    """Score a rollout of the task that `data_source` names: verl's reward function for `write_data`'s files."""
    told = extra_info or {}
    if "row" not in told:
        raise LabError(f"data_source {data_source!r}: no row in extra_info: write the data by vpo_lab.train.verl")
    reward = _reward_of(data_source, told.get("candidates", CANDIDATES))
    return reward.verl(data_source, solution_str, ground_truth, extra_info)


@functools.cache
def _reward_of(name: str, candidates: int) -> TaskReward:
    return TaskReward(get_task(name), candidates)


def write_data(task: Task, folder: str | Path, data: str | None = None) -> list[Path]:
    """Write train.parquet and test.parquet of a task as verl reads them; return their paths."""
    import pandas as pd

    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for split in ("train", "test"):
        rows = [
            {
                "data_source": task.name,
                "prompt": row["prompt"],
                "ability": task.name,
                "reward_model": {"style": "rule", "ground_truth": row["gold"]},
                "extra_info": {"index": index, "split": split, "row": json.dumps(row)},
            }
            for index, row in enumerate(task.load(data, split))
        ]
        paths.append(Path(folder) / f"{split}.parquet")
        pd.DataFrame(rows).to_parquet(paths[-1])
    return paths


def main(arguments: list[str]) -> None:
    """Write a task's data for verl: TASK FOLDER [DATA]."""
    if len(arguments) not in (2, 3):
        raise LabError("write: python -m vpo_lab.train.verl TASK FOLDER [DATA]")
    task = get_task(arguments[0])
    for path in write_data(task, *arguments[1:]):
        print(path)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LabError as error:
        sys.exit(f"error: {error}")
