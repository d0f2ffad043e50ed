"""`VPOTrainer`: TRL's GRPOTrainer for rollouts of several answers, each with a reward per objective.

The paper's VPO needs one private method of TRL, `_calculate_rewards`: it lets TRL score the single answers
and returns what each objective contributed to the set reward. TRL's own weighted sum of that is R(S), so TRL
normalises, logs, evaluates and resumes as it does for GRPO. Another method replaces the advantages, in
`_generate_and_score_completions`.

VPOTrainer and VPOConfig are built when they are asked for, because Unsloth puts its own classes in the place
of TRL's. Axes: B rollouts of all processes, M answers, D objectives, T tokens, P prompts, K weight draws.
"""

from __future__ import annotations

import functools
import inspect
import sys
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vpo_lab.chains import answer_ends
from vpo_lab.errors import LabError
from vpo_lab.methods import Batch, Method, get_method
from vpo_lab.set_reward import (
    SetReward,
    ask,
    check_candidates,
    checked_rewards,
    names_of,
    nested,
    objective_metrics,
    set_reward_parts,
    split_answers,
    text_of,
    unask,
    warn_of_silence,
)

if TYPE_CHECKING:  # what a type checker sees; `__getattr__` builds both on the classes that TRL has at that time
    from trl import GRPOConfig
    from trl import GRPOTrainer as Base
else:
    Base = object


