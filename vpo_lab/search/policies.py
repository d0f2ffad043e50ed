"""Answer the prompts of a search: a trained policy in this process, or one behind an OpenAI-compatible server."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from vpo_lab.chains import answer_prompt, split_chain
from vpo_lab.config import PROFILES, Profile, get_profile
from vpo_lab.errors import LabError
from vpo_lab.files import append_line, read_json, write_bytes
from vpo_lab.methods import METHODS
from vpo_lab.runs import MANIFEST, Run, Stage
from vpo_lab.tasks import Task, get_task
from vpo_lab.train.policy import load_policy
from vpo_lab.train.prompts import answers_per_rollout, load_rows, render_prompt, sample_goal
from vpo_lab.train.sampling import sample

Requests = list[tuple[dict, list[dict]]]  # rows, and the messages that ask for an answer to each
Draw = Callable[[Requests, int], list[list[str]]]  # and the number of the call -> the answers to each


@dataclass(frozen=True)
class Trained:
    """Know how the policy of a stage was trained, and so how it is asked."""

    folder: Path  # RUN/STAGE
    profile: Profile
    method: str  # "sft", "sft_chain" or a method

    @classmethod
    def find(cls, folder: Path) -> Trained:
        """Return the policy RUN/STAGE of a run or an experiment; RUN/sft_chain is RUN/sft, asked for chains.

        LabError if there is no such run or stage, or nobody noted how it was trained.
        """
        folder = Path(folder).expanduser().absolute()
        chains = folder.name == "sft_chain"
        stage = folder.with_name("sft") if chains else folder
        if not (stage / "policy").is_dir():
            raise LabError(f"no policy in {stage}: name a folder RUN/STAGE that is trained, such as runs/tiny/code/vpo")
        if (stage / "settings.json").exists():  # of an experiment: ROOT/WORLD/seed-S/VARIANT
            settings = dict(read_json(stage / "settings.json"))  # pyright: ignore
            base, method = stage.parent.parent.name, settings.pop("method")
        elif (stage.parent / MANIFEST).exists():
            made: dict = read_json(stage.parent / MANIFEST)  # pyright: ignore
            base, settings, method = made["profile"], made["settings"], stage.name
        else:
            raise LabError(f"{stage.parent} does not say how its policies were trained: name a stage of a run")
        profile = get_profile(base if base in PROFILES else "tiny", settings)
        return cls(folder, profile, "sft_chain" if chains else method)

    @property
    def stage(self) -> Stage:
        return Run(self.folder.parent).stage("sft" if self.method == "sft_chain" else self.folder.name)

    @property
    def m(self) -> int:
        """Return how many answers one completion holds."""
        if self.method in METHODS:
            return answers_per_rollout(self.profile, self.method)
        return self.profile.rl.candidates if self.method == "sft_chain" else 1

    def goals(self, task: Task, n: int, seed: tuple[int, ...]) -> list[dict[str, int] | None]:
        """Return the weights that n prompts state: drawn for a policy that is steered by them, else None."""
        rng = np.random.default_rng(seed)
        states = self.method in METHODS and METHODS[self.method].states_goal
        return [sample_goal(task, rng) if states else None for _ in range(n)]

    def rows(self, limit: int) -> list[dict]:
        """Return the first test rows that fit its window: the same for all policies of a profile."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.stage.policy)
        return load_rows(self.profile, get_task(self.profile.task), "test", tokenizer, limit=limit)


@lru_cache(maxsize=1)
def _loaded(folder: Path, seed: int):
    """Return (model, tokenizer) of a policy; the last one stays in memory."""
    trained = Trained.find(folder)
    return load_policy(trained.profile, get_task(trained.profile.task), trained.stage.policy, seed)


