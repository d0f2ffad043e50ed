"""Read MuSiQue (arXiv 2108.00573): questions of two to four hops over twenty numbered paragraphs.

The rows are those of MuSiQue-Ans by Trivedi et al., CC BY 4.0 (github.com/StonyBrookNLP/musique), downloaded from
huggingface.co/datasets/dgslibisey/MuSiQue, or your own copy. The project ships none of them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.files import cache_folder
from vpo_lab.processes import print0
from vpo_lab.show.explorer import one_line
from vpo_lab.tasks import each
from vpo_lab.tasks.download import OWN_COPY, fetch_from_hub, own_files, read_records
from vpo_lab.tasks.musique.reward import HOPS, MEANINGS, OBJECTIVES, parse_answer, score

DATASET = "dgslibisey/MuSiQue"
FILES = {"train": ("train",), "validation": ("dev", "validation", "test")}  # what their names contain
SPLITS = {"train": "train", "test": "validation", "released": "validation", "validation": "validation"}
TEST_ROWS, TEST_SEED = 300, 42
WANTED = f"{OWN_COPY}, in the official format of MuSiQue-Ans"


class MuSiQue:
    """Offer MuSiQue's questions as a task. Hops that a question lacks are not asked (NaN).

    A row's gold is the JSON that `reward.score` reads. It also holds `answer`, a right one, and `steps`, the answers
    to the question's steps.
    """

    name = "musique"
    objectives = OBJECTIVES
    meanings = MEANINGS
    about = "Each hop needs another paragraph; the last objective is the answer itself."
    absent = float("nan")

    def score(self, answers: Sequence[str], rows: Sequence[dict]) -> np.ndarray:
        """Return the rewards of n answers to n rows: (n, 5), see `reward.score`."""
        return each(partial(score, absent=self.absent))(answers, rows)

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """Return the rows of a split, in the order of the file.

        "train"; "test", 300 rows of the validation file, 100 for each number of hops (seed 42), as the paper has it;
        "released", its first 300, which the authors' script takes and most of which have two hops; "validation", all.
        path: a file in the official format (read whatever the split), a folder with such files, or None: downloaded
        into the cache. LabError for a wrong split, file or download.
        """
        if split not in SPLITS:
            raise LabError(f"unknown split {split!r} of {self.name}: choose one of {', '.join(SPLITS)}")
        rows = [_row(record, f"{file}, {n}") for file in _files(path, split) for n, record in _answerable(file)]
        if split == "test":
            rows = balanced(rows)
        return rows[:TEST_ROWS] if split == "released" else rows

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` answers that a warmup may imitate, distinct: the gold, and golds with one slip, shuffled.

        A slip is another paragraph instead of one that is wanted, or the answer to an earlier step.
        """
        gold = json.loads(row["gold"])
        others = [p for p in range(gold["paragraphs"]) if p not in gold["support"]]
        slips = [(gold["support"], answer) for answer in row["steps"][:-1] if answer != gold["answer"]]
        for hop in range(len(gold["support"])) if others else ():
            for other in rng.permutation(others)[:2].tolist():
                slips.append(([*gold["support"][:hop], other, *gold["support"][hop + 1 :]], gold["answer"]))
        texts = [row["answer"], *(answer_text(*slips[i]) for i in rng.permutation(len(slips)))]
        chosen = (list(dict.fromkeys(texts)) * n)[:n]
        return [chosen[i] for i in rng.permutation(n)]

    def short(self, answer: str) -> str:
        """Return an answer in one line."""
        cited, words = parse_answer(answer)
        return one_line(f"{cited} {words}")

    def title(self, row: dict) -> str:
        """Return the question of a row and its answer in one line."""
        return one_line(f"{row['question']} ({json.loads(row['gold'])['answer']})")


class MuSiQueAllHops(MuSiQue):
    """Offer the same with the authors' rule: hops that a question lacks count 1."""

    name = "musique_all_hops"
    about = f"As musique, but every question has {HOPS} hops: those that it lacks count 1."
    absent = 1.0


