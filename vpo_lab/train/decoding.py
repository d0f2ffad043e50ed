"""Sample on a GPU without a serving engine: one CUDA graph is replayed for every token.

`generate` of transformers launches about a thousand small kernels for a token, one after the other from Python, and the
GPU waits for them most of the time. Here that step is recorded once for a batch and then replayed as a whole. The
weights are a copy with LoRA merged in, as vLLM keeps one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

NUCLEUS = 1024  # top_p looks at so many of the likeliest tokens: sorting the vocabulary would cost more than the model
LOOK_EVERY = 32  # tokens between two looks whether all completions have ended: each makes the GPU wait
PREFILL = 1 << 16  # tokens of prompts in a forward pass
ALIGN = 64  # the attention kernels want lengths that are a multiple of something


class Decoder:
    """Sample from a causal model of full attention, in the place of its `generate`."""

    def __init__(self, model):
        self.trained = model
        self.copy = None

    def generate(self, input_ids, attention_mask, generation_config=None, **settings):
        """Return token ids (B, T + N): prompts (B, T), padded on the left, and N new ones, padded behind the end.

        Takes what transformers' `generate` takes here: max_new_tokens, do_sample, temperature, top_p, eos_token_id
        and pad_token_id, in `generation_config` or by name.
        """
        import torch

        settings = {**(generation_config.to_dict() if generation_config else {}), **settings}
        pad, ends = settings["pad_token_id"], settings["eos_token_id"]
        ends = torch.tensor(ends if isinstance(ends, list) else [ends], device=input_ids.device)
        temperature = settings["temperature"] if settings.get("do_sample") else 0.0
        with torch.no_grad():
            new_BN = self._decode(
                input_ids,
                attention_mask,
                settings["max_new_tokens"],
                lambda new_BN: bool(torch.isin(new_BN, ends).any(dim=1).all()),
                lambda logits_BV: draw(logits_BV, temperature, settings.get("top_p") or 1.0),
            )
            ended_BN = torch.isin(new_BN, ends).cumsum(dim=1)
            behind_BN = torch.nn.functional.pad(ended_BN, (1, -1)) > 0
            return torch.cat([input_ids, new_BN.masked_fill(behind_BN, pad)], dim=1)

    def _decode(self, ids_BT, mask_BT, max_new: int, is_done: Callable, pick: Callable):
        import torch
        from transformers import StaticCache

        model = self._merged()
        rows, width = ids_BT.shape
        length = -(-(width + max_new) // ALIGN) * ALIGN
        shape = model.config
        size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        cache = StaticCache(config=shape, max_cache_len=length)
        cache.early_initialization(rows, shape.num_key_value_heads, size, model.dtype, ids_BT.device)
        layers: Any = cache.layers
        positions_BT = (mask_BT.long().cumsum(dim=1) - 1).clamp(min=0)
        logits = []
        for part in torch.arange(rows).split(max(1, PREFILL // width)):
            read = model(
                ids_BT[part],
                attention_mask=mask_BT[part],
                position_ids=positions_BT[part],
                logits_to_keep=1,
                use_cache=True,
            )
            logits.append(read.logits[:, -1])
            filled: Any
            for layer, filled in zip(layers, read.past_key_values.layers, strict=True):
                layer.keys[part, :, :width], layer.values[part, :, :width] = filled.keys, filled.values
            del read, filled
        for layer in layers:
            layer.cumulative_length.fill_(width)
        token_B1 = pick(torch.cat(logits))
        del logits
        # A summand that hides padding and the places of tokens to come.
        looks_B11L = torch.full((rows, 1, 1, length), torch.finfo(model.dtype).min).to(ids_BT.device, model.dtype)
        looks_B11L[:, 0, 0, :width].masked_fill_(mask_BT.bool(), 0.0)
        new_BN = torch.zeros(rows, max_new, dtype=torch.long, device=ids_BT.device)
        new_BN[:, :1] = token_B1
        position_B1 = positions_BT[:, -1:] + 1
        written = torch.ones(1, dtype=torch.long, device=ids_BT.device)

        def step():
            """Read the last token, write the next; all in place, at the same addresses every time."""
            looks_B11L.index_fill_(3, written + (width - 1), 0.0)
            logits_BV = model(
                token_B1, attention_mask=looks_B11L, position_ids=position_B1, past_key_values=cache, use_cache=True
            ).logits[:, -1]
            token_B1.copy_(pick(logits_BV))
            new_BN.index_copy_(1, written, token_B1)
            position_B1.add_(1)
            written.add_(1)

        done = 1
        for _ in range(min(2, max_new - 1)):  # what a first call allocates must not be recorded
            step()
            done += 1
        again = step
        if ids_BT.is_cuda and done < max_new:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            again = graph.replay
        while done < max_new and not is_done(new_BN[:, :done]):
            for _ in range(min(LOOK_EVERY, max_new - done)):
                again()
                done += 1
        return new_BN[:, :done]

    def _merged(self):
        """Return the copy, with the weights that the model has now."""
        import torch
        from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
        from transformers.masking_utils import sdpa_mask

        if self.copy is None:
            first = next(self.trained.parameters())
            AttentionInterface.register("grouped", grouped_attention)
            AttentionMaskInterface.register("grouped", sdpa_mask)
            with torch.device(first.device):
                self.copy = AutoModelForCausalLM.from_config(
                    copy.deepcopy(self.trained.config), dtype=first.dtype, attn_implementation="grouped"
                )
            self.copy.eval().requires_grad_(False)
        own = dict(self.copy.named_parameters())
        for name, weight in merged_weights(self.trained):
            own[name].copy_(weight)
        return self.copy


def decode_by_graph(model) -> bool:
    """Put a Decoder in the place of the model's `generate`, and return True, if it has nothing but full attention.

    Llama, Qwen2 and Qwen3 have; a model with windows keeps transformers' `generate`.
    """
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return False
    model.generate = Decoder(model).generate
    return True


def merged_weights(model):
    """Yield (name, tensor) of a model's own weights: base plus LoRA, added on a copy.

    TRL adds and subtracts the adapter in place at every step, which wears a bfloat16 base down: after 1000
    steps the error is as large as a third of what was learned (trl issue 6688). Not for FSDP or ZeRO-3.
    """
    import torch

    prefix = getattr(model, "prefix", None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if prefix and prefix in name:
                continue
            weight = parameter.data
            if name.endswith(".base_layer.weight"):
                layer = model.get_submodule(name.removesuffix(".base_layer.weight"))
                delta = sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
                weight = (weight + delta).to(parameter.dtype)
            yield name.removeprefix("base_model.model.").replace(".base_layer", ""), weight


def draw(logits_BV, temperature: float, top_p: float):
    """Return one token (B, 1) per row of logits; the likeliest at temperature 0."""
    import torch

    if temperature == 0:
        return logits_BV.argmax(dim=-1, keepdim=True)
    scores = logits_BV.float() / temperature
    ids = None
    if top_p < 1:
        total = scores.logsumexp(dim=-1, keepdim=True)
        scores, ids = scores.topk(min(NUCLEUS, scores.shape[-1]), dim=-1)
        shares = (scores - total).exp()
        scores = scores.masked_fill(shares.cumsum(dim=-1) - shares >= top_p, float("-inf"))
    # The largest of p / Exp(1) is a draw from p, without a step that asks the CPU.
    picked = (scores.softmax(dim=-1) / torch.empty_like(scores).exponential_()).argmax(dim=-1, keepdim=True)
    return picked if ids is None else ids.gather(-1, picked)


def grouped_attention(module, query, key, value, attention_mask, scaling=None, **more):
    """Attend from one token without copying keys to all the heads that share them; else as transformers does."""
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, heads, tokens, size = query.shape
    if tokens > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
    groups_BHGD = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    read_BHGD = scaled_dot_product_attention(groups_BHGD, key, value, attn_mask=attention_mask, scale=scaling)
    return read_BHGD.reshape(rows, 1, heads, size), None
