"""Tables for the notebooks: settings of a training, what pools reach, who does what in a chain, the experiment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, combinations_with_replacement

import numpy as np
import pandas as pd

from vpo_lab.config import Profile
from vpo_lab.course.results import CORNERS, Tables, by_seed
from vpo_lab.metrics import METRICS, paired_bootstrap, verdict
from vpo_lab.search.pool import Pool
from vpo_lab.search.summary import at_k
from vpo_lab.show.style import method_label
from vpo_lab.tasks import Task
from vpo_lab.tasks.tool_calls.plans import kind_of, means_second, plan_of, ranked_plans, thing_of
from vpo_lab.tasks.tool_calls.reward import OBJECTIVES, parse_answer, score
from vpo_lab.tasks.tool_calls.tiny import Kind, golds_of, kinds
from vpo_lab.train.prompts import answers_per_rollout, rollouts_per_prompt
from vpo_lab.weights import dirichlet_weights, set_reward

# --- A training ---------------------------------------------------------------


def settings_table(profile: Profile) -> pd.DataFrame:
    """Return the settings of the RL trainings of a profile, a column for each method."""
    rl = profile.rl
    prompts, columns = rl.rollouts // rl.group_size, {}
    for method in profile.methods:
        rollouts, answers = rollouts_per_prompt(profile, method), answers_per_rollout(profile, method)
        columns[method_label(method)] = {
            "steps": f"{rl.steps}",
            "prompts in a step": f"{prompts}",
            "rollouts to each prompt (G)": f"{rollouts}",
            "answers in a rollout (M)": f"{answers}",
            "answers in a step": f"{prompts * rollouts * answers}",
            "learning rate": f"{rl.learning_rate:g}",
            "schedule": rl.schedule.replace("_", " "),
            "temperature": f"{rl.temperature:g}",
            "price on KL": f"{rl.kl:g}",
            "norm at which gradients are clipped": f"{rl.max_grad_norm:g}",
        }
    return pd.DataFrame(columns)


def quarters(log: Sequence[Mapping], metrics: Sequence[str]) -> pd.DataFrame:
    """Return the means of logged metrics over the first and the last quarter of a training."""
    size = max(1, len(log) // 4)
    means = {m: [np.mean([e.get(m, np.nan) for e in part]) for part in (log[:size], log[-size:])] for m in metrics}
    return pd.DataFrame(means, index=["first quarter", "last quarter"]).T.round(2)


# --- Pools --------------------------------------------------------------------


def table_at_k(
    pools: Mapping[str, Pool], metric: str, budgets: Sequence[int], task: Task | None = None
) -> pd.DataFrame:
    """Return the mean of a metric for every pool and budget, and the ceiling where the task knows one."""
    rows = {method_label(name): [at_k(pool, metric, k).mean() for k in budgets] for name, pool in pools.items()}
    if task is not None and hasattr(task, "ceiling") and metric in task.ceiling(budgets[0]):
        rows["ceiling"] = [task.ceiling(k)[metric] for k in budgets]
    table = pd.DataFrame(rows, index=[f"k = {k}" for k in budgets]).T.round(3)
    return table.rename_axis(METRICS[metric])


def gains(one: Pool, others: Mapping[str, Pool], metric: str, budgets: Sequence[int]) -> pd.DataFrame:
    """Return a pool's metric minus that of others, paired by request: the mean, its 95% interval, and a verdict."""
    rows = {}
    for name, k in ((name, k) for name in others for k in budgets):
        mean, low, high = paired_bootstrap(at_k(one, metric, k), at_k(others[name], metric, k))
        rows[f"minus {method_label(name)}", f"k = {k}"] = f"{verdict(low, high)} {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    return pd.Series(rows, dtype=object).unstack()[[f"k = {k}" for k in budgets]].rename_axis(METRICS[metric])


def imitation(pools: Mapping[str, Pool], rows: Sequence[dict]) -> pd.DataFrame:
    """Return what a warmup on tool calls taught, as shares: form and copying, and what takes knowledge of the user."""
    row_of = {row["id"]: row for row in rows}
    table = {}
    for name, pool in pools.items():
        formed, mixed, copied = [], [], []
        for row_id, chains in zip(pool.ids, pool.answers, strict=True):
            request, wants_calls = row_of[row_id]["prompt"][-1]["content"], parse_answer(row_of[row_id]["gold"]).calls
            for parsed in (parse_answer(answer) for chain in chains for answer in chain):
                formed.append(parsed.call_format or parsed.response_format)
                mixed.append(formed[-1] and not (parsed.call_format if wants_calls else parsed.response_format))
                copied += [str(value) in request for call in parsed.calls for value in call.parameters.values()]
        table[method_label(name)] = {
            "well formed: a call or a question": np.mean(formed),
            "values in calls that appear in the request": np.mean(copied) if copied else 0.0,
            "called where a question was meant, or the reverse": np.mean(mixed),
            "solved with one candidate": at_k(pool, "pass", 1).mean(),
        }
    return pd.DataFrame(table).round(2)


