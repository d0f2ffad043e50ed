"""VPO through verl's own parts on a CPU: data set, reward manager, DataProto, both ways to the advantages.

verl has an environment of its own: `make verl` builds it and runs this file. No GPU, no vLLM, no training.
"""

import asyncio
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vpo_lab import METHODS, SetReward, ask
from vpo_lab.chains import join_chain, split_chain
from vpo_lab.errors import LabError
from vpo_lab.tasks import get_task

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
pytest.importorskip("verl", reason="verl is not installed here: make verl has an environment for it")

import pandas as pd
import ray
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torchdata.stateful_dataloader import StatefulDataLoader
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.experimental.reward_loop import RewardLoopWorker
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import ray_trainer
from verl.trainer.ppo.reward import load_reward_manager
from verl.trainer.ppo.v1 import trainer_base
from verl.utils.config import validate_config
from verl.utils.dataset.rl_dataset import collate_fn, get_dataset_class
from verl.utils.tensordict_utils import get_tensordict

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "dropin" / "verl"
G, M, TASK = 4, 3, f"{ROOT}/examples/my_task.py:MyTask"
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", chat_template=TEMPLATE
    )


def data_config(folder: Path, **changes):
    options = {"prompt_key": "prompt", "max_prompt_length": 4096, "filter_overlong_prompts": True, "candidates": M}
    options |= {"filter_overlong_prompts_workers": 1, "return_raw_chat": True, "cache_dir": str(folder / "cache")}
    custom = {"path": "pkg://vpo_lab.train.verl", "name": "VPODataset"}
    return OmegaConf.create({**options, "custom_cls": custom, **changes})


def write_rows(folder: Path, rows: list[dict]) -> str:
    file = str(folder / "rows.parquet")
    pd.DataFrame(rows).to_parquet(file)
    return file


def questions() -> list[dict]:
    return [
        {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{n} + {n}?" * n}],
            "reward_model": {"style": "rule", "ground_truth": str(2 * n)},
            "extra_info": {"index": n},
        }
        for n in (1, 2, 40)
    ]


# --- The data set ---------------------------------------------------------------------------------


def test_the_data_set_asks_and_tells_the_reward_what_it_asked(tmp_path, tokenizer):
    config = data_config(tmp_path)
    rows = get_dataset_class(config)(write_rows(tmp_path, questions()), tokenizer, config)
    assert len(rows) == 3
    for row, plain in zip(rows, questions(), strict=True):
        assert row["raw_prompt"] == ask(plain["prompt"], M) and row["extra_info"]["prompt"] == plain["prompt"]
        assert row["extra_info"]["candidates"] == M and row["extra_info"]["index"] == plain["extra_info"]["index"]
    rows.resume_dataset_state()  # as after a checkpoint: it reads the files anew
    assert rows[0]["raw_prompt"] == ask(questions()[0]["prompt"], M)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_request_counts_in_the_length_of_a_prompt(tmp_path, tokenizer, workers):
    lengths = [
        len(tokenizer.apply_chat_template(ask(row["prompt"], M), add_generation_prompt=True, return_dict=False))
        for row in questions()
    ]
    config = data_config(tmp_path, max_prompt_length=lengths[1], filter_overlong_prompts_workers=workers)
    rows = get_dataset_class(config)(write_rows(tmp_path, questions()), tokenizer, config)
    assert [row["index"] for row in rows] == [1, 2]
    config = data_config(tmp_path, max_prompt_length=lengths[1] - 1, filter_overlong_prompts_workers=workers)
    assert len(get_dataset_class(config)(write_rows(tmp_path, questions()), tokenizer, config)) == 1


def test_rows_travel_as_the_default_trainer_sends_them(tmp_path, tokenizer):
    config = data_config(tmp_path)
    rows = get_dataset_class(config)(write_rows(tmp_path, questions()), tokenizer, config)
    (batch,) = StatefulDataLoader(rows, batch_size=3, num_workers=2, collate_fn=collate_fn)
    sent = get_tensordict(batch)
    assert [sent[b]["extra_info"] for b in range(3)] == [row["extra_info"] for row in rows]


def test_the_class_can_be_pickled():
    from vpo_lab.train import verl

    assert pickle.loads(pickle.dumps(verl.VPODataset)) is verl.VPODataset


# --- Rewards and advantages -----------------------------------------------------------------------


def completions(rng, n: int) -> list[str]:
    """Chains with none to three answers, some wrong, some long."""

    def answer() -> str:
        return f"{'so ' * int(rng.integers(0, 200))}#### {rng.integers(1, 4) * 2}"

    return [join_chain([answer() for _ in range(k)]) if k > 1 else answer() for k in rng.integers(1, 4, size=n)]


