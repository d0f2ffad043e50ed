"""Every name, keyword and attribute that we use of Unsloth, vLLM, TRL, transformers, peft and accelerate exists.

Unsloth and vLLM cannot be installed on a CPU: signatures.json holds what their pinned wheels accept (`make contracts`).
"""

import ast
import inspect
import re
from pathlib import Path

import pytest
import reading
from checker import Code
from signatures import GIVES, RECORDED, SNAPSHOT, Missing, find, follow, problem, source_tree, specimen

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "vpo_lab"
CODE = Code.read(PACKAGE)
CALLS = CODE.calls()
GRPO = SNAPSHOT["unsloth_grpo"]

# ** expansions whose keys only a run tells, and those keys.
EXPANSIONS = {("model().generate", "**inputs"): ("input_ids", "attention_mask")}  # what the tokenizer returns
# What the tree does not show, because our functions pass it on: read from vLLM's results and hung on Unsloth's model.
RELIED_ON = (
    "vllm.LLM().generate()[].outputs",
    "vllm.LLM().generate()[].outputs[].text",
    "vllm.LLM().generate()[].outputs[].token_ids",
    "vllm.LLM().generate()[].outputs[].finish_reason",
    "vllm.TokensPrompt().prompt_token_ids",
    "unsloth.Model().vllm_engine",
    "unsloth.Model().fast_generate",
    "unsloth.Model().load_lora",
    "unsloth.Model().save_lora",
    "unsloth.Model().for_inference",
    "unsloth.Model().for_training",
)


def problems(code: Code) -> list[str]:
    return [complaint for call in code.calls() if (complaint := problem(call))]


def exists(path: str) -> str | None:
    try:
        find(path)
    except Missing as error:
        return str(error)
    return None


# --- What we use ------------------------------------------------------------------------------


def test_calls_of_every_backend_are_seen():
    seen = {call.target for call in CALLS}
    assert {"trl.GRPOConfig", "trl.SFTConfig", "trl.GRPOTrainer", "trl.SFTTrainer", "peft.LoraConfig"} <= seen
    assert {"unsloth.FastLanguageModel.from_pretrained", "unsloth.FastLanguageModel.get_peft_model"} <= seen


def test_no_expansion_hides_a_keyword():
    hidden = []
    for call in CALLS:
        for expansion in call.unresolved:
            if (call.target, expansion.split(":")[0]) not in EXPANSIONS:
                hidden.append(f"{call.where}: {call.target} is given {expansion}")
    assert not hidden, "\n".join(hidden)


def test_what_the_tokenizer_returns_goes_to_the_model():
    inputs = set(specimen("tokenizer")("text"))
    assert inputs <= set(EXPANSIONS["model().generate", "**inputs"]) | {"token_type_ids"}
    assert inputs <= set(inspect.signature(specimen("model").forward).parameters)


def test_every_keyword_is_accepted():
    assert not (found := problems(CODE)), "\n".join(found)


def test_every_name_and_attribute_exists():
    paths = CODE.uses() | {o.target: o.where for o in CODE.overrides()}
    gone = [f"{where}: {error}" for path, where in paths.items() if (error := exists(path))]
    assert not gone, "\n".join(gone)


@pytest.mark.parametrize("path", RELIED_ON)
def test_what_results_and_models_carry_is_recorded(path):
    assert exists(path) is None
    assert exists(f"{path}_renamed")


def test_nothing_is_imported_by_a_name_in_a_string():
    dynamic = [n for n in CODE.file if isinstance(n, ast.Call) and "import" in ast.unparse(n.func)]
    texts = [ast.unparse(a) for n in dynamic for a in n.args]
    assert [text for text in texts if text.strip("'\"").split(".")[0] in CODE.roots] == []


