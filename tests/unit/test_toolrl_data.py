"""toolrl.py: reading, downloading, and the one-line errors."""

import errno
import hashlib
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from toolrl_rows import ROWS, as_record, write_parquet

from vpo_lab.errors import LabError
from vpo_lab.tasks.tool_calls import toolrl
from vpo_lab.tasks.tool_calls.toolrl import ToolRL

TASK = ToolRL()


def line_of(caught) -> str:
    """The message, which must be one line."""
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def fails(*words, path=None, split="test"):
    """Loading fails with one line that holds all of the words."""
    with pytest.raises(LabError) as caught:
        TASK.load(path, split)
    text = line_of(caught)
    for word in words:
        assert str(word) in text, text


# --- reading ---


@pytest.fixture
def folder(tmp_path) -> Path:
    write_parquet(tmp_path / "test.parquet")
    write_parquet(tmp_path / "train.parquet", ROWS[:3])
    return tmp_path


def test_rows_from_a_folder_and_from_a_file(folder):
    rows = TASK.load(folder, "test")
    assert rows == TASK.load(str(folder / "test.parquet"), "test")
    assert [row["id"] for row in rows] == [f"toolrl-test-{i}" for i in range(len(ROWS))]
    assert [row["id"] for row in TASK.load(folder)] == [f"toolrl-train-{i}" for i in range(3)]
    for row, written in zip(rows, ROWS, strict=True):
        assert set(row) == {"id", "prompt", "gold"}
        assert row["prompt"] == written["prompt"] and row["gold"] == written["gold"]
        assert type(row["prompt"]) is list and type(row["prompt"][0]["content"]) is str


def test_a_file_names_its_rows_whatever_the_split(folder):
    # Else the same row would be "train" in one run and "test" in the next.
    assert TASK.load(folder / "test.parquet", "train")[0]["id"] == "toolrl-test-0"


def test_our_golds_score_one_through_the_task(folder):
    assert TASK.objectives == ("format", "tool_name", "param_name", "param_value")
    for row in TASK.load(folder, "test"):
        assert TASK.score([row["gold"]], [row]).tolist() == [[1, 1, 1, 1]]


def test_every_real_row_loads_and_scores(toolrl_dir):
    rows = TASK.load(toolrl_dir, "test") + TASK.load(toolrl_dir / "train_sft400.parquet")
    assert len(rows) == 80 + 399 and len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert [message["role"] for message in row["prompt"]] == ["system", "user"]
        assert TASK.score([row["gold"]], [row]).tolist() == [[1, 1, 1, 1]], row["id"]
    assert sum("<tool_call>" not in row["gold"] for row in rows[:80]) == 9


def test_the_real_test_file_is_the_published_one(toolrl_dir):
    assert hashlib.sha256((toolrl_dir / "test.parquet").read_bytes()).hexdigest() == toolrl.SHA256["test"]


def test_importing_is_light():
    heavy = ["scipy", "pyarrow", "pooch", "pandas", "torch"]
    code = f"import sys, vpo_lab.tasks.tool_calls.toolrl; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- demonstrations ---


def test_demonstrations_hold_the_gold_and_slips_of_it():
    for row in ROWS:
        shown = TASK.demonstrations(row, 4, np.random.default_rng(0))
        assert len(shown) == 4 and row["gold"] in shown
        assert shown == TASK.demonstrations(row, 4, np.random.default_rng(0))
        scores = TASK.score(shown, [row] * 4)
        assert (scores[:, 0] == 1).all()  # the format is never what is wrong
        slips = [s for answer, s in zip(shown, scores, strict=True) if answer != row["gold"]]
        assert all(s.min() < 1 for s in slips)
    several = TASK.demonstrations(ROWS[2], 6, np.random.default_rng(1))
    assert len(set(several)) == 6


# --- what may be wrong with a file ---


def test_unknown_split(folder):
    fails("'dev'", path=folder, split="dev")
    fails("'dev'", split="dev")


def test_missing_file_or_folder(tmp_path):
    fails(tmp_path / "no.parquet", path=tmp_path / "no.parquet")
    fails(tmp_path / "test.parquet", path=tmp_path)


def test_damaged_parquet(folder):
    file = folder / "test.parquet"
    whole = file.read_bytes()
    half = len(whole) // 2
    zeros = whole[:4] + bytes(half) + whole[4 + half :]
    for content in (b"", b"PAR1", b"hello, this is\nno parquet", whole[:half], zeros):
        file.write_bytes(content)
        fails(file, path=file)


def write_table(path, records, **options):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(records, **options), path)


@pytest.mark.parametrize("column", ["prompt", "reward_model"])
def test_missing_column(tmp_path, column):
    record = as_record(ROWS[0])
    del record[column]
    write_table(tmp_path / "test.parquet", [record])
    fails(tmp_path / "test.parquet", repr(column), path=tmp_path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("prompt", None),
        ("prompt", []),
        ("prompt", "text"),
        ("prompt", [{"role": "user"}]),
        ("prompt", [{"role": "user", "content": None}]),
        ("reward_model", None),
        ("reward_model", "text"),
        ("reward_model", {"style": "rule"}),
        ("reward_model", {"ground_truth": 3}),
    ],
)
def test_columns_of_another_kind(tmp_path, column, value):
    write_table(tmp_path / "test.parquet", [{**as_record(ROWS[0]), column: value}])
    fails("row 0", repr(column), path=tmp_path)


