"""KL and reward hacking in the worlds of `tiny_judges`: exact optima, trained policies beside them, remedies.

`vpo-lab experiment --world tiny_judges ... --out results/judges` writes the rows of `exact_rows` and `truth_rows`;
`read_judges` reads them, the tables below compare them, and `course.figures.draw_judges_figures` draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vpo_lab.config import get_profile
from vpo_lab.errors import LabError
from vpo_lab.search.pool import Pool
from vpo_lab.search.truth import WEIGHTS, truth_at_k, truths_of
from vpo_lab.tasks import get_task
from vpo_lab.tasks.judges.optimum import METHODS, Answers, Optimum, Policy, merge, settled
from vpo_lab.tasks.judges.tiny import PEOPLE, World
from vpo_lab.weights import dirichlet_weights

if TYPE_CHECKING:
    import pandas as pd

BUDGETS = (2, 6, 24)
# The prices of the curves: the four of the experiment, and enough beside them that a line looks smooth.
CURVE = (1.0, 0.5, 0.3, 0.2, 0.14, 0.1, 0.07, 0.05, 0.04, 0.03, 0.02, 0.014, 0.01, 0.007, 0.005, 0.003, 0.002, 0.001)
PRICES = (0.1, 0.03, 0.01, 0.003)  # of a nat of KL, in the experiment
FILES = {"exact": "exact.csv", "truths": "truths.csv", "curves": "curves.csv.gz", "intervals": "intervals.csv.gz"}

# --- Rows of the CSV files --------------------------------------------------------------------


def answers_of(world: World) -> Answers:
    """Return the different answers of a world, those that nobody tells apart as one."""
    return merge(all_answers(world))


def all_answers(world: World) -> Answers:
    """Return all answers of a world, in the order of its `choices`."""
    return Answers(world.start(), world.proxy(), world.truth(), world.hacked, world.pairs())


def optimal_sets(name: str, price: float, requests: int = 4, seed: int = 0) -> dict[str, dict[str, dict]]:
    """Draw one set of each optimal policy, for the first test requests of a world of `tiny`: no model is trained.

    Return request -> "sft" (the start: a set of single answers) or method -> {"answers", "rewards"}, in the form of an
    experiment's examples. A set holds as many answers as in training; GRPO's are drawn apart.
    """
    task, m = get_task(get_profile(name).task), get_profile(name).rl.candidates
    world, found = _world_of(task.name), {}
    for number, row in enumerate(task.load(None, "test")[:requests]):
        place, asked = row["gold"].split(" ")
        answers = Answers(world.start(asked), world.proxy(asked), world.truth(asked), world.hacked, world.pairs(asked))
        policies = {method: Optimum(method, answers, m).policy(price) for method in METHODS}
        rng = np.random.default_rng([seed, number])
        chosen = {"sft": rng.choice(len(answers.start), m, p=answers.start)}
        for method, policy in policies.items():
            drawn = policy.members[rng.choice(len(policy.shares), m // policy.members.shape[1], p=policy.shares)]
            chosen[method] = rng.permutation(drawn.ravel())  # all orders of a set are equally likely
        found[row["id"]] = {
            method: {
                "answers": ["\n".join(world.phrases(world.choices[n], place)) for n in numbers],
                "rewards": answers.proxy[numbers].round(4).tolist(),
            }
            for method, numbers in chosen.items()
        }
    return found


def exact_rows(name: str, prices: Sequence[float] = CURVE) -> list[dict]:
    """Return what the optimal policies of a world are worth: a row per method, price and budget.

    `kl` is that of an answer in nats, `hacked_share` of all answers, `hacked` of the picked ones. `kind` is
    "optimum"; "settled" where a price per token settles, in worlds without a flaw and at the experiment's prices; and
    "doubted" for the optimum where every person has a second judge, in the world of own flaws.
    """
    profile = get_profile(name)
    m, world = profile.rl.candidates, _world_of(profile.task)
    answers, rows = answers_of(world), []
    for method in METHODS:
        optimum = Optimum(method, answers, m)
        rows += [row for price in prices for row in _exact(name, method, "optimum", price, optimum.policy(price))]
        if not world.flaw:
            whole, ways = all_answers(world), world.choices.max(axis=0) + 1
            for price in sorted({*prices} & {*PRICES}, reverse=True):
                policy = settled(method, whole, ways, price, m, couplings=world.couplings())
                rows += _exact(name, method, "settled", price, policy)
        if world.flaw == "own" and world.rho == 0:
            optimum = Optimum(method, answers_of(World(world.rho, world.flaw, doubted=True)), m)
            rows += [row for price in prices for row in _exact(name, method, "doubted", price, optimum.policy(price))]
    return rows


def _world_of(task: str) -> World:
    """The world behind a task of `tiny`; LabError for another task."""
    world = getattr(get_task(task), "world", None)
    if not isinstance(world, World):
        raise LabError(f"{task} has no exact optimum: choose a world of tiny_judges")
    return world


def _exact(name: str, method: str, kind: str, price: float, policy: Policy) -> list[dict]:
    key = {"world": name, "method": method, "kind": kind, "price": price}
    shared = {"kl": policy.kl, "reward": policy.reward, "hacked_share": policy.hacked}
    worth = policy.worth(BUDGETS, dirichlet_weights(WEIGHTS, len(PEOPLE), seed=0))
    return [{**key, "k": k, **{c: round(v, 6) for c, v in (shared | worth[k]).items()}} for k in BUDGETS]


def truth_rows(pool: Pool, log: Sequence[dict], budgets: Sequence[int]) -> list[dict]:
    """Return what a pool is worth by its task's truth, a row per budget; none where the task knows no truth.

    `kl` is the KL of an answer at the end of the training, the mean of its log's last 20 entries; empty without a
    price on KL. `hacked_share` is the share of all candidates that hold a flaw.
    """
    if not hasattr(get_task(pool.task), "truth"):
        return []
    truths = truths_of(pool)
    spent = [entry["kl_answer"] for entry in log[-20:] if "kl_answer" in entry]
    shared = {"kl": round(float(np.mean(spent)), 4)} if spent else {}
    shared["hacked_share"] = round(float(truths[1].mean()), 5)
    return [
        {"k": k, **shared, **{name: round(float(v.mean()), 5) for name, v in truth_at_k(pool, k, truths).items()}}
        for k in budgets
        if k % pool.m == 0
    ]


# --- Tables -----------------------------------------------------------------------------------


def read_judges(folder: str | Path) -> dict[str, pd.DataFrame]:
    """Return the tables of an experiment in these worlds: "exact", "truths", "curves", "intervals".

    `method` and `price` are columns of all but "exact", made of the variant's name. LabError if a file is missing.
    """
    import pandas as pd

    tables = {}
    for name, file in FILES.items():
        path = Path(folder) / file
        if not path.exists():
            raise LabError(f"{path} does not exist: `vpo-lab experiment --world tiny_judges --out {folder}` writes it")
        rows = pd.read_csv(path).rename(columns={"mean": "value"})
        if name != "exact":
            parts = rows.variant.str.extract(r"^(?P<method>.*?)(?:_kl(?P<price>[0-9.]+)|(?P<doubted>_doubted))?$")
            rows = rows.assign(method=parts.method, price=pd.to_numeric(parts.price), doubted=parts.doubted.notna())
        tables[name] = rows.query("world.str.startswith('tiny_judges')")
    return tables


def over_seeds(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Return (mean, least, most) of a column over training seeds."""
    by_seed = np.asarray(rows.groupby("seed")[column].mean(), dtype=float)
    return np.array([by_seed.mean(), by_seed.min(), by_seed.max()])


