"""VPOTrainer on a CPU: two real steps of a random Qwen3 with scripted rollouts, against the methods by hand."""

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import Qwen3Config, Qwen3ForSequenceClassification
from trl import GRPOConfig, GRPOTrainer
from trl_case import (
    G,
    M,
    arguments,
    digit,
    has_a,
    random_texts,
    rows,
    scripted,
    short,
    small_model,
    small_tokenizer,
    text,
)

from vpo_lab import SetReward, VPOConfig, VPOTrainer, ask
from vpo_lab.chains import join_chain, split_chain
from vpo_lab.errors import LabError
from vpo_lab.methods import METHODS
from vpo_lab.train.trl import method_rewards

FACTOR = np.sqrt((G - 1) / G)  # TRL's standard deviation is that of a sample


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture
def train(tokenizer, tmp_path):
    """train(reward functions, texts=..., trainer=..., settings of the config) -> the trainer, after its steps."""

    def run(
        functions,
        *,
        texts=None,
        trainer=VPOTrainer,
        config=VPOConfig,
        data=None,
        cut=lambda n: False,
        keywords=None,
        **settings,
    ):
        made = scripted(trainer, texts or random_texts(0), cut)(
            model=small_model(tokenizer),
            reward_funcs=functions,
            args=arguments(config, tmp_path / "out", **settings),
            train_dataset=rows() if data is None else data,
            processing_class=tokenizer,
            **(keywords or {}),
        )
        made.before = {name: value.clone() for name, value in made.model.state_dict().items()}
        made.train()
        return made

    return run


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def by_the_method(trainer, batch, step: int, method=METHODS["vpo"], floor=0.0) -> np.ndarray:
    """The advantages of the method on what the batch earned, drawn as in step `step`."""
    scored = batch["scored"]
    rewards_BMD = method_rewards(scored.rewards_BMD, scored.present_BM, floor) * trainer.reward_weights.numpy()
    return method.advantages(rewards_BMD, G, np.random.default_rng([7, step]), scored.truncated_B)


# --- The paper's VPO ------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [True, False])
def test_two_steps_with_the_advantages_of_the_method(train, chat):
    trainer = train([has_a, short], data=rows(chat), reward_weights=[1.0, 2.0])
    assert len(trainer.batches) == 2 and trainer.state.global_step == 2
    for step, batch in enumerate(trainer.batches):
        expected = by_the_method(trainer, batch, step) * FACTOR
        assert np.abs(expected).max() > 0.5
        assert batch["advantages"].numpy() == pytest.approx(expected, abs=5e-3)  # TRL adds 1e-4 to the deviation
    after = trainer.model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, trainer.before[name]) for name, value in after.items())
    assert all(np.isfinite(value) for value in logged(trainer, "loss"))


def test_a_group_is_compared_by_what_it_was_asked(train):
    """`digit` does not apply to the second question: its group is that of the other two functions alone."""
    trainer = train([has_a, short, digit], max_steps=1, shuffle_dataset=False)
    (batch,) = trainer.batches
    rewards_BMD = batch["scored"].rewards_BMD
    assert np.isnan(rewards_BMD[G:, :, 2]).all() and not np.isnan(rewards_BMD[:G]).any()
    assert batch["advantages"].numpy() == pytest.approx(by_the_method(trainer, batch, 0) * FACTOR, abs=5e-3)


def test_functions_read_the_plain_prompt_and_the_policy_the_request(train):
    met = []

    def spy(prompts, completions, completion_ids, **_):
        met.append((prompts[0][-1]["content"], len(prompts), [len(ids) for ids in completion_ids], completions))
        return [0.5] * len(completions)

    trainer = train([spy, short], max_steps=1)
    (prompt, n, lengths, completions) = met[0]
    assert prompt in ("what?", "why?", "who?", "where?") and n == 2 * G * M
    sizes = [
        len(trainer.processing_class(text(answer), add_special_tokens=False)["input_ids"]) for answer in completions
    ]
    assert lengths == sizes
    read = trainer.processing_class.batch_decode(trainer.batches[0]["prompt_ids"], skip_special_tokens=True)
    assert all(ask("", M) in prompt for prompt in read)


