"""Supervised fine-tuning on the demonstrations, and nothing else.

``L = - sum over demonstrations, tokens of log pi(d_t | x, d_<t) / number of tokens``

The mean is over the tokens of an optimizer step, over all ranks and micro-batches: a token weighs the same however the
batch is cut. That is where published baselines went wrong (arXiv 2604.23747). TRL's ``SFTTrainer`` computes it; this
module holds its settings. The prompt gets no gradient, and the id that ends a completion is learned with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .base import Method, Needs
from .stage import Supervised, SupervisedOnly


@dataclass(frozen=True)
class SFT(SupervisedOnly, Method):
    """Supervised fine-tuning with the settings of arXiv 2604.23747 as defaults."""

    supervised: Supervised = field(default_factory=Supervised)
    """The supervised stage."""

    needs = Needs(whole=True)
