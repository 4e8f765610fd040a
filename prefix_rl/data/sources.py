"""Reading of rows from JSON Lines (also gzipped), Parquet and the hub; a broken line is an error, never skipped.

Every row comes with its place (``file:line``), so that later error messages can tell the user which row is meant.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, at_most, nearest, unavailable
from ..parts import pyarrow_damage

if TYPE_CHECKING:
    from pyarrow import DataType, Field, Schema

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
LONGEST_LINE = 64 * 2**20
"""Number of bytes of the longest line that is read: a longer one is a broken export or a gzip bomb."""
ENOUGH_FAULTS = 1000
"""Number of faults behind which a file is not read on: it is another file than was meant."""
_BLANK_LINES = 100_000  # in a row
_BATCH = 256  # number of Parquet rows in memory at a time


def read(source: str, split: str = "train") -> Iterator[tuple[str, dict]]:
    """Pairs ``(place, row)`` for every row of a local file, or of a data set on the hub.

    Memory holds one row, or one batch of Parquet rows, at a time.

    Args:
        source: path of a file, ``owner/name`` or ``owner/name:configuration``.
        split: the split of a data set on the hub.

    Raises:
        DataError: if the source does not exist or is of no known kind; after the last line, with all faulty lines, if
            any line is not a JSON object in UTF-8.
    """
    path = Path(source)
    if os.path.isfile(source):  # os.path says False to a name that is too long; Path.is_file raises
        if not source.endswith(SUFFIXES):
            raise DataError(f"cannot read {source}: the file must end in {', '.join(SUFFIXES)}")
        yield from _read_parquet(path) if path.suffix == ".parquet" else _read_json_lines(path)
    elif source.count("/") == 1 and not source.startswith(("/", ".")) and not source.endswith(SUFFIXES):
        yield from _read_hub(source, split)
    else:
        near = nearest(path.name, (p.name for p in path.parent.iterdir())) if os.path.isdir(path.parent) else ""
        raise DataError(
            f"there is no file {source} (from {Path.cwd()}){near}; give a path to a {', '.join(SUFFIXES)} file, "
            "or the owner/name of a data set on the hub"
        )


def fingerprint(source: str) -> str | None:
    """SHA-256 of a local file; None for a data set on the hub."""
    path = Path(source)
    if not os.path.isfile(path):
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    faults, rows, blank = [], 0, 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
                if len(line) > LONGEST_LINE:
                    faults.append(f"{path}:{number}: more than {LONGEST_LINE:,} bytes; what is behind was not read")
                    break
                blank = 0 if line.strip() else blank + 1
                if blank > _BLANK_LINES or len(faults) >= ENOUGH_FAULTS:
                    what = f"more than {_BLANK_LINES:,} blank lines" if blank else f"{len(faults):,} faults before it"
                    faults.insert(0, f"{path}:{number}: {what}; what is behind was not read")
                    break
                if blank:
                    continue
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")  # -sig: byte order mark
                    row = json.loads(text, object_pairs_hook=_object)
                except UnicodeDecodeError as error:
                    faults.append(f"{path}:{number}: not UTF-8 at byte {error.start} of the line")
                    continue
                except json.JSONDecodeError as error:
                    faults.append(f"{path}:{number}: not JSON at character {error.pos}: {error.msg}")
                    continue
                except RecursionError:
                    faults.append(f"{path}:{number}: JSON nested too deeply")
                    continue
                except ValueError as error:  # an integer with more digits than Python converts
                    faults.append(f"{path}:{number}: not JSON that can be read: {str(error).partition(';')[0]}")
                    continue
                if not isinstance(row, dict):
                    faults.append(f"{path}:{number}: a JSON {type(row).__name__}, not an object")
                    continue
                rows += 1
                yield f"{path}:{number}", row
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            faults.append(f"{path}: broken gzip file after {rows} rows ({error})")
    if faults:
        raise DataError(f"{path} cannot be used; nothing was done with it:", at_most(faults))
    if not rows:
        raise DataError(f"{path} holds no rows")


def _object(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object in which no key stands twice: Python would take the last one without a word."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return made


def _read_parquet(path: Path) -> Iterator[tuple[str, dict]]:
    import pyarrow.parquet

    damage = pyarrow_damage()
    try:
        file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20)  # without it a whole column chunk is read at once
    except damage as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    if not file.metadata.num_rows:
        raise DataError(f"{path} holds no rows")
    names = file.schema_arrow.names
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise DataError(f"{path} has two columns of the name {twice[0]!r}; nothing says which one is meant")
    number, batches = 0, file.iter_batches(batch_size=_BATCH)
    while True:
        try:
            batch = next(batches, None)
            rows = None if batch is None else list(as_written(batch.to_pylist(), batch.schema))
        except damage as error:
            raise DataError(f"{path} is damaged after row {number}: {error}; get it anew") from error
        if rows is None:
            return
        for row in rows:
            number += 1
            yield f"{path}, row {number}", row


def as_written(rows: Iterable[dict], schema: Schema | Sequence[Field]) -> Iterator[dict]:
    """Rows of Arrow, with each number as it was written: 0.1 of a column of 32 bits is 0.1, not 0.10000000149011612,
    and a decimal number is an integer or a float, or its text where a float has too few digits for it.
    """
    rounded = {field.name: field.type for field in schema if _is_rounded(field.type)}
    for row in rows:
        yield row | {name: _number(row[name], kind) for name, kind in rounded.items()} if rounded else row


def _inner(kind: DataType) -> dict[str, DataType]:
    """The types inside of a type, by their names: those of an object, of a list's items, of repeated values."""
    if hasattr(kind, "value_type"):
        return {"": kind.value_type}
    return {field.name: field.type for field in map(kind.field, range(kind.num_fields))}


def _is_rounded(kind: DataType) -> bool:
    return str(kind).startswith(("float", "halffloat", "decimal")) or any(map(_is_rounded, _inner(kind).values()))


def _number(value: Any, kind: DataType) -> Any:
    inner = _inner(kind)
    if isinstance(value, dict):
        return {name: _number(one, inner[name]) for name, one in value.items()}
    if isinstance(value, list):
        return [one if isinstance(one, tuple) else _number(one, inner[""]) for one in value]  # tuples are a map's
    if "" in inner:
        return _number(value, inner[""])
    if isinstance(value, float) and str(kind) != "double":
        return float(str((np.float16 if str(kind) == "halffloat" else np.float32)(value)))
    if isinstance(value, Decimal):
        whole, near = value == value.to_integral_value(), float(value)
        return int(value) if whole else near if Decimal(repr(near)) == value else format(value, "f").rstrip("0")
    return value


def _read_hub(name: str, split: str) -> Iterator[tuple[str, dict]]:
    import datasets

    try:
        rows = datasets.load_dataset(*name.split(":", 1), split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise unavailable(
            f"{name} is no local file, and the hub did not give split {split!r} of a data set of that name (without a "
            "network, give the path of a local file; with one, look at the name and at HF_HUB_OFFLINE)", error
        ) from error  # fmt: skip
    schema = rows.features.arrow_schema if getattr(rows, "features", None) else ()
    for number, row in enumerate(as_written(map(dict, rows), schema), start=1):
        yield f"{name} ({split}), row {number}", row
