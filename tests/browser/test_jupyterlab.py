"""Notebooks 01 and 05 in a real JupyterLab: every cell runs, and the widget answers a reader."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from vpo_lab.course.widgets import HEADLESS

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SECONDS = 150  # for all cells of one notebook
OVERRIDES = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # every cell is in the page
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab over a folder of its own, with copies of the notebooks and this Python as kernel."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, home / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (home / "settings").mkdir()
    (home / "settings" / "overrides.json").write_text(json.dumps(OVERRIDES))
    folders = {
        "HOME": "home", "IPYTHONDIR": "ipython", "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_SETTINGS_DIR": "user", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }  # fmt: skip
    ours = {name: value for name, value in os.environ.items() if name != HEADLESS and not name.startswith("JUPYTER")}
    ours |= {name: str(home / folder) for name, folder in folders.items()}
    address = f"http://127.0.0.1:{(port := free_port())}"
    options = (
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        "--ServerApp.open_browser=False", "--ServerApp.allow_root=True", "--IdentityProvider.token=",
        f"--ServerApp.root_dir={home / 'notebooks'}", f"--LabApp.app_settings_dir={home / 'settings'}",
        "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly",
    )  # fmt: skip
    with open(home / "server.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], cwd=home, env=ours, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 60
            while not answers(f"{address}/api/status"):
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"JupyterLab did not start:\n{(home / 'server.log').read_text()[-2000:]}")
                time.sleep(0.2)
            yield address
        finally:
            server.terminate()  # its kernels end with it
            server.wait(20)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


RUN_ALL = """async (seconds) => {
    const app = window.jupyterapp, panel = app.shell.currentWidget;
    await panel.sessionContext.ready;
    const late = new Promise((_, fail) => setTimeout(() => fail(new Error("not done in time")), 1000 * seconds));
    await Promise.race([app.commands.execute("notebook:run-all-cells"), late]);
    return panel.content.widgets.map((cell) => cell.model.sharedModel.toJSON());
}"""


def run_all(page, lab: str, name: str):
    """Open a notebook, run all of its cells, and check that none failed; returns the widgets' output areas."""
    # Badges of other hosts are pictures that this test needs no network for.
    page.context.route(lambda url: not url.startswith(lab), lambda route: route.fulfill(status=200, body=""))
    page.goto(f"{lab}/lab/tree/{name}.ipynb?reset")  # a new workspace: no tab of the other notebook
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.context?.isReady", timeout=60_000)
    cells = [cell for cell in page.evaluate(RUN_ALL, SECONDS) if cell["cell_type"] == "code"]
    assert len(cells) > 10
    for cell in cells:
        failed = [output for output in cell["outputs"] if output["output_type"] == "error"]
        assert not failed, f"{''.join(cell['source'])[:200]}\n{failed[0]['ename']}: {failed[0]['evalue']}"
        assert cell["execution_count"], f"not run: {''.join(cell['source'])[:200]}"
    return page.locator(".jp-OutputArea-output", has=page.locator(".jupyter-widgets.widget-slider"))


def handle(area, name: str):
    """The slider with that description."""
    row = area.locator(".widget-slider", has=area.page.get_by_text(name, exact=True))
    return row.locator(".noUi-handle")


def tables(area):
    return area.locator(".widget-html-content")


def shown_weights(area) -> list[float]:
    line = tables(area).locator("p", has_text=re.compile(r"^w: ")).inner_text()
    return [float(number) for number in re.findall(r"\d\.\d\d", line)]


def stars(area) -> list[str]:
    return [mark.inner_text().strip() for mark in tables(area).locator("tr > td[rowspan]:first-child").all()]


SETTLED = """area => {
    const line = [...area.querySelectorAll(".widget-html-content p")].find((p) => p.textContent.startsWith("w: "));
    const weights = line.textContent.match(/\\d\\.\\d\\d/g).map(Number);
    const sliders = [...area.querySelectorAll(".widget-readout")].map((readout) => Number(readout.textContent));
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    return kernel.status === "idle" && weights.every((w, d) => Math.abs(w - sliders[d]) < 0.011);
}"""


