"""Accuracy, pass@k and maj@k, and how sure one can be of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean


@dataclass(frozen=True)
class Accuracy:
    """``mean`` over all samples, with an interval at the confidence that was asked for."""

    mean: float
    low: float
    high: float
    problems: int
    samples: int  # for each problem

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


_PRIOR_PROBLEMS = 15
"""Number of problems' worth of the largest possible variance beside the measured one, see :func:`estimate`."""


def accuracy(right: Sequence[Sequence[bool]], confidence: float = 0.95) -> Accuracy:
    """The share of right samples (avg@k), with the interval of :func:`estimate`.

    Args:
        right: for each problem, True for each of its k samples that is right.
        confidence: of the interval.

    >>> str(accuracy([[True]] * 8 + [[False]] * 2))
    '80.0 % [49.0, 94.3]'
    >>> str(accuracy([[False]] * 256))
    '0.0 % [0.0, 1.5]'
    """
    if not right or not right[0]:
        raise ValueError("an accuracy needs at least one sample of one problem")
    return estimate([fmean(samples) for samples in right], samples=len(right[0]), confidence=confidence)


def estimate(*benchmarks: Sequence[float], samples: int = 1, confidence: float = 0.95) -> Accuracy:
    """The mean over benchmarks of the mean over problems of a share (avg, pass@k, maj@k), with an interval.

    Problems are the clusters. With one sample a problem this is Wilson's score interval for n problems. With more,
    the samples of one problem are alike, and n is replaced by the effective number ``p (1 - p) / Var``. The variance
    of one problem's share is ``((n - 1) s^2 + 15 p (1 - p)) / (n - 1 + 15)``: the one measured, and the largest that
    there can be with the weight of 15 problems. Without the latter, as with a bootstrap over problems, the interval
    of 30 problems of which few are ever solved is far too short; and it does not collapse at 0 and 1. Simulated
    coverage is in the README.

    Args:
        benchmarks: one value in [0, 1] for each problem, for each benchmark.
        samples: number of samples of a problem that stand behind its value.
        confidence: of the interval.

    >>> str(estimate([1.0, 0.5, 0.0, 0.0], [1.0, 1.0, 0.5, 0.5], samples=2))
    '56.2 % [28.1, 80.9]'
    """
    if not benchmarks or not all(len(values) for values in benchmarks):
        raise ValueError("an estimate needs at least one problem of every benchmark")
    means = [fmean(values) for values in benchmarks]
    share, p, problems = 1 / len(means), fmean(means), sum(map(len, benchmarks))
    if samples == 1 and len(means) == 1:
        return Accuracy(p, *wilson(p, problems, confidence), problems, samples)
    variance = sum(share**2 * _variance_of_mean(values) for values in benchmarks)
    if variance > 0:
        # at least one trial, at most as many as samples
        effective = min(max(p * (1 - p) / variance, 1), problems * samples)
    else:
        # every value is 0, or every one is 1: each problem counts as one trial
        effective = 1 / sum(share**2 / len(values) for values in benchmarks)
    return Accuracy(p, *wilson(p, effective, confidence), problems, samples)


def _variance_of_mean(values: Sequence[float]) -> float:
    """Variance of the mean over problems, drawn towards the largest that there can be."""
    n, mean = len(values), fmean(values)
    squares = sum((v - mean) ** 2 for v in values) + _PRIOR_PROBLEMS * mean * (1 - mean)
    return squares / (n - 1 + _PRIOR_PROBLEMS) / n


