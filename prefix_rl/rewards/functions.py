"""Rewards of one's own: ``reward.functions``, each by name (``math``, ``code``) or by dotted path.

A function has the signature that TRL gives its own: ``prompts``, ``completions``, every further column of the row,
``continuation_start``; it returns one number for each completion, None where it has none. Unless it says
``in_process = True``, it runs in a process of its own (:mod:`.process`), with the memory and the deadline of
``reward``. What goes wrong in it does not raise where it happens, since the other ranks would wait for this one: it is
kept as :attr:`Function.fault`, and :func:`agreed` raises it on all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from .grading import Outcome, Verdict
from .process import Lost, Process, RewardError, called, raised, told
from .workers import Grader

MATH = "math"
NAMED = {MATH: "prefix_rl.rewards.math_reward", "code": "prefix_rl.rewards.code.code_reward"}
"""The rewards that have a name."""
COLUMNS = "further_columns"
"""The column under which the data set holds the further columns of a row, as JSON: no type of theirs is changed."""
_GIVEN = {"prompts", "completions", "completion_ids", "continuation_start", "trainer_state", "log_extra", "log_metric"}
_AT_ONCE = 16  # completions of a call in grading: one that hangs holds up so many times the deadline


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


def logged_as(name: str) -> str:
    """The name of a function in TRL's log: ``rewards/NAME/mean``.

    >>> logged_as("math"), logged_as("my_package.rewards.length")
    ('math_reward', 'my_package.rewards.length')
    """
    return NAMED[name].rpartition(".")[2] if name in NAMED else name


def source_sha256(name: str) -> str:
    """The hash of the file of the module that a function stands in: which code has decided."""
    path = sys.modules[(NAMED.get(name, name)).rpartition(".")[0]].__file__
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


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

    A call that is late, or in which the process of the function dies, is repeated for each completion alone. Those that
    it then is late or dies on get 0; their share, where there are any, is logged as ``rewards/NAME/timeout`` and
    ``rewards/NAME/crash``.

    Args:
        name: as the recipe has it; the log has ``rewards/NAME``.
        function: what is called.
        deadline: seconds for each completion that a call is given.
        memory_mb: MiB that its process may take beyond what its import took.
    """

    fault: RewardError | None = None
    """What went wrong in the last call."""
    all_lost = False
    """Whether that is that it was late or died on every completion: with those of other ranks it may be a few."""

    def __init__(self, name: str, function: Callable[..., Any], deadline: float = 5.0, memory_mb: int = 2048):
        self.name, self.function, self.deadline, self.memory_mb = name, function, deadline, memory_mb
        self.__name__ = logged_as(name)
        self._process = None if getattr(function, "in_process", False) else Process(name, memory_mb)

    def __call__(self, prompts, completions, **given: Any) -> list[float | None]:
        """One reward for each completion; 0 for all of them if there is a fault, which nobody will train on."""
        self.fault, self.all_lost = None, False
        try:
            values = self.outcomes(prompts=prompts, completions=completions, **given)
        except UserError as error:
            self.fault = error if isinstance(error, RewardError) else RewardError(error.what, error.faults)
            return [0.0] * len(completions)
        for outcome in (Outcome.TIMEOUT, Outcome.CRASH):
            if (count := values.count(outcome)) and (log := given.get("log_metric")):
                log(f"rewards/{self.__name__}/{outcome}", count / len(values))
        if self.all_lost:
            self.fault = self.lost_all(values)
        return [0.0 if isinstance(value, Outcome) else value for value in values]

    def rewards(self, **given: Any) -> list[float | None]:
        """One reward for each completion, 0 for those that it is late or dies on.

        Raises:
            RewardError: if the function raises, returns something else, or is late or dies on all of them.
        """
        values = self.outcomes(**given)
        if self.all_lost:
            raise self.lost_all(values)
        return [0.0 if isinstance(value, Outcome) else value for value in values]

    def outcomes(self, **given: Any) -> list[float | Outcome | None]:
        """The same, with ``timeout`` or ``crash`` for a completion that it was late or died on.

        Raises:
            RewardError: if the function raises or returns something else.
        """
        count = len(given["completions"])
        given = self._accepted(_expanded({"continuation_start": [0] * count, **given}))
        self.all_lost = False
        try:
            if self._process:
                return self._process.call(given, self.deadline * max(count, 1))
            return called(self.function, given)
        except Lost as lost:
            self._how = lost.how
            values = [lost.outcome] * count if count < 2 else self._each_alone(given, count)
        except UserError:
            raise
        except Exception as error:  # whatever it is, it ends the run on all ranks
            raise raised(self.name, told(error)) from error
        self.all_lost = all(isinstance(value, Outcome) for value in values)
        return values

    def _each_alone(self, given: Mapping[str, Any], count: int) -> list[float | Outcome | None]:
        """:meth:`outcomes` of completions one by one, each with a deadline of its own, and what they log together."""
        extra: dict[str, list] = {}
        metrics: dict[str, list[float]] = {}
        values: list[float | Outcome | None] = []
        for i in range(count):
            of_row = {n: v[i : i + 1] if isinstance(v, list) and len(v) == count else v for n, v in given.items()}
            if given.get("log_extra"):
                of_row["log_extra"] = lambda name, said, i=i: extra.setdefault(name, [None] * count).__setitem__(
                    i, said[0]
                )
            if given.get("log_metric"):
                of_row["log_metric"] = lambda name, value: metrics.setdefault(name, []).append(value)
            try:
                values += self._process.call(of_row, self.deadline)
            except Lost as lost:
                values.append(lost.outcome)
        for name, said in extra.items():
            given["log_extra"](name, said)
        for name, said in metrics.items():
            given["log_metric"](name, sum(said) / len(said))
        return values

    def lost_all(self, values: Sequence[Outcome]) -> RewardError:
        """What to say where no completion was rewarded."""
        late, died = values.count(Outcome.TIMEOUT), values.count(Outcome.CRASH)
        alone = f"; called for each of the {len(values)} completions alone, " if len(values) > 1 else ": "
        return RewardError(
            f"the reward function {self.name} gave no reward: its process {self._how}{alone}it was late on {late} and "
            f"died on {died}. Nothing can be learned from that",
            [
                f"reward.deadline = {self.deadline:g} s is for one completion; raise it if the function needs longer",
                f"reward.memory_mb = {self.memory_mb} MiB is what its process may take",
                "in_process = True as an attribute of the function has it run in the training process, without limits",
            ],
        )

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
    told = objects([[(f.fault.what, f.fault.faults, f.all_lost) if f.fault else None for f in own]])
    for place in range(len(own)):
        of_ranks = [of_rank[place] for of_rank in told]
        for rank, fault in enumerate(of_ranks):
            if fault and (not fault[2] or all(of_ranks)):  # what was lost on every row of one rank need not be on all
                raise RewardError(fault[0] + (f" (on rank {rank})" if len(told) > 1 else ""), fault[1])


