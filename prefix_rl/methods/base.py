"""The questions that a method answers.

A rollout is ``prompt | prefix | continuation``. A method says

1. what is injected (:meth:`Method.prefix`),
2. who gets credit (:meth:`Method.advantages`),
3. which tokens move (:meth:`Method.update_mask`),
4. by what extra objective (:meth:`Method.weights`, decided on the generation batch, and :meth:`Method.extra_loss`),
   and by how much TRL's loss counts beside it (:meth:`Method.scale`),

and, where the run itself decides, which rows of failed groups are generated again (:meth:`Method.help`) and what is
remembered (:meth:`Method.remember`), each with a pure function of its arguments. Beforehand it declares what it needs
of a run (:attr:`Method.needs`) and what a run consists of (:attr:`Method.stages`). The answers here are the plainest
ones: they are Dr.GRPO. A new method is a new module in this folder with one subclass that answers the one or two
questions where its paper differs. Its fields are the ``method:`` block of a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from jaxtyping import Bool, Float
from torch import Tensor

from ..advantages import group_centered, to_tokens
from ..prefixes import Prefix
from ..rollouts import Memory, MicroBatch, Rollouts, Row, Step
from .needs import Earlier, Further, Hint, Needs  # noqa: F401  callers have Further from here
from .stage import Stages

Fraction = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True)
class Method:
    """The plainest answers. Subclasses are frozen dataclasses; each has a neutral setting at which it equals this."""

    _read_with: ClassVar[Mapping[str, tuple[str, Sequence]]] = {}
    """By name of a setting: another one, and the values of that beside which it is read (:mod:`.idle`)."""

    @property
    def needs(self) -> Needs:
        """Needs of the method, with these settings."""
        return Needs()

    @property
    def stages(self) -> Stages:
        """Stages that a run consists of."""
        return Stages()

    def faults(self, training: Mapping[str, object]) -> list[str]:
        """Faults of these settings beside the recipe's ``training`` block, in words; empty if there are none."""
        return []

    def copies(self, demonstrated: Sequence[bool]) -> list[int]:
        """Number of rows of each problem in an epoch; ``demonstrated`` is True where it has a usable demonstration.

        The rows of one problem differ in :attr:`~prefix_rl.rollouts.Row.copy`.
        """
        return [1] * len(demonstrated)

    def prefix(self, row: Row, step: Step) -> Prefix | None:
        """Prefix that a rollout starts from; None: it starts from nothing, by design.

        A prefix without tokens says that it was to start from one and could not (unless that of length 0 was asked
        for, :attr:`~prefix_rl.prefixes.Prefix.drawn` tokens of ``of``). If all rows of a batch that were to start from
        a prefix could not, the run stops with an error. With :attr:`Needs.hint` it is not what the rollout starts from
        but the hint at the end of its prompt.
        """
        return None

    def help(self, rollouts: Rollouts, step: Step) -> Mapping[int, Prefix | Earlier]:
        """Rows to generate once more within this step, by their number in the batch, each with its prefix, or with the
        earlier round (:class:`Earlier`) whose rollout it becomes again.

        A new rollout takes the place of the old one, for all that follows; the old one has still cost what it cost.
        Asked again with what came of it, up to :attr:`Needs.help_rounds` times, until it names no row:
        ``rollouts.earlier`` are the same rows before each round, ``rollouts.rows`` have the demonstrations. Every rank
        is asked with the rollouts of all; draws follow from ``(step.seed, step.index, row, round)``.
        """
        return {}

    def advantages(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        """The credit of each token: ``r_i - mean(group)`` on all tokens of rollout i (Dr.GRPO, arXiv 2503.20783)."""
        return to_tokens(group_centered(rollouts.rewards, rollouts.group_size), rollouts.completion_mask)

    def update_mask(self, rollouts: Rollouts, entropies: Float[Tensor, "B T"] | None) -> Bool[Tensor, "B T"]:
        """True on the tokens that move: those the policy wrote. The others are context, whoever wrote them.

        Context is in no term of TRL's loss (surrogate, KL, entropy bonus) and in no ratio of a sequence. The normalizer
        of ``loss_type = dr_grpo`` is a constant; one of another loss type that counts tokens counts those that move.
        Rollouts that ``mask_truncated_completions`` leaves out have no tokens here, in :meth:`weights` and in
        :meth:`scale`, so that no mean over tokens counts them, as none of TRL's does; elsewhere they are whole.

        ``entropies`` are those of the policy that generated, in nats, on prefix tokens; NaN elsewhere. They are there
        if the method needs them.
        """
        return rollouts.continuation_mask

    def weights(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        """Weight of each token in :meth:`extra_loss`, decided on the whole generation batch; 0: it does not move it.

        A token with weight counts as trained, whether or not the surrogate moves it.
        """
        return torch.zeros_like(rollouts.completion_mask, dtype=torch.float)

    def scale(self, rollouts: Rollouts) -> float:
        """Factor on TRL's whole loss (surrogate, KL, entropy bonus), decided on the whole generation batch.

        The extra objective is not in it: :meth:`weights` are its factors.
        """
        return 1.0

    def extra_loss(
        self, batch: MicroBatch, logps: Float[Tensor, "B T"], entropies: Float[Tensor, "B T"]
    ) -> Float[Tensor, ""] | None:
        """A term to add to the clipped surrogate of one micro-batch, as a mean over its rows, or None.

        ``logps`` carry gradient. The rows of a micro-batch are shuffled: they are no groups any more, so whatever
        needs the group or the whole batch was decided in :meth:`weights` and stands in ``batch.weights``.
        """
        return None

    def remember(self, memory: Memory, rollouts: Rollouts) -> Memory:
        """Memory after a generation batch: ``memory`` in the next one's :class:`~prefix_rl.rollouts.Step`.

        JSON values alone. It is empty at first, the same on every rank, saved with every checkpoint and read back.
        Under ``due`` (:data:`~prefix_rl.rollouts.DUE`) may stand exactly as many problems as a generation batch holds:
        they take the place of the next one's, which are passed over until the next epoch.
        """
        return memory

    def remember_evaluation(self, memory: Memory, reward: float) -> Memory:
        """Memory after an evaluation during training, whose mean reward without prefixes is ``reward``."""
        return memory

    def metrics(self, memory: Memory) -> dict[str, float]:
        """Metrics of the memory for the log, after each generation batch; a name without slash becomes ``method/name``.

        Values are the same on every rank; of several between two logs the last counts.
        """
        return {}
