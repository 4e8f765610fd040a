"""Steps 1 and 2 of ``prefix-rl prepare``: each raw row is checked and compared with the evaluation sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..rewards.functions import needed
from ..rewards.grading import gold_text
from . import duplicates
from .chunks import Chunks, as_line
from .columns import check_columns, further_columns, normalize, unread_columns
from .contamination import LONG, LONG_RUN, EvaluationIndex
from .difficulty import is_rate
from .funnel import Funnel
from .problems import is_unicode, row_faults
from .sources import read
from .texts import hash64, squeezed

if TYPE_CHECKING:
    from .prepare import Progress, Settings

_OURS = ("problem", "answer", "problem_id")  # columns of every row that a reward function always gets
_HEAD = 100  # number of first rows in which a column named by --column must occur


def read_all(chunks: Chunks, sources: Sequence[str], settings: Settings, index: EvaluationIndex, progress: Progress):
    """Reads the sources into chunks; returns the facts of each chunk."""
    counts = chunks.finished("read")
    skipped = sum(one["funnel"]["entered"].get("rows", 0) for one in counts)
    advance = progress("reading", settings.limit)
    advance(skipped)
    rows = islice(_rows(sources, settings), skipped, settings.limit)
    while not (counts and counts[-1]["last"]):
        counts.append(_read_chunk(chunks, len(counts), rows, settings, index, advance))
    return counts


def _rows(sources: Sequence[str], settings: Settings) -> Iterator[tuple[str, str, dict]]:
    """Triples ``(default id, place, row)`` of all sources; the default id is for a row without an id."""
    for source in sources:
        stem = Path(source).name.split(".")[0] + "/" if len(sources) > 1 else ""
        rows = read(source, settings.split)
        head = list(islice(rows, _HEAD))
        check_columns(settings.columns, source, [row for _, row in head])
        for number, (place, row) in enumerate(chain(head, rows)):
            yield f"{stem}{number}", place, row


def _read_chunk(chunks: Chunks, number: int, rows, settings: Settings, index: EvaluationIndex, advance) -> dict:
    funnel, lines, entries, offset = Funnel(), [], [], 0
    found, contaminated, last, unread, wanted = set(), {}, True, set(), needed(settings.reward)
    for default_id, place, raw in rows:
        advance(1)
        unread.update(unread_columns(raw, settings.columns))
        row = _checked(default_id, place, raw, settings, wanted, funnel)
        hit = index.find(row["problem"]) if row else None
        if hit:
            name, _, _ = index.problems[hit.problem]
            found.update(hit.whole)
            contaminated.setdefault(name, Counter()).update({"rows dropped": 1, LONG: hit.words >= LONG_RUN})
            reason = f"it shares {settings.ngram} words in a row, or all, with a problem of {name}"
            funnel.drop("contamination", reason, row, len(row["demonstrations"]), **index.shown(row["problem"], hit))
        elif row:
            lines.append(as_line(row))
            entries.append(_entry(row, offset))
            offset += len(lines[-1])
        if funnel.entered["rows"] == chunks.rows_at_once or offset > chunks.characters_at_once:
            last = False
            break
    facts = {
        "last": last,
        "rows": len(lines),
        "found": sorted(found),
        "contaminated": contaminated,
        "unread_columns": sorted(name for name in unread if is_unicode(name)),
        "funnel": funnel.counts(),
    }
    chunks.put("read", number, lines, funnel.listed, np.array(entries, duplicates.INDEX), facts)
    return facts


def _entry(row: dict, offset: int) -> tuple:
    """Entry of a row in the form of :data:`~prefix_rl.data.duplicates.INDEX`."""
    turns = row.get("turns", [])
    asked = row["problem"] if not turns else "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    hashes = (hash64(text) for text in (row["id"], squeezed(asked), squeezed(row["answer"])))
    return *hashes, offset, len(row["demonstrations"]), duplicates.bands(row["problem"], row["answer"])


def _without_system(row: dict) -> None:
    """Removes the system turn from a row; messages of one turn that are left become a plain text."""
    turns = [turn for turn in row.pop("turns", []) if turn["role"] != "system"]
    if len(turns) > 1:
        row["turns"] = turns


def _checked(
    default_id: str, place: str, raw: dict, settings: Settings, wanted: Sequence[str], funnel: Funnel
) -> dict | None:
    """Row in the form of a training row; None if it has faults, or lacks a column that the reward needs."""
    row, columns = normalize(raw, settings.columns), further_columns(raw, settings.columns)
    if row.get("id") is None or settings.renumber:
        row["id"] = default_id
    wrong = row.pop("faults", [])
    wrong += [fault for fault in row_faults(row, "answer" in wanted) if not wrong or "'problem'" not in fault]
    lacking = [name for name in wanted if name not in _OURS and columns.get(name) in (None, "")]
    wrong += [f"no column {name!r}, which the reward {settings.reward} needs" for name in lacking]
    if not settings.system_turns:
        _without_system(row)
    if "pass_rate" in row and not is_rate(row["pass_rate"]):
        wrong.append("pass_rate is no number in [0, 1]")
    count = len(row["demonstrations"])
    funnel.enter(count)
    if wrong:
        named = {"place": place, **({"id": row["id"]} if isinstance(row["id"], str) else {})}
        # without the list of our column names: the funnel entry has the source's own
        faults = [what.partition("; there are")[0] for what in wrong]
        funnel.drop("check", faults[0], named, count, faults=faults, columns=list(raw))
        return None
    answer = gold_text(row.get("answer"))
    row = {"place": place, **row, "id": str(row["id"]), "answer": answer, "problem": str(row["problem"])}
    if columns:
        row["columns"] = columns
    made = []
    for n, given in enumerate(row["demonstrations"]):
        demonstration = {"text": given} if isinstance(given, str) else dict(given)
        if unread := demonstration.pop("unread", None):
            funnel.drop_demonstration("check", f"it cannot be read: {unread}", row, n)
        elif demonstration.pop("complete", True) is False:
            funnel.drop_demonstration("check", "it is not complete", row, n)
        elif not demonstration["text"].strip():
            funnel.drop_demonstration("check", "it is empty", row, n)
        else:
            made.append(demonstration)
    return {**row, "demonstrations": made}