def test_the_log_holds_real_rewards_in_training_and_evaluation(tokenizer, tmp_path):
    import pandas as pd

    trainer = scripted(VPOTrainer, random_texts(0))(
        model=small_model(tokenizer),
        reward_funcs=[has_a, short, digit],
        args=arguments(
            VPOConfig,
            tmp_path,
            eval_strategy="steps",
            eval_steps=1,
            per_device_eval_batch_size=G,
            log_completions=True,
            num_completions_to_print=1,
        ),
        train_dataset=rows(),
        eval_dataset=rows().select(range(4)),
        processing_class=tokenizer,
    )
    trainer.train()
    scored = [batch["scored"] for batch in trainer.batches if batch["training"]]
    there = [np.where(one.present_BM, one.rewards_BMD[:, :, 0], np.nan) for one in scored]
    assert logged(trainer, "objective/has_a/mean") == pytest.approx([np.nanmean(seen) for seen in there])
    best = [np.nanmean([np.nanmax(row) for row in seen if not np.isnan(row).all()]) for seen in there]
    assert logged(trainer, "objective/has_a/best") == pytest.approx(best)
    assert logged(trainer, "answers") == pytest.approx([one.present_BM.sum(axis=1).mean() for one in scored])
    parts = np.sum([logged(trainer, f"rewards/{name}/mean") for name in ("has_a", "short")], axis=0)
    assert (np.array(logged(trainer, "reward")) > parts).all()  # the third is left out where it was not asked
    for key in ("eval_objective/digit/best", "eval_answers", "eval_reward"):
        assert len(logged(trainer, key)) == 2
    assert all(0 < value < 8 for value in logged(trainer, "mean_length"))  # logged by a function, of answers
    table = pd.read_parquet(sorted((tmp_path / "completions").glob("*.parquet"))[0])
    assert all(len(of_rollout) == M for of_rollout in table["length"])


def test_a_group_that_earns_the_same_set_reward_is_silent(train):
    """The same answers in another order: no rollout is better than another."""
    orders = itertools.cycle(join_chain(list(order)) for order in itertools.permutations(["a1", "bbbb", "aaaaa2"]))
    trainer = train([has_a, short], texts=orders)
    assert logged(trainer, "frac_reward_zero_std") == [1.0, 1.0]
    assert all(not batch["advantages"].any() for batch in trainer.batches)
    assert logged(trainer, "objective/has_a/mean") == pytest.approx([2 / 3] * 2)


def test_a_rollout_that_is_cut_off_earns_the_floor(train):
    chains = itertools.cycle([join_chain(["a1", "b", "a"])])
    trainer = train([has_a, short], texts=chains, cut=lambda number: number % 2, floor=-1.0, max_steps=1)
    (batch,) = trainer.batches
    assert batch["scored"].truncated_B.tolist() == [False, True] * G
    assert batch["advantages"].numpy() == pytest.approx(np.tile([1, -1], G) * FACTOR, abs=1e-3)
    whole = train([has_a, short], texts=chains, cut=lambda number: number % 2, void_truncated=False, max_steps=1)
    assert not whole.batches[0]["advantages"].any()


def test_a_missing_answer_never_beats_a_bad_one(train):
    """All rewards are negative: the rollout with two bad answers is no worse than the one with a single one."""

    def penalty(completions, **_):
        return [-float(text(completion)) if text(completion).isdigit() else 0.0 for completion in completions]

    bad, worse, none = "<answer_1>1</answer_1>", "<answer_2>2</answer_2>", "nothing"
    trainer = train([penalty], texts=itertools.cycle([bad, worse, none, bad + worse]), floor=-3.0, max_steps=1)
    first, second, third, fourth = trainer.batches[0]["advantages"][:G].tolist()
    assert first == fourth > second > third


