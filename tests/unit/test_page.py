"""docs/explorer.html: built from the committed results, one file that needs nothing else, the same bytes every time."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from vpo_lab.course.experiment import read_mazes
from vpo_lab.course.page import fill, take_picture, write_explorer, write_optima
from vpo_lab.errors import LabError
from vpo_lab.files import read_json
from vpo_lab.runs import Run
from vpo_lab.search.pool import Pool
from vpo_lab.show.explorer import explorer_data, make_world
from vpo_lab.tasks import get_task

ROOT = Path(__file__).resolve().parents[2]
RESULTS, EXPERIMENT = ROOT / "results" / "tiny", ROOT / "results" / "experiment"
CODE, OPTIMA, REPLIES = (ROOT / "results" / name for name in ("code", "optima.json", "replies.json"))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("page") / "explorer.html"
    return write_explorer(RESULTS, EXPERIMENT, out, CODE, OPTIMA, REPLIES).read_text(encoding="utf-8")


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_committed_page_is_what_the_command_builds(page):
    committed = (ROOT / "docs" / "explorer.html").read_text(encoding="utf-8")
    assert committed == page, "run `make explorer` and commit docs/explorer.html"


def test_the_page_is_small_and_loads_nothing(page):
    assert len(page.encode()) < 500_000
    assert "default-src 'none'" in page
    page = page.replace('<link rel="icon" href="data:,">', "").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|@import|url\(|<link|src=|\bfetch\(|\bimport\(", page)


def test_the_page_holds_the_saved_sets(page):
    mazes, code, judges, replies, calls = data_of(page)["worlds"]
    names = [one["name"] for one in calls["requests"][0]["sets"]]
    paths = [path for path in (RESULTS / "pools").iterdir() if path.name != "sft_chain.json.gz"]
    assert len(names) == len(set(names)) == len(paths)
    sft = Pool.load(Run(RESULTS).pool("sft"))
    for n, request in enumerate(calls["requests"]):
        assert request["sets"][0]["rewards"] == sft.rewards_NCMD[n].reshape(-1, 4)[:3].tolist()
    examples = read_mazes(EXPERIMENT)
    for request, sets in zip(mazes["requests"], examples.values(), strict=True):
        assert request["sets"][0]["answers"] == sets["sft"]["answers"]
        assert all(one["picture"].count("data-candidate") == 3 for one in request["sets"])
    examples = read_json(CODE / "examples.json")["tiny_code"]
    for request, sets in zip(code["requests"], examples.values(), strict=True):
        assert request["sets"][-1]["rewards"] == sets["vpo"]["rewards"]
    assert "No model wrote these" in judges["about"]
    for request, saved in zip(replies["requests"], read_json(REPLIES)["requests"], strict=True):
        assert request["sets"][1]["answers"] == saved["sets"]["grpo"]["answers"][:3]
        assert [one["name"] for one in request["sets"] if not one["apart"]] == ["SFT", "GRPO, KL 0.03", "VPO, KL 0.03"]
    for world in (mazes, code, judges, replies, calls):
        assert all(world["meanings"]) and len(world["meanings"]) == len(world["objectives"])


def test_three_sets_are_shown_at_first_and_the_last_is_vpo_beside_its_control(page):
    for world in data_of(page)["worlds"][:3]:
        for request in world["requests"]:
            names = [one["name"] for one in request["sets"]]
            assert names[:2] == ["SFT", "GRPO"] and names[2].startswith("best of set") and names[3].startswith("VPO")
            assert [one["apart"] for one in request["sets"]] == [False, False, True, False]


def test_the_first_request_starts_where_weights_matter(page):
    world = data_of(page)["worlds"][0]
    gold = world["objectives"].index("gold")
    best = {one["name"]: max(row[gold] for row in one["rewards"]) for one in world["requests"][0]["sets"]}
    assert world["start"] == "gold" and best["GRPO"] == 0 and max(best.values()) == best.popitem()[1] == 1


def test_the_sets_of_judges_are_drawn_from_the_optimum_and_scored_by_the_task(tmp_path):
    saved, drawn = read_json(OPTIMA), read_json(write_optima(tmp_path / "optima.json"))
    assert drawn == saved, "run `vpo-lab explorer --draw-optima`"
    task = get_task("tiny_judges")
    rows = {row["id"]: row for row in task.load(None, "test")}
    for row_id, sets in saved.items():
        for one in sets.values():
            scored = task.score(one["answers"], [rows[row_id]] * len(one["answers"]))
            assert np.allclose(scored, one["rewards"], atol=1e-4)


def test_no_text_of_a_model_can_end_the_script():
    attack = "</script><script>alert(1)</script><!-- \ud800"
    world = make_world([{attack: ([attack], [[1.0, 0.0]])}], ("a", "b"), [attack])
    page, plain = fill(explorer_data([world])), fill(explorer_data([]))
    assert page.count("</script>") == plain.count("</script>") and "<!--" not in page
    assert data_of(page)["worlds"][0]["requests"][0]["title"].startswith("</script><script>alert(1)")
    page.encode()


def test_without_mazes_the_page_shows_the_results_alone(tmp_path):
    page = write_explorer(RESULTS, tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(data_of(page)["worlds"]) == 1


def test_a_run_with_many_methods_shows_three_and_the_papers_vpo_last(tmp_path):
    (tmp_path / "pools").mkdir()
    for name, source in {
        "sft": "sft",
        "grpo": "grpo",
        "max_at_k": "grpo",
        "vpo": "vpo",
        "vpo_credit": "vpo",
    }.items():
        shutil.copy(Run(RESULTS).pool(source), Run(tmp_path).pool(name))
    page = write_explorer(tmp_path, tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    sets = data_of(page)["worlds"][0]["requests"][0]["sets"]
    assert [one["name"] for one in sets] == ["SFT", "GRPO", "max@k", "VPO, credit", "VPO"]
    assert [one["name"] for one in sets if not one["apart"]] == ["SFT", "GRPO", "VPO"]


def test_methods_without_a_pool_are_left_out_and_no_pool_is_one_line(tmp_path):
    with pytest.raises(LabError, match="pools"):
        write_explorer(tmp_path, EXPERIMENT, tmp_path / "page.html")
    (tmp_path / "pools").mkdir()
    shutil.copy(Run(RESULTS).pool("grpo"), tmp_path / "pools")
    page = write_explorer(tmp_path, tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    assert {len(request["sets"]) for world in data_of(page)["worlds"] for request in world["requests"]} == {1}


def test_without_a_browser_there_is_no_picture_and_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(LabError, match="chromium"):
        take_picture(ROOT / "docs" / "explorer.html", tmp_path / "page.png")
