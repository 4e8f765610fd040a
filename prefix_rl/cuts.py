r"""Places where a demonstration may be cut, and the measure in which shares of it are counted.

A prefix method plans a length: from a schedule, a draw or a controller. Its setting ``cut`` says where such a prefix
really ends:

- ``tokens``: there. A share ``l`` of a demonstration of m tokens is its first ``floor(l * m)``.
- ``sentences``: at the last sentence end at or before it (:func:`sentence_places`).
- ``entropy``: at the last peak at or before it: a place whose next token is among the 20 % of the demonstration at
  which a reference policy is least certain (:func:`entropy_places`). There a policy has a choice to make; PROS (ICLR
  2026) cuts at such a place too, at the highest one between a quarter and three quarters.
- ``surprisal``: shares are counted in ``-log p`` of a reference policy instead of tokens, as ARG does (arXiv
  2610.11128): a share ``l`` is the shortest beginning whose surprisal reaches ``l`` of the whole's
  (:func:`surprisal_shares`).

Every cut lies between two tokens. Where there is no place at or before the planned length, nothing is injected. The
reference is the policy that a run starts from.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

Cut = Literal["tokens", "sentences", "entropy", "surprisal"]
"""Kinds of places where prefixes end."""
PEAKS = 0.2
"""Share of a demonstration's tokens in front of which there is a peak of entropy."""

# A span of mathematics ends no sentence inside. At most so many characters, or an opening without an end would cost the
# rest of the text, again and again
_MATH = re.compile(
    r"\\\[.{0,4000}?\\\]|\\\(.{0,1000}?\\\)|\$\$.{0,4000}?\$\$|\\begin\{(\w{1,20}\*?)\}.{0,4000}?\\end\{\1\}"
    r"|\$(?=[^\s$])[^$\n]{0,1000}?(?<=[^\s$\\])\$(?!\d)",
    re.DOTALL,
)
_CLOSING = "\"'”’»)\\]}*_」』）】》"
_END = re.compile(rf"[。！？｡．][{_CLOSING}]*|[.!?…]+[{_CLOSING}]*(?=\s|\Z)|[ \t\r]*\n")
_NOT_BEFORE = re.compile(r"[a-zß-öø-ÿ=+\-*/<>^,;:)\]}|&≤≥≠×·÷]")  # no sentence begins so
_BLANKS = re.compile(r"\s*")
_DELIMITER = re.compile(r"(?:\\[\])]|\$\$?|\\end\{\w+\*?\})\Z")
_WORD = re.compile(r"(?:[^\W\d_]|\.(?=[^\W\d_]))+\Z")
_LIST_NUMBER = re.compile(r"(?:\A|\n)[ \t]*\(?\d{1,3}\Z")
_SHORT = frozenset(
    ("mr", "mrs", "ms", "dr", "prof", "st", "vs", "cf", "eg", "ie", "resp", "approx", "thm", "lem", "prop", "cor")
)
_SHORT_BEFORE_A_NUMBER = frozenset(
    ("no", "nos", "fig", "figs", "eq", "eqs", "sec", "secs", "ch", "vol", "p", "pp", "ex", "art", "nr")
)


def sentence_ends(text: str) -> list[tuple[int, int]]:
    r"""The sentence ends of a text: the offset behind each end, and the offset at which the next sentence begins.

    A sentence ends

    - at a line break,
    - behind ``.``, ``!``, ``?`` and ``…`` (and what closes quotes, brackets and bold type) if a blank follows, and
    - behind the full stops of Chinese and Japanese, whatever follows.

    It does not end inside mathematics (``$...$``, ``\(...\)``, ``\[...\]``, ``$$...$$``, ``\begin...\end``), but
    behind it if its last sign is a full stop; not behind an abbreviation (``Dr.``, ``e.g.``, ``Eq.`` in front of a
    number), nor the number of an item at the beginning of a line; and not in front of a small letter or an operator
    (``5! = 120``).

    >>> text = "Then x = 3.14. So, e.g., \\[ y = 2. \\] Dr. No. 7 agrees! It is done."
    >>> [text[:end].rsplit(maxsplit=1)[-1] for end, _ in sentence_ends(text)]
    ['3.14.', '\\]', 'agrees!', 'done.']
    """
    plain = _MATH.sub(_blotted, text)
    found = []
    for m in _END.finditer(plain):
        end = m.start() if m[0].isspace() else m.end()
        begin = _BLANKS.match(plain, m.end()).end()
        if found and begin == found[-1][1]:  # a line break behind a full stop
            continue
        if m[0].isspace() or "\n" in plain[end:begin] or _ends(plain, m, begin):
            found.append((end, begin))
    return found


