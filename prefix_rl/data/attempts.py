"""How many attempts ``prefix-rl collect`` makes at which problems: stage 1 at all of them, stage 2 at the hard ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

    def problems_found(self) -> list[str]:
        """What is wrong with these numbers."""
        found = [f"{name} = {value}: must be at least 1" for name in MAY_GROW if (value := getattr(self, name)) < 1]
        if not 0 <= self.max_pass_rate <= 1:
            found.append(f"max_pass_rate = {self.max_pass_rate:g}: a share, from 0 to 1")
        if self.cap < self.k:
            found.append(f"cap = {self.cap}: fewer than the k = {self.k} attempts that every problem gets")
        return found

    def is_hard(self, first: Tally) -> bool:
        """Whether a problem is hard, from its first ``k`` attempts.

        >>> from prefix_rl.data.traces import Tally
        >>> Plan(k=4, max_pass_rate=0.25).is_hard(Tally(attempts=4, right=1))
        True
        """
        return first.right / self.k <= self.max_pass_rate

    def next_batch(self, first: Sequence[Tally], every: Sequence[Tally], size: int) -> list[int]:
        """The problem of each attempt of the next batch; empty when all is done.

        Stage 1 goes problem by problem. Stage 2 goes round the open problems, those with the fewest attempts first, and
        fills the batch even if few are left: a batch costs about the same time however full it is.

        Args:
            first: the tally of each problem's first ``k`` attempts.
            every: the tally of all of its attempts.
            size: attempts in a batch.

        >>> from prefix_rl.data.traces import Tally
        >>> plan = Plan(k=2, wanted=1, cap=5)
        >>> plan.next_batch([Tally(1), Tally(0)], [Tally(1), Tally(0)], size=8)
        [0, 1, 1]
        >>> never, often = Tally(attempts=2), Tally(attempts=2, right=2, usable=2)
        >>> plan.next_batch([never, often, never], [Tally(3), often, never], size=4)
        [2, 0, 2, 0]
        """
        batch = [i for i, tally in enumerate(every) for _ in range(min(self.k - tally.attempts, size))][:size]
        if batch:
            return batch
        left = self._left(first, every)
        order = sorted(left, key=lambda i: (every[i].attempts, i))
        while len(batch) < size and (order := [i for i in order if left[i] > 0]):
            for i in order:
                batch.append(i)
                left[i] -= 1
        return batch[:size]

    def remaining(self, first: Sequence[Tally], every: Sequence[Tally]) -> int:
        """The attempts that are left in this stage; in stage 2 at most so many.

        >>> from prefix_rl.data.traces import Tally
        >>> Plan(k=2, cap=5).remaining([Tally(2), Tally(2, 2, 2)], [Tally(4), Tally(2, 2, 2)])
        1
        """
        stage_1 = sum(max(self.k - tally.attempts, 0) for tally in every)
        return stage_1 or sum(self._left(first, every).values())

    def _left(self, first: Sequence[Tally], every: Sequence[Tally]) -> dict[int, int]:
        """The attempts that each open problem may still get in stage 2."""
        return {
            i: self.cap - tally.attempts
            for i, tally in enumerate(every)
            if self.is_hard(first[i]) and tally.usable < self.wanted and tally.attempts < self.cap
        }
