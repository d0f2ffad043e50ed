"""Processes that each answer one message at a time; one that dies or hangs is replaced and asked again."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import struct
import subprocess
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from vpo_lab.errors import LabError

ATTEMPTS = 3
OFTEN = 2  # late tests, after which an answer has a tenth of the time for each: endless loops are common
HANGS = 20  # times the seconds of a job
START_SECONDS = 300.0  # WebAssembly is compiled once, on a busy machine for minutes
OUTPUT_LIMIT = 65_536  # bytes of one returned or printed text
LENGTH = struct.Struct("<I")  # in front of each message


class Gone(Exception):
    """Say that a worker ended before it had answered."""


class Worker:
    """Hold one process that reads and writes messages: four bytes of length, then JSON."""

    def __init__(self, command: Sequence[str]):
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/" if os.name == "posix" else None,
            env={} if os.name == "posix" else None,
            start_new_session=True,
            bufsize=0,
        )

    def ask(self, message: dict[str, Any] | None) -> dict[str, Any]:
        """Return the answer to a message, or the worker's first words to `None`.

        Raises:
            Gone: the process ended first. It is ended, too, where this is interrupted in the middle of a message.
        """
        try:
            if message is not None:
                text = json.dumps(message).encode()
                self._write(LENGTH.pack(len(text)) + text)
            return json.loads(self._read(*LENGTH.unpack(self._read(LENGTH.size))))
        except (OSError, ValueError, EOFError) as error:
            self.kill()
            raise Gone from error
        except BaseException:
            self.kill()
            raise

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self._process.stdin.write(view) :]

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        parts = bytearray()
        while len(parts) < size:
            part = self._process.stdout.read(size - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def dead(self) -> bool:
        """Return whether the process has ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End the process and all that it started."""
        if os.getpid() == self._owner and self._process.poll() is None:
            try:
                if os.name == "posix":
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()
            except ProcessLookupError:
                pass
            self._process.wait()

    def close(self) -> None:
        """End the process and forget it."""
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class Workers:
    """Hold up to `size` workers, started when threads ask for them."""

    def __init__(self, command: Sequence[str], size: int | None = None):
        self._command, self._size = list(command), size or cores()
        self._closed = threading.Event()
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(self._size):
            self._idle.put(None)
        self._busy: dict[Worker, float] = {}
        threading.Thread(target=_kill_late, args=(self._busy, self._closed), daemon=True).start()
        weakref.finalize(self, _end, self._idle, self._closed)

    def ask(self, job: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """Return a worker's answer, or `None` where one after the other died of this job.

        A worker keeps to `seconds` itself. It is killed when it seems to hang, even if the machine is very busy.

        Raises:
            LabError: the sandbox is closed, or no worker can be started.
        """
        for _ in range(ATTEMPTS):
            with self._worker() as worker, contextlib.suppress(Gone):
                return self._ask(worker, job, HANGS * (seconds + 1) + 60)
        return None

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Worker]:
        """Lend a worker, a new one where the last one was lost; wait while all are in use."""
        if self._closed.is_set():
            raise LabError("this sandbox is closed: open another with open_sandbox()")
        if os.getpid() != self._owner:  # after a fork the pipes belong to the other process
            self._begin()
        idle = self._idle
        worker = idle.get()
        try:
            worker = worker or self._start()
            yield worker
        finally:
            if worker and (worker.dead() or self._closed.is_set()):
                worker.close()
                worker = None
            idle.put(worker)

    def _start(self) -> Worker:
        worker = Worker([*self._command, str(os.getpid())])  # it ends when this process does
        try:
            problem = self._ask(worker, None, START_SECONDS)["problem"]
        except Gone:
            problem = f"this command ended at once: {' '.join(self._command)}"
        if problem:
            worker.close()
            raise LabError(problem)
        return worker

    def _ask(self, worker: Worker, job: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        self._busy[worker] = time.monotonic() + seconds
        try:
            reply = worker.ask(job)
            if reply.get("ends"):  # it could end the program only by ending itself
                worker.kill()
            return reply
        finally:
            del self._busy[worker]

    def problem(self) -> str:
        """Return "" if a worker starts and finds all that it needs, else its reason."""
        try:
            with self._worker():
                return ""
        except LabError as error:
            return str(error)

    def close(self) -> None:
        """End the workers that rest now; one that is in use ends with its answer."""
        _end(self._idle, self._closed)


def _kill_late(busy: dict[Worker, float], closed: threading.Event) -> None:
    """Kill workers that are overdue. Each keeps its own time, so this is for one that hangs as a whole."""
    while busy or not closed.is_set():
        time.sleep(1)
        for worker, until in list(busy.items()):
            if time.monotonic() > until:
                worker.kill()


def _end(idle: queue.LifoQueue[Worker | None], closed: threading.Event) -> None:
    closed.set()
    for _ in range(idle.qsize()):
        with contextlib.suppress(queue.Empty):
            if worker := idle.get_nowait():
                worker.close()
            idle.put(None)


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def allowed(seconds: float, lates: int) -> float:
    """Return the time of the next test of an answer that was late so often."""
    return seconds if lates < OFTEN else seconds / 10


class WorkerSandbox:
    """Call functions and run programs in workers that speak the protocol of `fork_server.py`.

    A worker runs all tests of a job in one interpreter and says which it answered. Where that interpreter
    ended early, each other test gets one of its own, so that a bad test costs only itself.
    """

    name = ""

    def __init__(self, command: Sequence[str]):
        self._workers = Workers(command)

    def call(self, code: str, function: str, arguments: Sequence[str], seconds: float = 1.0) -> list[str | None]:
        """Return for each JSON text of an argument list the JSON text of what the function returned, or `None`."""
        tests = list(arguments)
        answers: list[str | None] = [None] * len(tests)
        todo, lates = self._ask(code, function, tests, seconds, range(len(tests)), answers)
        for index in todo:
            lates += self._ask(code, function, tests, allowed(seconds, lates), [index], answers)[1]
        return [plain(text) for text in answers]

    def _ask(
        self,
        code: str,
        function: str,
        tests: list[str],
        seconds: float,
        indices: Sequence[int],
        answers: list[str | None],
    ) -> tuple[list[int], bool]:
        """Fill in what one interpreter answers; return the tests that deserve one of their own, and if it was late."""
        if not indices:
            return [], False
        job = {"code": code, "function": function, "tests": [tests[i] for i in indices], "seconds": seconds}
        reply = self._workers.ask(job, (len(indices) + 1) * seconds)
        if reply is None or not reply["ready"]:
            return [], False
        for position, text in reply["texts"]:
            answers[indices[position]] = text
        answered = {position for position, _ in reply["texts"]}
        left = [index for position, index in enumerate(indices) if position not in answered]
        return left[1:] if reply["late"] else left, reply["late"]

    def run(self, code: str, stdins: Sequence[str], seconds: float = 1.0) -> list[str | None]:
        """Return for each text on standard input what the program printed, or `None`."""
        printed, lates = [], 0
        for stdin in stdins:
            job = {"code": code, "stdin": stdin, "seconds": allowed(seconds, lates)}
            reply = self._workers.ask(job, seconds) or {"printed": None, "late": False}
            printed.append(reply["printed"])
            lates += reply["late"]
        return printed

    def close(self) -> None:
        """End all processes of the sandbox."""
        self._workers.close()

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def plain(text: str | None) -> str | None:
    """Return the JSON text in Python's own form; `None` where it is none, too long, or holds NaN or Infinity."""
    if text is None or len(text) > OUTPUT_LIMIT:
        return None
    try:
        return json.dumps(json.loads(text), allow_nan=False)
    except (ValueError, RecursionError):
        return None
