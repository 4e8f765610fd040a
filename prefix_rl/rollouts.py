"""What flows: the rows that prefixes are planned for, the moment in training, and the rollouts themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .prefixes import Demonstration

Memory = Mapping[str, Any]
"""What a method remembers of the run, as JSON holds it (keys are texts). It is saved with every checkpoint."""


@dataclass(frozen=True)
class Row:
    """One rollout to come. ``index`` counts over all ranks: rows p*G ... p*G+G-1 answer prompt p of the batch."""

    index: int
    problem: int  # the row of the data set
    demonstrations: Sequence[Demonstration]
    copy: int = 0  # which of the problem's rows in an epoch, see Method.copies
    fraction: float | None = None  # the share of a demonstration that this row is to get; None: the method draws it


@dataclass(frozen=True)
class Step:
    """When in the run something happens. Every random choice is a function of ``seed``, ``index`` and the row."""

    index: int  # optimizer steps done so far
    total: int  # optimizer steps of the whole run
    seed: int
    max_completion_length: int  # tokens; prefix + continuation
    memory: Memory = field(default_factory=dict)  # as Method.remember left it before this generation batch


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
    # Of the generation batch alone, None in a micro-batch:
    problems: Int[Tensor, " B"] | None = None  # the rows of the data set
    demonstrated: Bool[Tensor, " B"] | None = None  # whether the problem has a demonstration that the method can use
    fractions: Float[Tensor, " B"] | None = None  # the share of it that was given; NaN where none was planned
    continued: Float[Tensor, "B C"] | None = None  # rewards of further continuations, see Method.continuations

    @property
    def prefixed(self) -> Bool[Tensor, " B"]:
        """Which rollouts start from a prefix."""
        return self.prefix_mask.any(dim=1)

    @property
    def continuation_mask(self) -> Bool[Tensor, "B T"]:
        """True on the tokens that the policy wrote."""
        return self.completion_mask & ~self.prefix_mask
