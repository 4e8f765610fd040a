r"""Normalization of texts for comparison: problems are compared without the marks that only typeset them.

Every comparison of problems (duplicates, contamination, overlap of training and evaluation data) uses the results of
these functions, so that ``$x^2$`` and ``\( x^2 \)`` are the same text.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

SHINGLE = 3
"""Number of words in a shingle, the unit that :func:`similarity` compares."""
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")
_LINE_ENDS = re.compile("\r\n?|[\u2028\u2029]")
# Typesetting that does not change the meaning. The code of a diagram is left out, too: different problems may share it.
_DIAGRAM = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)|\\begin\{asy\}.*?(?:\\end\{asy\}|\Z)", re.DOTALL)
_TYPESETTING = re.compile(
    r"\\(?:left|right|big|bigg|displaystyle|textstyle|mathrm|mathbf|mathit|text|textbf|textit|mbox|operatorname"
    r"|quad|qquad)(?![a-z])|\\[!,;:> ()\[\]]|(?<=\\)[dt](?=frac)"
)
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|\\,)(?=\d{3}(?!\d))")
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"  # scripts without blanks: each character counts as a word
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_NOTHING = re.compile(r"[\s$]+")


def clean(text: str) -> str:
    r"""A text in the form that is stored: without outer blanks and invisible characters, every line end ``\n``.

    >>> clean(" a\r\nb\u200b\u2028c ")
    'a\nb\nc'
    """
    return _LINE_ENDS.sub("\n", _INVISIBLE.sub("", text)).strip()


def squeezed(text: str) -> str:
    r"""A text without blanks, case, ``$`` and typesetting. Problems that agree in it are the same problem.

    >>> squeezed(r"Find $ \dfrac{1}{2}\, x$.") == squeezed(r"find \(\frac{1}{2}x\).")
    True
    """
    return _NOTHING.sub("", _bare(text))


def words(text: str) -> list[str]:
    r"""Words and numbers of a text, without case, punctuation, operators, typesetting and diagrams.

    >>> words(r"Let $x\le 1,\!000$. [asy]draw((0,0));[/asy] Find \left(x\right)!")
    ['let', 'x', 'le', '1', '000', 'find', 'x']
    >>> words("It costs $1,250.50")
    ['it', 'costs', '1250', '50']
    """
    return _WORD.findall(_bare(_DIAGRAM.sub(" ", text)))


def numbers(text: str) -> list[str]:
    """Numbers in a text, in their order.

    >>> numbers("1,250 apples cost $3.50 each")
    ['1250', '3.50']
    """
    return _NUMBER.findall(_bare(_DIAGRAM.sub(" ", text)))


def ngrams(found: Sequence[str], n: int) -> list[str]:
    """Runs of ``n`` successive words; the whole text if it has fewer; empty if it has no words.

    >>> ngrams(["a", "b", "c"], 2)
    ['a b', 'b c']
    >>> ngrams(["a"], 2)
    ['a']
    """
    return [" ".join(found[i : i + n]) for i in range(max(len(found) - n + 1, min(len(found), 1)))]


def similarity(first: str, second: str) -> float:
    """Jaccard similarity, from 0 to 1, of the word 3-grams of two texts.

    >>> similarity("a b c d e", "a b c d f")  # abc, bcd of abc, bcd, cde, cdf
    0.5
    """
    ours, theirs = (set(ngrams(words(text), SHINGLE)) for text in (first, second))
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def hash64(text: str) -> int:
    """64-bit hash, the same in every process. A million different texts have a collision with probability 1 in 4e7."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _bare(text: str) -> str:
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    return _TYPESETTING.sub("", _THOUSANDS.sub("", text))
