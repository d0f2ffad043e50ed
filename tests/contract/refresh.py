"""Write signatures.json: what the pinned GPU packages accept, read from their wheels. `make contracts`.

Nothing is installed or imported. Run it after a pin has changed, or when the tests say that a name is
not recorded yet: add the name to RECORDED first. A name that is gone stops it with the name.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from email import message_from_string
from pathlib import Path
from zipfile import ZipFile

import reading
from reading import Gone, named

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TARGET = HERE / "signatures.json"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

# The names that vpo_lab, or TRL in its stead, uses; each is looked up the way an import finds it.
RECORDED = (
    "vllm.LLM",
    "vllm.EngineArgs",
    "vllm.SamplingParams",
    "vllm.RequestOutput",
    "vllm.CompletionOutput",
    "vllm.TokensPrompt",
    "vllm.lora.request.LoRARequest",
    "vllm.sampling_params.StructuredOutputsParams",
    "vllm.v1.engine.llm_engine.LLMEngine",
    "vllm.v1.engine.core_client.EngineCoreClient",
    "vllm.utils.network_utils.get_ip",
    "vllm.distributed.weight_transfer.nccl_common.trainer_init",
    "vllm.distributed.weight_transfer.packed_tensor.packed_nccl_broadcast_producer",
    "unsloth.FastLanguageModel",
    "unsloth.is_bfloat16_supported",
    "unsloth_zoo.vllm_utils.load_lora",
    "unsloth_zoo.vllm_utils.save_lora",
    "unsloth_zoo.vllm_utils.load_vllm",
)
ENVIRONMENT = re.compile(r"[\"']((?:UNSLOTH|VLLM)_[A-Z0-9_]+)[\"']")
LITERALS = ("vllm.config.lora.MaxLoRARanks", "vllm.config.model.ModelDType", "vllm.config.model.LogprobsMode")


class Wheels:
    """The source files of several wheels, read on demand."""

    def __init__(self, folder: Path, packages: dict[str, str]):
        self.files = {name: self._find(folder, name, version) for name, version in packages.items()}
        self.zips = {name: ZipFile(path) for name, path in self.files.items()}
        self.trees: dict[str, ast.Module] = {}

    @staticmethod
    def _find(folder: Path, name: str, version: str) -> Path:
        found = sorted(folder.glob(f"{name}-{version}-*.whl"))
        if not found:
            raise Gone(f"no wheel of {name} {version} in {folder}")
        return found[0]

    def tree(self, module: str) -> ast.Module | None:
        """The syntax tree of a module "vllm.outputs", or None if there is no such file."""
        if module not in self.trees:
            archive, base = self.zips[module.split(".")[0]], module.replace(".", "/")
            member = next((m for m in (f"{base}.py", f"{base}/__init__.py") if m in archive.NameToInfo), None)
            self.trees[module] = ast.parse(archive.read(member)) if member else None
        return self.trees[module]

    def find(self, dotted: str, seen: tuple[str, ...] = ()) -> tuple[str, str]:
        """(module, name) of where an importable name is defined; follows re-exports. Gone if nowhere."""
        module, _, name = dotted.rpartition(".")
        tree = None if dotted in seen else self.tree(module)
        if tree is not None:
            if any(getattr(n, "name", None) == name or _assigns(n, name) for n in tree.body):
                return module, name
            for source, imported in _reexports(tree, module, name, self.is_package(module)):
                try:
                    return self.find(f"{source}.{imported}", (*seen, dotted))
                except Gone:
                    continue
        raise Gone(f"{dotted} is gone")

    def is_package(self, module: str) -> bool:
        return f"{module.replace('.', '/')}/__init__.py" in self.zips[module.split(".")[0]].NameToInfo

    def node(self, dotted: str) -> ast.AST:
        module, name = self.find(dotted)
        return named(self.tree(module), name)

    def package(self, name: str) -> dict:
        """Version, digest and requirements as the wheel states them."""
        (member,) = [m for m in self.zips[name].namelist() if m.endswith(".dist-info/METADATA") and m.count("/") == 1]
        metadata = message_from_string(self.zips[name].read(member).decode())
        with open(self.files[name], "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "version": metadata["Version"],
            "wheel": self.files[name].name,
            "sha256": digest,
            "requires_python": metadata["Requires-Python"],
            "requires": sorted(r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r),
        }


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)


def _reexports(tree: ast.Module, module: str, name: str, is_package: bool) -> list[tuple[str, str]]:
    """Where a module may have a name from: its imports, and vLLM's table of lazy ones."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            names = {alias.asname or alias.name: alias.name for alias in node.names}
            if source.split(".")[0] == module.split(".")[0] and (name in names or "*" in names):
                found.append((source, names.get(name, name)))
        elif _assigns(node, "MODULE_ATTRS") and isinstance(node.value, ast.Dict):
            place = ast.literal_eval(node.value).get(name)
            found += [(module + place.split(":")[0], place.split(":")[1])] if place else []
    return found


