"""tiny_model.py: a tokenizer that loses nothing and is short where text recurs, a model of half a million weights."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpo_lab.chains import join_chain
from vpo_lab.config import get_profile
from vpo_lab.tasks import get_task
from vpo_lab.tasks.tool_calls import tiny as tiny_tools
from vpo_lab.tasks.tool_calls.tiny import kinds, render_answer
from vpo_lab.train.policy import scratch_tokenizer
from vpo_lab.train.prompts import render_prompt
from vpo_lab.train.tiny_model import SPECIAL, build_model, recurring_pieces, train_tokenizer

PROFILE, TASK = get_profile("tiny"), get_task("tiny_tools")


@pytest.fixture(scope="module")
def tokenizer():
    return scratch_tokenizer(PROFILE, TASK)


@pytest.fixture(scope="module")
def samples(tokenizer) -> list[tuple[str, str]]:
    """300 prompts that ask for three answers, and chains of three; 200 of them were never trained on."""
    rng = np.random.default_rng(99)
    rows = [*TASK.load(None, "test"), *TASK.load(None, "train")[:100]]
    return [(render_prompt(tokenizer, row["prompt"], 3), join_chain(TASK.demonstrations(row, 3, rng))) for row in rows]


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# --- Nothing is lost --------------------------------------------------------------------------

WORDS = ["<answer_1>\n", "</answer_3>", "<think> ", "Oslo", "Friday", "7", '{"name": "', "\n", "  ", "é", "漢"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=20), st.sampled_from([*SPECIAL, *WORDS])), max_size=12).map("".join))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(ids_of(tokenizer, text), skip_special_tokens=False) == text


def test_prompts_and_chains_come_back(tokenizer, samples):
    for prompt, chain in samples:
        assert tokenizer.decode(ids_of(tokenizer, prompt)) == prompt
        assert tokenizer.decode(ids_of(tokenizer, chain + SPECIAL[2]), skip_special_tokens=True) == chain


def test_prompt_and_completion_tokenized_apart_are_the_tokens_of_the_whole(tokenizer, samples):
    for prompt, chain in samples:
        apart = ids_of(tokenizer, prompt) + ids_of(tokenizer, chain)
        assert tokenizer.decode(apart) == prompt + chain
        assert apart == ids_of(tokenizer, prompt + chain)


def test_a_saved_tokenizer_is_the_same_one(tokenizer, samples, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for prompt, chain in samples[:50]:
        assert ids_of(loaded, prompt + chain) == ids_of(tokenizer, prompt + chain)
    row = TASK.load(None, "test")[0]
    assert render_prompt(loaded, row["prompt"], 3) == render_prompt(tokenizer, row["prompt"], 3)
    assert (loaded.pad_token_id, loaded.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert loaded.padding_side == "left"


# --- What recurs is short ---------------------------------------------------------------------


def test_prompts_and_chains_are_few_tokens(tokenizer, samples):
    assert len(samples) == 300
    assert max(len(ids_of(tokenizer, prompt)) for prompt, _ in samples) <= 24
    assert np.quantile([len(ids_of(tokenizer, chain)) for _, chain in samples], 0.98) <= 42  # the rest: rare mistakes
    assert 256 + len(SPECIAL) < len(tokenizer) < 1000


def test_values_are_tokens_of_their_own(tokenizer, samples):
    vocabulary = tokenizer.get_vocab()
    for word in ("Oslo", "Anna", "Kitchen", "Apples", "Monday", "2", "9"):
        assert word in vocabulary
        assert vocabulary[word] in {token for prompt, _ in samples for token in ids_of(tokenizer, prompt)}


def test_what_users_mean_fits_the_profile_and_so_do_nearly_all_demonstrations(tokenizer, samples):
    limit = 3 * PROFILE.policy.max_answer_tokens
    for request, _ in tiny_tools._requests()["test"]:
        meant = {render_answer(request.calls(*outcome)) for outcome in kinds()[request.kind].outcomes}
        longest = sorted(meant, key=lambda answer: len(ids_of(tokenizer, answer)))[-3:]
        assert len(ids_of(tokenizer, join_chain(longest))) < limit
    # A rare mistake of the annotator is spelled in bytes.
    assert np.mean([len(ids_of(tokenizer, chain)) < limit for _, chain in samples]) > 0.98
    assert max(len(ids_of(tokenizer, prompt)) for prompt, _ in samples) <= PROFILE.policy.max_prompt_tokens


NAMES, NUMBERS = ("Anna", "Boris", "Clara"), ("3", "4", "5")
GIFTS = [
    f"<|im_start|>{a} has {n} or {m} for {b}.<|im_end|>"
    for a, b in permutations(NAMES, 2)
    for n, m in permutations(NUMBERS, 2)
]


def test_recurring_pieces_are_values_and_the_text_between_whatever_the_order():
    pieces = recurring_pieces(GIFTS)
    assert pieces == recurring_pieces(GIFTS) == recurring_pieces(reversed(GIFTS))
    assert set(pieces) == {*NAMES, *NUMBERS, " has ", " or ", " for ", "."}


def test_pieces_that_always_meet_become_one_and_rare_ones_none():
    pieces = recurring_pieces([*(text.replace("4", "Monday 7") for text in GIFTS), "Zoe sings"], min_share=0.1)
    assert "Monday 7" in pieces and not {"Monday", "7"} & set(pieces)
    assert not any("Zoe" in piece or "sings" in piece for piece in pieces)


# --- What training and sampling rely on -------------------------------------------------------


def test_pad_is_not_the_end_and_padding_is_left(tokenizer):
    assert tokenizer.pad_token == SPECIAL[0] and tokenizer.eos_token == SPECIAL[2]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    batch = tokenizer(["Oslo", "Oslo Oslo Oslo"], padding=True)
    assert batch["attention_mask"][0][0] == 0 and batch["attention_mask"][0][-1] == 1
    assert batch["input_ids"][0][0] == tokenizer.pad_token_id


def test_special_tokens_are_one_token_each(tokenizer):
    for token in SPECIAL:
        assert len(ids_of(tokenizer, token)) == 1
    assert len({tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}) == 3


def test_prompts_are_rendered_with_thinking_off(tokenizer):
    row = TASK.load(None, "test")[0]
    for m, wording in ((1, "Write one answer"), (3, "Write 3 different answers")):
        prompt = render_prompt(tokenizer, row["prompt"], m)
        assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert row["prompt"][0]["content"] in prompt and row["prompt"][1]["content"] in prompt
        assert wording in prompt and prompt.count("<|im_start|>") == 3


def test_the_model_has_about_half_a_million_weights(tokenizer):
    model = build_model(PROFILE.policy, tokenizer, seed=0)
    assert 400_000 < sum(weight.numel() for weight in model.parameters()) < 600_000
    assert model.config.model_type == "qwen3" and model.config.vocab_size == len(tokenizer)
    ends = model.generation_config.pad_token_id, model.generation_config.eos_token_id
    assert ends == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_the_seed_decides_the_first_weights(tokenizer):
    import torch

    first, again, other = (build_model(PROFILE.policy, tokenizer, seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_tokenizer_without_texts_still_reads_and_writes_bytes():
    empty = train_tokenizer([])
    assert len(empty) == 256 + len(SPECIAL)
    assert empty.decode(ids_of(empty, "naïve — 漢字")) == "naïve — 漢字"
