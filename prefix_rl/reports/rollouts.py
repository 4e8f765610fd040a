"""Saved rollouts: Parquet files with prefix, kept prefix tokens and continuation told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from ..errors import DataError
from ..parts import Damaged, Parts

PREFIX, KEPT, CONTINUATION = "prefix", "kept", "continuation"


def segments(
    ids: Sequence[int], prefix: Sequence[bool], moving: Sequence[bool], decode: Callable[[list[int]], str]
) -> list[dict[str, str]]:
    """The completion as pieces of text of one kind each: prefix, prefix tokens that get gradient, continuation.

    >>> words = {1: "so", 2: "it", 3: "is"}
    >>> decode = lambda ids: " ".join(words[i] for i in ids)
    >>> segments([1, 2, 3], [True, True, False], [False, True, True], decode)
    [{'kind': 'prefix', 'text': 'so'}, {'kind': 'kept', 'text': ' it'}, {'kind': 'continuation', 'text': ' is'}]
    """
    kinds = [(KEPT if m else PREFIX) if p else CONTINUATION for p, m in zip(prefix, moving, strict=True)]
    found, start = [], 0
    for kind, run in groupby(kinds):
        end = start + sum(1 for _ in run)
        before = list(ids[max(start - 1, 0) : start])  # a decoder may put a blank between two tokens
        text = decode(before + list(ids[start:end]))
        found.append({"kind": kind, "text": text[len(decode(before)) :] if before else text})
        start = end
    return found


def _saved(folder: Path) -> Parts:
    return Parts(folder, "step_{:06}.parquet", checksums=True)


def write_rollouts(path: Path, records: Sequence[dict]) -> None:
    """Writes one generation batch; the file appears when it is whole."""
    _saved(path.parent).write(path, records)


def read_rollouts(run: Path, step: int | None = None) -> list[dict]:
    """The saved rollouts of one step of a run: the last one, or the last at or before ``step``; none, if none is saved.

    Raises:
        DataError: if the file cannot be read.
    """
    saved = _saved(run / "rollouts")
    files = [path for number, path in saved.paths().items() if step is None or number <= step]
    try:
        return saved.rows(files[-1]) if files else []
    except Damaged as error:
        raise DataError(f"{error.path} is no readable file of rollouts ({error}); delete it") from error
