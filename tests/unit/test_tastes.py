"""KL and hacking: what pools are truly worth, the rows and tables of the experiment, its figures, a short training."""

import json

import numpy as np
import pytest

from vpo_lab import show
from vpo_lab.course import experiment, figures, tastes
from vpo_lab.course.experiment import FLAWED, JUDGES, PRICED, PRICES, VARIANTS, Job, collect, plan
from vpo_lab.errors import LabError
from vpo_lab.search.pool import Pool
from vpo_lab.search.truth import truth_at_k, truths_of
from vpo_lab.tasks import get_task
from vpo_lab.tasks.judges.tiny import PEOPLE
from vpo_lab.weights import dirichlet_weights

FLAWED_WORLD = "tiny_judges_own_flaws"


def pool_of(name: str, task_name: str, requests: int = 3, chains: int = 12, m: int = 2, seed: int = 0) -> Pool:
    """A pool whose candidates are drawn from the start."""
    task, rng = get_task(task_name), np.random.default_rng(seed)
    rows = task.load(None, "test")[:requests]
    answers = [[task.demonstrations(row, m, rng) for _ in range(chains)] for row in rows]
    flat = [answer for request in answers for chain in request for answer in chain]
    rewards = task.score(flat, [row for row in rows for _ in range(chains * m)])
    shape = (requests, chains, m, len(PEOPLE))
    ids = tuple(row["id"] for row in rows)
    return Pool(name, task_name, PEOPLE, ids, answers, rewards.reshape(shape), np.full((requests, chains), 7 * m))