@dataclass(frozen=True)
class Source:
    """Say who answers, in words that another process understands: `Source(**vars(source))` is the same one."""

    policy: str  # RUN/STAGE
    seed: int = 0
    ahead: int = 1  # completions for one prompt at a time; more than one only where prompts show no parent
    server: str = ""  # the address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1; "": none
    model: str = ""  # its name there; "": the first that the server offers

    def load(self) -> None:
        """Load the policy now, if this process is to sample from it."""
        if not self.server:
            _loaded(Path(self.policy), self.seed)

    def draw(self, requests: Requests, call: int) -> list[list[str]]:
        """Return the answers of `ahead` completions to each prompt; the number of the call is part of the seed."""
        trained = Trained.find(Path(self.policy))
        prompts = [messages for _, messages in requests for _ in range(self.ahead)]
        goals = trained.goals(get_task(trained.profile.task), len(prompts), (self.seed, 5, call))
        texts = (self._ask_server if self.server else self._sample)(trained, prompts, goals, call)
        answers = [split_chain(text, trained.m) for text in texts]
        return [
            [answer for chain in answers[i : i + self.ahead] for answer in chain]
            for i in range(0, len(answers), self.ahead)
        ]

    def _sample(self, trained: Trained, prompts: list[list[dict]], goals, call: int) -> list[str]:
        settings, (model, tokenizer) = trained.profile.evaluation, _loaded(Path(self.policy), self.seed)
        rendered = [render_prompt(tokenizer, p, trained.m, goal) for p, goal in zip(prompts, goals, strict=True)]
        texts, _ = sample(
            model,
            tokenizer,
            rendered,
            max_new_tokens=trained.profile.policy.max_answer_tokens * trained.m,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=_seed(self.seed, call),
            batch=settings.batch,
        )
        return texts

    def _ask_server(self, trained: Trained, prompts: list[list[dict]], goals, call: int) -> list[str]:
        """Ask a server side by side, each time with a seed of its own: with one for all, equal prompts would get
        equal answers from a server that honours it, and any policy would look collapsed."""
        import openai

        settings = trained.profile.evaluation

        def ask(number: int) -> str:
            done = client.chat.completions.create(
                model=model,
                messages=answer_prompt(prompts[number], trained.m, goals[number]),  # pyright: ignore
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=trained.profile.policy.max_answer_tokens * trained.m,
                seed=_seed(self.seed, call, number),
                extra_body={"chat_template_kwargs": {"enable_thinking": False}},  # as `render_prompt` has it
            )
            return done.choices[0].message.content or ""

        try:
            client, first = _connect(self.server)
            model = self.model or first()
            with ThreadPoolExecutor(16) as pool:
                return list(pool.map(ask, range(len(prompts))))
        except (openai.OpenAIError, StopIteration) as error:
            raise LabError(
                f"the server {self.server} did not answer ({' '.join(str(error).split())[:200]}): check address and "
                "model, start it by `vllm serve` or `transformers serve`"
            ) from error


@lru_cache(maxsize=1)
def _connect(server: str):
    """Return the client of a server, which takes long to make, and what tells the first model that it offers."""
    import openai

    client = openai.OpenAI(base_url=server, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=3)
    return client, lru_cache(lambda: next(iter(client.models.list())).id)


def _seed(*parts: int) -> int:
    """Return a seed below 2**31 that differs with every part."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


class Journal:
    """Number the calls of a `Draw`, and keep the answers in a file, from which a killed search gets them again."""

    def __init__(self, draw: Draw, path: Path | None = None):
        self.draw, self.path, self.number = draw, path, 0
        self.lines: list[dict] = []
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    self.lines.append(json.loads(line))
                except ValueError:
                    break  # cut short by the kill
            self._rewrite()

    def __call__(self, requests: Requests) -> list[list[str]]:
        """Return what was answered at this point before, if it was asked the same; else ask, and note it."""
        asked = hashlib.sha256(json.dumps([[row["id"], messages] for row, messages in requests]).encode()).hexdigest()
        number, self.number = self.number, self.number + 1
        if number < len(self.lines) and self.lines[number]["asked"] != asked:
            self.lines = self.lines[:number]
            self._rewrite()
        if number == len(self.lines):
            self.lines.append({"asked": asked, "answers": self.draw(requests, number)})
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                append_line(self.path, self.lines[-1])
        return self.lines[number]["answers"]

    def _rewrite(self) -> None:
        if self.path is not None:
            write_bytes(self.path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
