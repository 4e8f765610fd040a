"""Step 3 of ``prefix-rl prepare``: duplicates among the rows of all chunks, which stay on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from . import duplicates
from .chunks import Chunks

if TYPE_CHECKING:
    from .prepare import Progress


class Rows:
    """Read rows of all chunks, numbered from 0, with the kind of each row (kept or duplicate)."""

    def __init__(self, chunks: Chunks, counts: Sequence[dict], progress: Progress, threshold: float | None):
        self._chunks, self.lengths = chunks, [one["rows"] for one in counts]
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        if not self.starts[-1]:
            raise DataError("no row of the sources can be used", _why_none(counts, chunks))
        advance = progress("looking for duplicates", duplicates.BANDS)
        self._offsets = self._column("offset", None)
        self.demonstrations = self._column("size", None)

        def column(name: str, band: int | None) -> np.ndarray:
            advance(band is not None)
            return self._column(name, band)

        self.kind, self.of = duplicates.find(column, lambda row: self[row]["problem"], threshold)
        same = np.flatnonzero((self.kind == duplicates.SAME) & (self.demonstrations > 0))
        self._copies = same[np.argsort(self.of[same], kind="stable")]
        self._refuse_repeated_ids()

    def __getitem__(self, row: int) -> dict:
        return self._chunks.line("read", self._chunk(row), int(self._offsets[row]))

    def lines(self, first: int) -> Iterator[bytes]:
        """Lines of the rows from ``first`` to the end of its chunk."""
        return self._chunks.lines("read", self._chunk(first), int(self._offsets[first]))

    def _chunk(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def copies(self, row: int) -> Iterator[dict]:
        """Dropped rows with the same problem and answer as a kept row, if they have demonstrations."""
        # _copies is sorted by the kept row, so the copies of one row stand together
        first, last = np.searchsorted(self.of[self._copies], [row, row + 1])
        return (self[int(copy)] for copy in self._copies[first:last])

    def _column(self, name: str, band: int | None) -> np.ndarray:
        arrays = (self._chunks.array("read", n)[name] for n in range(len(self.lengths)))
        return np.concatenate([a if band is None else a[:, band] for a in arrays])

    def _refuse_repeated_ids(self) -> None:
        rows = np.flatnonzero(self.kind == duplicates.KEPT)
        ids = self._column("id", None)[rows]
        order = np.argsort(ids, kind="stable")
        again = order[1:][ids[order[1:]] == ids[order[:-1]]]
        if not len(again):
            return
        first = order[np.searchsorted(ids[order], ids[again])]
        pairs = [(self[int(rows[f])], self[int(rows[a])]) for f, a in zip(first[:20], again[:20], strict=True)]
        listed = [f"id {a['id']!r}: {f['place']} and {a['place']}" for f, a in pairs]
        raise DataError(
            f"{len(again)} rows have the id of another problem; nothing was written. Name the column that tells them "
            "apart (--column id=NAME), or have ids given (--renumber):",
            listed + ([f"... and {len(again) - 20} more"] if len(again) > 20 else []),
        )


def _why_none(counts: Sequence[dict], chunks: Chunks) -> list[str]:
    """Reasons why no row is left, most frequent first, with an example of each."""
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for number, one in enumerate(counts):
        for step in one["funnel"]["dropped"].values():
            reasons.update(step["rows"])
        for line in chunks.dropped("read", number).splitlines():
            row = json.loads(line)
            told = "; ".join([*row.get("faults", [row["reason"]]), *_columns(row)])
            examples.setdefault(row["reason"], f"{row['place']}: {told}")
    hint = ["--column OURS=THEIRS names columns that are not known"] if any("no column" in r for r in reasons) else []
    return [f"{n} rows: {r}; for example {examples[r]}" for r, n in reasons.most_common()] + hint or [
        "there are no rows"
    ]


def _columns(row: dict) -> list[str]:
    return [f"there are the columns {', '.join(map(str, row['columns']))}"] if row.get("columns") else []
