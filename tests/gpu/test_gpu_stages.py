"""Two steps of every stage on a model of the full size: does it train, save, load, and stay within the plan?"""

import math

import pytest
import torch
from gpu_measures import complaints, record_path
from plan import weights

from vpo_lab.files import read_json
from vpo_lab.tasks import get_task
from vpo_lab.train.policy import without_cudnn_attention

pytestmark = pytest.mark.gpu

RL_STAGES = ("grpo", "vpo", "vpo_credit")
STAGES = ("sft", *RL_STAGES)
OBJECTIVES = {f"objective/{name}/mean" for name in get_task("toolrl").objectives}
RL_LOG = {"reward_seconds", "truncated", "set_reward", "mean_reward", "best_of_rollout", "best_of_group"}
RL_LOG |= {"distinct_rollouts", "silent_groups", *OBJECTIVES}
# What torch, CUDA graphs and NCCL may keep of a share of the card that vLLM has given back.
KEPT_OF_SHARE = 0.1


@pytest.fixture(params=STAGES)
def stage(request) -> str:
    return request.param


def test_the_plan_counts_the_parameters_of_this_model(lab):
    assert lab.machine["parameters"] == weights(lab.shape)


def test_loss_and_gradient_are_finite_and_the_log_is_complete(lab, backend, stage):
    log = lab.stage(backend, stage)["log"]
    assert [entry["step"] for entry in log] == [1, 2]
    for entry in log:
        wanted = {"loss", "grad_norm", "learning_rate"} | (RL_LOG if stage in RL_STAGES else set())
        assert wanted <= set(entry), f"missing: {sorted(wanted - set(entry))}"
        assert not {name: value for name, value in entry.items() if not math.isfinite(value)}
        assert entry["grad_norm"] > 0


@pytest.mark.parametrize("stage", RL_STAGES)
def test_the_evaluation_on_held_out_requests_is_logged(lab, backend, stage):
    (entry,) = lab.stage(backend, stage)["eval"]
    assert entry["step"] == 2 and entry.keys() >= {"mean_reward", "best_of_rollout", "set_reward"}


def test_the_adapter_moved_and_is_finite(lab, backend, stage):
    seen = lab.stage(backend, stage)["moved"]
    assert seen["finite"]
    assert seen["of"] == 7 * lab.shape.layers  # all linear maps of all layers
    assert seen["moved"] == seen["of"]


def test_the_saved_policy_loads_with_equal_weights(lab, backend, stage):
    assert lab.stage(backend, stage)["differs_when_loaded"] == []


@pytest.mark.parametrize("stage", RL_STAGES)
def test_rollouts_have_the_profiles_sizes(lab, backend, stage):
    profile = lab.profile(backend, "data")
    answers = 1 if stage == "grpo" else profile.rl.candidates
    for step in lab.stage(backend, stage)["steps"]:
        assert len(step["completions"]) == profile.rl.rollouts * profile.rl.candidates // answers
        assert max(step["completions"]) <= profile.policy.max_answer_tokens * answers
        # Their ends are all but impossible, so almost all have the full length.
        assert sum(step["completions"]) > 0.9 * len(step["completions"]) * profile.policy.max_answer_tokens * answers


def test_advantages_per_answer_reach_their_own_tokens(lab, backend):
    """(B, T) advantages through TRL's or Unsloth's loss, with prompts and completions of different lengths."""
    probe = lab.stage(backend, "vpo_credit")["probe"]
    assert probe["got"] == pytest.approx(probe["expected"], rel=1e-3), f"left padding of the rows: {probe['paddings']}"


def test_peak_memory_is_within_the_plan(lab, backend, stage):
    seen = lab.stage(backend, stage)
    if seen["memory"]["peak"] is None:
        pytest.skip("no GPU, no GPU memory")
    within_the_plan(seen)


def within_the_plan(seen: dict) -> None:
    """The peak of live memory, in GB of 10^9 bytes, against plan.py's figure for this card and shape."""
    peak, planned = seen["memory"]["peak"] / 1e9, seen["planned_bytes"] / 1e9
    assert peak <= planned, f"peak {peak:.1f} GB, plan.py says {planned:.1f} GB; all: {seen['memory']}"


def test_the_planned_micro_batch_runs_at_the_longest_lengths(lab, backend):
    """`vpo-lab plan` names a micro batch for this card: one step of it, or an out-of-memory error in the output."""
    seen = lab.longest(backend)
    profile = lab.profile(backend, "longest", lab.longest_settings)
    (step,) = seen["steps"]
    assert lab.machine["longest_prompt"] > profile.policy.max_prompt_tokens - 8
    assert set(step["prompts"]) == {lab.machine["longest_prompt"]}
    assert math.isfinite(seen["log"][0]["loss"]) and seen["log"][0]["grad_norm"] > 0
    if seen["memory"]["peak"] is not None:
        within_the_plan(seen)


def test_vllm_gives_its_memory_back_after_a_stage(lab, backend):
    """RL stages follow one another in one process; Unsloth keeps its one engine, and must not add a second."""
    if backend == "transformers":
        pytest.skip("no vLLM in it")
    profile = lab.profile(backend, "data")
    most = KEPT_OF_SHARE * profile.policy.gpu_share * lab.machine["total_bytes"]
    for stage in RL_STAGES:
        seen = lab.stage(backend, stage)
        kept = seen["after"] - seen["before"]
        assert kept <= most, f"{stage} kept {kept / 1e9:.1f} GB, at most {most / 1e9:.1f} expected"


def test_speed_and_memory_are_on_record(lab, backend, stage):
    """Recorded, not judged: only that the numbers are there and make sense."""
    lab.stage(backend, stage)
    record = read_json(record_path())
    assert complaints(record) == []
    (entry,) = [e for e in record["entries"] if (e["backend"], e["stage"]) == (backend, stage)]
    always = {"step_seconds", "trained_tokens_per_second"}
    rollouts = {"decode_seconds", "train_seconds", "generated_tokens_per_second"}
    on_a_card = {"allocated_bytes", "device_bytes", "peak_bytes", "planned_bytes"}
    wanted = always | (rollouts if stage in RL_STAGES else set()) | (on_a_card if lab.card else set())
    if stage in RL_STAGES and lab.card and lab.card.bandwidth:
        wanted |= {"decode_limit_seconds", "decode_over_limit"}
    assert not [name for name in sorted(wanted) if not entry[name] or entry[name] <= 0]


def test_attention_with_a_mask_has_finite_gradients():
    """The kernel that torch prefers on an H100 gave NaN at these lengths (pytorch issue 196678); the lab avoids it."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU, no cuDNN")
    without_cudnn_attention()
    tokens, size = 704, 64
    query, key, value = torch.randn(3, 1, 1, tokens, size, device="cuda", dtype=torch.bfloat16).unbind()
    query, key = query * 0.1, key * 0.1
    query[..., 0], key[..., 0] = 1.0, -120 * size**0.5  # every score is about -120
    query.requires_grad_()
    mask = torch.ones(tokens, tokens, dtype=torch.bool, device="cuda").tril()[None, None]
    torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).sum().backward()
    assert torch.isfinite(query.grad).all()
