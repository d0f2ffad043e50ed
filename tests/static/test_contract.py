"""What a type checker cannot see of TRL, Unsloth and vLLM: names inside texts, choices, what **kwargs swallows.

Unsloth and vLLM cannot be installed on a CPU. What is known of them is written down here, read from unsloth and
unsloth_zoo 2026.10.7 and vllm 0.30.0; where `make types` has unpacked the wheels it is compared with them.
"""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / "build" / "wheels" / "unpacked"
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "vpo_lab").rglob("*.py"))}
NODES = [node for tree in TREES.values() for node in ast.walk(tree)]

READ_BY_THEM = {
    "UNSLOTH_COMPILE_LOCATION", "UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_RETURN_HIDDEN_STATES", "UNSLOTH_RETURN_LOGITS",
    "VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS",
}  # fmt: skip
LORA_RANKS = {1, 8, 16, 32, 64, 128, 256, 320, 512}  # vllm/config/lora.py, MaxLoRARanks
DTYPES = {"auto", "half", "float16", "bfloat16", "float", "float32"}  # vllm/config/model.py, ModelDType
# What Unsloth's compute_loss reads of a batch (unsloth/models/rl_replacements.py).
LOSS_READS = {
    "advantages", "completion_ids", "completion_mask", "max_left_pad", "num_items_in_batch", "old_per_token_logps",
    "prompt_ids", "prompt_mask", "ref_per_token_logps", "sampling_per_token_logps", "tool_mask",
    "unsloth_sample_weight",
}  # fmt: skip
# The lines of TRL's _generate_and_score_completions that Unsloth looks for.
EDITED_IN_TRL = (
    'batch_size = self.args.per_device_train_batch_size if mode == "train"',
    '        if images is not None:\n            output["num_images"] = num_images',
)
LOSS_WINDOW = "input_ids[:, -(logits_to_keep + max_left_pad):]"  # where `left_packed` puts the advantages
TWO_DIMENSIONS = "if advantages.dim() == 1:\n    advantages = advantages.unsqueeze(1)"


def trl_source(name: str) -> str:
    from trl import GRPOTrainer

    return inspect.getsource(getattr(GRPOTrainer, name))


def constants(nodes) -> set[str]:
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def keywords_of(*functions: str) -> set[str]:
    """The keywords that we give to any method of these names."""
    calls = [n for n in NODES if isinstance(n, ast.Call) and getattr(n.func, "attr", "") in functions]
    return {keyword.arg for call in calls for keyword in call.keywords if keyword.arg}


# --- Names inside texts -----------------------------------------------------------------------


def test_the_environment_variables_that_we_set_are_read():
    import accelerate

    ours = {text for text in constants(NODES) if re.fullmatch(r"(UNSLOTH|VLLM|ACCELERATE)_[A-Z0-9_]+", text)}
    of_accelerate = "".join(file.read_text(encoding="utf-8") for file in Path(accelerate.__file__).parent.glob("*.py"))
    assert [name for name in ours - READ_BY_THEM if f'"{name}"' not in of_accelerate] == []


def test_the_profiles_fit_what_vllm_allows():
    from vpo_lab.config import PROFILES

    for profile in PROFILES.values():
        assert profile.policy.dtype in DTYPES and profile.policy.lora_rank in LORA_RANKS | {0}, profile.name


@pytest.mark.parametrize(
    ("keyword", "where"),
    [
        ("vllm_mode", "trl.generation.vllm_generation"),
        ("vllm_importance_sampling_mode", "trl.trainer.grpo_trainer"),
        ("loss_type", "trl.trainer.grpo_trainer"),
    ],
)
def test_trl_knows_the_choices_that_we_name(keyword, where):
    given = [n.value for n in NODES if isinstance(n, ast.keyword) and n.arg == keyword]
    source = Path(inspect.getfile(__import__(where, fromlist=["_"]))).read_text(encoding="utf-8")
    assert [choice for choice in constants(given) if f'"{choice}"' not in source] == []


def test_transformers_looks_at_what_we_give_to_be_passed_on():
    """`generate` and `from_pretrained` take any keyword: these are the ones that somebody reads."""
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedModel, Qwen3ForCausalLM

    read = {*vars(GenerationConfig()), *inspect.signature(Qwen3ForCausalLM.forward).parameters}
    assert {"do_sample", "max_new_tokens"} <= keywords_of("generate") <= read
    loading = {*inspect.signature(PeftModel.from_pretrained).parameters}
    loading |= set(re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(PreTrainedModel.from_pretrained)))
    loading |= unsloth_takes()
    assert {"dtype", "is_trainable"} <= keywords_of("from_pretrained") <= loading


def unsloth_takes() -> set[str]:
    stub = ast.parse((ROOT / "typings" / "unsloth" / "__init__.pyi").read_text(encoding="utf-8"))
    return {argument.arg for node in ast.walk(stub) if isinstance(node, ast.FunctionDef) for argument in node.args.args}


