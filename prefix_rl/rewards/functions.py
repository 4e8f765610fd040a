"""Rewards of one's own: ``reward.functions``, each by name (``math``, ``code``) or by dotted path.

A function has the signature that TRL gives its own: ``prompts``, ``completions``, every further column of the row,
``continuation_start``; it returns one number for each completion, None where it has none. Unless it says
``in_process = True``, it runs in a process of its own (:class:`_Process`), with the memory and the deadline of
``reward``. What goes wrong in it does not raise where it happens, since the other ranks would wait for this one: it is
kept as :attr:`Function.fault`, and :func:`agreed` raises it on all of them.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import inspect
import json
import math
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection, Pipe
from numbers import Real
from types import SimpleNamespace
from typing import Any

from ..errors import UserError, nearest
from .grading import Outcome, Verdict
from .workers import Grader

MATH = "math"
NAMED = {MATH: "prefix_rl.rewards.math_reward", "code": "prefix_rl.rewards.code.code_reward"}
"""The rewards that have a name."""
COLUMNS = "further_columns"
"""The column under which the data set holds the further columns of a row, as JSON: no type of theirs is changed."""
_GIVEN = {"prompts", "completions", "completion_ids", "continuation_start", "trainer_state", "log_extra", "log_metric"}
_START_SECONDS = 120
_AT_ONCE = 64


class RewardError(UserError):
    """A reward function that raised, did not answer in time, or returned something other than rewards."""


# --- by name ----------------------------------------------------------------------------------------------------------


def find(name: str) -> Callable[..., Any]:
    """The function of a name of :data:`NAMED`, or of a dotted path ``package.module.function``.

    Raises:
        LookupError: if there is none, it is nothing to call, or it cannot take what a reward function is given.
    """
    if "." not in name and name not in NAMED:
        raise LookupError(
            f"no such reward{nearest(name, NAMED)}; there are {', '.join(NAMED)}, or give the dotted path of a "
            "function of your own (my_package.rewards.length)"
        )
    module, _, attribute = NAMED.get(name, name).rpartition(".")
    try:
        home = importlib.import_module(module)
    except Exception as error:  # whatever the module of somebody else does when it is imported
        raise LookupError(f"module {module!r} cannot be imported ({type(error).__name__}: {error})") from error
    if not hasattr(home, attribute):
        raise LookupError(f"module {module!r} has no {attribute!r}{nearest(attribute, vars(home))}")
    function = getattr(home, attribute)
    if inspect.isclass(function) or not callable(function):
        raise LookupError(f"{attribute!r} is a {type(function).__name__}, not a function")
    parameters = _parameters(function).values()
    if any(p.kind is p.POSITIONAL_ONLY for p in parameters):
        raise LookupError("takes arguments by position; all of them are given by name")
    if "completions" not in _parameters(function) and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise LookupError(
            f"takes {', '.join(_parameters(function)) or 'nothing'}, and not completions: a reward function is "
            "def f(prompts, completions, **columns)"
        )
    return function


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def columns_of(function: Callable[..., Any]) -> list[str]:
    """The columns of a row that a function cannot do without.

    >>> columns_of(lambda completions, tests, answer=None, **columns: [])
    ['tests']
    """
    return [
        name for name, p in _parameters(function).items()
        if name not in _GIVEN and p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]  # fmt: skip


def needed(name: str) -> list[str]:
    """:func:`columns_of` the function of that name; none if there is no such function, which :func:`faults` tells."""
    try:
        return columns_of(find(name))
    except LookupError:
        return []


def faults(names: Sequence[str], weights: Sequence[float] | None) -> list[str]:
    """What is wrong with ``reward.functions`` and ``reward.weights``."""
    found = []
    if not names:
        found.append("reward.functions is empty: name at least one, as [math]")
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            found.append(f"reward.functions: {name} stands {names.count(name)} times; give it one weight")
        try:
            find(name)
        except LookupError as error:
            found.append(f"reward.functions: {name}: {error.args[0]}")
    if weights is not None:
        if len(weights) != len(names):
            found.append(
                f"reward.weights has {len(weights)} numbers, and reward.functions {len(names)} functions: give one "
                "weight for each"
            )
        if not all(map(math.isfinite, weights)):
            found.append(f"reward.weights = {list(weights)}: every weight must be a finite number")
        elif weights and not any(weights):
            found.append(f"reward.weights = {list(weights)}: with no weight but 0 nothing is rewarded")
    return found


# --- as the trainer calls them ----------------------------------------------------------------------------------------


class Function:
    """A reward function as the trainer calls it: it never raises, see :attr:`fault`.

    Args:
        name: as the recipe has it; the log has ``rewards/NAME``.
        function: what is called.
        deadline: seconds for each completion that a call is given.
        memory_mb: MiB that its process may take beyond what its import took.
    """

    fault: RewardError | None = None
    """What went wrong in the last call."""

    def __init__(self, name: str, function: Callable[..., Any], deadline: float = 5.0, memory_mb: int = 2048):
        self.name, self.function, self.deadline = name, function, deadline
        self.__name__ = getattr(function, "__name__", name) if name in NAMED else name
        self._process = None if getattr(function, "in_process", False) else _Process(name, memory_mb)

    def __call__(self, prompts, completions, **given: Any) -> list[float | None]:
        """One reward for each completion; 0 for all of them if there is a fault, which nobody will train on."""
        self.fault = None
        try:
            return self.rewards(prompts=prompts, completions=completions, **given)
        except UserError as error:
            self.fault = error if isinstance(error, RewardError) else RewardError(error.what, error.faults)
        return [0.0] * len(completions)

    def rewards(self, **given: Any) -> list[float | None]:
        """One reward for each completion.

        Raises:
            RewardError: if the function raises, does not answer in time, or returns something else.
        """
        count = len(given["completions"])
        given = self._accepted(_expanded({"continuation_start": [0] * count, **given}))
        if self._process:
            return self._process.call(given, self.deadline * max(count, 1))
        try:
            return _called(self.function, given)
        except UserError:
            raise
        except Exception as error:  # whatever it is, it ends the run on all ranks
            raise _raised(self.name, _told(error)) from error

    def _accepted(self, given: dict[str, Any]) -> dict[str, Any]:
        parameters = _parameters(self.function)
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return given
        return {name: value for name, value in given.items() if name in parameters}

    def close(self) -> None:
        """Ends its process. It starts again when it is used again."""
        if self._process:
            self._process.close()


class Rewards:
    """The rewards of a recipe.

    Args:
        names: ``reward.functions``.
        grader: grades ``math``, and knows where a demonstration shows its answer.
    """

    def __init__(self, names: Sequence[str], grader: Grader):
        from . import MathReward

        known = {MATH: MathReward(grader)}
        self.functions = [
            Function(name, known.get(name) or find(name), grader.deadline, grader.memory_mb) for name in names
        ]
        self.grader = verdicts(names, grader)


@contextlib.contextmanager
def agreed(functions: Iterable[object], objects: Callable[[list], list]) -> Iterator[None]:
    """Raises on every rank what went wrong within on any of them.

    Args:
        functions: the trainer's; those that are no :class:`Function` raise where they are called.
        objects: gives the items of all ranks for those of this one.

    Raises:
        RewardError: that of the first rank that has one.
    """
    yield
    own = [function for function in functions if isinstance(function, Function)]
    if not own:
        return
    told = objects([next(((f.fault.what, f.fault.faults) for f in own if f.fault), None)])
    for rank, fault in enumerate(told):
        if fault:
            raise RewardError(fault[0] + (f" (on rank {rank})" if len(told) > 1 else ""), fault[1])


def _expanded(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the further columns of the rows, None where a row has not got one."""
    rows = [json.loads(row) for row in given.pop(COLUMNS, None) or ()]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names} | given


