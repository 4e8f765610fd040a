"""Reinforcement learning with a supervised term, and CHORD (arXiv 2508.11408), which lets its weight decay.

``L = L_RL + w * NLL(demonstrations)`` with a constant ``w``; CHORD: ``L = (1 - mu_t) * L_RL + mu_t * NLL``

- *Injected.* Of the N rollouts of a question, ``demonstrations`` are demonstrations from beginning to end; nothing is
  generated for them.
- *Credit.* The policy's rollouts are measured against their own mean; a demonstration is none of them.
- *Extra objective.* ``NLL`` is the mean over all demonstration tokens of the generation batch, over ranks and
  micro-batches, so a long demonstration weighs as much a token as a short one. CHORD's ``mu_t`` rises linearly to
  ``weight`` over ``warmup`` steps and falls along a cosine to ``end`` at step ``warmup + horizon``. ``L_RL`` is all of
  TRL's loss, its KL and its entropy bonus included.

This is also the baseline "RL with SFT loss" of LUFFY (arXiv 2504.14945), whose weight is not published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from ..prefixes import Prefix
from ..rollouts import MicroBatch, Rollouts, Row, Step
from ..schedules import cosine_decay, linear
from .base import Fraction, Method, Needs
from .imitation import credit_among_unprefixed, imitation_loss, imitation_weights, whole_demonstration


@dataclass(frozen=True)
class SFTLoss(Method):
    """RL plus NLL. ``demonstrations: 0`` is Dr.GRPO; so is ``weight: 0`` but for the smaller group."""

    demonstrations: Annotated[int, Ge(0)] = 1
    """Rollouts of a group that are whole demonstrations."""
    weight: Annotated[float, Ge(0)] = 0.1
    """Weight of the supervised term; with the chord schedule its peak, at most 1 (the paper: 0.9)."""
    schedule: Literal["constant", "chord"] = "constant"
    """constant: the term is added. chord: the loss is a mixture, and the weight warms up and decays."""
    end: Fraction = 0.05
    """chord: the weight from the end of the decay on."""
    warmup: Annotated[int, Ge(0)] = 0
    """chord: optimizer steps to the peak."""
    horizon: Annotated[int, Ge(1)] | None = None
    """chord: optimizer steps from peak to end; null: the rest of the run (the paper: 200)."""
    tokens: Literal["all", "uncertain"] = "all"
    """uncertain: each token is weighed by p(1 - p) (CHORD-phi)."""

    _read_with: ClassVar = dict.fromkeys(("end", "warmup", "horizon"), ("schedule", ("chord",)))
    """Settings that say nothing beside other values (:mod:`.idle`)."""

    @property
    def needs(self) -> Needs:
        return Needs(prefixes=self.demonstrations > 0, whole=True)

    def faults(self, training: Mapping[str, object]) -> list[str]:
        faults, group_size = [], training["num_generations"]
        if self.demonstrations > group_size - 2 and self.demonstrations:
            faults.append(
                f"method.demonstrations = {self.demonstrations} leaves fewer than two rollouts of "
                f"training.num_generations = {group_size} to the policy, and credit needs two to compare"
            )
        if self.schedule == "chord" and self.weight > 1:
            faults.append(
                f"method.weight = {self.weight}: with the chord schedule it is a share of the loss, at most 1"
            )
        return faults

    def mixed(self, step: Step) -> float:
        """``mu_t``: the weight of the supervised term at this step."""
        if self.schedule == "constant":
            return self.weight
        if step.index < self.warmup:
            return linear(0.0, self.weight, self.warmup)(step.index)
        horizon = self.horizon or max(step.total - self.warmup, 1)
        return cosine_decay(self.weight, self.end, horizon)(step.index - self.warmup)

    def prefix(self, row: Row, step: Step) -> Prefix | None:
        return whole_demonstration(row, step, self.demonstrations)

    def advantages(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        return credit_among_unprefixed(rollouts)

    def scale(self, rollouts: Rollouts) -> float:
        # CHORD mixes: 1 - mu of the RL loss with its KL and bonus, mu of the supervised term
        mixture = self.schedule == "chord" and self.demonstrations > 0
        return 1 - self.mixed(rollouts.step) if mixture else 1.0

    def weights(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        return imitation_weights(rollouts, self.mixed(rollouts.step))

    def extra_loss(
        self, batch: MicroBatch, logps: Float[Tensor, "B T"], entropies: Float[Tensor, "B T"]
    ) -> Float[Tensor, ""] | None:
        return imitation_loss(batch, logps, by_uncertainty=self.tokens == "uncertain")
