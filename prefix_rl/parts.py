"""Files that are whole or not there: write beside and rename, lock, append, read.

Four pieces, of which everything that this package leaves on a disk is made:

- :func:`whole` writes one file. It takes its name when it is complete and on the disk; until then, and if anything goes
  wrong, what stood under that name stands there still. :func:`write_text` and :func:`write_json` are the short forms.
- :func:`settle` does the same for a folder that was filled beside its place.
- :class:`Lock` keeps other processes out of a folder. It belongs to its process: when that ends in whatever way, the
  next one gets it. Who is refused is told who has it.
- :class:`Parts` are rows in numbered Parquet files of one folder. Rows are appended as one more part, whole or not at
  all; parts that stand there are not touched by that. Any number of readers may read beside one writer.

A process that is killed while it writes leaves at most ``NAME.partial`` behind; the next writer of NAME takes it over.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from pyarrow import DataType, RecordBatch, Schema

PARTIAL = ".partial"
"""Suffix of the name of a file that is being written."""


# --- one file, one folder ---------------------------------------------------------------------------------------------


@contextmanager
def whole(path: Path | str) -> Iterator[BinaryIO]:
    """A file to write bytes to. It stands under its name, complete and on the disk, when the ``with`` block ends.

    If the block raises, nothing has changed. Of several processes that write the same file at once one waits for the
    other, and the file of the last one stays. The folder is created if it is absent.

    Raises:
        OSError: if it cannot be written (a full disk, no right to write, a device or a folder of that name); what stood
            there before stands there still.
    """
    path = Path(path)
    _refuse_to_replace(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    file = _opened_alone(partial)
    try:
        yield file
        file.flush()
        os.fsync(file.fileno())  # before the rename, or a power cut could leave the name with nothing behind it
        partial.replace(path)
    except BaseException as error:  # also Ctrl-C: half a file is of no use
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # whoever tells of it does not know what was being written
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        with suppress(OSError):  # what is still buffered meets the same full disk
            file.close()
        raise
    file.close()
    _sync(path.parent)


def _refuse_to_replace(path: Path) -> None:
    """Sees that a file may take this name: who may write everywhere would lose a device, as /dev/null, to it."""
    where = os.path.abspath(path)
    outside = where.startswith(("/dev/", "/proc/", "/sys/")) and not where.startswith("/dev/shm/")
    if not path.name or os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not the name of a file", str(path))
    if outside or (os.path.exists(path) and not os.path.isfile(path)):
        raise FileExistsError(errno.EEXIST, "it is a device, a pipe or a socket, not the name of a file", str(path))


def _opened_alone(partial: Path) -> BinaryIO:
    """The file beside, empty, for this process alone: its lock goes when it is closed, or when the process dies."""
    while True:
        file = os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o666), "wb")  # "wb" alone would cut another's off
        with suppress(OSError):  # some network file systems know no locks; there the last one to write wins
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(file.fileno()), partial.stat()):
                file.truncate(0)  # of one that was killed
                return file
        except FileNotFoundError:
            pass  # another process has finished meanwhile and renamed it
        file.close()


def _sync(path: Path) -> None:
    """Brings a file's content, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path | str, text: str) -> None:
    """Writes a whole file of text.

    Raises:
        OSError: as :func:`whole`.
    """
    with whole(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path | str, content: Any, indent: int | None = 2) -> None:
    """Writes a whole file of JSON.

    Raises:
        OSError: as :func:`whole`.
    """
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def settle(partial: Path, path: Path) -> None:
    """Gives a file, or a folder, that was written on the same disk its name; what has the name already makes room.

    Raises:
        OSError: if it cannot be renamed; it then stands where it was written.
    """
    for made in (*partial.rglob("*"), partial) if partial.is_dir() else (partial,):
        _sync(made)
    if path.is_dir():
        shutil.rmtree(path)  # a folder takes the place of an empty one only
    partial.replace(path)
    _sync(path.parent)


_PLACES, _PLACE_BYTES = 16, 1 << 20


