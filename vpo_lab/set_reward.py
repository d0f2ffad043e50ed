"""The paper's VPO as a reward: ordinary reward functions in, one number per rollout out.

R(S) = E_w[max over the answers of w.r] is a number, and all that follows is GRPO. `SetReward` therefore
trains VPO in every engine that accepts a reward function. numpy and scipy only.

Axes: B rollouts, M answers in a rollout, D objectives (one per function), K weight draws.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vpo_lab.chains import MANY_ANSWERS, split_chain, tail_of
from vpo_lab.errors import LabError
from vpo_lab.weights import dirichlet_weights, restrict


class SetReward:
    """Score a rollout of several answers by several reward functions: the set reward of VPO.

    Args:
        functions: one or more callables with TRL's signature, `f(prompts, completions, **columns)`, sync or
            async. Each returns one number (or None for "does not apply") per completion, best in [0, 1]. A
            function meets single answers, as many times `candidates` as there are rollouts.
        candidates: M, the answers that a rollout holds. With 1 the reward is the plain mean: GRPO.
        alpha, draws: K = `draws` preference weights from a symmetric Dirichlet(alpha), fixed (the paper draws
            anew), so that every process and every engine compares rollouts under the same weights.
        reward_weights: a scale per objective, 1 by default.
        floor: what a rollout without an answer earns on each objective. Keep it at or below the least reward.
        tail: with M > 1, a rollout is void that goes on for more than this many characters after its last
            answer, and a last answer that is not closed does not count. None switches both rules off.

    Raises:
        LabError: naming the argument or the function.

    The object is picklable if the functions are.
    """

    def __init__(
        self,
        functions: Callable | Sequence[Callable],
        candidates: int = 3,
        *,
        alpha: float = 1.0,
        draws: int = 1024,
        reward_weights: Sequence[float] | None = None,
        floor: float = 0.0,
        tail: int | None = 64,
        name: str = "vpo",
    ):
        self.functions = [functions] if callable(functions) else list(functions)
        if not self.functions:
            raise LabError("SetReward: functions is empty: give one reward function per objective")
        for number, function in enumerate(self.functions):
            if not callable(function):
                raise LabError(f"SetReward: functions[{number}] is {function!r:.60}, which cannot be called")
        self.names = names_of(self.functions)
        self.candidates = check_candidates(candidates)
        self.floor, self.tail, self.__name__ = float(floor), tail, name
        d = len(self.functions)
        self.scale_D = np.ones(d) if reward_weights is None else np.asarray(reward_weights, dtype=float)
        if self.scale_D.shape != (d,):
            raise LabError(f"SetReward: reward_weights needs {d} numbers, one per function, got {reward_weights!r:.60}")
        # Of a single answer, E[w.r] is the mean.
        self.weights_KD = dirichlet_weights(draws, d, alpha=alpha if self.candidates > 1 else math.inf, seed=0)
        self._told: set[str] = set()

    def __call__(self, prompts=None, completions=(), **columns) -> list[float | None]:
        """Return R(S) of every completion; None where no function applies. The reward signature of TRL.

        Logs each objective's mean over the answers and mean best of a rollout if the engine gives
        `log_metric`.
        """
        rewards_BMD, present_BM = self.vectors(prompts, completions, **columns)
        if (log := columns.get("log_metric")) is not None:
            for key, value in objective_metrics(rewards_BMD, present_BM, self.names).items():
                log(key, value)
        totals_B = self._totals(rewards_BMD, present_BM)
        return [None if np.isnan(total) else float(total) for total in totals_B]

    def vectors(self, prompts, completions, **columns) -> tuple[np.ndarray, np.ndarray]:
        """Return what every answer earns, (B, M, D) with NaN for None, and which answers are there, (B, M).

        Columns with a value per rollout are repeated for its answers; `completion_ids` is left out, since
        those of a rollout are not those of an answer. A missing answer has a stand-in, so that no function
        meets an empty text; do not read its row.
        """
        m, n = self.candidates, len(completions)
        split = [split_answers(completion, m, self.tail) for completion in completions]
        answers = [answer for of_one, _ in split for answer in of_one]
        present_BM = np.array([present for _, present in split], dtype=bool).reshape(n, m)
        wide = {key: _per_answer(value, n, m) for key, value in columns.items() if key != "completion_ids"}
        if prompts is not None:
            wide["prompts"] = [unask(prompt, m) for prompt in prompts for _ in range(m)]
        if (log := columns.get("log_extra")) is not None:
            wide["log_extra"] = lambda column, values: log(column, nested(values, n, m))
        rewards_BMD = self.score(answers, wide).reshape(n, m, -1)
        warn_of_silence(rewards_BMD, present_BM, self.names, self._told)
        return rewards_BMD, present_BM

    def score(self, answers: list, columns: dict) -> np.ndarray:
        """Return what every function gives n single answers, (n, D). A subclass may score in another way."""
        rewards_ND = np.empty((len(answers), len(self.functions)))
        waiting = []
        for d, function in enumerate(self.functions):
            result = function(completions=answers, **columns)
            if inspect.isawaitable(result):
                waiting.append((d, result))
            else:
                rewards_ND[:, d] = self._checked(d, result, len(answers))
        for d, result in zip([d for d, _ in waiting], run_all([result for _, result in waiting]), strict=True):
            rewards_ND[:, d] = self._checked(d, result, len(answers))
        return rewards_ND

    def one(self, completion, prompt=None, **columns) -> dict[str, float]:
        """Return the score of a single rollout: {"score": R(S), "answers": how many, "best_NAME": ...}.

        For engines that score one rollout at a time; the columns hold this rollout's values. A best is NaN
        where the function does not apply; the score is NaN where none does.
        """
        prompts = None if prompt is None else [prompt]
        rewards_BMD, present_BM = self.vectors(prompts, [completion], **{key: [v] for key, v in columns.items()})
        best_D = best_of(rewards_BMD, present_BM, self.floor)[0]
        return {
            "score": float(self._totals(rewards_BMD, present_BM)[0]),
            "answers": float(present_BM.sum()),
            **{f"best_{name}": float(best) for name, best in zip(self.names, best_D, strict=True)},
        }

    def verl(
        self, data_source=None, solution_str="", ground_truth=None, extra_info=None, **_
    ) -> dict[str, float | None]:
        """Return `one` of verl's arguments: `compute_score = SetReward([f, g]).verl` in its reward file.

        A best is None where the function does not apply, and the score is `floor` where none does: verl leaves None
        out of its metrics, and NaN would reach the gradient. LabError if `VPODataset` asked for another number of
        answers; it also brings the prompt that the functions read.
        """
        told = extra_info or {}
        if told.get("candidates", self.candidates) != self.candidates:
            raise LabError(
                f"the prompt asks for {told['candidates']} answers, SetReward scores {self.candidates}: "
                "give data.candidates and SetReward the same number"
            )
        columns = {"data_source": data_source, "ground_truth": ground_truth, "extra_info": extra_info}
        scores = self.one(solution_str, told.get("prompt"), **columns)
        known = {key: None if math.isnan(value) else value for key, value in scores.items()}
        return known if known["score"] is not None else {**known, "score": self.floor}

    def _totals(self, rewards_BMD: np.ndarray, present_BM: np.ndarray) -> np.ndarray:
        parts_BD = set_reward_parts(rewards_BMD, present_BM, self.weights_KD, self.scale_D, self.floor)
        return np.where(np.isnan(parts_BD).all(axis=1), np.nan, np.nansum(parts_BD * self.scale_D, axis=1))

    def _checked(self, d: int, result, n: int) -> np.ndarray:
        return checked_rewards(result, self.names[d], n, self.floor, self._told)


def set_reward_parts(
    rewards_BMD: np.ndarray,
    present_BM: np.ndarray,
    weights_KD: np.ndarray,
    scale_D: np.ndarray | None = None,
    floor: float = 0.0,
) -> np.ndarray:
    """Return what every objective contributed to the set reward: (B, D), with R(S) = nansum(parts * scale_D).

    The maximum runs over the answers that are present, so a missing answer never beats a bad one; a rollout
    without any is worth one answer that earned `floor` everywhere. An objective that is NaN for all answers of
    a rollout was not asked: its part is NaN, and the weights are renormalised over the others. A single NaN
    among numbers is worth `floor`. `weights_KD` may be (B, K, D), too. Source: arXiv 2605.22817.
    """
    rewards_BMD, present_BM = np.asarray(rewards_BMD, dtype=float), np.asarray(present_BM, dtype=bool)
    scale_D = np.ones(rewards_BMD.shape[-1]) if scale_D is None else np.asarray(scale_D, dtype=float)
    nan_BMD = np.isnan(rewards_BMD)
    asked_BD = ~nan_BMD.all(axis=1)
    empty_B = ~present_BM.any(axis=1)
    filled_BMD = np.where(nan_BMD | empty_B[:, None, None], floor, rewards_BMD)
    weights_BKD = restrict(np.asarray(weights_KD, dtype=float), asked_BD[:, None])
    utility_BMK = _product(filled_BMD * scale_D, np.swapaxes(weights_BKD, -1, -2))
    utility_BMK[~(present_BM | empty_B[:, None])] = -np.inf
    wins_BMK = np.arange(rewards_BMD.shape[1])[:, None] == utility_BMK.argmax(axis=1)[:, None]
    share_BMD = _product(wins_BMK.astype(float), weights_BKD) / weights_BKD.shape[-2]
    return np.where(asked_BD, (share_BMD * filled_BMD).sum(axis=1), np.nan)


def _product(values_BMX: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """values @ matrix, (X, Y) or (B, X, Y). One large product is many times as fast as B small ones."""
    if matrix.ndim > 2:
        return values_BMX @ matrix
    return (values_BMX.reshape(-1, values_BMX.shape[-1]) @ matrix).reshape(*values_BMX.shape[:-1], -1)


# --- Prompts and completions: texts, or lists of messages -----------------------------------------


def ask(prompt, m: int):
    """Return the prompt (text or messages) with the request for `m` answers at its end; with m = 1 as it is."""
    if m == 1:
        return prompt
    if isinstance(prompt, str):
        return prompt + _request(m)
    *earlier, last = prompt
    if isinstance(last["content"], list):
        return [*earlier, {**last, "content": [*last["content"], {"type": "text", "text": _request(m)}]}]
    return [*earlier, {**last, "content": last["content"] + _request(m)}]


def unask(prompt, m: int):
    """Return the prompt without what `ask` added: what a reward function reads."""
    if m == 1 or not prompt:
        return prompt
    if isinstance(prompt, str):
        return prompt.removesuffix(_request(m))
    *earlier, last = prompt
    content = last["content"]
    if isinstance(content, str):
        return [*earlier, {**last, "content": content.removesuffix(_request(m))}]
    *blocks, end = content or [{}]
    text = (end.get("text") or "").removesuffix(_request(m))
    if text == end.get("text"):
        return prompt
    return [*earlier, {**last, "content": [*blocks, {**end, "text": text}] if text else blocks}]


def text_of(completion) -> str:
    """Return the text of a completion: itself, or the content of the last assistant message."""
    if isinstance(completion, str):
        return completion
    content = completion[_last_turn(completion)].get("content") if completion else None
    if isinstance(content, list):
        return "".join(block.get("text") or "" for block in content if isinstance(block, dict))
    return content or ""


def split_answers(completion, m: int, tail: int | None = None) -> tuple[list, list[bool]]:
    """Return the `m` answers of a completion, in its own shape (text or messages), and which are present.

    A missing answer is stood in for by the first that is present, or by the whole text. `tail`: as in
    `SetReward`; without it every answer that `split_chain` reads is present.
    """
    text = text_of(completion)
    answers = split_chain(text, m)
    present = [bool(answer) for answer in answers]
    if tail is not None and m > 1 and any(present):
        last, behind = tail_of(text, m)
        if behind is None:
            present[last - 1] = False
        elif len(behind.strip()) > tail:
            present = [False] * m
    stand_in = next((answer for answer in answers if answer), text)
    return [_like(completion, answer or stand_in) for answer in answers], present


def _request(m: int) -> str:
    return "\n" + MANY_ANSWERS.format(m=m)


def _last_turn(messages: list[dict]) -> int:
    turns = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
    return turns[-1] if turns else len(messages) - 1


def _like(completion, text: str):
    if isinstance(completion, str) or not completion:
        return text if isinstance(completion, str) else [{"role": "assistant", "content": text}]
    last = _last_turn(completion)
    blocks = isinstance(completion[last].get("content"), list)
    content = [{"type": "text", "text": text}] if blocks else text
    return [*completion[:last], {**completion[last], "content": content}]


# --- What `SetReward` and `VPOTrainer` share ------------------------------------------------------


def check_candidates(candidates) -> int:
    """Return `candidates` as an int; LabError unless it is a whole number of at least 1."""
    if isinstance(candidates, bool) or not isinstance(candidates, int | np.integer) or candidates < 1:
        raise LabError(f"candidates = {candidates!r:.40}: a rollout holds a whole number of answers, 1 or more")
    return int(candidates)


def names_of(functions: Sequence) -> list[str]:
    """Return a name per reward function, unique: of the function, or of the class of a callable object."""
    names: list[str] = []
    for function in functions:
        while hasattr(function, "func") and not hasattr(function, "__name__"):  # functools.partial
            function = function.func
        name = getattr(function, "__name__", type(function).__name__)
        repeats = sum(known == name or known.startswith(f"{name}_") for known in names)
        names.append(f"{name}_{repeats + 1}" if name in names else name)
    return names


def checked_rewards(result, name: str, n: int, floor: float, told: set[str]) -> np.ndarray:
    """Return what a reward function gave as (n,) floats, NaN for None. Warns once of a reward below `floor`.

    LabError that names the function, unless it gave `n` finite numbers or None.
    """
    if result is None:
        raise LabError(f"reward function {name!r} returned None: return a list with a number (or None) per completion")
    try:
        values = list(result)
        rewards_N = np.array([math.nan if value is None else float(value) for value in values])
    except (TypeError, ValueError):
        raise LabError(
            f"reward function {name!r} returned {result!r:.60}: return a list of numbers (or None)"
        ) from None
    if len(values) != n:
        raise LabError(f"reward function {name!r} returned {len(values)} rewards for {n} completions (single answers)")
    if np.isinf(rewards_N).any():
        raise LabError(f"reward function {name!r} returned infinity: rewards must be finite, best in [0, 1]")
    if (rewards_N < floor).any():
        advice = "a rollout without an answer then beats a bad one; set floor to the least reward"
        _tell(told, f"reward function {name!r} returns less than floor={floor:g}: {advice}")
    return rewards_N


def warn_of_silence(
    rewards_BMD: np.ndarray, present_BM: np.ndarray, names: Sequence[str], told: set[str], group_size: int = 1
) -> None:
    """Warn, once each, of a batch without any answer and of a function that gave no number in a whole batch.

    One rollout may well be without answers, and one group (the rollouts of a prompt) without an objective.
    """
    n, m = present_BM.shape
    if n > 1 and not present_BM.any():
        advice = f"ask for them (vpo_lab.ask(prompt, {m})), leave room for {m}, or warm the model up on the format"
        _tell(told, f"no completion of a batch holds a whole answer in tags <answer_1> ... <answer_{m}>: {advice}")
    for name, silent in zip(names, np.isnan(rewards_BMD).all(axis=(0, 1)), strict=True):
        if silent and n > group_size:
            _tell(told, f"reward function {name!r} returned None or NaN for a whole batch: it does not count there")


def _tell(told: set[str], line: str) -> None:
    if line not in told:
        told.add(line)
        warnings.warn(line, stacklevel=4)


def objective_metrics(rewards_BMD: np.ndarray, present_BM: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return what to log: `objective/NAME/mean` and `/best` over the answers present, and `answers` per rollout.

    An objective that no rollout of the batch was asked for is left out.
    """
    metrics = {"answers": float(present_BM.sum(axis=1).mean())}
    seen_BMD = np.where(present_BM[..., None], rewards_BMD, np.nan)
    for d, name in enumerate(names):
        seen_BM = seen_BMD[:, :, d]
        if not np.isnan(seen_BM).all():
            rows_BM = seen_BM[~np.isnan(seen_BM).all(axis=1)]
            metrics[f"objective/{name}/mean"] = float(np.nanmean(seen_BM))
            metrics[f"objective/{name}/best"] = float(np.nanmax(rows_BM, axis=1).mean())
    return metrics


def best_of(rewards_BMD: np.ndarray, present_BM: np.ndarray, floor: float) -> np.ndarray:
    """Return the best reward among the answers present, (B, D): `floor` without any, NaN where not asked."""
    asked_BD = ~np.isnan(rewards_BMD).all(axis=1)
    earned_BMD = np.where(np.isnan(rewards_BMD), floor, rewards_BMD)
    best_BD = np.where(present_BM[..., None], earned_BMD, -np.inf).max(axis=1)
    return np.where(asked_BD, np.where(np.isneginf(best_BD), floor, best_BD), np.nan)


def nested(values, n: int, m: int):
    """Return n * m values of answers as n lists of m: a row per rollout, as the engine's table has them."""
    values = list(values)
    return [values[b * m : (b + 1) * m] for b in range(n)] if len(values) == n * m else values


def _per_answer(value, n: int, m: int):
    if isinstance(value, list | tuple | np.ndarray) and len(value) == n:
        return [item for item in value for _ in range(m)]
    return value


def run_all(waiting: list) -> list:
    """Await all at once and return their results, in a thread of its own: a notebook runs a loop in this one."""
    if not waiting:
        return []

    async def everything():
        return await asyncio.gather(*waiting)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, everything()).result()