def _blotted(m: re.Match) -> str:
    """Mathematics of the same length in which only a full stop at the end can be seen."""
    last = _DELIMITER.sub("", m[0]).rstrip()[-1:]
    return "\0" * (len(m[0]) - 1) + (last if last in tuple(".!?。") else "\0")


def _ends(text: str, m: re.Match, begin: int) -> bool:
    """True if these signs end a sentence of ``text``, behind which another begins at ``begin``."""
    sign, following = m[0][0], text[begin : begin + 1]
    if sign in "。！？｡":
        return True
    if sign == "．":
        return not following.isdigit()
    if following and _NOT_BEFORE.match(following):
        return False
    before = text[max(m.start() - 40, 0) : m.start()]
    if m[0].startswith((".", "…")) and len(m[0].rstrip(_CLOSING)) > 1:
        return not following or following.isupper()  # an ellipsis
    if sign == "!" and before[-1:].isdigit():
        return not following or following.isupper()  # a factorial
    if sign != ".":
        return True
    word = _WORD.search(before)
    word = word[0].lower() if word else ""
    if "." in word or word in _SHORT or (word in _SHORT_BEFORE_A_NUMBER and (following.isdigit() or following == "(")):
        return False
    return not _LIST_NUMBER.search(before)


def sentence_places(text: str, ends: Sequence[int]) -> tuple[int, ...]:
    """Numbers of tokens behind which a sentence ends: the last token boundary from its end to where the next begins.

    A sentence whose end lies inside a token is not cut at.

    Args:
        ends: for each token, the offset in ``text`` at which it ends.

    >>> sentence_places("One. Two.\\n\\nThree", ends=[3, 4, 8, 11, 16])  # One | . | _Two | .\\n\\n | Three
    (2, 4)
    """
    found = []
    for end, begin in sentence_ends(text):
        k = bisect_right(ends, begin)
        if 0 < k < len(ends) and ends[k - 1] >= end:
            found.append(k)
    return tuple(dict.fromkeys(found))


def entropy_places(entropies: Sequence[float]) -> tuple[int, ...]:
    """Numbers of tokens behind which the policy is least certain how to go on.

    Of the ``m - 1`` places inside a demonstration of m tokens these are the ``ceil(0.2 * (m - 1))`` with the highest
    entropy of the next token; of equal ones the earlier.

    Args:
        entropies: of the distribution from which each token would be drawn, in nats, ``(m,)``.

    >>> entropy_places([9.0, 0.1, 2.0, 0.3, 2.5, 0.2])  # 1 of 5 places; the first token has none in front of it
    (4,)
    """
    inside = range(1, len(entropies))
    highest = sorted(inside, key=lambda k: (-entropies[k], k))[: math.ceil(PEAKS * len(inside))]
    return tuple(sorted(highest))


def surprisal_shares(logps: Sequence[float]) -> tuple[float, ...]:
    """Share of the surprisal that the first k of m tokens hold, ``S_k / S_m`` for k = 1 ... m.

    ``S_k = sum_{t<=k} -log p_t``. Where nothing surprises, tokens count alike.

    >>> surprisal_shares([-1.0, -0.5, -2.5])
    (0.25, 0.375, 1.0)
    """
    sums = list(accumulate(max(-p, 0.0) for p in logps))
    if not sums or sums[-1] == 0:
        return tuple((k + 1) / len(sums) for k in range(len(sums)))
    return tuple(s / sums[-1] for s in sums)


def needs_scores(cut: Cut) -> bool:
    """True if the places follow from what a reference policy says of a demonstration."""
    return cut in ("entropy", "surprisal")
