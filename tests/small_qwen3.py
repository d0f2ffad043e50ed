"""A Qwen3 of two layers with random weights and a tokenizer of its own: what rehearses the full profile on a CPU."""

import shutil
from pathlib import Path

from plan import Shape

from vpo_lab.tasks import get_task
from vpo_lab.train.tiny_model import SPECIAL


def copy_rows(real: Path, folder: Path) -> None:
    shutil.copy(real / "train_sft400.parquet", folder / "train.parquet")
    shutil.copy(real / "test.parquet", folder / "test.parquet")


def small_config(**settings):
    """The shape of a Qwen3 of two narrow layers; `settings` add to it or change it."""
    from transformers import Qwen3Config

    narrow = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, head_dim=8)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    return Qwen3Config(**{**narrow, **heads, **settings})


def shape_config(shape: Shape, **settings):
    """The config of a Qwen3 of the sizes that `plan` reckons with; `settings` add to it."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        **settings,
    )


def trained_backend(rows: list[dict]):
    """A byte-level BPE of 2,000 tokens, trained on the rows' prompts and golds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = [text for row in rows for text in (*(message["content"] for message in row["prompt"]), row["gold"])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    backend.train_from_iterator(texts, trainer)
    return backend


def chat_tokenizer(backend):
    """The backend with Qwen3's chat template and special tokens."""
    from transformers import PreTrainedTokenizerFast
    from trl.chat_template_utils import qwen3_chat_template

    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=SPECIAL[0], eos_token=SPECIAL[2], chat_template=qwen3_chat_template
    )


def build_model(data: Path, folder: Path) -> Path:
    """A Qwen3 with random weights, and a tokenizer of 2,000 tokens trained on the rows."""
    import torch
    from transformers import Qwen3ForCausalLM

    tokenizer = chat_tokenizer(trained_backend(get_task("toolrl").load(data, "train")))
    torch.manual_seed(0)
    config = small_config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        head_dim=16,
        max_position_embeddings=8192,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