def _expanded(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the further columns of the rows, None where a row has not got one."""
    rows = [json.loads(row) for row in given.pop(COLUMNS, None) or ()]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names} | given


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

    Right is a value of at least 1, wrong a smaller one; None is ``bad_gold``; a function that was late or died on a
    completion makes it ``timeout`` or ``crash``. A sample is ``(text, row, start)``, where
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
            RewardError: if the function raises, or is late or dies on all of the first samples.
        """
        found: list[Verdict] = []
        for start in range(0, len(samples), _AT_ONCE):
            part = [(*sample, 0)[:3] for sample in samples[start : start + _AT_ONCE]]
            texts, rows, starts = (list(column) for column in zip(*part, strict=True))
            rows = [json.loads(row)["row"] for row in rows]
            values = self.function.outcomes(
                prompts=[row["problem"] for row in rows],
                completions=texts,
                continuation_start=starts,
                **{COLUMNS: list(map(as_json, rows))},
            )
            if self.function.all_lost and not found and len(part) > 1:
                raise self.function.lost_all(values)
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


def _verdict(value: float | Outcome | None) -> Verdict:
    if isinstance(value, Outcome):
        return Verdict(value)
    return Verdict(Outcome.BAD_GOLD if value is None else Outcome.RIGHT if value >= 1 else Outcome.WRONG)
