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


@dataclass(frozen=True)
class Difference:
    """How much better one policy is than another on the same problems, with its interval and the p value of 0."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    problems: int

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}], p = {self.p:.2g}"


def over_seeds(right: Sequence[Sequence[float]], confidence: float = 0.95) -> Accuracy:
    """The accuracy of a way to train, over seeds and problems.

    ``right[s][q]`` is the share of right samples of run s on problem q. The interval is Wilson's with an effective
    number of trials, as in :func:`accuracy`, from the variance over both seeds and problems
    (:func:`_crossed_variance`), and with Student's quantile for the number of seeds.

    >>> str(over_seeds([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]))
    '58.3 % [6.1, 96.8]'
    """
    from scipy.stats import t

    values = _rectangle(right)
    seeds, problems = len(values), len(values[0])
    p = sum(map(sum, values)) / (seeds * problems)
    variance = _crossed_variance(values)
    effective = min(max(p * (1 - p) / variance, 1), seeds * problems) if variance > 0 else seeds * problems
    quantile = t.ppf((1 + confidence) / 2, seeds - 1) if seeds > 1 else NormalDist().inv_cdf((1 + confidence) / 2)
    return Accuracy(p, *wilson(p, effective, confidence, float(quantile)), problems, seeds)


def paired_difference(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], confidence: float = 0.95
) -> Difference:
    """``ours - theirs``, paired by seed and problem, with an interval and a two-sided p value.

    The mean of ``d[s][q]`` has a variance from the runs and one from the problems; both count
    (:func:`_crossed_variance`), against Student's t with one degree of freedom less than there are seeds. So it
    speaks of new seeds and new problems. With one seed only the problems vary, and it speaks of this one run. Where
    nothing varies at all, the error is taken as one cell of all that were measured, not as 0.

    Raises:
        ValueError: if the two do not have the same seeds and problems.

    >>> str(paired_difference([[1, 1, 1, 0]], [[0, 0, 1, 0]]))
    '+50.0 [-41.9, +141.9], p = 0.18'
    """
    from scipy.stats import t

    ours, theirs = _rectangle(ours), _rectangle(theirs)
    if (len(ours), len(ours[0])) != (len(theirs), len(theirs[0])):
        raise ValueError("a paired difference needs the same seeds and problems on both sides")
    seeds, problems = len(ours), len(ours[0])
    d = [[a - b for a, b in zip(mine, other, strict=True)] for mine, other in zip(ours, theirs, strict=True)]
    mean, error = sum(map(sum, d)) / (seeds * problems), math.sqrt(_crossed_variance(d))
    if mean and not error:
        error = 1 / (seeds * problems)
    freedom = (seeds if seeds > 1 else problems) - 1
    half = float(t.ppf((1 + confidence) / 2, freedom)) * error
    p = float(2 * t.sf(abs(mean) / error, freedom)) if error > 0 else float(mean == 0)
    return Difference(mean, mean - half, mean + half, p, seeds, problems)


def _rectangle(values: Sequence[Sequence[float]]) -> list[list[float]]:
    rows = [list(map(float, row)) for row in values]
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise ValueError("give one value for each seed and problem, the same problems for every seed")
    return rows


def _crossed_variance(values: Sequence[Sequence[float]]) -> float:
    """The variance of the mean of ``values[s][q]`` when both seeds and problems are drawn at random.

    ``V_seeds + V_problems - V_cells``: the variance of the mean clustered by seed, plus that clustered by problem,
    minus that of independent cells, which both contain (Cameron, Gelbach and Miller 2011, each with its small-sample
    factor ``n / (n - 1)``); never less than the largest of the first two. With one seed: that of problems alone.
    """
    seeds, problems = len(values), len(values[0])
    mean = sum(map(sum, values)) / (seeds * problems)

    def clustered(means: list[float]) -> float:
        n = len(means)
        return sum((m - mean) ** 2 for m in means) / (n * (n - 1)) if n > 1 else 0.0

    by_seed = clustered([sum(row) / problems for row in values])
    by_problem = clustered([sum(column) / seeds for column in zip(*values, strict=True)])
    cells = clustered([v for row in values for v in row])
    return max(by_seed + by_problem - cells, by_seed, by_problem) if seeds > 1 else by_problem


def wilson(p: float, n: float, confidence: float = 0.95, quantile: float | None = None) -> tuple[float, float]:
    """Wilson's score interval for a share ``p`` of ``n`` trials.

    ``(p + z^2/2n -+ z * sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n)``; ``quantile`` replaces the normal ``z``.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2) if quantile is None else quantile
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)
