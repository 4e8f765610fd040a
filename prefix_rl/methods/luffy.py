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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor

from ..losses import shaped_ratio
from ..prefixes import Demonstration, Prefix
from ..rollouts import Rollouts, Row, Step
from .base import Method, whole_demonstrations


@dataclass(frozen=True)
class LUFFY(Method):
    """LUFFY with the paper's settings as defaults. ``demonstrations: 0`` is Dr.GRPO."""

    demonstrations: Annotated[int, Ge(0)] = 1
    """Rollouts of a group that are whole demonstrations."""
    gamma: Annotated[float, Gt(0)] = 0.1
    """Where the shaped ratio pulls hardest: at tokens of this probability."""

    imitates = True

    @property
    def injects(self) -> bool:
        return self.demonstrations > 0

    def usable(self, demonstration: Demonstration) -> bool:
        return len(demonstration.ids) > 0

    def problems(self, training: Mapping[str, object]) -> list[str]:
        if self.demonstrations >= training["num_generations"]:
            return [
                f"method.demonstrations = {self.demonstrations} leaves no rollout of training.num_generations = "
                f"{training['num_generations']} to the policy"
            ]
        return []

    def prefixes(self, rows: Sequence[Row], group_size: int, step: Step) -> list[Prefix]:
        return whole_demonstrations(rows, group_size, step, self.demonstrations)

    def update_mask(self, rollouts: Rollouts, entropies: Float[Tensor, "B T"] | None) -> Bool[Tensor, "B T"]:
        return rollouts.continuation_mask

    def extra_loss(
        self, rollouts: Rollouts, logps: Float[Tensor, "B T"], entropies: Float[Tensor, "B T"]
    ) -> Float[Tensor, ""] | None:
        shaped = shaped_ratio(logps, self.gamma) * rollouts.advantages * rollouts.prefix_mask
        return -shaped.sum() / (len(shaped) * rollouts.step.max_completion_length)
