"""Read EUREQA (arXiv 2311.09702): chains of masked entities, of which only the last one is shown.

The rows come from huggingface.co/datasets/vincentleebang/EUREQA, or your own copy. The data set has no licence tag: the
project ships no row of it, and you should not pass on any.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.files import cache_folder
from vpo_lab.show.explorer import one_line
from vpo_lab.tasks import each
from vpo_lab.tasks.download import OWN_COPY, fetch_from_hub, own_files, read_records
from vpo_lab.tasks.eureqa.reward import LETTERS, MEANINGS, OBJECTIVES, parse_answer, score

DATASET, COMMIT = "vincentleebang/EUREQA", "c045317"
PARTS = ("questions_hard_5", "questions_normal_5", *(f"questions_hard_{depth}" for depth in range(1, 5)))
MIXED_SEED = 0
WANTED = f"{OWN_COPY}, in the published format"


class Eureqa:
    """Offer EUREQA's riddles as a task. A row's gold is the JSON list of its masked entities' names.

    A row also holds `answer`, a right one. Riddles with fewer than five masks leave the rest not asked (NaN).
    """

    name = "eureqa"
    objectives = OBJECTIVES
    meanings = MEANINGS
    about = "A wrong entity leads the rest of the chain astray. The last one of the chain is shown, A is asked for."

    score = staticmethod(each(score))

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """Return the rows of a split.

        "train" and "test" as in the paper: hard_5 shuffled with seed 0 and cut in halves; train is normal_5 and the
        first half (1,109 rows), test the second (682). Or the name of a part, such as "questions_hard_3".
        path: a folder with the published files, or None: downloaded into the cache. A file is read as a part of its
        own: whole if a part is asked for, else cut in halves. LabError for a wrong split, file or download.
        """
        if split not in ("train", "test", *PARTS):
            raise LabError(f"unknown split {split!r} of eureqa: choose 'train', 'test' or one of {', '.join(PARTS)}")
        if split in PARTS:
            return _part(path, split)
        hard = _part(path, PARTS[0])
        order, half = np.random.default_rng(MIXED_SEED).permutation(len(hard)), len(hard) // 2
        if split == "test":
            return [hard[i] for i in order[half:]]
        normal = [] if path and Path(path).expanduser().is_file() else _part(path, PARTS[1])
        return [*normal, *(hard[i] for i in order[:half])]

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` answers that a warmup may imitate, distinct where they can be: the gold, and slips, shuffled.

        A slip has one entity too few, or two of them in each other's place.
        """
        names = json.loads(row["gold"])
        slips = [[*names[:i], "", *names[i + 1 :]] for i in range(len(names))]
        for i in range(len(names) - 1):
            slips.append([*names[:i], names[i + 1], names[i], *names[i + 2 :]])
        texts = [row["answer"], *(answer_text(slips[i]) for i in rng.permutation(len(slips)))]
        chosen = (list(dict.fromkeys(texts)) * n)[:n]
        return [chosen[i] for i in rng.permutation(n)]

    def short(self, answer: str) -> str:
        """Return an answer in one line."""
        return one_line(" ← ".join(name or "?" for name in parse_answer(answer)))

    def title(self, row: dict) -> str:
        """Return what is asked for and the answer in one line."""
        return one_line(f"{row['asked']} ({json.loads(row['gold'])[0]})")


def answer_text(names: Sequence[str]) -> str:
    """Write names in the tags that the prompt asks for; those that are empty are left out."""
    tagged = zip(LETTERS, names, strict=False)
    return "\n".join(f"<entity_{letter}>{name}</entity_{letter}>" for letter, name in tagged if name)


def prompt_of(sentences: Sequence[str], masks: Sequence[str]) -> list[dict]:
    """Return the messages that show a riddle and say which mask belongs in which tag."""
    tags = "\n".join(
        f"<entity_{letter}>name of {mask}</entity_{letter}>" for letter, mask in zip(LETTERS, masks, strict=False)
    )
    content = (
        "In this story the names are masked; only the last one is shown. Find out who or what the others are, step by "
        "step from the last one.\n\n" + "\n".join(sentences) + "\n\n"
        "Output format: for each mask its name as in Wikipedia, with underscores (Robert_Rodriguez), and nothing "
        f"else.\n{tags}"
    )
    return [{"role": "user", "content": content}]


# --- Reading ----------------------------------------------------------------------------------


def _part(path: str | None, name: str) -> list[dict]:
    """Return the rows of one published part, in the order of the file."""
    if path:
        files = own_files(path, name)
    else:
        files = fetch_from_hub(DATASET, [f"data/{name}-*.parquet"], cache_folder("eureqa"), COMMIT)
    rows = [
        _row(record, re.sub(r"(-\d+-of-\d+)?\..*", "", file.name), f"{file}, {n}")
        for file in files
        for n, record in enumerate(read_records(file), 1)
    ]
    if not rows:
        raise LabError(f"{files[0]} holds no rows: {WANTED}")
    return rows


def _row(record: Any, part: str, where: str) -> dict:
    """Return a record in the lab's form; LabError if it is not in the published one."""
    try:
        sentences, entities, masks = (list(record[key]) for key in ("question", "entities", "entity_masks"))
        name = f"eureqa-{part}-{int(record['idx'])}"
    except (KeyError, TypeError, ValueError) as error:
        raise LabError(f"{where}: no row of EUREQA ({type(error).__name__}: {error}): {WANTED}") from error
    if not all(isinstance(text, str) for text in (*sentences, *entities, *masks)):
        raise LabError(f"{where}: question, entities or entity_masks hold something that is no text: {WANTED}")
    if not 2 <= len(entities) == len(masks) <= len(LETTERS) + 1:
        raise LabError(f"{where}: {len(entities)} entities and {len(masks)} masks: {WANTED}")
    hidden = entities[:-1]
    return {
        "id": name,
        "prompt": prompt_of(sentences, masks[:-1]),
        "gold": json.dumps(hidden),
        "answer": answer_text(hidden),
        "asked": sentences[-1] if sentences else masks[0],
    }
