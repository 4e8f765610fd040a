"""Duplicates among the problems: exact copies, and near-duplicates.

Two problems are the same if their texts agree up to typesetting (:func:`~prefix_rl.data.texts.squeezed`). They are
near-duplicates if

- their answers and their numbers, in order, are the same, and
- the Jaccard similarity of their word 3-grams is at least a threshold.

The first condition tells a reworded problem from another problem of the same template: "12 apples at 3 each" and "12
apples at 5 each" differ in one word only, but they are two problems.

Of every set of duplicates the first row in the order of the sources is kept: the choice does not depend on chance, and
sources can be listed in the order of trust. A row is dropped only if it is like a *kept* row, so likeness does not
chain.

Pairs are found by MinHash and banding (Broder 1997; datasketch): 25 bands of 5 values, which find a pair of similarity
s with probability 1 - (1 - s^5)^25 (0.8: 0.99995, 0.7: 0.99). The pairs are then compared on their true 3-grams. The
bands are numpy columns that are sorted one at a time, so a row costs a few dozen bytes of memory.
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
"""Entry of a row: hashes of id, text and answer, byte offset in its chunk, number of demonstrations, band hashes."""
KEPT, SAME, OTHER_ANSWER, NEAR = range(4)
"""Kinds of rows: kept; same problem as a kept row; same problem with another answer; near-duplicate of a kept row."""
_COMPARED = 4  # number of rows at the start of a bucket that all later rows are compared with


def bands(problem: str, answer: str) -> np.ndarray:
    """Band hashes ``(25,)`` of a problem. Problems that differ in the answer or a number share none."""
    found = words(problem)
    sketch = _empty_sketch().copy()
    sketch.update_batch(gram.encode() for gram in ngrams(found, SHINGLE))
    agree = hash64("\n".join([squeezed(answer), *numbers(problem)]))
    mixed = sketch.hashvalues.astype(np.uint64).reshape(BANDS, ROWS)
    with np.errstate(over="ignore"):
        result = np.full(BANDS, agree, np.uint64)
        # mixes the 5 values of each band into one hash; products wrap around modulo 2^64 on purpose
        for column in mixed.T:
            result = (result ^ column) * np.uint64(0x9E3779B97F4A7C15)
            result ^= result >> np.uint64(29)
    return result


def find(
    column: Callable[[str, int | None], np.ndarray], problem: Callable[[int], str], threshold: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Kind of every row, and the kept row that it duplicates.

    Args:
        column: returns a column of :data:`INDEX` over all rows; its second argument is the number of the band for
            ``bands``, else None.
        problem: returns the text of a row's problem.
        threshold: similarity from which two problems are near-duplicates; None: only equal texts are duplicates.

    Returns:
        Two arrays ``(rows,)``: the kind (:data:`KEPT` and so on), and the index of the kept row (its own if kept).
    """
    texts, answers = column("text", None), column("answer", None)
    kind = np.zeros(len(texts), np.uint8)
    _, first, group = np.unique(texts, return_index=True, return_inverse=True)  # first row of each text
    of = first[group].astype(np.int64)
    copies = of != np.arange(len(of))
    kind[copies] = np.where(answers[copies] == answers[of[copies]], SAME, OTHER_ANSWER)
    if threshold is not None:
        text_of = lru_cache(1024)(problem)
        for earlier, later in _candidates(column, ~copies):
            near = kind[earlier] == KEPT and kind[later] == KEPT
            if near and similarity(text_of(earlier), text_of(later)) >= threshold:
                kind[later], of[later] = NEAR, earlier
        moved = copies & (kind[of] == NEAR)  # copies of a row that turned out to be a near-duplicate
        kind[moved], of[moved] = NEAR, of[of[moved]]
    return kind, of


def _candidates(column: Callable[[str, int | None], np.ndarray], first: np.ndarray):
    """Pairs (earlier row, later row) that share a band hash, ordered by the later row, then by the earlier one."""
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
            # place and head: positions in ``order`` of the later and of the k-th row, for all buckets at once
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
