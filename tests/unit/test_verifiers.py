"""verifiers task sets as reward vectors, as task sets that VPO trains on, and as tasks of the lab.

verifiers has an environment of its own: `make verifiers` builds it and runs this file, with marble-v1, a task set from
the index that scores by physics. No model, no network.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vpo_lab import METHODS, ask
from vpo_lab.chains import join_chain
from vpo_lab.errors import LabError
from vpo_lab.set_reward import set_reward_parts
from vpo_lab.tasks import get_task
from vpo_lab.tasks.check import check_task
from vpo_lab.train.verifiers import VerifiersTask, reward_vectors, vpo_taskset
from vpo_lab.weights import dirichlet_weights

vf = pytest.importorskip("verifiers.v1", reason="verifiers is not installed here: make verifiers has it")

M = 3
EXAMPLE = Path(__file__).parents[2] / "examples" / "dropin" / "prime_rl"


class LetterData(vf.TaskData):
    answer: str


class LetterTask(vf.Task[LetterData]):
    """Three rewards, and what a reward reads of the prompt."""

    @vf.reward(weight=1.0)
    async def right(self, trace: vf.Trace) -> float:
        return float(trace.last_reply == self.data.answer)

    @vf.reward(weight=0.5)
    async def brief(self, trace: vf.Trace) -> float:
        return 1 / (1 + len(trace.last_reply))

    @vf.reward(weight=0.0)
    async def vowel(self, trace: vf.Trace) -> float:
        return float(trace.last_reply[:1] in "aeiou")

    @vf.metric
    async def asked(self, task: LetterData, trace: vf.Trace) -> float:
        texts = [task.prompt_text, *(str(node.message.content) for node in trace.nodes)]
        return float(any("<answer_" in text for text in texts))


class BoxedTask(LetterTask):
    NEEDS_CONTAINER = True


class LetterSet(vf.Taskset[LetterTask, vf.TasksetConfig]):
    def load(self) -> Iterator[LetterTask]:
        for letter in "abcdefghij":
            data = LetterData(prompt=f"Write {letter}.", system_prompt="Be brief.", answer=letter)
            yield LetterTask(data, self.config.task)


class ChatSet(vf.Taskset[LetterTask, vf.TasksetConfig]):
    def load(self) -> Iterator[LetterTask]:
        messages = [vf.UserMessage(content="Hello."), vf.UserMessage(content="Write b.")]
        yield LetterTask(LetterData(prompt=messages, answer="b"), self.config.task)


class BoxedSet(vf.Taskset[BoxedTask, vf.TasksetConfig]):
    def load(self) -> Iterator[BoxedTask]:
        yield BoxedTask(LetterData(prompt="x", answer="x"), self.config.task)


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    """The task sets as modules, which is how verifiers finds them."""
    for name, taskset in {"letters": LetterSet, "chats": ChatSet, "boxed": BoxedSet}.items():
        module = ModuleType(name)
        module.__spec__ = __spec__
        module.__all__, module.Set = ["Set"], taskset
        monkeypatch.setitem(sys.modules, name, module)


def rollout(task, reply: str):
    """The trace that an engine makes of one turn, and its score."""
    prompt = task.data.prompt
    messages = [vf.UserMessage(content=prompt)] if isinstance(prompt, str) else list(prompt)
    replied = vf.MessageNode(message=vf.AssistantMessage(content=reply), sampled=True, parent=len(messages) - 1)
    trace = vf.Trace(
        task=vf.TraceTask(type=type(task).__name__, data=task.data),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        nodes=[*(vf.MessageNode(message=m, parent=i - 1 if i else None) for i, m in enumerate(messages)), replied],
    )
    asyncio.run(task.score(trace))
    return trace


# --- Reward vectors -------------------------------------------------------------------------------


def test_every_answer_earns_what_the_task_gives_it_alone():
    task = next(iter(LetterSet(vf.TasksetConfig())))
    names, rewards_BMD, present_BM = reward_vectors(task, [join_chain(["a", "bb"]), "nothing"], M)
    assert names == ("brief", "right")
    assert present_BM.tolist() == [[True, True, False], [False] * 3]
    assert np.allclose(rewards_BMD[0, :2], [[1 / 2, 1], [1 / 3, 0]])
    names, rewards_BMD, _ = reward_vectors(task, [join_chain(["a", "bb"])], 2, ["vowel", "right"])
    assert names == ("vowel", "right") and rewards_BMD.tolist() == [[[1, 1], [0, 0]]]


def test_a_reward_that_is_not_there_is_named_with_those_that_are():
    task = next(iter(LetterSet(vf.TasksetConfig())))
    with pytest.raises(LabError, match=r"(?s)colour.*vowel"):
        reward_vectors(task, ["a"], 1, ["colour"])


# --- The task set that pays the set ---------------------------------------------------------------


def test_a_task_set_asks_for_answers_and_pays_the_set():
    asking = vpo_taskset(LetterSet, M)
    plain, task = (next(iter(kind(vf.TasksetConfig()))) for kind in (LetterSet, asking))
    assert asking.task_type() is type(task) and task.data.prompt == ask(plain.data.prompt, M)
    assert (task.data.answer, task.data.idx, task.data.system_prompt) == ("a", 0, "Be brief.")
    texts = [join_chain(["a", "bb"]), join_chain(["xxxx", "yy", "z"]), "nothing", "<answer_1>a</answer_1>" + "." * 99]
    scale_D = np.array([0.5, 1.0])  # the weights of brief and right
    _, rewards_BMD, present_BM = reward_vectors(plain, texts, M)
    weights_KD = dirichlet_weights(1024, 2)
    expected_B = (set_reward_parts(rewards_BMD, present_BM, weights_KD, scale_D) * scale_D).sum(axis=1)
    for text, expected, rewards_MD, present_M in zip(texts, expected_B, rewards_BMD, present_BM, strict=True):
        trace = rollout(task, text)
        assert list(trace.rewards) == ["set_reward"] and trace.reward == pytest.approx(expected)
        assert trace.metrics["answers"] == present_M.sum()
        assert trace.last_reply == text and trace.nodes[0].message.content == task.data.prompt
        told = trace.info["vpo"]
        assert np.allclose(told["rewards"], rewards_MD) and told["present"] == present_M.tolist()
        json.dumps(trace.model_dump(mode="json"))
    assert expected_B[0] > expected_B[1] > 0 and expected_B[2] == expected_B[3] == 0


def test_the_rewards_of_a_group_are_those_of_vpo():
    """prime-rl takes the group's mean off: with its std, too, this is METHODS["vpo"]."""
    task = next(iter(vpo_taskset(LetterSet, M, ["right", "vowel"])(vf.TasksetConfig())))
    task = task.with_data(answer="b")
    texts = [join_chain(answers) for answers in (["b", "a", "x"], ["b", "b", "b"], ["a", "x", "x"], ["x", "x", "x"])]
    traces = [rollout(task, text) for text in texts]
    rewards_BMD = np.array([trace.info["vpo"]["rewards"] for trace in traces])
    reward_B = np.array([trace.reward for trace in traces])
    exact = METHODS["vpo"].with_options(weight_draws=1024).advantages(rewards_BMD, 4, np.random.default_rng(0))
    assert np.allclose((reward_B - reward_B.mean()) / reward_B.std(), exact, atol=1e-4)
    assert reward_B[0] > reward_B[1] > reward_B[3] == 0