def places_of(path: Path) -> Iterator[bytes]:
    """The content of a file; of a large one 16 places of 1 MiB: to read 15 GB takes half a minute.

    Raises:
        OSError: if it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _PLACES * _PLACE_BYTES:
            yield file.read()
            return
        for place in range(_PLACES):
            file.seek((size - _PLACE_BYTES) * place // (_PLACES - 1))
            yield file.read(_PLACE_BYTES)


# --- lock -------------------------------------------------------------------------------------------------------------


class Taken(Exception):
    """Another process holds the lock. The message is :meth:`Lock.holder`, to follow "another process"."""


class Lock:
    """A lock for one process at a time. The same :class:`Lock` may be held several times within each other.

    The system keeps the lock and gives it back when the process ends, be it by ``kill -9``. Beside it, in
    ``<path>.by``, stands who has it.
    """

    def __init__(self, path: Path | str):
        from filelock import FileLock

        self.path = Path(path)
        self._lock = FileLock(self.path)
        self._by = self.path.with_name(self.path.name + ".by")

    @contextmanager
    def held(self, waiting: Callable[[str], object] | None = None) -> Iterator[None]:
        """Holds the lock within a ``with`` block.

        Args:
            waiting: called once with who has it, if another process does; then the lock is waited for. None: refused.

        Raises:
            Taken: if another process has it and it is not to be waited for.
            OSError: if the lock's file cannot be written.
        """
        from filelock import Timeout

        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            if waiting is None:
                raise Taken(self.holder()) from None
            waiting(self.holder())
            self._lock.acquire(timeout=-1)
        try:
            if self._lock.lock_counter == 1:
                self._sign()
            yield
        finally:
            if self._lock.lock_counter == 1:
                with suppress(OSError):
                    self._by.unlink(missing_ok=True)
            self._lock.release()

    def _sign(self) -> None:
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        who["command"] = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
        with suppress(OSError):  # a disk that is full for a note is full for what comes; that is told there
            self._by.write_text(json.dumps(who), encoding="utf-8")

    def holder(self) -> str:
        """The owner, to follow a word: `` (process 17 on node1 since 2026-11-25 21:00:00: prefix-rl collect ...)``.

        Empty if that is not known.
        """
        try:
            who = json.loads(self._by.read_text(encoding="utf-8"))
            return f" (process {who['pid']} on {who['host']} since {who['since']}: {who['command']})"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return ""


# --- parts ------------------------------------------------------------------------------------------------------------


class Damaged(Exception):
    """A file that is not what it should be. ``path`` is the file, the message what the reader says of it."""

    def __init__(self, path: Path, what: object):
        super().__init__(str(what).strip())
        self.path = path


def regular(path: Path) -> None:
    """Sees that a path is a file: to open a pipe would wait for ever, and a folder or a link to nothing is none.

    Raises:
        Damaged: saying what stands there.
    """
    if not os.path.isfile(path):
        kinds = {
            "a folder": os.path.isdir(path),
            "a pipe, a socket or a device": os.path.exists(path),
            "a link to nothing": path.is_symlink(),
            "not there": True,
        }
        raise Damaged(path, f"it is {next(kind for kind, is_so in kinds.items() if is_so)}")


class OtherColumns(Damaged):
    """A readable file whose columns are not those of the parts."""


def pyarrow_damage() -> tuple[type[Exception], ...]:
    """Errors that a changed byte can cause in pyarrow, or in the conversion of the values that it reads."""
    import pyarrow

    return pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError, LookupError, TypeError


def _refuse_other_columns(path: Path, found: Schema, wanted: Schema) -> None:
    """Sees that a file has columns of these names and types."""
    if found.names != wanted.names:
        raise OtherColumns(path, f"it has the columns {', '.join(found.names)}")
    for name in wanted.names:
        one, other = (_kind(schema.field(name).type) for schema in (found, wanted))
        if one != other:
            raise OtherColumns(path, f"its column {name} holds {one}, not {other}")


def _kind(type_: DataType) -> str:
    """A type in words; what the items of a list are called does not matter."""
    return f"lists of {type_.value_type}" if hasattr(type_, "value_type") else str(type_)


def _lacking(batch: RecordBatch, schema: Schema) -> str | None:
    """A column in which a value is missing that must be there, or one of a list's."""
    for name in batch.schema.names:
        column = batch[name]
        if column.null_count and not schema.field(name).nullable:
            return name
        if hasattr(column, "flatten") and hasattr(column.type, "value_type") and column.flatten().null_count:
            return name
    return None


