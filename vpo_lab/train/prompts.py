"""Render rows as the model reads them, and say how many answers and rollouts a method asks for."""

from __future__ import annotations

import numpy as np

from vpo_lab.chains import answer_prompt
from vpo_lab.config import Profile
from vpo_lab.errors import LabError
from vpo_lab.methods import Method, get_method
from vpo_lab.processes import print0
from vpo_lab.tasks import Task
from vpo_lab.weights import draw_goal


def render_prompt(tokenizer, messages: list[dict], m: int, goal: dict[str, int] | None = None) -> str:
    """Return the text that a completion continues: chat template, thinking off, a request for `m` answers.

    `goal` is stated there too, see `chains.answer_prompt`.

    Prompts and completions travel as text from here on: Qwen3's template cuts an assistant message
    at its last </think>, which would destroy a chain of answers that each have a think block.
    """
    return tokenizer.apply_chat_template(
        answer_prompt(messages, m, goal), tokenize=False, add_generation_prompt=True, enable_thinking=False
    )


HELD_OUT = "held out"  # a split of its own: train rows that nothing is trained on


def load_rows(profile: Profile, task: Task, split: str, tokenizer, limit: int = 0) -> list[dict]:
    """Load the rows of a split whose prompt fits the profile's window, the first `limit` of them (0: all).

    The split is "train", `HELD_OUT` or "test". With `evaluation.held_out` the first two share the train rows, the same
    way for every seed; a prompt is never in both.
    """
    rows = task.load(profile.data or None, "test" if split == "test" else "train")
    if split != "test" and (count := profile.evaluation.held_out):
        if count >= len(rows):
            raise LabError(f"evaluation.held_out = {count}: {task.name} has {len(rows)} train rows, none would be left")
        apart = {repr(rows[i]["prompt"]) for i in np.random.default_rng(0).permutation(len(rows))[:count]}
        rows = [row for row in rows if (repr(row["prompt"]) in apart) == (split == HELD_OUT)]
        rows = rows[:count] if split == HELD_OUT else rows  # prompts may repeat
    longest = profile.policy.max_prompt_tokens
    texts = [render_prompt(tokenizer, row["prompt"], profile.rl.candidates) for row in rows]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length <= longest]
    if not fitting:
        raise LabError(
            f"no {split} prompt of {task.name} fits policy.max_prompt_tokens = {longest} "
            f"(the shortest has {min(lengths)}): raise it"
        )
    if len(fitting) < len(rows):
        print0(f"{len(rows) - len(fitting)} of {len(rows)} {split} prompts are longer than {longest} tokens: left out")
    return fitting[:limit] if limit else fitting


# A prompt may state a goal, and a warmup's answer be a little longer than the policy's own may get.
SLACK = 128


def window(profile: Profile, m: int) -> int:
    """Return the tokens of the longest prompt with M answers: what the model and vLLM make room for."""
    return profile.policy.max_prompt_tokens + profile.policy.max_answer_tokens * m + SLACK


def _with_pad_and_eos(tokenizer):
    """Left padding, and a pad token that is not the end token, or the end is never learned."""
    tokenizer.padding_side = "left"
    if tokenizer.eos_token_id is None:
        raise LabError("the tokenizer has no eos token: choose a chat model such as unsloth/Qwen3-1.7B")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        if "<|endoftext|>" not in tokenizer.get_vocab() or tokenizer.eos_token == "<|endoftext|>":
            raise LabError("the tokenizer has no pad token besides its eos token: set tokenizer.pad_token first")
        tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


def evaluation_rows(profile: Profile, task: Task, tokenizer) -> list[dict]:
    """Load the rows that pools are made of: the test split, then the train rows held out, `evaluation.requests`."""
    rows = load_rows(profile, task, "test", tokenizer)
    if profile.evaluation.held_out:
        rows += load_rows(profile, task, HELD_OUT, tokenizer)
    return rows[: profile.evaluation.requests or None]


def answers_per_rollout(profile: Profile, method: str) -> int:
    """Return M, how many answers a rollout of this method holds."""
    return profile.rl.candidates if get_method(method).multi_answer else 1


def rollouts_per_prompt(profile: Profile, method: str) -> int:
    """Return G, the rollouts per prompt. Equal budgets of answers: with one in a rollout, a group has M times as many.

    With `rl.equal` "rollouts" it has as many as the others, and so an M-th of the answers.
    """
    if profile.rl.equal == "rollouts":
        return profile.rl.group_size
    return profile.rl.group_size * profile.rl.candidates // answers_per_rollout(profile, method)


def rollouts_per_step(profile: Profile, method: str) -> int:
    """Return how many rollouts an optimizer step trains on, in groups of `rollouts_per_prompt`."""
    return profile.rl.rollouts // profile.rl.group_size * rollouts_per_prompt(profile, method)


def method_of(profile: Profile, name: str) -> Method:
    """Return the named method with options from the profile, except those that define the method itself."""
    method = get_method(name)
    free = set(method.option_names) - set(dict(method.options))
    return method.with_options(**{name: getattr(profile.rl, name) for name in free if hasattr(profile.rl, name)})


def sample_goal(task: Task, rng: np.random.Generator) -> dict[str, int]:
    """Draw preference weights for a prompt to state: {objective: tenths}, summing to 10."""
    return dict(zip(task.objectives, draw_goal(len(task.objectives), rng).tolist(), strict=True))