def test_the_tasks_own_rewards_meet_the_plain_prompt():
    seen = []

    class Watching(LetterTask):
        @vf.reward(weight=1.0)
        async def right(self, task: LetterData, trace: vf.Trace) -> float:
            seen.append((task.prompt_text, [node.message.content for node in trace.nodes], self.data.prompt_text))
            return 1.0

    class WatchingSet(vf.Taskset[Watching, vf.TasksetConfig]):
        def load(self):
            yield Watching(LetterData(prompt="Write a.", answer="a"), self.config.task)

    task = next(iter(vpo_taskset(WatchingSet, M)(vf.TasksetConfig())))
    rollout(task, join_chain(["a", "b", "c"]))
    assert seen == [("Write a.", ["Write a.", letter], "Write a.") for letter in "abc"]


def test_a_prompt_of_messages_is_asked_in_its_last_one():
    task = next(iter(vpo_taskset(ChatSet, M)(vf.TasksetConfig())))
    first, last = task.data.prompt
    assert first.content == "Hello." and last.content == ask("Write b.", M)
    assert rollout(task, join_chain(["b", "c"])).reward > 0.5


def test_scoring_that_is_deferred_stays_so():
    task = next(iter(vpo_taskset(LetterSet, M)(vf.TasksetConfig()))).defer_scoring()
    assert rollout(task, "a").rewards == {}


def test_one_answer_asks_for_nothing_and_pays_the_mean():
    task = next(iter(vpo_taskset(LetterSet, 1)(vf.TasksetConfig())))
    assert task.data.prompt == "Write a." and rollout(task, "a").reward == pytest.approx((1 + 0.5 * 0.5) / 2)


# --- A task of the lab ----------------------------------------------------------------------------


def test_a_task_set_is_a_task_of_the_lab():
    task = get_task("verifiers:letters")
    assert (task.name, task.objectives) == ("verifiers:letters", ("brief", "right"))
    train, test = task.load(None, "train"), task.load(None, "test")
    assert [json.loads(row["gold"])["answer"] for row in test] == ["a", "f"] and len(train) == 8
    assert [message["role"] for message in train[0]["prompt"]] == ["system", "user"]
    assert task.demonstrations(train[0], 2, np.random.default_rng(0)) == ["b", "b"]
    assert np.allclose(task.score(["b", "", "xxx"], train[:3]), [[1 / 2, 1], [1, 0], [1 / 4, 0]])
    check_task(task)


