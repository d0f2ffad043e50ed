"""The training code against the packages that it calls: every keyword, attribute and overridden method exists.

A type checker reads TRL, transformers and peft where they are installed, and stubs of Unsloth and vLLM, which no CPU
can install. After `make types` it reads the wheels of these two as well.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / "build" / "wheels" / "unpacked"
CODE = sorted((ROOT / "vpo_lab" / "train").glob("*.py"))
RULES = ("reportCallIssue", "reportAttributeAccessIssue", "reportMissingImports", "reportIncompatibleMethodOverride")
# One name of each kind: of a trainer's arguments, of arguments that another function gathers, of a method of
# TRL, of Unsloth, of vLLM, of a LoRA, of what vLLM returns.
RENAMED = {
    "rl.py": ["num_generations=", "weight_draws="],
    "trl.py": ["super()._calculate_rewards(", "super()._log_completion_extra("],
    "trainer.py": [".process_index"],
    "sft.py": ["packing=", "processing_class="],
    "stage.py": ["ddp_timeout=", "gradient_accumulation_steps="],
    "gpu.py": ["vllm_mode=", "vllm_importance_sampling_clip_max=", "max_lora_rank=", "random_state="],
    "policy.py": ["lora_alpha="],
    "sampling.py": ["detokenize=", "].token_ids"],
}


def complaints(folder: Path, files: list[Path], **where) -> dict[Path, list[str]]:
    """{file: what the type checker finds in it}; `where` says where it looks for packages."""
    options = {"include": [str(f) for f in files], "exclude": [], "extraPaths": [str(ROOT)], **where}
    options |= {"typeCheckingMode": "off", "pythonVersion": "3.11", **dict.fromkeys(RULES, "error")}
    (folder / "pyrightconfig.json").write_text(json.dumps(options))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "-p", folder, "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True)
    found = {file: [] for file in files}
    for entry in json.loads(done.stdout)["generalDiagnostics"]:
        found[Path(entry["file"])].append(f"{entry['range']['start']['line'] + 1}: {entry['message']}")
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[Path, list[str]]:
    """What is wrong with the code, with copies in each of which one name is changed, and with TRL's use of vLLM."""
    import trl.generation

    folder = tmp_path_factory.mktemp("types")
    copies = []
    for number, (file, name) in enumerate((file, name) for file, names in RENAMED.items() for name in names):
        copies.append(folder / f"{file[:-3]}_{number}.py")
        text = (ROOT / "vpo_lab" / "train" / file).read_text(encoding="utf-8")
        assert text.count(name) >= 1, (file, name)
        copies[-1].write_text(text.replace(name, re.sub(r"(\w+\W*)$", r"renamed_\1", name), 1), encoding="utf-8")
    trl = [Path(path) for path in Path(trl.generation.__file__).parent.glob("vllm_*.py")]
    return complaints(folder, [*CODE, *copies, *trl], stubPath=str(ROOT / "typings"))


def test_all_that_we_use_exists(found):
    assert {file.name: found[file] for file in CODE if found[file]} == {}


def test_one_name_that_does_not_exist_is_one_complaint(found):
    copies = {file: lines for file, lines in found.items() if file.stem[-1].isdigit()}
    assert len(copies) == sum(map(len, RENAMED.values()))
    assert {file.name: lines for file, lines in copies.items() if len(lines) != 1 or "renamed_" not in lines[0]} == {}


def test_trl_fits_the_pinned_vllm(found):
    lines = [line for file, lines in found.items() if file.name.startswith("vllm_") for line in lines]
    assert [line for line in lines if ("vllm" in line or "parameter" in line) and "nccl_engine" not in line] == []


@pytest.mark.skipif(not WHEELS.exists(), reason="`make types` reads the wheels of Unsloth and vLLM")
def test_all_that_we_use_is_in_the_wheels(tmp_path):
    found = complaints(tmp_path, CODE, extraPaths=[str(ROOT), str(WHEELS)], stubPath=str(tmp_path))
    assert {file.name: lines for file, lines in found.items() if lines} == {}
