r"""Prefixes of demonstrations, as lists of token ids.

A demonstration is tokenized once. From then on a prefix is a slice of its ids: nothing is decoded and encoded again, so
no token can merge across the cut. The steps, in the order in which they happen:

1. draw a fraction ``l`` (:func:`draw_fraction`, from :func:`uniform`, which depends on names and numbers only),
2. cut ``k = floor(l * |demonstration|)`` tokens (:func:`cut`, Prefix-RFT, arXiv 2507.01679),
3. keep the answer out (:func:`safe_cuts` finds, once for each demonstration, where it becomes readable),
4. after generation, join prefix and continuation (:func:`join`).
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, TypeVar

AnswerGuard = Literal["mention", "statement", "none"]
T = TypeVar("T")


@dataclass(frozen=True)
class Demonstration:
    """A demonstration as token ids, and where its answer can be read.

    ``ids`` hold neither EOS nor padding. ``safe_length`` is the longest prefix, in tokens, from which the final answer
    cannot be read; ``misread_lengths`` are the cuts below it that would end inside a longer number and by that show
    the answer after all (``4`` of ``42``).
    """

    ids: tuple[int, ...]
    safe_length: int
    misread_lengths: frozenset[int] = frozenset()
    stop: int | None = None  # the id that ends a completion; it follows ``ids`` where the whole is imitated

    def usable(self, min_tokens: int = 1) -> bool:
        """Whether some prefix of at least ``min_tokens`` tokens leaves a token to generate and the answer unread."""
        longest = min(self.safe_length, len(self.ids) - 1)
        return any(k not in self.misread_lengths for k in range(longest, min_tokens - 1, -1))


class Prefix(NamedTuple):
    """The tokens that one rollout starts from, and what was asked for."""

    ids: list[int]
    drawn: int = 0  # tokens drawn, before the answer guard and the length budget shortened them
    of: int = 0  # tokens of the whole demonstration
    complete: bool = False  # the whole demonstration and its end: nothing is generated behind it


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
    generate), to the length budget ``max_tokens`` and to where the answer becomes readable. If nothing of at least one
    token remains, the prefix is empty.

    >>> demonstration = Demonstration(ids=(5, 6, 7, 8, 9), safe_length=3)
    >>> cut(demonstration, 0.5, max_tokens=100)
    Prefix(ids=[5, 6], drawn=2, of=5, complete=False)
    >>> cut(demonstration, 0.95, max_tokens=100)
    Prefix(ids=[5, 6, 7], drawn=4, of=5, complete=False)
    """
    length = len(demonstration.ids)
    drawn = min(max(tokens_in(fraction, length), min_tokens), length - 1)
    kept = min(drawn, max_tokens, demonstration.safe_length)
    while kept in demonstration.misread_lengths:
        kept -= 1
    return Prefix(list(demonstration.ids[: max(kept, 0)]), max(drawn, 0), length)


def whole(demonstration: Demonstration, max_tokens: int) -> Prefix:
    """A demonstration as a completion of its own, with the id that ends it; no prefix if it is longer than allowed.

    This is what is imitated (LUFFY, arXiv 2504.14945), so the answer stands in it: nothing is asked from it.

    >>> whole(Demonstration(ids=(5, 6, 7), safe_length=1, stop=2), max_tokens=10)
    Prefix(ids=[5, 6, 7, 2], drawn=4, of=4, complete=True)
    """
    ids = [*demonstration.ids, *([] if demonstration.stop is None else [demonstration.stop])]
    return Prefix(ids, len(ids), len(ids), True) if len(ids) <= max_tokens else NO_PREFIX


def join(prefix: Sequence[T], continuation: Sequence[T], max_length: int) -> list[T]:
    """``prefix | continuation`` (ids, or what belongs to them) cut to ``max_length``: the budget counts both.

    >>> join([1, 2], [3, 4, 5], max_length=4)
    [1, 2, 3, 4]
    """
    return [*prefix, *continuation][:max_length]


# --- where the answer becomes readable --------------------------------------------------------------------------------

# A final statement, as demonstrations write it. What follows it is the answer, whatever its notation.
_STATEMENT = re.compile(
    r"\\boxed|\\fbox|####|\b(?:final|correct)\s+(?:answer|result)\b|\banswer\s*(?:is|:|=)", re.IGNORECASE
)
# Integers and decimals with optional thousands separators, a/b, and \frac{a}{b}: whatever denotes one rational number.
_NUMBER = re.compile(
    r"\\[dt]?frac\s*\{?\s*(?P<top>\d+)\s*\}?\s*\{?\s*(?P<bottom>\d+)\s*\}?"
    r"|(?P<over>\d+)\s*/\s*(?P<under>\d+)"
    r"|(?P<plain>\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)"
)
_DIGITS = 4000  # Python refuses to convert much longer numbers
# Typesetting that does not change what is read, and so is left out of a comparison.
_TYPESETTING = re.compile(
    r"\s+|\\(?:left|right|displaystyle|mathrm|mathbf|text|textbf|operatorname|[!,;:> ])|[${}]|(?<=\\)[dt](?=frac)"
)


