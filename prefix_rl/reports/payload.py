"""The data of the page, as JSON in compressed chunks: one for each run's curves and for each saved generation.

The page opens a chunk when it is looked at. The first chunk, the index, is enough to draw tables and controls.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..parts import Damaged, pyarrow_damage, regular
from ..status import State
from .rollouts import CONTINUATION, KEPT, PREFIX
from .runs import Run, flat

if TYPE_CHECKING:
    from pyarrow import Array

KINDS = (PREFIX, KEPT, CONTINUATION)
CUT = len(KINDS)
"""The kind of a segment that says how many characters were left out."""
_COLUMNS = ("row", "prompt", "answer", "prefix_tokens", "demonstration_tokens", "completion_ids", "segments", "reward",
            "rewards", "outcome", "advantage", "found", "token_ends", "advantages", "entropies")  # fmt: skip
_OF_SUMMARY = ("row", "prompt", "answer", "prefix_tokens", "completion_ids", "reward", "outcome")


def packed(value: Any) -> bytes:
    """JSON, deflated; the browser's ``DecompressionStream("deflate")`` opens it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return zlib.compress(text.encode("utf-8", errors="replace"), 6)


def finite(value: float | None, digits: int = 6) -> float | None:
    """The number rounded to ``digits`` significant digits; None where JSON has no word for it.

    >>> finite(0.123456789), finite(float("nan")), finite(3.0)
    (0.123457, None, 3)
    """
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


# --- curves -----------------------------------------------------------------------------------------------------------


def curves_of(run: Run) -> dict[str, Any]:
    """``{"step": [...], "minutes": [...], "flops": [...], "metrics": {name: {"at": [...], "values": [...]}}}``.

    ``at`` are places in ``step``; a value that is not finite is None.
    """
    minutes = [m for _, m in run.minutes]
    flops, last = [], None
    for line in run.metrics:
        last = line.get("cost/flops", last)
        flops.append(finite(last) if isinstance(last, int | float) else None)
    metrics: dict[str, dict[str, list]] = {}
    for place, line in enumerate(run.metrics):
        for key, value in line.items():
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                held = metrics.setdefault(key, {"at": [], "values": []})
                held["at"].append(place)
                held["values"].append(finite(float(value)))
    steps = [line["step"] for line in run.metrics]
    return {"step": steps, "minutes": [finite(m) for m in minutes], "flops": flops, "metrics": metrics}


# --- rollouts ---------------------------------------------------------------------------------------------------------


def generations(folder: Path) -> list[tuple[int, Path]]:
    """``(step, file)`` of the saved generations, in order."""
    found = []
    for path in (folder / "rollouts").glob("step_*.parquet"):
        number = path.stem.removeprefix("step_")
        if number.isdecimal():
            found.append((int(number), path))
    return sorted(found)


def read_generation(path: Path, texts: bool = True) -> list[dict[str, Any]] | None:
    """The records of a saved generation, with ``tokens`` in the place of the ids; None if the file cannot be read.

    Args:
        path: the file.
        texts: False: without completions, as much as :func:`summary_of` reads.
    """
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    try:
        regular(path)
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        there = set(file.schema_arrow.names)
        table = file.read(columns=[name for name in (_COLUMNS if texts else _OF_SUMMARY) if name in there])
        table.validate(full=True)
    except (Damaged, *pyarrow_damage()):
        return None
    if not all(_is_ours(name, table[name].combine_chunks()) for name in table.column_names):
        return None
    if "completion_ids" in there and not pyarrow.types.is_null(table.schema.field("completion_ids").type):
        tokens = pyarrow.compute.list_value_length(table["completion_ids"])
        table = table.drop_columns(["completion_ids"]).append_column("tokens", tokens)
    return table.to_pylist()


def _is_ours(name: str, column: Array) -> bool:
    """True if a column of a saved generation holds what was written there."""
    from pyarrow import types

    kind = column.type
    if types.is_null(kind):
        return True
    if name in ("completion_ids", "token_ends"):
        return types.is_list(kind) and types.is_integer(kind.value_type) and not column.flatten().null_count
    if name in ("advantages", "entropies"):  # null where a token has none
        return types.is_list(kind) and (types.is_floating(kind.value_type) or types.is_null(kind.value_type))
    if name == "segments":
        pieces = column.flatten() if types.is_list(kind) and types.is_struct(kind.value_type) else None
        return pieces is not None and _is_pieces(pieces)
    if name == "rewards":
        return types.is_struct(kind) and all(types.is_floating(f.type) or types.is_null(f.type) for f in kind)
    if name in ("row", "prefix_tokens", "demonstration_tokens"):
        return types.is_integer(kind)
    if name in ("reward", "advantage"):
        return types.is_floating(kind)
    return types.is_string(kind)


def _is_pieces(column: Array) -> bool:
    from pyarrow import types

    texts = {field.name: types.is_string(field.type) for field in column.type}
    return all(texts.get(name) and not column.field(name).null_count for name in ("kind", "text"))


