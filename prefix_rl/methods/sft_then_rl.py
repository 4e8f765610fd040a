"""Supervised fine-tuning on the demonstrations, then Dr.GRPO from there: the baseline to beat (arXiv 2604.23747).

First :mod:`~prefix_rl.methods.sft`, then :mod:`~prefix_rl.methods.dr_grpo`, each unchanged, with one set of problems.
The ``training`` block is the RL stage's; the supervised stage's cost counts towards the run's budget.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..prefixes import Demonstration
from .base import Method, Supervised


@dataclass(frozen=True)
class SFTThenRL(Method):
    """SFT, then Dr.GRPO. ``supervised: {epochs: 0}`` is Dr.GRPO."""

    supervised: Supervised = field(default_factory=Supervised)
    """The supervised stage."""

    def usable(self, demonstration: Demonstration) -> bool:
        return len(demonstration.ids) > 0