# --- Inside a chain, and from chain to chain ----------------------------------


def positions(pools: Mapping[str, Pool]) -> pd.DataFrame:
    """Return how different the answers of a chain are, the mean of each position, and the best of the first j."""
    rows = {}
    for name, pool in pools.items():
        different = np.mean([len(set(chain) - {""}) for chains in pool.answers for chain in chains])
        alone = pool.scalar_NCM.mean(axis=(0, 1))
        so_far = np.maximum.accumulate(pool.scalar_NCM, axis=2).mean(axis=(0, 1))
        rows[method_label(name)] = {
            ("different answers", "in a chain"): different,
            **{("answer by itself", f"{j + 1}"): value for j, value in enumerate(alone)},
            **{("best of the first", f"{j + 1}"): value for j, value in enumerate(so_far)},
        }
    return pd.DataFrame(rows).T.round(3)


def copies(pools: Mapping[str, Pool], n: int) -> pd.DataFrame:
    """Return how often two chains for the same request agree, and what more of them buy in best@k, up to k = n."""
    rows = {}
    for name, pool in pools.items():
        pairs = [(a, b) for chains in pool.answers for a, b in combinations(chains, 2)]
        new = [len({*b} - {*a, ""}) for a, b in pairs]
        rows[method_label(name)] = {
            "same first answer": f"{np.mean([a[0] == b[0] for a, b in pairs]):.0%}",
            "same answers": f"{np.mean([sorted(a) == sorted(b) for a, b in pairs]):.0%}",
            "new answers in a second chain": f"{np.mean(new):.2f}",
            "best@k of one chain": f"{at_k(pool, 'best', pool.m).mean():.3f}",
            f"best@k of {n // pool.m} chains": f"{at_k(pool, 'best', n).mean():.3f}",
        }
    return pd.DataFrame(rows)


def plan_shares(pool: Pool, rows: Sequence[dict], kind: Kind) -> np.ndarray:
    """Return how often answer j follows each plan of a kind, likeliest first, then none of them: (M, plans + 1)."""
    order, row_of = list(ranked_plans(kind)), {row["id"]: row for row in rows}
    counts = np.zeros((pool.m, len(order) + 1))
    for row_id, chains in zip(pool.ids, pool.answers, strict=True):
        for chain in chains if kind_of(row_of[row_id]) == kind else ():
            for j, answer in enumerate(chain):
                plan = plan_of(answer)
                counts[j, order.index(plan) if plan in order else -1] += 1
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def specialisation(pools: Mapping[str, Pool], rows: Sequence[dict]) -> pd.DataFrame:
    """Return in how many kinds the positions prefer 1, 2, ... different plans, and how often they give them."""
    table = {}
    for name, pool in pools.items():
        counts = _tally(pool, rows, lambda answer, row: plan_of(answer))
        top = [[counter.most_common(1)[0] for counter in by_position] for by_position in counts.values()]
        different = Counter(len({plan for plan, _ in kind}) for kind in top)
        share = [
            n / c.total()
            for by, kind in zip(counts.values(), top, strict=True)
            for c, (_, n) in zip(by, kind, strict=True)
        ]
        likeliest = [by[0][0] == next(iter(ranked_plans(kind))) for kind, by in zip(counts, top, strict=True)]
        table[method_label(name)] = {
            **{f"kinds with {i} different favourites": f"{different[i]}" for i in range(1, pool.m + 1)},
            "a position gives its favourite in": f"{np.mean(share):.0%}",
            "kinds in which answer 1 favours the likeliest": f"{sum(likeliest)} of {len(likeliest)}",
        }
    return pd.DataFrame(table)


