"""The sandboxes: what they return, what they hold back, and that nothing is lost or left behind."""

import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hostile_programs import CHEATS, HOSTILE, LOOPS
from tests.waiting import alive, until
from vpo_lab.errors import LabError
from vpo_lab.tasks.code import sandbox as sandboxes
from vpo_lab.tasks.code.sandbox import available, open_sandbox

ROOT = Path(__file__).resolve().parents[2]
REASONS = available()
WASM_IS_COMPILED = not REASONS["wasm"] and sandboxes._module("wasm").compiled().exists()
if not WASM_IS_COMPILED:
    REASONS["wasm"] = REASONS["wasm"] or "not compiled yet: open_sandbox('wasm') does it once"


@pytest.fixture(scope="module", params=["fork", "monty", "wasm"])
def sandbox(request):
    if REASONS[request.param]:
        pytest.skip(REASONS[request.param])
    with open_sandbox(request.param) as opened:
        yield opened


@pytest.fixture
def fork():
    if REASONS["fork"]:
        pytest.skip(REASONS["fork"])
    with open_sandbox("fork") as opened:
        yield opened


def calls(sandbox, body: str, *arguments: object, seconds: float = 5.0) -> list:
    """Call `solve(x)` with this body for each argument."""
    code = "def solve(x):\n" + textwrap.indent(body, "    ")
    return sandbox.call(code, "solve", [json.dumps([x]) for x in arguments], seconds)


# --- What comes back ------------------------------------------------------------------------------


def test_a_call_returns_json(sandbox):
    assert calls(sandbox, "return sorted(x)", [3, 1, 2], []) == ["[1, 2, 3]", "[]"]
    assert calls(sandbox, "return (x, 1.5, None, True, 'é', {'a': (1,)})", 7) == [
        json.dumps([7, 1.5, None, True, "é", {"a": [1]}])
    ]


def test_what_json_cannot_hold_is_none(sandbox):
    for body in ("return {1, 2}", "return float('nan')", "return -float('inf')", "return solve", "return b'x'"):
        assert calls(sandbox, body, 1) == [None], body
    assert calls(sandbox, "y = []\ny.append(y)\nreturn y", 1) == [None]
    assert calls(sandbox, "return 'a' * x", 10, 70_000) == ['"aaaaaaaaaa"', None]
    assert calls(sandbox, "return 10 ** x", 20, 5000) == [str(10**20), None]


def test_a_small_value_that_is_long_when_written_out_is_none(sandbox):
    """Each list holds the next twice: two to the power of forty numbers, in forty lists."""
    assert calls(sandbox, "y = [0]\nfor _ in range(40): y = [y, y]\nreturn y", 1, seconds=0.3) == [None]
    code = "y = [0]\nfor _ in range(40): y = [y, y]\ndef solve(x): return x\ny"
    assert sandbox.call(code, "solve", ["[1]"]) == ["1"]


def test_a_failing_test_costs_only_itself(sandbox):
    assert calls(sandbox, "return 1 // x", 1, 0, -1) == ["1", None, "-1"]
    body = "if x == 2:\n    while True: pass\nreturn x"
    assert calls(sandbox, body, 1, 2, 3, seconds=0.3) == ["1", None, "3"]


def test_an_answer_that_is_often_late_is_waited_for_less(sandbox):
    """Endless loops are common in what a model writes: sixteen tests of two seconds each would take half a minute."""
    if sandbox.name == "monty":
        pytest.skip("it is not for what people would wait for")
    body = "import time\nbegan = time.monotonic()\nwhile time.monotonic() < began + x: pass\nreturn x"
    assert calls(sandbox, body, 30, 0.6, 30, 0.6, 0.01, seconds=1.0) == [None, "0.6", None, None, "0.01"]
    if sandbox.name == "wasm":
        return  # a program of its own also has a second in which the interpreter starts
    program = "x = float(input())\ndef solve(x):\n" + textwrap.indent(body, "    ") + "\nprint(solve(x))"
    assert sandbox.run(program, ["30", "0.6", "30", "0.6", "0.01"], seconds=1.0) == [
        None,
        "0.6\n",
        None,
        None,
        "0.01\n",
    ]


def test_code_that_does_not_run_answers_nothing(sandbox):
    for code in ("def solve(x) return x", "1 / 0", "def other(x): return x", "", "solve = 3", "\ud800", "x = 'a\0b'"):
        assert sandbox.call(code, "solve", ["[1]", "[2]"]) == [None, None], code
    assert sandbox.call("def solve(x): return x", "solve", []) == []
    assert sandbox.run("def solve(x) return x", [""]) == [None]


