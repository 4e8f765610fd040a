"""Several processes that share out work without training together: ``accelerate launch -m prefix_rl.evaluate|collect``.

They meet at a few places and exchange nothing else, so none of torch's process groups is opened: an engine may open its
own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from . import status
from .errors import CheckpointError
from .parts import Lock, Taken
from .progress import say

Thing = TypeVar("Thing")
_PATIENCE = timedelta(days=30)  # one share may take much longer than another; the launcher ends all if one fails


@dataclass(frozen=True)
class Processes:
    """This process among those that were launched together."""

    index: int = 0
    count: int = 1

    @classmethod
    def launched(cls) -> Processes:
        """The processes that ``accelerate launch`` started; one process if nothing launched it."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def main(self) -> bool:
        """True if this process writes the files that there is one of."""
        return self.index == 0

    def share(self, things: Sequence[Thing]) -> Sequence[Thing]:
        """This process's part of the things; the parts together are all of them.

        >>> [Processes(i, 3).share("abcdefgh") for i in range(3)]
        ['adg', 'beh', 'cf']
        """
        return things[self.index :: self.count]

    def meet(self, place: str) -> None:
        """Returns when all processes have come to this place, each of which is met at once."""
        if self.count == 1:
            return
        self._store.set(f"{place}/{self.index}", "here")
        self._store.wait([f"{place}/{i}" for i in range(self.count)], _PATIENCE)

    @cached_property
    def _store(self):
        from torch.distributed import PrefixStore, rendezvous

        store, _, _ = next(rendezvous("env://", self.index, self.count, timeout=_PATIENCE))
        return PrefixStore("prefix_rl", store)


def end_with_launcher() -> None:
    """Lets this process end when the launcher does, whatever ends that: a GPU is not held for nobody.

    A launcher that is killed cannot end what it has started. Linux tells a process of its parent's end.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextmanager
def alone_in(folder: Path, doing: str) -> Iterator[None]:
    """Within the block no other process does the same in a folder. The first rank sees to that for all.

    On one machine, and over network file systems with locks, a lock decides, which goes when its process does. Over the
    others the signs of life of :mod:`prefix_rl.status` do.

    Raises:
        CheckpointError: if another process does, naming it.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    what = f"another process is {doing} in {folder}"
    remedy = "give another output.dir, or wait until it has ended"
    with ExitStack() as stack:
        try:
            stack.enter_context(Lock(folder / f"{doing}.lock").held())
        except Taken as taken:
            raise CheckpointError(f"{what}{taken}; {remedy}") from taken
        except NotImplementedError:
            pass  # a file system without locks
        except OSError as error:
            raise CheckpointError(f"the run's folder {folder} cannot be locked: {error.strerror or error}") from error
        if who := status.lives_elsewhere(folder, doing, say):
            raise CheckpointError(
                f"{what} ({who}); {remedy}. If that process is known to be dead, take over with "
                f"`rm {folder / f'status.{doing}.json'}`"
            )
        yield


def take_own_gpus(each: int = 1) -> None:
    """Leaves this process of a launch ``each`` of the machine's GPUs, before any is used."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = int(os.environ.get("LOCAL_RANK", "0")) * each
    if visible is None:
        own = [str(first + i) for i in range(each)]
    else:
        own = [name for name in visible.split(",") if name][first : first + each]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)
