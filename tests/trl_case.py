"""A small training with TRL on a CPU: random weights, a data set of questions, rollouts from a script.

A random model never writes tags, so `scripted` puts chains in the place of what it generates: the scoring, the
loss and the optimizer are TRL's own.
"""

from __future__ import annotations

import numpy as np

M, G = 3, 4
QUESTIONS = {"what?": 3, "why?": -1, "who?": 5, "where?": 7}


def small_tokenizer():
    from vpo_lab.tiny_model import train_tokenizer

    tags = [f"<{slash}answer_{number}>\n" for number in (1, 2, 3) for slash in ("", "/")]
    return train_tokenizer(tags * 50)


def small_model(tokenizer):
    import torch
    from small_qwen3 import small_config
    from transformers import Qwen3ForCausalLM

    ends = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    torch.manual_seed(0)
    return Qwen3ForCausalLM(small_config(vocab_size=len(tokenizer), num_hidden_layers=1, **ends))


def text(completion) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


# --- A user's reward functions --------------------------------------------------------------------


def has_a(completions, **_):
    return [float("a" in text(completion)) for completion in completions]


def short(completions, log_extra=None, log_metric=None, **_):
    lengths = [len(text(completion)) for completion in completions]
    if log_extra:
        log_extra("length", lengths)
    if log_metric:
        log_metric("mean_length", float(np.mean(lengths)))
    return [1 / max(1, length) for length in lengths]


async def digit(completions, target, **_):
    """None for the rows that have no target."""
    return [None if number < 0 else float(str(number) in text(c)) for c, number in zip(completions, target, strict=True)]


def rows(chat: bool = True, copies: int = 4):
    from datasets import Dataset

    questions = [*QUESTIONS] * copies
    prompts = [[{"role": "user", "content": question}] for question in questions] if chat else questions
    return Dataset.from_dict({"prompt": prompts, "target": [QUESTIONS[question] for question in questions]})


# --- Rollouts from a script -----------------------------------------------------------------------


def random_chain(rng: np.random.Generator) -> str:
    answers = {i: f"{'ab'[rng.integers(2)] * int(rng.integers(1, 6))}{rng.integers(10)}" for i in (1, 2, 3)}
    return "\n".join(f"<answer_{i}>\n{a}\n</answer_{i}>" for i, a in answers.items() if rng.random() < 0.85) or "nothing"


def scripted(trainer_class, texts, cut=lambda number: False):
    """The trainer class with completions from the iterator `texts`; those that `cut` names have no end token.

    Every batch of a process is kept in `batches`: what TRL was given to train on.
    """

    class Scripted(trainer_class):
        def __init__(self, *args, **kwargs):
            self.batches, self.said = [], 0
            super().__init__(*args, **kwargs)

        def _generate_single_turn(self, *args, **kwargs):
            result = super()._generate_single_turn(*args, **kwargs)
            tokenizer, made = self.processing_class, []
            for _ in result[0]:
                end = [] if cut(self.said) else [tokenizer.eos_token_id]
                made.append(tokenizer(next(texts), add_special_tokens=False)["input_ids"] + end)
                self.said += 1
            return (made, *result[1:])

        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            self.batches.append({"training": self.model.training, **batch})
            return batch

    return Scripted


def random_texts(seed: int):
    rng = np.random.default_rng(seed)
    while True:
        yield random_chain(rng)


def arguments(config_class, folder, **settings):
    usual = dict(per_device_train_batch_size=2 * G, num_generations=G, max_completion_length=96, max_steps=2)
    quiet = dict(report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1)
    cpu = dict(use_cpu=True, bf16=False, gradient_checkpointing=False)
    return config_class(**{**dict(output_dir=str(folder), learning_rate=1e-3, seed=7), **usual, **quiet, **cpu, **settings})
