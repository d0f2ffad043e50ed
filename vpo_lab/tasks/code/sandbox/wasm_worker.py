"""A process that runs untrusted programs in CPython as WebAssembly. `python -E -P -B wasm_worker.py WASM CACHE PARENT`.

A script that imports nothing of the package. The program sees no file, no socket, no variable, no other process.
WebAssembly alone limits neither output nor `sleep`, so this process keeps the time, and ends itself where it must.
"""

import json
import os
import struct
import sys
import threading
import time
from pathlib import Path

START = 1.0  # seconds in which the interpreter starts
WAKE = 0.5  # seconds in which an interrupted program ends, unless it sleeps
LIMIT = 65_536  # bytes of one text
MEMORY = 512 << 20
STACK = 1 << 20  # of the compiled program; wasmtime allows less than 2 MB
TICK = 0.01
LENGTH = struct.Struct("<I")

# The program's own Python. It says on standard output, a line of JSON each: [-1, null] when the answer's module has
# been executed, then [number of the test, JSON text or null].
CALLER = """
import io, json, os, sys, types
job = json.loads(sys.argv.pop())
def serve(job, loads=json.loads, dumps=json.dumps, write=os.write, leave=os._exit):
    class Nowhere(io.TextIOBase):
        def write(self, text):
            return len(text)
    def say(number, text):
        data = (dumps([number, text]) + chr(10)).encode()
        while data:
            data = data[write(1, data):]
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), Nowhere(), Nowhere()
    module = types.ModuleType("answer")
    sys.modules["__main__"] = sys.modules["answer"] = module
    space, limit, function = module.__dict__, job["limit"], job["function"]
    exec(compile(job["code"], "answer.py", "exec", dont_inherit=True), space)
    say(-1, None)
    for number, arguments in enumerate(job["tests"]):
        try:
            text = dumps(space[function](*loads(arguments)), allow_nan=False)
        except MemoryError:
            leave(1)
        except BaseException:
            text = None
        say(number, text if text and len(text) <= limit else None)
    leave(0)
serve(job)
"""
RUNNER = """
import io, json, os, sys, types
def serve(job):
    sys.stdin = io.TextIOWrapper(io.BytesIO(job["stdin"].encode("utf-8", "replace")), encoding="utf-8")
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    leave = os._exit
    try:
        exec(compile(job["code"], "answer.py", "exec", dont_inherit=True), module.__dict__)
    except SystemExit:
        pass
    sys.stdout.flush()
    leave(0)
serve(json.loads(sys.argv.pop()))
"""


def main() -> None:
    """Serve jobs until standard input ends."""
    wasm, cache, parent = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    source = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what wasmtime says on our standard output must not get among the replies

    def send(message: dict) -> None:
        text = json.dumps(message).encode()
        replies.write(LENGTH.pack(len(text)) + text)

    try:
        python = Python(wasm, cache)
        said = bytearray()  # this first run also lets wasmtime make its image of the memory, a file
        if not python.execute(("print(2 + 3)",), lambda data: said.extend(data) or len(data)) or said != b"5\n":
            raise RuntimeError("the interpreter does not run")
    except Exception as error:  # whatever is wrong with this machine's wasmtime, the other side says it
        send({"problem": f"wasmtime cannot load {wasm.name}: {' '.join(str(error).split())[:200]}"})
        return
    write_no_files()
    send({"problem": ""})
    while head := source.read(LENGTH.size):
        job = json.loads(source.read(*LENGTH.unpack(head)))
        send(Run(python, job, parent, send).reply())


class Python:
    """Hold the compiled interpreter."""

    def __init__(self, wasm: Path, cache: Path):
        import wasmtime

        config = wasmtime.Config()
        config.epoch_interruption = True
        config.max_wasm_stack = STACK
        self.engine = wasmtime.Engine(config)
        self.module = self._load(wasm, cache)
        self.linker = wasmtime.Linker(self.engine)
        self.linker.define_wasi()

    def _load(self, wasm: Path, cache: Path):
        from wasmtime import Module, WasmtimeError

        try:
            return Module.deserialize_file(self.engine, str(cache))
        except (WasmtimeError, OSError):  # not there yet, or of another version
            module = Module.from_file(self.engine, str(wasm))
        part = cache.with_name(f"{cache.name}.{os.getpid()}.part")
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(module.serialize())
            os.replace(part, cache)
        except OSError:
            part.unlink(missing_ok=True)  # then the next start compiles again
        return module

    def execute(self, arguments: tuple[str, ...], heard) -> bool:
        """Run a fresh interpreter; give its output to `heard`; return whether it ended by itself and well."""
        import wasmtime

        store = wasmtime.Store(self.engine)
        store.set_epoch_deadline(1)
        store.set_limits(memory_size=MEMORY)
        wasi = wasmtime.WasiConfig()
        wasi.argv = ("python", "-I", "-S", "-B", "-c", *arguments)
        wasi.stdout_custom = heard
        wasi.stderr_custom = len
        store.set_wasi(wasi)
        try:
            self.linker.instantiate(store, self.module).exports(store)["_start"](store)
        except wasmtime.ExitTrap as end:
            return end.code == 0
        except (wasmtime.Trap, wasmtime.WasmtimeError):
            return False
        return True

    def interrupt(self) -> None:
        """End the interpreter that runs, unless it waits for the system."""
        self.engine.increment_epoch()


