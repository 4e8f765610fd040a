"""Reward functions of a recipe (``reward.functions``): ``math``, ``code``, or the dotted path of your own function.

A function has the signature of TRL's reward functions: ``prompts``, ``completions``, every further column of the row,
``continuation_start``. It returns a list with one number, or None for "no reward", for each completion. It runs in a
process of its own (:mod:`.process`) with the memory and the deadline of the block ``reward``, unless the function has
the attribute ``in_process = True``. An error in it is not raised at once on one rank, because the other ranks would
wait for that rank forever: it is stored in :attr:`Function.fault`, and :func:`agreed` raises it on all ranks together.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from ..trials import import_module
from .grading import Outcome, Verdict
from .process import Lost, Process, RewardError, called, raised, told, worded
from .workers import Grader

MATH = "math"
NAMED = {MATH: "prefix_rl.rewards.math_reward", "code": "prefix_rl.rewards.code.code_reward"}
"""Dotted paths of the rewards that have a short name."""
COLUMNS = "further_columns"
"""Name of the data-set column that holds all further columns of a row as JSON, so that their types are kept."""
_GIVEN = {"prompts", "completions", "completion_ids", "continuation_start", "trainer_state", "log_extra", "log_metric"}
_AT_ONCE = 16  # completions in one call when grading: if one hangs, the call waits 16 times the deadline


# --- by name ----------------------------------------------------------------------------------------------------------


def find(name: str) -> Callable[..., Any]:
    """Function with a name of :data:`NAMED` or with a dotted path ``package.module.function``.

    Raises:
        LookupError: if it does not exist, cannot be called, or does not accept the arguments of a reward function.
    """
    if "." not in name and name not in NAMED:
        raise LookupError(
            f"no such reward{nearest(name, NAMED)}; there are {', '.join(NAMED)}, or give the dotted path of a "
            "function of your own (my_package.rewards.length)"
        )
    module, _, attribute = NAMED.get(name, name).rpartition(".")
    try:
        home = import_module(module)
    except (Exception, SystemExit) as error:  # whatever the module of somebody else does when it is imported
        raise LookupError(
            f"module {module!r} cannot be imported ({worded(error)}); one in this folder is found with "
            "export PYTHONPATH=."
        ) from error
    try:
        function = getattr(home, attribute, None)
        parameters = _parameters(function).values() if callable(function) else ()
    except (
        Exception
    ) as error:  # some that are written in C have no signature; others are objects with code of their own
        raise LookupError(f"cannot be asked what it takes ({worded(error)}); give a plain function") from error
    if function is None:
        raise LookupError(f"module {module!r} has no {attribute!r}{nearest(attribute, vars(home))}")
    if inspect.isclass(function) or not callable(function):
        raise LookupError(f"{attribute!r} is a {type(function).__name__}, not a function")
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
    """Names of the columns of a row that a function requires: its parameters without a default.

    >>> columns_of(lambda completions, tests, answer=None, **columns: [])
    ['tests']
    """
    return [
        name for name, p in _parameters(function).items()
        if name not in _GIVEN and p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]  # fmt: skip


def needed(name: str) -> list[str]:
    """Columns that the function ``name`` requires; empty if it does not exist (:func:`faults` reports that)."""
    try:
        return columns_of(find(name))
    except LookupError:
        return []


def logged_as(name: str) -> str:
    """Name of a function in TRL's log: NAME in ``rewards/NAME/mean``.

    >>> logged_as("math"), logged_as("my_package.rewards.length")
    ('math_reward', 'my_package.rewards.length')
    """
    return NAMED[name].rpartition(".")[2] if name in NAMED else name


def source_sha256(name: str) -> str:
    """SHA-256 of the file that defines a function: a record of the code that gave the rewards."""
    path = sys.modules[(NAMED.get(name, name)).rpartition(".")[0]].__file__
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def faults(names: Sequence[str], weights: Sequence[float] | None) -> list[str]:
    """Messages, one for each fault in ``reward.functions`` and ``reward.weights``."""
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
    """Reward function as the trainer calls it. Called by the trainer it never raises: errors go to :attr:`fault`.

    If a call exceeds its deadline, or the process of the function dies, the function is called again for each
    completion alone. A completion on which that happens again gets reward 0. The shares of such completions, if there
    are any, are logged as ``rewards/NAME/timeout`` and ``rewards/NAME/crash``.

    Args:
        name: name or dotted path, as in the recipe.
        function: the function to call.
        deadline: seconds for one completion; a call with n completions may take n times as long.
        memory_mb: MiB that the process of the function may use beyond the memory that its import took.
    """

    fault: RewardError | None = None
    """Error of the last call; None if there was none."""
    all_lost = False
    """True if the last call lost every completion to the deadline or a crash. Other ranks may have lost none."""

    def __init__(self, name: str, function: Callable[..., Any], deadline: float, memory_mb: int):
        self.name, self.function, self.deadline, self.memory_mb = name, function, deadline, memory_mb
        self.__name__ = logged_as(name)
        self._process = None if getattr(function, "in_process", False) else Process(name, memory_mb)

    def __call__(self, prompts, completions, **given: Any) -> list[float | None]:
        """Rewards, one each. After a fault all are 0; :func:`agreed` then ends the run before training."""
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

    def outcomes(self, **given: Any) -> list[float | Outcome | None]:
        """Rewards, one for each completion; ``timeout`` or ``crash`` in the place of a reward that was lost.

        Raises:
            RewardError: if the function raises or returns something other than rewards.
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
        """Result of :meth:`outcomes` for one completion at a time, each with its own deadline; logs are merged."""
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
        """Error for a call in which every completion was lost to the deadline or a crash."""
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
        """Stops the process of the function. The next call starts it again."""
        if self._process:
            self._process.close()


