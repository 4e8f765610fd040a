"""UFT (arXiv 2505.16984): the whole group gets a hint, which shrinks to nothing; its tokens are imitated a little.

``L = L_RL(continuation | prompt, hint) + weight * NLL(hint)``, ``n_t ~ Binomial(count, p_t)`` pieces of ``count``

- *Injected.* A demonstration is cut into ``count`` equal pieces, and all rollouts of a group start from its first
  ``n_t``: ``floor(n_t / count * |demonstration|)`` tokens. ``p_t`` falls along a cosine,
  ``p_t = 0.05 + 0.45 * (1 + cos(pi * t / horizon))``, and from the horizon on there is no hint at all.
- *Credit.* ``A = r - mean(group)``, among rollouts that share the hint.
- *Which tokens move.* Those that the policy wrote.
- *Extra objective.* ``weight`` times the mean negative log-likelihood over all hint tokens of the generation batch,
  over ranks and micro-batches.

``pieces: uniform`` with ``weight: 0`` is R3 (arXiv 2402.05808) as the authors' code has it: ``n ~ Uniform{0, ...,
count}`` in every step of the run, without annealing and without the supervised term.

Open points and how they are settled here: the released code cuts the solution's text into at most 5 pieces, ours are
slices of its tokens; a hint of all pieces leaves the last token to the policy, and every hint stops where the answer
becomes readable (``data.answer_guard``). The code's horizon is step 300 of 500; here it is that share of the run unless
given. Its KL term is ``training.beta``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval
from jaxtyping import Bool, Float
from torch import Tensor

from ..prefixes import NO_PREFIX, Prefix, cut, uniform
from ..rollouts import Rollouts, Row, Step
from ..schedules import cosine_decay
from .base import Method, imitation_loss, with_imitation

Fraction = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True)
class UFT(Method):
    """UFT with the paper's settings as defaults. ``count: 0`` is Dr.GRPO."""

    count: Annotated[int, Ge(0)] = 5
    """Pieces that a demonstration is cut into. 0: no hints."""
    pieces: Literal["binomial", "uniform"] = "binomial"
    """How many of them are shown. binomial: by p_t (the paper). uniform: 0 to count, never annealed (R3)."""
    start: Fraction = 0.95
    """p_t at step 0."""
    end: Fraction = 0.05
    """p_t just before the horizon."""
    horizon: Annotated[int, Ge(1)] | None = None
    """The optimizer step from which on there are no hints; null: 0.6 of the run (the paper: 300 of 500)."""
    weight: Annotated[float, Ge(0)] = 0.001
    """Of the supervised term on the hints."""

    @property
    def injects(self) -> bool:
        return self.count > 0

    @property
    def imitates(self) -> bool:
        return self.injects and self.weight > 0

    @property
    def whole(self) -> bool:
        return False

    def problems(self, training: Mapping[str, object]) -> list[str]:
        if self.pieces == "binomial":
            return []
        found = []
        if self.weight:
            found.append(
                f"method.weight = {self.weight}: method.pieces = uniform is R3, which has no supervised term; set "
                "method.weight = 0, or method.pieces = binomial"
            )
        if self.horizon is not None:
            found.append(
                f"method.horizon = {self.horizon}: method.pieces = uniform never anneals its hints; leave the horizon "
                "out, or set method.pieces = binomial"
            )
        return found

    def probability(self, step: Step) -> float:
        """``p_t``: the share of the pieces that is shown on average at this step."""
        horizon = self.horizon or max(round(0.6 * step.total), 1)
        return cosine_decay(self.start, self.end, horizon)(step.index) if step.index < horizon else 0.0

    def shown(self, group: int, step: Step) -> int:
        """How many pieces a group of this generation batch gets."""
        u = uniform("pieces", step.seed, step.index, group)
        if self.pieces == "uniform":
            return int(u * (self.count + 1))
        return binomial(self.count, self.probability(step), u)

    def asks(self, row: Row, group_size: int, step: Step) -> bool:
        return self.injects and bool(row.demonstrations) and self.shown(row.index // group_size, step) > 0

    def prefixes(self, rows: Sequence[Row], group_size: int, step: Step) -> list[Prefix]:
        return [
            self._prefix(row, row.index // group_size, step) if self.asks(row, group_size, step) else NO_PREFIX
            for row in rows
        ]

    def _prefix(self, row: Row, group: int, step: Step) -> Prefix:
        """The same for all rows of a group."""
        which = int(uniform("hinted", step.seed, step.index, group) * len(row.demonstrations))
        fraction = self.shown(group, step) / self.count
        return cut(row.demonstrations[which], fraction, max_tokens=step.max_completion_length - 1)

    def advantages(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        """Credit on the policy's tokens; on a hint's, the weight of their NLL in units of ``1 / (B * L)``."""
        credit = super().advantages(rollouts)
        if not self.imitates:
            return credit
        return with_imitation(credit, rollouts, self.weight)

    def update_mask(self, rollouts: Rollouts, entropies: Float[Tensor, "B T"] | None) -> Bool[Tensor, "B T"]:
        return rollouts.continuation_mask

    def extra_loss(
        self, rollouts: Rollouts, logps: Float[Tensor, "B T"], entropies: Float[Tensor, "B T"]
    ) -> Float[Tensor, ""] | None:
        if not self.imitates:
            return None
        return imitation_loss(rollouts, logps)


def binomial(count: int, p: float, u: float) -> int:
    """The number of successes of ``count`` tries with probability ``p``, by inversion of ``u ~ Uniform[0, 1)``.

    >>> [binomial(2, 0.5, u) for u in (0.0, 0.24, 0.26, 0.74, 0.76)]
    [0, 0, 1, 1, 2]
    """
    below = 0.0
    for n in range(count):
        below += math.comb(count, n) * p**n * (1 - p) ** (count - n)
        if u < below:
            return n
    return count
