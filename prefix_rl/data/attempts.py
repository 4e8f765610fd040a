"""The rule by which ``prefix-rl collect`` chooses its next attempts, independent of order, batches and engines.

Stage 1 makes ``k`` attempts at every problem. Stage 2 makes rounds of further attempts at each hard problem that has
too few right traces. The next attempts at a problem depend on the earlier attempts at that problem alone. So a
collection may run in any order, on any number of engines, and be killed at any time, and still ends with the same
traces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import DataError
from .traces import Tally

MAY_GROW = ("k", "wanted", "cap")
"""Settings that may be raised when a collection is continued."""


@dataclass(frozen=True)
class Plan:
    """Numbers of attempts that a collection makes at its problems."""

    k: int = 512
    """Number of attempts at every problem; for a method of own traces, the number it trains on (upft 1, rft 16)."""
    max_pass_rate: float = 0.0
    """Largest share of right answers, among the first ``k`` attempts, at which a problem counts as hard."""
    wanted: int = 1
    """Number of right traces wanted for a hard problem; truncated traces do not count."""
    cap: int = 2500
    """Largest number of attempts at one problem, ``k`` included; equal to ``k`` for a method of own traces."""

    def faults(self) -> list[str]:
        """Faults of these numbers, one message each."""
        faults = [f"{name} = {value}: must be at least 1" for name in MAY_GROW if (value := getattr(self, name)) < 1]
        if not 0 <= self.max_pass_rate <= 1:
            faults.append(f"max_pass_rate = {self.max_pass_rate:g}: a share, from 0 to 1")
        if self.cap < self.k:
            faults.append(f"cap = {self.cap}: fewer than the k = {self.k} attempts that every problem gets")
        return faults

    def is_hard(self, first: Tally) -> bool:
        """True if a problem is hard, judged by its first ``k`` attempts.

        >>> Plan(k=4, max_pass_rate=0.25).is_hard(Tally(attempts=4, right=1))
        True
        """
        return first.right / self.k <= self.max_pass_rate

    def round_after(self, attempts: int) -> int:
        """Number of attempts after the next round, which adds an eighth to ``attempts``, at most up to ``cap``.

        A round is sampled together and kept whole, so that engines have work while its answers are graded. The eighth
        bounds the number of attempts that are sampled after the right trace has come.

        >>> [Plan(k=16, cap=22).round_after(n) for n in (16, 18, 21)]
        [18, 21, 22]
        """
        return min(attempts + -(-attempts // 8), self.cap)  # the two minus signs round the eighth up

    def next_attempts(self, done: Attempts) -> list[int]:
        """Numbers of the attempts to make next at a problem; empty if it needs no more.

        A round that was interrupted is completed first: its results decide about the next round only when all are
        there.
        """
        end = self.k
        while end < min(done.highest, self.cap):
            end = self.round_after(end)
        if missing := done.missing(end):
            return missing
        if not self.is_hard(done.first) or done.every.usable >= self.wanted or end >= self.cap:
            return []
        return done.missing(self.round_after(end))


@dataclass
class Attempts:
    """Attempts at one problem so far, numbered from 0."""

    first: Tally = field(default_factory=Tally)
    """Counts over the attempts with a number below the plan's ``k``."""
    every: Tally = field(default_factory=Tally)
    """Counts over all attempts."""
    upto: int = 0
    """Lowest attempt number that is not recorded: all below it are."""
    beyond: set[int] = field(default_factory=set)
    """Recorded attempt numbers above ``upto``."""
    running: int = 0
    """Number of attempts that are being sampled."""

    def add(self, number: int, k: int, outcome: str, truncated: bool) -> None:
        """Records one finished attempt.

        Raises:
            ValueError: if the attempt is recorded already.
        """
        if number < self.upto or number in self.beyond:
            raise ValueError(f"attempt {number} is there already")
        self.every = self.every.plus(outcome, truncated)
        if number < k:
            self.first = self.first.plus(outcome, truncated)
        self.beyond.add(number)
        while self.upto in self.beyond:
            self.beyond.remove(self.upto)
            self.upto += 1

    @property
    def highest(self) -> int:
        """Highest recorded attempt number plus one; 0 if there is none."""
        return max(self.beyond, default=self.upto - 1) + 1

    def missing(self, end: int) -> list[int]:
        """Attempt numbers below ``end`` that are not recorded."""
        return [n for n in range(self.upto, end) if n not in self.beyond]


class Collection:
    """Attempts at all problems, and the choice of the next ones.

    Args:
        plan: the numbers of attempts to make.
        done: the recorded attempts, one entry for each problem.
        own: indices into ``done`` of the problems that this process samples.
    """

    def __init__(self, plan: Plan, done: Sequence[Attempts], own: Sequence[int]):
        self.plan, self.done, self.own = plan, done, own
        self._open: deque[int] = deque()  # indices of problems whose round is complete
        self._running = 0  # number of attempts that are being sampled

    def ahead(self) -> Iterator[tuple[int, int] | None]:
        """Pairs ``(problem index, attempt number)``: stage 1 problem by problem, then the rounds of stage 2. None where
        the next pair depends on attempts that are still being sampled."""
        for i in self.own:
            if missing := self.done[i].missing(self.plan.k):
                yield from self._begun(i, missing)
            else:
                self._open.append(i)
        while self._open or self._running:
            if self._open:
                i = self._open.popleft()
                yield from self._begun(i, self.plan.next_attempts(self.done[i]))
            else:
                yield None

    def _begun(self, i: int, numbers: Sequence[int]) -> list[tuple[int, int]]:
        self.done[i].running += len(numbers)
        self._running += len(numbers)
        return [(i, number) for number in numbers]

    def back(self, i: int, number: int, outcome: str, truncated: bool) -> None:
        """Records an attempt that has been sampled and graded."""
        done = self.done[i]
        done.add(number, self.plan.k, outcome, truncated)
        done.running -= 1
        self._running -= 1
        if not done.running:
            self._open.append(i)

    def is_done(self) -> bool:
        """True if no attempt is left to make."""
        return not any(self.plan.next_attempts(self.done[i]) for i in self.own)

    def remaining(self) -> int:
        """Number of attempts left in this stage; in stage 2 an upper bound."""
        plan, own = self.plan, [self.done[i] for i in self.own]
        if stage_1 := sum(max(plan.k - a.every.attempts, 0) for a in own):
            return stage_1
        return sum(
            plan.cap - a.every.attempts for a in own
            if plan.is_hard(a.first) and a.every.usable < plan.wanted and a.every.attempts < plan.cap
        )  # fmt: skip


def read(rows: Iterator[Mapping], ids: Sequence[str], k: int) -> list[Attempts]:
    """Attempts recorded in a store, one entry for each of ``ids``.

    Args:
        rows: the rows of :meth:`~prefix_rl.data.traces.TraceStore.outcomes`.

    Raises:
        DataError: if an attempt is recorded twice.
    """
    found = {name: Attempts() for name in ids}
    for row in rows:
        if row["problem_id"] in found:
            try:
                found[row["problem_id"]].add(row["attempt"], k, row["outcome"], row["truncated"])
            except ValueError as error:
                raise DataError(f"the trace store is damaged: of problem {row['problem_id']}, {error}") from error
    return [found[name] for name in ids]