class Rewards:
    """Reward functions of a recipe, and the grader that decides what is right.

    Args:
        names: ``reward.functions`` of the recipe.
        grader: workers that grade ``math`` and find the place at which a demonstration shows its answer.
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
    """Context in which rewards are computed: at its end, an error of any rank is raised on every rank.

    Args:
        functions: reward functions of the trainer. One that is not a :class:`Function` raises where it is called.
        objects: function that gathers a list from all ranks: own items in, the items of all ranks out.

    Raises:
        RewardError: the error of the first rank that has one.
    """
    yield
    own = [function for function in functions if isinstance(function, Function)]
    if not own:
        return
    told = objects([[(f.fault.what, f.fault.faults, f.all_lost) if f.fault else None for f in own]])
    for place in range(len(own)):
        of_ranks = [of_rank[place] for of_rank in told]
        for rank, fault in enumerate(of_ranks):
            if fault and (not fault[2] or all(of_ranks)):  # rows lost to deadline or crash: only if every rank lost all
                raise RewardError(fault[0] + (f" (on rank {rank})" if len(told) > 1 else ""), fault[1])


def _expanded(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call with one list for each further column of the rows; None where a row lacks that column."""
    rows = [json.loads(row) for row in given.pop(COLUMNS, None) or ()]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names} | given


# --- as a verdict -----------------------------------------------------------------------------------------------------


def verdicts(names: Sequence[str], grader: Grader) -> Grader | FunctionGrader:
    """Grader that decides by the first reward function: ``grader`` itself if that is ``math``."""
    if not names or names[0] == MATH:
        return grader
    return FunctionGrader(Function(names[0], find(names[0]), grader.deadline, grader.memory_mb), grader)


def row_of(problem: Any) -> dict[str, Any]:
    """Columns of a problem, by their names, as a reward function receives them."""
    return {**problem.columns, "problem": problem.text, "answer": problem.answer, "problem_id": problem.id}


def as_json(row: Mapping[str, Any]) -> str:
    """JSON of a row, as it is stored in the column :data:`COLUMNS` and in the gold of :func:`gold_of`."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True, default=str)


def gold_of(grader: object, problem: Any) -> str:
    """Gold of a problem, against which completions are graded: its answer, or for a function its row as JSON."""
    return grader.gold_of(problem) if isinstance(grader, FunctionGrader) else problem.answer


class FunctionGrader:
    """Grader that decides by a reward function; it replaces :class:`~prefix_rl.rewards.workers.Grader`.

    A reward of at least 1 is ``right``, a smaller one ``wrong``, None ``bad_gold``; ``timeout`` and ``crash`` are the
    outcomes of completions that were lost. A sample is ``(text, row, start)``, with the row that :func:`gold_of`
    returns.
    """

    def __init__(self, function: Function, grader: Grader):
        self.function, self.mathematics = function, grader
        self.rules, self.workers = grader.rules, grader.workers
        self.deadline, self.memory_mb = grader.deadline, grader.memory_mb
        self.readable = grader.readable

    def gold_of(self, problem: Any) -> str:
        """JSON of a problem's row and the name of the function, so that stored verdicts of another one are not used."""
        return as_json({"reward": self.function.name, "row": row_of(problem)})

    def judge(self, samples: Sequence[tuple], progress: Callable[[int], object] | None = None) -> list[Verdict]:
        """Verdicts, one for each sample, in order.

        Raises:
            RewardError: if the function raises, or loses all of the first samples to the deadline or a crash.
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
        """Outcomes, one for each sample, in order; see :meth:`judge`."""
        return [verdict.outcome for verdict in self.judge(samples, progress)]

    def start(self) -> None:
        """Does nothing: the process starts at the first call."""

    def close(self) -> None:
        """Stops the process of the function and the workers."""
        self.function.close()
        self.mathematics.close()


def _verdict(value: float | Outcome | None) -> Verdict:
    if isinstance(value, Outcome):
        return Verdict(value)
    return Verdict(Outcome.BAD_GOLD if value is None else Outcome.RIGHT if value >= 1 else Outcome.WRONG)