def batch_of(texts: list[str], rows: list[dict], tokenizer) -> DataProto:
    """Rollouts as the reward loop is given them, the G of a prompt beside each other."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    responses = torch.full((len(ids), max(map(len, ids))), tokenizer.pad_token_id)
    mask = torch.zeros_like(responses)
    for b, row in enumerate(ids):
        responses[b, : len(row)], mask[b, : len(row)] = torch.tensor(row), 1
    prompts = torch.ones((len(ids), 5), dtype=torch.long)
    attention = torch.cat([torch.ones_like(prompts), mask], dim=1)
    tensors = {"prompts": prompts, "responses": responses, "attention_mask": attention, "response_mask": mask}
    columns = {key: [row[key] for row in rows] for key in ("data_source", "reward_model", "extra_info")}
    columns["uid"] = [f"p{b // G}" for b in range(len(ids))]
    arrays = {key: np.fromiter(values, dtype=object, count=len(values)) for key, values in columns.items()}
    return DataProto(batch=TensorDict(tensors, batch_size=len(ids)), non_tensor_batch=arrays)


def reward_config(path: str) -> dict:
    custom = {"path": path, "name": "compute_score", "reward_kwargs": {}}
    return {
        "custom_reward_function": custom,
        "reward_manager": {"source": "register", "name": "naive", "module": None},
    }


def scored(data: DataProto, tokenizer, path: str) -> list[dict]:
    """What verl's reward manager returns of every rollout, as its reward loop asks for it."""
    manager = load_reward_manager(OmegaConf.create({"reward": reward_config(path)}), tokenizer)

    async def everything():
        manager.loop = asyncio.get_running_loop()
        return await asyncio.gather(*(manager.run_single(data[b : b + 1]) for b in range(len(data))))

    results = asyncio.run(everything())
    scores = manager.assemble_rm_scores(data, [result["reward_score"] for result in results])
    data.batch["rm_scores"] = data.batch["token_level_rewards"] = scores
    return results


def legacy_advantages(data: DataProto) -> np.ndarray:
    done = ray_trainer.compute_advantage(data.select(deepcopy=True), "grpo", config=AlgoConfig(adv_estimator="grpo"))
    return of_rollouts(done.batch["advantages"], done.batch["response_mask"])


def default_advantages(data: DataProto, results: list[dict], monkeypatch) -> np.ndarray:
    """Through the default trainer's own method, with a dictionary in the place of the queue that holds its data."""
    lengths = data.batch["response_mask"].sum(dim=1).tolist()
    outputs = [
        AgentLoopOutput(
            prompt_ids=[1],
            response_ids=data.batch["responses"][b, : lengths[b]].tolist(),
            response_mask=[1] * lengths[b],
            reward_score=result["reward_score"],
            metrics=AgentLoopMetrics(),
            extra_fields={"reward_extra_info": result["reward_extra_info"]},
        ).as_dict()
        for b, result in enumerate(results)
    ]
    stored = {key: [output[key] for output in outputs] for key in ("response_mask", "rm_scores", "extra_fields")}
    stored["uid"] = list(data.non_tensor_batch["uid"])
    written = {}

    def get(keys, partition_id, select_fields):
        assert "extra_fields" not in select_fields  # else the vectors could come along
        fields = {
            name: torch.nested.as_nested_tensor(stored[name], layout=torch.jagged)
            for name in select_fields
            if isinstance(stored.get(name, [None])[0], torch.Tensor)
        }
        return get_tensordict({**fields, "uid": stored["uid"]})

    def put(keys, partition_id, fields):
        written.update({name: fields[name] for name in fields.keys()})

    monkeypatch.setattr(trainer_base, "tq", SimpleNamespace(kv_batch_get=get, kv_batch_put=put))
    algorithm = {"adv_estimator": "grpo", "gamma": 1.0, "lam": 1.0, "use_kl_in_reward": False}
    config = OmegaConf.create({"algorithm": algorithm, "actor_rollout_ref": {"rollout": {"n": G}}})

    class Keys(SimpleNamespace):
        def __len__(self):
            return len(self.keys)

    keys = Keys(keys=[f"p{b // G}_{b % G}_0" for b in range(len(data))], partition_id="train")
    trainer_base.PPOTrainer._compute_advantage(SimpleNamespace(config=config), keys, {})
    return np.array([row[0].item() for row in written["advantages"].unbind()])


def of_rollouts(advantages_BT, mask_BT) -> np.ndarray:
    """The one advantage of every rollout; it is the same for all of its tokens."""
    first_B = advantages_BT[:, :1]
    assert torch.allclose(advantages_BT, first_B * mask_BT)
    return first_B[:, 0].numpy()


def expected(rewards_BMD, present_BM) -> np.ndarray:
    """METHODS["vpo"], group by group, because SetReward's weights are the same for every group.

    verl divides by the sample's standard deviation, the paper by the population's.
    """
    earned = np.where(present_BM[..., None], rewards_BMD, 0.0)
    method = METHODS["vpo"].with_options(weight_draws=1024)
    groups = [earned[start : start + G] for start in range(0, len(earned), G)]
    exact = np.concatenate([method.advantages(group, G, np.random.default_rng(0)) for group in groups])
    return exact * np.sqrt((G - 1) / G)


