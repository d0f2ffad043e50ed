"""A real Chromium; tests skip, with the reason, where there is none."""

import shutil
from collections.abc import Iterator

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="session")
def chromium(request) -> Iterator:
    """The browser, with a new user folder of its own."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: `make browser` installs it")
    found = request.config.getoption("chromium") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("no chromium: `make browser` installs it on Debian, or name one by --chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium, request) -> Iterator:
    """An empty page; `tab.troubles` collects console errors and exceptions, `tab.requests` what it asks for.

    Parametrise indirectly with options of the browser context, such as the colour scheme.
    """
    context = chromium.new_context(**{"viewport": {"width": 1300, "height": 900}, **getattr(request, "param", {})})
    page = context.new_page()
    page.troubles, page.requests = [], []
    page.on("console", lambda message: page.troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    yield page
    if folder := request.config.getoption("screenshots"):  # to look at what a person sees
        page.screenshot(path=folder / f"{request.node.name}.png", full_page=True)
    context.close()
