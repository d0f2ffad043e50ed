"""profiles.py: every profile is runnable, and every wrong override says what to write instead."""

from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest

from vpo_lab.config import PROFILES, get_profile
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
        ({"methods": "vpo"}, "expected tuple"),
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
    "overrides, hint",
    [
        ({"rl.candidates": 0}, r"\(M\) = 0"),
        ({"rl.candidates": -1}, r"\(M\) = -1"),
        ({"rl.weight_draws": 0}, r"\(K\) = 0"),
        ({"rl.alpha": 0.0}, "alpha = 0.0"),
        ({"rl.alpha": -1}, "alpha = -1"),
        ({"rl.alpha": float("nan")}, "alpha = nan"),
        ({"rl.group_size": 0}, r"\(G\) = 0"),
        ({"rl.group_size": 1}, r"\(G\) = 1"),
        ({"rl.rollouts": 14}, r"\(B\) = 14: must be a multiple"),
        ({"rl.rollouts": 0}, r"\(B\) = 0"),
        ({"rl.micro_rollouts": 7}, "micro_rollouts = 7"),
        ({"sft.micro_rows": 7}, "micro_rows = 7"),
        ({"sft.steps": 0}, "steps"),
        ({"rl.steps": 0}, "steps"),
        ({"evaluation.candidates": 25}, "evaluation.candidates = 25"),
        ({"evaluation.budgets": (1, 25)}, "evaluation.budgets"),
        ({"evaluation.budgets": (0, 3)}, "evaluation.budgets"),
        ({"evaluation.budgets": ()}, "evaluation.budgets"),
    ],
)
def test_a_value_that_cannot_be_run_is_named(overrides, hint):
    with pytest.raises(LabError, match=hint) as error:
        get_profile("tiny", overrides)
    assert "'tiny'" in str(error.value) and "\n" not in str(error.value)


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
        {"methods": ["vpo"]},
        {"data": "rows.parquet"},
    ],
)
def test_a_setting_that_affects_results_changes_the_fingerprint(overrides):
    assert get_profile("tiny", overrides).fingerprint() != get_profile("tiny").fingerprint()


def test_display_and_tracking_do_not_change_the_fingerprint():
    changed = get_profile("tiny", {"minutes": "soon", "track": True})
    assert changed.fingerprint() == get_profile("tiny").fingerprint()
