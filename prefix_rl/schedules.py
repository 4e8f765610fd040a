"""Schedules: functions from an optimizer step to a value.

A schedule is any callable ``step -> float``. The functions here return one; none keeps state, so a resumed run sees
exactly the values of an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant(value: float) -> Schedule:
    """The same value at every step.

    >>> constant(0.95)(7)
    0.95
    """
    return lambda step: value


def linear(start: float, end: float, horizon: int) -> Schedule:
    """A straight line from ``start`` at step 0 to ``end`` at step ``horizon``, and ``end`` afterwards.

    >>> [linear(1.0, 0.0, horizon=4)(t) for t in (0, 1, 4, 9)]
    [1.0, 0.75, 0.0, 0.0]
    """
    _check_horizon(horizon)
    return lambda step: start + (end - start) * min(max(step, 0), horizon) / horizon


def cosine_decay(start: float, end: float, horizon: int) -> Schedule:
    """Half a cosine from ``start`` at step 0 to ``end`` at step ``horizon``, and ``end`` afterwards.

    ``f(t) = end + (start - end) * (1 + cos(pi * t / horizon)) / 2``.  With ``start = 0.95``, ``end = 0.05`` and
    ``horizon = 500`` this is the lower bound ``low_t`` of Prefix-RFT's uniform draw (arXiv 2507.01679, App. A.2).

    >>> low = cosine_decay(0.95, 0.05, horizon=500)
    >>> [round(low(t), 3) for t in (0, 100, 200, 250, 300, 400, 500, 900)]
    [0.95, 0.864, 0.639, 0.5, 0.361, 0.136, 0.05, 0.05]
    """
    _check_horizon(horizon)

    def value(step: int) -> float:
        if step >= horizon:
            return end  # exactly, not within a rounding error of the cosine
        return end + (start - end) * (1 + math.cos(math.pi * max(step, 0) / horizon)) / 2

    return value


def _check_horizon(horizon: int) -> None:
    if horizon < 1:
        raise ValueError(f"a schedule needs a horizon of at least 1 step, given {horizon}")
