"""What we use of other people's engines, read from their wheels: nothing of them is installed or run.

`make engines` brings the wheels to build/engines. A red test says what changed there, and what that is to us.
"""

import ast
import re
from pathlib import Path
from zipfile import ZipFile

import pytest

WHEELS = Path(__file__).resolve().parents[2] / "build" / "engines"


class Wheel:
    """The source of a package."""

    def __init__(self, name: str):
        found = sorted(WHEELS.glob(f"{name}-*.whl"))
        if not found:
            pytest.skip(f"the wheel of {name} is not in build/engines: make engines")
        self.zip = ZipFile(found[-1])

    def text(self, path: str) -> str:
        return self.zip.read(path).decode()

    def find(self, path: str, *names: str) -> ast.AST:
        """A function or class of a file, through the classes that hold it."""
        node: ast.AST = ast.parse(self.text(path))
        for name in names:
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            (node,) = [n for n in getattr(node, "body", []) if isinstance(n, kinds) and n.name == name]
        return node


@pytest.fixture(scope="module")
def verl() -> Wheel:
    return Wheel("verl")


@pytest.fixture(scope="module")
def verifiers() -> Wheel:
    return Wheel("verifiers")


def arguments(function: ast.AST) -> list[str]:
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    return [argument.arg for argument in function.args.args]


def calls(node: ast.AST, function: str) -> list[ast.Call]:
    return [n for n in ast.walk(node) if isinstance(n, ast.Call) and ast.unparse(n.func) == function]


# --- verl: what train/verl.py stands on -------------------------------------------------------------


def test_verls_data_set_filters_by_length_what_our_class_has_asked(verl):
    path = "verl/utils/dataset/rl_dataset.py"
    assert arguments(verl.find(path, "RLHFDataset", "maybe_filter_out_long_prompts")) == ["self", "dataframe"]
    read = verl.find(path, "RLHFDataset", "_read_files_and_tokenize")
    assert ast.unparse(read).endswith("self.dataframe = self.maybe_filter_out_long_prompts(self.dataframe)")
    assert "_read_files_and_tokenize()" in ast.unparse(verl.find(path, "RLHFDataset", "resume_dataset_state"))
    row = ast.unparse(verl.find(path, "RLHFDataset", "__getitem__"))
    assert "row_dict['raw_prompt']" in row and "row_dict['extra_info'] = dict()" in row
    assert {"self.prompt_key", "self.config"} <= set(
        re.findall(r"self\.\w+", ast.unparse(verl.find(path, "RLHFDataset", "__init__")))
    )
    assert "data_config.custom_cls.path" in ast.unparse(verl.find(path, "get_dataset_class"))
    assert 'PKG_PATH_PREFIX = "pkg://"' in verl.text("verl/utils/import_utils.py")


def test_verl_calls_a_reward_function_as_setreward_expects(verl):
    path = "verl/experimental/reward_loop/reward_manager/naive.py"
    run = verl.find(path, "NaiveRewardManager", "run_single")
    for call in calls(run, "self.compute_score"):
        given = {keyword.arg for keyword in call.keywords if keyword.arg}
        assert given == {"data_source", "solution_str", "ground_truth", "extra_info"}
    assert len(calls(run, "self.compute_score")) == 2 and "score = result['score']" in ast.unparse(run)
    load = ast.unparse(verl.find("verl/trainer/ppo/reward.py", "get_custom_reward_fn"))
    assert "config.reward.get('custom_reward_function')" in load
    # The older name without `reward.` is accepted, and ignored: only another entry point moves it.
    assert "migrate_legacy_reward_impl" not in verl.text("verl/trainer/main_ppo.py")


def test_verls_grpo_normalises_one_number_per_rollout_in_its_group(verl):
    grpo = ast.unparse(verl.find("verl/trainer/ppo/core_algos.py", "compute_grpo_outcome_advantage"))
    assert "scores = token_level_rewards.sum(dim=-1)" in grpo and "torch.std(scores_tensor)" in grpo
    assert "(scores[i] - id2mean[index[i]]) / (id2std[index[i]] + epsilon)" in grpo