def _called(function: Callable[..., Any], given: Mapping[str, Any]) -> list[float | None]:
    made = function(**given)
    if inspect.iscoroutine(made):
        made = asyncio.run(made)
    count, made = len(given.get("completions", made)), made.tolist() if hasattr(made, "tolist") else made
    if not isinstance(made, list | tuple) or len(made) != count:
        what = f"{len(made)} values" if isinstance(made, list | tuple) else f"a {type(made).__name__}"
        raise TypeError(
            f"returned {what} for {count} completions; it must return a list of one number or None for each"
        )
    found: list[float | None] = []
    for place, value in enumerate(made):
        value = value.item() if hasattr(value, "item") else value
        if value is not None and not (isinstance(value, Real) and not math.isinf(value)):
            raise TypeError(f"returned {value!r} for completion {place}; it must be a finite number or None")
        found.append(None if value is None or math.isnan(value) else float(value))
    return found


def _told(error: BaseException) -> tuple[str, list[str]]:
    lines = traceback.format_exception(error)
    return f"{type(error).__name__}: {error}", "".join(lines).rstrip().splitlines()[-8:]


def _raised(name: str, told: tuple[str, list[str]]) -> RewardError:
    return RewardError(f"the reward function {name} failed: {told[0]}", told[1])


# --- in a process of its own ------------------------------------------------------------------------------------------


