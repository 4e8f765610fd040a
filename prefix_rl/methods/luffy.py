"""LUFFY (arXiv 2504.14945): a whole demonstration is one rollout of each group, with a shaped ratio.

``J = 1 / (B * L) * (sum_i sum_t ratio_it * A_i + sum_j sum_t f(pi(d_jt)) * A_j)``, ``f(p) = p / (p + gamma)``

- *Injected.* Of the N rollouts of a question, ``demonstrations`` are demonstrations from beginning to end; nothing is
  generated for them.
- *Credit.* ``A = r - mean(group)`` over all N, without division by a standard deviation. A demonstration is graded like
  any rollout.
- *Extra objective.* Demonstration tokens leave the surrogate. In its place they have ``f`` of the policy's own
  probability: the demonstrator's is taken as 1, and nothing is clipped.

The released code removes the clip of the on-policy ratio as well; ``training.epsilon: 1`` with a large
``training.epsilon_high`` does that. A demonstration that does not fit into ``max_completion_length`` is left out, where
the released code cuts it off (and so trains on an answerless text).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from ..losses import shaped_ratio
from ..prefixes import Prefix
from ..rollouts import MicroBatch, Rollouts, Row, Step
from .base import Method, Needs
from .imitation import whole_demonstration


@dataclass(frozen=True)
class LUFFY(Method):
    """LUFFY with the paper's settings as defaults. ``demonstrations: 0`` is Dr.GRPO."""

    demonstrations: Annotated[int, Ge(0)] = 1
    """Rollouts of a group that are whole demonstrations."""
    gamma: Annotated[float, Gt(0)] = 0.1
    """Probability of the tokens at which the shaped ratio pulls hardest."""

    @property
    def needs(self) -> Needs:
        return Needs(prefixes=self.demonstrations > 0, whole=True)

    def faults(self, training: Mapping[str, object]) -> list[str]:
        faults = []
        if self.demonstrations >= training["num_generations"]:
            faults.append(
                f"method.demonstrations = {self.demonstrations} leaves no rollout of training.num_generations = "
                f"{training['num_generations']} to the policy"
            )
        if self.demonstrations and training.get("loss_type", "dr_grpo") != "dr_grpo":
            faults.append(
                f"training.loss_type = {training['loss_type']}: the policy's and the demonstrations' tokens have one "
                "normalizer, that of dr_grpo; set training.loss_type = dr_grpo"
            )
        return faults

    def prefix(self, row: Row, step: Step) -> Prefix | None:
        return whole_demonstration(row, step, self.demonstrations)

    def weights(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        """A demonstration's credit, which goes through the shaped ratio."""
        return torch.where(rollouts.prefix_mask, self.advantages(rollouts), 0.0)

    def extra_loss(
        self, batch: MicroBatch, logps: Float[Tensor, "B T"], entropies: Float[Tensor, "B T"]
    ) -> Float[Tensor, ""] | None:
        shaped = shaped_ratio(logps, self.gamma) * batch.weights
        return -shaped.sum() / (len(shaped) * batch.step.max_completion_length)
