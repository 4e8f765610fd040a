"""Reward ``code``: 1 for a program that passes all tests of its row, else 0. docs/rewards.md lists how it is isolated.

The program is the last fenced block of the completion. Column ``tests`` holds a list of tests of two kinds. A text is
Python code that runs after the program (``assert add(1, 2) == 3``). ``{"input": ..., "output": ...}`` is the standard
input of the program and the text that it must print; white space at the ends of lines and of the text is ignored.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache

SECONDS = 2.0
"""Seconds of processor time for one test. The limit of wall-clock time is twice as long."""
MEMORY = 512 * 2**20
"""Bytes of address space that a program may use."""
FILES = 2**20
"""Bytes that a program may write to one file; also the bytes of its output that are read."""
_NEW_NETWORK = 0x40000000 | 0x10000000  # CLONE_NEWNET | CLONE_NEWUSER
_OPENING = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n`]*\n", re.MULTILINE)
_CLOSING = re.compile(r"^[ \t]*(`{3,}|~{3,})[`~]*[ \t]*$", re.MULTILINE)


def last_block(text: str, start: int = 0) -> str | None:
    r"""Content of the last closed fenced block; None if there is none, or if it ends before offset ``start``.

    >>> last_block("So:\n```python\nx = 1\n```\nor\n```\nx = 2\n```\n")
    'x = 2\n'
    >>> last_block("```python\nx = 1") is None
    True
    """
    closings = list(_CLOSING.finditer(text))
    starts = [closing.start() for closing in closings]
    longest = {"`": [0], "~": [0]}  # marks of the longest closing line from each one on: whether an opening is closed
    for closing in reversed(closings):
        for mark, lengths in longest.items():
            lengths.append(max(lengths[-1], len(closing[1]) if closing[1][0] == mark else 0))
    content, end, at = None, 0, 0
    while opening := _OPENING.search(text, at):
        at, marks = opening.end(), opening[1]
        k = bisect_left(starts, at)
        if longest[marks[0]][len(closings) - k] < len(marks):
            continue
        while not closings[k][1].startswith(marks):  # a closing line needs at least as many marks
            k += 1
        content, end = text[at : starts[k]], closings[k].end()
        at = end
    return content if end > start else None


def code_reward(
    completions: Sequence[str] | Sequence[list[dict[str, str]]],
    tests: Sequence[Sequence[str | dict[str, str]]],
    continuation_start: Sequence[int] | None = None,
) -> list[float | None]:
    """Rewards of completions: 1 if the last fenced block passes all tests of the row, 0 if not, None without tests.

    A block that stands wholly in an injected prefix is not the policy's work and counts as no program.
    """
    texts = [c if isinstance(c, str) else c[-1]["content"] or "" for c in completions]
    starts = continuation_start or [0] * len(texts)
    return [
        None if not wanted else float(_passes(last_block(text, start), wanted))
        for text, wanted, start in zip(texts, tests, starts, strict=True)
    ]


def _passes(program: str | None, tests: Sequence[str | dict[str, str]]) -> bool:
    if program is None:
        return False
    for test in tests:
        if isinstance(test, str):
            # The random mark is printed only if the tests were reached: a program may exit with status 0 before them
            mark = os.urandom(16).hex()
            printed = run(f"{program}\n{test}\nprint({mark!r}, flush=True)\n", "")
            good = printed is not None and printed.rstrip().endswith(mark)
        else:
            printed = run(program, str(test["input"]))
            good = printed is not None and _lines(printed) == _lines(str(test["output"]))
        if not good:
            return False
    return True


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def run(program: str, given: str) -> str | None:
    """Output of a program for the standard input ``given``; None if it ends with an error or exceeds its limits."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as printed:
        with open(os.path.join(folder, "main.py"), "w", encoding="utf-8", errors="replace") as file:
            file.write(program)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "main.py"],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_limit,
        )
        try:
            process.communicate(given.encode(errors="replace"), timeout=2 * SECONDS)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)
        printed.seek(0)
        return printed.read(FILES).decode(errors="replace") if process.returncode == 0 else None


def _end(process: subprocess.Popen) -> None:
    """Kills a program and all processes that it left in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin:
        process.stdin.close()
    process.wait()


def _limit() -> None:
    """Sets the limits of a program, in the child process before it starts; takes away the network if the kernel can."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the worker
    if networks_can_be_taken():
        libc.unshare(_NEW_NETWORK)
    seconds = max(int(SECONDS), 1)
    for what, most in (
        (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, FILES),
        (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        resource.setrlimit(what, (most, most))


@cache
def networks_can_be_taken() -> bool:
    """True if the kernel lets a process without privileges move into an empty network of its own."""
    child = os.fork()
    if child == 0:
        os._exit(0 if ctypes.CDLL(None).unshare(_NEW_NETWORK) == 0 else 1)
    return os.waitpid(child, 0)[1] == 0
