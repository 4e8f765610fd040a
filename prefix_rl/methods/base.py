"""The questions that a method answers.

A rollout is ``prompt | prefix | continuation``. A method says

1. what is injected (:meth:`Method.prefixes`),
2. who gets credit (:meth:`Method.advantages`),
3. which tokens move (:meth:`Method.update_mask`),
4. by what extra objective (:meth:`Method.extra_loss`),

and, where the run itself decides, what is remembered of it (:meth:`Method.remember`), and, where one sample of what
follows is not enough, which beginnings are continued further (:attr:`Method.continuations`),

each with a pure function of its arguments. The answers here are the plainest ones: they are Dr.GRPO. A new method is a
new module in this folder with one subclass that answers the one or two questions where its paper differs. Its fields
are the ``method:`` block of a recipe.

A supervised stage asks two more: which demonstrations are learned (:meth:`Method.lessons`), and how much of them behind
which prompt (:meth:`Method.excerpt`); the plainest answers are all, and all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..advantages import group_centered, to_tokens
from ..losses import negative_log_likelihood
from ..prefixes import NO_PREFIX, Demonstration, Prefix, uniform, whole
from ..rollouts import Memory, Rollouts, Row, Step

Fraction = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True)
class Supervised:
    """A supervised stage on the demonstrations. The defaults are those of arXiv 2604.23747."""

    epochs: Annotated[float, Ge(0)] = 3
    """Passes over the demonstrations; 0: no such stage."""
    learning_rate: Annotated[float, Gt(0)] = 5e-5
    """Its peak. It warms up, then falls along a cosine."""
    batch_size: Annotated[int, Ge(1)] = 64
    """Demonstrations of an optimizer step, over all ranks and micro-batches."""
    per_device_batch_size: Annotated[int, Ge(1)] = 8
    """Demonstrations of a micro-batch."""
    warmup: Fraction = 0.1
    """The share of the steps in which the learning rate rises."""
    min_lr: Fraction = 0.1
    """Where the cosine ends, as a share of the peak."""


@dataclass(frozen=True)
class Excerpt:
    """How much of a problem's trace is learned, and what the policy is asked beside the problem."""

    tokens: int | None = None
    """The first so many; None: all, and the id that ends it."""
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


