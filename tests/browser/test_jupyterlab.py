"""Notebooks 01 and 05 in a real JupyterLab: every cell runs, and the explorer answers a reader."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from vpo_lab.processes import SESSION

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
    ours = {name: value for name, value in os.environ.items() if name != SESSION and not name.startswith("JUPYTER")}
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
PYTHON = """async (code) => {
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    const future = kernel.requestExecute({ code, store_history: false });
    let said = "";
    future.onIOPub = ({ content }) => { said += content.text ?? content.evalue ?? ""; };
    await future.done;
    return said;
}"""


def run_all(page, lab: str, name: str):
    """Open a notebook, run all of its cells, and check that none failed; returns the output areas of its explorers."""
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
    return page.locator(".jp-OutputArea-output", has=page.locator(".explorer"))


def weights(area) -> list[float]:
    return [float(text) for text in area.locator(".weight output").all_text_contents()]


def stars(area) -> list[str]:
    return [text.strip() for text in area.locator("tbody .star").all_text_contents()]


def explore(page, area, expect) -> None:
    """What a reader does, in both notebooks the same."""
    area.scroll_into_view_if_needed()
    assert weights(area) == [0.25] * 4 and area.locator(".map").count() > 1

    # By keyboard, which stays with the slider: the notebook would go to another cell.
    slider, output = area.get_by_role("slider", name="param_value", exact=True), area.locator(".weight output")
    slider.focus()
    active = page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex")
    page.keyboard.press("ArrowUp")
    expect(output.last).to_have_text("0.26")
    before = stars(area)
    page.keyboard.press("End")
    expect(output.last).to_have_text("1.00")
    on_values = stars(area)
    assert page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex") == active
    area.get_by_role("button", name="only format").click()
    expect(output.first).to_have_text("1.00")
    assert len({tuple(before), tuple(on_values), tuple(stars(area))}) > 1, "no star ever moved"

    # By mouse: the others make room; a locked one stays.
    area.get_by_role("button", name="all equal").click()
    area.get_by_label("lock format").check()
    slider = area.get_by_role("slider", name="tool_name", exact=True)
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.move(box["x"] + 8 + 0.25 * (box["width"] - 16), box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 8 + 0.6 * (box["width"] - 16), box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    expect(output.nth(1)).not_to_have_text("0.25")
    assert weights(area)[0] == 0.25 and abs(weights(area)[1] - 0.6) < 0.05 and abs(sum(weights(area)) - 1) < 0.021

    # The kernel hears of it, and the other way round.
    shown = json.loads(page.evaluate(PYTHON, "print(explorer.widget.weights)"))
    assert [round(weight, 2) for weight in shown] == weights(area)
    page.evaluate(PYTHON, "explorer.widget.weights = [0.4, 0.3, 0.2, 0.1]")
    expect(output.first).to_have_text("0.40")

    area.get_by_role("button", name="Draw").click()
    expect(area.get_by_label("lock format")).not_to_be_checked()
    area.locator("#corners").select_option("0")
    expect(area.locator(".map .corner").last).to_have_text("param_name")


@pytest.mark.parametrize("name", ["01_reward_vectors", "05_bestk_and_pareto"])
def test_all_cells_run_and_the_explorer_answers(lab, tab, name):
    from playwright.sync_api import expect

    areas = run_all(tab, lab, name)
    expect(areas).to_have_count(2 if name.startswith("05") else 1)
    explore(tab, areas.first, expect)
    if name.startswith("05"):
        title = areas.first.locator("#title")
        before = title.inner_text()
        areas.first.locator("#request").select_option("1")
        expect(title).not_to_have_text(before)
        explore_mazes(areas.last, expect)
    assert tab.troubles == []


def explore_mazes(area, expect) -> None:
    """The walks of another maze, and other winners for a user who wants the other treasure."""
    before = area.locator(".picture").first.inner_html()
    area.locator("#request").select_option("1")
    assert area.locator(".picture").first.inner_html() != before
    won = []
    for treasure in ("gold", "diamond"):
        area.get_by_role("button", name=f"only {treasure}").click()
        won.append(stars(area))
    assert won[0] != won[1], "the same walks win for gold and for diamonds"
