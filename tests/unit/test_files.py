"""files.py: files are whole or absent, and what keeps one from being written is told in one line."""

import errno
import gzip
import json
import os
from pathlib import Path

import pytest

from vpo_lab.errors import LabError
from vpo_lab.files import atomic_folder, encodable, explain_full_disk, read_json, write_bytes, write_json


def line_of(caught) -> str:
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def refuse(code: int):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return fail


# --- Files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["value.json", "value.json.gz", "new/folder/value.json"])
def test_what_is_written_is_read(tmp_path, name):
    value = {"text": 'grün 漢字 "quoted"\n', "numbers": [1, 2.5, None, True]}
    write_json(tmp_path / name, value)
    assert read_json(tmp_path / name) == value
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [Path(name).name]


def test_gzipped_json_is_the_same_bytes_every_time(tmp_path):
    for name in ("a.json.gz", "b.json.gz"):
        write_json(tmp_path / name, {"x": [1] * 100})
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()
    assert json.loads(gzip.decompress((tmp_path / "a.json.gz").read_bytes())) == {"x": [1] * 100}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("cut \ud83d off", "cut \ufffd off"),
        ("\ude00", "\ufffd"),
        ("a\ud83d", "a\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("α 漢 😀", None),
    ],
    ids=["first half", "second half", "at the end", "both", "none"],
)
def test_half_an_emoji_becomes_the_replacement_character(tmp_path, text, expected):
    assert encodable(text) == (expected or text)
    write_json(tmp_path / "a.json", {"answer": text})
    assert read_json(tmp_path / "a.json") == {"answer": expected or text}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    write_json(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, step, refuse(errno.EIO))
    with pytest.raises(OSError):
        write_json(tmp_path / "a.json", "new")
    assert read_json(tmp_path / "a.json") == "old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_and_no_permission_are_one_line_that_names_the_file(tmp_path, monkeypatch, step, code):
    write_json(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, step, refuse(code))
    with pytest.raises(LabError) as caught:
        write_json(tmp_path / "a.json", "new")
    assert str(tmp_path / "a.json") in line_of(caught)
    assert read_json(tmp_path / "a.json") == "old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("size", [10, 10_000_000])
def test_a_device_that_is_really_full_is_told_so(tmp_path, size):
    write_bytes(tmp_path / "a", b"old")
    (tmp_path / f".a.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(LabError):
        write_bytes(tmp_path / "a", b"x" * size)
    assert (tmp_path / "a").read_bytes() == b"old"


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(OSError, match="Input/output"), explain_full_disk(tmp_path):
        refuse(errno.EIO)()
    with pytest.raises(ZeroDivisionError), explain_full_disk(tmp_path):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="shape mismatch"), explain_full_disk(tmp_path):
        raise RuntimeError("shape mismatch")


def test_a_full_disk_under_safetensors_is_told_too(tmp_path):
    """It raises an error of its own, which is no OSError."""
    from safetensors import SafetensorError

    with pytest.raises(LabError, match="disk full"), explain_full_disk(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


# --- Damage -----------------------------------------------------------------------------------


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(LabError) as caught:
        read_json(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in line_of(caught)


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe\x00", b"not json"])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_damaged_file_says_so(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabError) as caught:
        read_json(tmp_path / name)
    assert str(tmp_path / name) in line_of(caught)


@pytest.fixture(scope="module")
def gzipped(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gz") / "a.json.gz"
    write_json(path, {"x": list(range(2000))})
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_gzipped_file_cut_or_changed_anywhere_says_so(tmp_path, gzipped, damage, share):
    position = int(share * len(gzipped))
    changed = bytes([gzipped[position] ^ 0xFF])
    content = gzipped[:position] + (changed + gzipped[position + 1 :] if damage == "flip" else b"")
    (tmp_path / "a.json.gz").write_bytes(content)
    with pytest.raises(LabError) as caught:
        read_json(tmp_path / "a.json.gz")
    line_of(caught)


# --- Folders ----------------------------------------------------------------------------------


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with atomic_folder(tmp_path / "policy") as folder:
        (folder / "weights").write_text("w")
        assert not (tmp_path / "policy").exists()
    assert (tmp_path / "policy" / "weights").read_text() == "w"
    assert os.listdir(tmp_path) == ["policy"]


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_folder_and_no_new_one(tmp_path, error):
    with atomic_folder(tmp_path / "policy") as folder:
        (folder / "weights").write_text("old")
    for name in ("policy", "other"):
        with pytest.raises(type(error)), atomic_folder(tmp_path / name) as folder:
            (folder / "weights").write_text("half")
            raise error
    assert os.listdir(tmp_path) == ["policy"]
    assert (tmp_path / "policy" / "weights").read_text() == "old"


def test_what_a_killed_process_left_is_not_mixed_in(tmp_path):
    """A kill runs no cleanup: the half-filled folder is still there when the stage starts again."""
    (tmp_path / ".policy.partial").mkdir()
    (tmp_path / ".policy.partial" / "stale").write_text("half")
    assert not (tmp_path / "policy").exists()
    with atomic_folder(tmp_path / "policy") as folder:
        (folder / "weights").write_text("w")
    assert os.listdir(tmp_path / "policy") == ["weights"]


def test_a_full_disk_in_the_block_is_one_line(tmp_path):
    with pytest.raises(LabError, match="disk full"), atomic_folder(tmp_path / "policy"):
        refuse(errno.ENOSPC)()
    assert os.listdir(tmp_path) == []
