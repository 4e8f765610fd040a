"""ARG (arXiv 2610.11128): a group that failed entirely gets one rollout that begins with just enough of a reference.

``A_i = r_i - mean(group)`` on every token of rollout i, prefix and continuation alike. In a group without a right
rollout the first one is generated again behind ``d_1 ... d_k(l)``, and stays if it is right, with the least share ``l``
that did it.

- *Injected.* Nothing, at first. Where a whole group fails, its demonstration is cut at shares of its *surprisal*,
  ``k(l) = min {k : S_k >= l * S_m}`` with ``S_k = sum_{t<=k} -log pi_0(d_t | x, d_<t)`` for l in {1/4, 1/2, 1}: equal
  shares are equally much of what the policy would not have written by itself, where equal lengths are not.
- *Selector.* Where the search begins: at the least share whose success rate, ``q_l``, is at least ``enough``. That is a
  moving average over all problems, ``q_l <- q_l + smoothing * (mean success of the step's tries with l - q_l)``. If the
  try is right, the next shorter one is tried, as long as they are right; if it is wrong, the next longer one, until one
  is right.
- *Which tokens move.* The whole trajectory that was put in, its prefix included.
- *Credit.* Of G rollouts one is right: (G - 1) / G for it, -1 / G for the others.

What is known of the paper is an account of its text: help for groups that failed entirely alone, cuts at shares {1,
1/2, 1/4} of the reference's surprisal, a learned selector that problems share, the shortest cut that succeeds put in,
the whole trajectory trained. The selector itself is our reading, and so is all that follows: a try is one rollout; it
takes the place of the group's first one; the reference policy is the one that the run starts from; success is a reward
above 0; a share of 1 leaves the policy a token, and every prefix stops where the answer becomes readable, so that cuts
behind it are one; the group's deviation does not divide. Where no try is right the unaided rollout is put back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Annotated

from annotated_types import Interval
from jaxtyping import Bool, Float
from torch import Tensor

from ..cuts import Cut
from ..prefixes import Prefix, cut
from ..rollouts import Memory, Rollouts, Step
from .base import Earlier, Fraction, Method, Needs
from .cutting import Cutting

_KEY = "arg"  # of what is remembered


@dataclass(frozen=True)
class ARG(Cutting, Method):
    """ARG with the shares of the paper. ``shares: []`` is Dr.GRPO."""

    shares: tuple[Annotated[float, Interval(gt=0, le=1)], ...] = (0.25, 0.5, 1.0)
    """Shares of a demonstration to try, ascending (the paper: 1/4, 1/2 and 1). None: no group is helped."""
    enough: Fraction = 0.5
    """Success rate from which on the search may begin with a share (ours)."""
    smoothing: Fraction = 0.1
    """Weight of a step's tries in the success rates (ours). 0: every search begins with the least share."""
    cut: Cut = field(default="surprisal", kw_only=True)
    """Measure and places of the shares, see :mod:`prefix_rl.cuts` (the paper: surprisal)."""

    @property
    def needs(self) -> Needs:
        if not self.shares:
            return Needs()
        # a try for each share, and a round that puts back what did better
        return Needs(prefixes=True, cut=self.cut, help_rounds=len(self.shares) + 1)

    def faults(self, training: Mapping[str, object]) -> list[str]:
        if list(self.shares) == sorted(set(self.shares)):
            return []
        return [f"method.shares = {list(self.shares)} must ascend, from the shortest cut to the longest"]

    def rates(self, memory: Memory) -> list[float]:
        """``q_l`` of each share. Of one that was never tried it is 1."""
        return list(memory.get(_KEY, [1.0] * len(self.shares)))

    def first(self, memory: Memory) -> int:
        """Number of the share that the selector begins with."""
        last = max(len(self.shares) - 1, 0)
        return next((i for i, rate in enumerate(self.rates(memory)) if rate >= self.enough), last)

    def help(self, rollouts: Rollouts, step: Step) -> Mapping[int, Prefix | Earlier]:
        answers: dict[int, Prefix | Earlier] = {}
        for start, candidates, results in self._searches(rollouts, step):
            if len(results) < len(rollouts.earlier):
                continue  # it had ended before the last round
            found = search(sorted(candidates), self.first(step.memory), results)
            if isinstance(found, Try):
                answers[start] = candidates[found.share]
            elif found.round != len(results):
                answers[start] = Earlier(found.round)
        return answers

    def _searches(
        self, rollouts: Rollouts, step: Step
    ) -> Iterator[tuple[int, Mapping[int, Prefix], list[tuple[int, bool]]]]:
        """Of each group that failed entirely its first row, its prefixes by number of their share, and the tries that
        were made, in order: share, and whether it succeeded."""
        size, history = rollouts.group_size, [*rollouts.earlier, rollouts]
        for start in range(0, len(rollouts.rewards), size):
            row = rollouts.rows[start]
            unaided = history[0].rewards[start : start + size]
            if bool((unaided > 0).any()) or bool(unaided.isnan().all()) or not row.demonstrations:
                continue
            candidates = self.candidates(rollouts, start, step)
            results: list[tuple[int, bool]] = []
            for state in history[1:]:
                found = search(sorted(candidates), self.first(step.memory), results)
                if not isinstance(found, Try):
                    break
                results.append((found.share, bool(state.rewards[start] > 0)))
            yield start, candidates, results

    def candidates(self, rollouts: Rollouts, start: int, step: Step) -> dict[int, Prefix]:
        """The prefixes of a group, by number of their share; of equal ones the first."""
        row = rollouts.rows[start]
        demonstration = row.drawn("arg", step.seed, step.index, row.group)
        found: dict[int, Prefix] = {}
        for i, share in enumerate(self.shares):
            prefix = cut(demonstration, share, max_tokens=step.max_completion_length - 1)
            if prefix.ids and all(prefix.ids != other.ids for other in found.values()):
                found[i] = prefix
        return found

    def update_mask(self, rollouts: Rollouts, entropies: Float[Tensor, "B T"] | None) -> Bool[Tensor, "B T"]:
        return rollouts.completion_mask

    def remember(self, memory: Memory, rollouts: Rollouts) -> Memory:
        tries = [one for _, _, results in self._searches(rollouts, rollouts.step) for one in results]
        rates = self.rates(memory)
        for share in sorted({share for share, _ in tries}):
            success = fmean(right for other, right in tries if other == share)
            rates[share] += self.smoothing * (success - rates[share])
        return {**memory, _KEY: rates} if tries else memory

    def metrics(self, memory: Memory) -> dict[str, float]:
        """Success rate of each share."""
        return {f"arg/rate_{share:g}": rate for share, rate in zip(self.shares, self.rates(memory), strict=True)}