def test_the_profiles_fit_what_vllm_allows():
    from vpo_lab.config import PROFILES

    for profile in PROFILES.values():
        assert profile.policy.dtype in SNAPSHOT["literals"]["vllm.config.model.ModelDType"], profile.name
        rank = profile.policy.lora_rank
        assert not rank or rank in SNAPSHOT["literals"]["vllm.config.lora.MaxLoRARanks"], profile.name


def test_the_environment_variables_that_we_set_are_read():
    import accelerate

    texts = {n.value for n in CODE.file if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    ours = {text for text in texts if re.fullmatch(r"(UNSLOTH|VLLM|ACCELERATE)_[A-Z0-9_]+", text)}
    of_accelerate = "".join(f.read_text(encoding="utf-8") for f in Path(accelerate.__file__).parent.glob("*.py"))
    unread = [name for name in ours - set(SNAPSHOT["environment"]) if f'"{name}"' not in of_accelerate]
    assert unread == [], "make contracts"


@pytest.mark.parametrize(
    ("keyword", "where"),
    [
        ("vllm_mode", "trl.generation.vllm_generation.VLLMGeneration._init_vllm"),
        ("vllm_importance_sampling_mode", "trl.GRPOTrainer._generate_and_score_completions"),
        ("scale_rewards", "trl.GRPOTrainer._generate_and_score_completions"),
        ("loss_type", "trl.GRPOTrainer._compute_loss"),
    ],
)
def test_trl_knows_the_choices_that_we_name(keyword, where):
    nodes = [call.keywords[keyword].value for call in CALLS if call.target == "trl.GRPOConfig"]
    chosen = {n.value for node in nodes for n in ast.walk(node) if isinstance(n, ast.Constant)}
    source = inspect.getsource(follow(where).thing)
    assert chosen and all(f'"{choice}"' in source for choice in chosen)


# --- The checker itself: whatever is renamed is reported ---------------------------------------


def test_every_single_keyword_is_checked():
    """Rename each in turn, where it stands: in the call, or in the dict that ** brings."""
    unnoticed, count = [], 0
    for call in CALLS:
        for name, node in call.keywords.items():
            attribute = "arg" if isinstance(node, ast.keyword) else "value"
            setattr(node, attribute, f"{name}_renamed")
            if not problem(CODE.call(call.node)):
                unnoticed.append(f"{call.where}: {name} of {call.target}")
            setattr(node, attribute, name)
            count += 1
    assert not unnoticed, "\n".join(unnoticed)
    assert count > 100


@pytest.mark.parametrize(
    "target", ["unsloth.FastLanguageModel.from_pretrained", "trl.GRPOConfig", "vllm.SamplingParams"]
)
def test_a_renamed_keyword_in_the_source_is_reported(target):
    call = next((c for c in CALLS if c.target == target), None)
    if call is None:
        assert target == "vllm.SamplingParams" and not any("vllm" in c.target for c in CALLS)
        pytest.skip("no backend of ours samples with vLLM itself")
    keyword = next(k for k in call.node.keywords if k.arg)
    file = call.where.rpartition(":")[0]
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines(keepends=True)
    line = lines[keyword.lineno - 1].encode()  # columns count bytes
    lines[keyword.lineno - 1] = (line[: keyword.col_offset] + b"renamed_" + line[keyword.col_offset :]).decode()
    sources = {str(f.relative_to(ROOT)): f.read_text(encoding="utf-8") for f in PACKAGE.rglob("*.py")}
    (found,) = set(problems(Code(sources | {file: "".join(lines)}))) - set(problems(CODE))
    assert found.startswith(f"{call.where}: {target}") and f"renamed_{keyword.arg}" in found


def test_a_renamed_attribute_is_reported():
    known = [p for p in CODE.uses() if "." in p and not p.endswith((")", "]")) and follow_known(p)]
    assert len(known) > 30
    assert [path for path in known if not exists(f"{path}_renamed")] == []


def follow_known(path: str) -> bool:
    """Is anything known of what the last attribute belongs to?"""
    return all(type(thing).__name__ in ("Installed", "Recorded") for thing in find(path))


EXAMPLE = """
from functools import partial
import trl
from vllm import LLM, SamplingParams as Params

class Backend:
    def arguments(self): return {"top_k": 0, **more(2)}
class Other:
    def arguments(self):
        found = dict(seed=1) if self else {}
        found["top_p"] = 1.0
        found.update(min_p=0.1)
        return found

def more(n): return {"stop": None} | {"n": n}

class Engine:
    def __init__(self): self.engine = LLM(model="m")
    def sample(self, backend, prompts):
        outputs = self.engine.generate(prompts, Params(**backend.arguments()), lora_request=None)
        for output in outputs:
            print(output.outputs[0].text, [o.token_ids for o in output.outputs])
        return partial(trl.GRPOConfig, beta=0.0)

def hidden(options, llm):
    llm.sleep(**options)
"""


def test_the_checker_follows_objects_and_expansions():
    code = Code({"example.py": EXAMPLE})
    calls = {call.target: call for call in code.calls()}
    assert set(calls) == {
        "vllm.LLM",
        "vllm.LLM().generate",
        "vllm.SamplingParams",
        "trl.GRPOConfig",
        "vllm.LLM().sleep",
    }
    assert set(calls["vllm.SamplingParams"].keywords) == {"top_k", "stop", "n", "seed", "top_p", "min_p"}
    assert calls["vllm.LLM().generate"].positional == 2
    assert calls["vllm.LLM().sleep"].unresolved == ["**options: options is assigned nowhere"]
    assert "vllm.LLM().generate()[].outputs[].token_ids" in code.uses()
    assert problems(code) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lora_request=", "lora="),
        ('"top_k"', '"topk"'),
        ("seed=1", "sead=1"),
        ('found["top_p"]', 'found["topp"]'),
        ("update(min_p", "update(minp"),
        ('{"n": n}', '{"num": n}'),
        ("beta=", "betta="),
        ('model="m"', 'max_model_length=9, model="m"'),
        ('LLM(model="m")', "LLM()"),
    ],
)
def test_the_checker_reports_what_does_not_fit(old, new):
    assert EXAMPLE.count(old) == 1
    assert len(problems(Code({"example.py": EXAMPLE.replace(old, new)}))) == 1


