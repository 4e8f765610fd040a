"""Dr.GRPO (arXiv 2503.20783): reinforcement learning from the policy's own rollouts.

``J = 1 / (B * L) * sum_i sum_t min(ratio_it * A_i, clip(ratio_it, 1 - eps, 1 + eps) * A_i)`` with
``A_i = r_i - mean(group)`` and the constant ``L = max_completion_length``. Against GRPO two divisions are gone: by the
group's standard deviation, and by each completion's own length. TRL computes the surrogate (``loss_type="dr_grpo"``,
``scale_rewards="none"``); the base class gives the advantages.
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import Method


@dataclass(frozen=True)
class DrGRPO(Method):
    """Dr.GRPO has no settings of its own: the plain answers of :class:`~prefix_rl.methods.base.Method` are it."""