@pytest.mark.parametrize(("m", "chains", "k"), [(1, 5, 2), (2, 4, 2), (2, 4, 6)])
def test_what_a_pool_is_truly_worth_agrees_with_every_choice_of_chains(m, chains, k):
    from itertools import combinations

    pool = pool_of("vpo", FLAWED_WORLD, 2, chains, m, seed=3)
    pool.rewards_NCMD[:] += np.random.default_rng(0).random(pool.rewards_NCMD.shape) * 1e-3  # no two are equal
    truths_NCMD, hacked_NCM = truths_of(pool)
    weights_KD = dirichlet_weights(128, 4, seed=0)
    found = truth_at_k(pool, k)
    for n in range(2):
        rows = []
        for chosen in combinations(range(chains), k // m):
            proxy_kD = pool.rewards_NCMD[n, list(chosen)].reshape(-1, 4)
            truth_kD = truths_NCMD[n, list(chosen)].reshape(-1, 4)
            hacked_k = hacked_NCM[n, list(chosen)].ravel()
            for w in weights_KD:
                pick = (proxy_kD @ w).argmax()
                rows.append([(proxy_kD @ w)[pick], (truth_kD @ w)[pick], (truth_kD @ w).max(), hacked_k[pick]])
        wanted = dict(zip(("proxy", "truth", "best", "hacked"), np.mean(rows, axis=0), strict=True))
        assert {name: values_N[n] for name, values_N in found.items()} == pytest.approx(wanted, abs=1e-9)


def test_a_pool_without_truth_or_with_half_a_chain_is_refused():
    with pytest.raises(LabError, match="multiple of 2"):
        truth_at_k(pool_of("vpo", FLAWED_WORLD), 3)
    other = Pool("vpo", "tiny_tools", ("a",), ("x",), [[["y"]]], np.zeros((1, 1, 1, 1)), np.ones((1, 1)))
    with pytest.raises(LabError, match="truth"):
        truths_of(other)
    assert tastes.truth_rows(other, [], (1, 2)) == []


def test_the_plan_of_these_worlds(tmp_path):
    jobs = plan(tmp_path, [*JUDGES, *FLAWED], [], [])
    of = {world: {job.variant for job in jobs if job.world == world} for world in (*JUDGES, *FLAWED)}
    every = {f"{method}_kl{price:g}" for method in PRICED for price in PRICES}
    assert all(of[world] == every | {"sft"} for world in JUDGES)
    assert {"grpo_kl0.01", "vpo_kl0.1"} < of["tiny_judges_flawed"] and "vpo_kl0.03" not in of["tiny_judges_flawed"]
    assert {f"{method}_doubted" for method in PRICED} < of[FLAWED_WORLD]
    for job in jobs:
        assert job.profile.rl.candidates == 2 and not job.profile.rl.scale_rewards
        assert not any("@" in name for name in job.pools)
        assert job.start is None or job.profile.rl.kl > 0
        assert get_task(job.profile.task).load(None, "test") == get_task(job.world).load(None, "test")
    doubted = Job(tmp_path, FLAWED_WORLD, "vpo_doubted", 0).profile
    assert doubted.task == f"{FLAWED_WORLD}_doubted" and doubted.rl.kl == 0.01
    assert not {*VARIANTS["grpo_kl0.2"].worlds} & {*JUDGES, *FLAWED}, "a price for the other worlds"


def finish(job: Job, seed: int) -> None:
    """What a finished job leaves."""
    job.stage.policy.mkdir(parents=True)
    entry = dict.fromkeys((*experiment.PROFILED, "truth", "mean_truth"), 0.5)
    steps = [{"step": i + 1, "kl_answer": 0.1 * i, "hacked": 0.02 * i, **entry} for i in range(30)]
    steps = [{**one, "step_time": 1.0, "completions/mean_length": 12.0} for one in steps]
    (job.stage / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))
    for name in job.pools:
        m = 1 if name == "sft" or name.startswith("grpo") else 2
        pool_of(name, job.profile.task, 3, 24 // m, m, seed=seed * 100 + len(name)).save(job.folder.pool(name))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The CSV files of an experiment with made-up pools, and exact optima at two prices."""
    real = tastes.exact_rows
    monkeypatch.setattr(experiment, "exact_rows", lambda world: real(world, (0.1, 0.03)))
    monkeypatch.setattr(tastes, "METHODS", ("grpo", "vpo"))
    monkeypatch.setattr(tastes, "answers_of", lambda world: _few(world))
    names = ["sft", "grpo_kl0.1", "grpo_kl0.01", "vpo_kl0.1", "vpo_kl0.01", "vpo_doubted"]
    jobs = plan(tmp_path / "runs", ["tiny_judges", FLAWED_WORLD], names, [0, 1])
    for job in jobs:
        finish(job, job.seed)
    collect(jobs, tmp_path / "out")
    return tmp_path / "out"


def _few(world):
    """Every seventh answer of a world, so that a test takes no time."""
    from vpo_lab.tasks.judges.optimum import Answers

    start = world.start()[::7] / world.start()[::7].sum()
    return Answers(start, world.proxy()[::7], world.truth()[::7], world.hacked[::7])


def test_the_files_and_tables_of_the_experiment(folder, monkeypatch):
    tables = tastes.read_judges(folder)
    truths = tables["truths"].query("world == @FLAWED_WORLD")
    assert set(truths.variant) >= {"sft", "sft_chain", "grpo_kl0.1", "vpo_doubted"}
    assert truths.query("variant == 'vpo_kl0.1'").k.tolist() == [2, 6, 12, 24] * 2
    assert truths.query("variant == 'grpo_kl0.01'").kl.iloc[0] == pytest.approx(np.mean(0.1 * np.arange(10, 30)))
    assert truths.query("variant == 'sft'").kl.isna().all()
    assert set(tables["curves"].columns) >= {"kl_answer", "truth", "hacked"}
    assert set(tables["exact"].kind) == {"optimum", "settled", "doubted"}
    best = tastes.tuned(tables, "tiny_judges")
    assert set(best.index) == {(k, method) for k in (2, 6, 24) for method in ("grpo", "vpo")}
    assert best.loc[(2, "vpo"), "minus tuned GRPO"] and not best.loc[(2, "grpo"), "minus tuned GRPO"]
    found = tastes.remedies(tables, FLAWED_WORLD)
    assert len(found) == 5 and set(found["the worse of two judges"]) == {"vpo"}
    stopped = found["stopped at 1 nat (rollouts)"]["vpo"]
    assert stopped == pytest.approx([0.5] * 3)
    picked = tables["truths"].query("world == @FLAWED_WORLD and k == 24 and variant == 'vpo_kl0.01'")
    assert found["a true judge picks"]["vpo"][0] == pytest.approx(picked.best.mean())
    assert "grpo" in tastes.second_judge(tables, FLAWED_WORLD).reset_index().method.values


def test_the_tables_of_the_page(folder):
    from vpo_lab.course.results import judges_tables

    texts = judges_tables(tastes.read_judges(folder))
    assert set(texts) == {"judges_tuned", "judges_remedies", "judges_found"}
    assert "tuned" in texts["judges_tuned"] and "tiny_judges" in texts["judges_tuned"]
    assert texts["judges_remedies"].count("the worse of two judges") == 1
    assert texts["judges_found"].count("| 24 ") == len(texts["judges_found"].splitlines()) - 2


def test_the_figures_of_the_experiment(folder, monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "save_figures", lambda these, out: drawn.update(these) or [])
    figures.draw_judges_figures(folder, folder)
    assert set(drawn) == {"judges_kl", "judges_hacking", "judges_remedies"}
    panels = drawn["judges_kl"].axes
    assert len(panels) == 2 and all(len(axes.collections) for axes in panels)  # rings and bars


def test_the_table_of_the_bonus_comes_from_the_committed_results():
    from vpo_lab.course.results import read

    table = tastes.bonus(read())
    change = {
        name: [float(cell.split(" ")[0]) for cell in row] for name, row in zip(table.index, table.values, strict=True)
    }
    assert change["reward_diversity"][1] > change["reward_diversity"][0] + 0.3
    assert change["mean_format"][1] < change["mean_format"][0] - 0.15
    assert change["best@1"][1] < change["best@1"][0] - 0.2


def test_the_exact_rows_of_a_world(monkeypatch):
    monkeypatch.setattr(tastes, "answers_of", _few)
    rows = tastes.exact_rows(FLAWED_WORLD, (0.1, 0.01))
    key = {(row["method"], row["kind"], row["price"], row["k"]) for row in rows}
    assert len(key) == len(rows) == 3 * 2 * 2 * 3
    picked = {(row["kind"], row["price"]): row for row in rows if row["method"] == "vpo" and row["k"] == 24}
    assert picked["optimum", 0.01]["truth"] < picked["optimum", 0.1]["truth"]  # bought with KL, lost in truth
    assert picked["doubted", 0.01]["truth"] > picked["optimum", 0.01]["truth"] + 0.2
    assert picked["optimum", 0.01]["best"] > picked["optimum", 0.01]["truth"] + 0.2
    with pytest.raises(LabError, match="no exact optimum"):
        tastes.exact_rows("tiny")


def test_pictures_refuse_nothing():
    for draw in (show.exact_and_trained, show.proxy_and_truth):
        with pytest.raises(LabError):
            draw({})
    with pytest.raises(LabError):
        show.remedies({}, "title")


def test_a_training_tells_kl_and_truth(tmp_path):
    pytest.importorskip("trl")
    from vpo_lab.config import get_profile
    from vpo_lab.runs import Run
    from vpo_lab.train.rl import train_rl
    from vpo_lab.train.sft import train_sft
    from vpo_lab.train.trainer import truth_metrics

    changes = {"sft.steps": 12, "sft.train_rows": 128, "rl.steps": 2, "rl.rollouts": 12, "rl.kl": 0.1}
    profile, run = get_profile(FLAWED_WORLD, changes), Run(tmp_path / "run")
    run.folder.mkdir()
    train_sft(profile, run, seed=0)
    train_rl(profile, "vpo", run, seed=0)
    for entry in run.stage("vpo").log():
        assert {"kl_answer", "truth", "mean_truth", "hacked"} <= set(entry)
    rewards_BMD = np.array([[[1.0, 0.0], [0.0, 0.8]], [[0.5, 0.5], [0.4, 0.4]]])
    truths_BMD = np.array([[[0.2, 0.2], [0.0, 0.6]], [[0.1, 0.1], [0.9, 0.9]]])
    found = truth_metrics(rewards_BMD, truths_BMD, np.array([True, False, False, False]), np.eye(2))
    # Of the first chain each person picks another answer, of the second both pick the first.
    assert found == pytest.approx(
        {"truth": (0.2 + 0.6 + 0.1 + 0.1) / 4, "mean_truth": truths_BMD.mean(), "hacked": 0.25}
    )
