"""Judges that are reward models: heads of one with many, or several small ones.

A model is loaded when it is first asked, once for all its heads and for every task of this process. It takes the GPU
where there is one. A pair goes through it once: all heads of a pair come from the same pass.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.tasks.judges.judge import KNOWN, Judge

# RLHFlow/ArmoRM-Llama3-8B-v0.1 (licence llama3, about 16 GB in bfloat16), its 19 outputs in their order.
ARMO_RM = "RLHFlow/ArmoRM-Llama3-8B-v0.1"
ARMO_RM_HEADS = (
    "helpsteer-helpfulness", "helpsteer-correctness", "helpsteer-coherence", "helpsteer-complexity",
    "helpsteer-verbosity", "ultrafeedback-overall_score", "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness", "ultrafeedback-honesty", "ultrafeedback-helpfulness", "beavertails-is_safe",
    "prometheus-score", "argilla-overall_quality", "argilla-judge_lm", "code-complexity", "code-style",
    "code-explanation", "code-instruction-following", "code-readability",
)  # fmt: skip
SECONDS = 600.0  # of one batch, the loading of the model included


class RewardModel:
    """Score pairs of prompt and answer by a sequence classifier: (n, H) raw numbers, one column for each head.

    model: a hub id or folder. heads: H names, in the order of the model's outputs. own_code: run Python code that the
    model's folder brings along; pin `revision` (a commit) then, because that code may change. max_tokens: of prompt and
    answer; longer ones lose their beginning. device: "" takes the GPU of this process, else the CPU; dtype: "" takes
    bfloat16 on a GPU, float32 on a CPU.
    """

    def __init__(
        self,
        model: str,
        heads: Sequence[str] = ("reward",),
        *,
        own_code: bool = False,
        revision: str | None = None,
        max_tokens: int = 2048,
        batch: int = 16,
        device: str = "",
        dtype: str = "",
    ):
        self.model, self.heads, self.own_code, self.revision = str(model), tuple(heads), own_code, revision
        self.max_tokens, self.batch, self.device, self.dtype = max_tokens, batch, device, dtype
        self._known: dict[tuple[str, str], np.ndarray] = {}

    def judge(self, head: str = "", name: str = "", **settings: Any) -> Judge:
        """Return a head as a judge; its scale is measured on reference answers, unless low and high are given.

        `settings` are further fields of `Judge`. LabError for an unknown head.
        """
        head = head or self.heads[0]
        if head not in self.heads:
            raise LabError(f"reward model {self.model} has no head {head!r}: choose one of {', '.join(self.heads)}")
        column = self.heads.index(head)

        def scores(prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
            return self.score(prompts, answers)[:, column]

        version = f"{self.model}@{self.revision}" if self.revision else self.model
        given = {"version": version, "batch": 4 * self.batch, "seconds": SECONDS, "meaning": f"{head} of {self.model}"}
        return Judge(name or head, scores, **{**given, **settings})

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Return the raw outputs of n pairs: (n, H). LabError if the model cannot be loaded, or has other heads."""
        pairs = list(zip(prompts, answers, strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        found = {pair: self._known[pair] for pair in pairs if pair in self._known}
        new.sort(key=lambda pair: len(pair[0]) + len(pair[1]))  # alike in length, so that little is padded
        for start in range(0, len(new), self.batch):
            part = new[start : start + self.batch]
            found.update(zip(part, self._outputs(part), strict=True))
        if len(self._known) + len(new) > KNOWN:
            self._known.clear()
        self._known.update(found)
        return np.array([found[pair] for pair in pairs]).reshape(len(pairs), len(self.heads))

    def _outputs(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        import torch

        model, tokenizer = self._loaded
        texts = [self._dialogue(tokenizer, *pair) for pair in pairs]
        inputs = tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            add_special_tokens=False,  # the chat template has written them
        )
        wanted = {key: inputs[key].to(model.device) for key in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            output = model(**wanted)
        rewards = getattr(output, "rewards", None)  # ArmoRM: its objectives; `logits` would be their gated sum
        numbers_nH = (output.logits if rewards is None else rewards).float().cpu().numpy()
        if numbers_nH.shape != (len(pairs), len(self.heads)):
            raise LabError(
                f"reward model {self.model} gives {numbers_nH.shape[-1]} numbers for an answer: name as many heads "
                f"(now {', '.join(self.heads)})"
            )
        return numbers_nH

    @staticmethod
    def _dialogue(tokenizer: Any, prompt: str, answer: str) -> str:
        """Return both turns in the model's own form. Texts cannot open a turn: special tokens in them are dropped."""
        special = [*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]
        turns = []
        for role, text in (("user", prompt), ("assistant", answer)):
            for token in special:
                text = text.replace(token, "")
            turns.append({"role": role, "content": text})
        return tokenizer.apply_chat_template(turns, tokenize=False)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        try:
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ImportError as error:
            raise LabError(
                f"reward model {self.model} needs the package {error.name!r}: install the extra train"
            ) from error

        place = {"revision": self.revision, "trust_remote_code": self.own_code}
        device = self._device(torch)
        dtype = self.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model, **place)
            model = AutoModelForSequenceClassification.from_pretrained(self.model, dtype=getattr(torch, dtype), **place)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise LabError(
                f"cannot load the reward model {self.model} ({reason}): check name and network, name a local folder, "
                "or allow its own code (own_code=True)"
            ) from error
        if not tokenizer.chat_template:
            raise LabError(f"reward model {self.model} has no chat template: choose one for dialogues")
        tokenizer.truncation_side = "left"
        tokenizer.padding_side = "right"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:  # by it the model finds the last token of an answer
            model.config.pad_token_id = tokenizer.pad_token_id
        return model.to(device).eval(), tokenizer

    def _device(self, torch: Any) -> str:
        if self.device:
            return self.device
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def armo_rm(*heads: str, revision: str | None = None, **settings: Any) -> tuple[Judge, ...]:
    """Return heads of ArmoRM as judges (all 19 for none): one model, custom code, a GPU of 24 GB.

    `settings` are those of `RewardModel`. Not run by this project: see docs/judges.md.
    """
    model = RewardModel(ARMO_RM, ARMO_RM_HEADS, own_code=True, revision=revision, **settings)
    return tuple(model.judge(head) for head in heads or ARMO_RM_HEADS)


def small_models(models: Mapping[str, str], **settings: Any) -> tuple[Judge, ...]:
    """Return one judge for each small reward model, {name: hub id or folder}, such as Skywork-Reward-V2-Qwen3-0.6B."""
    return tuple(RewardModel(model, **settings).judge(name=name) for name, model in models.items())
