"""Progress for a person to see while something takes long: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod

from . import status
from .errors import UserError, disk_error, printable

TRACEBACK = "PREFIX_RL_TRACEBACK"
"""Environment variable: if it is set, an error that the system gave for a file ends in Python's traceback."""
LINE_SECONDS = 30.0
"""Between two lines about the same thing, where nobody looks."""


def say(message: str) -> None:
    """A line for the person, apart from results on standard output; control sequences in it do nothing."""
    message = printable(message)
    if "tqdm" in sys.modules and somebody_looks():
        from tqdm import tqdm

        tqdm.write(message, file=sys.stderr)  # above a bar, not through it
        sys.stderr.flush()
    else:
        print(message, file=sys.stderr, flush=True)


def show(result: object, end: str = "\n") -> None:
    """A result on standard output; control sequences in it do nothing."""
    print(printable(str(result)), end=end, flush=True)


def somebody_looks() -> bool:
    """True if a terminal shows what is said."""
    return sys.stderr is not None and sys.stderr.isatty()


def calm() -> None:
    """Makes other libraries' bars, where nobody looks, a line every 30 seconds; what is quicker is not shown at all."""
    from tqdm import tqdm

    if not somebody_looks() and not _calmed:
        tqdm.__init__ = partialmethod(tqdm.__init__, mininterval=LINE_SECONDS, delay=LINE_SECONDS)
        _calmed.append(True)


_calmed: list[bool] = []


@contextmanager
def bar(what: str, total: int | None, unit: str = "") -> Iterator[Callable[..., object]]:
    """A progress bar; yields what to call with the number of things just done, and a note if there is one.

    Where nobody looks it is a line every 30 seconds; on all ranks but the first it is silent.
    """
    from tqdm import tqdm

    silent = not is_main()
    done, lines = 0, Lines()
    with tqdm(
        desc=what,
        total=total,
        disable=True if silent else None,
        leave=False,
        delay=1,
        unit=unit or "it",
        mininterval=0.1,
    ) as shown:

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done
            done += count
            if note:
                shown.set_postfix_str(note, refresh=False)
            shown.update(count)
            if not silent:
                status.progress(what, done, total)
                behind = f"{f' {unit}' if unit else ''}{f', {note}' if note else ''}"
                lines.now_and_then(lambda: f"{what}: {how_far(done, total)}{behind}")

        yield advance


class Speedometer:
    """Speed of generation, in tokens a second."""

    def __init__(self, before: int = 0) -> None:
        self._began, self._before = time.monotonic(), before

    def told(self, tokens: int) -> str:
        """The speed in words, from ``tokens``, the number generated in all."""
        return f"{(tokens - self._before) / max(time.monotonic() - self._began, 1e-9):,.0f} tokens/s"


class Lines:
    """Says a line every 30 seconds, where nobody looks at a bar."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def now_and_then(self, line: Callable[[], str]) -> None:
        """Says the line if none was said for long."""
        if time.monotonic() - self.last >= LINE_SECONDS and not somebody_looks():
            self.said()
            say(line())

    def said(self) -> None:
        """Something was said just now."""
        self.last = time.monotonic()


def how_far(done: float, total: float | None) -> str:
    """``40 of 200 (20 %)``.

    >>> how_far(40, 200), how_far(1200, None)
    ('40 of 200 (20 %)', '1,200')
    """
    return f"{done:,} of {total:,} ({100 * done / total:.0f} %)" if total else f"{done:,}"


def is_main() -> bool:
    """True if this process is the one that writes."""
    return os.environ.get("RANK", "0") in ("0", "")


def refuse_half_a_launch() -> None:
    """Sees that what the environment says of several processes is what a launcher says: one that sits alone and takes
    itself for one of two would train with half of each batch, or wait for the other for ever.

    Raises:
        UserError: with every fault.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    given = {name: os.environ[name] for name in names if name in os.environ}
    faults = [f"{name} = {value!r}: must be a whole number of at least 0" for name, value in given.items()
              if not (value.isascii() and value.isdigit())]  # fmt: skip
    if not faults:
        rank, count = int(given.get("RANK", "0")), int(given.get("WORLD_SIZE", "1"))
        if rank >= count:
            faults.append(f"RANK = {rank} and WORLD_SIZE = {given.get('WORLD_SIZE', 'not set')}: ranks count from 0")
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if count > 1 and missing:
            faults.append(f"WORLD_SIZE = {count}, but {', '.join(missing)} is not set: only one process seems to run")
    if faults:
        raise UserError(
            "the environment variables of a launch of several processes do not fit together. `accelerate launch` sets "
            "them; where one process is to run alone, unset them:",
            faults,
        )


def run_or_explain(command: Callable[[], object]) -> int:
    """Runs a command; prints what a person can mend instead of a traceback. Returns the exit status."""
    calm()
    try:
        refuse_half_a_launch()
        command()
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        say(f"error: {error}" if is_main() else f"error on rank {rank}: {error.what}")
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        told = disk_error(error)
        if told is None or os.environ.get(TRACEBACK):
            raise
        say(f"error: {told} ({TRACEBACK}=1 in the environment shows where in the code)")
        return 2
    return 0