def tuned(tables: dict[str, pd.DataFrame], world: str) -> pd.DataFrame:
    """Return for each budget the best price of every method, what it is worth, and the lead over the tuned GRPO.

    The price is chosen on the same seeds, which favours all methods alike. The lead is the mean over seeds and
    requests with its 95% interval. `exact` is the best that the optimal policies reach at any price.
    """
    import pandas as pd

    found = tables["intervals"].query("world == @world and metric == 'eum' and not doubted and price > 0")
    exact = tables["exact"].query("world == @world and kind == 'optimum'")
    rows = []
    for k in BUDGETS:
        worth = found.query("k == @k and minus.isna()").sort_values("value").groupby("method").last()
        for method in [name for name in METHODS if name in worth.index]:
            best = worth.loc[method]
            ceiling = exact.query("method == @method and k == @k").proxy.max()
            row = {"k": k, "method": method, "price": best.price, "worth": _cell(best), "exact": f"{ceiling:.3f}"}
            against = found.minus == worth.variant.get("grpo")
            lead = found[against & (found.k == k) & (found.variant == best.variant)]
            rows.append(row | {"minus tuned GRPO": _cell(lead.iloc[0], "+.3f") if len(lead) else ""})
    return pd.DataFrame(rows).set_index(["k", "method"])