@pytest.mark.parametrize(("old", "new"), [("token_ids", "tokens"), (".text", ".texts"), ("LLM,", "LM as LLM,")])
def test_the_checker_reports_what_is_gone(old, new):
    code = Code({"example.py": EXAMPLE.replace(old, new)})
    assert len({error for path in code.uses() if (error := exists(path))}) == 1


# --- TRL as we extend it, and as Unsloth and vLLM meet it ----------------------------------------


def trl_tree(name: str) -> ast.AST:
    from trl import GRPOTrainer

    return source_tree(getattr(GRPOTrainer, name))


def test_trl_returns_what_our_trainer_reads():
    """In the file of our trainer `batch` and `inputs` are what TRL's _generate_and_score_completions returns."""
    returned = reading.dict_keys(trl_tree("_generate_and_score_completions"), "output")
    (override,) = [o for o in CODE.overrides() if o.target.endswith("._generate_and_score_completions")]
    functions = [
        n for n in CODE.file if isinstance(n, ast.FunctionDef) and CODE.file[n] == CODE.file[override.function]
    ]
    read = set().union(*(reading.keys_read(f, name) for f in functions for name in ("batch", "inputs")))
    assert {"advantages", "completion_mask"} <= read
    assert read <= returned | set(GRPO["batch_gains"]), "a key that neither TRL nor Unsloth puts there"
    assert read <= set(GRPO["loss_reads"]), "a key that Unsloth's loss does not look at"


