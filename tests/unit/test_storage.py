"""storage.py: files are whole or absent, run folders are not mixed, damaged checkpoints are passed over."""

import errno
import gzip
import json
import os
from pathlib import Path

import pytest

from vpo_lab import runs as storage
from vpo_lab.config import get_profile
from vpo_lab.errors import LabError
from vpo_lab.files import atomic_folder, explain_full_disk, read_json, write_bytes, write_json
from vpo_lab.runs import CHECKPOINT_SEAL, MANIFEST, last_good_checkpoint, open_run, seal_checkpoint


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


def test_a_lone_surrogate_does_not_stop_the_writing(tmp_path):
    write_json(tmp_path / "a.json", {"answer": "cut \ud83d off"})
    assert read_json(tmp_path / "a.json") == {"answer": "cut ? off"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    write_json(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, step, refuse(errno.EIO))
    with pytest.raises(OSError):
        write_json(tmp_path / "a.json", "new")
    assert read_json(tmp_path / "a.json") == "old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_one_line_that_names_the_file_and_the_way_out(tmp_path, monkeypatch, step, code):
    write_json(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, step, refuse(code))
    with pytest.raises(LabError) as caught:
        write_json(tmp_path / "a.json", "new")
    message = line_of(caught)
    assert "disk full" in message and str(tmp_path / "a.json") in message and "free some space" in message
    assert read_json(tmp_path / "a.json") == "old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("size", [10, 10_000_000])
def test_a_device_that_is_really_full_is_told_so(tmp_path, size):
    write_bytes(tmp_path / "a", b"old")
    (tmp_path / f".a.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(LabError, match="disk full while writing"):
        write_bytes(tmp_path / "a", b"x" * size)
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", refuse(errno.EACCES))
    with pytest.raises(LabError) as caught:
        write_json(tmp_path / "a.json", 1)
    assert "cannot write" in line_of(caught) and "--run-dir" in line_of(caught)


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
    assert str(tmp_path / "a.json") in line_of(caught) and "does not exist" in line_of(caught)


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe\x00", b"not json"])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_damaged_file_says_so(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabError) as caught:
        read_json(tmp_path / name)
    assert str(tmp_path / name) in line_of(caught) and "damaged" in line_of(caught)


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
    assert "damaged" in line_of(caught)


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


# --- Runs -------------------------------------------------------------------------------------

SMOKE = get_profile("smoke")


def test_a_run_is_taken_up_again_with_the_same_settings(tmp_path):
    run = open_run(tmp_path / "runs" / "a", SMOKE, seed=3)
    before = (run / MANIFEST).read_bytes()
    assert open_run(str(run), get_profile("smoke", {"track": True}), seed=3) == run
    assert (run / MANIFEST).read_bytes() == before


@pytest.mark.parametrize(
    "profile, seed, differs",
    [
        (get_profile("tiny"), 0, ["profile 'smoke', now 'tiny'", "fingerprint"]),
        (SMOKE, 1, ["seed 0, now 1"]),
        (get_profile("smoke", {"rl.alpha": 2.0}), 0, ["fingerprint"]),
    ],
)
def test_a_run_of_other_settings_is_refused_by_name(tmp_path, profile, seed, differs):
    open_run(tmp_path, SMOKE, 0)
    before = (tmp_path / MANIFEST).read_bytes()
    with pytest.raises(LabError) as caught:
        open_run(tmp_path, profile, seed)
    message = line_of(caught)
    for text in [str(tmp_path), "choose another --run-dir", *differs]:
        assert text in message
    assert ("seed" in message) == (seed != 0)
    assert (tmp_path / MANIFEST).read_bytes() == before


def test_a_run_of_another_version_is_refused(tmp_path, monkeypatch):
    open_run(tmp_path, SMOKE, 0)
    monkeypatch.setattr("vpo_lab.__version__", "99.0")
    with pytest.raises(LabError, match=r"version .*, now '99\.0'"):
        open_run(tmp_path, SMOKE, 0)


@pytest.mark.parametrize("content", ["", "[]", '"text"', '{"profile": "smoke"', "{}"])
def test_a_damaged_manifest_is_one_line(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(LabError) as caught:
        open_run(tmp_path, SMOKE, 0)
    assert str(tmp_path) in line_of(caught)


def test_a_run_folder_that_cannot_be_one_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(LabError) as caught:
            open_run(folder, SMOKE, 0)
        assert "--run-dir" in line_of(caught)


def test_without_a_name_the_run_stands_under_its_profile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_run("", SMOKE, 0) == tmp_path / "runs" / "smoke"
    (tmp_path / "vpo_lab").mkdir()
    (tmp_path / "vpo_lab" / "__init__.py").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert open_run("", SMOKE, 0) == tmp_path / "runs" / "smoke"


# --- Checkpoints ------------------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path) -> Path:
    """Three sealed checkpoints, at steps 50, 100 and 150."""
    for step in (50, 100, 150):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "inner").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"w" * 100)
        (folder / "inner" / "optimizer.pt").write_bytes(b"o" * 10)
        seal_checkpoint(folder)
    return tmp_path


def test_the_newest_whole_checkpoint_is_taken(checkpoints):
    assert last_good_checkpoint(checkpoints) == (checkpoints / "checkpoint-150", [])


def cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"w" * 50)


def lose(folder: Path) -> None:
    (folder / "inner" / "optimizer.pt").unlink()


def lose_seal(folder: Path) -> None:
    (folder / CHECKPOINT_SEAL).unlink()


def cut_seal(folder: Path) -> None:
    seal = folder / CHECKPOINT_SEAL
    seal.write_bytes(seal.read_bytes()[:20])


def empty_seal(folder: Path) -> None:
    (folder / CHECKPOINT_SEAL).write_text("[]")


@pytest.mark.parametrize("damage", [cut, lose, lose_seal, cut_seal, empty_seal])
def test_a_damaged_checkpoint_is_passed_over_with_a_complaint(checkpoints, damage):
    damage(checkpoints / "checkpoint-150")
    found, complaints = last_good_checkpoint(checkpoints)
    assert found == checkpoints / "checkpoint-100"
    assert len(complaints) == 1 and "checkpoint-150" in complaints[0] and "using the one before" in complaints[0]


def test_when_all_are_damaged_there_is_none(checkpoints):
    for step in (50, 100, 150):
        cut(checkpoints / f"checkpoint-{step}")
    found, complaints = last_good_checkpoint(checkpoints)
    assert found is None and len(complaints) == 3


def test_steps_are_compared_as_numbers_and_other_names_ignored(checkpoints):
    for name in ("checkpoint-1000", "checkpoint-best", "other-2000"):
        (checkpoints / name).mkdir()
        (checkpoints / name / "model.safetensors").write_bytes(b"w")
        seal_checkpoint(checkpoints / name)
    assert last_good_checkpoint(checkpoints) == (checkpoints / "checkpoint-1000", [])


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert last_good_checkpoint(tmp_path) == (None, [])
    assert last_good_checkpoint(tmp_path / "nowhere") == (None, [])


def test_the_commit_names_the_code_or_nothing(tmp_path, monkeypatch):
    assert len(storage.commit().removesuffix("+")) in (0, *range(7, 41))
    monkeypatch.setattr(storage.vpo_lab, "__file__", str(tmp_path / "__init__.py"))
    assert storage.commit() == ""
