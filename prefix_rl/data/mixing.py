"""Mixing of several training files into one epoch, in the proportion of their weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Gt

from ..errors import DataError
from ..prefixes import uniform
from ..progress import is_main, say
from . import duplicates
from .problems import Problem
from .sources import SUFFIXES
from .texts import hash64, squeezed

SOURCE, REPEATS = "mixed_from", "repeats_in_epoch"
"""Names of the columns for the file that a row comes from, and for its number of occurrences in an epoch."""


@dataclass(frozen=True)
class Source:
    """One of several files to train on."""

    file: str
    """A file of training rows, or a data set on the hub."""
    weight: Annotated[float, Gt(0)] = 1.0
    """The share of the prompts that come from this file, relative to the other weights."""


class Mixture:
    """The setting ``data.train``: one file or several."""

    train: str | tuple[Source, ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        """Files to train on; empty for the lab, which generates its data."""
        if isinstance(self.train, str):
            return () if self.train == "lab" else (Source(self.train),)
        return self.train

    @property
    def named(self) -> str:
        """Names of the files, as one text for messages."""
        return self.train if isinstance(self.train, str) else ", ".join(source.file for source in self.train)


def names(files: Sequence[str]) -> list[str]:
    """Names of the sources in metrics: file names without folder and suffix, or full paths where these are ambiguous.

    >>> names(["data/gsm8k.jsonl", "data/math.parquet"]), names(["a/train.jsonl", "b/train.jsonl"])
    (['gsm8k', 'math'], ['a/train.jsonl', 'b/train.jsonl'])
    """
    stems = []
    for file in files:
        stem = Path(file).name
        for suffix in SUFFIXES:
            stem = stem.removesuffix(suffix)
        stems.append(stem)
    again = {stem for stem, n in Counter(stems).items() if n > 1}
    return [file if stem in again else stem for file, stem in zip(files, stems, strict=True)]


def mixed(sources: Sequence[Source], problems: Sequence[Sequence[Problem]], seed: int) -> list[Problem]:
    """Problems of all sources, each once, with the number of its occurrences in an epoch (``repeats``).

    An epoch is the shortest that holds every problem at least once and the sources in the proportion of their weights:
    the source with the most problems for its weight occurs once, the others are repeated. Where a source would have to
    be repeated a fractional number of times, the seed decides which of its problems occur once more. Problems that are
    in several files are kept in one of them, see :func:`distinct`.

    >>> a, b = [Problem("1", "a", ""), Problem("2", "b", "")], [Problem("1", "c", "")]
    >>> [(p.source, p.id, p.repeats) for p in mixed([Source("a.jsonl"), Source("b.jsonl", 3)], [a, b], 0)]
    [('a', 'a/1', 1), ('a', '2', 1), ('b', 'b/1', 6)]

    Raises:
        DataError: if a file is named twice, or all its problems are in earlier files.
    """
    files = [source.file for source in sources]
    if again := [file for file, n in Counter(files).items() if n > 1]:
        raise DataError(f"data.train names {again[0]} twice; give it once, with the sum of the weights")
    problems = distinct(files, problems)
    ids = Counter(problem.id for of_source in problems for problem in of_source)
    longest = max(Fraction(len(p)) / Fraction(s.weight) for s, p in zip(sources, problems, strict=True))
    found = []
    for source, name, of_source in zip(sources, names(files), problems, strict=True):
        rows = math.floor(longest * Fraction(source.weight) + Fraction(1, 2))
        times, more = divmod(rows, len(of_source))
        drawn = sorted(range(len(of_source)), key=lambda i, name=name: uniform("mixing", seed, name, i))
        chosen = set(drawn[:more])
        found += [
            replace(p, source=name, id=f"{name}/{p.id}" if ids[p.id] > 1 else p.id, repeats=times + (i in chosen))
            for i, p in enumerate(of_source)
        ]
    return found


_WHY = {
    duplicates.SAME: "the same problem with the same answer, whose demonstrations the earlier file's got",
    duplicates.OTHER_ANSWER: "the same problem WITH ANOTHER ANSWER",
    duplicates.NEAR: "nearly the same problem, with the same numbers and answer",
}


def distinct(files: Sequence[str], problems: Sequence[Sequence[Problem]]) -> list[list[Problem]]:
    """Problems of each file without those of earlier files: a problem has one share of the epoch, not two.

    Duplicates are found as in ``prefix-rl prepare`` (:mod:`.duplicates`), but only between files, not within one. The
    number of problems that are left out is printed, with the reason and an example.

    Raises:
        DataError: if no problem of a file is left.
    """
    every = [(place, problem) for place, of_source in enumerate(problems) for problem in of_source]
    table = np.array([_entry(problem) for _, problem in every], duplicates.INDEX)
    kind, of = duplicates.find(
        lambda name, band: table[name] if band is None else table[name][:, band],
        lambda i: every[i][1].text,
        _SIMILARITY,
    )
    left: list[list[Problem]] = [[] for _ in files]
    given: dict[int, list[dict]] = {}
    gone: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for i, (place, _) in enumerate(every):
        if kind[i] != duplicates.KEPT and every[of[i]][0] != place:
            gone.setdefault((place, every[of[i]][0], int(kind[i])), []).append((i, int(of[i])))
            if kind[i] == duplicates.SAME:
                given.setdefault(int(of[i]), []).extend(every[i][1].demonstrations)
    dropped = {i for pairs in gone.values() for i, _ in pairs}
    for i, (place, problem) in enumerate(every):
        if i not in dropped:
            texts = {d["text"] for d in problem.demonstrations}
            more = {d["text"]: d for d in given.get(i, ()) if d["text"] not in texts}
            left[place].append(replace(problem, demonstrations=(*problem.demonstrations, *more.values())))
    for (place, earlier, why), pairs in gone.items() if is_main() else ():
        here, there = (every[row][1] for row in pairs[0])
        say(
            f"left out {len(pairs)} of the {len(problems[place])} problems of {files[place]}, which stand in "
            f"{files[earlier]}: {_WHY[why]}; for example {here.place or here.id} and {there.place or there.id}"
        )
    if empty := [file for file, of_source in zip(files, left, strict=True) if not of_source]:
        raise DataError(f"every problem of {empty[0]} stands in an earlier file of data.train; leave it out")
    return left


_SIMILARITY = 0.8  # the default of ``prefix-rl prepare``


def _entry(problem: Problem) -> tuple:
    """Entry of a problem in the form of :data:`~prefix_rl.data.duplicates.INDEX`; its offset is not used."""
    asked = "\n".join(f"{turn['role']}: {turn['content']}" for turn in problem.turns) or problem.text
    hashes = (hash64(text) for text in (problem.id, squeezed(asked), squeezed(problem.answer)))
    return *hashes, 0, len(problem.demonstrations), duplicates.bands(problem.text, problem.answer)
