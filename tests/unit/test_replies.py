"""Replies of a real model side by side: what is kept of a run, the page made of it, and its world in the explorer."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from vpo_lab.course.page import write_explorer
from vpo_lab.course.replies import save_replies, write_replies
from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_json
from vpo_lab.runs import Run
from vpo_lab.search.pool import Pool
from vpo_lab.tasks import get_task

ROOT = Path(__file__).resolve().parents[2]
TASK = "tiny_judges"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run with pools for three requests: SFT and GRPO give twelve single answers, VPO four sets of three."""
    run, task = Run(tmp_path_factory.mktemp("run")), get_task(TASK)
    rows, rng = task.load(None, "test")[:3], np.random.default_rng(0)
    for name, m in (("sft", 1), ("grpo", 1), ("vpo", 3)):
        answers = [[task.demonstrations(row, m, rng) for _ in range(12 // m)] for row in rows]
        if name == "grpo":  # one answer for all
            answers = [[chains[0]] * 12 for chains in answers]
        flat = [answer for chains in answers for chain in chains for answer in chain]
        rewards = np.asarray(task.score(flat, [row for row in rows for _ in range(12)]), dtype=float)
        shape = (3, 12 // m, m, len(task.objectives))
        ids = tuple(row["id"] for row in rows)
        tokens = np.ones(shape[:2], dtype=int)
        Pool(name, task.name, task.objectives, ids, answers, rewards.reshape(shape), tokens).save(run.pool(name))
    return run


def test_the_file_keeps_the_first_candidates_with_their_rewards_and_the_request(run, tmp_path):
    ids = [row["id"] for row in get_task(TASK).load(None, "test")[:3]][::-2]
    found = read_json(save_replies([run], ids, tmp_path / "replies.json"))
    pool = Pool.load(run.pool("vpo"))
    assert [request["id"] for request in found["requests"]] == ids
    for request in found["requests"]:
        n = pool.ids.index(request["id"])
        assert {name: len(one["answers"]) for name, one in request["sets"].items()} == {"sft": 12, "grpo": 12, "vpo": 3}
        assert request["sets"]["vpo"]["answers"] == pool.answers[n][0]
        assert np.allclose(request["sets"]["vpo"]["rewards"], pool.rewards_NCMD[n, 0], atol=1e-4)
        assert request["text"]


def test_equal_replies_are_counted_on_the_page(run, tmp_path):
    saved = save_replies([run], [Pool.load(run.pool("grpo")).ids[0]], tmp_path / "replies.json")
    page = write_replies(saved, tmp_path / "replies.md").read_text(encoding="utf-8")
    grpo = page[page.index("|  | GRPO |") : page.index("|  | VPO |")]
    assert grpo.count("12 ×") == 1 and grpo.count(" × |") == 1
    means, told = (
        Pool.load(run.pool("vpo")).scalar_NCM[:, :, 0].mean(),
        re.search(r"^\| VPO \| (\.?[\d.]+) ", page, re.MULTILINE),
    )
    assert float(told[1]) == pytest.approx(means, abs=0.006)


def test_what_a_model_wrote_cannot_break_the_page(run, tmp_path):
    saved = save_replies([run], [Pool.load(run.pool("grpo")).ids[0]], tmp_path / "replies.json")
    found = read_json(saved)
    found["requests"][0]["sets"]["vpo"]["answers"] = ["a | b\n# c", "<script>", ""]
    write_json(saved, found)
    page = write_replies(saved, tmp_path / "replies.md").read_text(encoding="utf-8")
    assert "a \\| b \\# c" in page and "<script>" not in page and "*no reply*" in page


def test_a_request_that_the_pools_do_not_hold_is_refused_by_name(run, tmp_path):
    with pytest.raises(LabError, match="request-9"):
        save_replies([run], ["request-9"], tmp_path / "replies.json")
    with pytest.raises(LabError, match="no pool"):
        save_replies([Run(tmp_path / "empty")], ["request-9"], tmp_path / "replies.json")


def test_policies_of_a_run_with_a_price_on_kl_stand_beside_the_others(run, tmp_path):
    dear = Run(tmp_path / "dear")
    write_json(dear.manifest, {"settings": {"rl.kl": 0.03}})
    for name in ("sft", "vpo"):
        Pool.load(run.pool(name)).save(dear.pool(name))
    saved = save_replies([run, dear], [Pool.load(run.pool("grpo")).ids[0]], tmp_path / "replies.json")
    assert list(read_json(saved)["requests"][0]["sets"]) == ["sft", "grpo", "vpo", "vpo_kl0.03"]
    page = write_explorer(ROOT / "results" / "tiny", tmp_path, tmp_path / "page.html", replies=saved)
    assert '"name":"VPO","apart":true' in page.read_text() and '"name":"VPO, KL 0.03","apart":false' in page.read_text()


def test_the_explorer_shows_them_without_the_rows_of_the_task(run, tmp_path):
    saved = save_replies([run], [Pool.load(run.pool("grpo")).ids[0]], tmp_path / "replies.json")
    page = write_explorer(ROOT / "results" / "tiny", tmp_path, tmp_path / "page.html", replies=saved)
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)[1]
    worlds = json.loads(text)["worlds"]
    world = next(one for one in worlds if "real model" in one["name"])
    assert [len(one["answers"]) for one in world["requests"][0]["sets"]] == [3, 3, 3]
    assert world["requests"][0]["title"] == read_json(saved)["requests"][0]["text"]
