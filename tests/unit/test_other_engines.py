"""The examples for other engines, called by the engines' own code, as their wheels have it. Nothing is trained.

`make engines` brings the wheels; an engine whose wheel is missing is skipped. Of what cannot be imported without a
GPU, only the file with the call is run.
"""

import ast
import asyncio
import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from zipfile import ZipFile

import pytest

from vpo_lab import SetReward, ask
from vpo_lab.chains import join_chain

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / "build" / "engines"
REPLY = join_chain(["12", "a long one", "7"])
LABEL = "7"


@pytest.fixture
def unpack(tmp_path, monkeypatch):
    """unpack("openrlhf", "openrlhf/utils/agent.py") -> the file of the wheel, on Python's path."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "dropin")
    before = set(sys.modules)

    def unpacked(name: str, inside: str) -> Path:
        wheels = sorted(WHEELS.glob(f"{name}-*.whl"))
        if not wheels:
            pytest.skip(f"the wheel of {name} is not in build/engines: make engines")
        with ZipFile(wheels[-1]) as archive:
            archive.extractall(tmp_path)
        (file,) = tmp_path.rglob(inside)
        return file

    yield unpacked
    for name in set(sys.modules) - before:  # nothing of the wheels stays for other tests
        if name.split(".")[0] in {"others", "openrlhf", "areal", "swift", "skyrl_gym", "skyrl_env", "swift_plugin"}:
            del sys.modules[name]


def package(monkeypatch, name: str, folder: Path | None = None, **members) -> ModuleType:
    """A package whose own __init__ is left out."""
    module = ModuleType(name)
    module.__path__ = [str(folder)] if folder else []
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def expected(monkeypatch) -> float:
    monkeypatch.syspath_prepend(ROOT / "examples" / "dropin")
    others = importlib.import_module("others")
    (score,) = SetReward([others.correct, others.brief], 3)(completions=[REPLY], label=[LABEL])
    assert 0.9 < score < 1
    return score


def test_openrlhf(unpack, monkeypatch, expected):
    file = unpack("openrlhf", "openrlhf/utils/agent.py")
    package(monkeypatch, "openrlhf", file.parents[1])
    package(monkeypatch, "openrlhf.utils", file.parent)
    agent = importlib.import_module("openrlhf.utils.agent")
    executor = agent.SingleTurnAgentExecutor(str(ROOT / "examples" / "dropin" / "others.py"))
    prompt = f"<user>{ask('How many?', 3)}<end><assistant>"

    class Tokenizer:
        def __call__(self, text, **_):
            return {"input_ids": SimpleTensor([[*text.encode()]])}

        def decode(self, ids, **_):
            return bytes(ids).decode()

    class SimpleTensor(list):
        def __getitem__(self, i):
            return SimpleNamespace(tolist=lambda: list.__getitem__(self, i))

    class Engine:
        async def generate(self, ids, params, **_):
            reply = SimpleNamespace(token_ids=[*f"{REPLY}<end>".encode()], finish_reason="stop", logprobs=None)
            return SimpleNamespace(outputs=[reply])

    sampling = SimpleNamespace(max_tokens=500, logprobs=None)
    output = asyncio.run(executor.execute(prompt, LABEL, sampling, 2000, Tokenizer(), Engine()))
    assert output["reward"] == output["scores"] == expected and output["extra_logs"]["answers"] == 3


def test_areal(unpack, monkeypatch, expected):
    file = unpack("areal", "areal/api/reward_api.py")
    import logging

    package(monkeypatch, "areal", file.parents[1])
    package(monkeypatch, "areal.api", file.parent)
    package(monkeypatch, "areal.utils", logging=logging)
    wrapper = importlib.import_module("areal.api.reward_api").AsyncRewardWrapper(
        importlib.import_module("others").areal_reward, max_workers=1, timeout_seconds=60
    )
    assert asyncio.run(wrapper("How many?", REPLY, [1], [2], label=LABEL)) == expected  # in a process of its own


def test_slime_calls_an_async_function_of_arguments_and_a_sample(monkeypatch, expected):
    """slime is not on the index: what its rm_hub does with --custom-rm-path, by hand."""
    others = importlib.import_module("others")
    assert asyncio.run(others.custom_rm(None, SimpleNamespace(response=REPLY, label=LABEL))) == expected


def test_ms_swift(unpack, monkeypatch, expected):
    file = unpack("ms_swift", "swift/rewards/orm.py")
    package(monkeypatch, "swift", file.parents[1])
    package(monkeypatch, "swift.infer_engine", InferRequest=object)
    orm = importlib.import_module("swift.rewards.orm") if package(monkeypatch, "swift.rewards", file.parent) else None
    package(monkeypatch, "swift.rewards", file.parent, ORM=orm.ORM, orms=orm.orms)
    importlib.import_module("swift_plugin")
    assert orm.orms["vpo"](args=None)(completions=[REPLY], label=[LABEL]) == [expected]


def test_skyrl(unpack, monkeypatch, expected):
    file = unpack("skyrl", "skyrl_gym/envs/base_text_env.py")
    monkeypatch.syspath_prepend(file.parents[2])
    skyrl_gym = pytest.importorskip("skyrl_gym", exc_type=ImportError)
    skyrl_gym.register(id="vpo", entry_point="skyrl_env:VPOEnv")
    env = skyrl_gym.make("vpo", env_config={}, extras={"reward_spec": {"ground_truth": LABEL}})
    question = [{"role": "user", "content": "How many?"}]
    assert env.init(question)[0] == ask(question, 3)
    assert env.step(REPLY)["reward"] == expected


def test_axolotl_takes_a_callable_object_by_its_path(unpack, expected):
    source = unpack("axolotl", "axolotl/core/trainers/grpo/__init__.py").read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    (function,) = [node for node in functions if node.name == "get_reward_func"]
    function.decorator_list, function.returns = [], None
    names = {"importlib": importlib, "inspect": inspect}
    exec(compile(ast.Module([function], []), "axolotl", "exec"), names)
    loaded = names["get_reward_func"](None, "others.reward")
    assert loaded(None, [REPLY], label=[LABEL]) == [expected]
