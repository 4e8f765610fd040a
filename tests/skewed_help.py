"""A method for tests of several processes: help that falls unevenly on them, and credit by a rollout's number.

Greedy rollouts of a group are alike, and so is any credit that compares them. Here those of every second group have some.
"""

from dataclasses import dataclass

import torch

from prefix_rl.advantages import to_tokens
from prefix_rl.methods.base import Earlier, Method, Needs
from prefix_rl.prefixes import Prefix


@dataclass(frozen=True)
class SkewedHelp(Method):
    """First every third row from a prefix of its own length, then rows of the first five alone, one of them put back."""

    @property
    def needs(self):
        return Needs(prefixes=True, help_rounds=3)

    def help(self, rollouts, step):
        def prefix(i, length):
            given = rollouts.rows[i].demonstrations[0].ids
            return Prefix(list(given[:length]), length, len(given))

        rows = range(0, len(rollouts.rows), 3)
        if not rollouts.earlier:
            return {i: prefix(i, 2 + (i + step.index) % 5) for i in rows if rollouts.rows[i].demonstrations}
        if len(rollouts.earlier) == 1:
            return {0: Earlier(0), 4: prefix(4, 3)} if rollouts.rows[4].demonstrations else {0: Earlier(0)}
        return {}

    def advantages(self, rollouts):
        numbers = torch.arange(len(rollouts.rewards), device=rollouts.rewards.device)
        own = torch.where(numbers // rollouts.group_size % 2 == 0, numbers % 3 - 0.5, 0.0)
        return super().advantages(rollouts) + to_tokens(own, rollouts.completion_mask)
