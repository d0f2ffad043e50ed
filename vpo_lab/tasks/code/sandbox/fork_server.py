"""A warm Python that runs untrusted programs in locked children. A script: `python -I -S -B fork_server.py PARENT`.

It imports nothing of the package. Three kinds of process work together:
- the server waits for a message on standard input and then forks, without having read it: no trace of an answer
  stays in the memory that later children inherit;
- the supervisor reads one job, forks the child, keeps the time, kills it, replies on standard output and ends;
- the child drops all rights and runs the answer.
A job holds arguments, never an expected value, so a forged message says no more than a returned value could.
"""

import ctypes
import errno
import gc
import importlib
import io
import json
import os
import platform
import resource
import select
import signal
import socket
import struct
import sys
import time
import types

# A locked child opens no file, so it can import only what is here already.
PRELOAD = """
abc array ast base64 binascii bisect calendar cmath collections collections.abc colorsys contextlib copy copyreg csv
dataclasses datetime decimal difflib encodings.ascii encodings.cp1252 encodings.latin_1 encodings.utf_16
encodings.utf_8_sig enum fractions functools graphlib hashlib heapq hmac html inspect io itertools json keyword
linecache locale math numbers operator pickle pprint queue random re reprlib sched secrets shlex stat statistics
string struct textwrap threading time timeit token tokenize traceback types typing unicodedata unittest urllib.parse
uuid warnings weakref zlib _strptime __future__
""".split()

GRACE = 0.5  # seconds beyond the child's own timer
LIMIT = 65_536  # bytes of one text
MEMORY = 512 << 20
STACK = 64 << 20
RESULTS = 3  # the child's descriptor for what functions returned
READY, FAILED = -1, -2  # what a child says of the answer's module, where else the number of a test stands
HEAD = struct.Struct("<iI")  # number, bytes of text
HEAD_OF_MESSAGE = struct.Struct("<I")

# The system calls that a running interpreter needs; all others fail with EPERM. Linux's tables, per architecture.
ALLOWED = {
    "x86_64": (
        0xC000003E,
        dict(
            read=0, write=1, close=3, fstat=5, lseek=8, mmap=9, mprotect=10, munmap=11, brk=12, rt_sigaction=13,
            rt_sigprocmask=14, rt_sigreturn=15, sched_yield=24, mremap=25, madvise=28, nanosleep=35, setitimer=38,
            getpid=39, exit=60, gettimeofday=96, getrusage=98, sigaltstack=131, gettid=186, time=201, futex=202,
            restart_syscall=219, clock_gettime=228, clock_getres=229, clock_nanosleep=230, exit_group=231,
            getrandom=318, rseq=334,
        ),
    ),
    "aarch64": (
        0xC00000B7,
        dict(
            close=57, lseek=62, read=63, write=64, fstat=80, exit=93, exit_group=94, futex=98, nanosleep=101,
            setitimer=103, clock_gettime=113, clock_getres=114, clock_nanosleep=115, sched_yield=124,
            restart_syscall=128, sigaltstack=132, rt_sigaction=134, rt_sigprocmask=135, rt_sigreturn=139,
            getrusage=165, gettimeofday=169, getpid=172, gettid=178, brk=214, munmap=215, mremap=216, mmap=222,
            mprotect=226, madvise=233, getrandom=278, rseq=293,
        ),
    ),
}  # fmt: skip
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 22, 2
libc = ctypes.CDLL(None, use_errno=True)


class Filter(ctypes.Structure):
    """The kernel's struct sock_fprog."""

    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def main() -> None:
    """Serve jobs until standard input ends or the process that started this one is gone."""
    parent = int(sys.argv[1])
    for name in PRELOAD:
        importlib.import_module(name)
    os.environ.clear()
    random = sys.modules["random"]
    random.seed(0)  # each answer draws the same numbers
    send({"problem": self_test()})
    gc.collect()
    gc.freeze()
    while another_job(parent):
        pid = os.fork()
        if pid == 0:
            try:
                supervise()
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        if status:  # perhaps in the middle of a reply
            return