def test_our_methods_take_what_those_they_replace_take():
    differing = []
    for override in CODE.overrides():
        base, ours = follow(override.target).signature().parameters, override.function.args
        taken = {a.arg for a in (*ours.args, *ours.kwonlyargs)}
        if not ours.kwarg and not {n for n, p in base.items() if p.kind is not p.VAR_KEYWORD} <= taken:
            differing.append(f"{override.where}: {override.target}{tuple(base)}")
    assert not differing, "\n".join(differing)
    assert set(reading.signature(GRPO["loss"]).parameters) == set(
        follow("trl.GRPOTrainer().compute_loss").signature().parameters
    )


def test_the_losses_take_one_advantage_per_token():
    """TRL's by its source here, Unsloth's when signatures.json was written: `make contracts` stops without it."""
    import torch
    from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

    assert reading.accepts_two_dimensions(trl_tree("_compute_loss"), "advantages")
    assert {"advantages", "completion_mask", "max_left_pad"} <= set(GRPO["loss_reads"])
    batch = {"advantages": torch.arange(12.0).reshape(4, 3), "completion_mask": torch.ones(4, 3)}
    halves = split_tensor_dict(shuffle_sequence_dict(batch), 2)
    assert [half["advantages"].shape for half in halves] == [(2, 3), (2, 3)]


def test_trl_hands_the_reward_what_it_asks_for():
    from vpo_lab.train.rollouts import VectorReward

    tree = trl_tree("_calculate_rewards")
    call = reading.expanding_call(tree, "reward_func")
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "reward_func"]
    given = {k.arg for n in (call, *calls) for k in n.keywords if k.arg} | reading.dict_keys(tree, "reward_kwargs")
    asked = {n for n, p in inspect.signature(VectorReward.__call__).parameters.items() if p.kind is not p.VAR_KEYWORD}
    assert asked <= given | {"self", "gold", "goal"}  # the last two are columns of our data set


def test_unsloth_finds_in_trl_what_it_replaces():
    """Unsloth edits TRL's source text: where its text is not found, it goes on without a word."""
    from trl import GRPOTrainer
    from trl.generation.vllm_generation import VLLMGeneration

    wanted = ("_generate_and_score_completions", "compute_loss", "_prepare_inputs", "_move_model_to_vllm")
    assert {f"grpo_trainer_{name}" for name in wanted} <= set(GRPO["replaces"])
    assert GRPO["patches_vllm_generation"] == ["vllm_generation_init_patch"]
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    for alternatives in GRPO["text_wanted_in_trl"]:
        assert any(text in source for text in alternatives), alternatives[0]
    engine = r"^( +)self\.llm = LLM\(\n(?:.*\n)*?^\1\)$"  # it puts its own engine there
    assert re.search(engine, inspect.getsource(VLLMGeneration._init_vllm), re.MULTILINE)
    assert inspect.getsource(VLLMGeneration.sync_weights).lstrip().startswith("def sync_weights(self):\n")


# TRL's branch for a vLLM before 0.28.
NOT_TAKEN = tuple(
    f"vllm.distributed.weight_transfer.nccl_engine.{name}"
    for name in ("NCCLTrainerSendWeightsArgs", "NCCLWeightTransferEngine")
)


def test_trl_fits_the_pinned_vllm():
    """What TRL's rollouts with vLLM import and call, beside the training and with a server."""
    import trl.generation

    code = Code.read(Path(trl.generation.__file__).parent, roots=RECORDED)
    mine = [call for call in code.calls() if call.target.startswith("vllm.") and "()" not in call.target]
    assert {"vllm.LLM", "vllm.SamplingParams"} <= {call.target for call in mine}
    assert [complaint for call in mine if not call.target.startswith(NOT_TAKEN) and (complaint := problem(call))] == []
    names = [path for path in code.uses() if path.startswith("vllm.") and "(" not in path]
    assert [error for path in names if not path.startswith(NOT_TAKEN) and (error := exists(path))] == []


def test_tables_name_what_exists():
    """A stale line of GIVES would only ever hide something."""
    assert [error for path in GIVES if (error := exists(path))] == []
