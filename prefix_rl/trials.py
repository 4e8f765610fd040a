"""What may never end, or end the process in which it runs, is first tried in a process of its own.

A pattern, a chat template and the module of somebody else are programs. Here one of them runs where it can be ended,
with a limit of time and of memory; what is said of it afterwards is only whether it came to an end by itself. What it
makes, and what is wrong with it otherwise, is seen by who uses it next.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from .progress import say

_ENDED, _TOO_LONG, _TOO_LARGE = 76, 77, 78  # exit statuses: none that a program is likely to end with by itself
_BEFORE = f"""
import json, os, resource, sys
given = json.load(sys.stdin)
if given["mib"]:
    resource.setrlimit(resource.RLIMIT_DATA, (given["mib"] << 20,) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if given["cpu_seconds"]:
    resource.setrlimit(resource.RLIMIT_CPU, (given["cpu_seconds"],) * 2)
ENDED, TOO_LONG, TOO_LARGE, status, given = {_ENDED}, {_TOO_LONG}, {_TOO_LARGE}, {_ENDED}, given["given"]
try:
"""
_AFTER = """
except MemoryError:
    status = TOO_LARGE
finally:
    os._exit(status)
"""


def tried(
    program: str,
    given: Any,
    seconds: float,
    *,
    cpu_seconds: int = 0,
    mib: int = 0,
    characters: int = 0,
    path: str | None = None,
    waiting: tuple[float, str] | None = None,
) -> str | None:
    """Runs a program in a process of its own; how it went beyond its limits, in words that follow its name, or None.

    Errors that it raises are not told: what raises has come to an end.

    Args:
        program: lines of Python. They find ``given``, and may set ``status = TOO_LONG``.
        given: anything that JSON can hold.
        seconds: after which it is ended, whether it computes or waits.
        cpu_seconds: seconds of computing, after which it is ended; 0: no limit of its own.
        mib: MiB of memory that it may take; 0: no limit.
        characters: the limit beyond which it says ``TOO_LONG``, for the words.
        path: ``PYTHONPATH``; None: neither this, nor packages of the person's own, are seen.
        waiting: after how many seconds which line is said to the person who waits.
    """
    code = _BEFORE + "".join(f"    {line}\n" for line in program.strip().splitlines()) + _AFTER
    process = subprocess.Popen(
        [sys.executable, *(["-I"] if path is None else []), "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ if path is None else {**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # so that the processes that it starts are ended with it
    )
    asked = json.dumps({"given": given, "mib": mib, "cpu_seconds": cpu_seconds}).encode()
    try:
        patience, line = waiting or (seconds, "")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(asked, timeout=min(patience, seconds))
        if process.returncode is None and patience < seconds:
            say(line)
            process.communicate(timeout=seconds - patience)
        if process.returncode is None:
            return f"takes more than {seconds:g} seconds"
    except subprocess.TimeoutExpired:
        return f"takes more than {seconds:g} seconds"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
    if cpu_seconds and process.returncode in (-signal.SIGKILL, -signal.SIGXCPU):
        return f"takes more than {cpu_seconds} seconds"
    return {
        _ENDED: None,
        _TOO_LONG: f"makes more than {characters:,} characters",
        _TOO_LARGE: f"takes more than {mib:,} MiB",
    }.get(process.returncode, f"ends the process that runs it ({_ended(process.returncode)})")


def _ended(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


# --- modules of somebody else -----------------------------------------------------------------------------------------

IMPORT_SECONDS = "PREFIX_RL_IMPORT_SECONDS"
"""Environment variable: after how many seconds the import of a person's own module is given up; 30 unless it is set."""
_PATIENCE = 5.0


def import_module(name: str) -> ModuleType:
    """The module of a person's own by its dotted path, imported here once it is known that its import ends.

    So it is imported twice. What is installed, or comes with Python, is imported at once: torch takes seconds.

    Raises:
        ImportError: if its import takes too long or too much memory, or ends the process.
        BaseException: whatever else it raises.
    """
    if name not in sys.modules and not _is_installed(name):
        seconds = _import_seconds()
        how = tried(
            "import importlib\nimportlib.import_module(given)",
            name,
            seconds,
            mib=_half_of_memory(),
            path=os.pathsep.join(entry or os.getcwd() for entry in sys.path),
            waiting=(_PATIENCE, f"importing the module {name} takes long; it is given up after {seconds:g} seconds"),
        )
        if how:
            more = f"; {IMPORT_SECONDS}=300 in the environment gives it 300" if "seconds" in how else ""
            raise ImportError(f"its import {how}: a module should define functions, and do nothing else{more}")
    return importlib.import_module(name)


def _is_installed(name: str) -> bool:
    """True if a module belongs to this package, to Python, or to a package that is installed."""
    package = name.partition(".")[0]
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    if found is None or package == __package__:
        return found is not None
    if found.origin is None:  # a folder without __init__.py
        return False
    installed = (sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib"))
    return found.origin in ("built-in", "frozen") or any(Path(found.origin).is_relative_to(at) for at in installed)


def _import_seconds() -> float:
    try:
        return max(float(os.environ.get(IMPORT_SECONDS, "")), 1.0)
    except ValueError:
        return 30.0


def _half_of_memory() -> int:
    """Half of the memory that is free, in MiB: who takes more would soon be ended by the system, or end others."""
    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("MemAvailable"))
        return max(int(line.split()[1]) // 2048, 2048)
    return 0
