"""What the warmup imitates when a chain is to be packed from the policy's own answers.

A chain has to teach the format and that answers differ, but no mistakes. A row has one gold. With
`sft.chains` "task" the task fills the chain (ToolRL: golds with one slip); with "own" distinct samples
of the policy itself do: no mistake is in them that it would not make. A model that knows no format learns it
from golds first (`sft.gold_steps`). A chat model can follow the prompt and answers in its own words: with 0 gold
steps it imitates its own well-formed answers, single ones too, and keeps its way to think.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from vpo_lab.chains import join_chain
from vpo_lab.config import Profile
from vpo_lab.errors import LabError
from vpo_lab.files import atomic_folder, read_json, write_bytes, write_json
from vpo_lab.processes import gather, print0, rank, wait_for_all, world_size
from vpo_lab.runs import LOG, Run, Stage
from vpo_lab.tasks import Task, get_task
from vpo_lab.train.policy import load_policy
from vpo_lab.train.prompts import load_rows, render_prompt, sample_goal, window
from vpo_lab.train.sampling import sample, shown
from vpo_lab.train.stage import _common_arguments, _on_one_gpu, _split, run_stage, with_less_memory

SINGLE = "sft_single"  # the stage within the warmup that teaches the format

SAMPLES = "own_samples.json.gz"

MICRO = "sft.micro_rows"

# (row, n, rng) -> n answers to imitate.
Demonstrate = Callable[[dict, int, np.random.Generator], list[str]]


def own_demonstrations(profile: Profile, task: Task, policy: Path | None, path: Path, seed: int) -> Demonstrate:
    """Make chains of samples drawn from `policy` (None: the untouched model), which are kept in the file `path`.

    After steps on golds, a gold is in every chain, and a single answer is the gold. Without, it shows the policy's own
    answers, see `own_answers`. LabError if fewer than `sft.least_share` of the rows have enough of them for a chain.
    """
    if not path.exists():
        _sample_rows(profile, task, policy, path, seed)
    samples, sft = cast(dict[str, list[str]], read_json(path)), profile.sft
    needed = profile.rl.candidates - (1 if sft.gold_steps else 0)
    share = np.mean([len(texts) >= needed for texts in samples.values()])
    print0(f"{share:.0%} of the rows have enough distinct own samples for a chain of {profile.rl.candidates}")
    if share < sft.least_share:
        raise LabError(
            f"{path}: only {share:.0%} of the rows have {needed} distinct, well-formed own samples; sft.least_share "
            f"wants {sft.least_share:.0%}: raise sft.own_samples or rl.temperature, let it learn the format from "
            "golds first (sft.gold_steps=30), or go on with sft.least_share=0, in another --run-dir"
        )
    if sft.gold_steps:
        return lambda row, n, rng: pack_chain(best_answer(row), samples[row["id"]], n, rng)
    # A chain that repeats an answer would teach to repeat; other rows show how it is done, unless there may be none.
    fill = sft.least_share == 0
    return lambda row, n, rng: own_answers(best_answer(row), samples[row["id"]], n, rng, fill)


def _sample_rows(profile: Profile, task: Task, policy: Path | None, path: Path, seed: int) -> None:
    """Draw `sft.own_samples` single answers to every row and keep, by row id, those that may be shown."""
    model, tokenizer = load_policy(profile, task, policy, seed)
    rows = load_rows(profile, task, "train", tokenizer, limit=profile.sft.train_rows)
    # Its seed is neither that of a training nor of an evaluation.
    title, stage = "own samples for the warmup", Stage(path.parent)
    drawn = draw_answers(profile, model, tokenizer, rows, profile.sft.own_samples, title, seed + 2_000_003, stage)
    found = fit_to_show(task, [row for row, _ in drawn], [texts for _, texts in drawn])
    ended = [bool(text) for _, texts in drawn for text in texts]
    fit = [text.strip() in kept for (_, texts), (_, kept) in zip(drawn, found, strict=True) for text in texts]
    samples, ended, fit = dict(gather(found)[0]), gather(ended)[0], gather(fit)[0]
    if rank() == 0:
        write_json(path, samples)
    print0(f"own samples: of {len(ended)}, {np.mean(ended):.0%} came to an end and {np.mean(fit):.0%} are well formed")
    wait_for_all()


def draw_answers(
    profile: Profile, model, tokenizer, rows: list[dict], n: int, title: str, seed: int, stage: Stage
) -> list[tuple[dict, list[str]]]:
    """Draw `n` single answers to each row of this process, which shares the rows with the others: (row, texts).

    "" stands for an answer that did not come to an end. `stage` is the folder in which a sign of life is left.
    """
    mine, limit = rows[rank() :: world_size()], profile.policy.max_answer_tokens
    prompts = [render_prompt(tokenizer, row["prompt"], 1) for row in mine for _ in range(n)]
    with shown(title, len(prompts), stage) as tell:
        texts, lengths = sample(
            model,
            tokenizer,
            prompts,
            max_new_tokens=limit,
            temperature=profile.rl.temperature,
            top_p=1.0,
            seed=seed + rank(),
            batch=profile.evaluation.batch,
            on_progress=tell,
        )
    ended = [text if length < limit else "" for text, length in zip(texts, lengths, strict=True)]
    return [(row, ended[i * n : (i + 1) * n]) for i, row in enumerate(mine)]


def best_answer(row: dict) -> str:
    """Return the answer of a row that a warmup shows: "answer" where the gold is none, as with tests of a program."""
    return row.get("answer", row["gold"])


def fit_to_show(task: Task, rows: list[dict], samples: list[list[str]]) -> list[tuple[str, list[str]]]:
    """Choose, for each row's id, the distinct samples that may stand beside the gold in a chain, those with other
    rewards first.

    Whole and well formed (as good as the gold in the objective "format", where a task has it), worth
    something, and without a tag that would cut the chain in two. All are scored in one call: a sandbox uses all cores.
    """
    texts = [list(dict.fromkeys(text.strip() for text in own)) for own in samples]
    shown = [(row, [best_answer(row), *own]) for row, own in zip(rows, texts, strict=True)]
    rewards_nD = iter(task.score([text for _, own in shown for text in own], [row for row, own in shown for _ in own]))
    return [(row["id"], _fit_to_show(task, own, [next(rewards_nD) for _ in own])) for row, own in shown]


def _fit_to_show(task: Task, texts: list[str], rewards_nD: list[np.ndarray]) -> list[str]:
    """Choose among the samples of one row, the first of which is its gold."""
    form = task.objectives.index("format") if "format" in task.objectives else None
    gold, best_D = texts[0], rewards_nD[0]
    if form is not None and np.isnan(best_D[form]):  # not asked
        form = None
    known, fresh, alike = {best_D.tobytes()}, [], []
    for text, rewards_D in zip(texts[1:], rewards_nD[1:], strict=True):
        formed = np.nansum(rewards_D) > 0 if form is None else rewards_D[form] >= best_D[form]
        if not text or not formed or text == gold.strip() or "<answer_" in text:
            continue
        (alike if rewards_D.tobytes() in known else fresh).append(text)
        known.add(rewards_D.tobytes())
    return [*fresh, *alike]


def pack_chain(gold: str, samples: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """Return `n` answers, shuffled: the gold and the first samples; the gold again where they are too few."""
    answers = [gold, *samples][:n]
    answers += [gold] * (n - len(answers))
    return [answers[i] for i in rng.permutation(n)]


def own_answers(gold: str, samples: list[str], n: int, rng: np.random.Generator, fill: bool) -> list[str]:
    """Return `n` distinct own answers, shuffled, any of them for n = 1; the gold for a row that has none.

    [] where a chain would need more than there are; `fill` takes the gold for what is missing.
    """
    if n == 1:
        return [samples[rng.integers(len(samples))] if samples else gold]
    if len(samples) < n and not fill:
        return []
    answers = [*samples[:n], *[gold] * (n - len(samples))]
    return [answers[i] for i in rng.permutation(n)]


# --- Stage 1: SFT warmup ----------------------------------------------------------------------


def train_sft(profile: Profile, run: Run, seed: int, *, name: str = "sft") -> Path:
    """Teach the answer format, single and as a chain of M. Returns the folder of the policy.

    `name` is that of the stage in the run. Half of the rows ask for one answer, half for M; before
    chains are packed from the policy's own samples (`sft.chains`), it learns the format from golds alone, in
    a stage within the stage, for `sft.gold_steps`. With 0 `sft.steps` the policy is the untouched model. Finished
    work is not repeated; a killed stage continues from its last whole checkpoint. LabError if another process trains
    the stage, or too few rows have samples of their own.
    """
    stage, task = run.stage(name), get_task(profile.task)
    if stage.is_finished():
        return stage.policy
    with stage.lock():
        start, demonstrate = None, task.demonstrations
        if not profile.sft.steps:
            return _untouched(profile, task, stage, seed)
        if profile.sft.chains == "own":
            if profile.sft.gold_steps:
                single = stage.stage(SINGLE)
                if not single.has_policy():
                    golds = (single, profile.sft.gold_steps, None, seed, demonstrate, False)
                    with_less_memory(profile, MICRO, lambda profile: _imitate(profile, task, *golds))
                start = single.policy
            demonstrate = own_demonstrations(profile, task, start, stage / SAMPLES, seed)
        shown = (stage, profile.sft.steps, start, seed, demonstrate)
        return with_less_memory(profile, MICRO, lambda profile: _imitate(profile, task, *shown))


def _untouched(profile: Profile, task: Task, stage: Stage, seed: int) -> Path:
    """Save the model as it is, with an adapter that changes nothing yet, as the policy of the stage."""
    model, tokenizer = load_policy(profile, task, None, seed)
    if rank() == 0:
        with atomic_folder(stage.policy) as folder:
            model.save_pretrained(str(folder))
            tokenizer.save_pretrained(str(folder))
        write_bytes(stage / LOG, b"")
    wait_for_all()
    print0("no warmup (sft.steps = 0): RL starts from the untouched model")
    return stage.policy


def _imitate(
    profile: Profile,
    task: Task,
    stage: Stage,
    steps: int,
    start: Path | None,
    seed: int,
    demonstrate: Demonstrate,
    chains: bool = True,
) -> Path:
    """SFT from the policy in `start` (None: the untrained one) on demonstrations."""
    model, tokenizer = load_policy(profile, task, start, seed)

    from trl import SFTConfig, SFTTrainer

    sft = profile.sft
    args = SFTConfig(
        **_common_arguments(profile, stage, seed),
        **_split("sft.batch_rows", sft.batch_rows, sft.micro_rows),
        max_steps=steps,
        learning_rate=sft.learning_rate,
        lr_scheduler_type=sft.schedule,
        warmup_steps=int(sft.warmup_share * steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=None,
        packing=False,
        padding_free=False,  # Unsloth's default would map the rows anew, in processes beside a running vLLM
        logging_steps=max(1, steps // 70),
        save_steps=max(2, steps // 7),
    )
    trainer = SFTTrainer(
        model=model,
        args=_on_one_gpu(args),
        processing_class=tokenizer,
        train_dataset=_sft_dataset(profile, tokenizer, task, steps, demonstrate, seed, chains),
    )
    return run_stage(trainer, stage, steps, "SFT warmup" if chains else "SFT on single answers")


def _sft_dataset(
    profile: Profile, tokenizer, task: Task, steps: int, demonstrate: Demonstrate, seed: int, chains: bool = True
):
    """Prompt and demonstrations, tokenized apart as generation will meet them; loss on the answer.

    A quarter of the single answers stand under a goal that the demonstration does not heed: the
    start can read such a prompt, and what it means is left to `goal_conditioned`.
    """
    from datasets import Dataset

    rng, m = np.random.default_rng([seed, 1]), profile.rl.candidates
    rows = load_rows(profile, task, "train", tokenizer, limit=profile.sft.train_rows)
    sizes, longest = (1, m) if chains else (1, 1), window(profile, m)
    # Every step draws rows anew from this many; a demonstration is seldom met twice.
    wanted = max(len(rows), min(steps * profile.sft.batch_rows, 4 * len(rows)))
    examples = []
    for number in range(wanted):
        row, answers = rows[number % len(rows)], sizes[(number + number // len(rows)) % 2]
        goal = sample_goal(task, rng) if answers == 1 and rng.random() < 0.25 else None
        text = render_prompt(tokenizer, row["prompt"], answers, goal)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        shown = demonstrate(row, answers, rng)
        if not shown:  # the row has no chain to show
            continue
        completion = tokenizer(join_chain(shown) + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        if len(prompt) + len(completion) > longest:  # it would be cut, and then teach an end where there is none
            continue
        examples.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})
    return Dataset.from_list(examples)
