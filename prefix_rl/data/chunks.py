"""Unfinished work on disk: a folder of chunks, from which an interrupted command continues.

A chunk is four files: rows, list of dropped rows, numpy array and facts. The facts are written last, and a chunk counts
as finished once they exist. Each file appears as a whole (:mod:`~prefix_rl.parts`). The folder belongs to one plan
(sources with their hashes, settings, versions); a command with another plan empties it first.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import documents, parts
from ..errors import DataError

_PLAN, _LOCK = "plan.json", ".lock"


class Chunks:
    """The chunks of an unfinished output. Use :func:`working` to open them."""

    rows_at_once, characters_at_once = 1000, 8_000_000
    """Numbers of rows and of characters at which a chunk is full."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.line = lru_cache(64)(self._line)

    def finished(self, stage: str) -> list[dict]:
        """Facts of the finished chunks of a stage, in order."""
        found = []
        while (path := self._path(stage, len(found), "json")).exists():
            found.append(documents.read(path, dict[str, Any]))
        return found

    def put(self, stage: str, number: int, lines: Sequence[bytes], dropped: Sequence[dict], array, facts: dict) -> None:
        """Writes a finished chunk to the disk."""
        self._write(stage, number, "jsonl", lambda file: file.writelines(lines))
        self._write(stage, number, "dropped", lambda file: file.writelines(map(as_line, dropped)))
        self._write(stage, number, "npy", lambda file: np.save(file, array))
        # last, since its existence says that the chunk is finished
        self._write(stage, number, "json", lambda file: file.write(json.dumps(facts).encode()))

    def lines(self, stage: str, number: int, offset: int = 0) -> Iterator[bytes]:
        """Rows of a chunk as lines of JSON, starting at a byte offset."""
        with self._path(stage, number, "jsonl").open("rb") as file:
            file.seek(offset)
            yield from file

    def dropped(self, stage: str, number: int) -> bytes:
        """List of what was dropped while the chunk was written, as JSON Lines."""
        return self._path(stage, number, "dropped").read_bytes()

    def array(self, stage: str, number: int) -> np.ndarray:
        """Numpy array of a chunk."""
        return np.load(self._path(stage, number, "npy"))

    def _line(self, stage: str, number: int, offset: int) -> dict:
        """Row of a chunk that starts at a byte offset."""
        with self._path(stage, number, "jsonl").open("rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def _path(self, stage: str, number: int, kind: str) -> Path:
        return self.folder / f"{stage}-{number:06}.{kind}"

    def _write(self, stage: str, number: int, kind: str, write) -> None:
        with parts.whole(self._path(stage, number, kind)) as file:
            write(file)


def as_line(row: dict) -> bytes:
    """A row as a line of a JSON Lines file."""
    text = json.dumps(row, ensure_ascii=False, default=str) + "\n"  # default: for values that JSON lacks, like dates
    # half a surrogate pair, which UTF-8 cannot hold, becomes the escape that JSON has for it
    return text.encode("utf-8", "backslashreplace")


@contextmanager
def working(output: Path, plan: dict) -> Iterator[Chunks]:
    """Opens the chunks of ``output`` in the folder ``<output>.partial``: those that a run with the same plan left.

    The folder is removed when the work is finished, and when the data turn out to be unusable. It stays after every
    other end (a kill, Ctrl-C, a full disk), and the next run continues from it.

    Raises:
        DataError: if another process works on the same output, or the folder cannot be written.
    """
    # the plan goes through JSON because it is compared with one read from a file (tuples become lists)
    folder, plan = output.with_name(output.name + ".partial"), json.loads(json.dumps(plan))
    with ExitStack() as lock:
        try:
            if folder.is_file():
                folder.unlink()
            folder.mkdir(parents=True, exist_ok=True)
            lock.enter_context(parts.Lock(folder / _LOCK).held())
            _belong_to(folder, plan)
        except parts.Taken as who:
            raise DataError(f"another process is making {output}{who}; wait for it, or stop it") from None
        except parts.Damaged:
            shutil.rmtree(folder)
            raise DataError(f"{folder} was damaged and has been removed; run the same command again") from None
        except OSError as error:
            raise DataError(f"{folder} cannot be written: {error.strerror or error}") from error
        try:
            yield Chunks(folder)
        except DataError:
            shutil.rmtree(folder, ignore_errors=True)  # it may have been taken away, or be another's now
            raise
        except parts.Damaged as error:
            told = f"{error.path} is damaged: {error}. Remove {folder}, and the command begins anew"
            raise DataError(told) from error
        except OSError as error:
            raise DataError(
                f"{error.filename or folder}: {error.strerror or error}. "
                + (
                    f"What is done so far stands in {folder}; make room, or give back the right to read and write, and "
                    "the same command goes on"
                    if folder.is_dir() and error.errno not in (errno.ENOENT, errno.ENOTDIR)
                    else f"{folder} was taken away while the command worked in it; the same command begins anew"
                )
            ) from error
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _belong_to(folder: Path, plan: dict) -> None:
    """Removes from the folder the files that a run with another plan left."""
    path = folder / _PLAN
    if os.path.lexists(path) and documents.read(path, dict[str, Any]) == plan:
        return
    for old in folder.iterdir():
        if not old.name.startswith(_LOCK):
            old.unlink()
    parts.write_text(path, json.dumps(plan))
