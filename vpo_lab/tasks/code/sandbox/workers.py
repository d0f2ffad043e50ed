"""Processes that each answer one message at a time; one that dies or hangs is replaced and asked again."""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import subprocess
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from vpo_lab.errors import LabError

ATTEMPTS = 3
START_SECONDS = 60.0  # WebAssembly is compiled once, on a slow machine for half a minute
OUTPUT_LIMIT = 65_536  # bytes of one returned or printed text


class Gone(Exception):
    """Say that a worker ended before it had answered."""


class Worker:
    """Hold one process that reads and writes messages: four bytes of length, then JSON."""

    def __init__(self, command: Sequence[str], start_seconds: float = START_SECONDS):
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
        try:
            self.problem: str = self._within(start_seconds, self._receive)["problem"]
        except Gone:
            self.problem = f"its process ended at the start: {' '.join(command)}"

    def ask(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return the answer to one message; raises `Gone`, and ends the process, where none comes in time."""

        def exchange() -> dict[str, Any]:
            text = json.dumps(job).encode()
            self._send(struct.pack("<I", len(text)) + text)
            return self._receive()

        return self._within(seconds, exchange)

    def _within(self, seconds: float, exchange: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        timer = threading.Timer(seconds, self.kill)
        timer.daemon = True
        timer.start()
        try:
            return exchange()
        except (OSError, ValueError, EOFError) as error:
            self.kill()
            raise Gone from error
        except BaseException:  # an interrupt leaves half a message in the pipe
            self.kill()
            raise
        finally:
            timer.cancel()

    def _send(self, data: bytes) -> None:
        stream = self._process.stdin
        assert stream is not None
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]

    def _receive(self) -> dict[str, Any]:
        (size,) = struct.unpack("<I", self._read(4))
        return json.loads(self._read(size))

    def _read(self, size: int) -> bytes:
        stream = self._process.stdout
        assert stream is not None
        parts = bytearray()
        while len(parts) < size:
            part = stream.read(size - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

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

    def close(self) -> None:
        """End the process and forget it."""
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        if os.getpid() == self._owner:
            self._process.wait()


class Workers:
    """Hold up to `size` workers, started when threads ask for them."""

    def __init__(self, command: Sequence[str], size: int | None = None):
        self._command = list(command)
        self._size = size or cores()
        self._closed = threading.Event()
        self._reset()

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(self._size):
            self._idle.put(None)
        weakref.finalize(self, _end, self._idle)

    def ask(self, job: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """Return a worker's answer, or `None` where one after the other died of this job.

        Raises:
            LabError: the sandbox is closed, or no worker can be started.
        """
        if os.getpid() != self._owner:  # after a fork the pipes belong to the other process
            self._reset()
        for _ in range(ATTEMPTS):
            if self._closed.is_set():
                raise LabError("this sandbox is closed: open another with open_sandbox()")
            idle = self._idle
            worker, alive = idle.get(), False
            try:
                if worker is None:
                    worker = self._start()
                answer = worker.ask(job, seconds)
                alive = not answer.get("ends")
                return answer
            except Gone:
                continue
            finally:
                if worker is not None and (not alive or self._closed.is_set()):
                    worker.close()
                    worker = None
                idle.put(worker)
        return None

    def _start(self) -> Worker:
        worker = Worker(self._command)
        if worker.problem:
            worker.close()
            raise LabError(f"the sandbox cannot start a process: {worker.problem}")
        return worker

    def close(self) -> None:
        """End the workers that rest now; one that is in use ends with its answer."""
        self._closed.set()
        _end(self._idle)


def _end(idle: queue.LifoQueue[Worker | None]) -> None:
    count = idle.qsize()
    for _ in range(count):
        try:
            worker = idle.get_nowait()
        except queue.Empty:
            break
        if worker is not None:
            worker.close()
        idle.put(None)


def problem(command: Sequence[str]) -> str:
    """Return "" if a worker starts and finds all that it needs, else its reason."""
    worker = Worker(command)
    worker.close()
    return worker.problem


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerSandbox:
    """Call functions and run programs in workers that speak the protocol of `fork_server.py`.

    A worker runs all tests of a job in one interpreter and says which it answered. Where that interpreter
    ended early, each other test gets one of its own, so that a bad test costs only itself.
    """

    name = ""

    def __init__(self, command: Sequence[str], grace: float):
        self._workers = Workers(command)
        self._grace = grace

    def call(
        self, code: str, function: str, arguments: Sequence[str], seconds: float = 1.0
    ) -> list[str | None]:
        """Return for each JSON text of an argument list the JSON text of what the function returned, or `None`."""
        tests = list(arguments)
        answers: list[str | None] = [None] * len(tests)
        todo = self._ask(code, function, tests, seconds, range(len(tests)), answers)
        for index in todo:
            self._ask(code, function, tests, seconds, [index], answers)
        return [plain(text) for text in answers]

    def _ask(
        self,
        code: str,
        function: str,
        tests: list[str],
        seconds: float,
        indices: Sequence[int],
        answers: list[str | None],
    ) -> list[int]:
        """Fill in what one interpreter answers; return the tests that deserve one of their own."""
        if not indices:
            return []
        job = {"code": code, "function": function, "tests": [tests[i] for i in indices], "seconds": seconds}
        reply = self._workers.ask(job, (len(indices) + 1) * (seconds + self._grace) + 10)
        if reply is None or not reply["ready"]:
            return []
        for position, text in reply["texts"]:
            answers[indices[position]] = text
        answered = {position for position, _ in reply["texts"]}
        left = [index for position, index in enumerate(indices) if position not in answered]
        return left[1:] if reply["late"] else left

    def run(self, code: str, stdins: Sequence[str], seconds: float = 1.0) -> list[str | None]:
        """Return for each text on standard input what the program printed, or `None`."""
        printed = []
        for stdin in stdins:
            job = {"code": code, "stdin": stdin, "seconds": seconds}
            reply = self._workers.ask(job, seconds + self._grace + 10)
            printed.append(reply["printed"] if reply else None)
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
