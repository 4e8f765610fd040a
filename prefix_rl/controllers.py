"""Controllers: from how a problem's last group did to how long its next prefix is.

A controller remembers a few numbers of each problem, and perhaps a few of all together. It is two pure functions::

    fraction(own, common, u) -> the share of a demonstration to inject, for u ~ Uniform[0, 1)
    seen(own, common, fraction, success) -> own, after a group with that share had that mean reward

and two more. ``unseen(common) -> own`` is what a problem starts from that was never seen; ``after(common, successes,
new) -> common`` what is common to all after a batch in which the problems that were new came to the states ``new``. A
state is a list of numbers, so that JSON holds it. ``fraction`` in ``seen`` was really injected: the answer guard
may have made it shorter than what was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .prefixes import draw_fraction

State = Sequence[float]


@dataclass(frozen=True)
class Interval:
    """AdaBack's rule (arXiv 2506.18110): an interval of lengths that closes in on where success begins.

    ``rho ~ Uniform[low, high]``; a mean reward below ``target`` moves ``low`` up to ``rho``; any other moves ``high``
    down to ``rho`` and ``low`` back to 0. A problem that was never seen draws from a moving average::

        [low, high] <- average * [low, high] + (1 - average) * mean of the intervals of the problems new in a batch

    so that the first epoch adapts too. With probability ``unaided`` no prefix is injected.

    ``high`` never rises for one problem, as published: a group that was lucky is never taken back. The interval follows
    a policy that improves, not one that forgets.

    >>> rule = Interval(target=0.5, average=0.8)
    >>> rule.fraction([0.2, 0.6], [], u=0.5)
    0.4
    >>> rule.seen([0.2, 0.6], [], 0.4, success=0.25), rule.seen([0.2, 0.6], [], 0.4, success=0.75)
    ([0.4, 0.6], [0.0, 0.4])
    >>> new = [[0.5, 1.0], [0.0, 0.4]]
    >>> [round(x, 2) for x in rule.after([0.0, 1.0], [0.0, 1.0], new)]  # 0.2 * 0.25; 0.8 + 0.2 * 0.7
    [0.05, 0.94]
    """

    target: float
    average: float = 1.0
    """The weight of what was; 1: every problem starts from the whole range."""
    unaided: float = 0.0
    longest: float = 1.0
    """The upper end at first."""

    @property
    def own(self) -> State:
        """``[low, high]`` that a problem's first answer narrows."""
        return (0.0, self.longest)

    @property
    def common(self) -> State:
        """The moving average at first."""
        return (0.0, self.longest)

    def unseen(self, common: State) -> State:
        return common or self.own

    def fraction(self, own: State, common: State, u: float) -> float:
        if u < self.unaided:
            return 0.0
        return draw_fraction(*own, (u - self.unaided) / (1 - self.unaided) if self.unaided else u)

    def seen(self, own: State, common: State, fraction: float, success: float) -> State:
        low, high = own
        if success < self.target:
            return [min(max(low, fraction), high), high]
        return [0.0, min(high, fraction)]

    def after(self, common: State, successes: Sequence[float], new: Sequence[State] = ()) -> State:
        if not new:
            return common
        means = (sum(ends) / len(new) for ends in zip(*new, strict=True))
        return [self.average * was + (1 - self.average) * mean for was, mean in zip(common, means, strict=True)]