def test_what_a_program_prints(sandbox):
    assert sandbox.run("print('a', 1)\nprint('ü')", [""]) == ["a 1\nü\n"]
    assert sandbox.run("print(1)\n1 / 0", ["", ""]) == [None, None]
    assert sandbox.run("print('a' * 70_000)", [""]) == [None]
    if sandbox.name == "monty":
        assert sandbox.run("print(input())", ["4"]) == [None]
        return
    assert sandbox.run("print(int(input()) * 2)", ["4", "x", "5\n"]) == ["8\n", None, "10\n"]
    assert sandbox.run("import sys\nprint(len(sys.stdin.read()))\nsys.exit(1)", ["abc\nd"]) == ["5\n"]
    assert sandbox.run("if __name__ == '__main__': print(sum(map(int, input().split())))", ["1 2"]) == ["3\n"]


def test_tests_of_an_answer_and_answers_know_nothing_of_each_other(sandbox):
    assert sandbox.call("mark = []\ndef solve(x):\n    mark.append(x)\n    return len(mark)", "solve", ["[1]"]) == ["1"]
    assert sandbox.call("def solve(x): return len(mark)", "solve", ["[1]"]) == [None]
    assert sandbox.call("mark = []\ndef solve(x):\n    mark.append(x)\n    return len(mark)", "solve", ["[1]"]) == ["1"]


def test_threads_share_a_sandbox(sandbox):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: calls(sandbox, f"return x + {n}", 1, 2), range(12)))
    assert found == [[str(1 + n), str(2 + n)] for n in range(12)]


# --- What is held back -----------------------------------------------------------------------------

ON_WASM = ("loop", "sleep", "output", "file", "read a file", "socket", "environment", "shell", "other descriptors")


def test_hostile_programs_achieve_nothing(sandbox, tmp_path):
    def run(name: str):
        return sandbox.run(HOSTILE[name].replace("{folder}", str(tmp_path)), [""], seconds=0.2)[0]

    names = [name for name in HOSTILE if sandbox.name != "wasm" or name in ON_WASM]
    endless = LOOPS.keys() - ({"regex"} if sandbox.name == "monty" else ())  # its engine does not go back
    with ThreadPoolExecutor(2) as pool:
        printed = dict(zip(names, pool.map(run, names), strict=True))
    assert {name: text for name, text in printed.items() if text and "GOT" in text} == {}
    assert {name: text for name, text in printed.items() if text is not None and name in endless} == {}
    assert list(tmp_path.iterdir()) == []
    assert calls(sandbox, "return x", 1) == ["1"]


def test_cheats_do_not_find_what_is_expected(sandbox):
    secret = {"[1]": "[4711, 1]", "[2]": "[4711, 2]", "[3]": "[4711, 3]"}
    for name, code in CHEATS.items():
        found = sandbox.call(code, "solve", list(secret), seconds=5)
        assert not set(found) & {*secret.values(), "true"}, name
    assert sandbox.call("def solve(x): return [4711, x]", "solve", list(secret)) == list(secret.values())


# Signals are unblocked as a page says: a system call that tells, and does not crash, where no memory is.
SCAN = """
    import ctypes, re
    mark = "PEB111111BLE"
    def solve(number):
        call, none = ctypes.CDLL(None).syscall, ctypes.c_void_p(0)
        near = {id(mark) >> 12, ctypes.addressof(ctypes.create_string_buffer(9)) >> 12}
        pages = [p << 12 for n in near for p in range(n - 2000, n + 2000)]
        pages = [p for p in pages if call(number, 1, ctypes.c_void_p(p), none, ctypes.c_long(8)) == 0]
        return sorted({m.decode() for p in pages for m in re.findall(rb"PEB(\\d+)BLE", ctypes.string_at(p, 4096))})
"""
RT_SIGPROCMASK = {"x86_64": 14, "aarch64": 135}


def test_a_child_holds_nothing_of_other_answers(fork):
    """Answers may read all memory of their process, freed memory too: others were never in it."""
    for _ in range(3):
        fork.call("def solve(x): return ['PEB222222BLE'] * x", "solve", ["[1]", "[9]"])
        fork.run("print('PEB222222BLE')", ["PEB333333BLE"])
    number = json.dumps([RT_SIGPROCMASK[platform.machine()]])
    assert fork.call(textwrap.dedent(SCAN), "solve", [number], seconds=20) == ['["111111"]']


def test_a_child_that_dies_leaves_its_other_tests_alive(fork):
    code = (
        "import os, ctypes\ndef solve(x):\n    if x == 1: os._exit(0)\n    if x == 3: ctypes.string_at(0)\n    return x"
    )
    assert fork.call(code, "solve", ["[0]", "[1]", "[2]", "[3]", "[4]"]) == ["0", None, "2", None, "4"]


