"""evaluation.py: pools that survive the disk, figures that a hand-made pool confirms."""

import gzip
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from vpo_lab.config import get_profile
from vpo_lab.course.results import find_results
from vpo_lab.errors import LabError
from vpo_lab.files import read_json
from vpo_lab.metrics import expected_utility
from vpo_lab.runs import Run, Stage
from vpo_lab.search.pool import Pool, evaluate, pool_names, sample_pool, sample_sets
from vpo_lab.search.summary import at_k, describe, metrics_of, summarize
from vpo_lab.tasks import get_task
from vpo_lab.tasks.maze import world as maze
from vpo_lab.tasks.tool_calls.tiny import TinyTools
from vpo_lab.weights import dirichlet_weights

SMOKE = get_profile("smoke")
VPO = "vpo"
OBJECTIVES = get_task("tiny_tools").objectives


def make_pool(name: str, n: int, chains: int, m: int, seed: int = 0) -> Pool:
    """Random rewards out of {0, .5, 1}, some candidates solved."""
    rng = np.random.default_rng(seed)
    rewards = rng.integers(3, size=(n, chains, m, len(OBJECTIVES))) / 2
    rewards[rng.random((n, chains, m)) < 0.2] = 1.0
    return Pool(
        name=name,
        task="tiny_tools",
        objectives=OBJECTIVES,
        ids=tuple(f"row-{i}" for i in range(n)),
        answers=[[[f"{i} {c} {j}" for j in range(m)] for c in range(chains)] for i in range(n)],
        rewards_NCMD=rewards,
        tokens_NC=rng.integers(5, 50, size=(n, chains)),
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with a pool of every name of the smoke profile; the ceiling, which takes seconds, is made up."""
    monkeypatch.setattr(TinyTools, "ceiling", staticmethod(lambda k: {"best": k / 10, "pass": k / 20}))
    for seed, name in enumerate(pool_names(SMOKE)):
        m = 1 if name in ("sft", "grpo") else 3
        make_pool(name, n=6, chains=6 // m, m=m, seed=seed).save(Run(tmp_path).pool(name))
    return Run(tmp_path)


# --- Pools ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chains, m", [(6, 1), (2, 3)])
def test_a_saved_pool_comes_back(tmp_path, chains, m):
    pool = make_pool("vpo", n=4, chains=chains, m=m)
    pool.answers[0][0][0] = 'ein <answer_1> "Grüße" 漢字\n'
    pool.save(tmp_path / "pool.json.gz")
    loaded = Pool.load(tmp_path / "pool.json.gz")
    for field in ("name", "task", "objectives", "ids", "answers", "m"):
        assert getattr(loaded, field) == getattr(pool, field)
    assert np.array_equal(loaded.rewards_NCMD, pool.rewards_NCMD)
    assert np.array_equal(loaded.tokens_NC, pool.tokens_NC)


def test_a_score_that_is_rounded_on_disk_still_counts_as_solved(tmp_path):
    pool = make_pool("vpo", n=2, chains=2, m=3)
    pool.rewards_NCMD[0, 0, 0] = [1, 1, 1, 1 - 1e-12]
    pool.rewards_NCMD[0, 0, 1] = [1, 1, 1, 0.999]
    pool.save(tmp_path / "pool.json.gz")
    assert Pool.load(tmp_path / "pool.json.gz").solved_NCM[0, 0, :2].tolist() == pool.solved_NCM[0, 0, :2].tolist()
    assert pool.solved_NCM[0, 0, :2].tolist() == [1.0, 0.0]


def damaged(**changes) -> bytes:
    pool = make_pool("vpo", n=2, chains=2, m=3)
    fields = {
        "name": pool.name,
        "task": pool.task,
        "objectives": pool.objectives,
        "ids": pool.ids,
        "answers": pool.answers,
        "rewards": pool.rewards_NCMD.tolist(),
        "tokens": pool.tokens_NC.tolist(),
    }
    fields = {key: value for key, value in {**fields, **changes}.items() if value is not None}
    return gzip.compress(json.dumps(fields).encode(), mtime=0)


def test_what_damaged_builds_is_whole_without_a_change(tmp_path):
    (tmp_path / "pool.json.gz").write_bytes(damaged())
    assert Pool.load(tmp_path / "pool.json.gz").m == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        damaged()[:60],
        gzip.compress(b"[]", mtime=0),
        gzip.compress(b'"text"', mtime=0),
        gzip.compress(b"{}", mtime=0),
        damaged(rewards=None),
        damaged(tokens=None),
        damaged(rewards=[[1, 2], [3]]),
        damaged(rewards="high"),
        damaged(rewards=[[1.0, 1.0], [1.0, 1.0]]),
        damaged(ids=["a"]),
        damaged(ids=["a", "b", "c"]),
        damaged(answers=[]),
        damaged(answers=[[["only one chain"]]] * 2),
        damaged(tokens=[1, 2]),
        damaged(objectives=None),
        damaged(objectives=["format"]),
    ],
)
def test_a_damaged_pool_says_so_in_one_line(tmp_path, content):
    path = tmp_path / "pool.json.gz"
    path.write_bytes(content)
    with pytest.raises(LabError) as caught:
        Pool.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "delete it" in str(caught.value)


def test_a_missing_pool_says_so(tmp_path):
    with pytest.raises(LabError, match="does not exist"):
        Pool.load(tmp_path / "pool.json.gz")


# --- Budgets ----------------------------------------------------------------------------------


def brute_best(scores_CM: np.ndarray, k: int) -> float:
    """The mean over every ordered choice of chains: whole ones, then the start of one more."""
    chains, m = scores_CM.shape
    order = list(itertools.permutations(range(chains), math.ceil(k / m)))
    return float(np.mean([np.concatenate([scores_CM[c] for c in chosen])[:k].max() for chosen in order]))


@pytest.mark.parametrize("chains, m", [(6, 1), (3, 2), (2, 3)])
@pytest.mark.parametrize("metric", ["best", "pass"])
def test_best_and_pass_are_means_over_all_choices_of_chains(chains, m, metric):
    pool = make_pool("vpo", n=5, chains=chains, m=m)
    scores_NCM = pool.rewards_NCMD.mean(axis=3)
    if metric == "pass":
        scores_NCM = (pool.rewards_NCMD == 1).all(axis=3)
    for k in range(1, 7):
        expected = [brute_best(scores_CM, k) for scores_CM in scores_NCM]
        assert at_k(pool, metric, k) == pytest.approx(expected)


def test_expected_utility_of_the_whole_pool_is_that_of_the_set():
    pool = make_pool("vpo", n=4, chains=2, m=3)
    weights_KD = dirichlet_weights(128, len(OBJECTIVES), seed=0)
    assert at_k(pool, "eum", 6) == pytest.approx(expected_utility(pool.rewards_NCMD.reshape(4, 6, -1), weights_KD))
    one_weight = [
        np.mean([brute_best(scores_CM, 2) for scores_CM in np.moveaxis(rewards_CMD @ weights_KD.T, 2, 0)])
        for rewards_CMD in pool.rewards_NCMD
    ]
    assert at_k(pool, "eum", 2) == pytest.approx(one_weight)


def test_an_unknown_metric_or_too_large_a_budget_is_refused():
    pool = make_pool("vpo", n=2, chains=2, m=3)
    with pytest.raises(LabError, match="'mean'"):
        at_k(pool, "mean", 1)
    for k in (0, 7):
        with pytest.raises(LabError, match=f"k = {k}"):
            at_k(pool, "best", k)
    with pytest.raises(LabError, match="does not know its Pareto fronts"):
        at_k(pool, "hypervolume", 1)


def maze_pool(m: int) -> Pool:
    """Two chains of walks to the first two test mazes: those of the front, in turn, and one that goes nowhere."""
    task = get_task("maze")
    rows = task.load(None, "test")[:2]
    answers = [[[*maze.best_paths(row["gold"]), "←"][:m]] * 2 for row in rows]
    rewards = [
        [task.score(chain, [row] * len(chain)) for chain in chains] for row, chains in zip(rows, answers, strict=True)
    ]
    ids = tuple(row["id"] for row in rows)
    return Pool("vpo", "maze", task.objectives, ids, answers, np.array(rewards), np.full((2, 2), 9))


def test_the_hypervolume_ratio_is_that_of_the_exact_front():
    front_size = len(maze.front(get_task("maze").load(None, "test")[0]["gold"]))
    whole = maze_pool(front_size + 1)
    assert metrics_of(whole)[-1] == "hypervolume" and "hypervolume" not in metrics_of(
        make_pool("vpo", n=2, chains=2, m=3)
    )
    assert at_k(whole, "hypervolume", front_size) == pytest.approx([1.0, 1.0])
    assert at_k(whole, "hypervolume", 2 * (front_size + 1)) == pytest.approx([1.0, 1.0])
    one, two = at_k(whole, "hypervolume", 1), at_k(whole, "hypervolume", 2)
    assert (one > 0).all() and (one < two).all() and (two < 1).all()
    alone = maze_pool(1)
    assert at_k(alone, "hypervolume", 1) == pytest.approx(one)
    assert at_k(alone, "hypervolume", 2) == pytest.approx(one)  # two copies are worth one


# --- Descriptions -----------------------------------------------------------------------------


def hand_made() -> Pool:
    """Two requests, two chains of two answers. Request 0: one solved answer; request 1: all alike."""
    one, half, none = [1.0] * 4, [1.0, 1.0, 0.0, 0.0], [0.0] * 4
    return replace(
        make_pool("vpo", n=2, chains=2, m=2),
        answers=[[["a", "b"], ["b", ""]], [["x", "x"], ["x", "x"]]],
        rewards_NCMD=np.array([[[one, half], [half, none]], [[half, half], [half, half]]]),
        tokens_NC=np.array([[10, 20], [30, 44]]),
    )


def test_a_hand_made_pool_is_described_exactly():
    described = describe(hand_made(), budgets=(1, 2, 3, 4), resamples=50)
    means = {k: {metric: described["k"][k][metric][0] for metric in ("best", "pass")} for k in "1234"}
    # Request 0, k = 1: the first answer of either chain, 1 and .5. Request 1: always .5.
    assert means["1"] == {"best": 0.625, "pass": 0.25}
    assert means["2"] == {"best": 0.625, "pass": 0.25}  # a chain: 1 or .5
    assert means["3"] == {"best": 0.75, "pass": 0.5}  # a chain and the start of the other: the 1 is in it
    assert means["4"] == {"best": 0.75, "pass": 0.5}
    assert described["candidates_per_rollout"] == 2
    assert [described["objectives"][name][0] for name in OBJECTIVES] == [0.875, 0.875, 0.125, 0.125]
    assert described["parse_rate"][0] == 0.875
    assert described["distinct_answers"][0] == (3 / 4 + 1 / 4) / 2
    assert [position[0] for position in described["quality_by_position"]] == [0.625, 0.375]
    # Of the six pairs of request 0: 2, 2, 4, 0, 2, 2.
    assert described["set_diversity"][0] == pytest.approx(1.0)


def test_tests_that_a_request_lacks_are_left_out_of_what_is_covered():
    rewards = np.full((2, 2, 2, 4), np.nan)
    rewards[0, ..., :3] = [[[1, 0, 0], [0, 1, 0]], [[1, 0, 0], [1, 0, 0]]]  # three tests, two of them passed by some
    rewards[1, ..., :1] = [[[1], [1]], [[1], [1]]]  # one test
    tests = tuple(f"test_{i}" for i in range(1, 5))
    pool = replace(hand_made(), rewards_NCMD=rewards, objectives=tests)
    assert at_k(pool, "covered", 1) == pytest.approx([1 / 3, 1])
    assert at_k(pool, "covered", 2) == pytest.approx([(2 / 3 + 1 / 3) / 2, 1])
    assert at_k(pool, "covered", 4) == pytest.approx([2 / 3, 1])
    described = describe(pool, (1, 4), 10)
    assert set(described["objectives"]) == set(tests[:3])  # nobody asks for the fourth
    assert described["k"]["4"]["covered"][0] == pytest.approx(5 / 6, abs=1e-4)


@pytest.mark.parametrize("k, chains", [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_a_budget_pays_for_whole_chains(k, chains):
    assert describe(hand_made(), (k,), 10)["k"][str(k)]["tokens"] == 26 * chains


def test_intervals_hold_their_mean_and_can_be_written():
    described = describe(make_pool("vpo", n=20, chains=2, m=3), (1, 3, 6), 200)
    for figures in described["k"].values():
        for metric in ("best", "pass", "eum"):
            mean, low, high = figures[metric]
            assert 0 <= low < mean < high <= 1
    assert json.loads(json.dumps(described)) == described


def test_the_summary_holds_every_pool_and_is_written(run):
    summary = summarize(SMOKE, run, seed=4)
    assert read_json(run / "summary.json") == json.loads(json.dumps(summary))
    assert list(summary["methods"]) == ["sft", "sft_chain", "grpo", VPO]
    assert (summary["profile"], summary["seed"], summary["requests"]) == ("smoke", 4, 6)
    assert summary["fingerprint"] == SMOKE.fingerprint()
    for name, described in summary["methods"].items():
        pool = Pool.load(run.pool(name))
        assert list(described["k"]) == ["1", "3", "6"]
        for k in (1, 3, 6):
            assert described["k"][str(k)]["best"][0] == pytest.approx(at_k(pool, "best", k).mean(), abs=1e-5)
            assert described["k"][str(k)]["tokens"] == pytest.approx(pool.tokens_NC.mean() * -(-k // pool.m), abs=0.01)
    assert set(summary["paired_differences"]) == {f"{VPO} - {other}" for other in ("sft", "sft_chain", "grpo")}
    vpo, grpo = (summary["methods"][name]["k"]["3"]["pass"][0] for name in (VPO, "grpo"))
    assert summary["paired_differences"][f"{VPO} - grpo"]["3"]["pass"][0] == pytest.approx(vpo - grpo, abs=2e-5)
    assert summary["ceiling"] == {str(k): {"best": k / 10, "pass": k / 20} for k in (1, 3, 6)}
    assert set(summary["versions"]) >= {"vpo_lab", "python", "torch", "trl"}
    assert -1 <= summary["objective_correlation"] <= 1


def test_objectives_that_never_vary_have_no_correlation(run):
    pool = Pool.load(run.pool("sft"))
    replace(pool, rewards_NCMD=np.zeros_like(pool.rewards_NCMD)).save(run.pool("sft"))
    assert summarize(SMOKE, run, seed=0)["objective_correlation"] is None


def test_without_vpo_there_are_no_pairs(run):
    summary = summarize(get_profile("smoke", {"methods": ["grpo"]}), run, seed=0)
    assert list(summary["methods"]) == ["sft", "sft_chain", "grpo"] and summary["paired_differences"] == {}


def test_a_summary_needs_all_pools(run):
    run.pool("grpo").unlink()
    with pytest.raises(LabError, match=r"grpo\.json\.gz does not exist"):
        summarize(SMOKE, run, seed=0)
    assert not (run / "summary.json").exists()


# --- Sets for the widgets ---------------------------------------------------------------------


def test_sets_have_as_many_answers_as_the_longest_chain():
    pools = {"grpo": make_pool("grpo", n=3, chains=6, m=1), "vpo": make_pool("vpo", n=3, chains=2, m=3, seed=1)}
    sets = sample_sets(pools, request=2)
    assert list(sets) == ["grpo", "vpo"]
    for answers, rewards_MD in sets.values():
        assert len(answers) == 3 and rewards_MD.shape == (3, 4)
    assert sets["vpo"][0] == ["2 0 0", "2 0 1", "2 0 2"] and sets["grpo"][0] == ["2 0 0", "2 1 0", "2 2 0"]
    assert np.array_equal(sets["vpo"][1], pools["vpo"].rewards_NCMD[2, 0])
    assert np.array_equal(sets["grpo"][1], pools["grpo"].rewards_NCMD[2, :3, 0])


# --- Where results come from ------------------------------------------------------------------


def test_own_results_come_first_then_saved_ones_then_an_error(run, tmp_path):
    empty, saved = Run(tmp_path / "empty"), Run(tmp_path / "results" / "smoke")
    with pytest.raises(LabError, match="'smoke'"):
        find_results(empty, SMOKE, tmp_path / "results")
    for name in pool_names(SMOKE):
        Pool.load(run.pool(name)).save(saved.pool(name))
    assert find_results(empty, SMOKE, tmp_path / "results") == saved
    assert find_results(run, SMOKE, tmp_path / "results") == run
    run.pool(VPO).unlink()  # an unfinished run does not count
    assert find_results(run, SMOKE, tmp_path / "results") == saved


def test_a_pool_that_is_there_is_not_sampled_again(run):
    pool = evaluate(SMOKE, VPO, run, seed=0)  # there is no policy in this folder
    assert pool.ids == Pool.load(run.pool(VPO)).ids
    run.pool(VPO).unlink()
    with pytest.raises(LabError, match="no policy in"):
        evaluate(SMOKE, VPO, run, seed=0)


@pytest.mark.parametrize("m, chains", [(1, 6), (3, 2), (4, 2)])
def test_sampling_a_pool_draws_whole_chains_and_scores_every_answer(monkeypatch, tmp_path, m, chains):
    """A stand-in for the model: it answers with the gold of the first row, in every chain."""
    from vpo_lab.chains import join_chain
    from vpo_lab.train.tiny_model import train_tokenizer

    task = get_task("tiny_tools")
    rows = task.load(None, "test")[:3]
    calls = []

    def sample(model, tokenizer, prompts, **options):
        calls.append((prompts, options))
        return [join_chain([rows[0]["gold"]] * m)] * len(prompts), list(range(len(prompts)))

    monkeypatch.setattr("vpo_lab.search.pool.sample", sample)
    pool = sample_pool(SMOKE, task, None, train_tokenizer([]), rows, "vpo", m, 5, Stage(tmp_path))
    assert pool.rewards_NCMD.shape == (3, chains, m, 4) and pool.m == m
    assert pool.tokens_NC.tolist() == np.arange(3 * chains).reshape(3, chains).tolist()
    assert pool.ids == tuple(row["id"] for row in rows)
    assert pool.answers == [[[rows[0]["gold"]] * m] * chains] * 3
    assert pool.solved_NCM[0].all()
    assert np.array_equal(pool.rewards_NCMD[:, 0, 0], task.score([rows[0]["gold"]] * 3, rows))
    ((prompts, options),) = calls
    assert prompts == [prompt for prompt in dict.fromkeys(prompts) for _ in range(chains)]
    for row, prompt in zip(rows, prompts[::chains], strict=True):
        assert row["prompt"][-1]["content"] in prompt
    assert options["max_new_tokens"] == m * SMOKE.policy.max_answer_tokens
    assert options["seed"] != 5


def test_a_policy_of_vpo_can_be_asked_for_one_answer():
    from vpo_lab.search.pool import asked_for

    profile = get_profile("tiny")
    assert asked_for(profile, "vpo_single", "vpo")[1:] == ("vpo", 1, False)
    assert asked_for(profile, "vpo")[1:] == ("vpo", profile.rl.candidates, False)
