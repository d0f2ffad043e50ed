"""What a path of `checker` stands for: an installed object, or an entry of signatures.json. Missing if it is gone."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import textwrap
from pathlib import Path

import reading
from checker import Call

SNAPSHOT = json.loads(Path(__file__).with_name("signatures.json").read_text(encoding="utf-8"))
RECORDED = ("unsloth", "unsloth_zoo", "vllm")

# What calls and attributes give, as far as more is asked of it.
GIVES = {
    "vllm.LLM().generate()[]": "vllm.RequestOutput()",
    "vllm.RequestOutput().outputs[]": "vllm.CompletionOutput()",
    "vllm.LLM().get_tokenizer()": "tokenizer()",
    "unsloth.FastLanguageModel.get_peft_model()": "model()",
    "peft.get_peft_model()": "model()",
    "peft.PeftModel.from_pretrained()": "model()",
    "transformers.AutoModelForCausalLM.from_pretrained()": "model()",
    "transformers.AutoTokenizer.from_pretrained()": "tokenizer()",
    "trainer().processing_class": "tokenizer()",
    "trainer().model": "model()",
    "trainer().vllm_generation": "generation()",
    "trainer().accelerator": "accelerate.Accelerator()",
    "accelerate.Accelerator().state": "accelerate.state.AcceleratorState()",
    "accelerate.state.AcceleratorState().fsdp_plugin": "accelerate.FullyShardedDataParallelPlugin()",
    "generation().model": "model()",
    "generation().llm": "vllm.LLM()",
    "generation().vllm_client": "trl.generation.vllm_client.VLLMClient()",
    "vllm.LLM().llm_engine": "vllm.v1.engine.llm_engine.LLMEngine()",
    "vllm.v1.engine.llm_engine.LLMEngine().engine_core": "vllm.v1.engine.core_client.EngineCoreClient()",
    # In the model of a LoRA run; what else it holds is not asked for more.
    "model().modules()[]": "peft.tuners.lora.Linear()",
    "model().get_submodule()": "peft.tuners.lora.Linear()",
    "model().vllm_engine": "vllm.LLM()",
    "model().fast_generate()[]": "vllm.RequestOutput()",
}
# What a variable of that name may be; one of them has to fit.
KINDS = {
    # PEFT's model has the attributes of the LoRA model inside it.
    "model()": ("specimen model", "peft.PeftModelForCausalLM()", "peft.LoraModel()", "unsloth.Model()"),
    "tokenizer()": ("specimen tokenizer",),
    "trainer()": ("trl.GRPOTrainer()", "trl.SFTTrainer()"),
    "generation()": ("trl.generation.vllm_generation.VLLMGeneration()",),
}


class Missing(Exception):
    """There is no such name, or it does not take such arguments."""


# --- Installed packages -----------------------------------------------------------------------


@functools.cache
def specimen(kind: str):
    """A real tokenizer or model, the smallest: some attributes exist on instances only."""
    from vpo_lab.config import Policy
    from vpo_lab.train.tiny_model import build_model, train_tokenizer

    tokenizer = train_tokenizer([])
    if kind == "tokenizer":
        return tokenizer
    return build_model(Policy("scratch", "", hidden_size=8, intermediate_size=8, layers=1, heads=1), tokenizer, seed=0)


def source_tree(thing) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


@functools.cache
def taken_from_kwargs(path: str) -> frozenset[str]:
    """The names that an installed function with **kwargs reads out of them, told from its source.

    An unknown one is passed on to who knows where: that no name of ours is among those is the point.
    """
    import torch.distributed
    import transformers as t
    from jinja2 import Environment, meta

    if path == "specimen tokenizer.apply_chat_template":  # they are the template's variables
        environment = Environment(extensions=["jinja2.ext.loopcontrols"])
        return frozenset(meta.find_undeclared_variables(environment.parse(specimen("tokenizer").chat_template)))
    if path == "specimen model.generate":  # they override the generation config, or go to the model
        return frozenset({*vars(t.GenerationConfig()), *inspect.signature(t.Qwen3ForCausalLM.forward).parameters})
    base = t.PreTrainedTokenizerBase
    functions = {
        "accelerate.PartialState": [torch.distributed.init_process_group],
        "transformers.AutoModelForCausalLM.from_pretrained": [t.PreTrainedModel.from_pretrained],
        "transformers.AutoTokenizer.from_pretrained": [t.AutoTokenizer.from_pretrained, base.from_pretrained],
        "transformers.PreTrainedTokenizerFast": [t.PreTrainedTokenizerFast.__init__, base.__init__],
    }.get(path, [])
    found = set(base.SPECIAL_TOKENS_ATTRIBUTES) if path.endswith("PreTrainedTokenizerFast") else set()
    for function in functions:
        found |= {*inspect.signature(function).parameters, *reading.keys_read(source_tree(function))}
    return frozenset(found)


@functools.cache
def attributes_set_by(cls: type) -> set[str]:
    """The attributes that the methods of a class, or of one that it inherits from, set on its instances."""
    own = [c for c in cls.__mro__ if c.__module__.split(".")[0] in ("trl", "transformers", "peft", "accelerate")]
    return set().union(*(reading.attributes_set(source_tree(c)) for c in own))


class Opaque:
    """An attribute that exists, of whose value nothing is known."""

    def __init__(self, path: str):
        self.path = path

    def member(self, name: str):
        return Opaque(f"{self.path}.{name}")

    def called(self):
        return None

    def signature(self):
        raise Missing("nothing is known of its arguments: add what it is to GIVES in signatures.py")


class Installed:
    """An object that can be imported; `of` is the class of which it stands for an instance."""

    def __init__(self, path: str, thing, of: type | None = None):
        self.path, self.thing, self.of = path, thing, of

    def member(self, name: str):
        path = f"{self.path}.{name}"
        if self.of is not None:
            value = getattr(self.of, name, None)
            if not hasattr(self.of, name) and name not in attributes_set_by(self.of):
                raise Missing(f"{path} is gone")
            return Installed(path, value) if inspect.isroutine(value) else Opaque(path)
        if not hasattr(self.thing, name):
            try:
                importlib.import_module(path)
            except ImportError:
                raise Missing(f"{path} is gone") from None
        value = getattr(self.thing, name)
        is_plain = isinstance(value, (str, int, float, list, tuple, dict, type(None)))
        return None if is_plain else Installed(path, value)

    def called(self):
        return Installed(f"{self.path}()", None, of=self.thing) if isinstance(self.thing, type) else None

    def signature(self) -> inspect.Signature:
        found = inspect.signature(self.thing)
        inside_class = self.path.rpartition(".")[0].endswith("()")
        if inside_class and next(iter(found.parameters), "") == "self":
            found = found.replace(parameters=list(found.parameters.values())[1:])
        return closed(found, taken_from_kwargs(self.path))


# --- Recorded packages ------------------------------------------------------------------------


class Recorded:
    """An entry of signatures.json."""

    def __init__(self, path: str, entry: dict | None):
        self.path, self.entry = path, entry

    def member(self, name: str):
        path = f"{self.path}.{name}"
        if self.entry is None:  # a module: what is recorded starts further down
            known = [n for n in SNAPSHOT["names"] if n == path or n.startswith(f"{path}.")]
            if not known:
                raise Missing(f"{path} is not recorded: add it to RECORDED in refresh.py, then make contracts")
            return Recorded(path, SNAPSHOT["names"].get(path))
        if name in self.entry.get("methods", {}):
            return Recorded(path, self.entry["methods"][name])
        if name in {*self.entry.get("attributes", ()), *reading.signature(self.entry.get("fields", "")).parameters}:
            return Opaque(path)
        raise Missing(f"{path} is gone")

    def called(self):
        return Recorded(f"{self.path}()", self.entry) if self.entry and "attributes" in self.entry else None

    def signature(self) -> inspect.Signature:
        if not self.entry or not {"call", "fields"} & set(self.entry):
            raise Missing(f"{self.path} cannot be called as far as is recorded")
        taken = set(self.entry.get("kwargs", ()))
        if other := self.entry.get("kwargs_of"):
            taken |= set(Recorded(other, SNAPSHOT["names"][other]).signature().parameters)
        return closed(reading.signature(self.entry.get("call", self.entry.get("fields"))), taken)


def closed(signature: inspect.Signature, taken: set[str] | frozenset[str]) -> inspect.Signature:
    """The signature with `taken` in place of **kwargs, so that no other name fits."""
    kinds = inspect.Parameter
    parameters = [p for p in signature.parameters.values() if p.kind is not kinds.VAR_KEYWORD]
    if len(parameters) < len(signature.parameters):
        more = sorted(taken - {p.name for p in parameters})
        parameters += [kinds(name, kinds.KEYWORD_ONLY, default=None) for name in more if name.isidentifier()]
    return signature.replace(parameters=parameters)


# --- Paths ------------------------------------------------------------------------------------


def candidates(path: str) -> list[str]:
    """A path as told by what its beginning gives: one for each kind of object that a variable may be."""
    for start, gives in sorted(GIVES.items(), key=lambda pair: -len(pair[0])):
        if path == start or path.startswith((f"{start}.", f"{start}[", f"{start}(")):
            return candidates(gives + path[len(start) :])
    for start, kinds in KINDS.items():
        if path.startswith(start):
            return [kind + path[len(start) :] for kind in kinds]
    return [path]


def follow(path: str):
    """The object of one candidate path; None: a plain value, or what some call gives. Missing: there is none."""
    head, *rest = path.split(".")
    if head.startswith("specimen "):
        name, called, _ = head.partition("()")
        found = Installed(name, specimen(name.split()[1]))
        if called:
            return None
    else:
        found = Recorded(head, None) if head in RECORDED else Installed(head, importlib.import_module(head))
    for part in rest:
        name = part.split("(")[0].split("[")[0]
        found = found.member(name)
        if found is not None and part != name:
            found = found.called() if part == f"{name}()" else None
        if found is None:
            return None
    return found


def find(path: str) -> list:
    """All that a path may stand for; Missing if none of it exists."""
    found, complaints = [], []
    for candidate in candidates(path):
        try:
            found.append(follow(candidate))
        except Missing as error:
            complaints.append(str(error))
    if not found:
        raise Missing("; ".join(complaints))
    return found


def problem(call: Call) -> str | None:
    """What is wrong with a call, in a line; None if it fits."""
    complaints = []
    try:
        for thing in find(call.target):
            try:
                if thing is None:
                    return None
                signature = thing.signature()
                bind = signature.bind_partial if call.unresolved or call.is_partial else signature.bind
                bind(*[None] * call.positional, **dict.fromkeys(call.keywords))
                return None
            except (Missing, TypeError) as error:
                complaints.append(f"{thing.path if thing else call.target}: {error}")
    except Missing as error:
        complaints.append(str(error))
    return f"{call.where}: {call.target}: {'; '.join(complaints)}"
