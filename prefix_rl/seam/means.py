"""Metrics of the tokens of a step, which does not depend on how its rows are cut into micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import torch

from .ranks import Ranks

# TRL's own over the tokens that move; of none it takes them to be 0, or NaN
_OF_MOVING, _CLIPPED = ("entropy", "kl", "cispo_clip_ratio"), "clip_ratio/"


class TokenMeans:
    """The policy's mean entropy on prefixes and on what it wrote itself, over all micro-batches since the last log.

    Args:
        metrics: TRL's of training. TRL logs the mean of each list and then empties all of them; the lists of these two
            hold one value.
        prefixes: False: TRL's own entropy is enough.
    """

    def __init__(self, metrics: MutableMapping[str, list], prefixes: bool):
        self._metrics, self._prefixes = metrics, prefixes
        self._counts: dict[str, float] = {}

    def take(self, entropies: torch.Tensor, inputs: Mapping[str, torch.Tensor], ranks: Ranks) -> None:
        """Takes in a micro-batch ``inputs`` on which TRL has computed its loss, with its ``entropies (B, T)``.

        What TRL has logged of it is taken out if no token of it moves on any rank.
        """
        everything, prefix = inputs["completion_mask"].bool(), inputs["prefix_mask"].bool()
        parts = (everything & inputs["tool_mask"].bool(), everything & prefix, everything & ~prefix)
        moving, _, *told = ranks.sums(torch.stack([s for p in parts for s in (p.sum(), (entropies * p).sum())]))
        if not moving:
            self._take_back()
        if self._prefixes:
            self._add("entropy_prefix", *told[:2])
            self._add("entropy_continuation", *told[2:])

    def _take_back(self) -> None:
        for name in [name for name in self._metrics if name in _OF_MOVING or name.startswith(_CLIPPED)]:
            del self._metrics[name][-1:]
            if not self._metrics[name]:
                del self._metrics[name]  # TRL divides by the length of each

    def _add(self, name: str, count: float, total: float) -> None:
        # without a value before, TRL has logged since
        before = self._counts.get(name, 0.0) if self._metrics.get(name) else 0.0
        if before + count:
            self._counts[name] = before + count
            mean = self._metrics[name][0] if before else 0.0
            self._metrics[name] = [(mean * before + total) / (before + count)]