class Run:
    """Keep the time and the output of one job."""

    def __init__(self, python: Python, job: dict, parent: int, send):
        self._python, self._job, self._parent, self._send = python, job, parent, send
        self._calls = "function" in job
        self._lines, self._texts, self._ready = bytearray(), {}, False
        self._late, self._well, self._size = False, False, 0
        self._ended = threading.Event()
        self._turn = threading.Lock()  # who replies: the program's end, or the clock
        self._clock = Clock()
        self._limit = START + job["seconds"]

    def reply(self) -> dict:
        """Run the job and return what is known at its end."""
        clock = threading.Thread(target=self._keep_time, daemon=True)
        clock.start()
        runner = CALLER if self._calls else RUNNER
        self._well = self._python.execute((runner, json.dumps({**self._job, "limit": LIMIT})), self._hear)
        with self._turn:
            self._ended.set()
        clock.join()
        return self._known()

    def _known(self) -> dict:
        if self._calls:
            return {"ready": self._ready, "late": self._late, "texts": list(self._texts.items())}
        good = self._well and self._size <= LIMIT
        return {"printed": bytes(self._lines).decode("utf-8", "replace") if good else None, "late": self._late}

    def _hear(self, data: bytes) -> int:
        self._size += len(data)
        self._lines += data
        if self._calls:
            self._read_lines()
        if len(self._lines) > 2 * LIMIT:
            self._lines.clear()
            self._python.interrupt()
        return len(data)

    def _read_lines(self) -> None:
        while (end := self._lines.find(b"\n")) >= 0:
            line = bytes(self._lines[:end])
            del self._lines[: end + 1]
            try:
                number, text = json.loads(line)
            except (ValueError, TypeError, RecursionError):
                continue
            if number == -1 and not self._ready:
                self._ready = True
            elif type(number) is int and 0 <= number < len(self._job["tests"]) and number not in self._texts:
                self._texts[number] = text if isinstance(text, str) else None
            else:
                continue
            self._clock.restart()
            self._limit = self._job["seconds"]

    def _keep_time(self) -> None:
        while not self._ended.wait(TICK):
            if os.name == "posix" and os.getppid() != self._parent:
                os._exit(1)
            if self._clock.spent() > self._limit:
                break
        else:
            return
        self._late = True
        self._python.interrupt()
        if not self._ended.wait(WAKE):  # it sleeps: only the end of this process wakes it
            with self._turn:
                if not self._ended.is_set():
                    self._send({**self._known(), "ends": True})
                    os._exit(0)


class Clock:
    """Tell how long the thread that made it has been at work, asleep included.

    Waiting for a core is not its fault; where the system does not tell of it, this is the clock on the wall.
    """

    def __init__(self):
        folder = f"/proc/self/task/{threading.get_native_id()}"
        self._files = Path(folder, "schedstat"), Path(folder, "stat")
        self._start = 0.0, 0.0
        self.restart()

    def _look(self) -> tuple[float, float, bool]:
        now = time.monotonic()
        try:
            computed, waited = (int(word) / 1e9 for word in self._files[0].read_bytes().split()[:2])
            # While it waits for a core, the kernel has not yet added that wait.
            asleep = self._files[1].read_bytes().rpartition(b")")[2].split()[0] == b"S"
        except (OSError, ValueError, IndexError):
            return 0.0, now, True
        return computed, now - waited, asleep

    def restart(self) -> None:
        """Count from now on."""
        self._start = self._look()[:2]

    def spent(self) -> float:
        """Return the seconds since `restart`."""
        computed, both, asleep = self._look()
        return max(computed - self._start[0], both - self._start[1] if asleep else 0.0)


def write_no_files() -> None:
    """Let the system refuse to make files longer, as far as it can."""
    if os.name == "posix":
        import resource

        for what in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
            resource.setrlimit(what, (0, 0))


if __name__ == "__main__":
    main()
