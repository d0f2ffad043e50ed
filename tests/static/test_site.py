"""The pages of the course: built without a warning, complete without a network, links that lead somewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}


class Page(HTMLParser):
    """The addresses that a page loads and those that it links to, its ids and its number of formulas."""

    def __init__(self, path: Path):
        super().__init__()
        self.loaded, self.linked, self.ids, self.formulas = set(), set(), set(), 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.formulas += tag == "math"
        for name, value in attrs:
            if name == "id":
                self.ids.add(value)
            elif (tag, name) in LOADED:
                self.loaded.add(value)
            elif name == "href":
                self.linked.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Page]:
    """{path: page}; a link that leads nowhere is a warning of Sphinx, and a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", out / "trees", ".", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path: Page(path) for path in out.rglob("*.html") if not path.is_relative_to(out / "_downloads")}


def test_every_notebook_and_guide_has_a_page(site):
    names = {path.stem for path in site}
    assert {path.stem for path in [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("docs/*.md")]} <= names
    assert {"index", "explorer", "README"} <= names


def test_nothing_is_loaded_from_elsewhere(site):
    for path, page in site.items():
        assert not [url for url in page.loaded if re.match(r"(https?:)?//", url)], path
    sheets = {path.parent / url.split("?")[0] for path, page in site.items() for url in page.loaded if ".css" in url}
    for sheet in sheets:
        assert not re.search(r"@import|url\([\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_every_address_within_the_site_leads_somewhere(site):
    for path, page in site.items():
        for url in map(urlsplit, page.loaded | page.linked):
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert target.exists(), (path, url)
            if target in site and url.fragment and path.name not in ("genindex.html", "search.html"):
                assert unquote(url.fragment) in site[target].ids, (path, url)


def test_the_explorer_is_live_in_the_notebooks_that_show_its_picture(site):
    framed = {path.name for path, page in site.items() if "../explorer.html" in page.loaded}
    assert framed == {"explore.html", "01_reward_vectors.html", "05_bestk_and_pareto.html"}


def test_formulas_are_drawn_by_the_browser(site):
    by_name = {path.name: page for path, page in site.items() if "notebooks" in path.parts}
    assert by_name["05_bestk_and_pareto.html"].formulas > 10
