"""Contamination: training problems that also occur in an evaluation set.

A training problem is contaminated if it shares ``n`` words in a row with a problem of an evaluation set (n-gram
overlap; ``n`` is 13 for GPT-3, arXiv 2005.14165, appendix C, and 8 for open-r1 and others). Only the words are
compared, see :func:`~prefix_rl.data.texts.words`; a problem of fewer than ``n`` words is compared as a whole.

A turn of phrase is a run of words that occurs, up to its numbers and single letters, in three or more different
problems of the evaluation sets ("where m and n are relatively prime positive integers"). With ``spare_phrases`` a
shared run counts only if it overlaps no turn of phrase, or if the training problem holds the whole evaluation problem.
The published rule, which is the default, makes no such exception.
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
"""Number of shared words in a row from which a dropped row is also counted as a long match."""
LONG = f"with {LONG_RUN} words or more"
_DIGITS, _LETTER = re.compile(r"\d+"), re.compile(r"\b[^\W\d_]\b")
_PHRASE = 8  # number of words in a turn of phrase
_ALIKE = 0.5  # similarity from which two evaluation problems count as one
_SHOWN = 500  # number of characters of a text in the list of dropped rows
INSIDE = 0.9
"""Share of an evaluation set's problems, found whole in the training data, at which ``prepare`` refuses to go on."""


@dataclass(frozen=True)
class Hit:
    """The evaluation problem that shares the longest run of words with a text."""

    problem: int  # index into EvaluationIndex.problems
    run: str  # longest run of words of the text that is covered by n-grams of the problem
    whole: tuple[int, ...]  # indices of the problems all of whose n-grams occur in the text

    @property
    def words(self) -> int:
        """Number of words in the run."""
        return self.run.count(" ") + 1


class EvaluationIndex:
    """The n-grams of evaluation sets.

    Args:
        sets: the name of each set to its problems, as ``(id, text)``.
        n: number of shared words in a row that makes a problem contaminated.
        spare_phrases: True if turns of phrase do not count.
    """

    def __init__(self, sets: dict[str, Sequence[tuple[str, str]]], n: int = 8, spare_phrases: bool = False):
        self.n = n
        self.problems = [(name, id, text) for name, problems in sets.items() for id, text in problems]
        self._distinct: list[int] = []  # number of different n-grams of each problem
        self._where: dict[str, list[int]] = {}  # n-gram -> indices of the problems with it
        for number, (_, _, text) in enumerate(self.problems):
            grams = set(ngrams(words(text), n))
            self._distinct.append(len(grams))
            for gram in grams:
                self._where.setdefault(gram, []).append(number)
        self._phrases = self._turns_of_phrase() if spare_phrases else frozenset()

    def _turns_of_phrase(self) -> frozenset[str]:
        """Patterns of 8 words that occur in at least three different problems."""
        where: dict[str, dict[int, None]] = {}  # the inner dict is an ordered set
        for number, (_, _, text) in enumerate(self.problems):
            for gram in ngrams(words(text), _PHRASE):
                where.setdefault(_pattern(gram), {})[number] = None
        alike = cache(lambda a, b: similarity(self.problems[a][2], self.problems[b][2]) >= _ALIKE)
        return frozenset(pattern for pattern, problems in where.items() if _are_different(list(problems), alike))

    def _clear(self, found: list[str]) -> set[int]:
        """Positions of the n-grams of a text that overlap no turn of phrase."""
        phrases = [
            i for i, gram in enumerate(ngrams(found, _PHRASE)) if self._phrases and _pattern(gram) in self._phrases
        ]
        taken = {i + k for i in phrases for k in range(_PHRASE)}
        return {p for p in range(len(ngrams(found, self.n))) if taken.isdisjoint(range(p, p + self.n))}

    def find(self, text: str) -> Hit | None:
        """Best match of a training problem in the evaluation sets; None if it is not contaminated.

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
        # of equally long runs the first problem's
        best = max(hits, key=lambda number: (_longest(at[number])[1], -number))
        start, length = _longest(at[best])
        return Hit(best, " ".join(found[start : start + length + self.n - 1]), tuple(sorted(whole)))

    def shown(self, text: str, hit: Hit) -> dict:
        """Entry for the list of dropped rows: both problems and the words that they share."""
        _, id, theirs = self.problems[hit.problem]
        return {"words": hit.words, "shared": hit.run[:_SHOWN], "problem": text[:_SHOWN], "evaluation_id": id,
                "evaluation_problem": theirs[:_SHOWN]}  # fmt: skip

    def refuse_if_inside(self, found: Iterable[int], force: bool = False) -> dict[str, dict[str, int]]:
        """Counts for each set: its problems, and those that occur whole in the training data.

        Args:
            found: indices of the problems that occur whole in the training data.
            force: True to return the counts even if a set is inside the training data.

        Raises:
            DataError: if nearly all problems of a set occur: then the set is in the sources by mistake.
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
    """Problems of evaluation sets as ``(id, text)``. A set is a known benchmark, a file or a data set on the hub.

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
    """Name and SHA-256 of each evaluation set, for the manifest; the SHA-256 is None for the hub."""
    return [{"set": name, "sha256": fingerprint(name) if os.path.isfile(name) else None} for name in names]


def overlap(training: Iterable[str], evaluation: Iterable[str]) -> list[str]:
    """Evaluation problems whose text, apart from typesetting, is the text of a training problem; in their order."""
    known = {squeezed(text) for text in training}
    return [text for text in evaluation if squeezed(text) in known]


def _pattern(gram: str) -> str:
    """A run of words with 0 for every number and x for every single letter.

    >>> _pattern("frac m n for 2 primes")
    'frac x x for 0 primes'
    """
    return _LETTER.sub("x", _DIGITS.sub("0", gram))


def _are_different(problems: Sequence[int], alike: Callable[[int, int], bool]) -> bool:
    """True if at least three of the problems differ; several sets may hold copies of one problem."""
    seen: list[int] = []
    for problem in problems if len(problems) > 2 else ():
        if not any(alike(other, problem) for other in seen):
            seen.append(problem)
        if len(seen) == 3:
            return True
    return False


def _longest(positions: Sequence[int]) -> tuple[int, int]:
    """Start and length of the longest run of successive positions; the first one if several are equally long.

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