def test_memory_that_one_test_fills_is_there_for_the_next(fork):
    code = "kept = []\ndef solve(x):\n    while x: kept.append(bytearray(10**7))\n    return len(bytearray(10**8))"
    assert fork.call(code, "solve", ["[1]", "[0]"], seconds=10) == [None, "100000000"]


# --- Processes -------------------------------------------------------------------------------------


def servers(parent: int, name: str) -> list[int]:
    """The processes that this one started, whose command line holds the name."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and name in (folder / "cmdline").read_text():
                if parent in (0, int((folder / "stat").read_text().rpartition(")")[2].split()[1])):
                    found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_a_dead_server_is_replaced_and_nothing_is_lost(fork):
    assert calls(fork, "return x", 1) == ["1"]
    before = servers(os.getpid(), "fork_server.py")
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert calls(fork, "return x", 2) == ["2"]
    with ThreadPoolExecutor(1) as pool:
        body = "n = 0\nwhile n < 4_000_000: n += 1\nreturn x"
        waits = pool.submit(calls, fork, body, 3, seconds=30)
        time.sleep(0.1)
        for pid in servers(os.getpid(), "fork_server.py"):
            os.kill(pid, signal.SIGKILL)
        assert waits.result() == ["3"]


def test_close_ends_all_processes(fork):
    calls(fork, "return x", 1)
    fork.close()
    fork.close()
    assert until(lambda: not servers(os.getpid(), "fork_server.py"))
    with pytest.raises(LabError):
        calls(fork, "return x", 1)


def test_a_forked_process_gets_servers_of_its_own(fork):
    calls(fork, "return x", 1)
    pid = os.fork()
    if pid == 0:
        good = False
        try:
            good = calls(fork, "return x", 2) == ["2"]
            fork.close()
        finally:
            os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert calls(fork, "return x", 3) == ["3"]


@pytest.mark.parametrize("backend", ["fork", "monty", "wasm"])
def test_nothing_outlives_a_killed_parent(backend):
    if REASONS[backend]:
        pytest.skip(REASONS[backend])
    if not sys.platform.startswith("linux"):
        pytest.skip("processes are counted in /proc")
    code = f"""
import sys, threading
from vpo_lab.tasks.code.sandbox import open_sandbox
sandbox = open_sandbox({backend!r})
sandbox.call("def f(x): return x", "f", ["[1]"])
print("ready", flush=True)
sandbox.call("def f(x):\\n    while True: pass", "f", ["[1]"], {4 if backend == "monty" else 60})
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout.readline() == b"ready\n"
    time.sleep(0.5)

    def below(pid: int) -> list[int]:
        children = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [p for child in children for p in (child, *below(child))]

    born = below(parent.pid)
    assert born
    parent.kill()
    parent.wait()
    assert until(lambda: not [pid for pid in born if alive(pid)], 30)


# --- Which back end --------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(LabError, match=r"fork.*monty.*wasm"):
        open_sandbox("exec")


def test_the_first_that_works_is_chosen_and_never_monty(monkeypatch):
    modules = {name: sandboxes._module(name) for name in sandboxes.BACKENDS}
    for name in ("fork", "wasm"):
        monkeypatch.setattr(modules[name], "SANDBOX", lambda name=name: name)
        monkeypatch.setattr(modules[name], "problem", lambda: "")
    assert open_sandbox() == "fork"
    monkeypatch.setattr(modules["fork"], "problem", lambda: "no Linux")
    assert open_sandbox() == "wasm"
    monkeypatch.setattr(modules["wasm"], "problem", lambda: "pip install it")
    with pytest.raises(LabError, match=r"no Linux.*pip install it"):
        open_sandbox()
    with pytest.raises(LabError, match="no Linux"):
        open_sandbox("fork")


def test_a_kernel_without_seccomp_is_refused(tmp_path, monkeypatch):
    if REASONS["fork"]:
        pytest.skip(REASONS["fork"])
    fork = sandboxes._module("fork")
    script = tmp_path / "server.py"
    script.write_text(fork.SERVER.read_text(encoding="utf-8").replace("    deny()\n", "    pass\n"), encoding="utf-8")
    monkeypatch.setattr(fork, "SERVER", script)
    assert "seccomp" in fork.problem()
    with pytest.raises(LabError, match="seccomp"):
        open_sandbox("fork")


def test_an_interpreter_with_another_hash_is_refused(tmp_path, monkeypatch):
    wasm = sandboxes._module("wasm")
    if REASONS["wasm"]:
        pytest.skip(REASONS["wasm"])
    (tmp_path / "other.wasm").write_bytes(b"\0asm")
    monkeypatch.setattr(wasm, "interpreter", lambda: tmp_path / "other.wasm")
    assert "other.wasm" in wasm.problem()
    monkeypatch.setattr(wasm, "interpreter", lambda: None)
    assert "pip install" in wasm.problem()