def test_no_rows(tmp_path):
    import pyarrow as pa

    write_parquet(tmp_path / "one.parquet", ROWS[:1])
    schema = pa.parquet.read_schema(tmp_path / "one.parquet")
    write_table(tmp_path / "test.parquet", [], schema=schema)
    fails("no rows", path=tmp_path)


@pytest.mark.parametrize(
    "gold",
    [
        "<tool_call>\n{'name': 'book', 'parameters': {'city': 'Kiel'}}\n</tool_call>",
        '<tool_call>\n{"name": "book", "arguments": "{\\"city\\": \\"Kiel\\"}"}\n</tool_call>',
        '<tool_call>\n{"name": "now", "parameters": null}\n</tool_call>',
        '<tool_call>\n{"name": "note", "parameters": {"text": "a\nb"}}\n</tool_call>',
        '<tool_call>\n{"name": "now", "parameters": {}}\n',
        '<tool_call>\n{"name": "a", "parameters": {}}\n{"name": \'b\'}\n</tool_call>',
        "",
    ],
)
def test_a_gold_that_cannot_be_parsed_is_refused(tmp_path, gold):
    # It would count as "nothing to call": a refusal would earn all, the right call nothing.
    broken = {**ROWS[1], "gold": f"<think> ok </think>\n{gold}"}
    write_parquet(tmp_path / "test.parquet", [ROWS[0], broken, ROWS[2]])
    fails(tmp_path / "test.parquet", "row 1", path=tmp_path)
    kept = toolrl.read_rows(tmp_path / "test.parquet", leave_out=True)
    assert [row["id"] for row in kept] == ["toolrl-test-0", "toolrl-test-2"]


# --- the download ---


class Server:
    """A web server on this machine that serves `content`, and can be told to misbehave."""

    def __init__(self):
        self.content, self.stop_after, self.status, self.requests = b"", None, 200, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def answer(self, request):
        self.requests += 1
        request.send_response(self.status)
        request.send_header("Content-Length", str(len(self.content)))
        request.end_headers()
        request.wfile.write(self.content[: self.stop_after])

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(tmp_path, monkeypatch):
    write_parquet(tmp_path / "rows.parquet")
    server = Server()
    server.content = (tmp_path / "rows.parquet").read_bytes()
    monkeypatch.setenv("VPO_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(toolrl, "BASE_URL", server.url)
    monkeypatch.setattr(toolrl, "SHA256", {"test": hashlib.sha256(server.content).hexdigest()})
    monkeypatch.setattr(toolrl, "ROW_COUNTS", {"train": len(ROWS), "test": len(ROWS)})
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache" / "toolrl"


@pytest.mark.parametrize("split", ["train", "test"])
def test_download_once_then_from_the_cache(server, cache, split):
    rows = TASK.load(None, split)
    assert [row["id"] for row in rows] == [f"toolrl-{split}-{i}" for i in range(len(ROWS))]
    assert (cache / f"{split}.parquet").read_bytes() == server.content
    assert TASK.load(split=split) == rows
    assert server.requests == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_cut_download_is_not_kept(server, cache, split):
    server.stop_after = 1000
    fails(f"{server.url}/{split}.parquet", "--data", split=split)
    assert not list(cache.iterdir())
    server.stop_after = None
    assert len(TASK.load(None, split)) == len(ROWS)


def test_another_content_is_refused_and_not_kept(server, cache, monkeypatch):
    server.content = b"<html>sign in</html>"
    for split in ("train", "test"):
        fails(f"{split}.parquet", "--data", split=split)
    write_parquet(cache / "some", ROWS[:4])
    server.content = (cache / "some").read_bytes()
    (cache / "some").unlink()
    for split in ("train", "test"):
        fails(f"{split}.parquet", "--data", split=split)
    assert not list(cache.glob("*.parquet"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_changed_file_in_the_cache_is_fetched_again(server, cache, split):
    rows = TASK.load(None, split)
    write_parquet(cache / f"{split}.parquet", ROWS[:4])
    assert TASK.load(None, split) == rows and server.requests == 2


def test_unreachable(server, monkeypatch):
    server.status = 404
    fails(f"{server.url}/test.parquet", "404", "--data")
    monkeypatch.setattr(toolrl, "BASE_URL", "http://127.0.0.1:9")
    fails("http://127.0.0.1:9/test.parquet", "--data")
    monkeypatch.setattr(toolrl, "BASE_URL", "http://no-such-host.invalid")
    fails("no-such-host.invalid", "--data")


def test_a_silent_server_times_out(server, monkeypatch):
    monkeypatch.setattr(toolrl, "TIMEOUT_S", 0.2)
    hold = threading.Event()
    monkeypatch.setattr(server, "answer", lambda request: hold.wait(5))
    fails("timed out", "--data")
    hold.set()


def test_disk_full(server, cache, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pooch.core.stream_download", full)
    fails("disk is full", cache, "VPO_LAB_CACHE")


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("VPO_LAB_CACHE", str(tmp_path / "a_file"))
    fails(tmp_path / "a_file", "VPO_LAB_CACHE")


def test_the_cache_is_in_the_home_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("VPO_LAB_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert toolrl.cache_folder() == tmp_path / ".cache" / "vpo_lab" / "toolrl"