@pytest.mark.parametrize(("name", "said"), [("boxed", "container"), ("nowhere_v1", "nowhere_v1")])
def test_what_the_lab_cannot_train_is_refused(name, said):
    with pytest.raises(LabError, match=said):
        get_task(f"verifiers:{name}")


# --- A task set from the index --------------------------------------------------------------------


def test_marble(monkeypatch):
    pytest.importorskip("marble_v1")
    monkeypatch.setattr("vpo_lab.train.verifiers.ROWS", 20)  # a level takes a tenth of a second
    task = get_task("verifiers:marble_v1:scored,closeness")
    check_task(task)
    row = task.load(None, "test")[0]
    solution = json.loads(row["gold"])["solution"]
    near = [{**piece, "x": piece["x"] + 20} for piece in solution]
    good, close = (f"```json\n{json.dumps(layout)}\n```" for layout in (solution, near))
    (all_of_it, some, none) = task.score([good, close, "x"], [row] * 3)
    assert all_of_it.tolist() == [1, 1] and none.tolist() == [0, 0] and 0 < some[1] <= 1

    from marble_v1.taskset import MarbleConfig, MarbleTaskset

    asked = next(iter(vpo_taskset(MarbleTaskset, M, ["scored", "closeness"])(MarbleConfig()).take(1)))
    trace = rollout(asked, join_chain([close, "x", good]))
    assert trace.reward == pytest.approx(1) and asked.data.prompt.endswith(ask("", M))
    assert VerifiersTask("marble_v1", ["scored"], pieces=2).objectives == ("scored",)


def test_the_example_of_prime_rl_names_a_task_set_that_verifiers_finds(monkeypatch):
    pytest.importorskip("marble_v1")
    monkeypatch.syspath_prepend(EXAMPLE)
    from verifiers.v1.utils.loaders import load_taskset, taskset_config_type

    config = tomllib.loads((EXAMPLE / "rl.toml").read_text(encoding="utf-8"))
    (source,) = config["orchestrator"]["train"]["source"]
    name = source["env"]["taskset"]["id"]
    (task,) = load_taskset(taskset_config_type(name)(id=name)).take(1)
    assert task.data.prompt.endswith(ask("", M)) and rollout(task, "no layout").reward == 0


# --- The whole way through verifiers, with a server in the place of a model ---------------------------


class Server(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that gives every prompt the same answers, as a stream."""

    seen: list[str] = []  # noqa: RUF012
    reply = join_chain(["a", "bb", "b"])

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(asked["messages"][-1]["content"])
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        parts = [
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": self.reply}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage},
        ]
        about = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": asked["model"]}
        lines = [*(json.dumps({**about, **part}) for part in parts), "[DONE]"]
        body = "".join(f"data: {line}\n\n" for line in lines).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


LETTERS = """
import verifiers.v1 as vf
from vpo_lab.train.verifiers import vpo_taskset

class Data(vf.TaskData):
    answer: str

class Letter(vf.Task[Data]):
    @vf.reward(weight=1.0)
    async def right(self, trace: vf.Trace) -> float:
        return float(trace.last_reply == self.data.answer)

    @vf.reward(weight=1.0)
    async def brief(self, trace: vf.Trace) -> float:
        return 1 / (1 + len(trace.last_reply))

class Letters(vf.Taskset[Letter, vf.TasksetConfig]):
    def load(self):
        for letter in "ab":
            yield Letter(Data(prompt=f"Write {letter}{letter}.", answer=2 * letter), self.config.task)

VPOLetters = vpo_taskset(Letters, candidates=3)
__all__ = ["VPOLetters"]
"""


def test_verifiers_own_evaluation_asks_a_model_and_pays_the_set(tmp_path):
    (tmp_path / "vpo_letters.py").write_text(LETTERS)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    paths = [str(tmp_path), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "NO_KEY": "none", "NO_PROXY": "127.0.0.1"}
    command = [str(Path(sys.executable).with_name("vf-eval")), "vpo_letters", "-m", "none", "-r", "2", "-o", "out"]
    command += ["--no-push", "--no-rich", "--env.agent.harness.id", "null", "--env.agent.runtime.type", "subprocess"]
    command += ["--client.base-url", f"http://127.0.0.1:{server.server_port}/v1", "--client.api-key-var", "NO_KEY"]
    try:
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (file,) = tmp_path.glob("out/*/traces.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines()
    traces = [trace for line in lines for trace in json.loads(line)["traces"]]
    assert sorted(Server.seen) == [ask(f"Write {letter}{letter}.", M) for letter in "aabb"]
    rewards = {trace["task"]["data"]["answer"]: trace["rewards"]["set_reward"]["score"] for trace in traces}
    assert len(traces) == 4 and rewards["bb"] > rewards["aa"] == pytest.approx(1 / 4, abs=1e-3)
    assert all(trace["metrics"]["answers"] == 3 for trace in traces)
