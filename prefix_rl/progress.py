"""What a person sees while something takes long."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from .errors import UserError


def say(message: str) -> None:
    """A line for the person, apart from results on standard output."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[..., object]]:
    """A progress bar; yields what to call with the number of things just done, and a note if there is one.

    Silent on all ranks but the first.
    """
    from tqdm import tqdm

    with tqdm(desc=what, total=total, disable=int(os.environ.get("RANK", "0")) > 0, leave=False, delay=1) as shown:

        def advance(done: int, note: str = "") -> None:
            if note:
                shown.set_postfix_str(note, refresh=False)
            shown.update(done)

        yield advance


class Speedometer:
    """How many tokens a second are generated."""

    def __init__(self, before: int = 0) -> None:
        self._began, self._before = monotonic(), before

    def told(self, tokens: int) -> str:
        """In words, ``tokens`` having been generated in all."""
        return f"{(tokens - self._before) / max(monotonic() - self._began, 1e-9):,.0f} tokens/s"


def is_main() -> bool:
    """Whether this process writes."""
    return int(os.environ.get("RANK", "0")) == 0


def run_or_explain(command: Callable[[], object]) -> int:
    """Runs a command; prints what a person can mend instead of a traceback. Returns the exit status."""
    try:
        command()
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        say(f"error: {error}" if is_main() else f"error on rank {rank}: {error.what}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
