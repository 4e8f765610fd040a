"""Accuracy, and how sure one can be of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Accuracy:
    """``mean`` over all samples, with an interval at the given confidence."""

    mean: float
    low: float
    high: float
    problems: int
    samples: int  # for each problem

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def accuracy(right: Sequence[Sequence[bool]], confidence: float = 0.95) -> Accuracy:
    """The share of right samples, and Wilson's interval for it with the problems as clusters.

    With one sample a problem this is Wilson's score interval for n problems. With more, samples of one problem are
    alike, and n is replaced by the effective number ``p * (1 - p) / var``, where ``var`` is the variance of the mean
    over problems (the design effect). Unlike a bootstrap it does not collapse at 0 and 1.

    Args:
        right: for each problem, whether each of its k samples is right.
        confidence: of the interval.

    >>> str(accuracy([[True]] * 8 + [[False]] * 2))
    '80.0 % [49.0, 94.3]'
    >>> str(accuracy([[False]] * 256))
    '0.0 % [0.0, 1.5]'
    """
    if not right or not right[0]:
        raise ValueError("an accuracy needs at least one sample of one problem")
    means = [sum(samples) / len(samples) for samples in right]
    n, k = len(means), len(right[0])
    p = sum(means) / n
    effective = n
    if k > 1 and n > 1:
        variance = sum((m - p) ** 2 for m in means) / (n - 1) / n
        if variance > 0 and 0 < p < 1:
            effective = min(max(p * (1 - p) / variance, 1), n * k)
    return Accuracy(p, *wilson(p, effective, confidence), n, k)


def wilson(p: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share ``p`` of ``n`` trials.

    ``(p + z^2/2n -+ z * sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n)``
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)