def test_one_answer_is_grpo(train):
    texts = ["a1", "bb", "aaaa", "b23"]
    ours = train([has_a, short], texts=itertools.cycle(texts), keywords={"candidates": 1}, max_steps=1)
    theirs = train(
        [has_a, short],
        texts=itertools.cycle(texts),
        trainer=GRPOTrainer,
        config=GRPOConfig,
        reward_weights=[0.5, 0.5],
        max_steps=1,
    )
    assert torch.allclose(ours.batches[0]["advantages"], theirs.batches[0]["advantages"], atol=1e-6)
    assert torch.equal(ours.batches[0]["prompt_ids"], theirs.batches[0]["prompt_ids"])


def test_the_class_name_and_one_argument_make_a_grpo_script_vpo(train):
    """A plain GRPOConfig and `candidates`, the same as the wrapper in TRL's own trainer but for the draws."""
    ours = train([has_a, short], config=GRPOConfig, keywords={"candidates": 3}, max_steps=1)
    asked = rows().map(lambda row: {"prompt": ask(row["prompt"], 3)})
    wrapped = train(SetReward([has_a, short], 3), trainer=GRPOTrainer, config=GRPOConfig, data=asked, max_steps=1)
    a, b = (trainer.batches[0] for trainer in (ours, wrapped))
    assert torch.equal(a["prompt_ids"], b["prompt_ids"]) and torch.equal(a["completion_ids"], b["completion_ids"])
    assert torch.allclose(a["advantages"], b["advantages"], atol=0.02)
    assert logged(wrapped, "objective/short/best") == pytest.approx(logged(ours, "objective/short/best"))


def test_a_reward_model_may_be_an_objective(train, tokenizer):
    read = []

    class Model(Qwen3ForSequenceClassification):
        def forward(self, input_ids=None, **kwargs):
            read.extend(tokenizer.batch_decode(input_ids, skip_special_tokens=True))
            return super().forward(input_ids=input_ids, **kwargs)

    torch.manual_seed(1)
    sizes = dict(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, head_dim=8)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, pad_token_id=tokenizer.pad_token_id)
    judge = Model(Qwen3Config(**sizes, **heads, num_labels=1))
    judge.config._name_or_path = "some/judge"
    trainer = train([has_a, judge], max_steps=1, keywords={"reward_processing_classes": [None, tokenizer]}, floor=-9.0)
    assert len(read) == 2 * G * M and not any("<answer_" in one for one in read)
    assert len(logged(trainer, "objective/judge/best")) == 1


# --- Other methods --------------------------------------------------------------------------------


def test_an_advantage_per_answer_reaches_the_tokens_of_the_answer(train):
    method = METHODS["vpo_credit"]
    trainer = train([has_a, short], keywords={"method": method}, cut=lambda number: number == 3)
    tokenizer, compared = trainer.processing_class, 0
    for step, batch in enumerate(trainer.batches):
        scored, expected = batch["scored"], by_the_method(trainer, batch, step, method)
        assert batch["advantages"].shape == batch["completion_ids"].shape
        kept = zip(batch["advantages"], expected, scored.completion_ids, scored.completions, strict=True)
        for row_T, row_M, ids, completion in kept:
            assert not row_T[len(ids) :].any()
            answers = split_chain(text(completion), M)
            if all(answers):  # an answer that is missing is never over: the tokens behind it are its own
                pieces = [tokenizer.decode(i).strip() for i in ids]
                for answer, value in zip(answers, row_M, strict=True):
                    last = [t for t, piece in enumerate(pieces) if piece == answer[-1]]
                    if len(last) == 1:
                        assert row_T[last[0]] == pytest.approx(value, abs=1e-6)
                        compared += 1
    assert compared > 10
    assert all(np.isfinite(value) for value in logged(trainer, "loss"))


