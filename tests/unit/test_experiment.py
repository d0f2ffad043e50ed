"""experiment.py: the plan and the CSV files; the training itself is tests/pipeline's."""

import json

import numpy as np
import pytest

from vpo_lab.config import get_profile
from vpo_lab.course import experiment, results
from vpo_lab.course.experiment import (
    SEEDS,
    VARIANTS,
    WORLDS,
    Job,
    collect,
    finished,
    plan,
    read_examples,
    run_experiment,
)
from vpo_lab.errors import LabError
from vpo_lab.files import write_json
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
        for name in (
            "sft",
            "grpo",
            "max_at_k",
            "best_of_set",
            "vpo",
            "vpo_credit",
            "vpo_search",
        ):
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


def test_the_csv_files_say_what_the_pools_hold(tmp_path):
    rng = np.random.default_rng(0)
    jobs = plan(tmp_path / "runs", ["tiny"], ["sft", "grpo", "vpo"], [0, 1])
    for job in jobs:
        one, chains = (4, 24, 1), (4, 8, 3)
        shapes = {"sft": one, "sft_chain": chains, "grpo": one, "vpo": chains, "vpo_single": one}
        finish(job, {name: rng.random((*shapes[name.partition("@")[0]], 4)).round(3) for name in job.pools})
    jobs[0].folder.stage("gdpo").folder.mkdir()  # begun, not done
    (tmp_path / "runs" / "notes").mkdir()
    assert set(finished(tmp_path / "runs")) == set(jobs)
    paths = collect(finished(tmp_path / "runs"), tmp_path / "out")
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "out").iterdir()}
    example = read_examples(tmp_path / "out", "tiny")["tiny_tools-test-0"]
    assert example["vpo"]["answers"] == ["0 0 0", "0 0 1", "0 0 2"]
    tables = results.read(tmp_path / "out")
    runs = tables["runs"].set_index(["variant", "seed"])
    names = [name + at for name in ("sft", "sft_chain", "grpo", "vpo") for at in ("", "@0.5", "@0.7", "@1.5")]
    assert set(runs.index) == {(name, seed) for name in (*names, "vpo_single") for seed in (0, 1)}
    assert runs.m["vpo_single", 0] == 1
    assert list(runs.loc[("vpo", 0), ["m", "steps", "minutes"]]) == [3, 20, 0.2]
    cooler = tables["intervals"].query("variant == 'vpo@0.7'")
    assert set(cooler.minus) == {"", "sft@0.7", "sft_chain@0.7", "grpo@0.7"}
    assert set(tables["intervals"].query("variant == 'vpo@best'").minus) == {
        "", "sft@best", "sft_chain@best", "grpo@best",
    }  # fmt: skip
    pool = Pool.load(jobs[-1].folder.pool("vpo"))
    budgets = tables["budgets"].set_index(["variant", "seed", "k"])
    assert budgets.best["vpo", 1, 24] == pytest.approx(pool.scalar_NCM.max(axis=(1, 2)).mean(), abs=1e-5)
    assert budgets.bag["vpo", 1, 1] == pytest.approx(pool.scalar_NCM.mean(), abs=1e-5)
    assert budgets.bag["grpo", 1, 3] == budgets.best["grpo", 1, 3]
    assert budgets.tokens["vpo", 1, 24] == 8 * 27
    assert len(tables["curves"]) == 2 * 2 * 2 and set(tables["curves"].step) == {10, 20}
    intervals = tables["intervals"].query("metric == 'best' and k == 6").set_index(["variant", "minus"])
    mean = intervals["mean"]
    assert mean["vpo", ""] == pytest.approx(results.by_seed(tables, "vpo", "best@6").mean(), abs=1e-3)
    assert mean["vpo", "grpo"] == pytest.approx(mean["vpo", ""] - mean["grpo", ""], abs=2e-3)
    assert intervals.seeds["vpo", "grpo"] == 2
    assert (runs.least_correlation <= runs.correlation).all() and (runs.least_correlation < runs.correlation).any()