def bootstrap(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float] | None:
    """The BCa bootstrap interval over problems (Efron 1987), None where every problem has the same value.

    For comparison with other reports: with 30 problems it covers less often than it says, see :func:`estimate`.
    """
    import numpy as np
    from scipy.stats import bootstrap as scipy_bootstrap

    if len(set(values)) < 2:
        return None
    found = scipy_bootstrap(
        (np.asarray(values),), np.mean, n_resamples=2000, batch=200, confidence_level=confidence, method="BCa",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


# --- several samples of a problem -------------------------------------------------------------------------------------


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that at least one of k samples is right, without bias from n of which c are.

    ``1 - C(n - c, k) / C(n, k)`` (arXiv 2107.03374, section 2.1): the share of the k-subsets that hold a right one.

    Raises:
        ValueError: if k is larger than the number of samples.

    >>> pass_at_k(4, 1, 2)  # 3 of the 6 pairs hold the right one
    0.5
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, and there are {samples}")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def majority_at_k(right: int, others: Sequence[int], silent: int, k: int) -> float:
    """The chance that the most frequent answer among k samples is the right one, a tie being broken by lot.

    Over all k-subsets of the samples, exactly: with ``m`` votes for the right answer no other may have more, and with
    ``t`` others that have as many the right one wins one time in ``t + 1``. Samples without an answer do not vote; a
    subset in which nobody votes is wrong. With k equal to the number of samples it is 1, 0, or one over the number of
    tied answers.

    Args:
        right: number of samples that are right; they have one answer.
        others: number of samples with each of the other answers.
        silent: number of samples without an answer.
        k: number of samples that vote.

    Raises:
        ValueError: if k is larger than the number of samples.

    >>> majority_at_k(2, [2, 1], silent=1, k=6)  # two answers with two votes each
    0.5
    >>> round(majority_at_k(2, [1], silent=0, k=2), 4)  # of 3 pairs one is right twice and two are tied: (1 + 2/2) / 3
    0.6667
    """
    from scipy.stats import binom

    samples = right + sum(others) + silent
    if not 1 <= k <= samples:
        raise ValueError(f"maj@{k} needs at least {k} samples, and there are {samples}")
    # If each sample votes with chance k / n, those of one answer are binomial and independent of the others; given that
    # k vote, every k-subset is as likely. The numbers stay near 1, where counts of subsets would overflow.
    chance, wins = k / samples, 0.0
    for m in range(1, min(right, k) + 1):
        below = [count for count in others if count < m]
        ways = _ways([count for count in others if count >= m], sum(below) + silent, m, k - m, chance)
        tied = sum(float(row[k - m]) / (ties + 1) for ties, row in enumerate(ways))
        wins += float(binom.pmf(m, right, chance)) * tied
    return min(wins / float(binom.pmf(k, samples, chance)), 1.0)


def _ways(rivals: Sequence[int], free: int, most: int, votes: int, chance: float):
    """An array ``(ties, votes + 1)``: the chance that exactly v others vote, no rival more than ``most`` times and t of
    them so often. ``rivals`` are samples of each answer; ``free`` samples vote as they like."""
    import numpy as np
    from scipy.stats import binom

    ways = np.zeros((min(len(rivals), votes // most) + 1, votes + 1))
    ways[0] = binom.pmf(np.arange(votes + 1), free, chance)
    for count in rivals:
        each, before = binom.pmf(np.arange(most + 1), count, chance), ways
        ways = np.zeros_like(before)
        for v in range(min(most, votes + 1)):
            ways[:, v:] += each[v] * before[:, : votes + 1 - v]
        ways[1:, most:] += each[most] * before[:-1, : max(votes + 1 - most, 0)]
    return ways


# --- differences ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Mean difference of two policies on the same problems, with its interval and the p value of 0."""

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
    number of trials, as in :func:`accuracy`, from the variance over both seeds and problems, and with Student's
    quantile for the degrees of freedom of that variance (:func:`_crossed`).

    >>> str(over_seeds([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]))
    '58.3 % [9.8, 94.8]'
    """
    from scipy.stats import t

    values = _rectangle(right)
    seeds, problems = len(values), len(values[0])
    p = sum(map(sum, values)) / (seeds * problems)
    variance, freedom = _crossed(values)
    effective = min(max(p * (1 - p) / variance, 1), seeds * problems) if variance > 0 else seeds * problems
    quantile = t.ppf((1 + confidence) / 2, freedom) if seeds > 1 else NormalDist().inv_cdf((1 + confidence) / 2)
    return Accuracy(p, *wilson(p, effective, confidence, float(quantile)), problems, seeds)


def paired_difference(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], confidence: float = 0.95
) -> Difference:
    """``ours - theirs``, paired by seed and problem, with an interval and a two-sided p value.

    The mean of ``d[s][q]`` has a variance from the runs and one from the problems; both count, against Student's t
    with Satterthwaite's degrees of freedom (:func:`_crossed`): near those of the problems where runs hardly differ,
    near those of the seeds where they differ most. So it speaks of new seeds and new problems. With one seed only the
    problems vary, and it speaks of this one run. Where nothing varies at all, the error is taken as one cell of all
    that were measured, not as 0, and the degrees of freedom as those of the seeds.

    Its level and power were simulated, see docs/differences.md: with three seeds and more it rejects a true null at
    5 % in 2 to 7 % of the cases, with two in up to 11 %.

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
    variance, freedom = _crossed(d)
    mean, error = sum(map(sum, d)) / (seeds * problems), math.sqrt(variance)
    if mean and not error:
        error = 1 / (seeds * problems)
    half = float(t.ppf((1 + confidence) / 2, freedom)) * error
    p = float(2 * t.sf(abs(mean) / error, freedom)) if error > 0 else float(mean == 0)
    return Difference(mean, mean - half, mean + half, p, seeds, problems)


def _rectangle(values: Sequence[Sequence[float]]) -> list[list[float]]:
    rows = [list(map(float, row)) for row in values]
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise ValueError("give one value for each seed and problem, the same problems for every seed")
    return rows


def _crossed(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The variance of the mean of ``values[s][q]`` when both seeds and problems are drawn, and its degrees of freedom.

    With S seeds, Q problems and the mean squares of the analysis of variance (seeds ``A``, problems ``B``, the rest
    ``E``) the variance is ``V = (A + B - E) / (S Q)``, without bias where ``values = mean + seed + problem + rest``;
    never less than ``A / (S Q)`` or ``B / (S Q)``. Satterthwaite (1946) gives a sum of mean squares the degrees of
    freedom ::

        (S Q V)^2 / (A^2 / (S - 1) + B^2 / (Q - 1) + E^2 / ((S - 1) (Q - 1)))

    With one seed they are those of problems alone, with one problem those of seeds.

    >>> _crossed([[1.0, 2.0], [3.0, 4.0]])  # A = 4, B = 1, E = 0: 5 / 4, and 25 / (16 + 1)
    (1.25, 1.4705882352941178)
    """
    seeds, problems = len(values), len(values[0])
    cells = seeds * problems
    by_seed = [sum(row) / problems for row in values]
    by_problem = [sum(column) / seeds for column in zip(*values, strict=True)]
    mean = sum(by_seed) / seeds
    a = problems * sum((m - mean) ** 2 for m in by_seed) / max(seeds - 1, 1)
    b = seeds * sum((m - mean) ** 2 for m in by_problem) / max(problems - 1, 1)
    if seeds == 1 or problems == 1:
        return (b / cells, problems - 1) if seeds == 1 else (a / cells, seeds - 1)
    rest = sum(
        (v - of_seed - of_problem + mean) ** 2
        for row, of_seed in zip(values, by_seed, strict=True)
        for v, of_problem in zip(row, by_problem, strict=True)
    )
    freedom = (seeds - 1) * (problems - 1)
    e = rest / freedom
    total = max(a + b - e, a, b)
    if total < 1e-20:  # what rounding leaves of no variance at all
        return 0.0, seeds - 1
    found = total**2 / (a**2 / (seeds - 1) + b**2 / (problems - 1) + e**2 / freedom)
    return total / cells, max(found, min(seeds, problems) - 1)


def wilson(p: float, n: float, confidence: float = 0.95, quantile: float | None = None) -> tuple[float, float]:
    """Wilson's score interval for a share ``p`` of ``n`` trials.

    ``(p + z^2/2n -+ z * sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n)``; ``quantile`` replaces the normal ``z``.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2) if quantile is None else quantile
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)
