"""The stages that a run consists of, and what the supervised one learns.

A method with a supervised stage has a field ``supervised`` and derives from :class:`Supervising` beside
:class:`~prefix_rl.methods.base.Method`, or from :class:`SupervisedOnly` if no rollouts follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Interval, Le

from ..prefixes import Demonstration

Fraction = Annotated[float, Interval(ge=0, le=1)]

SUPERVISED, ROLLOUTS = "supervised", "rollouts"
"""The stages that there are."""


@dataclass(frozen=True)
class Supervised:
    """A supervised stage on the demonstrations. The defaults are those of arXiv 2604.23747."""

    epochs: Annotated[float, Ge(0), Le(10**6)] = 3
    """Passes over the demonstrations; 0: no such stage."""
    learning_rate: Annotated[float, Gt(0)] = 5e-5
    """Peak learning rate. It warms up, then falls along a cosine."""
    batch_size: Annotated[int, Ge(1), Le(2**20)] = 64
    """Demonstrations of an optimizer step, over all ranks and micro-batches."""
    per_device_batch_size: Annotated[int, Ge(1), Le(2**20)] = 8
    """Demonstrations of a micro-batch."""
    warmup: Fraction = 0.1
    """The share of the steps in which the learning rate rises."""
    min_lr: Fraction = 0.1
    """Learning rate at the end of the cosine, as a share of the peak."""


@dataclass(frozen=True)
class Excerpt:
    """Part of a problem's trace that is learned, and the instruction beside the problem."""

    tokens: int | None = None
    """Number of tokens, from the first on; None: all, and the id that ends it."""
    instruction: str = ""
    """Appended to the problem."""

    def of(self, demonstration: Demonstration) -> list[int]:
        """The ids to learn. The end is learned where it lies within ``tokens``.

        >>> seven_eight = Demonstration(ids=(7, 8), safe_length=2, stop=1)
        >>> [Excerpt(tokens=t).of(seven_eight) for t in (1, 2, 3, None)]
        [[7], [7, 8], [7, 8, 1], [7, 8, 1]]
        """
        end = [] if demonstration.stop is None else [demonstration.stop]
        return [*demonstration.ids, *end][: self.tokens]


class Stages:
    """Stages of a run. These are the plain answers: rollouts alone; and where something is to be learned all the
    same (traces that are collected), all of it."""

    order: ClassVar[tuple[str, ...]] = (ROLLOUTS,)
    """The stages of a run, first to last; the policy of the last one is the run's."""
    supervised: ClassVar[Supervised | None] = None
    """Settings of the supervised stage."""
    own_traces: ClassVar[int | None] = None
    """Number of the policy's own traces of every problem that it takes, if it learns from nothing else: it then demands
    ``data.traces``, and `prefix-rl collect` samples every problem so often and no further."""

    @property
    def needs_answers(self) -> bool:
        """True if right and wrong make a difference. If not, nothing is graded, traces are taken whatever they came to,
        and the data needs no answers."""
        return True

    def lessons(self, problem_id: str, demonstrations: Sequence[Demonstration], seed: int) -> Sequence[Demonstration]:
        """The demonstrations of a problem, out of its usable ones, that are learned; of each its :meth:`excerpt`."""
        return demonstrations

    def excerpt(self, problem_id: str, seed: int) -> Excerpt:
        """Part of a problem's trace that is learned, and the instruction that the policy gets for it.

        It depends on the problem and the recipe's seed alone, as it is asked twice: when traces are collected (no more
        is sampled) and when they are learned.
        """
        return Excerpt()


class Supervising(Stages):
    """A method whose rollouts come after a supervised stage; it answers for that stage itself."""

    order = (SUPERVISED, ROLLOUTS)

    @property
    def stages(self) -> Stages:
        return self


class SupervisedOnly(Supervising):
    """A method that is its supervised stage."""

    order = (SUPERVISED,)

    def faults(self, training: Mapping[str, object]) -> list[str]:
        name = type(self).__module__.rpartition(".")[2]
        nothing = f"method.supervised.epochs = 0 leaves nothing to do: {name} has no other stage"
        return [nothing] if self.supervised.epochs == 0 else []
