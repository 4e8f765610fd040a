"""The open batch. All that the trainer knows for a while and then forgets stands in it.

While TRL generates and grades, a :class:`GenerationBatch` is open. It is frozen: each step puts another in its place,
with one more field filled. While TRL computes a loss, a :class:`Forward` is open. A :class:`Slot` holds the open one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from ..costs import Cost
from ..prefixes import Prefix
from ..rollouts import Rollouts, Row, Step
from .ranks import Ranks

ROW = "dataset_row"
"""The column that tells a row's place in the data set, and so its demonstrations."""
COPY = "copy"
"""The column that tells the rows of one problem apart."""


@dataclass(frozen=True)
class Planned:
    """The prefixes of all ranks as numbers, ``(B,)`` each."""

    lengths: torch.Tensor  # tokens
    drawn: torch.Tensor  # tokens drawn, before they were shortened
    of: torch.Tensor  # tokens of the demonstration; 0: no prefix was planned
    complete: torch.Tensor  # bool: the whole demonstration and its end
    asked: torch.Tensor  # bool: the row was to start from a prefix
    fractions: torch.Tensor  # share of a demonstration that is injected, as the method counts; NaN: none was planned

    @classmethod
    def over(cls, ranks: Ranks, plan: Sequence[Prefix], asked: Sequence[bool]) -> Planned:
        """Gathered from what each rank has planned for its own rows."""
        own = torch.tensor([[len(p.ids), p.drawn, p.of, p.complete, was] for p, was in zip(plan, asked, strict=True)])
        # the bits of a double travel as an integer, beside the others
        shares = torch.tensor([p.fraction for p in plan], dtype=torch.double).view(torch.long)
        found = ranks.all(torch.cat([own, shares.unsqueeze(1)], dim=1).to(ranks.device))
        lengths, drawn, of, complete, asked, shares = found.unbind(dim=1)
        return cls(lengths, drawn, of, complete.bool(), asked.bool(), shares.contiguous().view(torch.double))

    @property
    def prefixed(self) -> torch.Tensor:
        """True for the rollouts that start from a prefix."""
        return self.lengths > 0


@dataclass(frozen=True)
class Sampled:
    """What one call of generation and grading has found, for the rows of this rank in their order."""

    prompts: Sequence[int]  # tokens of each prompt
    ids: Sequence[Sequence[int]]  # of each completion
    logps: Sequence[Sequence[float | None]] | None  # the sampler's, if it tells; None where nobody sampled
    rewards: torch.Tensor  # (G, F), of the graded rows of all ranks
    extra: Mapping[str, Sequence]  # what reward functions logged of each graded row of this rank
    told: Mapping[str, Sequence[float]]  # the metrics that they logged


Sample = Callable[[Sequence[Mapping[str, Any]], Sequence[Prefix], Sequence[Prefix], Sequence[int]], Sampled]
"""``sample(inputs, begun, plan, graded)``: what is written behind ``begun``, and what the rows ``graded`` earn, where
the policy's own text begins behind the row's prefix in ``plan``."""


@dataclass(frozen=True)
class Settled:
    """Rollouts of this rank that stand after rounds of help or exchange: TRL takes them as its own."""

    ids: Sequence[Sequence[int]]
    logps: Sequence[Sequence[float | None]] | None
    rewards: torch.Tensor  # (B, F), of all ranks
    extra: Mapping[str, Sequence]  # what reward functions logged of each
    told: Mapping[str, Sequence[float]]  # the metrics that they logged, once for each row graded in any round
    earlier: Sequence[Rollouts]  # see Rollouts.earlier
    own: Rollouts | None  # those of the batch's own problems, if others have taken the place of some
    cost: Cost  # of the rollouts that were discarded
    metrics: Mapping[str, float]

    def logged(self, extra: dict[str, list], metrics: dict[str, list]) -> torch.Tensor:
        """The rewards, after putting what the functions logged where TRL would find it."""
        extra.update({name: list(values) for name, values in self.extra.items()})
        metrics.update({name: list(values) for name, values in self.told.items()})
        return self.rewards


@dataclass(frozen=True)
class GenerationBatch:
    """The state of a generation batch: the rows of this rank, and what was gathered from all ranks."""

    inputs: Sequence[Mapping[str, Any]]  # TRL's rows
    rows: Sequence[Row]
    plan: Sequence[Prefix]
    planned: Planned
    step: Step
    hints: Planned | None = None  # of a method whose prefixes stand in the prompts
    settled: Settled | None = None  # rollouts that are there already
    begun: bool = False  # the prefixes have been injected: where TRL comes back (for tools), no more are
    completions: Sequence[Sequence[int]] | None = None  # prefix and continuation of each row of this rank
    rewards: torch.Tensor | None = None  # (B,) over all ranks, NaN where there is none
    outcomes: Sequence[str] | None = None  # how each row of this rank was graded, if the reward tells
    answers: Sequence[str | None] | None = None  # the answer that it read in each; None: none
    apart: Mapping[str, torch.Tensor] | None = None  # the value of each reward function, (B,) over all ranks
    continued: torch.Tensor | None = None  # (B, C), rewards of further continuations


@dataclass(frozen=True)
class Forward:
    """A micro-batch that is trained on, and what the policy says of its tokens once TRL has asked it."""

    inputs: Mapping[str, torch.Tensor]  # TRL's micro-batch with the keys that were added to it
    found: tuple[torch.Tensor, torch.Tensor | None] | None = None  # log-probabilities and entropies, (B, T)


Batch = TypeVar("Batch", GenerationBatch, Forward)


class Slot:
    """Holds the batch that is open."""

    def __init__(self):
        self._held: GenerationBatch | Forward | None = None

    @contextmanager
    def holding(self, batch: GenerationBatch | Forward | None) -> Iterator[None]:
        """``batch`` is open within; behind it, the one that was open before."""
        before, self._held = self._held, batch
        try:
            yield
        finally:
            self._held = before

    def get(self, kind: type[Batch]) -> Batch | None:
        """The batch that is open, if it is one of this kind."""
        return self._held if isinstance(self._held, kind) else None

    def fill(self, **found: Any) -> None:
        """Puts these fields into the batch that is open."""
        self._held = replace(self._held, **found)
