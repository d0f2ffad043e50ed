"""The portable back end: pydantic-monty, an interpreter of its own for part of Python. A fifth of a millisecond a run.

It knows no generators, no class inheritance and few modules. It is chosen by name, where the task's language fits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

from vpo_lab.errors import LabError

from .workers import OUTPUT_LIMIT, cores, plain

MEMORY = 64 << 20
RECURSION = 500
GRACE = 0.5
# The value of a text's last expression would come back as Python objects, and a list of lists of the same list
# would fill our memory: the last expression is always ours. A blank line before it ends any open line.
NOTHING = "\n\nNone\n"


def problem() -> str:
    """Return "" if the package is installed, else what to install."""
    return "" if find_spec("pydantic_monty") else "pip install 'vpo-lab[code]' (it lacks pydantic-monty)"


class Said(NamedTuple):
    """What came of one text: its last value, whether it ran to the end, whether its session can go on."""

    value: Any = None
    sound: bool = False
    spoilt: bool = False


def _feed(session: Any, text: str, printed: Callable[[str, str], None] | None = None, **options: Any) -> Said:
    from pydantic_monty import MontyCrashedError, MontyError

    try:
        return Said(session.feed_run(text, print_callback=printed or _ignore, **options), sound=True)
    except MontyCrashedError:
        return Said(spoilt=True)
    except MontyError as error:
        # After these monty promises nothing about its memory.
        return Said(spoilt=isinstance(error.exception(), (TimeoutError, MemoryError)))
    except (ValueError, OverflowError, UnicodeError):  # a text that monty cannot take: lone surrogates
        return Said()


def _ignore(stream: str, text: str) -> None:
    """Drop what an answer prints: it would come out on our own screen."""


class MontySandbox:
    """Run answers in pydantic-monty's worker processes, one per core."""

    name = "monty"

    def __init__(self):
        self._closed = False
        self._owner, self._pool = -1, None
        self._lock = threading.Lock()
        self._live_pool()

    def _live_pool(self) -> Any:
        if self._closed:
            raise LabError("this sandbox is closed: open another with open_sandbox('monty')")
        with self._lock:
            if self._owner != os.getpid():  # a forked process cannot use its parent's
                from pydantic_monty import Monty

                self._pool = Monty(min_processes=1, max_processes=cores(), feed_duration_limit_grace=GRACE)
                self._pool.__enter__()
                self._owner = os.getpid()
            return self._pool

    @contextmanager
    def _session(self, seconds: float) -> Iterator[Any]:
        limits = {
            "max_feed_duration_secs": seconds,
            "max_memory": MEMORY,
            "max_recursion_depth": RECURSION,
            "max_total_sleep_secs": 0.0,
        }
        with self._live_pool().checkout(limits=limits, os_policy={"random_start": {"seed": 0}}) as session:
            yield session

    def call(self, code: str, function: str, arguments: Sequence[str], seconds: float = 1.0) -> list[str | None]:
        """Return for each JSON text of an argument list the JSON text of what the function returned, or `None`."""
        answers: list[str | None] = []
        late = -1  # the test that was late the last time
        while len(answers) < len(arguments):
            before = len(answers)
            if not self._call(code, function, arguments, seconds, answers):
                return [None] * len(arguments)
            if len(answers) == before == late:
                answers.append(None)
            # Monty looks at the clock on the wall, and a machine may be busy: a late test is asked once more.
            late = len(answers)
        return answers

    def _call(
        self, code: str, function: str, arguments: Sequence[str], seconds: float, answers: list[str | None]
    ) -> bool:
        """Append answers until all are there or a test spoils the session; return whether the module runs at all."""
        if not function.isidentifier():
            return False
        with self._session(seconds) as session:
            if not _feed(session, code + NOTHING).sound:
                return False
            ask = f"import json as _json\n_json.dumps({function}(*_json.loads(_arguments)))"
            for text in arguments[len(answers) :]:
                said = _feed(session, ask, inputs={"_arguments": text})
                if said.spoilt:
                    return True
                answers.append(plain(said.value) if isinstance(said.value, str) else None)
        return True

    def run(self, code: str, stdins: Sequence[str], seconds: float = 1.0) -> list[str | None]:
        """Return what the program printed, for each text on standard input, which it cannot read: `input` fails."""
        return [self._run(code, seconds) for _ in stdins]

    def _run(self, code: str, seconds: float) -> str | None:
        printed: list[str] = []
        size = 0

        def collect(stream: str, text: str) -> None:
            nonlocal size
            size += len(text.encode("utf-8", "replace"))
            if stream == "stdout" and size <= OUTPUT_LIMIT:
                printed.append(text)

        with self._session(seconds) as session:
            said = _feed(session, code + NOTHING, printed=collect)
        return "".join(printed) if said.sound and size <= OUTPUT_LIMIT else None

    def close(self) -> None:
        """End all processes of the sandbox."""
        with self._lock:
            if not self._closed and self._owner == os.getpid() and self._pool is not None:
                self._pool.__exit__(None, None, None)
            self._closed = True

    def __enter__(self) -> MontySandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


SANDBOX = MontySandbox
