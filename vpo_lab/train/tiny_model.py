"""A policy of half a million parameters, from scratch: Qwen3's architecture and its chat format.

The tokenizer is trained on the task's own text. A word-level split of JSON wastes most tokens on
boilerplate, so every recurring piece of text between two values becomes one token: three answers
are then about 27 tokens instead of 150, and a training step is several times faster. All other
text falls back to bytes, so that nothing is ever unknown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from vpo_lab.config import Policy

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Capitalised words and free-standing numbers may be values; numbered tags and the borders around a
# call's name stand alone, or every pair of neighbours would be a piece of its own. So does every symbol
# beyond ASCII, such as a cell or a move of a maze, and every line of code that sets a variable.
_PIECE = re.compile(r"(?m)^[a-z]+ = .+$|</?answer_\d+>\n?|[A-Z][a-z]+|(?<!\w)\d+(?!\w)|(?<=}\n)(?={)|(?<=parameters.: {)|[^\x00-\x7f]")


def recurring_pieces(texts: Iterable[str], min_share: float = 0.0003) -> list[str]:
    """Find the pieces of text that deserve a token: values, numbered tags, and the boilerplate between.

    `min_share`: how often a piece has to occur, as a share of the number of texts. A piece that
    never occurs without the same neighbour is merged with it.
    """
    segments = [s for text in texts for s in re.split(r"<\|\w+\|>", text) if s]
    counts = Counter(segments)
    enough = max(2, min_share * len(segments))
    # Whole messages that recur, such as a system prompt, are one piece whatever they contain.
    whole = {s for s, n in counts.items() if n >= 20 * enough}
    sequences = {s: [s] if s in whole else _split(s) for s in counts}
    while True:
        single, pairs = Counter(), Counter()
        for segment, pieces in sequences.items():
            for piece in pieces:
                single[piece] += counts[segment]
            for pair in pairwise(pieces):
                pairs[pair] += counts[segment]
        inseparable = {pair for pair, n in pairs.items() if n >= enough and n in (single[pair[0]], single[pair[1]])}
        if not inseparable:
            return sorted(piece for piece, n in single.items() if n >= enough and len(piece) > 0)
        sequences = {s: _merge(pieces, inseparable) for s, pieces in sequences.items()}


def _split(text: str) -> list[str]:
    pieces, position = [], 0
    for match in _PIECE.finditer(text):
        pieces += [text[position : match.start()], match[0]]
        position = match.end()
    return [piece for piece in [*pieces, text[position:]] if piece]


def _merge(pieces: list[str], inseparable: set[tuple[str, str]]) -> list[str]:
    merged: list[str] = []
    previous = None  # the piece before, unless it has just been merged with its own neighbour
    for piece in pieces:
        if (previous, piece) in inseparable:
            merged[-1] += piece
            previous = None
        else:
            merged.append(piece)
            previous = piece
    return merged


def train_tokenizer(texts: Iterable[str]):
    """Train a byte-level tokenizer in which every recurring piece of `texts` is one token.

    Returns a PreTrainedTokenizerFast with Qwen3's chat template and special tokens, padded left.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl.chat_template_utils import qwen3_chat_template

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    backend.add_tokens([AddedToken(piece, normalized=False) for piece in recurring_pieces(texts)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        padding_side="left",
        chat_template=qwen3_chat_template,
        clean_up_tokenization_spaces=False,
    )


def build_model(policy: Policy, tokenizer, seed: int):
    """Build a Qwen3 model with random weights in the shape that the profile's policy states."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=policy.hidden_size,
        intermediate_size=policy.intermediate_size,
        num_hidden_layers=policy.layers,
        num_attention_heads=policy.heads,
        num_key_value_heads=policy.heads,
        head_dim=policy.hidden_size // policy.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)
