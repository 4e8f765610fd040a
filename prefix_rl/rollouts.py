"""The types that flow: rows that prefixes are planned for, the moment in training, and the rollouts themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .prefixes import Demonstration, uniform

Memory = Mapping[str, Any]
"""A method's memory of the run, as JSON holds it (keys are texts). It is saved with every checkpoint."""

DUE = "due"
"""The key of a memory under which a method leaves the problems of the next generation batch, see :attr:`Step.due`."""


@dataclass(frozen=True)
class Row:
    """One rollout to come. ``index`` counts over all ranks: rows p*G ... p*G+G-1 answer prompt p of the batch."""

    index: int
    group_size: int  # G
    problem: int  # the row of the data set
    demonstrations: Sequence[Demonstration]
    copy: int = 0  # which of the problem's rows in an epoch, see Method.copies
    fraction: float | None = None  # the share of a demonstration that this row is to get; None: the method draws it

    @property
    def group(self) -> int:
        """Number of its group in the generation batch."""
        return self.index // self.group_size

    @property
    def member(self) -> int:
        """Number of the row within its group."""
        return self.index % self.group_size

    def drawn(self, *key: int | str) -> Demonstration:
        """One of its demonstrations, each equally likely, as ``key`` alone decides.

        >>> row = Row(0, 8, problem=3, demonstrations=(Demonstration((5, 6), 2), Demonstration((7, 8), 2)))
        >>> {row.drawn("trace", seed).ids for seed in range(9)} == {(5, 6), (7, 8)}
        True
        """
        return self.demonstrations[int(uniform(*key) * len(self.demonstrations))]


@dataclass(frozen=True)
class Step:
    """The moment in a run. Every random choice is a function of ``seed``, ``index`` and the row."""

    index: int  # optimizer steps done so far
    total: int  # optimizer steps of the whole run
    seed: int
    max_completion_length: int  # tokens; prefix + continuation
    memory: Memory = field(default_factory=dict)  # as Method.remember left it before this generation batch

    @property
    def due(self) -> Sequence[int]:
        """Problems (rows of the data set) that take the place of this generation batch's own; empty: those stay."""
        return self.memory.get(DUE, ())


@dataclass(frozen=True, kw_only=True)
class _Completions:
    """Fields common to a generation batch and a micro-batch. The completion is ``prefix | continuation``."""

    completion_ids: Int[Tensor, "B T"]
    completion_mask: Bool[Tensor, "B T"]  # True on prefix and continuation, False on padding
    prefix_mask: Bool[Tensor, "B T"]  # True on the prefix; a subset of completion_mask
    rewards: Float[Tensor, " B"]  # NaN: could not be scored
    step: Step

    @property
    def continuation_mask(self) -> Bool[Tensor, "B T"]:
        """True on the tokens that the policy wrote."""
        return self.completion_mask & ~self.prefix_mask


@dataclass(frozen=True, kw_only=True)
class Rollouts(_Completions):
    """A generation batch over all ranks: rows ``p * G ... p * G + G - 1`` answer prompt p, with ``G = group_size``."""

    prefixed: Bool[Tensor, " B"]  # True if it starts from a prefix, also where TRL masks a truncated completion
    group_size: int
    problems: Int[Tensor, " B"]  # the rows of the data set
    demonstrated: Bool[Tensor, " B"]  # True if the problem has a demonstration that the method can use
    fractions: Float[Tensor, " B"]  # share of it that was injected, in the measure of its cuts; NaN: no prefix planned
    continued: Float[Tensor, "B C"]  # rewards of the C further continuations that the method needs, see Further
    rows: Sequence[Row] = ()  # B, what each answers: with the demonstrations of its problem
    earlier: Sequence[Rollouts] = ()  # the same rows before each round of help in this step, the unaided ones first

    def of_groups(self, kept: Bool[Tensor, " P"]) -> Rollouts:
        """The rollouts of the groups where ``kept`` is True, without ``earlier``."""
        rows = kept.repeat_interleave(self.group_size)
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen = {name: value[rows] for name, value in tensors.items() if isinstance(value, Tensor)}
        told = [row for row, there in zip(self.rows, rows.tolist(), strict=False) if there]
        return replace(self, **chosen, rows=told, earlier=())


@dataclass(frozen=True, kw_only=True)
class MicroBatch(_Completions):
    """The rows trained on at once on one rank: of one generation batch, shuffled, so no groups any more."""

    advantages: Float[Tensor, "B T"]  # as Method.advantages gave them for the generation batch
    weights: Float[Tensor, "B T"]  # as Method.weights gave them
