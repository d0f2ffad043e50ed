"""The pages of the course as a reader without a network meets them, on a phone."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-c", "docs", "-d", out / "trees", ".", out], cwd=ROOT, check=True
    )
    return out


@pytest.mark.parametrize("tab", [{"viewport": {"width": 390, "height": 844}, "offline": True}], indirect=True)
def test_pages_fit_a_phone_and_ask_for_nothing(tab, site):
    pages = [path for path in site.rglob("*.html") if "_downloads" not in path.parts and path != site / "index.html"]
    assert len(pages) > 10
    for path in pages:
        tab.goto(path.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    assert not tab.troubles
    assert not [url for url in tab.requests if not url.startswith(("file:", "data:", "blob:", "about:"))]