@dataclass(frozen=True)
class Setpoint:
    """AdaPrefix-GRPO's loop (arXiv 2607.07674, our reading of the abstract): success is held at a set-point.

    With the mean reward ``s_p`` of a problem's group and ``s`` of all groups of a batch::

        m <- m + smoothing * (s - m)                  the moving average of success
        L <- clip(L + gain * (target - m), 0, 1)      the length common to all problems
        l_p = clip(L + o_p, 0, 1)                     the length of problem p
        o_p <- clip(l_p + gain * (target - s_p), 0, 1) - L

    So a problem that was not seen for long has moved with the others. Where less than ``l_p`` was injected, ``l_p``
    in the last line is at most one ``gain`` above the injected length: a length does not run away from its effect.

    >>> rule = Setpoint(target=0.5, gain=0.1, smoothing=0.5, start=0.4)
    >>> rule.fraction([0.25], [0.5, 0.4], u=0.9)
    0.65
    >>> [round(x, 3) for x in rule.seen([0.25], [0.5, 0.4], 0.65, success=0.0)]  # 0.65 + 0.1 * 0.5 - 0.4
    [0.3]
    >>> [round(x, 3) for x in rule.after([0.5, 0.4], [1.0, 0.8])]  # 0.5 + 0.5 * (0.9 - 0.5); 0.4 + 0.1 * (0.5 - 0.7)
    [0.7, 0.38]
    """

    target: float
    gain: float
    smoothing: float
    start: float

    own: ClassVar[State] = (0.0,)
    """``o_p``."""
    unaided: ClassVar[float] = 0.0

    @property
    def common(self) -> State:
        """``m`` and ``L`` at first."""
        return (self.target, self.start)

    def unseen(self, common: State) -> State:
        return self.own

    def fraction(self, own: State, common: State, u: float) -> float:
        return _clipped(common[1] + own[0])

    def seen(self, own: State, common: State, fraction: float, success: float) -> State:
        length = min(self.fraction(own, common, 0.0), fraction + self.gain)
        return [_clipped(length + self.gain * (self.target - success)) - common[1]]

    def after(self, common: State, successes: Sequence[float], new: Sequence[State] = ()) -> State:
        average, length = common
        average += self.smoothing * (sum(successes) / len(successes) - average)
        return [average, _clipped(length + self.gain * (self.target - average))]


@dataclass(frozen=True)
class Search:
    """BREAD's search (arXiv 2506.17211), deferred: one probe each time a problem comes round.

    A demonstration has ``episodes`` equal parts. A problem gets no help until a whole group fails; then the number of
    parts is searched by halves, for the least with which success lies in ``[least, most]``::

        too hard with k parts (below least):  low = k; if that was the high end too, high = episodes
        too easy with k parts (above most):   high = k; if the search had ended there, low = -1
        in the band:                          low = high = k
        next probe:                           (low + high + 1) // 2

    So a search that ended begins anew on the side to which the answers point: as the policy improves the prefix gets
    shorter, and with none left the problem is on its own. The paper searches at once, with rollouts of its own; here a
    probe is the group that is trained on.

    >>> rule = Search(episodes=10, least=0.25, most=0.75)
    >>> rule.fraction([-1, 0], [], u=0.9), rule.fraction([0, 10], [], u=0.9)
    (0.0, 0.5)
    >>> rule.seen([-1, 0], [], 0.0, success=0.125), rule.seen([-1, 0], [], 0.0, success=0.0)  # some right; all wrong
    ([-1, 0], [0, 10])
    >>> rule.seen([0, 10], [], 0.5, success=0.0), rule.seen([0, 10], [], 0.5, success=1.0)
    ([5, 10], [0, 5])
    """

    episodes: int
    least: float
    most: float

    own: ClassVar[State] = (-1, 0)
    """``[low, high]`` in parts of a problem that was never seen; -1: not even no help is known to be too little."""
    unaided: ClassVar[float] = 0.0
    common: ClassVar[State] = ()

    def unseen(self, common: State) -> State:
        return self.own

    def fraction(self, own: State, common: State, u: float) -> float:
        low, high = own
        return (low + high + 1) // 2 / self.episodes

    def seen(self, own: State, common: State, fraction: float, success: float) -> State:
        (low, high), parts = own, round(fraction * self.episodes)
        if success == 0 if parts == 0 else success < self.least:
            return [parts, high if high > parts else self.episodes]
        if parts == 0:
            return [-1, 0]
        if success > self.most:
            return [low if low < parts < high else -1, parts]
        return [parts, parts]

    def after(self, common: State, successes: Sequence[float], new: Sequence[State] = ()) -> State:
        return common


def _clipped(fraction: float) -> float:
    return min(max(fraction, 0.0), 1.0)