def safe_cuts(
    text: str, answer: str, ends: Sequence[int], guard: AnswerGuard = "mention"
) -> tuple[int, frozenset[int]]:
    r"""Where a demonstration may be cut without giving its answer away.

    Args:
        text: the demonstration.
        answer: its final answer, as in the data (LaTeX or plain).
        ends: for each token, the offset in ``text`` at which it ends.
        guard: ``"mention"`` stops before the first place where the answer's value stands, in any usual notation, or
            where a final statement begins (``\boxed``, ``####``, "the answer is"); ``"statement"`` stops before the
            first final statement only; ``"none"`` never stops.

    Returns:
        ``(safe_length, misread_lengths)`` of a :class:`Demonstration`.

    A one-letter answer (a choice, a variable) stands everywhere in a text and is guarded by statements alone. A number
    written out in words is not recognized.

    >>> text = r"6 * 7 = 42, so \boxed{42}"
    >>> ends = list(range(1, len(text) + 1))  # one token a character
    >>> text[: safe_cuts(text, "42", ends)[0]]
    '6 * 7 = '
    >>> text[: safe_cuts(text, "42", ends, "statement")[0]]
    '6 * 7 = 42, so '
    """
    if guard == "none":
        return len(ends), frozenset()
    offset, misread = _readable(text, answer, ends, guard)
    safe = bisect_right(ends, offset) if offset < len(text) else len(ends)
    return safe, frozenset(k for k in misread if k <= safe)


def readable_from(text: str, answer: str, guard: AnswerGuard = "mention") -> int:
    r"""The offset in a demonstration before which :func:`safe_cuts` ends every prefix; its length if nowhere.

    >>> text = r"6 * 7 = 42, so \boxed{42}"
    >>> readable_from(text, "42"), readable_from(text, "42", "statement")
    (8, 15)
    """
    return len(text) if guard == "none" else _readable(text, answer, (), guard)[0]


def _readable(text: str, answer: str, ends: Sequence[int], guard: AnswerGuard) -> tuple[int, set[int]]:
    statement = _STATEMENT.search(text)
    offset = statement.start() if statement else len(text)
    if guard == "statement":
        return offset, set()
    value = _single_value(answer)
    if value is None:
        return _first_expression(text, answer, offset), set()
    return _first_value(text, value, ends, offset)


def _value(match: re.Match) -> Fraction | int | None:
    if len(match[0]) > _DIGITS:
        return None
    top, bottom = match["top"] or match["over"], match["bottom"] or match["under"]
    if top is not None:
        return Fraction(int(top), int(bottom)) if int(bottom) else None
    plain = match["plain"].replace(",", "")
    return int(plain) if plain.isdecimal() else Fraction(plain)  # most are integers, and those compare fast


def _single_value(answer: str) -> Fraction | int | None:
    """The magnitude of an answer that is one rational number (units, ``$``, ``%`` and sign aside), else None."""
    bare = re.sub(r"\\(?:text|mathrm)\s*\{[^}]*\}|\\[!,;: %$]|\^\s*\\circ|\^\{\\circ\}|[\s$%+-]|\\boxed|°", "", answer)
    bare = bare.strip("{}.") if bare.startswith("{") else bare.rstrip(".")
    match = _NUMBER.fullmatch(bare)
    return _value(match) if match else None


def _first_value(text: str, value: Fraction | int, ends: Sequence[int], limit: int) -> tuple[int, set[int]]:
    """The offset of the first number equal to ``value`` before ``limit``; the cuts that end inside a longer number and
    show ``value``. The sign is ignored: ``5 - 3`` and ``-3`` are told apart only by reading the mathematics.
    """
    misread: set[int] = set()
    for match in _NUMBER.finditer(text, 0, limit):
        first = bisect_right(ends, match.start())
        if _value(match) == value:
            return match.start(), misread
        for k in range(first, bisect_right(ends, match.end() - 1)):  # tokens that end inside this number
            visible = _NUMBER.fullmatch(text, match.start(), ends[k])
            if visible and _value(visible) == value:
                misread.add(k + 1)
    return limit, misread


def _first_expression(text: str, answer: str, limit: int) -> int:
    """The offset of the first occurrence of ``answer`` before ``limit``, blanks and typesetting aside."""
    wanted = _TYPESETTING.sub("", answer)
    if len(wanted) < 2:
        return limit
    kept = list(_kept_offsets(text[:limit]))
    plain = "".join(text[i] for i in kept)
    for match in re.finditer(re.escape(wanted), plain, re.IGNORECASE):
        start = kept[match.start()]
        if not (wanted[0].isalnum() and text[start - 1 : start].isalnum()):  # not from inside a word
            return start
    return limit


def _kept_offsets(text: str):
    position = 0
    for match in _TYPESETTING.finditer(text):
        yield from range(position, match.start())
        position = match.end()
    yield from range(position, len(text))