# --- TRL as we extend it, and as Unsloth edits it ------------------------------------------------


def test_methods_that_we_replace_are_there_and_take_the_same():
    from trl import GRPOTrainer

    classes = [n for n in NODES if isinstance(n, ast.ClassDef) and n.name in ("VPOMixin", "Trainer")]
    methods = [n for node in classes for n in node.body if isinstance(n, ast.FunctionDef) and n.name != "__init__"]
    replaced = [method for method in methods if hasattr(GRPOTrainer, method.name)]
    assert {"_calculate_rewards", "_generate_and_score_completions", "_generate_single_turn", "_log_completion_extra",
            "compute_loss", "prediction_step", "training_step"} == {method.name for method in replaced}  # fmt: skip
    for method in replaced:
        theirs = list(inspect.signature(getattr(GRPOTrainer, method.name)).parameters)
        assert len(theirs) == len(method.args.args), method.name
        if method.name in (
            "compute_loss",
            "prediction_step",
            "training_step",
            "_generate_single_turn",
        ):  # these transformers may call by keyword
            assert theirs == [argument.arg for argument in method.args.args]


def test_what_our_trainer_reads_of_a_batch_is_in_it():
    """`batch` and `inputs` are what TRL's _generate_and_score_completions returns."""
    read = {
        node.slice.value
        for path, tree in TREES.items()
        if path.parent.name == "train"
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and ast.unparse(node.value) == "batch"
        and isinstance(node.slice, ast.Constant)
    }
    returned = set(
        re.findall(r'output\["(\w+)"\]|^ +"(\w+)": \w+,$', trl_source("_generate_and_score_completions"), re.M)
    )
    returned = {name for pair in returned for name in pair if name}
    assert "advantages" in read and read <= returned and read <= LOSS_READS


def test_the_losses_take_one_advantage_per_token():
    import torch
    from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

    branches = [n for n in ast.walk(ast.parse(textwrap.dedent(trl_source("_compute_loss")))) if isinstance(n, ast.If)]
    assert TWO_DIMENSIONS in map(ast.unparse, branches)
    batch = {"advantages": torch.arange(12.0).reshape(4, 3), "completion_mask": torch.ones(4, 3)}
    halves = split_tensor_dict(shuffle_sequence_dict(batch), 2)
    assert [half["advantages"].shape for half in halves] == [(2, 3), (2, 3)]


def test_unsloth_finds_in_trl_what_it_edits():
    """Where its text is not found, Unsloth goes on without a word."""
    from trl.generation.vllm_generation import VLLMGeneration

    source = trl_source("_generate_and_score_completions")
    assert all(text in source for text in EDITED_IN_TRL)
    engine = r"^( +)self\.llm = LLM\(\n(?:.*\n)*?^\1\)$"  # it puts its own engine there
    assert re.search(engine, inspect.getsource(VLLMGeneration._init_vllm), re.MULTILINE)
    assert inspect.getsource(VLLMGeneration.sync_weights).lstrip().startswith("def sync_weights(self):\n")


# --- What is written down here, against the wheels -----------------------------------------------


@pytest.mark.skipif(not WHEELS.exists(), reason="`make types` reads the wheels of Unsloth and vLLM")
def test_the_wheels_say_the_same():
    def text(pattern: str) -> str:
        return "".join(file.read_text(encoding="utf-8") for file in sorted(WHEELS.glob(pattern)))

    def literal(pattern: str, name: str) -> set:
        return set(ast.literal_eval(re.search(rf"^{name} = Literal(\[[^\]]*\])", text(pattern), re.M)[1]))

    everything = text("vllm/envs.py") + text("unsloth/**/*.py") + text("unsloth_zoo/**/*.py")
    assert [name for name in READ_BY_THEM if not re.search(rf"[\"']{name}[\"']", everything)] == []
    assert literal("vllm/config/lora.py", "MaxLoRARanks") == LORA_RANKS
    assert literal("vllm/config/model.py", "ModelDType") == DTYPES
    edits, losses = text("unsloth/models/rl_replacements.py"), text("unsloth_zoo/rl_replacements.py")
    assert LOSS_WINDOW in ast.unparse(ast.parse(losses))
    for source in (edits, losses):
        assert any(ast.unparse(n) == TWO_DIMENSIONS for n in ast.walk(ast.parse(source)) if isinstance(n, ast.If))
    functions = [n for n in ast.walk(ast.parse(edits)) if isinstance(n, ast.FunctionDef)]
    (loss,) = [n for n in functions if n.name == "grpo_trainer_compute_loss"]
    assert set(LOSS_READS) <= set(re.findall(r"'(\w+)'", ast.unparse(loss)))
    assert all(any(text in string for string in constants(ast.walk(ast.parse(edits)))) for text in EDITED_IN_TRL)
