"""Training problems that stand in an evaluation set.

A training problem is contaminated if it shares ``n`` words in a row with a problem of an evaluation set (n-gram
overlap, GPT-3, arXiv 2005.14165, appendix C: 13; open-r1 and others: 8). What is compared are the words of the problems
alone, see :func:`~prefix_rl.data.texts.words`; a problem of fewer than ``n`` words is compared as a whole.

A run of words that stands, with other numbers and letters perhaps, in three or more different problems of the
evaluation sets ("where m and n are relatively prime positive integers") is a turn of phrase. With ``spare_phrases``
only runs clear of such words count, or a problem that is there as a whole: a copied problem has more than its phrases.
The published rule, and the default, knows no such exception.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from ..errors import DataError
from . import benchmarks
from .sources import fingerprint, read
from .texts import ngrams, similarity, squeezed, words

LONG_RUN = 13
"""Of the rows dropped, those are also counted that share so many words in a row."""
LONG = f"with {LONG_RUN} words or more"
_DIGITS, _LETTER = re.compile(r"\d+"), re.compile(r"\b[^\W\d_]\b")
_PHRASE = 8  # words of a turn of phrase
_ALIKE = 0.5  # two evaluation problems of this similarity are forms of one
_SHOWN = 500  # characters of a text in the list of what was dropped
INSIDE = 0.9
"""An evaluation set of whose problems this share stands whole in the training data is a part of it."""


@dataclass(frozen=True)
class Hit:
    """The problem of an evaluation set that a text has most in common with."""

    problem: int  # its number in the index
    run: str  # the most words in a row of the text that lie in n-grams of the problem
    whole: tuple[int, ...]  # the problems whose every n-gram stands in the text

    @property
    def words(self) -> int:
        """The length of the run."""
        return self.run.count(" ") + 1


class EvaluationIndex:
    """The n-grams of evaluation sets.

    Args:
        sets: for each name its problems, as ``(id, text)``.
        n: words in a row that make a problem contaminated.
        spare_phrases: turns of phrase do not.
    """

    def __init__(self, sets: dict[str, Sequence[tuple[str, str]]], n: int = 8, spare_phrases: bool = False):
        self.n = n
        self.problems = [(name, id, text) for name, problems in sets.items() for id, text in problems]
        self._distinct: list[int] = []  # n-grams of each problem
        self._where: dict[str, list[int]] = {}  # n-gram -> the problems that it stands in
        for number, (_, _, text) in enumerate(self.problems):
            grams = set(ngrams(words(text), n))
            self._distinct.append(len(grams))
            for gram in grams:
                self._where.setdefault(gram, []).append(number)
        self._phrases = self._turns_of_phrase() if spare_phrases else frozenset()

    def _turns_of_phrase(self) -> frozenset[str]:
        """The patterns of 8 words that stand in three different problems or more."""
        where: dict[str, dict[int, None]] = {}  # the inner dict for its order
        for number, (_, _, text) in enumerate(self.problems):
            for gram in ngrams(words(text), _PHRASE):
                where.setdefault(_pattern(gram), {})[number] = None
        alike = cache(lambda a, b: similarity(self.problems[a][2], self.problems[b][2]) >= _ALIKE)
        return frozenset(pattern for pattern, problems in where.items() if _are_different(list(problems), alike))

    def _clear(self, found: list[str]) -> set[int]:
        """The places of those n-grams of a text that no turn of phrase touches."""
        phrases = [
            i for i, gram in enumerate(ngrams(found, _PHRASE)) if self._phrases and _pattern(gram) in self._phrases
        ]
        taken = {i + k for i in phrases for k in range(_PHRASE)}
        return {p for p in range(len(ngrams(found, self.n))) if taken.isdisjoint(range(p, p + self.n))}

    def find(self, text: str) -> Hit | None:
        """What a training problem has in common with the evaluation sets; None if nothing.

        >>> problems = [("1", "Find the sum of all primes below ten."), ("2", "What is 6 * 7?")]
        >>> index = EvaluationIndex({"e": problems}, n=5)
        >>> index.find("Now find the sum of all primes below 100.").run
        'find the sum of all primes below'
        >>> index.find("What is 6 * 7?").whole
        (1,)
        >>> index.find("Find the sum of two primes. What is 6 * 7?") is None
        True
        """
        if not self.problems:
            return None
        found = words(text)
        at: dict[int, list[int]] = {}
        grams = ngrams(found, self.n)
        for position, gram in enumerate(grams):
            for number in self._where.get(gram, ()):
                at.setdefault(number, []).append(position)
        whole = {m for m, places in at.items() if len({grams[p] for p in places}) == self._distinct[m]}
        clear = self._clear(found)
        hits = [m for m, places in at.items() if m in whole or not clear.isdisjoint(places)]
        if not hits:
            return None
        best = max(hits, key=lambda number: (_longest(at[number])[1], -number))
        start, length = _longest(at[best])
        return Hit(best, " ".join(found[start : start + length + self.n - 1]), tuple(sorted(whole)))

    def shown(self, text: str, hit: Hit) -> dict:
        """A hit as it is listed: both problems, and what they share."""
        _, id, theirs = self.problems[hit.problem]
        return {"words": hit.words, "shared": hit.run[:_SHOWN], "problem": text[:_SHOWN], "evaluation_id": id,
                "evaluation_problem": theirs[:_SHOWN]}  # fmt: skip

    def refuse_if_inside(self, found: Iterable[int], force: bool = False) -> dict[str, dict[str, int]]:
        """How many problems of each set stand whole in the training data, given the numbers of those.

        Raises:
            DataError: if nearly all of a set do, unless forced: the sources hold the evaluation set by mistake.
        """
        counts = {name: {"problems": 0, "found whole": 0, "rows dropped": 0, LONG: 0} for name, _, _ in self.problems}
        for name, _, _ in self.problems:
            counts[name]["problems"] += 1
        for number in set(found):
            counts[self.problems[number][0]]["found whole"] += 1
        inside = [
            f"{name}: {c['found whole']} of its {c['problems']} problems"
            for name, c in counts.items() if c["found whole"] >= INSIDE * c["problems"]
        ]  # fmt: skip
        if inside and not force:
            raise DataError(
                "an evaluation set stands inside the training data; nothing was written. Take it out of the sources, "
                "or drop its problems and go on with --force:",
                inside,
            )
        return counts


def load_sets(names: Sequence[str], split: str = "test") -> dict[str, list[tuple[str, str]]]:
    """The problems of evaluation sets as ``(id, text)``: benchmarks by name, files, or data sets on the hub.

    Raises:
        DataError: if one cannot be read, or a row has no problem.
    """
    from .columns import normalize

    sets = {}
    for name in names:
        if name in benchmarks.BENCHMARKS:
            sets[name] = [(problem.id, problem.text) for problem in benchmarks.load([name])[0].problems]
            continue
        rows = [(place, normalize(row, {})) for place, row in read(name, split)]
        wrong = [place for place, row in rows if not isinstance(row.get("problem"), str)]
        if wrong:
            raise DataError(f"{name} is no evaluation set: there is no text of a problem in {wrong[0]}")
        sets[name] = [(str(row.get("id", n)), row["problem"]) for n, (_, row) in enumerate(rows)]
    return sets


def sets_facts(names: Sequence[str]) -> list[dict]:
    """What identifies evaluation sets in a manifest."""
    return [{"set": name, "sha256": fingerprint(name) if os.path.isfile(name) else None} for name in names]


def overlap(training: Iterable[str], evaluation: Iterable[str]) -> list[str]:
    """The evaluation problems whose very text stands in the training problems, typesetting aside, in their order."""
    known = {squeezed(text) for text in training}
    return [text for text in evaluation if squeezed(text) in known]


def _pattern(gram: str) -> str:
    """A run of words with every number and every single letter alike.

    >>> _pattern("frac m n for 2 primes")
    'frac x x for 0 primes'
    """
    return _LETTER.sub("x", _DIGITS.sub("0", gram))


def _are_different(problems: Sequence[int], alike: Callable[[int, int], bool]) -> bool:
    """Whether three of the problems are different ones: copies of a problem stand in several sets."""
    seen: list[int] = []
    for problem in problems if len(problems) > 2 else ():
        if not any(alike(other, problem) for other in seen):
            seen.append(problem)
        if len(seen) == 3:
            return True
    return False


def _longest(positions: Sequence[int]) -> tuple[int, int]:
    """Start and length of the longest run of successive positions, of equal ones the first.

    >>> _longest([1, 4, 5, 6, 9])
    (4, 3)
    """
    best, start = (positions[0], 1), positions[0]
    for before, position in pairwise(positions):
        if position != before + 1:
            start = position
        if position - start + 1 > best[1]:
            best = (start, position - start + 1)
    return best
