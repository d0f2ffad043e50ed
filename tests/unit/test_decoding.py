"""Our decoding against transformers' `generate`; on a CPU the same steps, without the graph that a GPU replays."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config, TopPLogitsWarper

from vpo_lab.train.decoding import Decoder, decode_by_graph, draw

PAD, NEVER = 0, 1
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FAMILIES = {"qwen2": Qwen2Config, "llama": LlamaConfig, "qwen3": Qwen3Config}


def model_of(family: str, tied: bool = True):
    torch.manual_seed(0)
    shape = dict(hidden_size=96, intermediate_size=128, num_hidden_layers=3, num_attention_heads=6, head_dim=16)
    config = FAMILIES[family](vocab_size=97, num_key_value_heads=2, tie_word_embeddings=tied, **shape)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():  # far from uniform, or greedy choices would hang on rounding
        torch.nn.init.normal_(weight, std=0.2)
    with torch.no_grad():  # neither is ever the likeliest
        model.get_output_embeddings().weight[[PAD, NEVER]] = 0.0
    return model.to(DEVICE).eval()


def with_adapter(model):
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    move_adapter(model, 1)
    return model.eval()


def move_adapter(model, seed: int) -> None:
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)


def prompts(rows: int = 5, width: int = 13):
    """Token ids and mask, each row padded more than the one before."""
    torch.manual_seed(7)
    ids, mask = torch.randint(5, 97, (rows, width)), torch.ones(rows, width, dtype=torch.long)
    for row in range(rows):
        ids[row, : 2 * row], mask[row, : 2 * row] = PAD, 0
    return {"input_ids": ids.to(DEVICE), "attention_mask": mask.to(DEVICE)}


def agree(model, decoder, new: int = 80) -> None:
    """The same greedy tokens; the end token is one that the first prompt's answer comes to half-way."""
    settings = dict(max_new_tokens=new, do_sample=False, pad_token_id=PAD)
    free = model.generate(**prompts(), eos_token_id=NEVER, **settings)[:, 13:]
    end = int(free[0, new // 2])
    theirs, ours = (g(**prompts(), eos_token_id=[end, NEVER], **settings) for g in (model.generate, decoder.generate))
    longest = max(theirs.shape[1], ours.shape[1])
    theirs, ours = (torch.nn.functional.pad(ids, (0, longest - ids.shape[1]), value=PAD) for ids in (theirs, ours))
    assert torch.equal(theirs, ours)
    assert new < 3 or (ours[0] == PAD).any()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family, tied):
    model = with_adapter(model_of(family, tied))
    agree(model, Decoder(model))


@pytest.mark.parametrize("new", [1, 2, 3, 4, 35])
def test_any_number_of_tokens(new):
    model = model_of("qwen2")
    agree(model, Decoder(model), new)


def test_it_follows_the_weights_that_are_trained():
    model = with_adapter(model_of("llama"))
    decoder = Decoder(model)
    for seed in (1, 2):
        move_adapter(model, seed)
        agree(model, decoder)


def test_prompts_are_read_in_pieces(monkeypatch):
    monkeypatch.setattr("vpo_lab.train.decoding.PREFILL", 30)  # two prompts of 13 tokens
    model = model_of("qwen3")
    agree(model, Decoder(model))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (0.8, 0.9)])
def test_draws_follow_the_distribution(temperature, top_p):
    torch.manual_seed(0)
    logits_BV, n = 2 * torch.randn(2, 50), 40_000
    drawn_Bn = draw(logits_BV.repeat_interleave(n, dim=0), temperature, top_p).view(2, n)
    expected_BV = TopPLogitsWarper(top_p)(None, logits_BV / temperature).softmax(dim=-1)
    for drawn_n, expected_V in zip(drawn_Bn, expected_BV, strict=True):
        shares_V = torch.bincount(drawn_n, minlength=50) / n
        assert shares_V[expected_V == 0].sum() == 0
        assert (shares_V - expected_V).abs().max() < 5 * (0.25 / n) ** 0.5


def test_at_temperature_0_the_likeliest_token_is_drawn():
    assert draw(torch.tensor([[0.0, 2.0, 1.0]]), 0.0, 0.5).tolist() == [[1]]


def test_a_model_with_windows_of_attention_is_left_to_transformers():
    windows = Qwen2Config(use_sliding_window=True, max_window_layers=1, num_hidden_layers=2, sliding_window=8)
    model = SimpleNamespace(config=windows, generate="theirs")
    assert not decode_by_graph(model) and model.generate == "theirs"
    model.config = Qwen2Config(num_hidden_layers=2)
    assert decode_by_graph(model) and model.generate != "theirs"