# --- What is recorded -------------------------------------------------------------------------


def describe(node: ast.AST) -> dict:
    """{"call": signature} of a function; of a class also its methods and its attributes besides `fields`."""
    if isinstance(node, ast.FunctionDef):
        return {"call": reading.signature_text(node)}
    methods = reading.methods(node)
    properties = {n for n, f in methods.items() if any("property" in d for d in reading.decorators(f))}
    attributes = set(properties)
    if constructor := methods.pop("__init__", None):
        attributes |= reading.attributes_set(constructor)
        entry = {"call": reading.signature_text(constructor, drop_first=True)}
    else:
        entry = {"fields": reading.fields(node)}
    entry["attributes"] = sorted(attributes)
    entry["methods"] = {
        n: {"call": reading.signature_text(f, drop_first="staticmethod" not in reading.decorators(f))}
        for n, f in methods.items()
        if n not in properties
    }
    return entry


def record(wheels: Wheels) -> dict:
    names = {name: describe(wheels.node(name)) for name in RECORDED}
    # LLM(**kwargs) builds EngineArgs from them.
    reading.expanding_call(wheels.node("vllm.LLM"), "EngineArgs")
    names["vllm.LLM"]["kwargs_of"] = "vllm.EngineArgs"
    names["unsloth.FastLanguageModel"]["methods"] |= unsloth_loader(wheels)
    names["unsloth.Model"] = unsloth_model(wheels)
    return names


def unsloth_loader(wheels: Wheels) -> dict:
    """The methods of FastLanguageModel as they act on a Qwen3 model with fast_inference.

    It never complains about an unknown name: what no function on the way reads is swallowed. So only
    the names that one of them reads count.
    """
    loader = wheels.node("unsloth.FastLanguageModel")
    first = named(loader, "from_pretrained")
    qwen3 = named(wheels.tree("unsloth.models.qwen3"), "FastQwen3Model.from_pretrained")
    llama = wheels.tree("unsloth.models.llama")
    last = named(llama, "FastLlamaModel.from_pretrained")
    dispatch = reading.expanding_call(first, "dispatch_model.from_pretrained")
    reading.expanding_call(qwen3, "FastLlamaModel.from_pretrained")
    engine = reading.expanding_call(last, "load_vllm")
    load_vllm = reading.signature(reading.signature_text(wheels.node("unsloth_zoo.vllm_utils.load_vllm"))).parameters
    if "inspect.getfullargspec(load_vllm).args" not in ast.unparse(last):
        raise Gone("FastLlamaModel.from_pretrained passes no arguments on to load_vllm by name")
    (given,) = [v for v in reading.values_assigned(last, ast.unparse(engine.keywords[0].value))]
    parameters = {*reading.signature(reading.signature_text(last)).parameters} - {"kwargs"}
    accepted = parameters - {k.arg for k in dispatch.keywords}
    accepted |= {*load_vllm} - {k.arg for k in given.keywords}
    for function in (first, qwen3, last):
        accepted |= reading.keys_read(function)
    # Its own get_peft_model only wraps this one.
    adapter = named(llama, "FastLlamaModel.get_peft_model")
    reading.expanding_call(named(loader, "get_peft_model"), "FastLlamaModel.get_peft_model")
    return {
        "from_pretrained": {
            "call": reading.signature_text(first),
            "kwargs": sorted(accepted - {*reading.signature(reading.signature_text(first)).parameters}),
        },
        "get_peft_model": {
            "call": reading.signature_text(adapter),
            "kwargs": sorted(reading.keys_read(adapter)),
        },
    }


def unsloth_model(wheels: Wheels) -> dict:
    """What Unsloth hangs on a model: vLLM's engine, its generate, and the way to hand it the adapter."""
    attach = wheels.node("unsloth.models._utils.patch_peft_fast_inference")
    attributes = reading.attributes_set(attach, "model")
    peft = named(wheels.tree("unsloth.models.llama"), "FastLlamaModel.get_peft_model")
    attributes |= {n for n in reading.attributes_set(peft, "model") if not n.startswith("_")}
    if missing := {"vllm_engine", "fast_generate", "load_lora", "save_lora", "for_inference"} - attributes:
        raise Gone(f"Unsloth no longer sets {sorted(missing)} on a model")
    loader = wheels.node("unsloth.FastLanguageModel")
    bound = {n: wheels.node(f"unsloth_zoo.vllm_utils.{n}") for n in ("load_lora", "save_lora")}
    bound["fast_generate_batches"] = wheels.node("unsloth_zoo.vllm_utils.generate_batches")
    bound |= {n: named(loader, n) for n in ("for_inference", "for_training")}
    generate = named(wheels.node("vllm.LLM"), "generate")
    return {
        "attributes": sorted(attributes),
        "methods": {n: {"call": reading.signature_text(f, drop_first=True)} for n, f in bound.items()}
        | {"fast_generate": {"call": reading.signature_text(generate, drop_first=True)}},
    }


