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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from ..prefixes import Prefix, cut, uniform
from ..rollouts import MicroBatch, Rollouts, Row, Step
from ..schedules import cosine_decay
from .base import Fraction, Method, Needs
from .cutting import Cutting
from .imitation import imitation_loss, imitation_weights


@dataclass(frozen=True)
class UFT(Cutting, Method):
    """UFT with the paper's settings as defaults. ``count: 0`` is Dr.GRPO."""

    count: Annotated[int, Ge(0)] = 5
    """Pieces that a demonstration is cut into. 0: no hints."""
    pieces: Literal["binomial", "uniform"] = "binomial"
    """Law of the number shown. binomial: by p_t (the paper). uniform: 0 to count, never annealed (R3)."""
    start: Fraction = 0.95
    """p_t at step 0."""
    end: Fraction = 0.05
    """p_t just before the horizon."""
    horizon: Annotated[int, Ge(1)] | None = None
    """The optimizer step from which on there are no hints; null: 0.6 of the run (the paper: 300 of 500)."""
    weight: Annotated[float, Ge(0)] = 0.001
    """Weight of the supervised term on the hints."""

    _read_with: ClassVar = dict.fromkeys(("start", "end", "horizon"), ("pieces", ("binomial",)))
    """Settings that say nothing beside other values (:mod:`.idle`)."""

    @property
    def needs(self) -> Needs:
        return Needs(prefixes=self.count > 0, cut=self.cut)

    def faults(self, training: Mapping[str, object]) -> list[str]:
        if self.pieces == "binomial" or not self.weight:
            return []
        return [
            f"method.weight = {self.weight}: method.pieces = uniform is R3, which has no supervised term; set "
            "method.weight = 0, or method.pieces = binomial"
        ]

    def probability(self, step: Step) -> float:
        """``p_t``: the share of the pieces that is shown on average at this step."""
        # the authors' code: step 300 of 500
        horizon = self.horizon or max(round(0.6 * step.total), 1)
        # the cosine may end above 0; behind the horizon there is no hint at all
        return cosine_decay(self.start, self.end, horizon)(step.index) if step.index < horizon else 0.0

    def shown(self, group: int, step: Step) -> int:
        """Number of pieces that a group of this generation batch gets."""
        u = uniform("pieces", step.seed, step.index, group)
        if self.pieces == "uniform":
            return int(u * (self.count + 1))
        return binomial(self.count, self.probability(step), u)

    def prefix(self, row: Row, step: Step) -> Prefix | None:
        """A hint, the same for all rows of a group."""
        shown = self.shown(row.group, step) if row.demonstrations else 0
        if not shown:
            return None
        hinted = row.drawn("hinted", step.seed, step.index, row.group)
        return cut(hinted, shown / self.count, max_tokens=step.max_completion_length - 1)

    def weights(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        return imitation_weights(rollouts, self.weight)

    def extra_loss(
        self, batch: MicroBatch, logps: Float[Tensor, "B T"], entropies: Float[Tensor, "B T"]
    ) -> Float[Tensor, ""] | None:
        return imitation_loss(batch, logps) if self.count and self.weight else None


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