class _Process:
    """The caller's end of the process of one function. It starts at the first call, and after it was killed."""

    def __init__(self, name: str, memory_mb: int):
        self.name, self.memory_mb = name, memory_mb
        self._process: subprocess.Popen | None = None
        self._owner = os.getpid()
        atexit.register(self.close)

    def call(self, given: dict[str, Any], seconds: float) -> list[float | None]:
        """What the function returns for these arguments, within so many seconds."""
        logs = {name: given.pop(name) for name in ("log_extra", "log_metric") if given.get(name)}
        if state := given.pop("trainer_state", None):
            given["trainer_state"] = {name: getattr(state, name) for name in ("global_step", "max_steps", "epoch")}
        try:
            if self._process is None or self._process.poll() is not None:
                self._start()
            self._connection.send((seconds, list(logs), given))
            told = self._answer(seconds, f"did not answer within {seconds:g} s (reward.deadline for each completion)")
        except BaseException:
            self.close()  # what it would answer later belongs to no call
            raise
        rewards, logged = told
        for name, call in logged:
            logs[name](*call)
        return rewards

    def _start(self) -> None:
        self._owner = os.getpid()
        self._connection, theirs = Pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from prefix_rl.rewards.functions import _serve; _serve({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,  # what it starts ends with it
        )
        theirs.close()
        self._connection.send((self.name, self.memory_mb))
        self._answer(_START_SECONDS, f"could not be imported within {_START_SECONDS} s")

    def _answer(self, seconds: float, late: str) -> Any:
        try:
            if not self._connection.poll(seconds):
                raise RewardError(f"the reward function {self.name} {late}")
            good, told = self._connection.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            raise RewardError(
                f"the process of the reward function {self.name} ended (status {code}); it may take reward.memory_mb = "
                f"{self.memory_mb} MiB"
            ) from None
        if not good:
            raise _raised(self.name, told)
        return told

    def close(self) -> None:
        process, self._process = self._process, None
        if process and self._owner == os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._connection.close()


def _serve(handle: int) -> None:
    """The life of such a process: call what comes until the pipe closes."""
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
        signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 1)  # if the trainer is killed, nobody else is left to end it
        logged: list[tuple[str, tuple]] = []
        for log in logs:
            given[log] = partial(_log, logged, log)
        if "trainer_state" in given:
            given["trainer_state"] = SimpleNamespace(**given["trainer_state"])
        try:
            answer = (True, (_called(function, given), logged))
        except Exception as error:  # whatever it is, it is told
            answer = (False, _told(error))
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(answer)


def _log(logged: list[tuple[str, tuple]], log: str, *call: Any) -> None:
    logged.append((log, call))


# --- as a verdict -----------------------------------------------------------------------------------------------------


def verdicts(names: Sequence[str], grader: Grader) -> Grader | FunctionGrader:
    """What decides whether a completion is right: the first reward. ``grader`` is what grades ``math``."""
    if not names or names[0] == MATH:
        return grader
    return FunctionGrader(Function(names[0], find(names[0]), grader.deadline, grader.memory_mb), grader)


def row_of(problem: Any) -> dict[str, Any]:
    """The columns of a problem that a function is given."""
    return {**problem.columns, "problem": problem.text, "answer": problem.answer, "problem_id": problem.id}


def as_json(row: Mapping[str, Any]) -> str:
    """A row as the column :data:`COLUMNS` and a gold hold it."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True, default=str)


def gold_of(grader: object, problem: Any) -> str:
    """What a completion of a problem is graded against: its answer, or for a function its whole row as JSON."""
    return grader.gold_of(problem) if isinstance(grader, FunctionGrader) else problem.answer


class FunctionGrader:
    """Decides by a reward function, in the place of the :class:`~prefix_rl.rewards.workers.Grader` of mathematics.

    Right is a value of at least 1, wrong a smaller one; None is ``bad_gold``. A sample is ``(text, row, start)``, where
    the row is what :func:`gold_of` gives.
    """

    def __init__(self, function: Function, grader: Grader):
        self.function, self.mathematics = function, grader
        self.rules, self.workers = grader.rules, grader.workers
        self.deadline, self.memory_mb = grader.deadline, grader.memory_mb
        self.readable = grader.readable

    def gold_of(self, problem: Any) -> str:
        """The row of a problem as JSON, and by which function it counts: the verdicts of another one are not its."""
        return as_json({"reward": self.function.name, "row": row_of(problem)})

    def judge(self, samples: Sequence[tuple], progress: Callable[[int], object] | None = None) -> list[Verdict]:
        """One verdict for each sample, in order.

        Raises:
            RewardError: if the function fails.
        """
        found: list[Verdict] = []
        for start in range(0, len(samples), _AT_ONCE):
            part = [(*sample, 0)[:3] for sample in samples[start : start + _AT_ONCE]]
            texts, rows, starts = (list(column) for column in zip(*part, strict=True))
            rows = [json.loads(row)["row"] for row in rows]
            values = self.function.rewards(
                prompts=[row["problem"] for row in rows],
                completions=texts,
                continuation_start=starts,
                **{COLUMNS: list(map(as_json, rows))},
            )
            found += map(_verdict, values)
            if progress:
                progress(len(part))
        return found

    def grade(self, samples: Sequence[tuple], progress: Callable[[int], object] | None = None) -> list[Outcome]:
        """The outcomes of :meth:`judge`."""
        return [verdict.outcome for verdict in self.judge(samples, progress)]

    def start(self) -> None:
        """Nothing: its process starts at the first call."""

    def close(self) -> None:
        """Ends the processes."""
        self.function.close()
        self.mathematics.close()


def _verdict(value: float | None) -> Verdict:
    return Verdict(Outcome.BAD_GOLD if value is None else Outcome.RIGHT if value >= 1 else Outcome.WRONG)
