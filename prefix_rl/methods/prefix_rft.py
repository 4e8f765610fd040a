"""Prefix-RFT (arXiv 2507.01679): one rollout of each group continues a prefix of a demonstration.

``J = 1 / (B * L) * sum_i sum_t m_it * min(ratio_it * A_i, clip(ratio_it, 1 - eps, 1 + eps) * A_i)``

- *Injected.* Of the N rollouts of a question, ``prefixed`` start from the first ``floor(l * |demonstration|)`` tokens
  of a demonstration, with ``l ~ Uniform[low_t, high]``. The lower bound ``low_t`` falls along a cosine from ``start``
  to ``end``; ``high`` stays. So the mean length goes from 0.95 to 0.50, not to 0.05 (App. A.2).
- *Credit.* ``A_i = r_i - mean(group)`` over all N rollouts, prefixed or not, on prefix and continuation alike (Eq. 3).
- *Which tokens move.* ``m`` is 1 on everything that the policy wrote, and on the ``share`` of the prefix tokens with
  the highest policy entropy. The others get no gradient and stay in the normalizer (Sec. 3.3).
- *Ratio.* ``pi / pi_old`` of the policy itself, on prefix tokens too; the demonstrator's probabilities never appear.

Open points of the paper and how they are settled here: the entropies are those of the policy that generated the batch,
and the share is taken among all prefix tokens of a generation batch over all ranks, with an exact count. The released
code ranks within a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from jaxtyping import Bool, Float
from torch import Tensor

from ..advantages import group_centered, to_tokens
from ..masks import top_entropy_mask
from ..prefixes import Prefix, cut, draw_fraction, uniform
from ..rollouts import Rollouts, Row, Step
from ..schedules import cosine_decay
from .base import Fraction, Method, Needs
from .cutting import Cutting


@dataclass(frozen=True)
class PrefixRFT(Cutting, Method):
    """Prefix-RFT with the paper's settings as defaults. ``prefixed: 0`` is Dr.GRPO."""

    prefixed: Annotated[int, Ge(0)] = 1
    """Rollouts of a group that start from a prefix, each from its own draw."""
    schedule: Literal["cosine_low", "cosine_length", "uniform"] = "cosine_low"
    """cosine_low: the lower bound of the draw falls from start to end (the paper). cosine_length: the length itself
    falls from start to end, without a draw. uniform: every draw is from [end, high]."""
    start: Fraction = 0.95
    """The scheduled fraction at step 0."""
    end: Fraction = 0.05
    """The scheduled fraction from the horizon on."""
    high: Fraction = 0.95
    """The upper bound of the draw."""
    horizon: Annotated[int, Ge(1)] | None = None
    """Optimizer steps that the schedule spans; null: the whole run (the paper: 500 of 500)."""
    min_prefix_tokens: Annotated[int, Ge(1)] = 1
    """Shorter draws are raised to this."""
    max_prefix_tokens: Annotated[int, Ge(1)] | None = None
    """Longer draws are lowered to this; null: max_completion_length - 1."""
    tokens: Literal["top_entropy", "low_entropy", "random", "all", "none"] = "top_entropy"
    """Prefix tokens that get gradient. none: a frozen prefix."""
    share: Fraction = 0.2
    """The share of the prefix tokens that top_entropy, low_entropy and random keep."""
    scope: Literal["batch", "row"] = "batch"
    """Tokens that the share is taken of: all prefix tokens of a generation batch, or each row's."""
    credit: Literal["pooled", "unprefixed", "released"] = "pooled"
    """pooled: against the mean of all rollouts of the group. unprefixed: against the mean of the plain ones. released:
    the variant ``grpo_prefix`` of the released code: as unprefixed, but continuations of a prefix get their reward
    itself, which is never negative."""

    _read_with: ClassVar = {
        **dict.fromkeys(("start", "horizon"), ("schedule", ("cosine_low", "cosine_length"))),
        "high": ("schedule", ("cosine_low", "uniform")),
        **dict.fromkeys(("share", "scope"), ("tokens", ("top_entropy", "low_entropy", "random"))),
    }
    """Settings that say nothing beside other values (:mod:`.idle`)."""

    @property
    def needs(self) -> Needs:
        injects = self.prefixed > 0
        ranks = self.tokens in ("top_entropy", "low_entropy")
        return Needs(prefixes=injects, entropies=injects and ranks, cut=self.cut)

    def faults(self, training: Mapping[str, object]) -> list[str]:
        faults = []
        group_size, budget = training["num_generations"], training["max_completion_length"]
        if self.prefixed > group_size:
            faults.append(f"method.prefixed = {self.prefixed} is more than training.num_generations = {group_size}")
        elif self.prefixed == group_size and self.credit != "pooled":
            faults.append(
                f"method.credit = {self.credit} measures against the unprefixed rollouts of a group, but "
                f"method.prefixed = {self.prefixed} leaves none of {group_size}; use pooled, or fewer prefixed rollouts"
            )
        if self.max_prefix_tokens is not None and self.max_prefix_tokens >= budget:
            faults.append(
                f"method.max_prefix_tokens = {self.max_prefix_tokens} is not below training.max_completion_length = "
                f"{budget}, which counts prefix and continuation; nothing would be left to generate"
            )
        if self.min_prefix_tokens > (self.max_prefix_tokens or budget - 1):
            faults.append(
                f"method.min_prefix_tokens = {self.min_prefix_tokens} is more than the longest prefix allowed, "
                f"{self.max_prefix_tokens or budget - 1} tokens"
            )
        return faults

    def bounds(self, step: Step) -> tuple[float, float]:
        """``[low_t, high]``: what the fraction of a demonstration is drawn from, uniformly, at this step."""
        scheduled = cosine_decay(self.start, self.end, self.horizon or max(step.total, 1))(step.index)
        return {
            "cosine_low": (scheduled, self.high),
            "cosine_length": (scheduled, scheduled),
            "uniform": (self.end, self.high),
        }[self.schedule]

    def prefix(self, row: Row, step: Step) -> Prefix | None:
        if row.member >= self.prefixed or not row.demonstrations:
            return None
        drawn = draw_fraction(*self.bounds(step), uniform("fraction", step.seed, step.index, row.index))
        # a token is left to the policy
        longest = step.max_completion_length - 1
        return cut(
            row.drawn("demonstration", step.seed, step.index, row.index),
            drawn if row.fraction is None else row.fraction,
            # length 0 by a controller is meant, not a prefix that is too short
            min_tokens=0 if row.fraction == 0 else self.min_prefix_tokens,
            max_tokens=min(self.max_prefix_tokens or longest, longest),
        )

    def advantages(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        without = None if self.credit == "pooled" else rollouts.prefixed
        credit = to_tokens(
            group_centered(rollouts.rewards, rollouts.group_size, without=without), rollouts.completion_mask
        )
        if self.credit == "released":
            # 0 where the rollout could not be scored: it moves nothing
            of_prefixed = rollouts.prefixed.unsqueeze(1) & rollouts.continuation_mask
            credit = torch.where(of_prefixed, torch.nan_to_num(rollouts.rewards).unsqueeze(1), credit)
        return credit

    def update_mask(self, rollouts: Rollouts, entropies: Float[Tensor, "B T"] | None) -> Bool[Tensor, "B T"]:
        if self.tokens == "all" or not self.prefixed:
            return rollouts.completion_mask
        if self.tokens == "none":
            return rollouts.continuation_mask
        scores = {"random": _random_scores, "top_entropy": lambda r: entropies, "low_entropy": lambda r: -entropies}
        kept = top_entropy_mask(
            scores[self.tokens](rollouts), rollouts.prefix_mask, self.share, rowwise=self.scope == "row"
        )
        return rollouts.continuation_mask | kept


def _random_scores(rollouts: Rollouts) -> Float[Tensor, "B T"]:
    """Uniform numbers on the prefix tokens that depend on (seed, step, row, position) alone, NaN elsewhere."""
    scores = torch.full(rollouts.prefix_mask.shape, torch.nan)
    for row, length in enumerate(rollouts.prefix_mask.sum(dim=1).tolist()):
        if length:
            seed = int(uniform("tokens", rollouts.step.seed, rollouts.step.index, row) * 2**53)
            # on the CPU, so that the numbers are the same on every device
            scores[row, :length] = torch.rand(length, generator=torch.Generator().manual_seed(seed))
    return scores.to(rollouts.prefix_mask.device)
