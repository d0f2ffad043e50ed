"""A small training with TRL on a CPU: random weights, a data set of questions, rollouts from a script.

A random model never writes tags, so `scripted` puts chains in the place of what it generates: the scoring, the
loss and the optimizer are TRL's own.
"""

from __future__ import annotations

import numpy as np

M, G = 3, 4
QUESTIONS = {"what?": 3, "why?": -1, "who?": 5, "where?": 7}


def small_tokenizer():
    from vpo_lab import ask
    from vpo_lab.train.tiny_model import train_tokenizer

    tags = [f"<{slash}answer_{number}>\n" for number in (1, 2, 3) for slash in ("", "/")]
    return train_tokenizer([*tags, ask("", M)] * 50)


def small_model(tokenizer):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    narrow = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, head_dim=8, tie_word_embeddings=True)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, vocab_size=len(tokenizer), max_position_embeddings=1024)
    ends = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**narrow, **heads, **ends))


def write_policy(folder, prompts, steps: int = 150):
    """A small policy in `folder`, taught to answer these chats with a chain of random letters and numbers."""
    import torch

    tokenizer = small_tokenizer()
    model, rng = small_model(tokenizer).train(), np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    asked = tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
    for _ in range(steps):
        starts = [tokenizer(asked[i], add_special_tokens=False)["input_ids"] for i in rng.integers(len(asked), size=16)]
        ends = [tokenizer(random_chain(rng) + tokenizer.eos_token)["input_ids"] for _ in starts]
        batch = tokenizer.pad(
            {"input_ids": [a + b for a, b in zip(starts, ends, strict=True)]}, padding_side="right", return_tensors="pt"
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, start in zip(labels, starts, strict=True):
            row[: len(start)] = -100
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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
    return [
        None if number < 0 else float(str(number) in text(c)) for c, number in zip(completions, target, strict=True)
    ]


def rows(chat: bool = True, copies: int = 4):
    from datasets import Dataset

    questions = [*QUESTIONS] * copies
    prompts = [[{"role": "user", "content": question}] for question in questions] if chat else questions
    return Dataset.from_dict({"prompt": prompts, "target": [QUESTIONS[question] for question in questions]})


# --- Rollouts from a script -----------------------------------------------------------------------


def random_chain(rng: np.random.Generator) -> str:
    answers = {i: f"{'ab'[rng.integers(2)] * int(rng.integers(1, 6))}{rng.integers(10)}" for i in (1, 2, 3)}
    return (
        "\n".join(f"<answer_{i}>\n{a}\n</answer_{i}>" for i, a in answers.items() if rng.random() < 0.85) or "nothing"
    )


def scripted(trainer_class, texts, cut=lambda number: False):
    """The trainer class with completions from the iterator `texts`; those that `cut` names have no end token.

    Every batch of a process is kept in `batches`: what TRL was given to train on.
    """

    class Scripted(trainer_class):
        def __init__(self, *args, **kwargs):
            self.batches, self.said = [], 0
            super().__init__(*args, **kwargs)
            self.generation_config.max_new_tokens = 1  # what it generates is thrown away

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
            self.batches.append({"training": self.model.training, "scored": getattr(self, "scored", None), **batch})
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
    return config_class(
        **{**dict(output_dir=str(folder), learning_rate=1e-3, seed=7), **usual, **quiet, **cpu, **settings}
    )
