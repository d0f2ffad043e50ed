"""signatures.json is read from the wheels as an import would find the names, and a name that is gone is named."""

import hashlib
from zipfile import ZipFile

import pytest
import reading
import refresh
from reading import Gone

FILES = {
    "vllm/__init__.py": 'MODULE_ATTRS = {"LLM": ".entry.llm:LLM", "Prompt": ".inputs:Prompt"}\n',
    "vllm/entry/__init__.py": "",
    "vllm/entry/llm.py": """
class LLM:
    def __init__(self, model, *, seed=0, **kwargs):
        self.engine = EngineArgs(model=model, **kwargs)
    def generate(self, prompts, params=None, *, use_tqdm=True): ...
    @staticmethod
    def make(x): ...
    @property
    def size(self): ...
    def _hidden(self): ...
""",
    "vllm/inputs/__init__.py": "from .base import *\nfrom .prompt import RealPrompt as Prompt\n",
    "vllm/inputs/base.py": "def shared(): ...\n",
    "vllm/inputs/prompt.py": "class RealPrompt(TypedDict):\n    ids: list\n    text: NotRequired[str]\n",
    "vllm/params.py": "class Params(msgspec.Struct):\n    name: str\n    n: int = 1\n    _private: int = 2\n",
    "vllm-1.0.dist-info/METADATA": (
        'Name: vllm\nVersion: 1.0\nRequires-Python: >=3.9\nRequires-Dist: torch==2\nRequires-Dist: x; extra == "y"\n'
    ),
}


@pytest.fixture
def wheels(tmp_path):
    with ZipFile(tmp_path / "vllm-1.0-py3-none-any.whl", "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    return refresh.Wheels(tmp_path, {"vllm": "1.0"})


def test_names_are_found_where_they_are_defined(wheels):
    assert wheels.find("vllm.LLM") == ("vllm.entry.llm", "LLM")
    assert wheels.find("vllm.Prompt") == ("vllm.inputs.prompt", "RealPrompt")
    assert wheels.find("vllm.inputs.shared") == ("vllm.inputs.base", "shared")


@pytest.mark.parametrize("dotted", ["vllm.LM", "vllm.inputs.gone", "vllm.nowhere.LLM"])
def test_a_name_that_is_gone_is_named(wheels, dotted):
    with pytest.raises(Gone, match=f"{dotted} is gone"):
        wheels.find(dotted)


def test_classes_and_their_fields_are_described(wheels):
    llm = refresh.describe(wheels.node("vllm.LLM"))
    assert llm["call"] == "model, *, seed=_, **kwargs" and llm["attributes"] == ["engine", "size"]
    assert llm["methods"] == {"generate": {"call": "prompts, params=_, *, use_tqdm=_"}, "make": {"call": "x"}}
    assert refresh.describe(wheels.node("vllm.Prompt"))["fields"] == "*, ids, text=_"
    assert refresh.describe(wheels.node("vllm.params.Params"))["fields"] == "name, n=_"
    reading.expanding_call(wheels.node("vllm.LLM"), "EngineArgs")
    with pytest.raises(Gone, match="hands no"):
        reading.expanding_call(wheels.node("vllm.LLM"), "Engine")


def test_a_package_is_recorded_with_its_digest(wheels, tmp_path):
    package = wheels.package("vllm")
    digest = hashlib.sha256((tmp_path / "vllm-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    assert package["sha256"] == digest and package["version"] == "1.0" and package["requires"] == ["torch==2"]


def test_a_missing_wheel_is_named(tmp_path):
    with pytest.raises(Gone, match=r"no wheel of vllm 2\.0"):
        refresh.Wheels(tmp_path, {"vllm": "2.0"})


def test_what_a_function_takes_out_of_kwargs():
    source = 'def f(a, **kwargs):\n    kwargs.pop("b", 0)\n    x = kwargs.get("c") if "d" in kwargs else kwargs["e"]\n'
    assert reading.keys_read(reading.named(reading.ast.parse(source), "f")) == {"b", "c", "d", "e"}