def another_job(parent: int) -> bool:
    """Wait for a message, and return False if there will be none."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while True:
        if os.getppid() != parent:  # its other children may hold the pipe open
            return False
        for _, event in poll.poll(5000):
            return bool(event & select.POLLIN)


def send(message: dict) -> None:
    """Write a message to standard output."""
    text = json.dumps(message).encode()
    view = memoryview(HEAD_OF_MESSAGE.pack(len(text)) + text)
    while view:
        view = view[os.write(1, view) :]


def receive() -> dict:
    """Read a message from standard input, and not one byte more."""
    return json.loads(exactly(*HEAD_OF_MESSAGE.unpack(exactly(HEAD_OF_MESSAGE.size))))


def exactly(size: int) -> bytes:
    """Read so many bytes from standard input; end this process where it ends before."""
    parts = bytearray()
    while len(parts) < size:
        part = os.read(0, size - len(parts))
        if not part:
            os._exit(1)
        parts += part
    return bytes(parts)


# --- The supervisor -------------------------------------------------------------------------------


def supervise() -> None:
    """Answer one job and end."""
    end_with_parent(os.getppid())
    job = receive()
    send(run_program(job) if "stdin" in job else run_tests(job))
    os._exit(0)


def start(target, job: dict) -> tuple[int, int]:
    """Fork a child that runs `target(job)`; return its id and the pipe that it writes to."""
    supervisor = os.getpid()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            end_with_parent(supervisor)
            os.close(read_end)
            target(job, write_end)
        finally:
            os._exit(1)
    os.close(write_end)
    return pid, read_end


def pieces(pipe: int, pid: int, deadline):
    """Yield what the child writes, until it closes the pipe (then None) or `deadline()` has passed."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    poll.register(0, 0)  # only to hear that nobody waits for the reply any more
    while True:
        left = deadline() - time.monotonic()
        if left <= 0:
            return
        for descriptor, _ in poll.poll(max(1, left * 1000)):
            if descriptor == 0:
                os.kill(pid, signal.SIGKILL)
                os._exit(1)
            data = os.read(pipe, LIMIT)
            yield data or None
            if not data:
                return


def run_tests(job: dict) -> dict:
    """Call the answer's function with all arguments in one child.

    Returns:
        ready: whether the answer's module was executed.
        late: whether the child was killed in the first test that is not among the texts.
        texts: pairs (number of the test, JSON text or None), as they came.
    """
    pause = job["seconds"] + GRACE
    until = time.monotonic() + pause
    pid, pipe = start(call_tests, job)
    said, late = Said(len(job["tests"])), True
    for data in pieces(pipe, pid, lambda: until):
        if data is not None and said.something_new(data):
            until = time.monotonic() + pause
        if data is None or said.over:
            late = False
            break
    end(pid)
    return {"ready": said.ready, "late": late, "texts": list(said.texts.items())}


class Said:
    """What a child has said of its tests. It may be lies, but no more than a function could return."""

    def __init__(self, count: int):
        self.count, self.ready, self.over = count, False, False
        self.texts: dict[int, str | None] = {}
        self._buffer = bytearray()

    def something_new(self, data: bytes) -> bool:
        """Read on; return True where the child got further, which earns it time for the next test."""
        self._buffer += data
        news = False
        while len(self._buffer) >= HEAD.size and not self.over:
            number, size = HEAD.unpack_from(self._buffer)
            if size <= LIMIT and len(self._buffer) < HEAD.size + size:
                break
            text = bytes(self._buffer[HEAD.size : HEAD.size + size]).decode("utf-8", "replace")
            del self._buffer[: HEAD.size + size]
            if number == FAILED or size > LIMIT:
                self.over = True
            elif number == READY:
                news, self.ready = news or not self.ready, True
            elif 0 <= number < self.count and number not in self.texts:
                news, self.texts[number] = True, text or None
            self.over = self.over or len(self.texts) == self.count
        return news


def run_program(job: dict) -> dict:
    """Run a program in a child and return what it printed, or None."""
    until = time.monotonic() + job["seconds"]
    pid, pipe = start(call_program, job)
    printed = bytearray()
    for data in pieces(pipe, pid, lambda: until):
        if data is None:
            if wait(pid, until) == 0:
                return {"printed": printed.decode("utf-8", "replace")}
            break
        printed += data
        if len(printed) > LIMIT:
            break
    end(pid)
    return {"printed": None}


def wait(pid: int, until: float) -> int | None:
    """Return the status of a child that has closed its output; None where it goes on."""
    while time.monotonic() < until:
        state = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if state:
            return state.si_status
        time.sleep(0.0005)
    return None


def end(pid: int) -> None:
    """Kill a child and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# --- The child ------------------------------------------------------------------------------------


class Late(BaseException):
    """Interrupt a test; an answer's `except Exception` does not hold it."""


