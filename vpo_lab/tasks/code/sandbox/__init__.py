"""Run Python that a model wrote, never in this process: send code and arguments, get back what it returned or printed.

No expected value goes in. Whoever scores an answer compares on this side, so an answer gains nothing by lying.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, runtime_checkable

from vpo_lab.errors import LabError

ORDER = ("fork", "wasm")  # what `open_sandbox` tries; "monty" knows too little of the language to be chosen unasked
BACKENDS = ("fork", "monty", "wasm")


@runtime_checkable
class Sandbox(Protocol):
    """Run programs apart from this process; several threads may use one sandbox at once."""

    name: str

    def call(self, code: str, function: str, arguments: Sequence[str], seconds: float = 1.0) -> list[str | None]:
        """Return for each JSON text of an argument list the JSON text of what the function returned.

        `None` where it raised, took longer than `seconds`, or returned what JSON cannot hold (sets, NaN, over 64 KB).
        Tuples come back as lists, keys of dicts as texts. After two late tests each of the others has a tenth of the
        time.
        """
        ...

    def run(self, code: str, stdins: Sequence[str], seconds: float = 1.0) -> list[str | None]:
        """Return for each text on standard input what the program printed; `None` where it raised or was late.

        After two late runs each of the others has a tenth of the time.
        """
        ...

    def close(self) -> None:
        """End all processes of the sandbox."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def open_sandbox(backend: str | None = None) -> Sandbox:
    """Return a sandbox: the back end of this name, or the first that works here of "fork" and "wasm".

    Raises:
        LabError: there is no back end of this name, or none works here; the message says what to install.
    """
    if backend is not None:
        if backend not in BACKENDS:
            raise LabError(f"no sandbox {backend!r}: choose one of {', '.join(BACKENDS)}")
        if reason := _module(backend).problem():
            raise LabError(f"the sandbox {backend!r} does not work here: {reason}")
        return _module(backend).SANDBOX()
    reasons = []
    for name in ORDER:
        reason = _module(name).problem()
        if not reason:
            return _module(name).SANDBOX()
        reasons.append(f"{name}: {reason}")
    raise LabError(f"no sandbox for model-written code works here ({'; '.join(reasons)})")


def available() -> dict[str, str]:
    """Return for each back end "" if it works here, or in one line why not and what to do."""
    return {name: _module(name).problem() for name in BACKENDS}


def _module(name: str):
    from importlib import import_module

    return import_module(f"{__name__}.{name}")
