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
        assert TASK.score(row["gold"], row["gold"]).tolist() == [1, 1, 1, 1]


def test_every_real_row_loads_and_scores(toolrl_dir):
    rows = TASK.load(toolrl_dir, "test") + TASK.load(toolrl_dir / "train_sft400.parquet")
    assert len(rows) == 80 + 399 and len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert [message["role"] for message in row["prompt"]] == ["system", "user"]
        gold = row["gold"]
        answer = gold if gold.lstrip().startswith("<think>") else f"<think> So. </think>\n{gold}"
        assert TASK.score(answer, gold).tolist() == [1, 1, 1, 1], row["id"]
    assert sum("<tool_call>" not in row["gold"] for row in rows[:80]) == 9


def test_the_real_test_file_is_the_published_one(toolrl_dir):
    assert toolrl._is_published(toolrl_dir / "test.parquet", "test")
    assert not toolrl._is_published(toolrl_dir / "train_sft400.parquet", "test")


def test_importing_is_light():
    heavy = ["scipy", "pyarrow", "tqdm", "pandas", "torch"]
    code = f"import sys, vpo_lab.tasks.tool_calls.toolrl; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- demonstrations ---


def test_demonstrations_hold_the_gold_and_slips_of_it():
    for row in ROWS:
        shown = TASK.demonstrations(row, 4, np.random.default_rng(0))
        assert len(shown) == 4 and row["gold"] in shown
        assert shown == TASK.demonstrations(row, 4, np.random.default_rng(0))
        scores = np.array([TASK.score(answer, row["gold"]) for answer in shown])
        assert (scores[:, 0] == 1).all()  # the format is never what is wrong
        slips = [s for answer, s in zip(shown, scores, strict=True) if answer != row["gold"]]
        assert all(s.min() < 1 for s in slips)
    several = TASK.demonstrations(ROWS[2], 6, np.random.default_rng(1))
    assert len(set(several)) == 6


# --- what may be wrong with a file ---


def test_unknown_split(folder):
    fails("'dev'", "'train'", "'test'", path=folder, split="dev")
    fails("'dev'", split="dev")


def test_missing_file_or_folder(tmp_path):
    fails("no.parquet", "check the path", path=tmp_path / "no.parquet")
    write_parquet(tmp_path / "rows.parquet")
    fails("no test.parquet", tmp_path, "rows.parquet", path=tmp_path)


def test_not_parquet(tmp_path):
    file = tmp_path / "test.parquet"
    for content in (b"PAR1", b"hello, this is\nno parquet", b"PAR1" + b"\0" * 500 + b"PAR1"):
        file.write_bytes(content)
        fails(file, "as parquet", path=file)
    file.write_bytes(b"")
    fails(file, "empty", path=file)


def test_damaged_parquet(folder):
    file = folder / "test.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    fails(file, "as parquet", path=file)
    file.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
    fails(file, path=file)


def write_table(path, records, **options):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(records, **options), path)


@pytest.mark.parametrize("column", ["prompt", "reward_model"])
def test_missing_column(tmp_path, column):
    record = as_record(ROWS[0])
    del record[column]
    file = tmp_path / "test.parquet"
    write_table(file, [record])
    fails(file, repr(column), "ability", path=tmp_path)


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


# --- the download ---


class Server:
    """A web server on this machine that serves `content`, and can be told to misbehave."""

    def __init__(self):
        self.content = b""
        self.stop_after = None  # bytes of a body, after which the connection is closed
        self.ranges = True
        self.status = None
        self.asked = []  # the Range header of each request
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
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        body, size = self.content[start:], len(self.content)
        if self.status:
            request.send_error(self.status)
            return
        if wanted and self.ranges and not body:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{size}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.stop_after])

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    write_parquet(tmp_path / "rows.parquet")
    server = Server()
    server.content = (tmp_path / "rows.parquet").read_bytes()
    monkeypatch.setenv("VPO_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(toolrl, "BASE_URL", server.url)
    monkeypatch.setattr(toolrl, "GIT_BLOBS", {"test": blob(server.content)})
    monkeypatch.setattr(toolrl, "ROW_COUNTS", {"train": len(ROWS), "test": len(ROWS)})
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache" / "toolrl"


@pytest.mark.parametrize("split", ["train", "test"])
def test_download_once_then_from_the_cache(server, cache, split, capsys):
    rows = TASK.load(None, split)
    assert [row["id"] for row in rows] == [f"toolrl-{split}-{i}" for i in range(len(ROWS))]
    assert (cache / f"{split}.parquet").read_bytes() == server.content
    assert f"toolrl {split}.parquet" in capsys.readouterr().err  # the progress bar
    assert TASK.load(split=split) == rows
    assert server.asked == [None]
    assert not list(cache.glob("*.part"))


def test_a_cut_download_says_so_and_goes_on(server, cache):
    server.stop_after = 1000
    fails("1,000 of", f"{len(server.content):,} bytes", "run again")
    server.stop_after = 500
    fails("1,500 of")
    server.stop_after = None
    assert len(TASK.load(None, "test")) == len(ROWS)
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]
    assert (cache / "test.parquet").read_bytes() == server.content


def test_a_server_that_ignores_ranges_sends_it_all_again(server, cache):
    server.stop_after = 1000
    fails("run again")
    server.stop_after, server.ranges = None, False
    assert len(TASK.load(None, "test")) == len(ROWS)
    assert (cache / "test.parquet").read_bytes() == server.content


def test_a_complete_part_needs_no_more_bytes(server, cache):
    cache.mkdir(parents=True)
    (cache / "test.part").write_bytes(server.content)
    assert len(TASK.load(None, "test")) == len(ROWS)
    (cache / "train.part").write_bytes(server.content + b"more")
    fails("stopped at", split="train")
    assert len(TASK.load(None, "train")) == len(ROWS)


def test_another_content_is_refused_and_not_kept(server, cache, monkeypatch):
    monkeypatch.setattr(toolrl, "GIT_BLOBS", {"test": "0" * 40})
    fails("test.parquet", "not that of the published file", "--data")
    assert not list(cache.iterdir())
    monkeypatch.setattr(toolrl, "ROW_COUNTS", {"train": 3920, "test": 80})
    fails("9 rows instead of 3,920", split="train")
    server.content = b"<html>sign in</html>"
    fails("as parquet", "run again", split="train")
    assert not list(cache.iterdir())


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_changed_cache_is_noticed(server, cache, split):
    TASK.load(None, split)
    write_parquet(cache / f"{split}.parquet", ROWS[:4])
    fails(cache / f"{split}.parquet", "delete it", split=split)


def test_unreachable(server, monkeypatch):
    server.status = 404
    fails(f"{server.url}/test.parquet", "404", "path=", "--data")
    server.status = 503
    fails("503", "check the network")
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
    def full(url, sink):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(toolrl, "_transfer", full)
    fails("disk is full", cache, "VPO_LAB_CACHE")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_disk_full_for_real(server, cache):
    cache.mkdir(parents=True)
    (cache / "test.part").symlink_to("/dev/full")
    fails("disk is full", cache)


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("VPO_LAB_CACHE", str(tmp_path / "a_file"))
    fails(tmp_path / "a_file", "VPO_LAB_CACHE")


def test_the_cache_is_in_the_home_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("VPO_LAB_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert toolrl.cache_folder() == tmp_path / ".cache" / "vpo_lab" / "toolrl"
