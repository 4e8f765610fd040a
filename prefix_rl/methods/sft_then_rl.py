"""Supervised fine-tuning on the demonstrations, then Dr.GRPO from there: the baseline to beat (arXiv 2604.23747).

First :mod:`~prefix_rl.methods.sft`, then :mod:`~prefix_rl.methods.dr_grpo`, each unchanged, with one set of problems.
The ``training`` block is the RL stage's; the supervised stage's cost counts towards the run's budget.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .base import Method, Needs
from .stage import Supervised, Supervising


@dataclass(frozen=True)
class SFTThenRL(Supervising, Method):
    """SFT, then Dr.GRPO. ``supervised: {epochs: 0}`` is Dr.GRPO."""

    supervised: Supervised = field(default_factory=Supervised)
    """The supervised stage."""

    needs = Needs(whole=True)