def test_the_advantages_are_those_of_vpo(tokenizer, monkeypatch):
    rows = [row for row in questions() for _ in range(G)]
    texts = completions(np.random.default_rng(0), len(rows))
    data = batch_of(texts, rows, tokenizer)
    results = scored(data, tokenizer, str(EXAMPLE / "my_rewards.py"))

    sys.path.insert(0, str(EXAMPLE))
    import my_rewards

    gold = [row["reward_model"]["ground_truth"] for row in rows]
    reward = SetReward([my_rewards.correct, my_rewards.brief], candidates=M)
    rewards_BMD, present_BM = reward.vectors(None, texts, ground_truth=gold)
    assert 0 < rewards_BMD[..., 0].mean() < 1 and 0 < present_BM.mean() < 1
    exact = expected(rewards_BMD, present_BM)
    assert np.abs(exact).max() > 1
    assert np.allclose(legacy_advantages(data), exact, atol=2e-4)
    assert np.allclose(default_advantages(data, results, monkeypatch), exact, atol=2e-4)
    for result, present in zip(results, present_BM, strict=True):
        assert result["reward_extra_info"]["answers"] == present.sum()
        assert {"best_correct", "best_brief"} <= set(result["reward_extra_info"])


def test_a_reward_worker_of_verl_in_a_process_of_its_own(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    model = {"tokenizer_path": str(tmp_path), "path": str(tmp_path)}
    reward = {**reward_config(str(EXAMPLE / "my_rewards.py")), "reward_model": {"enable": False}}
    config = OmegaConf.create({"actor_rollout_ref": {"model": model}, "reward": reward})
    rows = [questions()[0]] * G
    texts = completions(np.random.default_rng(1), G)
    data = batch_of(texts, rows, tokenizer)
    here = [result["reward_score"] for result in scored(data, tokenizer, str(EXAMPLE / "my_rewards.py"))]
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=1, include_dashboard=False, runtime_env={"env_vars": variables}, object_store_memory=10**8)
    try:
        worker = ray.remote(RewardLoopWorker).remote(config)
        there = ray.get([worker.compute_score.remote(data[b : b + 1]) for b in range(G)], timeout=300)
    finally:
        ray.shutdown()
    assert [result["reward_score"] for result in there] == here and len(set(here)) > 1


def test_a_task_of_the_lab(tmp_path, tokenizer, monkeypatch):
    from vpo_lab.train.verl import main

    main([TASK, str(tmp_path)])
    config = data_config(tmp_path)
    rows = get_dataset_class(config)(str(tmp_path / "train.parquet"), tokenizer, config, max_samples=2)
    task, rng = get_task(TASK), np.random.default_rng(0)
    plain = [json.loads(row["extra_info"]["row"]) for row in rows]
    assert [row["raw_prompt"] for row in rows] == [ask(row["prompt"], M) for row in plain]
    texts = [join_chain(task.demonstrations(row, M, rng)) for row in plain for _ in range(G)]
    data = batch_of(texts, [row for row in rows for _ in range(G)], tokenizer)
    results = scored(data, tokenizer, "pkg://vpo_lab.train.verl")

    answers = [answer for text in texts for answer in split_chain(text, M)]
    vectors = task.score(answers, [row for row in plain for _ in range(G * M)]).reshape(len(texts), M, -1)
    exact = expected(vectors, np.ones(vectors.shape[:2], dtype=bool))
    assert np.allclose(legacy_advantages(data), exact, atol=2e-4)
    assert np.allclose(default_advantages(data, results, monkeypatch), exact, atol=2e-4)
    assert set(results[0]["reward_extra_info"]) == {"score", "answers", *(f"best_{name}" for name in task.objectives)}


def test_two_numbers_of_answers_are_refused(tokenizer):
    (row, *_) = questions()
    row["extra_info"] = {"candidates": 2}
    data = batch_of(["#### 2"], [row], tokenizer)
    with pytest.raises(LabError, match="2"):
        scored(data, tokenizer, str(EXAMPLE / "my_rewards.py"))


# --- The example ----------------------------------------------------------------------------------


def test_the_example_is_a_config_that_verl_accepts(tmp_path):
    """Hydra composes it on verl's own default config; nothing is trained."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", str(EXAMPLE / "run.sh"), "trainer.nnodes=2", "--cfg", "job", "--resolve"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    config = OmegaConf.create(done.stdout[done.stdout.index("actor_rollout_ref:") :])
    assert config.trainer.nnodes == 2 and config.trainer.use_v1 and config.algorithm.adv_estimator == "grpo"
    # The default trainer reads this one, and never the older name at the top.
    assert config.reward.custom_reward_function.path == str(EXAMPLE / "my_rewards.py")
    assert config.reward.custom_reward_function.name == "compute_score"
    assert config.data.candidates == M and config.actor_rollout_ref.rollout.response_length == 3072
    assert get_dataset_class(config.data).__name__ == "VPODataset"
    # As verl's main does before it trains.
    validate_config(config, use_reference_policy=True, use_critic=False)