@dataclass(frozen=True)
class Try:
    """A search goes on with this share."""

    share: int  # its number


@dataclass(frozen=True)
class Ended:
    """A search has ended; the rollout of this round stays."""

    round: int  # 0: the unaided one


def search(candidates: Sequence[int], first: int, tries: Sequence[tuple[int, bool]]) -> Try | Ended:
    """What follows on these tries.

    Args:
        candidates: the numbers of the shares that there are for this group, ascending.
        first: that of the share to begin with; the next longer one where there is none, or else the longest.
        tries: share and success of each, in order.

    >>> search([0, 1, 2], 1, []), search([0, 1, 2], 1, [(1, True)]), search([0, 1, 2], 1, [(1, False)])
    (Try(share=1), Try(share=0), Try(share=2))
    >>> search([0, 1, 2], 1, [(1, True), (0, False)]), search([0, 1, 2], 1, [(1, False), (2, False)])
    (Ended(round=1), Ended(round=0))
    """
    if not candidates:
        return Ended(0)
    if not tries:
        return Try(next((c for c in candidates if c >= first), candidates[-1]))
    right = [i for i, (_, success) in enumerate(tries) if success]
    tried, (last, success) = {share for share, _ in tries}, tries[-1]
    place = candidates.index(last) + (-1 if success else 1)
    if 0 <= place < len(candidates) and candidates[place] not in tried:
        return Try(candidates[place])
    return Ended(right[-1] + 1 if right else 0)  # they got shorter as long as they were right