def problem_key(record: Mapping[str, Any]) -> str:
    """A short hash of problem and answer: the same problem in another run has the same."""
    return hashlib.sha1(f"{record.get('prompt')}\0{record.get('answer')}".encode(errors="replace")).hexdigest()[:12]


def prompt_text(prompt: str | None) -> str:
    """The prompt for reading; messages one below the other.

    >>> prompt_text('[{"role": "user", "content": "1 + 1?"}]')
    'user: 1 + 1?'
    """
    try:
        held = json.loads(prompt or '""')
    except ValueError:
        return str(prompt)
    if isinstance(held, list) and all(isinstance(m, dict) for m in held):
        return "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in held)
    return held if isinstance(held, str) else json.dumps(held, ensure_ascii=False)


def groups_of(records: Sequence[Mapping[str, Any]], size: int | None = None) -> list[list[Mapping[str, Any]]]:
    """The records of each group, in the order in which they were saved.

    Args:
        records: of a generation.
        size: of a group, where it is known: two groups may answer the same problem. None: rows of one problem are one.

    >>> [len(group) for group in groups_of([{"row": 1}, {"row": 1}, {"row": 1}, {"row": 1}], 2)]
    [2, 2]
    """
    if size and len(records) % size == 0:
        groups = [list(records[start : start + size]) for start in range(0, len(records), size)]
        if all(record.get("row") == group[0].get("row") for group in groups for record in group):
            return groups
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault((record.get("row"), record.get("prompt")), []).append(record)
    return list(found.values())


def summary_of(groups: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list]:
    """Values that filters ask for, of each rollout of a generation, in the order of its chunk: the index holds them."""
    ordered = [record for group in groups for record in group]
    return {
        "problems": [problem_key(group[0]) for group in groups],
        "sizes": [len(group) for group in groups],
        "outcomes": [r.get("outcome") for r in ordered],
        "rewards": [finite(r.get("reward"), 4) for r in ordered],
        "prefixes": [r.get("prefix_tokens") or 0 for r in ordered],
        "tokens": [r.get("tokens") for r in ordered],
    }


def chunk_of(groups: Sequence[Sequence[Mapping[str, Any]]], limit: int | None = None) -> list[dict[str, Any]]:
    """The groups of a generation for the page.

    Args:
        groups: as :func:`groups_of` gives them.
        limit: characters of one completion; what is longer loses its middle. None: nothing is cut.
    """
    return [
        {
            "prompt": prompt_text(group[0].get("prompt")),
            "answer": group[0].get("answer"),
            "key": problem_key(group[0]),
            "rollouts": [_rollout(record, limit) for record in group],
        }
        for group in groups
    ]


def _rollout(record: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    whole = [(KINDS.index(s["kind"]), s["text"]) for s in record.get("segments") or () if s["kind"] in KINDS]
    kept = cut(whole, limit)
    found = {
        "segments": [part for segment in kept for part in segment],
        "reward": finite(record.get("reward"), 4),
        **({"rewards": {n: finite(v, 4) for n, v in record["rewards"].items()}} if record.get("rewards") else {}),
        "outcome": record.get("outcome"),
        "advantage": finite(record.get("advantage"), 4),
        "found": record.get("found"),
        "prefix": record.get("prefix_tokens") or 0,
        "of": record.get("demonstration_tokens") or 0,
        "tokens": record.get("tokens"),
    }
    if kept is whole and record.get("token_ends"):
        ends = record["token_ends"]
        found["widths"] = [end - before for end, before in zip(ends, [0, *ends], strict=False)]
        for name in ("advantages", "entropies"):
            if len(record.get(name) or ()) == len(ends):
                found[name] = [finite(v, 3) for v in record[name]]
    return found


def cut(segments: list[tuple[int, str]], limit: int | None) -> list[tuple[int, str]]:
    """The segments with at most ``limit`` characters: two thirds from the beginning, one from the end.

    >>> cut([(0, "abc"), (2, "defghijkl")], 6)
    [(0, 'abc'), (2, 'd'), (3, '6'), (2, 'kl')]
    """
    total = sum(len(text) for _, text in segments)
    if limit is None or total <= limit:
        return segments
    head = limit - limit // 3
    tail_from = total - limit // 3
    before, after, at = [], [], 0
    for kind, text in segments:
        if first := text[: max(head - at, 0)]:
            before.append((kind, first))
        if last := text[max(tail_from - at, 0) :]:
            after.append((kind, last))
        at += len(text)
    return [*before, (CUT, str(total - limit)), *after]


# --- the index --------------------------------------------------------------------------------------------------------


def run_facts(run: Run, state: State) -> dict[str, Any]:
    """Facts of a run in the index, without its generations."""
    return {
        "name": run.name,
        "folder": str(run.folder),
        "state": {"name": state.name, "says": state.says, "progress": state.progress},
        "method": run.method,
        "step": run.step,
        "health": [asdict(finding) for finding in run.findings()],
        "recipe": flat(run.recipe),
        "notes": run.notes,
    }