def remedies(
    tables: dict[str, pd.DataFrame], world: str, k: int = 24, stop_at: float = 1.0
) -> dict[str, dict[str, np.ndarray]]:
    """Return what people really get with each remedy: remedy -> method -> (mean, least, most) over seeds.

    The yardstick is the price 0.01, with the answer picked by the flawed score. Stopping at a measured KL takes the
    training of that yardstick at the first ten steps whose KL of an answer is above `stop_at` nats: its own rollouts
    judge it, so k is the answers of a rollout there, 1 for GRPO and M for sets.
    """
    truths = tables["truths"].query("world == @world and k == @k")
    curves = tables["curves"].query("world == @world and price == 0.01")
    rows = {
        "none: price 0.01": (truths.query("price == 0.01"), "truth"),
        "KL: price 0.1": (truths.query("price == 0.1"), "truth"),
        "the worse of two judges": (truths.query("doubted"), "truth"),
        "a true judge picks": (truths.query("price == 0.01"), "best"),
    }
    found = {remedy: _by_method(part, column) for remedy, (part, column) in rows.items()}
    stopped = (
        curves.query("kl_answer >= @stop_at").sort_values("step").groupby(["method", "seed"]).first().reset_index()
    )
    found[f"stopped at {stop_at:g} nat{'s' * (stop_at != 1)} (rollouts)"] = _by_method(stopped, "truth")
    return {remedy: row for remedy, row in found.items() if row}


def _by_method(rows: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
    parts = {name: rows[rows.method == name] for name in METHODS}
    return {name: over_seeds(part, column) for name, part in parts.items() if len(part)}


def second_judge(tables: dict[str, pd.DataFrame], world: str) -> pd.DataFrame:
    """Return what a judge without a flaw still finds among k answers: the share hacked, the proxy's pick, the best."""
    import pandas as pd

    rows = []
    parts = tables["truths"].query("world == @world and price > 0").groupby(["k", "method", "price"])
    for (k, method, price), part in parts:
        cells = {c: "{:.3f} [{:.3f}, {:.3f}]".format(*over_seeds(part, c)) for c in ("hacked_share", "truth", "best")}
        rows.append({"k": k, "method": method, "price": price, **cells})
    return pd.DataFrame(rows).set_index(["k", "method", "price"])


def bonus(tables: dict[str, pd.DataFrame], world: str = "tiny") -> pd.DataFrame:
    """Return what a bonus for diversity did to `vpo_credit`: the tables are those of `results.read`.

    What the bonus pays for goes up, and what answers are for goes down: a reward that is hacked.
    """
    import pandas as pd

    runs = tables["runs"].query("world == @world")
    first = tables["budgets"].query("world == @world and k == 1")
    seeds = runs[runs.variant == "diversity0.1"].seed
    names = ["reward_diversity", *(c for c in runs if c.startswith("mean_"))]
    table = {}
    for variant in ("vpo_credit", "diversity0.1"):
        mine = runs[(runs.variant == variant) & runs.seed.isin(seeds)]
        row = {name: over_seeds(mine, name) for name in names if mine[name].notna().all()}
        row["best@1"] = over_seeds(first[(first.variant == variant) & first.seed.isin(seeds)], "best")
        table[variant] = {name: "{:.3f} [{:.3f}, {:.3f}]".format(*numbers) for name, numbers in row.items()}
    return pd.DataFrame(table)


def _cell(row, form: str = ".3f") -> str:
    return f"{row.value:{form}} [{row.low:{form}}, {row.high:{form}}]"


@lru_cache
def dial_values(rhos: tuple[float, ...], k: int = 2, prices: tuple[float, ...] = CURVE[5:]) -> dict[str, np.ndarray]:
    """Return the best that each method's optimum is worth at a budget of k, over the prices: method -> (n,)."""
    weights_KD = dirichlet_weights(WEIGHTS, len(PEOPLE), seed=0)
    found = {method: np.zeros(len(rhos)) for method in METHODS}
    for i, rho in enumerate(rhos):
        answers = answers_of(World(rho))
        for method, value_n in found.items():
            optimum = Optimum(method, answers, weights=dirichlet_weights(256, len(PEOPLE)))
            value_n[i] = max(optimum.policy(price).worth([k], weights_KD)[k]["proxy"] for price in prices)
    return found
