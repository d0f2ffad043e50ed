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

ROOT = Path(__file__).resolve().parents[2]
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
    """The address of a JupyterLab over a copy of the notebooks and what they show, with this Python as kernel."""
    home = tmp_path_factory.mktemp("lab")
    for folder in ("course/notebooks", "course/figures", "course/docs"):
        shutil.copytree(ROOT / Path(folder).name, home / folder, ignore=shutil.ignore_patterns(".*"))
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
        f"--ServerApp.root_dir={home / 'course'}", f"--LabApp.app_settings_dir={home / 'settings'}",
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
    """Open a notebook, run all of its cells, and check that none failed; returns the output area of its explorer."""
    # Badges of other hosts are pictures that this test needs no network for.
    page.context.route(lambda url: not url.startswith(lab), lambda route: route.fulfill(status=200, body=""))
    page.goto(f"{lab}/lab/tree/notebooks/{name}.ipynb?reset")  # a new workspace: no tab of the other notebook
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.context?.isReady", timeout=60_000)
    cells = [cell for cell in page.evaluate(RUN_ALL, SECONDS) if cell["cell_type"] == "code"]
    assert len(cells) > 10
    for cell in cells:
        failed = [output for output in cell["outputs"] if output["output_type"] == "error"]
        assert not failed, f"{''.join(cell['source'])[:200]}\n{failed[0]['ename']}: {failed[0]['evalue']}"
        assert cell["execution_count"], f"not run: {''.join(cell['source'])[:200]}"
    return page.locator(".jp-OutputArea-output", has=page.locator(".explorer"))


def explore(page, area, expect) -> None:
    """What a notebook adds to the page, which has tests of its own: its keys, its kernel."""
    slider, output = area.get_by_role("slider", name="gold", exact=True), area.locator(".weight output")
    assert output.all_text_contents() == ["0.25"] * 4 and area.locator(".map").count() > 1
    slider.focus()
    active = page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex")
    page.keyboard.press("ArrowUp")
    expect(output.nth(1)).to_have_text("0.26")
    assert page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex") == active
    area.get_by_role("button", name="only completion").click()
    expect(output.first).to_have_text("1.00")
    assert json.loads(page.evaluate(PYTHON, "print(explorer.widget.weights)")) == [1, 0, 0, 0]
    page.evaluate(PYTHON, "explorer.widget.weights = [0.4, 0.3, 0.2, 0.1]")
    expect(output.first).to_have_text("0.40")


@pytest.mark.parametrize("name", ["01_reward_vectors", "05_bestk_and_pareto"])
def test_all_cells_run_and_the_explorer_answers(lab, tab, name):
    from playwright.sync_api import expect

    area = run_all(tab, lab, name)
    expect(area).to_have_count(1)
    assert area.locator(".picture svg").count() == area.locator(".card").count() > 1
    if name.startswith("05"):  # the user of its text wants nothing but gold
        assert area.locator(".weight output").all_text_contents() == ["0.00", "1.00", "0.00", "0.00"]
    else:
        explore(tab, area, expect)
    assert tab.troubles == []
