"""Two evaluations on the same problems: is the difference more than noise, and what would it take to know?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

from .metrics import wilson

LEVEL, POWER = 0.05, 0.80


@dataclass(frozen=True)
class Measured:
    """The shares of right samples of two policies on the same problems of one benchmark, in the same order."""

    ours: Sequence[float]
    theirs: Sequence[float]
    our_samples: int  # for each problem
    their_samples: int

    @property
    def differences(self) -> list[float]:
        """``ours - theirs`` for each problem."""
        return [a - b for a, b in zip(self.ours, self.theirs, strict=True)]


@dataclass(frozen=True)
class Comparison:
    """The mean difference with its interval and p value, and what it would take to see one as large.

    ``detectable`` is the difference that this measurement would detect with 80 % power at a level of 5 %.
    ``problems_factor`` is how many times as many problems, and ``samples_factor`` how many times as many samples of
    the same problems, would detect the measured one; 1 or less where these do already. ``samples_factor`` is infinite
    where no number of samples would do, as the problems themselves differ too much. Either is None where it cannot be
    told: nothing differs, or there is one sample a problem only.
    """

    mean: float
    low: float
    high: float
    p: float
    problems: int
    detectable: float
    problems_factor: float | None
    samples_factor: float | None

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}], p = {self.p:.2g}"


def compare(*benchmarks: Measured, confidence: float = 0.95) -> Comparison:
    """The mean over benchmarks of the mean difference over problems, paired by problem.

    The p value is that of a sign-flip permutation test: if neither policy is better, each problem's difference is as
    likely to have the other sign. It is exact for few problems and uses 9,999 random flips for more. The interval is
    Student's, from the variance of the differences over problems. Both speak of other problems of the same kind and of
    these two policies; the spread over training seeds needs more runs
    (:func:`~prefix_rl.evaluation.metrics.paired_difference`).

    With B benchmarks of n_b problems the variance of the mean is

        V = sum_b (between_b + within_b / k_b) / (n_b B^2),

    where ``within_b`` is the variance of one sample of each policy, ``p (1 - p)`` without bias, and ``between_b`` that
    of the true differences over problems: what is left of the measured variance. A difference D is seen with 80 %
    power at a level of 5 % where ``D^2 >= (t_0.975 + t_0.8)^2 V``, which is solved for k and for n.

    >>> found = compare(Measured([1, 1, 0.5, 1], [0, 0.5, 0.5, 0.5], 2, 2))
    >>> str(found)
    '+50.0 [-15.0, +115.0], p = 0.25'
    """
    share, problems = 1 / len(benchmarks), sum(len(b.ours) for b in benchmarks)
    spreads = [_spread(b) for b in benchmarks]
    mean = share * sum(fmean(b.differences) for b in benchmarks)
    scale = [share**2 / len(b.ours) for b in benchmarks]
    parts = [s * total for s, (total, _, _) in zip(scale, spreads, strict=True)]
    freedom = max(problems - len(benchmarks), 1)
    if mean and not any(parts):  # all differ by the same: not certain, but as if one problem had told the difference
        parts = [(share / len(b.ours)) ** 2 for b in benchmarks]
    error2 = sum(parts)
    if not error2:
        half = min(wilson(0, len(b.ours), confidence)[1] for b in benchmarks)  # at most this share would differ
        return Comparison(mean, -half, half, 1.0, problems, half, None, None)
    satterthwaite = error2**2 / sum(v**2 / max(len(b.ours) - 1, 1) for v, b in zip(parts, benchmarks, strict=True))
    half = _t(1 - (1 - confidence) / 2, satterthwaite) * math.sqrt(error2)
    weights = [share * problems / len(b.ours) for b in benchmarks]
    p = sign_flip([w * d for w, b in zip(weights, benchmarks, strict=True) for d in b.differences])
    between, within = (sum(s * spread[i] for s, spread in zip(scale, spreads, strict=True)) for i in (1, 2))
    planned = between + within or error2
    known = all(min(b.our_samples, b.their_samples) > 1 for b in benchmarks)
    return Comparison(
        mean, mean - half, mean + half, p, problems, math.sqrt(_factor(freedom) * planned),
        _problems_factor(mean, planned, freedom),
        _samples_factor(mean, between, within, freedom) if known else None,
    )  # fmt: skip


def sign_flip(differences: Sequence[float], resamples: int = 9_999) -> float:
    """The two-sided p value of a mean difference of 0 under random signs.

    >>> sign_flip([1, 1, 1, 1, 1, 0])  # 2 of the 2^5 ways to set the signs give a mean as far from 0
    0.0625
    """
    import numpy as np
    from scipy.stats import permutation_test

    nonzero = np.asarray([d for d in differences if d], dtype=float)
    if len(nonzero) < 2:
        return 1.0
    found = permutation_test(
        (nonzero,), np.mean, permutation_type="samples", n_resamples=resamples, batch=500, vectorized=True,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.pvalue)


def _spread(measured: Measured) -> tuple[float, float, float]:
    """The variance of a problem's difference as measured; its part between problems, and within (``within_b / k_b``).

    With one sample a problem the two cannot be told apart, and all of it counts as between.
    """
    differences = measured.differences
    total = variance(differences) if len(differences) > 1 else 0.0
    if 1 in (measured.our_samples, measured.their_samples):
        return total, total, 0.0
    within = fmean(
        a * (1 - a) / (measured.our_samples - 1) + b * (1 - b) / (measured.their_samples - 1)
        for a, b in zip(measured.ours, measured.theirs, strict=True)
    )
    return total, max(total - within, 0.0), within


def _factor(freedom: float) -> float:
    return (_t(1 - LEVEL / 2, freedom) + _t(POWER, freedom)) ** 2


def _problems_factor(mean: float, error2: float, freedom: float) -> float | None:
    """f with ``mean^2 = (t_0.975 + t_0.8)^2 error2 / f``, where t has f times the degrees of freedom."""
    if not mean:
        return None
    factor = 1.0
    for _ in range(20):
        factor = _factor(max(freedom * factor, 1)) * error2 / mean**2
    return factor


def _samples_factor(mean: float, between: float, within: float, freedom: float) -> float | None:
    """m with ``mean^2 = (t_0.975 + t_0.8)^2 (between + within / m)``."""
    if not mean:
        return None
    left = mean**2 / _factor(freedom) - between
    return within / left if left > 0 else math.inf


def _t(quantile: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf(quantile, freedom)) if freedom < 1e6 else NormalDist().inv_cdf(quantile)
