"""What flows: the rows that prefixes are planned for, the moment in training, and the rollouts themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .prefixes import Demonstration


@dataclass(frozen=True)
class Row:
    """One rollout to come. ``index`` counts over all ranks: rows p*G ... p*G+G-1 answer prompt p of the batch."""

    index: int
    problem: int  # the row of the data set
    demonstrations: Sequence[Demonstration]
    copy: int = 0  # which of the problem's rows in an epoch, see Method.copies


@dataclass(frozen=True)
class Step:
    """When in the run something happens. Every random choice is a function of ``seed``, ``index`` and the row."""

    index: int  # optimizer steps done so far
    total: int  # optimizer steps of the whole run
    seed: int
    max_completion_length: int  # tokens; prefix + continuation


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """A generation batch over all ranks: ``prompt | prefix | continuation``, the last two being the completion.

    Before TRL shuffles them, rows ``p * group_size ... p * group_size + group_size - 1`` answer prompt p. A field
    never changes its meaning: ``rewards`` stay rewards.
    """

    completion_ids: Int[Tensor, "B T"]
    completion_mask: Bool[Tensor, "B T"]  # True on prefix and continuation, False on padding
    prefix_mask: Bool[Tensor, "B T"]  # True on the prefix; a subset of completion_mask
    rewards: Float[Tensor, " B"]  # NaN: could not be scored
    group_size: int
    step: Step
    advantages: Float[Tensor, "B T"] | None = None  # as the method gave them; None until it has

    @property
    def prefixed(self) -> Bool[Tensor, " B"]:
        """Which rollouts start from a prefix."""
        return self.prefix_mask.any(dim=1)

    @property
    def continuation_mask(self) -> Bool[Tensor, "B T"]:
        """True on the tokens that the policy wrote."""
        return self.completion_mask & ~self.prefix_mask
