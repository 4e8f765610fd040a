"""The setting that all methods have that start rollouts from a part of a demonstration: where it is cut."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..cuts import Cut


@dataclass(frozen=True)
class Cutting:
    """Base, beside :class:`~prefix_rl.methods.base.Method`, of methods that cut demonstrations."""

    cut: Cut = field(default="tokens", kw_only=True)
    """Where a prefix ends. tokens: at the length that was planned. sentences, entropy: at the last sentence end, or the
    last place with a high entropy of the next token, up to there. surprisal: lengths are shares of -log p instead of
    tokens. See :mod:`prefix_rl.cuts`."""