@pytest.mark.parametrize("name", ["grpo", "gdpo", "maxrl", "max_at_k", "vpo", "best_of_set"])
def test_a_method_gives_its_own_advantages(train, name):
    method = METHODS[name]
    texts = random_texts(0) if method.multi_answer else itertools.cycle(["a1", "bb", "aaaa", "b23", "b"])
    candidates = M if method.multi_answer else 1
    trainer = train([has_a, short], texts=texts, candidates=candidates, keywords={"method": method})
    for step, batch in enumerate(trainer.batches):
        assert batch["advantages"].numpy() == pytest.approx(by_the_method(trainer, batch, step, method), abs=1e-6)


def test_a_method_may_be_named_in_the_config(train):
    trainer = train(
        [has_a, short], candidates=1, method="grpo", texts=itertools.cycle(["a1", "bb", "aaaa", "b"]), max_steps=1
    )
    (batch,) = trainer.batches
    assert batch["advantages"].numpy() == pytest.approx(by_the_method(trainer, batch, 0, METHODS["grpo"]), abs=1e-6)


def test_thoughts_that_a_template_splits_off_hold_no_answers(tokenizer):
    from vpo_lab.train.trl import answer_of_tokens

    chain = join_chain(["a1", "b2"])
    thought = "<answer_1> hm </answer_1> "
    ids = tokenizer(thought + chain, add_special_tokens=False)["input_ids"]
    first = answer_of_tokens(tokenizer, ids, thought + chain, 2, start=len(thought)).tolist()
    alone = answer_of_tokens(tokenizer, tokenizer(chain, add_special_tokens=False)["input_ids"], chain, 2).tolist()
    assert first[len(ids) - len(alone) :] == alone and not any(first[: len(ids) - len(alone)])


# --- A subclass -----------------------------------------------------------------------------------


def test_a_subclass_may_score_without_functions_and_log_its_own(train):
    class Own(VPOTrainer):
        def score_answers(self, inputs, prompts, answers):
            assert len(inputs) == len(prompts) == len(answers)
            scores = [[row["target"] / 3, len(text(answer))] for row, answer in zip(inputs, answers, strict=True)]
            return self.accelerator.gather(torch.tensor(scores, dtype=torch.float64))

        def measure(self, scored):
            return {**super().measure(scored), "rollouts": len(scored.rewards_BMD), "here": len(scored.completions)}

    trainer = train([has_a, short], trainer=Own, max_steps=1, floor=-1)
    (batch,) = trainer.batches
    assert set(batch["scored"].rewards_BMD[:, :, 0].ravel()) <= {target / 3 for target in (3, -1, 5, 7)}  # float64
    assert logged(trainer, "rollouts") == logged(trainer, "here") == [2 * G]


# --- Config and data ------------------------------------------------------------------------------


def test_the_config_is_that_of_grpo_and_survives_pickle_and_the_command_line(tmp_path):
    from transformers import HfArgumentParser

    config = arguments(VPOConfig, tmp_path, candidates=5, alpha=0.5)
    assert isinstance(config, GRPOConfig) and (config.candidates, config.alpha, config.num_generations) == (5, 0.5, G)
    assert config.to_dict()["candidates"] == 5
    copy = pickle.loads(pickle.dumps(config))
    assert type(copy) is VPOConfig and copy.candidates == 5
    line = ["--output_dir", str(tmp_path), "--candidates", "2", "--method", "grpo", "--void_truncated", "false"]
    line += ["--use_cpu", "true", "--bf16", "false"]
    (parsed,) = HfArgumentParser(VPOConfig).parse_args_into_dataclasses(line)
    assert (parsed.candidates, parsed.method, parsed.void_truncated, parsed.floor) == (2, "grpo", False, 0.0)
    assert VPOTrainer is __import__("vpo_lab").VPOTrainer