def answer_text(cited: Sequence[int], answer: str) -> str:
    """Write an answer in the format that the prompt asks for."""
    return f"<support>{', '.join(map(str, cited))}</support>\n<answer>{answer}</answer>"


def prompt_of(paragraphs: Sequence[dict], question: str) -> list[dict]:
    """Return the messages that show paragraphs, each with its number and title, and ask a question."""
    shown = "\n".join(f"[{p['idx']}] {p['title']}: {p['paragraph_text']}" for p in paragraphs)
    content = (
        "Answer a question that needs several of these paragraphs, each for one step.\n\n"
        f"{shown}\n\nQuestion: {question}\n\n"
        "Output format: the numbers of the paragraphs that you used, then a short answer.\n"
        "<support>numbers, separated by commas</support>\n<answer>the answer</answer>"
    )
    return [{"role": "user", "content": content}]


def balanced(rows: Sequence[dict], total: int = TEST_ROWS, seed: int = TEST_SEED) -> list[dict]:
    """Return as many rows of each number of hops, `total` together at most, in their order, drawn with a seed.

    Where one number of hops has too few rows, the others get no more.
    """
    by_hops = defaultdict(list)
    for position, row in enumerate(rows):
        by_hops[len(json.loads(row["gold"])["support"])].append(position)
    if not by_hops:
        return []
    count = min(total // len(by_hops), *map(len, by_hops.values()))
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(by_hops[hops], size=count, replace=False) for hops in sorted(by_hops)]
    return [rows[position] for position in np.sort(np.concatenate(chosen))]


# --- Reading ----------------------------------------------------------------------------------


def _files(path: str | None, split: str) -> list[Path]:
    kinds = FILES[SPLITS[split]]
    if path is None:
        patterns = [f"*{kind}*.jsonl" for kind in kinds]
        return fetch_from_hub(DATASET, patterns, cache_folder("musique"))
    files = own_files(path, "musique")
    if Path(path).expanduser().is_file():
        return files
    found = [file for file in files if any(kind in file.name for kind in kinds)]
    if not found:
        raise LabError(f"no file musique*{'* or *'.join(kinds)}* in {path}: check the path, or {OWN_COPY}")
    return found


def _answerable(file: Path) -> list[tuple[int, dict]]:
    """Return the records of a file, numbered from 1, without questions that their paragraphs cannot answer."""
    records = list(enumerate(read_records(file), 1))
    if not records:
        raise LabError(f"{file} holds no rows: {WANTED}")
    kept = [(n, record) for n, record in records if not isinstance(record, dict) or record.get("answerable", True)]
    if len(kept) < len(records):
        print0(f"{len(records) - len(kept)} of {len(records)} questions of {file.name} have no answer: left out")
    return kept


def _row(record: Any, where: str) -> dict:
    """Return a record in the lab's form; LabError if it is not in the official one."""
    try:
        name, question, answer = record["id"], record["question"], record["answer"]
        steps, paragraphs = record["question_decomposition"], record["paragraphs"]
        aliases = list(record.get("answer_aliases") or [])
        support = [int(step["paragraph_support_idx"]) for step in steps]
        answers = [str(step["answer"]) for step in steps]
        numbers = [int(p["idx"]) for p in paragraphs]
        prompt = prompt_of(paragraphs, question)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LabError(f"{where}: no row of MuSiQue ({type(error).__name__}: {error}): {WANTED}") from error
    if not all(isinstance(text, str) for text in (name, question, answer, *aliases)):
        raise LabError(f"{where}: id, question, answer or an alias is no text: {WANTED}")
    if not 2 <= len(support) <= HOPS or not set(support) <= set(numbers):
        raise LabError(f"{where}: {len(support)} steps with paragraphs {support} of {len(numbers)}: {WANTED}")
    gold = {"support": support, "answer": answer, "aliases": aliases, "paragraphs": len(numbers)}
    return {
        "id": name,
        "prompt": prompt,
        "gold": json.dumps(gold),
        "answer": answer_text(support, answer),
        "question": question,
        "steps": answers,
    }
