"""Problems that stand in the data twice: to the letter, or nearly.

Two problems are the same if their texts are (:func:`~prefix_rl.data.texts.squeezed`). They are near-duplicates if

- their answers and their numbers, in order, are the same, and
- the Jaccard similarity of their word 3-grams is at least a threshold.

The first condition is what tells a rewording from another problem made from the same template: "12 apples at 3 each"
and "12 apples at 5 each" differ in one word of twenty and have nothing to do with each other.

Of every set of duplicates the first row in the order of the sources is kept: which one does not depend on chance, and
sources can be given in the order of trust. A row is dropped for its likeness to a *kept* row only, so likeness does not
chain.

Pairs are found by MinHash and banding (Broder 1997; datasketch): 25 bands of 5 values, which find a pair of similarity
s with probability 1 - (1 - s^5)^25 (0.8: 0.99995, 0.7: 0.99), and are then compared on their true 3-grams. The bands
stand in numpy columns that are sorted one at a time, so a row costs a few dozen bytes of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np

from .texts import SHINGLE, hash64, ngrams, numbers, similarity, squeezed, words

BANDS, ROWS = 25, 5
INDEX = np.dtype(
    [("id", "u8"), ("text", "u8"), ("answer", "u8"), ("offset", "i8"), ("size", "i4"), ("bands", "u8", (BANDS,))]
)
"""What is kept of a row: hashes of its id, text and answer, where it stands in its chunk, its bands."""
KEPT, SAME, OTHER_ANSWER, NEAR = range(4)
"""What a row is: kept; the same problem as a kept one; the same, with another answer; nearly the same."""
_COMPARED = 4  # rows of a bucket that each of its rows is compared with


def bands(problem: str, answer: str) -> np.ndarray:
    """The band hashes ``(25,)`` of a problem. Rows that differ in an answer or a number share none."""
    found = words(problem)
    sketch = _empty_sketch().copy()
    sketch.update_batch(gram.encode() for gram in ngrams(found, SHINGLE))
    agree = hash64("\n".join([squeezed(answer), *numbers(problem)]))
    mixed = sketch.hashvalues.astype(np.uint64).reshape(BANDS, ROWS)
    with np.errstate(over="ignore"):
        result = np.full(BANDS, agree, np.uint64)
        for column in mixed.T:
            result = (result ^ column) * np.uint64(0x9E3779B97F4A7C15)
            result ^= result >> np.uint64(29)
    return result


def find(
    column: Callable[[str, int | None], np.ndarray], problem: Callable[[int], str], threshold: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are duplicates, and of which row.

    Args:
        column: gives a column of :data:`INDEX` over all rows; of ``bands`` the one with the given number.
        problem: the text of a row.
        threshold: the similarity that makes a near-duplicate; None: only the same text does.

    Returns:
        For each row what it is, and the kept row that it is a duplicate of (itself, if it is kept).
    """
    texts, answers = column("text", None), column("answer", None)
    kind = np.zeros(len(texts), np.uint8)
    _, first, group = np.unique(texts, return_index=True, return_inverse=True)  # of equal ones the first row
    of = first[group].astype(np.int64)
    copies = of != np.arange(len(of))
    kind[copies] = np.where(answers[copies] == answers[of[copies]], SAME, OTHER_ANSWER)
    if threshold is not None:
        text_of = lru_cache(1024)(problem)
        for earlier, later in _candidates(column, ~copies):
            near = kind[earlier] == KEPT and kind[later] == KEPT
            if near and similarity(text_of(earlier), text_of(later)) >= threshold:
                kind[later], of[later] = NEAR, earlier
        moved = copies & (kind[of] == NEAR)  # copies of a row that went itself
        kind[moved], of[moved] = NEAR, of[of[moved]]
    return kind, of


def _candidates(column: Callable[[str, int | None], np.ndarray], first: np.ndarray):
    """Pairs (earlier, later) that share a band, ordered by the later row, then by the earlier one."""
    rows = np.flatnonzero(first)
    pairs = np.empty(0, np.int64)
    for band in range(BANDS):
        hashes = column("bands", band)[rows]
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]]) if len(rows) else np.empty(0, np.int64)
        lengths = np.diff(np.r_[starts, len(rows)])
        starts, lengths = starts[lengths > 1], lengths[lengths > 1]
        found = [pairs]
        for k in range(_COMPARED):  # the k-th row of each bucket with every later one
            some = lengths > k + 1
            counts = lengths[some] - k - 1
            if not len(counts):
                break
            ends = np.cumsum(counts)
            place = np.arange(ends[-1]) - np.repeat(ends - counts, counts) + np.repeat(starts[some] + k + 1, counts)
            head = np.repeat(starts[some] + k, counts)
            found.append(rows[order[place]] << 32 | rows[order[head]])  # one number for a pair; sorts by the later row
        pairs = np.unique(np.concatenate(found))
    for pair in pairs:
        yield int(pair) & 0xFFFFFFFF, int(pair) >> 32


@cache
def _empty_sketch():
    from datasketch import MinHash

    return MinHash(num_perm=BANDS * ROWS, seed=1, scheme="affine32")
