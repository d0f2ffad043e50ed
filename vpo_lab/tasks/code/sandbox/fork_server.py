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
import functools
import gc
import importlib
import json
import mmap
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

GRACE = 0.5  # seconds beyond the child's own timer, which an answer can switch off
OFTEN = 2  # as in workers.py
LOOK = 0.05  # seconds between two looks at a child's clock
LIMIT = 65_536  # bytes of one text
MEMORY = 512 << 20
STACK = 64 << 20
NOTHING, READY, FAILED, FIRST = range(4)  # what a child says: of the answer's module, then FIRST + number of a test
KIND, SIZE = struct.Struct("<I"), struct.Struct("<I")  # in front of each text
LENGTH = struct.Struct("<I")  # in front of each message

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
prctl = libc.prctl


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
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    me = os.getpid()
    while os.getppid() == parent:
        pid = os.fork()
        if pid == 0:
            try:
                end_with_parent(me)
                supervise()
            finally:
                os._exit(1)
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if os.getppid() != parent:  # its other children may hold our standard input open
                return
            signal.sigtimedwait([signal.SIGCHLD], 5)
        _, status = os.waitpid(pid, 0)
        if status:  # no more jobs, or it died in the middle of a reply
            return


def send(message: dict) -> None:
    """Write a message to standard output."""
    text = json.dumps(message).encode()
    view = memoryview(LENGTH.pack(len(text)) + text)
    while view:
        view = view[os.write(1, view) :]


def receive() -> dict:
    """Read a message from standard input, and not one byte more."""
    return json.loads(exactly(*LENGTH.unpack(exactly(LENGTH.size))))


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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    job = receive()
    send(run_program(job) if "stdin" in job else run_tests(job))
    os._exit(0)


def start(target, *arguments) -> tuple[int, int]:
    """Fork a child that runs `target(*arguments, pipe)`; return its id and the pipe's other end."""
    supervisor = os.getpid()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            end_with_parent(supervisor)
            os.close(read_end)
            target(*arguments, write_end)
        finally:
            os._exit(1)
    os.close(write_end)
    return pid, read_end


class Clock:
    """Tell how long a child has been at work, asleep included.

    Waiting for a core is not its fault; where the system does not tell of it, this is the clock on the wall.
    """

    def __init__(self, pid: int):
        self._files = f"/proc/{pid}/schedstat", f"/proc/{pid}/stat"
        self._start = 0.0, 0.0
        self.restart()

    def _look(self) -> tuple[float, float, bool]:
        now = time.monotonic()
        try:
            computed, waited = (int(word) / 1e9 for word in contents(self._files[0]).split()[:2])
            # While it waits for a core, the kernel has not yet added that wait.
            asleep = contents(self._files[1]).rpartition(b")")[2].split()[0] == b"S"
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


def contents(file: str) -> bytes:
    """Return what a small file holds."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def read(pipe: int, pid: int, late) -> bytes | None:
    """Return what the child writes next, nothing where it has closed the pipe, None where it is `late()` before."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    poll.register(0, 0)  # only to hear that nobody waits for the reply any more
    while True:
        heard = dict(poll.poll(LOOK * 1000))
        if 0 in heard:
            end(pid)
            os._exit(1)
        if pipe in heard:
            return os.read(pipe, LIMIT)
        if late():
            return None


def run_tests(job: dict) -> dict:
    """Call the answer's function with all arguments in one child.

    Returns:
        ready: whether the answer's module was executed.
        late: whether the child was killed in the first test that is not among the texts.
        texts: pairs (number of the test, JSON text or None), as they came.
    """
    # The child writes into shared memory: nobody has to wake up for each test.
    board = mmap.mmap(-1, (len(job["tests"]) + 1) * (KIND.size + SIZE.size + LIMIT))
    pid, pipe = start(call_tests, job, board)
    said, clock = Said(len(job["tests"]), board), Clock(pid)

    def late() -> bool:
        spent = clock.spent()
        if said.something_new():
            clock.restart()
            return False
        return spent > job["seconds"] + GRACE

    ended = read(pipe, pid, late) is not None
    end(pid)
    said.something_new()
    return {"ready": said.ready, "late": not ended, "texts": list(said.texts.items())}


class Said:
    """What a child has said of its tests. It may be lies, but no more than a function could return."""

    def __init__(self, count: int, board: mmap.mmap):
        self.ready = False
        self.texts: dict[int, str | None] = {}
        self._count, self._board, self._offset = count, board, 0

    def something_new(self) -> bool:
        """Read on; return True where the child got further, which earns it time for the next test."""
        news = False
        while self._offset + KIND.size + SIZE.size < len(self._board):
            (kind,) = KIND.unpack_from(self._board, self._offset)
            (size,) = SIZE.unpack_from(self._board, self._offset + KIND.size)
            begin = self._offset + KIND.size + SIZE.size
            if kind == NOTHING or begin + size > len(self._board):
                break
            self._offset = begin + size
            number = kind - FIRST
            if kind == READY and not self.ready:
                news = self.ready = True
            elif 0 <= number < self._count and number not in self.texts:
                news = True
                self.texts[number] = self._board[begin : begin + size].decode("utf-8", "replace") or None
        return news


