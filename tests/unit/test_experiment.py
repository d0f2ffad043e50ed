"""experiment.py: the plan, the intervals and the CSV files; the training itself is tests/pipeline's."""

import csv
import json

import numpy as np
import pytest

from vpo_lab.course import experiment
from vpo_lab.course.experiment import SEEDS, VARIANTS, WORLDS, Job, collect, finished, plan, run_experiment
from vpo_lab.errors import LabError
from vpo_lab.metrics import crossed_bootstrap
from vpo_lab.runs import only_one_in
from vpo_lab.search.pool import Pool


def test_every_variant_has_a_valid_profile_and_a_start(tmp_path):
    for name, variant in VARIANTS.items():
        job = Job(tmp_path, variant.worlds[0], name, 0)
        assert job.profile.evaluation.candidates >= max(experiment.BUDGETS)
        assert (job.start is None) == (variant.method == "sft")
        if job.start:
            assert VARIANTS[job.start.variant].method == "sft"
            assert job.start.profile.rl.candidates == job.profile.rl.candidates


def test_the_plan_has_each_start_before_its_variants_and_whole_seeds_first(tmp_path):
    jobs = plan(tmp_path, [], [], [])
    assert len(set(jobs)) == len(jobs)
    for job in jobs:
        assert job.start is None or jobs.index(job.start) < jobs.index(job)
    main = [job for job in jobs if VARIANTS[job.variant].seeds == SEEDS]
    assert jobs[: len(main)] == main and [job.seed for job in main] == sorted(job.seed for job in main)
    for world in WORLDS:
        for name in ("sft", "grpo", "max_at_k", "gdpo", "multi_rlvr", "random_weights", "vpo", "vpo_pool"):
            assert {job.seed for job in jobs if (job.world, job.variant) == (world, name)} >= set(range(5))


def test_a_part_of_the_plan(tmp_path):
    assert [(j.variant, j.seed) for j in plan(tmp_path, ["tiny"], ["m2"], [7])] == [("sft_m2", 7), ("m2", 7)]
    assert {j.world for j in plan(tmp_path, ["smoke"], ["k1"], [0])} == {"smoke"}
    with pytest.raises(LabError, match=r"unknown variant 'vpoo'.*choose from"):
        plan(tmp_path, [], ["vpoo"], [])
    with pytest.raises(LabError, match="unknown world"):
        plan(tmp_path, ["mars"], [], [])


def test_equal_budgets_every_variant_samples_about_as_many_answers_a_step(tmp_path):
    for name, variant in VARIANTS.items():
        if variant.method != "sft":
            rl = Job(tmp_path, variant.worlds[0], name, 0).profile.rl
            usual = Job(tmp_path, variant.worlds[0], "vpo", 0).profile.rl
            assert abs(rl.rollouts * rl.candidates / (usual.rollouts * usual.candidates) - 1) < 0.05, name
            assert rl.steps == usual.steps, name


def test_the_crossed_bootstrap_covers_seeds_and_requests():
    rng = np.random.default_rng(0)
    assert crossed_bootstrap(np.full((5, 20), 0.3)) == pytest.approx((0.3, 0.3, 0.3))
    seeds = rng.normal(size=(5, 1)) + np.zeros((1, 200))  # all the spread is between seeds
    mean, low, high = crossed_bootstrap(seeds)
    assert high - low == pytest.approx(2 * 1.96 * seeds[:, 0].std() / np.sqrt(5), rel=0.15)
    requests = np.zeros((5, 1)) + rng.normal(size=(1, 200))  # all of it between requests
    mean, low, high = crossed_bootstrap(requests)
    assert mean == pytest.approx(requests.mean())
    assert high - low == pytest.approx(2 * 1.96 * requests.std() / np.sqrt(200), rel=0.15)


def finish(job, rewards_by_pool, steps=20):
    """What a finished job leaves, with made-up rewards."""
    stage = job.stage
    stage.policy.mkdir(parents=True)
    entry = {name: 0.5 for name in experiment.PROFILED} | {"step_time": 0.6, "completions/mean_length": 10.0}
    (stage / "log.jsonl").write_text("".join(json.dumps({"step": i + 1, **entry}) + "\n" for i in range(steps)))
    for name, rewards_NCMD in rewards_by_pool.items():
        n, c, m, _ = rewards_NCMD.shape
        answers = [[[f"{i} {j} {k}" for k in range(m)] for j in range(c)] for i in range(n)]
        objectives = ("format", "tool_name", "param_name", "param_value")
        ids = tuple(f"tiny_tools-test-{i}" for i in range(n))
        tokens_NC = np.full((n, c), 9 * m)
        Pool(name, "tiny_tools", objectives, ids, answers, rewards_NCMD, tokens_NC).save(job.folder.pool(name))


