"""Train a profile's methods on real weights for the minutes that are given, and sample from all its policies.

    python benchmarks/real_model.py qwen2.5-coder-0.5b FOLDER --stages sft vpo grpo pool:sft pool:vpo \\
        --minutes vpo=3 grpo=2 --set policy.model=MODEL ...

What `vpo-lab run` does, without notebooks and in one process. Killed, it continues. Seconds are in FOLDER/times.jsonl.
"""

import argparse
import time
from pathlib import Path

from vpo_lab.cli import overrides_of
from vpo_lab.config import get_profile
from vpo_lab.files import append_line
from vpo_lab.runs import Run
from vpo_lab.search.pool import evaluate
from vpo_lab.search.summary import summarize
from vpo_lab.train.rl import train_stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", nargs="*", default=[], metavar="METHOD=N", help="wall time of a training; 0: none")
    parser.add_argument("--micro", nargs="*", default=[], metavar="METHOD=N", help="rollouts in a forward pass")
    parser.add_argument("--stages", nargs="+", required=True, help="sft, a method, pool:NAME or summary, in order")
    parser.add_argument("--data", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", action="extend", default=[], metavar="FIELD=VALUE")
    given = parser.parse_args()
    changes = overrides_of(given.set, given.data)
    minutes = {name: float(value) for name, value in (pair.split("=") for pair in given.minutes)}
    micro = {name: int(value) for name, value in (pair.split("=") for pair in given.micro)}
    profile, run = get_profile(given.profile, changes), Run(given.folder)
    for name in given.stages:
        start = time.perf_counter()
        if name.startswith("pool:"):
            evaluate(profile, name.removeprefix("pool:"), run, given.seed)
        elif name == "summary":
            summarize(profile, run, given.seed)
        else:
            mine = {**changes, **({"rl.micro_rollouts": micro[name]} if name in micro else {})}
            hours = minutes[name] / 60 if name in minutes else None
            train_stages(given.profile, [name], given.seed, given.folder, mine, max_hours=hours)
        took = {"stage": name, "seconds": round(time.perf_counter() - start, 1)}
        append_line(given.folder / "times.jsonl", took)
        print(took, flush=True)


if __name__ == "__main__":
    main()