def settled(area) -> None:
    """The sliders come to stand where the weights are, these sum to 1, and nothing moves by itself."""
    page, element = area.page, area.element_handle()
    page.wait_for_function(SETTLED, arg=element, timeout=10_000)
    before = shown_weights(area)
    assert abs(sum(before) - 1) < 0.021
    # One more question to the kernel: whatever the browser had sent before is answered by then.
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestKernelInfo()")
    page.wait_for_function(SETTLED, arg=element, timeout=10_000)
    assert shown_weights(area) == before, "the weights move by themselves"


def explore(page, area, expect) -> None:
    """What a reader does with the widget, in both notebooks the same."""
    area.scroll_into_view_if_needed()
    assert shown_weights(area) == [0.25] * 4
    images = tables(area).locator("img")
    maps = [image.get_attribute("src") for image in images.all()]
    assert len(maps) > 1 and all(
        image.evaluate("(i) => i.decode().then(() => i.naturalWidth > 0)") for image in images.all()
    )

    # By keyboard: one step, then all the way, where the weight is alone and another candidate may win.
    handle(area, "param_value").focus()
    page.keyboard.press("ArrowRight")
    expect(tables(area)).to_contain_text("param_value 0.26")
    settled(area)
    at_start = stars(area)
    page.keyboard.press("End")
    expect(tables(area)).to_contain_text("param_value 1.00")
    on_values = stars(area)
    handle(area, "format").focus()
    page.keyboard.press("End")
    expect(tables(area)).to_contain_text("format 1.00")
    assert len({tuple(at_start), tuple(on_values), tuple(stars(area))}) > 1, "no star ever moved"
    assert [image.get_attribute("src") for image in images.all()] != maps

    # By mouse: the others make room; a locked one stays.
    area.get_by_role("button", name="all equal").click()
    expect(tables(area)).to_contain_text("format 0.25")
    area.get_by_label("lock").first.check()
    grip = handle(area, "tool_name")
    grip.scroll_into_view_if_needed()
    box, track = grip.bounding_box(), grip.locator("xpath=ancestor::*[contains(@class,'noUi-target')]").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(track["x"] + 0.6 * track["width"], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    expect(tables(area)).to_contain_text(re.compile(r"format 0\.25, tool_name 0\.[56]\d"))
    settled(area)

    # A random user, and another triangle.
    area.get_by_role("button", name=re.compile("draw w")).click()
    expect(tables(area)).not_to_contain_text("format 0.25,")  # no longer locked
    settled(area)
    area.get_by_label("map of").select_option("format, tool_name, param_name")
    expect(tables(area).locator("img").first.locator("xpath=preceding-sibling::div")).to_have_text("param_name")


@pytest.mark.parametrize("name", ["01_reward_vectors", "05_bestk_and_pareto"])
def test_all_cells_run_and_the_widget_answers(lab, tab, name):
    from playwright.sync_api import expect

    areas = run_all(tab, lab, name)
    expect(areas).to_have_count(2 if name.startswith("05") else 1)
    area = areas.first
    explore(tab, area, expect)
    if name.startswith("05"):
        before = tables(area).locator("b").first.inner_text()
        area.get_by_label("request").select_option(index=1)
        expect(tables(area).locator("b").first).not_to_have_text(before)
        explore_mazes(tab, areas.last, expect)
    assert tab.troubles == []


def explore_mazes(page, area, expect) -> None:
    """The ways of another maze, and other winners for whoever wants the other treasure."""
    area.scroll_into_view_if_needed()
    images = tables(area).locator("img")
    before = [image.get_attribute("src") for image in images.all()]
    area.get_by_label("request").select_option(index=1)
    expect(images.first).not_to_have_attribute("src", before[0])
    won = []
    for treasure in ("gold", "diamond"):
        handle(area, treasure).focus()
        page.keyboard.press("End")
        expect(tables(area)).to_contain_text(f"{treasure} 1.00")
        settled(area)
        won.append([image.get_attribute("src") for image in images.all()])
    assert won[0] != won[1], "the same ways win for gold and for diamonds"