def read(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_the_csv_files_say_what_the_pools_hold(tmp_path):
    rng = np.random.default_rng(0)
    jobs = plan(tmp_path / "runs", ["tiny"], ["sft", "grpo", "vpo"], [0, 1])
    for job in jobs:
        shapes = {"sft": (4, 24, 1), "sft_chain": (4, 8, 3), "grpo": (4, 24, 1), "vpo": (4, 8, 3)}
        finish(job, {name: rng.random((*shapes[name.partition("@")[0]], 4)).round(3) for name in job.pools})
    jobs[0].folder.stage("gdpo").folder.mkdir()  # begun, not done
    (tmp_path / "runs" / "notes").mkdir()
    assert set(finished(tmp_path / "runs")) == set(jobs)
    paths = collect(finished(tmp_path / "runs"), tmp_path / "out")
    names = ["examples.json", "runs.csv", "budgets.csv", "curves.csv", "intervals.csv"]
    assert [path.name for path in paths] == names
    examples = json.loads(paths[0].read_text())
    assert examples["tiny"]["tiny_tools-test-0"]["vpo"]["answers"] == ["0 0 0", "0 0 1", "0 0 2"]
    runs, budgets, curves, intervals = map(read, paths[1:])
    assert {(r["variant"], r["seed"]) for r in runs} == {
        (name + at, seed) for name in ("sft", "sft_chain", "grpo", "vpo") for at in ("", "@0.7") for seed in "01"
    }
    assert {r["minus"] for r in intervals if r["variant"] == "vpo@0.7"} == {"", "sft@0.7", "sft_chain@0.7", "grpo@0.7"}
    vpo = next(r for r in runs if (r["variant"], r["seed"]) == ("vpo", "0"))
    assert (vpo["m"], vpo["steps"], vpo["minutes"]) == ("3", "20", "0.2")
    pool = Pool.load(jobs[-1].folder.pool("vpo"))
    row = next(r for r in budgets if (r["variant"], r["seed"], r["k"]) == ("vpo", "1", "24"))
    assert float(row["best"]) == pytest.approx(pool.scalar_NCM.max(axis=(1, 2)).mean(), abs=1e-5)
    assert float(row["tokens"]) == 8 * 27
    assert len(curves) == 2 * 2 * 2 and {r["step"] for r in curves} == {"10", "20"}
    value = {(r["variant"], r["metric"], r["k"], r["minus"]): r for r in intervals}
    both = [float(r["best"]) for r in budgets if (r["variant"], r["k"]) == ("vpo", "6")]
    assert float(value["vpo", "best", "6", ""]["mean"]) == pytest.approx(np.mean(both), abs=1e-3)
    difference = value["vpo", "best", "6", "grpo"]
    assert difference["seeds"] == "2"
    assert float(difference["mean"]) == pytest.approx(
        float(value["vpo", "best", "6", ""]["mean"]) - float(value["grpo", "best", "6", ""]["mean"]), abs=2e-3
    )


def test_a_folder_of_other_settings_is_refused_with_both_values(tmp_path):
    job = Job(tmp_path, "tiny", "grpo", 0)
    job.stage.folder.mkdir(parents=True)
    for harmless in ("name", "rl.micro_rollouts"):
        (job.stage / "settings.json").write_text(json.dumps({**job.settings, harmless: "other"}))
        assert not job.is_done
    (job.stage / "settings.json").write_text(json.dumps({**job.settings, "rl.alpha": 0.25}))
    with pytest.raises(LabError, match=r"rl\.alpha 0\.25, now 1\.0") as caught:
        job.run()
    assert "delete" not in str(caught.value) and "--folder" in str(caught.value)


def test_the_steps_of_others_are_no_matter_to_a_start(tmp_path):
    start = Job(tmp_path, "tiny", "sft", 0).settings
    assert [name for name in start if name.startswith("rl.")] == ["rl.candidates"] and start["sft.steps"] == 600


def test_a_job_may_be_trained_while_its_own_lock_is_held(tmp_path):
    """The stage is locked by the training, the job by its process: one must not take the other for somebody else."""
    job = Job(tmp_path, "tiny", "sft", 0)
    with only_one_in(job.stage.folder, "job.lock"), job.stage.lock(), pytest.raises(LabError, match="in use"):
        job.run()


def test_finished_jobs_are_not_run_again_and_a_broken_one_is_named(tmp_path, monkeypatch):
    jobs = plan(tmp_path, ["tiny"], ["sft", "grpo"], [0])
    finish(jobs[0], {name: np.ones((2, 8, 3, 4)) for name in jobs[0].pools})
    assert run_experiment(jobs[:1]) == []
    launched = []

    def launch(job):
        launched.append(job)
        job.stage.folder.mkdir(parents=True, exist_ok=True)
        return experiment.subprocess.Popen([experiment.sys.executable, "-c", "raise SystemExit(3)"])

    monkeypatch.setattr(experiment, "_launch", launch)
    assert run_experiment(jobs, workers=1) == [jobs[1]] == launched
    # Without its start a variant is not tried at all.
    orphans = plan(tmp_path, ["tiny"], ["m2"], [0])
    assert run_experiment(orphans, workers=2) == orphans and launched[-1] == orphans[0] and len(launched) == 2
