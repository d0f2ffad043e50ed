"""Which answer each token of a completion belongs to."""

import numpy as np
import pytest

from vpo_lab.chains import join_chain
from vpo_lab.tasks import get_task
from vpo_lab.train.prompts import render_prompt
from vpo_lab.train.tiny_model import train_tokenizer
from vpo_lab.train.trl import answer_of_tokens


@pytest.fixture(scope="module")
def tokenizer():
    task, rng, template = get_task("tiny_tools"), np.random.default_rng(0), train_tokenizer([])
    texts = []
    for row in task.load(None, "train")[:120]:
        for m in (1, 3):
            texts += [render_prompt(template, row["prompt"], m), join_chain(task.demonstrations(row, m, rng))]
    return train_tokenizer(texts)


def ids_of(tokenizer, text: str) -> list[int]:
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize(
    "answers",
    [["one", "two", "three"], ["🙂 漢字", "é\n</answer", "\u2028"], ["", "<answer_7>", "x"], ["<|im_end|>", "b", "c"]],
    ids=str,
)
def test_tokens_of_a_chain_belong_to_their_answers(tokenizer, answers):
    text = "Sure: " + join_chain(answers)
    ids = ids_of(tokenizer, text)
    text = tokenizer.decode(ids, skip_special_tokens=True)  # what TRL hands over
    found = answer_of_tokens(tokenizer, ids, text, 3).tolist()
    # The first token that is not in an answer any more starts where all of its closing tag has been said.
    said = [tokenizer.decode(ids[:t]) for t in range(len(ids))]
    assert found == [("</answer_1>" in part) + ("</answer_2>" in part) for part in said]
    assert found[0] == 0 and found[-1] == 2
    assert answer_of_tokens(tokenizer, ids, text, 2).tolist() == [min(answer, 1) for answer in found]
    assert answer_of_tokens(tokenizer, ids, text, 1).tolist() == [0] * len(ids)


@pytest.mark.parametrize(
    "text, last",
    [
        ("", 0),
        ("no tags", 0),
        ("<answer_1>\na", 0),  # the end closes this answer
        ("<answer_1>\na\n</answer_1>", 1),  # it stands where the second could have begun
        ("<answer_1>\na\n</answer_1>\n<answer_2>\n", 1),
        ("<answer_1>\na\n</answer_1>\n<answer_2>\nb\n</answer_2>\n", 2),
        ("<answer_2>\nb\n</answer_2>", 0),
    ],
)
def test_the_end_belongs_to_the_answer_that_it_keeps_from_going_on(tokenizer, text, last):
    """Else stopping early would be compared with what stopping early earned."""
    ids = ids_of(tokenizer, text)
    assert answer_of_tokens(tokenizer, ids, text, 3)[-1] == last


def test_bytes_that_are_no_text_and_no_tokens_at_all(tokenizer):
    emoji = tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(emoji) > 1
    for cut in range(1, len(emoji)):
        ids = [*emoji[cut:], *emoji[:cut], *ids_of(tokenizer, join_chain(["🙂", "b"]))]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        found = answer_of_tokens(tokenizer, ids, text, 2)
        assert found.tolist() == ["</answer_1>" in tokenizer.decode(ids[:t]) for t in range(len(ids))]
    for m in (1, 3):
        assert answer_of_tokens(tokenizer, [], "", m).shape == (0,)
