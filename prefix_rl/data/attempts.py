"""Which attempts at which problems ``prefix-rl collect`` makes: a rule that knows no order, no batch and no engine.

Stage 1 makes ``k`` attempts at every problem. Stage 2 makes rounds of further ones at each hard problem that has not
enough right traces yet. What is sampled follows from the problem's own attempts alone; so a collection may run in any
order, on any number of engines, and be killed anywhere, and ends with the same traces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import DataError
from .traces import Tally

MAY_GROW = ("k", "wanted", "cap")
"""What may be larger when a collection goes on."""


@dataclass(frozen=True)
class Plan:
    """How many attempts at which problems."""

    k: int = 512
    """Attempts at every problem; for a method of own traces as many as it learns from (upft 1, rft 16)."""
    max_pass_rate: float = 0.0
    """A problem is hard if at most this share of the ``k`` is right."""
    wanted: int = 1
    """Right traces wanted for a hard problem; truncated ones do not count."""
    cap: int = 2500
    """Attempts at one problem at most, ``k`` included; for a method of own traces ``k``."""

    def faults(self) -> list[str]:
        """What is wrong with these numbers."""
        faults = [f"{name} = {value}: must be at least 1" for name in MAY_GROW if (value := getattr(self, name)) < 1]
        if not 0 <= self.max_pass_rate <= 1:
            faults.append(f"max_pass_rate = {self.max_pass_rate:g}: a share, from 0 to 1")
        if self.cap < self.k:
            faults.append(f"cap = {self.cap}: fewer than the k = {self.k} attempts that every problem gets")
        return faults

    def is_hard(self, first: Tally) -> bool:
        """Whether a problem is hard, from its first ``k`` attempts.

        >>> Plan(k=4, max_pass_rate=0.25).is_hard(Tally(attempts=4, right=1))
        True
        """
        return first.right / self.k <= self.max_pass_rate

    def round_after(self, attempts: int) -> int:
        """The number of attempts at the end of the round that begins after so many: an eighth more, at most ``cap``.

        A round is sampled together and kept whole, so that engines have work while its answers are graded. The eighth
        bounds what is sampled beyond the trace that was needed.

        >>> [Plan(k=16, cap=22).round_after(n) for n in (16, 18, 21)]
        [18, 21, 22]
        """
        return min(attempts + -(-attempts // 8), self.cap)

    def next_attempts(self, done: Attempts) -> list[int]:
        """The numbers of the attempts to be made at a problem now; empty if it needs no more.

        Attempts that are missing below the end of a round that was begun come first: whatever was cut off is completed
        before it is looked at.
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
    """The attempts at one problem so far. They are numbered from 0."""

    first: Tally = field(default_factory=Tally)
    """Of those with a number below the plan's ``k``."""
    every: Tally = field(default_factory=Tally)
    upto: int = 0
    """All numbers below this one are there."""
    beyond: set[int] = field(default_factory=set)
    """The others that are there."""
    running: int = 0
    """Attempts in the making."""

    def add(self, number: int, k: int, outcome: str, truncated: bool) -> None:
        """One more attempt.

        Raises:
            ValueError: if it is there already.
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
        """One more than the highest number that is there."""
        return max(self.beyond, default=self.upto - 1) + 1

    def missing(self, end: int) -> list[int]:
        """The numbers below ``end`` that are not there."""
        return [n for n in range(self.upto, end) if n not in self.beyond]


class Collection:
    """The attempts at all problems, and which come next.

    Args:
        plan: the rule.
        done: what is there of each problem.
        own: the problems (by number) that this process samples.
    """

    def __init__(self, plan: Plan, done: Sequence[Attempts], own: Sequence[int]):
        self.plan, self.done, self.own = plan, done, own
        self._open: deque[int] = deque()  # problems whose round is complete
        self._running = 0  # attempts in the making

    def ahead(self) -> Iterator[tuple[int, int] | None]:
        """``(problem, attempt)`` one by one: stage 1 problem by problem, then rounds of stage 2. None: the next ones
        depend on attempts that are in the making."""
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
        """An attempt is done."""
        done = self.done[i]
        done.add(number, self.plan.k, outcome, truncated)
        done.running -= 1
        self._running -= 1
        if not done.running:
            self._open.append(i)

    def is_done(self) -> bool:
        """Whether no attempt is left to be made."""
        return not any(self.plan.next_attempts(self.done[i]) for i in self.own)

    def remaining(self) -> int:
        """The attempts that are left in this stage; in stage 2 at most so many."""
        plan, own = self.plan, [self.done[i] for i in self.own]
        if stage_1 := sum(max(plan.k - a.every.attempts, 0) for a in own):
            return stage_1
        return sum(
            plan.cap - a.every.attempts for a in own
            if plan.is_hard(a.first) and a.every.usable < plan.wanted and a.every.attempts < plan.cap
        )  # fmt: skip


def read(rows: Iterator[Mapping], ids: Sequence[str], k: int) -> list[Attempts]:
    """What a store holds of each problem, from its rows (see :meth:`~prefix_rl.data.traces.TraceStore.outcomes`).

    Raises:
        DataError: if an attempt stands there twice.
    """
    found = {name: Attempts() for name in ids}
    for row in rows:
        if row["problem_id"] in found:
            try:
                found[row["problem_id"]].add(row["attempt"], k, row["outcome"], row["truncated"])
            except ValueError as error:
                raise DataError(f"the trace store is damaged: of problem {row['problem_id']}, {error}") from error
    return [found[name] for name in ids]