def unsloth_grpo(wheels: Wheels) -> dict:
    """What Unsloth makes of TRL's GRPOTrainer: the methods it replaces and the text it looks for in them."""
    replacements = wheels.tree("unsloth.models.rl_replacements")
    losses = wheels.tree("unsloth_zoo.rl_replacements")
    editor = named(replacements, "grpo_trainer__generate_and_score_completions")
    loss = named(replacements, "grpo_trainer_compute_loss.compute_loss")
    for function in (loss, named(losses, "grpo_compute_loss")):
        if not reading.accepts_two_dimensions(function, "advantages"):
            raise Gone(f"Unsloth's {function.name} no longer takes advantages of two dimensions")
    window = "input_ids[:, -(logits_to_keep + max_left_pad):]"
    if window not in ast.unparse(named(losses, "grpo_accumulated_loss")):
        raise Gone(f"grpo_accumulated_loss no longer looks at the window {window}")
    (extras,) = map(ast.literal_eval, reading.values_assigned(editor, "_output_extras"))
    adds = [piece.split('"')[0] for piece in extras.split('output["')[1:]]
    (line,) = map(ast.literal_eval, reading.values_assigned(editor, "line_to_replace"))
    (ends,) = map(ast.literal_eval, reading.values_assigned(editor, "_num_images_anchors"))
    return {
        "replaces": _appended(replacements, "RL_FUNCTIONS['grpo_trainer']"),
        "patches_vllm_generation": _appended(replacements, "RL_ADDITIONAL_FUNCTIONS['vllm_generation']"),
        "loss": reading.signature_text(loss, drop_first=True),
        "loss_reads": sorted(reading.keys_read(loss, "inputs")),
        "loss_window": window,
        "batch_gains": sorted(set(adds)),
        # Each list: one of these has to stand in TRL's _generate_and_score_completions.
        "text_wanted_in_trl": [[line], list(ends)],
    }


def _appended(tree: ast.Module, table: str) -> list[str]:
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == f"{table}.append"]
    return [ast.unparse(call.args[0]) for call in calls]


def literals(wheels: Wheels) -> dict:
    found = {}
    for dotted in LITERALS:
        module, name = wheels.find(dotted)
        (value,) = reading.values_assigned(wheels.tree(module), name)
        found[dotted] = list(ast.literal_eval(value.slice))
    return found


def environment(wheels: Wheels) -> list[str]:
    """The environment variables that we set, if the packages read them."""
    ours = {name for f in (ROOT / "vpo_lab").rglob("*.py") for name in ENVIRONMENT.findall(f.read_text("utf-8"))}
    theirs: set[str] = set()
    for package, place in (("vllm", "vllm/envs.py"), ("unsloth", "unsloth/"), ("unsloth_zoo", "unsloth_zoo/")):
        archive = wheels.zips[package]
        for member in archive.namelist():
            if member.startswith(place) and member.endswith(".py"):
                theirs |= set(ENVIRONMENT.findall(archive.read(member).decode()))
    if gone := ours - theirs:
        raise Gone(f"nobody reads {sorted(gone)}")
    return sorted(ours)


# --- The command ------------------------------------------------------------------------------


def gpu_pins() -> dict[str, str]:
    """{package: version} that the gpu extra of pyproject.toml pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    gpu = project["optional-dependencies"]["gpu"]
    return dict(requirement.split("==") for requirement in gpu if "==" in requirement)


def download(folder: Path, pins: dict[str, str]) -> None:
    for name, version in pins.items():
        if not sorted(folder.glob(f"{name}-{version}-*.whl")):
            print(f"downloading {name} {version}", flush=True)
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            command += ["--python-version=3.11", "--implementation=cp", *(f"--platform={p}" for p in PLATFORMS)]
            subprocess.run([*command, f"--dest={folder}", f"{name}=={version}"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, help="keep and reuse the wheels (0.4 GB) in this folder")
    given, pins = parser.parse_args().wheels, gpu_pins()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            download(folder, pins)
            wheels = Wheels(folder, pins)
            snapshot = {
                "packages": {name: wheels.package(name) for name in pins},
                "names": record(wheels),
                "literals": literals(wheels),
                "environment": environment(wheels),
                "unsloth_grpo": unsloth_grpo(wheels),
            }
        except (Gone, subprocess.CalledProcessError) as error:
            sys.exit(f"signatures.json is unchanged: {error}")
    TARGET.write_text(json.dumps(snapshot, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {TARGET.name}: {len(snapshot['names'])} names of {', '.join(f'{n} {v}' for n, v in pins.items())}")
    print("the whole set with its dependencies: pip install --dry-run --ignore-installed '.[gpu]' on the GPU machine")


if __name__ == "__main__":
    main()