def second_thing(pools: Mapping[str, Pool], rows: Sequence[dict]) -> pd.DataFrame:
    """Return how often each position names only the second thing, in kinds where users may mean it; and the users."""
    table, users = {}, []
    for name, pool in pools.items():
        seen = {kind: by for kind, by in _tally(pool, rows, thing_of).items() if means_second(kind)}
        users = [means_second(kind) for kind in seen]
        table[method_label(name)] = {
            f"answer {j + 1}": np.mean([by[j][1] / by[j].total() for by in seen.values()]) if seen else np.nan
            for j in range(pool.m)
        }
    table["users who mean it"] = {"answer 1": np.mean(users) if users else np.nan}
    return pd.DataFrame(table).map(lambda share: "" if np.isnan(share) else f"{share:.0%}")


def worth_of_second(m: int) -> pd.DataFrame:
    """Return what m golds earn at best, with and without the second thing, in kinds where users may mean it.

    A mean over these kinds, each in expectation over what its users mean. All sets of m golds of a kind are tried.
    """
    weights_KD, best = dirichlet_weights(1024, len(OBJECTIVES)), []
    for kind in filter(means_second, kinds()):
        golds, shares_G = golds_of(kind), np.array(kind.probabilities)
        rewards_AGD = np.array([[score(answer, gold) for gold in golds] for answer in golds])
        earned, solved, named = [], [], []
        for chosen in map(list, combinations_with_replacement(range(len(golds)), m)):
            earned.append(shares_G @ set_reward(rewards_AGD[chosen].swapaxes(0, 1), weights_KD))
            solved.append(shares_G[np.unique(chosen)].sum())
            named.append(any(kind.outcomes[i][1] for i in chosen))
        best.append([(np.max(of), np.max(of, where=~np.array(named), initial=0)) for of in (earned, solved)])
    best_KQ2 = np.array(best)  # kinds, quantities, with and without
    equal_Q = np.isclose(*best_KQ2.transpose(2, 0, 1)).sum(axis=0)
    table = pd.DataFrame(best_KQ2.mean(axis=0).T, ["best golds", "best golds for the first thing"]).map("{:.3f}".format)
    table.loc["kinds in which they earn the same"] = [f"{count} of {len(best)}" for count in equal_Q]
    return table.set_axis([f"R(S), M = {m}", f"pass@{m}"], axis=1)


def _tally(pool: Pool, rows: Sequence[dict], read: Callable[[str, dict], object]) -> dict[Kind, list[Counter]]:
    """Count for every kind and position what `read(answer, row)` finds."""
    counts: dict[Kind, list[Counter]] = {}
    row_of = {row["id"]: row for row in rows}
    for row_id, chains in zip(pool.ids, pool.answers, strict=True):
        row = row_of[row_id]
        by_position = counts.setdefault(kind_of(row), [Counter() for _ in range(pool.m)])
        for chain in chains:
            for counter, answer in zip(by_position, chain, strict=True):
                counter[read(answer, row)] += 1
    return counts


def treasures(pools: Mapping[str, Pool]) -> pd.DataFrame:
    """Return the share of chains of maze walks that hold gold, diamonds, both (in different walks) or neither.

    Of chains also how often each of their walks takes neither.
    """
    table = {}
    for name, pool in pools.items():
        taken_NCMT = pool.rewards_NCMD[..., [pool.objectives.index(kind) for kind in ("gold", "diamond")]] > 0
        gold, diamonds = np.moveaxis(taken_NCMT.any(axis=2), -1, 0)
        found = {"gold": gold, "diamonds": diamonds, "both": gold & diamonds, "neither": ~(gold | diamonds)}
        if pool.m > 1:
            neither_NCM = ~taken_NCMT.any(axis=-1)
            found |= {f"neither in answer {j + 1}": neither_NCM[..., j] for j in range(pool.m)}
        table[method_label(name)] = {what: f"{share.mean():.0%}" for what, share in found.items()}
    return pd.DataFrame(table)


# --- The experiment -----------------------------------------------------------


def corners(tables: Tables, measure: str, world: str) -> pd.DataFrame:
    """Return mean, least, most and seeds of what separates the set from the vector, see `results.CORNERS`.

    measure: such as "eum@3".
    """
    rows = {}
    for name, corner in CORNERS.items():
        values = by_seed(tables, name, measure, world)
        rows[(*corner, name)] = [*values.agg(["mean", "min", "max"]).round(3), len(values)]
    index = pd.MultiIndex.from_tuples(rows, names=["a rollout holds", "paid for", "method"])
    return pd.DataFrame(rows.values(), index, ["mean", "least", "most", "seeds"]).astype({"seeds": int})