def call_tests(job: dict, pipe: int) -> None:
    """Execute the answer's module, then call its function once for each test."""
    # What is needed later is kept here: an answer may patch every module. (It gains nothing by it.)
    loads, dumps, clock, timer, write, pack = (
        json.loads, json.dumps, time.monotonic, signal.setitimer, os.write, HEAD.pack,
    )  # fmt: skip
    real, ready, failed, limit, leave = signal.ITIMER_REAL, READY, FAILED, LIMIT, os._exit
    seconds, late = job["seconds"], Late

    def raise_late(*_) -> None:
        raise late

    def within_time(work):
        """Return what `work()` does, None where it raises or takes too long."""
        began = clock()
        try:
            timer(real, seconds)
            result = work()
        except MemoryError:
            leave(1)  # what fills the memory may stay: the other tests get a child of their own
        except BaseException:
            result = None
        finally:
            timer(real, 0)
        return result if clock() - began <= seconds else None

    def say(number: int, text: str = "") -> None:
        data = text.encode()
        data = pack(number, len(data)) + data
        while data:
            data = data[write(RESULTS, data) :]

    signal.signal(signal.SIGALRM, raise_late)
    tests, function = job["tests"], job["function"]
    null = os.open(os.devnull, os.O_RDWR)
    lock({0: null, 1: null, 2: null, RESULTS: pipe})
    space = new_module("answer")
    if within_time(lambda: execute(job["code"], space) or True) is None:
        say(failed)
        leave(0)
    say(ready)
    for number, arguments in enumerate(tests):
        text = within_time(lambda: dumps(space[function](*loads(arguments)), allow_nan=False))  # noqa: B023
        say(number, text if text and len(text) <= limit else "")
    leave(0)


def call_program(job: dict, pipe: int) -> None:
    """Execute a program that reads standard input and prints."""
    stdin = os.memfd_create("stdin")
    data = job["stdin"].encode("utf-8", "replace")
    while data:
        data = data[os.write(stdin, data) :]
    os.lseek(stdin, 0, os.SEEK_SET)
    leave = os._exit
    lock({0: stdin, 1: pipe, 2: os.open(os.devnull, os.O_RDWR)})
    try:
        execute(job["code"], new_module("__main__"))
    except SystemExit:
        pass
    sys.stdout.flush()
    leave(0)


def new_module(name: str) -> dict:
    """Return the names of a new module that takes the place of this script's."""
    module = types.ModuleType(name)
    sys.modules["__main__"] = sys.modules[name] = module
    return module.__dict__


def execute(code: str, space: dict) -> None:
    """Execute an answer's text in a module's names."""
    exec(compile(code, "answer.py", "exec", dont_inherit=True), space)


# --- The lock -------------------------------------------------------------------------------------


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, and end now if that has happened already."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def lock(descriptors: dict[int, int]) -> None:
    """Keep only these descriptors (number: from which), take away memory, files, and almost all system calls."""
    kept = [(number, os.dup2(source, 100 + number)) for number, source in descriptors.items()]
    os.closerange(0, 100)
    for number, source in kept:
        os.dup2(source, number)
    os.closerange(len(kept), 256)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", closefd=False)
    for what, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_STACK, STACK),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, len(kept)),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    deny()


def deny() -> None:
    """Let the kernel refuse all system calls but ALLOWED; raises OSError where it cannot."""
    architecture, calls = ALLOWED[platform.machine()]
    numbers = sorted(calls.values())
    program = [
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 1, 0, architecture),  # the right one: go on
        (0x06, 0, 0, 0x80000000),  # kill the process
        (0x20, 0, 0, 0),  # load the number of the call
        *((0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)),  # found: to the last line
        (0x06, 0, 0, 0x00050000 | errno.EPERM),
        (0x06, 0, 0, 0x7FFF0000),  # allow
    ]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    prog = Filter(len(program), ctypes.cast(buffer, ctypes.c_void_p))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(prog), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "seccomp")


def self_test() -> str:
    """Try in a locked child what must fail; return "" if all did, else what is wrong here."""
    if platform.machine() not in ALLOWED:
        return f"its lock knows the system calls of {' and '.join(ALLOWED)}, this is {platform.machine()}"
    pid, pipe = start(try_what_must_fail, {})
    said = b""
    while data := os.read(pipe, LIMIT):
        said += data
    os.close(pipe)
    end(pid)
    if said == b"held":
        return ""
    return f"the kernel does not enforce seccomp here ({said.decode() or 'its filter was refused'})"


def try_what_must_fail(job: dict, pipe: int) -> None:
    """Say `held` if this process, locked, can neither open, connect, fork nor kill; else what it could do."""
    null = os.open(os.devnull, os.O_RDWR)
    lock({0: null, 1: pipe, 2: null})
    tries = {
        "open": lambda: os.open("/", os.O_RDONLY),
        "socket": socket.socket,
        "fork": os.fork,
        "kill": lambda: os.kill(os.getpid(), 0),
    }
    could = []
    for name, attempt in tries.items():
        try:
            attempt()
        except PermissionError:
            continue
        except OSError:
            pass
        could.append(name)
    os.write(1, ", ".join(could).encode() or b"held")


if __name__ == "__main__":
    main()