@dataclass(frozen=True)
class Method:
    """The plainest answers. Subclasses are frozen dataclasses; each has a neutral setting at which it equals this."""

    supervised: ClassVar[Supervised | None] = None
    """What happens before the first rollout. A method with a supervised stage has a field of this name."""
    reinforces: ClassVar[bool] = True
    """Whether there are rollouts at all."""
    own_traces: ClassVar[int | None] = None
    """How many of the policy's own traces of every problem it takes, if it learns from nothing else: it then demands
    ``data.traces``, and `prefix-rl collect` samples every problem so often and no further."""
    imitates: ClassVar[bool] = False
    """Whether :meth:`extra_loss` moves the injected tokens. They then count as trained, and what :meth:`advantages`
    says of them is no credit but their weight in it."""

    @property
    def injects(self) -> bool:
        """Whether this method, with these settings, starts rollouts from prefixes. If so, a run without any fails."""
        return False

    @property
    def whole(self) -> bool:
        """Whether demonstrations are injected from beginning to end, so that only those that fit can be used."""
        return self.imitates

    @property
    def needs_entropies(self) -> bool:
        """Whether :meth:`update_mask` reads entropies. They cost a pass without gradient over the prefixed rows."""
        return False

    @property
    def needs_answers(self) -> bool:
        """Whether right and wrong make a difference. If not, nothing is graded, traces are taken whatever they came to,
        and the data needs no answers."""
        return True

    def usable(self, demonstration: Demonstration) -> bool:
        """Whether this method can use a demonstration; the others are as if they were not there."""
        return demonstration.usable()

    def lessons(self, problem_id: str, demonstrations: Sequence[Demonstration], seed: int) -> Sequence[Demonstration]:
        """Which of a problem's usable demonstrations the supervised stage learns, of each its :meth:`excerpt`."""
        return demonstrations

    def excerpt(self, problem_id: str, seed: int) -> Excerpt:
        """How much of a problem's trace is learned, and what the policy is asked for it.

        It depends on the problem and the recipe's seed alone, as it is asked twice: when traces are collected (no more
        is sampled) and when they are learned.
        """
        return Excerpt()

    def copies(self, demonstrated: Sequence[bool]) -> list[int]:
        """How many rows each problem has in an epoch, given which problems have a usable demonstration.

        The rows of one problem differ in :attr:`~prefix_rl.rollouts.Row.copy`.
        """
        return [1] * len(demonstrated)

    def problems(self, training: Mapping[str, object]) -> list[str]:
        """What in these settings cannot work together with the recipe's ``training`` block; empty when all can."""
        return []

    def problems_instead(self, count: int, step: Step) -> list[int]:
        """Problems (rows of the data set) that take the place of the ``count`` of this generation batch.

        Empty: the data's own order. Otherwise exactly ``count``; those that were due are passed over until next epoch.
        """
        return []

    def asks(self, row: Row, group_size: int, step: Step) -> bool:
        """Whether this row is to start from a prefix. If such rows get none, the run stops with an error."""
        return self.injects and bool(row.demonstrations)

    def prefixes(self, rows: Sequence[Row], group_size: int, step: Step) -> list[Prefix]:
        """What each rollout starts from: one prefix for each row, empty for a plain rollout."""
        return [NO_PREFIX for _ in rows]

    @property
    def continuations(self) -> int:
        """How many further continuations of each rollout's beginning are sampled and graded; none is trained on.

        Their rewards stand in :attr:`~prefix_rl.rollouts.Rollouts.continued` when :meth:`advantages` is asked.
        """
        return 0

    def beginnings(self, rollouts: Rollouts) -> Int[Tensor, " B"]:
        """How many tokens of each completion the further continuations keep; its prefix in any case.

        A whole completion leaves nothing to continue: its rewards are the rollout's own.
        """
        return rollouts.completion_mask.sum(dim=1)

    def advantages(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        """The credit of each token: ``r_i - mean(group)`` on all tokens of rollout i (Dr.GRPO, arXiv 2503.20783)."""
        return to_tokens(group_centered(rollouts.rewards, rollouts.group_size), rollouts.completion_mask)

    def update_mask(self, rollouts: Rollouts, entropies: Float[Tensor, "B T"] | None) -> Bool[Tensor, "B T"]:
        """Which tokens get gradient. The others stay in the normalizer.

        ``entropies`` are those of the policy that generated, in nats, on prefix tokens; NaN elsewhere. They are there
        if :attr:`needs_entropies`.
        """
        return rollouts.completion_mask

    def extra_loss(
        self, rollouts: Rollouts, logps: Float[Tensor, "B T"], entropies: Float[Tensor, "B T"]
    ) -> Float[Tensor, ""] | None:
        """A term to add to the clipped surrogate of one micro-batch, as a mean over its rows, or None.

        ``logps`` carry gradient. The rows of a micro-batch are shuffled: they are no groups any more, so whatever
        needs the group or the whole batch was decided in :meth:`advantages` and stands in ``rollouts.advantages``.
        """
        return None

    def remember(self, memory: Memory, rollouts: Rollouts) -> Memory:
        """What is remembered after a generation batch: ``memory`` in the next one's :class:`~prefix_rl.rollouts.Step`.

        JSON values alone. It is empty at first, the same on every rank, saved with every checkpoint and read back.
        """
        return memory

    def remember_evaluation(self, memory: Memory, reward: float) -> Memory:
        """What is remembered after an evaluation during training, whose mean reward without prefixes is ``reward``."""
        return memory

    def metrics(self, memory: Memory) -> dict[str, float]:
        """What the log shows of the memory, after each generation batch; a name without slash becomes ``method/name``.

        Values are the same on every rank; of several between two logs the last counts.
        """
        return {}


@dataclass(frozen=True)
class Combined(Method):
    """A method that answers some questions itself and hands the others on to another one, ``of``.

    In a recipe: ``method: {name: tempo, of: {name: prefix_rl, cuts: 3}}``. A subclass gives ``of`` its default, says in
    :attr:`takes` and :attr:`refuses` which methods can stand there, and overrides what is its own.
    """

    of: Method
    """The method that answers the other questions."""

    takes: ClassVar[Sequence[str]] = ()
    """The methods that can stand in ``of``. A method of one's own can if it is a subclass of one of them."""
    refuses: ClassVar[Mapping[str, str]] = {}
    """Why others cannot, by their names."""

    def refusal(self) -> str | None:
        """Why ``of`` cannot stand where it stands, or None if it can."""
        names = [cls.__module__.removeprefix(f"{__package__}.") for cls in type(self.of).__mro__]
        if set(names) & set(self.takes):
            return None
        own = "a method of your own has to be a subclass of one of those" if "." in names[0] else "not tried together"
        return f"{self.refuses.get(names[0], own)}. There can stand {', '.join(self.takes)}"

    @property
    def supervised(self) -> Supervised | None:
        return self.of.supervised

    @property
    def reinforces(self) -> bool:
        return self.of.reinforces

    @property
    def imitates(self) -> bool:
        return self.of.imitates

    @property
    def own_traces(self) -> int | None:
        return self.of.own_traces

    @property
    def needs_answers(self) -> bool:
        return self.of.needs_answers

    def lessons(self, problem_id: str, demonstrations: Sequence[Demonstration], seed: int) -> Sequence[Demonstration]:
        return self.of.lessons(problem_id, demonstrations, seed)

    def excerpt(self, problem_id: str, seed: int) -> Excerpt:
        return self.of.excerpt(problem_id, seed)

    @property
    def injects(self) -> bool:
        return self.of.injects

    @property
    def whole(self) -> bool:
        return self.of.whole

    @property
    def needs_entropies(self) -> bool:
        return self.of.needs_entropies

    def usable(self, demonstration: Demonstration) -> bool:
        return self.of.usable(demonstration)

    def copies(self, demonstrated: Sequence[bool]) -> list[int]:
        return self.of.copies(demonstrated)

    def problems(self, training: Mapping[str, object]) -> list[str]:
        inner = type(self.of).__module__.removeprefix(f"{__package__}.")
        refusal = self.refusal()
        return [f"method.of.name = {inner}: {refusal}"] * (refusal is not None) + [
            problem.replace("method.", "method.of.") for problem in self.of.problems(training)
        ]

    def problems_instead(self, count: int, step: Step) -> list[int]:
        return self.of.problems_instead(count, step)

    def asks(self, row: Row, group_size: int, step: Step) -> bool:
        return self.of.asks(row, group_size, step)

    def prefixes(self, rows: Sequence[Row], group_size: int, step: Step) -> list[Prefix]:
        return self.of.prefixes(rows, group_size, step)

    @property
    def continuations(self) -> int:
        return self.of.continuations

    def beginnings(self, rollouts: Rollouts) -> Int[Tensor, " B"]:
        return self.of.beginnings(rollouts)

    def advantages(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        return self.of.advantages(rollouts)

    def update_mask(self, rollouts: Rollouts, entropies: Float[Tensor, "B T"] | None) -> Bool[Tensor, "B T"]:
        return self.of.update_mask(rollouts, entropies)

    def extra_loss(
        self, rollouts: Rollouts, logps: Float[Tensor, "B T"], entropies: Float[Tensor, "B T"]
    ) -> Float[Tensor, ""] | None:
        return self.of.extra_loss(rollouts, logps, entropies)

    def remember(self, memory: Memory, rollouts: Rollouts) -> Memory:
        return self.of.remember(memory, rollouts)

    def remember_evaluation(self, memory: Memory, reward: float) -> Memory:
        return self.of.remember_evaluation(memory, reward)

    def metrics(self, memory: Memory) -> dict[str, float]:
        return self.of.metrics(memory)


def with_imitation(credit: Float[Tensor, "B T"], rollouts: Rollouts, weight: float) -> Float[Tensor, "B T"]:
    """``credit``, and on the injected tokens the weight of their NLL in units of ``1 / (B * L)``.

    With it :func:`imitation_loss` adds up to ``weight`` times the mean NLL over all injected tokens of the generation
    batch, however that is cut into micro-batches and ranks.
    """
    tokens = rollouts.prefix_mask.sum().clamp(min=1)
    scale = len(rollouts.rewards) * rollouts.step.max_completion_length / tokens
    return torch.where(rollouts.prefix_mask, weight * scale, credit)


def imitation_loss(
    rollouts: Rollouts, logps: Float[Tensor, "B T"], *, by_uncertainty: bool = False
) -> Float[Tensor, ""]:
    """The NLL of the injected tokens, weighed by what :func:`with_imitation` gave them, as a mean over rows."""
    nll = negative_log_likelihood(logps, by_uncertainty=by_uncertainty)
    weighed = torch.where(rollouts.prefix_mask, nll * rollouts.advantages, 0.0)
    return weighed.sum() / (len(weighed) * rollouts.step.max_completion_length)


def whole_demonstrations(rows: Sequence[Row], group_size: int, step: Step, count: int) -> list[Prefix]:
    """The first ``count`` rows of each group as whole demonstrations, one drawn uniformly for each."""

    def drawn(row: Row) -> Prefix:
        which = int(uniform("demonstration", step.seed, step.index, row.index) * len(row.demonstrations))
        return whole(row.demonstrations[which], step.max_completion_length)

    return [drawn(row) if row.index % group_size < count and row.demonstrations else NO_PREFIX for row in rows]