@dataclass(frozen=True)
class Parts:
    """Rows in the numbered Parquet files of a folder."""

    folder: Path
    name: str
    """Name of a part, with a place for its number: ``"part-{:06}.parquet"``."""
    schema: Callable[[], Schema] | None = None
    """The columns; None: those of the rows."""
    checksums: bool = False
    """True: each page carries a checksum, by which a reader detects a flipped bit."""

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        before, digits, after = re.fullmatch(r"(.*)\{:0(\d+)d?\}(.*)", self.name).groups()
        return re.compile(rf"{re.escape(before)}([0-9]{{{digits},}}){re.escape(after)}")

    def paths(self) -> dict[int, Path]:
        """The parts that are there, by number, in order. Empty if there is no folder."""
        if not self.folder.is_dir():
            return {}
        numbers = {int(m[1]): p for p in self.folder.iterdir() if (m := self._pattern.fullmatch(p.name))}
        return dict(sorted(numbers.items()))

    def missing(self, most: int = 1000) -> list[str]:
        """The names of parts that are not there although one with a higher number is: the first ``most`` of them."""
        numbers = self.paths()
        gaps = (self.name.format(n) for n in range(max(numbers, default=-1) + 1) if n not in numbers)
        return list(islice(gaps, most))

    def next_path(self) -> Path:
        """The file of the part that :meth:`append` would add."""
        return self.folder / self.name.format(max(self.paths(), default=-1) + 1)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Adds the rows as one more part; its file. They are on the disk when this returns.

        One process at a time may append (see :class:`Lock`): two would give their parts the same number.

        Raises:
            OSError: if it cannot be written; the parts are then as they were before.
        """
        return self.write(self.next_path(), rows)

    def put(self, number: int, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Writes the rows as the part of this number, in the place of an earlier one; its file.

        Raises:
            OSError: as :meth:`append`.
        """
        return self.write(self.folder / self.name.format(number), rows)

    def write(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Writes the rows as the part in this file; the file.

        Raises:
            OSError: as :meth:`append`.
        """
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.Table.from_pylist(list(rows), schema=self.schema and self.schema())
        with whole(path) as file:
            pyarrow.parquet.write_table(table, file, compression="zstd", write_page_checksum=self.checksums)
        return path

    def read(self, path: Path, columns: Sequence[str] | None = None) -> Iterator[RecordBatch]:
        """The rows of one part, a batch at a time in memory.

        Raises:
            Damaged: if the file cannot be read.
            OtherColumns: if it can be, but is none of these parts.
        """
        import pyarrow
        import pyarrow.parquet

        regular(path)
        row = 0
        try:
            with pyarrow.parquet.ParquetFile(path, page_checksum_verification=self.checksums) as file:
                if self.schema:
                    _refuse_other_columns(path, file.schema_arrow, self.schema())
                for batch in file.iter_batches(columns=None if columns is None else list(columns)):
                    batch.validate(full=True)  # also that texts are UTF-8, which a reader would trip over later
                    if self.schema and (name := _lacking(batch, self.schema())):
                        raise Damaged(path, f"a value of {name} is missing in rows {row} to {row + batch.num_rows - 1}")
                    row += batch.num_rows
                    yield batch
        except pyarrow_damage() as error:
            raise Damaged(path, error) from error

    def rows(self, path: Path) -> list[dict[str, Any]]:
        """The rows of one part, all in memory.

        Raises:
            Damaged: as :meth:`read`.
        """
        return [row for batch in self.read(path) for row in batch.to_pylist()]

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[RecordBatch]:
        """The rows of all parts in order, a batch at a time in memory.

        Raises:
            Damaged: as :meth:`read`.
        """
        for path in self.paths().values():
            yield from self.read(path, columns)

    def count(self) -> int:
        """Number of rows in all parts, from their footers.

        Raises:
            Damaged: as :meth:`read`.
        """
        import pyarrow.parquet

        total = 0
        for path in self.paths().values():
            regular(path)
            try:
                total += pyarrow.parquet.read_metadata(path).num_rows
            except pyarrow_damage() as error:
                raise Damaged(path, error) from error
        return total

    def remove_leftovers(self) -> None:
        """Removes what a process that was killed left unfinished. Only who holds the folder's lock may do so."""
        for leftover in self.folder.glob(f"*{PARTIAL}"):
            leftover.unlink(missing_ok=True)