def _option(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass
class VPOOptions:
    """Hold what VPOConfig adds to GRPOConfig."""

    candidates: int = _option(3, "M, the answers in a rollout. With 1 this is GRPO on the mean of the rewards.")
    alpha: float = _option(1.0, "Concentration of the Dirichlet from which preference weights are drawn.")
    weight_draws: int = _option(128, "K, the preference weights under which the rollouts of a group are compared.")
    floor: float = _option(0.0, "What a missing answer earns on each objective: at most the least reward.")
    void_truncated: bool = _option(True, "A rollout that max_completion_length cuts off earns as one without answers.")
    method: str = _option("vpo", "Another name in vpo_lab.METHODS takes its advantages from there: vpo_credit, ...")
    ask: bool = _option(True, "Append the request for M answers to the prompts. False if they hold one already.")


class VPOMixin(Base):
    """Train with VPO: the arguments of GRPOTrainer, with the objectives as `reward_funcs`.

    `args` is a VPOConfig, or a GRPOConfig. `candidates` and `method` may be given to the trainer, too; a `Method`
    (`METHODS["vpo"].with_options(alpha=2.0)`) then computes the advantages, exactly as in `vpo_lab.METHODS`. A
    reward function meets single answers, and prompts without the request for several. Raises LabError on what has
    no answers to split (environment_factory, rollout_func) and on reward functions that return no list of numbers.
    """

    _tag_names = ("trl", "vpo")
    _name = "VPO"
    _paper: ClassVar = {"title": "Vector Policy Optimization", "id": "2605.22817", "citation": ""}

    def __init__(
        self,
        model,
        reward_funcs=None,
        args=None,
        train_dataset=None,
        eval_dataset=None,
        *,
        candidates: int | None = None,
        method: str | Method | None = None,
        **kwargs,
    ):
        self.vpo = VPOOptions(
            **{option.name: getattr(args, option.name, option.default) for option in fields(VPOOptions)}
        )
        self.vpo.candidates = check_candidates(self.vpo.candidates if candidates is None else candidates)
        self.method = _method(self.vpo.method if method is None else method)
        self.scored: SimpleNamespace | None = None  # the last batch, as `measure` is given it
        self._told: set[str] = set()
        self._token_lengths: dict[int, int] = {}
        self._of_answers = False
        self._trains = True  # not an evaluation: Unsloth puts the model into training mode in the midst of one
        _refuse(args, kwargs)
        if self.vpo.ask:
            train_dataset, eval_dataset = (_asked(data, self.vpo.candidates) for data in (train_dataset, eval_dataset))
        super().__init__(
            model=model,
            reward_funcs=_checked_functions(reward_funcs, self.vpo.floor, self._told),
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )

    # --- What a subclass may override -----------------------------------------------------------------

    def score_answers(self, inputs: list[dict], prompts: list, answers: list):
        """Return what the answers of all processes earn, in their order: a (processes * n, D) tensor, NaN: not asked.

        This process is given n answers; row i of the data and prompt i belong to answer i. Override it to score
        without reward functions, and gather what you return. The functions still name the objectives.
        """
        ids = _tokenizer(self)([text_of(answer) for answer in answers], add_special_tokens=False)["input_ids"]
        self._of_answers = True
        try:
            return super()._calculate_rewards(inputs, prompts, answers, ids)
        finally:
            self._of_answers = False

    def measure(self, scored: SimpleNamespace) -> dict[str, float]:
        """Return what to log of a batch. Override it to add to it.

        `scored` holds rewards_BMD, present_BM and truncated_B of all processes, and inputs, completions and
        completion_ids of this one. All processes must return the same values.
        """
        return objective_metrics(scored.rewards_BMD, scored.present_BM, self.reward_func_names)

    # --- The paper's VPO ------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        import torch

        m, device = self.vpo.candidates, self.accelerator.device
        split = [split_answers(completion, m) for completion in completions]
        rewards = self.score_answers(
            [row for row in inputs for _ in range(m)],
            [unask(prompt, m) for prompt in prompts for _ in range(m)],
            [answer for answers, _ in split for answer in answers],
        )
        ends = _end_tokens(self)
        cut = [not ids or ids[-1] not in ends for ids in completion_ids_list]
        flags = torch.tensor(
            [[*present, is_cut] for (_, present), is_cut in zip(split, cut, strict=True)], device=device
        )
        gathered: torch.Tensor = self.accelerator.gather(flags)
        flags = gathered.cpu().numpy()
        self.scored = scored = SimpleNamespace(
            rewards_BMD=rewards.double().cpu().numpy().reshape(len(flags), m, -1),
            present_BM=flags[:, :m],
            truncated_B=flags[:, m] & self.vpo.void_truncated,
            inputs=inputs,
            completions=completions,
            completion_ids=completion_ids_list,
        )
        answers = scored.rewards_BMD, scored.present_BM
        warn_of_silence(*answers, self.reward_func_names, self._told, self._group_size())
        metrics = self._metrics["train" if self._trains else "eval"]
        for name, value in self.measure(scored).items():
            metrics[name].append(value)
        present_BM = scored.present_BM & ~scored.truncated_B[:, None]
        parts_BD = set_reward_parts(scored.rewards_BMD, present_BM, self._weights(), self._scale(), self.vpo.floor)
        return torch.tensor(parts_BD, dtype=torch.float32, device=device)

    def _weights(self) -> np.ndarray:
        """K preference weights for every rollout, shared in its group as `METHODS["vpo"]` draws them: (B, K, D)."""
        rewards_BMD, size = self.scored.rewards_BMD, self._group_size()
        if self.vpo.candidates == 1:  # E[w.r] is the mean
            return np.full((1, rewards_BMD.shape[2]), 1 / rewards_BMD.shape[2])
        if len(rewards_BMD) % size:  # the rest of an evaluation
            size = len(rewards_BMD)
        weights_PKD = Batch(rewards_BMD, size).draw_weights(self.vpo.weight_draws, self.vpo.alpha, self._rng())
        return np.repeat(weights_PKD, size, axis=0)

    def _rng(self) -> np.random.Generator:
        """From seed and step: every process, and a run that is resumed, draws the same."""
        return np.random.default_rng([self.args.seed, self.state.global_step])

    def _group_size(self) -> int:
        if self._trains:
            return self.num_generations
        return getattr(self, "num_generations_eval", None) or self.num_generations

    def _scale(self) -> np.ndarray:
        return self.reward_weights.double().cpu().numpy()

    def _log_completion_extra(self, column: str, values: list):
        """A reward function logs a value per answer; TRL's table has a row per rollout."""
        if self._of_answers:
            values = nested(values, len(values) // self.vpo.candidates, self.vpo.candidates)
        super()._log_completion_extra(column, values)

    # --- Other methods --------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs):
        self._trains = self.model.training
        batch = super()._generate_and_score_completions(inputs)
        if self.method is not None and self._trains:
            batch["advantages"] = self._advantages(batch)
        return batch

    def _advantages(self, batch):
        """What the method gives the rollouts of this process: (B,) or, for an advantage per answer, (B, T)."""
        import torch
        from accelerate.utils import gather_object

        scored, method, size = self.scored, self.method, self._group_size()
        rewards_BMD = method_rewards(scored.rewards_BMD, scored.present_BM, self.vpo.floor) * self._scale()
        goals_PD = None
        if method.states_goal:  # the rows state it: {objective: tenths}
            goals = gather_object([row["goal"] for row in scored.inputs])[::size]
            goals_PD = np.array([[*goal.values()] for goal in goals]) / 10
        advantages = method.advantages(rewards_BMD, size, self._rng(), scored.truncated_B, goals_PD)

        ids_BT = batch["completion_ids"]
        first = self.accelerator.process_index * len(ids_BT)
        mine = slice(first, first + len(ids_BT))
        if advantages.ndim == 1:
            advantages_B = torch.tensor(advantages, dtype=torch.float32, device=ids_BT.device)
            # As TRL does: in float32, too, the advantages of a group sum to zero.
            means_P = torch.nanmean(advantages_B.view(-1, size), dim=1)
            return (advantages_B - means_P.repeat_interleave(size))[mine]
        if getattr(self, "use_liger_kernel", False):
            raise LabError(
                f"method {method.name!r} has an advantage per answer, use_liger_kernel takes one per rollout"
            )
        advantages_BT = np.zeros(ids_BT.shape, dtype=np.float32)
        rows = zip(advantages_BT, advantages[mine], scored.completion_ids, scored.completions, strict=True)
        for row_T, row_M, ids, completion in rows:
            row_T[: len(ids)] = row_M[self._answer_of_tokens(ids, completion)]
        return torch.from_numpy(advantages_BT).to(ids_BT.device)

    def _answer_of_tokens(self, ids: list[int], completion) -> np.ndarray:
        tokenizer = _tokenizer(self)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        # The completion may be the end of the text: a chat template splits off thoughts and earlier turns.
        start = max(0, text.rfind(text_of(completion)))
        return answer_of_tokens(tokenizer, ids, text, self.vpo.candidates, self._token_lengths, start)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        import torch

        if inputs["advantages"].dim() == 2 and is_unsloth(type(self)):
            from vpo_lab.train.gpu import left_packed

            inputs = {**inputs, "advantages": left_packed(inputs, _tokenizer(self).pad_token_id)}
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        metrics = self._metrics["train" if self.model.training else "eval"]
        if metrics.get("kl"):  # of a token; what an answer costs tells more
            tokens_B: torch.Tensor = self.accelerator.gather(inputs["completion_mask"].sum(dim=1).float())
            metrics["kl_answer"].append(metrics["kl"][-1] * tokens_B.mean().item() / self.vpo.candidates)
        return loss


if TYPE_CHECKING:

    @dataclass
    class VPOConfig(VPOOptions, GRPOConfig): ...

    class VPOTrainer(VPOMixin): ...


def __getattr__(name: str):
    """Build VPOTrainer or VPOConfig on the class that TRL has now: its own, or that of Unsloth."""
    if name not in ("VPOTrainer", "VPOConfig"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import trl
    except ModuleNotFoundError as error:
        raise LabError(f"{name} needs {error.name}, which is not installed: pip install 'vpo-lab[train]'") from error
    if "unsloth" in sys.modules and not is_unsloth(trl.GRPOTrainer):
        raise LabError(f"unsloth is imported but did not replace TRL's trainer: import it before trl and {name}")
    return _trainer_class(trl.GRPOTrainer) if name == "VPOTrainer" else _config_class(trl.GRPOConfig)


@functools.cache
def _trainer_class(base: type) -> type:
    return _named("VPOTrainer", type("VPOTrainer", (VPOMixin, base), {"__doc__": VPOMixin.__doc__}))


@functools.cache
def _config_class(base: type) -> type:
    class Config(VPOOptions, base):
        def __init__(self, *args, **kwargs):
            own = {option.name: kwargs.pop(option.name) for option in fields(VPOOptions) if option.name in kwargs}
            VPOOptions.__init__(self, **own)
            base.__init__(self, *args, **kwargs)

    Config.__doc__ = f"GRPOConfig and the options of VPO: {', '.join(option.name for option in fields(VPOOptions))}."
    return dataclass(init=False)(_named("VPOConfig", Config))


def _named(name: str, made: type) -> type:
    """The class as this module's `name`, where pickle looks for it: checkpoints hold the arguments."""
    made.__name__ = made.__qualname__ = name
    made.__module__ = __name__
    return made


def method_rewards(rewards_BMD: np.ndarray, present_BM: np.ndarray, floor: float) -> np.ndarray:
    """Return the rewards as a method reads them, (B, M, D): above `floor`, 0 for a missing answer, NaN as it is."""
    return np.where(present_BM[..., None] | np.isnan(rewards_BMD), rewards_BMD - floor, 0.0)


def answer_of_tokens(
    tokenizer, ids: list[int], text: str, m: int, known: dict[int, int] | None = None, start: int = 0
) -> np.ndarray:
    """Return which answer each token of a completion belongs to: (T,) of 0..m-1, by where the token starts.

    An answer's tags and the text before it belong to it. A token that spans two answers counts for the
    earlier one, which keeps the baseline unbiased. `known` remembers the length of
    every token's text from call to call; tags before the position `start` of the text do not count.
    """
    known = {} if known is None else known
    if new := [i for i in dict.fromkeys(ids) if i not in known]:
        pieces = tokenizer.batch_decode([[i] for i in new], skip_special_tokens=True)
        known.update(zip(new, map(len, pieces), strict=True))
    starts = np.cumsum([0, *(known[i] for i in ids)])
    if starts[-1] != len(text):  # a character split between tokens: count it where it is complete
        ends = [len(tokenizer.decode(ids[:t], skip_special_tokens=True).rstrip("\ufffd")) for t in range(len(ids))]
        starts = np.array([*ends, len(text)])
    return np.searchsorted(np.add(answer_ends(text[start:], m), start), starts[: len(ids)], side="right")


# --- Checks and small things ----------------------------------------------------------------------


def is_unsloth(trainer_class: type) -> bool:
    """Return True if Unsloth made the class, or one that it is built on."""
    return any(parent.__name__.startswith("Unsloth") for parent in trainer_class.__mro__)


def _method(method: str | Method) -> Method | None:
    """The method to take advantages from; None leaves them to TRL, which is the paper's VPO."""
    if isinstance(method, str):
        return None if method == "vpo" else get_method(method)
    return method


def _refuse(args, kwargs: dict) -> None:
    for name in ("environment_factory", "rollout_func"):
        if kwargs.get(name) is not None:
            raise LabError(f"VPOTrainer: {name} is not supported: what it earns belongs to a rollout, not to an answer")
    aggregation = getattr(args, "multi_objective_aggregation", "sum_then_normalize")
    if aggregation != "sum_then_normalize":
        raise LabError(f"VPOTrainer: multi_objective_aggregation={aggregation!r}: leave it at 'sum_then_normalize'")


def _checked_functions(reward_funcs, floor: float, told: set[str]) -> list:
    """The reward functions with a check of what they return; models and their names are left to TRL."""
    functions = reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    return [
        _checked(function, name, floor, told) for function, name in zip(functions, names_of(functions), strict=True)
    ]


def _checked(function, name: str, floor: float, told: set[str]):
    if isinstance(function, SetReward):
        raise LabError("VPOTrainer: reward_funcs holds a SetReward: give its functions, or use it in a GRPOTrainer")
    if isinstance(function, str) or hasattr(function, "forward"):  # a reward model
        return function
    if not callable(function):
        raise LabError(f"VPOTrainer: reward_funcs holds {function!r:.60}, which cannot be called")

    def check(result, completions) -> list[float]:
        return checked_rewards(result, name, len(completions), floor, told).tolist()

    called = function
    while isinstance(called, functools.partial):
        called = called.func
    if inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(type(called).__call__):

        async def reward(*, completions, **columns):
            return check(await function(completions=completions, **columns), completions)
    else:

        def reward(*, completions, **columns):
            return check(function(completions=completions, **columns), completions)

    reward.__name__ = name
    return reward


def _asked(dataset, m: int):
    """The data set with the request for `m` answers in its prompts; also a dict of data sets, or None."""
    if dataset is None or m == 1:
        return dataset
    if isinstance(dataset, dict) and not hasattr(dataset, "map"):
        return {name: _asked(part, m) for name, part in dataset.items()}
    return dataset.map(lambda row: {"prompt": ask(unask(row["prompt"], m), m)})  # pyright: ignore


def _tokenizer(trainer):
    return getattr(trainer.processing_class, "tokenizer", trainer.processing_class)


def _end_tokens(trainer) -> set[int]:
    """The tokens that end a rollout: the tokenizer's, and those of the model's generation config."""
    ends = getattr(getattr(trainer.model, "generation_config", None), "eos_token_id", None)
    return {_tokenizer(trainer).eos_token_id, *(ends if isinstance(ends, list) else [ends])}
