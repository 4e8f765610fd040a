"""A method for tests of several processes: PPPO with beginnings and credit by a rollout's number.

Greedy rollouts of a group are all the same, and so is any credit that compares them. Here every third rollout is kept
whole, so that processes have different numbers of rows to continue.
"""

from dataclasses import dataclass

import torch

from prefix_rl.advantages import to_tokens
from prefix_rl.methods.pppo import PPPO


@dataclass(frozen=True)
class SkewedBeginnings(PPPO):
    """Beginnings of all, none and half of the tokens; credit -0.5, 0.5, 1.5, -0.5, ... on top of the group's."""

    def beginnings(self, rollouts):
        lengths, numbers = rollouts.completion_mask.sum(dim=1), torch.arange(len(rollouts.rewards))
        return torch.where(numbers % 3 == 0, lengths, torch.where(numbers % 3 == 1, 0, lengths // 2))

    def advantages(self, rollouts):
        assert rollouts.continued.equal(rollouts.rewards.unsqueeze(1).expand_as(rollouts.continued))  # all greedy
        numbers = torch.arange(len(rollouts.rewards), device=rollouts.rewards.device) % 3
        return super().advantages(rollouts) + to_tokens(numbers - 0.5, rollouts.completion_mask)