def run_program(job: dict) -> dict:
    """Run a program in a child and return what it printed, or None."""
    pid, pipe = start(call_program, job)
    clock, printed, status = Clock(pid), bytearray(), None

    def late() -> bool:
        return clock.spent() > job["seconds"]

    while len(printed) <= LIMIT and (data := read(pipe, pid, late)) is not None:
        printed += data
        if not data:
            status = wait(pid, late)
            break
    was_late = late()
    end(pid)
    return {"printed": printed.decode("utf-8", "replace") if status == 0 else None, "late": was_late}


def wait(pid: int, late) -> int | None:
    """Return the status of a child that has closed its output; None where it goes on until it is `late()`."""
    while True:
        state = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if state:
            return state.si_status
        if late():
            return None
        time.sleep(0.001)


def end(pid: int) -> None:
    """Kill a child and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# --- The child ------------------------------------------------------------------------------------


class Late(BaseException):
    """Interrupt a test; an answer's `except Exception` does not hold it."""


def call_tests(job: dict, board: mmap.mmap, pipe: int) -> None:
    """Execute the answer's module, then call its function once for each test."""
    # What is needed later is kept here: an answer may patch every module. (It gains nothing by it.)
    loads, dumps, clock, timer, leave = json.loads, json.dumps, time.process_time, signal.setitimer, os._exit
    prof, limit, late, often, offset, lates = signal.ITIMER_PROF, LIMIT, Late, OFTEN, 0, 0
    ready, failed, first, kind, size = READY, FAILED, FIRST, KIND, SIZE
    seconds, tests, function = job["seconds"], job["tests"], job["function"]

    def raise_late(*_) -> None:
        nonlocal lates
        lates += 1
        raise late

    def within_time(work):
        """Return what `work()` does, None where it raises or takes too long; an answer that is often late gets less."""
        began, allowed = clock(), seconds if lates < often else seconds / 10
        try:
            timer(prof, allowed)
            result = work()
        except MemoryError:
            leave(1)  # what fills the memory may stay: the other tests get a child of their own
        except BaseException:
            result = None
        finally:
            timer(prof, 0)
        return result if clock() - began <= allowed else None

    def say(what: int, text: str = "") -> None:
        nonlocal offset
        data = text.encode()
        begin = offset + kind.size + size.size
        board[begin : begin + len(data)] = data
        size.pack_into(board, offset + kind.size, len(data))
        kind.pack_into(board, offset, what)  # last: now the rest is there
        offset = begin + len(data)

    signal.signal(signal.SIGPROF, raise_late)
    null = os.open(os.devnull, os.O_RDWR)
    lock({0: null, 1: null, 2: null, 3: pipe})  # nothing is written to the pipe; it closes when this process ends
    space = new_module("answer")
    if within_time(lambda: execute(job["code"], space) or True) is None:
        say(failed)
        leave(0)
    say(ready)
    for number, arguments in enumerate(tests):
        text = within_time(lambda: dumps(space[function](*loads(arguments)), allow_nan=False))  # noqa: B023
        say(first + number, text if text and len(text) <= limit else "")
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
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
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
    drop_capabilities()
    deny()


def drop_capabilities() -> None:
    """Give up what root may do: some advice on memory would reach beyond this process. Raises OSError if it cannot."""
    header = struct.pack("Ii", 0x20080522, 0)  # version 3, this process
    if libc.capset(header, bytes(24)):
        raise OSError(ctypes.get_errno(), "capset")


def deny() -> None:
    """Let the kernel refuse all system calls but ALLOWED; raises OSError where it cannot."""
    program, _ = seccomp_filter()
    mode, program = SECCOMP_MODE_FILTER, ctypes.byref(program)
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(PR_SET_SECCOMP, mode, program, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


@functools.cache
def seccomp_filter():
    """Return the program that the kernel runs at each system call, and the memory in which it lies."""
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
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    return Filter(len(program), ctypes.addressof(code)), code


def self_test() -> str:
    """Try in a locked child what must fail; return "" if all did, else what is wrong here."""
    if platform.machine() not in ALLOWED:
        return f"its lock knows the system calls of {' and '.join(ALLOWED)}, this is {platform.machine()}"
    seccomp_filter()  # made once, here
    pid, pipe = start(try_what_must_fail)
    said = b""
    while data := os.read(pipe, LIMIT):
        said += data
    os.close(pipe)
    end(pid)
    if said == b"held":
        return ""
    return f"the kernel does not enforce seccomp here ({said.decode() or 'its filter was refused'})"


def try_what_must_fail(pipe: int) -> None:
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
