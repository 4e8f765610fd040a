"""The four questions that a method answers.

A rollout is ``prompt | prefix | continuation``. A method says

1. what is injected (:meth:`Method.prefixes`),
2. who gets credit (:meth:`Method.advantages`),
3. which tokens move (:meth:`Method.update_mask`),
4. by what extra objective (:meth:`Method.extra_loss`),

each with a pure function of its arguments. The answers here are the plainest ones: they are Dr.GRPO. A new method is a
new module in this folder with one subclass that answers the one or two questions where its paper differs. Its fields
are the ``method:`` block of a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from ..advantages import group_centered, to_tokens
from ..prefixes import NO_PREFIX, Prefix
from ..rollouts import Rollouts, Row, Step


@dataclass(frozen=True)
class Method:
    """The plainest answers. Subclasses are frozen dataclasses; each has a neutral setting at which it equals this."""

    @property
    def injects(self) -> bool:
        """Whether this method, with these settings, starts rollouts from prefixes. If so, a run without any fails."""
        return False

    @property
    def needs_entropies(self) -> bool:
        """Whether :meth:`update_mask` reads entropies. They cost a pass without gradient over the prefixed rows."""
        return False

    def problems(self, training: Mapping[str, object]) -> list[str]:
        """What in these settings cannot work together with the recipe's ``training`` block; empty when all can."""
        return []

    def prefixes(self, rows: Sequence[Row], group_size: int, step: Step) -> list[Prefix]:
        """What each rollout starts from: one prefix for each row, empty for a plain rollout."""
        return [NO_PREFIX for _ in rows]

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

        ``logps`` carry gradient. The rows of a micro-batch are shuffled: they are no groups any more.
        """
        return None