def test_a_temperature_is_chosen_on_one_half_of_the_requests_and_measured_on_the_other():
    key = ("tiny", "best", 3)
    values = {  # on even requests 1 is better, on odd ones 0.7
        (key[0], "sft", *key[1:]): {0: np.array([0.9, 0.1, 0.9, 0.2])},
        (key[0], "sft@0.7", *key[1:]): {0: np.array([0.5, 0.6, 0.4, 0.7]), 1: np.ones(4)},
        (key[0], "grpo", *key[1:]): {0: np.ones(4)},
    }
    best = experiment._at_best_temperature(values)
    assert list(best) == [("tiny", "sft@best", "best", 3)] and list(best["tiny", "sft@best", "best", 3]) == [0]
    assert best["tiny", "sft@best", "best", 3][0].tolist() == [0.5, 0.1, 0.4, 0.2], "each half bears the other's choice"


def test_the_same_jobs_give_the_same_bytes(tmp_path):
    jobs = plan(tmp_path / "runs", ["tiny"], ["sft"], [0])
    finish(jobs[0], {name: np.random.default_rng(0).random((2, 24, 1, 4)) for name in jobs[0].pools})
    once, twice = ({path.name: path.read_bytes() for path in collect(jobs, tmp_path / out)} for out in "ab")
    assert once == twice


def test_a_typical_example_stands_first():
    def sets(grpo: float, vpo: float, gold: float = 0.0) -> dict:
        return {"grpo": {"rewards": [[gold, grpo]]}, "vpo": {"rewards": [[vpo, vpo], [0, 0]]}}

    examples = {
        "a": sets(0.5, 1.0),
        "b": sets(0.5, 0.2),
        "c": sets(0.5, 0.5),
        "d": sets(0.1, 0.4),
        "e": sets(0, 0.3, 0.1),
    }
    assert list(experiment.typical_first(examples, 0)) == ["c", "a", "b", "d", "e"], "leads .75, -.05, .25, .35"
    assert list(experiment.typical_first(examples, 1)) == ["e", "a", "b", "c", "d"], "GRPO lacks the other one there"
    without = {"a": {"vpo": examples["b"]["vpo"]}, "b": examples["e"]}
    assert list(experiment.typical_first(without, 0)) == ["a", "b"] and experiment.typical_first({}, 0) == {}


def test_a_folder_without_examples_has_none(tmp_path):
    assert read_examples(tmp_path, "maze") == {}
    (tmp_path / "examples.json").write_text(json.dumps({"maze": {"maze-test-0": {}}}))
    assert read_examples(tmp_path, "maze") == {"maze-test-0": {}} and read_examples(tmp_path, "tiny") == {}


def test_a_control_is_trained_where_its_variant_is_and_differs_in_one_setting(tmp_path):
    for name, variant in VARIANTS.items():
        if variant.changes:
            control = VARIANTS[variant.control]
            assert {*variant.worlds} & {*WORLDS} <= {*control.worlds}, name
            mine, other = (Job(tmp_path, "tiny", each, 0).settings for each in (name, variant.control))
            changed = {key for key in mine if mine[key] != other[key]} - {"rl.group_size", "rl.rollouts"}
            changed -= {"evaluation.candidates"}  # whole chains
            assert len(changed) == 1 or name == "group8", (name, changed)


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


def test_a_job_trains_as_long_as_the_notebooks_and_does_not_care_which_methods_these_train(tmp_path):
    job = Job(tmp_path, "maze", "vpo", 0)
    assert job.profile.rl.steps == get_profile("maze").rl.steps
    write_json(job.stage / experiment.SETTINGS, job.settings | {"methods": ["grpo", "vpo_credit"]})
    assert not job.is_done  # of an older profile, and not refused
    write_json(job.stage / experiment.SETTINGS, job.settings | {"rl.steps": 400})
    with pytest.raises(LabError, match=r"rl\.steps 400, now 250"):
        _ = job.is_done


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


def test_rows_of_other_worlds_are_kept(tmp_path):
    path = tmp_path / "runs.csv"
    before = [{"world": "maze", "seed": 0, "best": 0.5}, {"world": "tiny", "seed": 0, "best": 0.1}]
    experiment._write_csv(path, before, set())
    experiment._write_csv(path, [{"world": "tiny", "seed": 1, "best": 0.25, "covered": 1}], {"tiny"})
    assert path.read_text() == "world,seed,best,covered\nmaze,0,0.5,\ntiny,1,0.25,1\n"
    again = path.read_bytes()
    experiment._write_csv(path, [{"world": "tiny", "seed": 1, "best": 0.25, "covered": 1}], {"tiny"})
    assert path.read_bytes() == again