def test_verls_default_trainer_carries_no_reward_vectors(verl):
    """Red: vectors may reach an estimator now. Then credit per answer can come to verl, see docs/drop-in.md."""
    assert "\n  use_v1: true\n" in verl.text("verl/trainer/config/ppo_trainer.yaml")
    method = verl.find("verl/trainer/ppo/v1/trainer_base.py", "PPOTrainer", "_compute_advantage")
    (read,) = calls(method, "tq.kv_batch_get")
    assert {keyword.arg for keyword in read.keywords} == {"keys", "partition_id", "select_fields"}
    fetched = next(
        n.value for n in ast.walk(method) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "fields"
    )
    assert set(ast.literal_eval(fetched)) == {
        "uid", "response_mask", "rm_scores", "rollout_log_probs", "old_log_probs", "ref_log_prob", "values"
    }  # fmt: skip
    estimate = verl.find("verl/trainer/ppo/ray_trainer.py", "compute_advantage")
    branches = [
        n for n in ast.walk(estimate) if isinstance(n, ast.If) and "non_tensor_batch'] =" in ast.unparse(n.body)
    ]
    assert [ast.unparse(n.test) for n in branches][-1] == "adv_estimator in (AdvantageEstimator.GDPO, 'gdpo')"
    output = ast.unparse(verl.find("verl/experimental/agent_loop/agent_loop.py", "AgentLoopOutput", "as_dict"))
    assert "rm_scores[-1] = reward_score" in output


# --- verifiers: what train/verifiers.py stands on -----------------------------------------------------


def test_a_verifiers_task_scores_a_trace_without_a_runtime(verifiers):
    path = "verifiers/v1/task.py"
    score = verifiers.find(path, "Task", "score")
    assert arguments(score) == ["self", "trace", "runtime"] and len(score.args.defaults) == 1
    assert ast.unparse(score.body[0]) == "if self.scoring_deferred:\n    return"
    assert {"trace.record_reward", "trace.record_metrics"} <= {
        ast.unparse(n.func) for n in ast.walk(score) if isinstance(n, ast.Call)
    }
    assert arguments(verifiers.find(path, "Task", "__init__")) == ["self", "data", "config"]
    for method in ("with_data", "data_type", "toolsets"):
        verifiers.find(path, "Task", method)
    fields = {ast.unparse(n.target) for n in verifiers.find(path, "TaskData").body if isinstance(n, ast.AnnAssign)}
    assert {"idx", "prompt", "system_prompt"} <= fields
    assert "NEEDS_CONTAINER" in verifiers.text(path)


def test_a_verifiers_task_set_loads_its_tasks_by_one_method(verifiers):
    path = "verifiers/v1/taskset.py"
    assert "enumerate(self.load())" in ast.unparse(verifiers.find(path, "Taskset", "__iter__"))
    assert arguments(verifiers.find(path, "Taskset", "task_type")) == ["cls"]
    assert arguments(verifiers.find(path, "Taskset", "take")) == ["self", "num_tasks"]
    loaders = "verifiers/v1/utils/loaders.py"
    assert arguments(verifiers.find(loaders, "load_taskset")) == ["config"]
    assert arguments(verifiers.find(loaders, "taskset_config_type")) == ["taskset_id"]


def test_a_trace_holds_what_every_reward_gave(verifiers):
    path = "verifiers/v1/trace.py"
    fields = {ast.unparse(n.target) for n in verifiers.find(path, "Trace").body if isinstance(n, ast.AnnAssign)}
    assert {"task", "agent", "nodes", "rewards", "metrics", "info", "root_reply"} <= fields
    assert arguments(verifiers.find(path, "Trace", "record_reward")) == ["self", "name", "value", "weight"]
    assert "self.root_reply.strip()" in ast.unparse(verifiers.find(path, "Trace", "last_reply"))
    score = {ast.unparse(n.target) for n in verifiers.find(path, "Reward").body if isinstance(n, ast.AnnAssign)}
    assert score == {"score", "weight"}
