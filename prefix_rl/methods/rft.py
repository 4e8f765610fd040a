"""RFT: rejection-sampling fine-tuning (arXiv 2308.01825), the opponent of UPFT.

The policy answers each question k times (16 in UPFT's comparison, arXiv 2503.02875), a verifier keeps the right
answers, and the policy learns them::

    L = - sum over right traces, tokens of log pi(y_t | x, y_<t) / number of tokens

That is :mod:`~prefix_rl.methods.sft` on the usable traces of a store: right, and ended by themselves. A problem that is
never solved teaches nothing, one that is solved often has many lessons; ``per_problem`` evens that out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

from ..prefixes import Demonstration, uniform
from .base import Method, Needs
from .stage import Supervised, SupervisedOnly


@dataclass(frozen=True)
class RFT(SupervisedOnly, Method):
    """Rejection-sampling fine-tuning. The stage is UPFT's, so that the two differ in what they learn alone."""

    per_problem: Annotated[int, Ge(1)] | None = None
    """Number of traces of a problem at most, drawn by the recipe's seed; null: all."""
    supervised: Supervised = field(
        default_factory=lambda: Supervised(epochs=1, learning_rate=1e-6, warmup=0.03, min_lr=1.0)
    )
    """The supervised stage; ``min_lr: 1`` keeps the learning rate constant after the warm-up."""

    needs = Needs(whole=True)
    own_traces = 16

    def lessons(self, problem_id: str, demonstrations: Sequence[Demonstration], seed: int) -> Sequence[Demonstration]:
        """The demonstrations of the ``per_problem`` smallest draws, in their order; a larger number adds to them."""
        draws = {i: uniform("rejection sampling", seed, problem_id, i) for i in range(len(demonstrations))}
        return [demonstrations[i] for i in sorted(sorted(draws, key=draws.get)[: self.per_problem])]
