"""Separate process in which a user's reward function runs.

A call of the function ends in one of three ways. It returns rewards. It raises: that is a mistake in the function and
ends the run (:class:`RewardError`). Or the call is lost (:class:`Lost`), because it exceeded its deadline or its
process died: a single completion may be the cause, and :class:`~prefix_rl.rewards.functions.Function` finds out which.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import math
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection, Pipe
from numbers import Real
from types import SimpleNamespace
from typing import Any

from ..errors import UserError
from .grading import Outcome

LOGS = ("log_extra", "log_metric")
"""Arguments of TRL that are functions for logging. Calls of them in the process are recorded and repeated here."""
_START_SECONDS = 120
_LONGEST_MESSAGE = 500  # characters of an error's message
_LARGEST = 3.4e38  # the trainer's rewards are float32


class RewardError(UserError):
    """Error of a reward function that raised, lost every completion, or returned something other than rewards."""


class Lost(Exception):
    """Call that exceeded its deadline (``timeout``) or whose process died (``crash``); ``how`` describes it."""

    def __init__(self, outcome: Outcome, how: str):
        super().__init__(how)
        self.outcome, self.how = outcome, how


class Process:
    """Handle of the process of one function. The process starts at the first call, and again after it was killed."""

    def __init__(self, name: str, memory_mb: int):
        self.name, self.memory_mb = name, memory_mb
        self._process: subprocess.Popen | None = None
        self._owner = os.getpid()
        atexit.register(self.close)

    def call(self, given: Mapping[str, Any], seconds: float) -> list[float | None]:
        """Rewards that the function returns for these arguments.

        Raises:
            Lost: if it does not return within ``seconds``, or its process dies.
            RewardError: if it raises, returns something other than rewards, or cannot be imported in the process.
        """
        given = dict(given)
        logs = {name: given.pop(name) for name in LOGS if given.get(name)}
        if state := given.pop("trainer_state", None):
            given["trainer_state"] = {name: getattr(state, name) for name in ("global_step", "max_steps", "epoch")}
        with contextlib.ExitStack() as otherwise:
            otherwise.callback(self.close)  # a late answer must not be taken for the answer to the next call
            if self._process is None or self._process.poll() is not None:
                self._start()
            rewards, logged = self._ask((seconds, list(logs), given), seconds)
            otherwise.pop_all()
        for name, call in logged:
            logs[name](*call)
        return rewards

    def _start(self) -> None:
        self._owner = os.getpid()
        self._connection, theirs = Pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        code = f"from prefix_rl.rewards import functions, process; process.serve({theirs.fileno()}, functions.find)"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,  # so that close() can kill the processes that it starts too
        )
        theirs.close()
        try:
            self._ask((self.name, self.memory_mb), _START_SECONDS)
        except Lost as lost:  # at the import no completion can be the cause, so it is an error of the function
            raise RewardError(
                f"the reward function {self.name} could not be imported: its process {lost.how}"
            ) from None

    def _ask(self, what: tuple, seconds: float) -> Any:
        try:
            self._connection.send(what)
            if not self._connection.poll(seconds):
                raise Lost(Outcome.TIMEOUT, f"did not answer within {seconds:g} s")
            good, told = self._connection.recv()
        except (EOFError, OSError):
            raise Lost(Outcome.CRASH, f"ended (status {self._process.wait()})") from None
        if not good:
            raise raised(self.name, told)
        return told

    def close(self) -> None:
        """Kills the process and the processes that it started."""
        process, self._process = self._process, None
        if process and self._owner == os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._connection.close()


def serve(handle: int, find: Callable[[str], Callable[..., Any]]) -> None:
    """Main loop of the process: calls the function with the arguments from the pipe until the pipe closes."""
    import resource

    connection = Connection(handle)
    name, memory_mb = connection.recv()
    try:
        function = find(name)
    except LookupError as error:
        connection.send((False, (error.args[0], [])))
        return
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory_mb * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send((True, None))
    while True:
        try:
            seconds, logs, given = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 1)  # ends this process if the trainer was killed
        logged: list[tuple[str, tuple]] = []
        for log in logs:
            given[log] = partial(_log, logged, log)
        if "trainer_state" in given:
            given["trainer_state"] = SimpleNamespace(**given["trainer_state"])
        try:
            answer = pickle.dumps((True, (called(function, given), logged)))
        except BaseException as error:  # of any kind, also sys.exit: the caller reports it
            answer = pickle.dumps((False, told(error)))
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(answer)


def _log(logged: list[tuple[str, tuple]], log: str, *call: Any) -> None:
    logged.append((log, call))


def called(function: Callable[..., Any], given: Mapping[str, Any]) -> list[float | None]:
    """Rewards that a function returns for these arguments: one number for each completion, or None for no reward.

    Raises:
        TypeError: if it returns something else.
    """
    count = len(given["completions"])  # before it can empty the list
    made = function(
        **{**given, **{name: partial(_LOGGED[name], given[name], count) for name in LOGS if given.get(name)}}
    )
    if inspect.iscoroutine(made):
        made = asyncio.run(made)
    made = made.tolist() if hasattr(made, "tolist") else made
    if not isinstance(made, list | tuple) or len(made) != count:
        what = f"{len(made)} values" if isinstance(made, list | tuple) else f"a {type(made).__name__}"
        raise TypeError(
            f"returned {what} for {count} completions; it must return a list of one number or None for each"
        )
    found: list[float | None] = []
    for place, value in enumerate(made):
        value = value.item() if hasattr(value, "item") else value
        if value is not None and not (isinstance(value, Real) and not abs(value) > _LARGEST):
            raise TypeError(f"returned {value!r} for completion {place}; it must be a finite number or None")
        found.append(None if value is None or math.isnan(value) else float(value))
    return found


def _log_metric(log: Callable[..., Any], count: int, name: str, value: float) -> None:
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(name, str) or not isinstance(value, Real):
        raise TypeError(f"log_metric({name!r}, {value!r}): it takes a name and a number")
    log(name, value)


def _log_extra(log: Callable[..., Any], count: int, name: str, values: Sequence[Any]) -> None:
    if not isinstance(name, str) or not isinstance(values, list | tuple) or len(values) != count:
        what = f"{len(values)} values" if isinstance(values, list | tuple) else f"a {type(values).__name__}"
        raise TypeError(f"log_extra({name!r}, {what}): it takes a name and a list of one value for each of {count}")
    log(name, list(values))


_LOGGED = {"log_extra": _log_extra, "log_metric": _log_metric}


def worded(error: BaseException) -> str:
    """Kind and message of somebody else's error, whose message may be of any length, or fail itself."""
    try:
        return f"{type(error).__name__}: {error}"[:_LONGEST_MESSAGE]
    except Exception:
        return type(error).__name__


def told(error: BaseException) -> tuple[str, list[str]]:
    """Message of an error, and the last lines of its traceback in the files of the function."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    lines = "".join(traceback.format_list(frames)).rstrip().splitlines()[-8:]
    return worded(error), [line[:_LONGEST_MESSAGE] for line in lines]


def raised(name: str, told: tuple[str, list[str]]) -> RewardError:
    """Error that ends the run when the reward function ``name`` raised; ``told`` is from :func:`told`."""
    return RewardError(f"the reward function {name} failed: {told[0]}", told[1])
