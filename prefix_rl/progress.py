"""What a person sees while something takes long."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def say(message: str) -> None:
    """A line for the person, apart from results on standard output."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """A progress bar; yields what to call with the number of things just done. Silent on all ranks but the first."""
    from tqdm import tqdm

    with tqdm(desc=what, total=total, disable=int(os.environ.get("RANK", "0")) > 0, leave=False, delay=1) as shown:
        yield shown.update
