r"""Prefixes of demonstrations, as lists of token ids.

A demonstration is tokenized once. From then on a prefix is a slice of its ids: nothing is decoded and encoded again, so
no token can merge across the cut. The steps, in the order in which they happen:

1. draw a fraction ``l`` (:func:`draw_fraction`, from :func:`uniform`, which depends on names and numbers only),
2. cut ``k = floor(l * |demonstration|)`` tokens (:func:`cut`, Prefix-RFT, arXiv 2507.01679), or at the last place of
   another kind up to there (:mod:`prefix_rl.cuts`),
3. keep the answer out (:mod:`prefix_rl.rewards.guard` finds, once for each demonstration, where it becomes readable),
4. after generation, join prefix and continuation (:func:`join`).
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

AnswerGuard = Literal["mention", "statement", "computed", "none"]
T = TypeVar("T")


@dataclass(frozen=True)
class Demonstration:
    """A demonstration as token ids, and where its answer can be read.

    ``ids`` hold neither EOS nor padding. ``safe_length`` is the longest prefix, in tokens, from which the final answer
    cannot be read; ``misread_lengths`` are the cuts below it that would end inside a longer number and by that show
    the answer after all (``4`` of ``42``).

    ``places`` are the lengths, ascending, at which it may be cut; None: at all. ``shares`` are those of the whole that
    its first 1, 2, ... tokens hold, where tokens do not count alike; None: they do.
    """

    ids: tuple[int, ...]
    safe_length: int
    misread_lengths: frozenset[int] = frozenset()
    stop: int | None = None  # the id that ends a completion; it follows ``ids`` where the whole is imitated

    places: tuple[int, ...] | None = None
    shares: tuple[float, ...] | None = None

    def usable(self, min_tokens: int = 1) -> bool:
        """True if some prefix of at least ``min_tokens`` tokens leaves a token to generate and the answer unread."""
        return self.cut_at(min(self.safe_length, len(self.ids) - 1)) >= min_tokens

    def cut_at(self, most: int) -> int:
        """The longest length up to ``most`` at which it may be cut and no number is misread; 0 if there is none.

        >>> Demonstration(tuple(range(9)), safe_length=9, places=(2, 5, 7), misread_lengths=frozenset({5})).cut_at(6)
        2
        """
        if self.places is None:
            while most in self.misread_lengths:
                most -= 1
            return max(most, 0)
        place = bisect_right(self.places, most)
        while place and self.places[place - 1] in self.misread_lengths:
            place -= 1
        return self.places[place - 1] if place else 0

    def length_of(self, fraction: float) -> int:
        """Number of tokens in a share: ``floor(fraction * |ids|)``, or the least that hold it by ``shares``."""
        if self.shares is None:
            return tokens_in(fraction, len(self.ids))
        return bisect_left(self.shares, fraction) + 1 if fraction > 0 else 0

    def share_of(self, length: int) -> float | None:
        """Share that the first ``length`` tokens hold by ``shares``; None: ``length / |ids|``."""
        return None if self.shares is None else self.shares[length - 1] if length else 0.0


class Prefix(NamedTuple):
    """The tokens that one rollout starts from, and what was asked for."""

    ids: list[int]
    drawn: int = 0  # tokens drawn, before the answer guard and the length budget shortened them
    of: int = 0  # tokens of the whole demonstration
    complete: bool = False  # the whole demonstration and its end: nothing is generated behind it
    share: float | None = None  # of the demonstration, in the measure in which shares are counted; None: in tokens

    @property
    def fraction(self) -> float:
        """Share of the demonstration that is injected, in the measure in which shares are asked for; NaN: of none."""
        if self.share is not None:
            return self.share
        return len(self.ids) / self.of if self.of else math.nan


NO_PREFIX = Prefix([])


def uniform(*key: int | str) -> float:
    """A number in [0, 1) that depends on ``key`` alone: the same in every process, after every resume.

    >>> uniform("length", 0, 17, 3) == uniform("length", 0, 17, 3) != uniform("length", 0, 18, 3)
    True
    """
    return random.Random(repr(key)).random()


def draw_fraction(low: float, high: float, u: float) -> float:
    """``l ~ Uniform[min(low, high), max(low, high)]`` for ``u ~ Uniform[0, 1)``.

    >>> draw_fraction(0.5, 0.9, u=0.25)
    0.6
    """
    low, high = min(low, high), max(low, high)
    return low + (high - low) * u


def tokens_in(fraction: float, length: int) -> int:
    """``floor(fraction * length)``, where ``k / length`` is k tokens: the product of floats may be just below it.

    >>> int(1 / 49 * 49), tokens_in(1 / 49, 49)
    (0, 1)
    """
    nearest = round(fraction * length)
    return nearest if nearest / length == fraction else math.floor(fraction * length)


def cut(demonstration: Demonstration, fraction: float, *, min_tokens: int = 1, max_tokens: int) -> Prefix:
    """The first ``floor(fraction * |demonstration|)`` tokens, inside what is allowed.

    The length is raised to ``min_tokens``, then lowered to ``|demonstration| - 1`` (so that something is left to
    generate), to the length budget ``max_tokens`` and to where the answer becomes readable; and from there to the last
    place at which the demonstration may be cut. If nothing of at least one token remains, the prefix is empty.

    >>> demonstration = Demonstration(ids=(5, 6, 7, 8, 9), safe_length=3)
    >>> cut(demonstration, 0.5, max_tokens=100).ids
    [5, 6]
    >>> limited = cut(demonstration, 0.95, max_tokens=100)
    >>> limited.ids, limited.drawn, limited.of
    ([5, 6, 7], 4, 5)
    >>> cut(Demonstration(ids=(5, 6, 7, 8, 9), safe_length=5, places=(1, 3)), 0.5, max_tokens=100).ids
    [5]
    """
    length = len(demonstration.ids)
    drawn = min(max(demonstration.length_of(fraction), min_tokens), length - 1)
    kept = demonstration.cut_at(min(drawn, max_tokens, demonstration.safe_length))
    if demonstration.places is not None:
        # the place that was asked for; where there is none, a prefix was asked for all the same
        drawn = next((p for p in reversed(demonstration.places) if p <= drawn), drawn)
    share = demonstration.share_of(kept)
    return Prefix(list(demonstration.ids[:kept]), max(drawn, 0), length, share=share)


def whole(demonstration: Demonstration, max_tokens: int) -> Prefix:
    """A demonstration as a completion of its own, with the id that ends it; no prefix if it is longer than allowed.

    This is what is imitated (LUFFY, arXiv 2504.14945), so the answer stands in it: nothing is asked from it.

    >>> whole(Demonstration(ids=(5, 6, 7), safe_length=1, stop=2), max_tokens=10)
    Prefix(ids=[5, 6, 7, 2], drawn=4, of=4, complete=True, share=None)
    """
    ids = [*demonstration.ids, *([] if demonstration.stop is None else [demonstration.stop])]
    return Prefix(ids, len(ids), len(ids), True) if len(ids) <= max_tokens else NO_PREFIX


def join(prefix: Sequence[T], continuation: Sequence[T], max_length: int) -> list[T]:
    """``prefix | continuation`` (ids, or what belongs to them) cut to ``max_length``: the budget counts both.

    >>> join([1, 2], [3, 4, 5], max_length=4)
    [1, 2, 3, 4]
    """
    return [*prefix, *continuation][:max_length]
