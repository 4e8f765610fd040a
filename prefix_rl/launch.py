"""``accelerate launch`` for jobs: ``python -m prefix_rl.launch --config_file FILE -m prefix_rl.train --config RECIPE``.

It takes the same arguments and differs in three things that a job script needs. SIGTERM and SIGUSR1 go on to the
processes, which save and end in their own time (accelerate kills them 30 seconds after SIGTERM, and dies of SIGUSR1).
Its exit status is theirs: 75 says that the job is to be started again. And instead of its own traceback it says which
process ended first, and how.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from .progress import say
from .safety.stopping import SIGNALS, STOPPED

_OTHERS = "SIGINT,SIGHUP,SIGQUIT"
"""The signals that stay torch's: on these it ends the processes."""


def _hand_on(number: int, frame: object) -> None:
    import psutil

    for child in psutil.Process().children():
        try:
            os.kill(child.pid, number)
        except ProcessLookupError:
            continue


def status_of(failures: Mapping[int, int]) -> int:
    """Exit status for a job script, of the processes that ended otherwise than with 0, the first one first.

    >>> status_of({1: 75, 0: -15}), status_of({1: 2, 0: -15}), status_of({0: -9})
    (75, 2, 137)
    """
    codes = list(failures.values())
    if STOPPED in codes:  # what is still there of the others is ended by torch
        return STOPPED
    first = codes[0]
    return first if first > 0 else 128 - first


def main(arguments: Sequence[str] | None = None) -> int:
    """Launches, and returns the exit status."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    given = launch_command_parser().parse_args(arguments)
    given.signals_to_handle = _OTHERS
    for number in SIGNALS:
        signal.signal(number, _hand_on)
    try:
        launch_command(given)
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        found = status_of({rank: failure.exitcode for rank, failure in failures})
        if found != STOPPED:
            rank, first = failures[0]
            say(f"rank {rank} ended first, with status {first.exitcode}; what it said stands above")
        return found
    except subprocess.CalledProcessError as error:
        return status_of({0: error.returncode})
    return 0


if __name__ == "__main__":
    sys.exit(main())
