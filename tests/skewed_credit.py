"""A method for tests of several processes: a supervised stage, then PrefixRL with credit by a rollout's number.

Greedy rollouts of a group are all the same. So are their rewards, and any credit that adds up to 0 over the group moves
nothing. This credit does neither.
"""

from dataclasses import dataclass, field

import torch

from prefix_rl.advantages import to_tokens
from prefix_rl.methods.prefix_rl import PrefixRL
from prefix_rl.methods.stage import Supervised, Supervising


@dataclass(frozen=True)
class Skewed(Supervising, PrefixRL):
    """SFT, then PrefixRL with credit -0.5, 0.5, 1.5, -0.5, ..."""

    supervised: Supervised = field(default_factory=Supervised)

    def advantages(self, rollouts):
        numbers = torch.arange(len(rollouts.rewards), device=rollouts.rewards.device) % 3
        return to_tokens(numbers - 0.5, rollouts.completion_mask)
