"""profiles.py: every profile is runnable, and every wrong override says what to write instead."""

from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest

from vpo_lab.config import NEUTRAL, PROFILES, checked_seed, differences, get_profile
from vpo_lab.errors import LabError


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_can_be_run(name):
    profile = get_profile(name)
    assert profile == PROFILES[name] and profile.name == name
    assert profile.checked() is profile
    assert profile.minutes


def test_the_promised_profiles_exist():
    assert {"smoke", "tiny", "qwen3-1.7b"} <= set(PROFILES)


# --- Names and types --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, hint",
    [
        ({"rl.step": 2}, "did you mean 'steps'"),
        ({"rll.steps": 2}, "did you mean 'rl'"),
        ({"rl.qqq": 2}, "known: .*group_size"),
        ({"": 2}, "known: .*rl"),
        ({"rl.": 2}, "known: .*steps"),
        ({"rl": 2}, "rl.steps"),
        ({"rl.steps.more": 2}, "'steps' has no fields"),
        ({"rl.steps": "2"}, "expected int"),
        ({"rl.steps": 2.0}, "expected int"),
        ({"rl.steps": True}, "expected int"),
        ({"rl.steps": None}, "expected int"),
        ({"rl.alpha": "1"}, "expected float"),
        ({"track": 1}, "expected bool"),
        ({"methods": "vpo"}, r'\["grpo", '),  # how to write one
        ({"methods": [1]}, "methods"),
        ({"task": 3}, "expected str"),
    ],
)
def test_a_wrong_override_names_itself_and_the_way_out(overrides, hint):
    with pytest.raises(LabError, match=hint) as error:
        get_profile("tiny", overrides)
    assert repr(next(iter(overrides))) in str(error.value) or next(iter(overrides)) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_profile_lists_the_known():
    with pytest.raises(LabError, match=r"unknown profile 'small'.*smoke"):
        get_profile("small")


# --- Values that cannot be run ----------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        {"rl.candidates": 0},
        {"rl.weight_draws": 0},
        {"rl.alpha": 0.0},
        {"rl.alpha": float("nan")},
        {"rl.group_size": 1},
        {"rl.rollouts": 14},
        {"rl.rollouts": 0},
        {"rl.micro_rollouts": 7},
        {"rl.at_k": 12},
        {"rl.steps": 0},
        {"rl.checkpoint_every": 0},
        {"sft.micro_rows": 7},
        {"sft.steps": 0},
        {"sft.chains": "mine"},
        {"sft.chains": "own", "sft.own_samples": 2},
        {"policy.gpu_share": 1.0},
        {"policy.vllm_server": "localhost"},
        {"policy.backend": "unsloth"},
        {"policy.backend": "vllm", "policy.dtype": "bfloat16"},
        {"evaluation.candidates": 25},
        {"evaluation.requests": -1},
        {"evaluation.budgets": (1, 25)},
        {"evaluation.budgets": (0, 3)},
        {"evaluation.budgets": ()},
        {"evaluation.top_p": 0.0},
    ],
    ids=str,
)
def test_a_value_that_cannot_be_run_is_named_with_its_field(overrides):
    with pytest.raises(LabError) as error:
        get_profile("tiny", overrides)
    line = str(error.value)
    assert "'tiny'" in line and "\n" not in line
    assert any(f"{path} = {value!r}" in line for path, value in overrides.items()), line


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(LabError, match=str(seed)):
        checked_seed(seed)
    assert checked_seed(2**31 - 1) == 2**31 - 1


# --- Overrides --------------------------------------------------------------------------------


