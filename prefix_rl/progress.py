"""What a person sees while something takes long."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import UserError


def say(message: str) -> None:
    """A line for the person, apart from results on standard output."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """A progress bar; yields what to call with the number of things just done. Silent on all ranks but the first."""
    from tqdm import tqdm

    with tqdm(desc=what, total=total, disable=int(os.environ.get("RANK", "0")) > 0, leave=False, delay=1) as shown:
        yield shown.update


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
