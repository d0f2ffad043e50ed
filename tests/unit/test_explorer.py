"""docs/explorer.html: built from the committed results, one file that needs nothing else, the same bytes every time."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from vpo_lab import cli
from vpo_lab.course.page import MARK, TEMPLATE, fill, page_data, write_explorer
from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_json
from vpo_lab.runs import pool_path
from vpo_lab.search.pool import Pool
from vpo_lab.weights import dirichlet_weights

ROOT = Path(__file__).resolve().parents[2]
RESULTS, EXPERIMENT = ROOT / "results" / "tiny", ROOT / "results" / "experiment"
PAGE = ROOT / "docs" / "explorer.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("page") / "explorer.html"
    return write_explorer(RESULTS, EXPERIMENT, out).read_text(encoding="utf-8")


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_committed_page_is_what_the_command_builds(page):
    assert PAGE.read_text(encoding="utf-8") == page, "run `make explorer` and commit docs/explorer.html"


def test_the_command_builds_the_same_bytes_again(page, tmp_path, monkeypatch, capsys):
    out = tmp_path / "again.html"
    monkeypatch.setattr(sys, "argv", ["vpo-lab", "explorer", "--results", str(RESULTS), "--experiment",
                                      str(EXPERIMENT), "--out", str(out)])  # fmt: skip
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0 and capsys.readouterr().out.strip() == str(out)
    assert out.read_bytes() == page.encode()


def test_the_page_is_small_and_loads_nothing(page):
    assert len(page.encode()) < 500_000
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")|src=", page)


class Controls(HTMLParser):
    """The ids that labels point to and those of the controls."""

    def __init__(self):
        super().__init__()
        self.labelled, self.controls = set(), set()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "label":
            self.labelled.add(attributes.get("for"))
        elif tag in ("select", "input"):
            self.controls.add(attributes["id"])


def test_every_control_of_the_template_has_a_label():
    found = Controls()
    found.feed(TEMPLATE.read_text(encoding="utf-8"))
    assert found.controls >= {"request", "alpha", "corners"} and found.controls <= found.labelled


def test_the_page_holds_the_saved_sets(page):
    data = data_of(page)
    mazes, calls = data["worlds"]
    pools = {name: Pool.load(pool_path(RESULTS, name)) for name in ("sft", "grpo", "vpo")}
    for n, request in enumerate(calls["requests"]):
        for shown, pool in zip(request["sets"], pools.values(), strict=True):
            assert shown["rewards"] == pool.rewards_NCMD[n].reshape(-1, 4)[:3].tolist()
    examples = read_json(EXPERIMENT / "examples.json")["maze"]
    assert len(mazes["requests"]) == len(examples)
    for request, sets in zip(mazes["requests"], examples.values(), strict=True):
        assert [shown["name"] for shown in request["sets"]] == ["SFT", "GRPO", "VPO"]
        assert request["sets"][2]["rewards"] == sets["vpo"]["rewards"]
        assert request["sets"][2]["answers"] == sets["vpo"]["answers"]
        assert len(request["sets"][2]["walks"]) == 3 and request["maze"]["size"] == 5
    for world in (mazes, calls):
        assert all(world["meaning"]) and len(world["meaning"]) == len(world["objectives"])


def test_the_page_has_the_weightings_of_the_widget(page):
    data = data_of(page)
    assert np.allclose(data["utility_weights"]["4"], dirichlet_weights(128, 4, seed=0), atol=1e-9)
    assert data["tolerance"] == 1e-9


def test_no_text_of_a_model_can_end_the_script():
    attack = "</script><script>alert(1)</script><!-- \ud800"
    world = {"name": attack, "objectives": ["a", "b", "c"], "requests": []}
    page = fill(f'<script type="application/json" id="data">{MARK}</script>', page_data([world]))
    assert page.count("</script>") == 1 and "<!--" not in page
    assert data_of(page)["worlds"][0]["name"].startswith("</script><script>alert(1)")


def test_without_mazes_the_page_shows_tool_calls_alone(tmp_path):
    for folder in (tmp_path / "none", tmp_path / "other"):
        if folder.name == "other":
            write_json(folder / "examples.json", {"tiny": {}})
        page = write_explorer(RESULTS, folder, tmp_path / "page.html").read_text(encoding="utf-8")
        assert [world["name"] for world in data_of(page)["worlds"]] == ["Tool calls"]


def test_missing_pools_are_one_clear_line(tmp_path):
    with pytest.raises(LabError, match=r"grpo.json.gz does not exist"):
        (tmp_path / "pools").mkdir()
        shutil.copy(pool_path(RESULTS, "sft"), tmp_path / "pools")
        write_explorer(tmp_path, EXPERIMENT, tmp_path / "page.html")


def test_a_template_without_a_place_for_data_is_refused():
    with pytest.raises(LabError, match="once"):
        fill("<html></html>", {})