def test_overrides_are_checked_together_and_leave_the_profile_alone():
    before = PROFILES["tiny"].fingerprint()
    sizes = {"rl.rollouts": 12, "rl.group_size": 4}  # neither goes with the other's old value
    profile = get_profile("tiny", {**sizes, "rl.alpha": 3, "evaluation.budgets": [1, 24], "methods": ["vpo"]})
    assert (profile.rl.rollouts, profile.rl.group_size) == (12, 4)
    assert profile.rl.alpha == 3.0 and type(profile.rl.alpha) is float
    assert profile.evaluation.budgets == (1, 24) and profile.methods == ("vpo",)
    assert get_profile("tiny", {"rl.alpha": float("inf")}).rl.alpha == float("inf")  # the plain mean
    assert PROFILES["tiny"].fingerprint() == before
    assert get_profile("tiny", {}) == get_profile("tiny", None) == PROFILES["tiny"]


def test_profiles_are_frozen_all_the_way_down():
    profile = get_profile("tiny")
    hash(profile)  # only possible if every part is immutable
    for part in (profile, *(getattr(profile, field.name) for field in fields(profile))):
        if is_dataclass(part):
            with pytest.raises(FrozenInstanceError):
                setattr(part, fields(part)[0].name, 1)


# --- Fingerprints -----------------------------------------------------------------------------


def test_fingerprints_tell_profiles_apart_and_are_stable():
    prints = [profile.fingerprint() for profile in PROFILES.values()]
    assert len(set(prints)) == len(prints)
    assert all(len(p) == 12 and int(p, 16) >= 0 for p in prints)
    assert get_profile("tiny").fingerprint() == get_profile("tiny").fingerprint()


@pytest.mark.parametrize(
    "overrides",
    [
        {"rl.steps": 3},
        {"rl.alpha": 0.5},
        {"sft.learning_rate": 1e-3},
        {"policy.layers": 3},
        {"evaluation.budgets": [1, 2]},
        {"evaluation.bootstrap": 10},
        {"methods": ["vpo"]},
        {"data": "rows.parquet"},
    ],
    ids=str,
)
def test_a_setting_that_affects_results_is_told_apart_by_name(overrides):
    before, after = get_profile("tiny"), get_profile("tiny", overrides)
    assert after.fingerprint() != before.fingerprint()
    ((path, value),) = overrides.items()
    assert differences(before.settings(), after.settings()) == {path: (before.settings()[path], value)}


def test_the_course_trains_the_paper_s_vpo_and_other_worlds_keep_their_steps():
    steps = {"tiny": 400, "maze": 250, "tiny_code": 250, "tiny_chain": 200, "tiny_hops": 200, "tiny_judges": 300}
    assert {name: get_profile(name).rl.steps for name in steps} == steps
    assert all(get_profile(name).methods == ("grpo", "vpo") for name in ("tiny", "maze", "smoke", "qwen3-1.7b"))


def test_what_does_not_affect_results_is_not():
    changed = {
        "minutes": "soon",
        "maze": "",
        "code": "",
        "judges": "",
        "track": True,
        "patience": 5.0,
        "policy.gpu_share": 0.9,
        "policy.vllm_server": "http://a:1",
    }
    changed |= {"sft.micro_rows": 8, "rl.micro_rollouts": 8, "rl.checkpoint_every": 1, "evaluation.batch": 1}
    assert {"name", *changed} == set(NEUTRAL)
    before, after = get_profile("tiny"), get_profile("tiny", changed)
    assert after.fingerprint() == before.fingerprint() and not differences(before.settings(), after.settings())


def test_settings_of_an_older_version_are_compared_by_their_defaults():
    """It knew fewer fields, or kept only those that were not at their default, one section in another."""
    mine = get_profile("tiny", {"rl.alpha": 2.0}).settings()
    sparse = {path: value for path, value in mine.items() if path not in ("rl.alpha", "rl.at_k", "data")}
    nested = {"rl": {path[3:]: sparse.pop(path) for path in list(sparse) if path.startswith("rl.")}}
    assert differences({**sparse, **nested}, mine) == {"rl.alpha": (1.0, 2.0)}
    assert differences({**mine, "rl.gone": 3}, mine) == {"rl.gone": (3, None)}