def asked_prompts(tokenizer, folder, data, held_out=None) -> set:
    """The first prompts that a trainer reads of its data sets."""
    args = arguments(VPOConfig, folder, candidates=M)
    trainer = VPOTrainer(small_model(tokenizer), has_a, args, data, held_out, processing_class=tokenizer)
    parts = [trainer.train_dataset, trainer.eval_dataset]
    parts += parts.pop().values() if isinstance(held_out, dict) else []
    return {next(iter(part))["prompt"] for part in parts if part is not None}


@pytest.mark.parametrize("prompt", ["q", ask("q", M)])
def test_every_form_of_data_set_is_asked_once(tokenizer, tmp_path, prompt):
    data = Dataset.from_dict({"prompt": [prompt] * 8})
    for held_out in (None, data, {"a": data, "b": data}, DatasetDict({"a": data})):
        assert asked_prompts(tokenizer, tmp_path, data, held_out) == {ask("q", M)}
    args = arguments(VPOConfig, tmp_path, ask=False)
    assert VPOTrainer(small_model(tokenizer), has_a, args, data, processing_class=tokenizer).train_dataset is data


def test_a_streaming_data_set_is_asked(tokenizer, tmp_path):
    data = Dataset.from_dict({"prompt": ["q"] * 8}).to_iterable_dataset()
    try:
        assert asked_prompts(tokenizer, tmp_path, data) == {ask("q", M)}
    except NotImplementedError:
        pytest.skip("this version of TRL takes no streaming data set")


def test_importing_the_door_needs_neither_torch_nor_scipy():
    code = "import sys, vpo_lab; assert not {'torch', 'trl', 'scipy'} & {*sys.modules}; vpo_lab.SetReward; "
    code += "assert not {'torch', 'trl'} & {*sys.modules}; assert 'VPOTrainer' in dir(vpo_lab)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("functions", "keywords", "settings", "named"),
    [
        (has_a, {"environment_factory": object}, {}, "environment_factory"),
        (has_a, {"rollout_func": lambda *a: None}, {}, "rollout_func"),
        (has_a, {}, {"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation"),
        (has_a, {"candidates": 0}, {}, "candidates"),
        (has_a, {}, {"candidates": 0}, "candidates"),
        (has_a, {"method": "ppo"}, {}, "'ppo'"),
        ([has_a, SetReward(has_a, 2)], {}, {}, "SetReward"),
        ([has_a, 3], {}, {}, "3"),
    ],
)
def test_what_it_cannot_train_with_is_named(tokenizer, tmp_path, functions, keywords, settings, named):
    with pytest.raises(LabError, match=named) as error:
        VPOTrainer(
            model=small_model(tokenizer),
            reward_funcs=functions,
            args=arguments(VPOConfig, tmp_path, **settings),
            train_dataset=rows(),
            processing_class=tokenizer,
            **keywords,
        )
    assert "\n" not in str(error.value)


async def awaited(completions, **_):
    return None


@pytest.mark.parametrize("function", [lambda completions, **_: None, lambda completions, **_: [1.0], awaited])
def test_a_function_that_returns_no_list_of_rewards_is_named(train, function):
    function.__name__ = "broken"
    with pytest.raises(LabError, match="'broken'"):
        train([has_a, function])


def test_warns_of_rollouts_without_answers_and_of_rewards_below_the_floor(train):
    with pytest.warns(UserWarning, match="'penalty'"):

        def penalty(completions, **_):
            return [-1.0] * len(completions)

        train([penalty], max_steps=1)
    with pytest.warns(UserWarning, match="<answer_1>"):
        train([has_a], texts=itertools.cycle(["nothing"]), max_steps=1)


def test_unsloth_that_did_not_replace_the_trainer_is_an_error(monkeypatch):
    import vpo_lab

    monkeypatch.setitem(sys.modules, "unsloth", object())
    with pytest.raises(LabError, match="unsloth"):
        _ = vpo_lab.VPOTrainer
