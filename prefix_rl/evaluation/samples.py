"""Samples on disk: one Parquet file for each finished batch, read again after an interruption, graded again at will.

``FOLDER/samples/NAME/00000.parquet``, where NAME is the benchmark, or ``NAME@0.25`` for completions that start from a
quarter of a demonstration. ``FOLDER/samples/settings.json`` says what they were drawn with.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from .. import documents, parts
from ..engines.base import Counts
from ..errors import DataError
from ..parts import Damaged, Lock, Parts, Taken
from ..progress import say
from ..rewards.grading import VERSION
from ..rewards.workers import Grader
from .sampling import Job, Sample

SAMPLES, SETTINGS, ENGINE, CARD, CARD_TEXT, PROBLEMS = (
    "samples",
    "settings.json",
    "engine.json",
    "evaluation.json",
    "evaluation.md",
    "problems.jsonl",
)


def row_of(sample: Sample, problem: str, gold: str, prompt: str) -> dict[str, Any]:
    """The row of one sample. ``prompt`` is :func:`prompt_hash` of what it answers."""
    return {
        "problem": problem,
        "index": sample.index,
        "outcome": str(sample.outcome),
        "answer": sample.answer,
        "gold": gold,
        "found_by": sample.found_by,
        "grader": VERSION,
        "tokens": len(sample.completion_ids),
        "prefix_tokens": sample.prefix_tokens,
        "truncated": sample.truncated,
        "start": sample.start,
        "prompt": prompt,
        "text": sample.text,
    }


def _schema():
    import pyarrow as pa

    text, number = pa.string(), pa.int32()
    kinds = {"index": number, "tokens": number, "prefix_tokens": number, "start": number, "truncated": pa.bool_()}
    names = ("problem", "index", "outcome", "answer", "gold", "found_by", "grader", "tokens", "prefix_tokens",
             "truncated", "start", "prompt", "text")  # fmt: skip
    return pa.schema([pa.field(n, kinds.get(n, text), nullable=n in ("answer", "found_by")) for n in names])


def prompt_hash(job: Job) -> str:
    """Hash of the ids that a completion goes on from: a sample of another prompt is not taken for one of this."""
    return hashlib.sha256(repr((list(job.prompt_ids), list(job.prefix_ids))).encode()).hexdigest()[:16]


def parts_of(folder: Path) -> Parts:
    """The files of a benchmark's samples."""
    return Parts(folder, "{:05}.parquet", _schema, checksums=True)


def append(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds a file.

    Raises:
        DataError: if it cannot be written; the files before stay whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _write(parts_of(folder).next_path(), rows)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A lock on the folder: of several processes that sample into it, one at a time adds to it."""
    with Lock(folder / ".adding.lock").held(lambda who: None):
        yield


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    try:
        parts_of(path.parent).write(path, rows)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}; what was sampled before is whole, and the same "
            "command goes on from there"
        ) from error


def read(folder: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of all files.

    Raises:
        DataError: naming a file that cannot be read.
    """
    with _readable():
        for batch in parts_of(folder).batches(columns):
            yield from batch.to_pylist()


def check_complete(folder: Path, rows: Sequence[Mapping[str, Any]], problems: Sequence[str], count: int) -> None:
    """Sees that each problem has each of its ``count`` samples, once.

    Raises:
        DataError: naming what is missing, or there twice.
    """
    found = Counter((row["problem"], row["index"]) for row in rows)
    wanted = {(name, index) for name in problems for index in range(count)}
    twice = [key for key, number in found.items() if number > 1 or key not in wanted]
    if twice:
        (name, index), more = twice[0], f", and {len(twice) - 1} more" * (len(twice) > 1)
        raise DataError(
            f"{folder} holds sample {index} of problem {name} twice{more}: one of its files was copied, or stems from "
            "another evaluation; take it away"
        )
    if missing := sorted(wanted - found.keys()):
        name, index = missing[0]
        raise DataError(
            f"{folder} lacks {len(missing)} of {len(wanted)} samples, the first: sample {index} of problem {name}; "
            "the command that evaluated samples them again"
        )


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except Damaged as error:
        raise DataError(
            f"{error.path} is no readable file of samples ({error}); delete it, and it is sampled again"
        ) from error


def grade_again(
    folder: Path, golds: Mapping[str, str], grader: Grader, progress: Callable[[int], object], *, every: bool
) -> Counter[tuple[str, str]]:
    """Grades samples anew in place: all, or only those that another version graded or against another gold answer.

    Returns:
        How often each ``(outcome before, outcome now)`` occurred among the samples graded.
    """
    changes: Counter[tuple[str, str]] = Counter()
    store = parts_of(folder)
    for path in store.paths().values():
        with _readable():
            rows = store.rows(path)
        stale = [
            i for i, row in enumerate(rows)
            if row["problem"] in golds and (every or row["grader"] != VERSION or row["gold"] != golds[row["problem"]])
        ]  # fmt: skip
        verdicts = grader.judge(
            [(rows[i]["text"], golds[rows[i]["problem"]], rows[i]["start"]) for i in stale], progress
        )
        for i, verdict in zip(stale, verdicts, strict=True):
            changes[rows[i]["outcome"], str(verdict.outcome)] += 1
            rows[i] |= {
                "outcome": str(verdict.outcome),
                "answer": verdict.answer,
                "found_by": verdict.found_by,
                "gold": golds[rows[i]["problem"]],
                "grader": VERSION,
            }
        if stale:
            _write(path, rows)
    return changes


def count(folder: Path) -> int:
    """Number of samples in the files.

    Raises:
        DataError: naming a file that cannot be read.
    """
    with _readable():
        return parts_of(folder).count()


@contextmanager
def opened(folder: Path) -> Iterator[None]:
    """Holds the folder for one process.

    Raises:
        DataError: if another one has it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Lock(folder / ".evaluation.lock").held():
            yield
    except Taken as who:
        raise DataError(
            f"another process is evaluating into {folder}{who}; wait for it, or give another --output"
        ) from None
    except PermissionError as error:
        raise DataError(f"the folder {folder} cannot be written: {error.strerror}") from error


def note_engine(folder: Path, facts: Mapping[str, Any], counts: Counts) -> None:
    """Notes what generated samples of the folder, and adds what it did to what was done before."""
    with _alone(folder / SAMPLES):
        before = engine_of(folder)
        done = {name: (before.get(name) or 0) + number for name, number in asdict(counts).items()}
        parts.write_text(folder / SAMPLES / ENGINE, json.dumps({**facts, **done}, indent=2) + "\n")


def engine_of(folder: Path) -> dict[str, Any]:
    """Facts of the engine that generated the samples, and its numbers of tokens; empty if none has been sampled."""
    shape = {name: int | None for name in asdict(Counts())}
    return _document(folder / SAMPLES / ENGINE, shape, "delete it: the card will not say how they were sampled") or {}


def date_of(folder: Path) -> str | None:
    """The date that the prompts of the samples in the folder show, None if they show none or there are none."""
    return (_settings(folder) or {}).get("date")


def _settings(folder: Path) -> dict[str, Any] | None:
    remedy = f"bring it back, or move {folder / SAMPLES} away, and all is sampled anew"
    return _document(folder / SAMPLES / SETTINGS, {"date": date | None}, remedy)


def _document(path: Path, shape: documents.Shape, remedy: str) -> dict[str, Any] | None:
    """What a file beside the samples says, None if it is not there.

    Raises:
        DataError: if it is damaged.
    """
    if not os.path.lexists(path):
        return None
    try:
        return documents.read(path, shape)
    except Damaged as error:
        raise DataError(f"{path}, which belongs to the samples beside it, is damaged: {error}; {remedy}") from error


def continue_with(folder: Path, settings: Mapping[str, Any]) -> None:
    """Sees that the samples in the folder were drawn with these settings; others are set aside, with their card."""
    path = folder / SAMPLES / SETTINGS
    there = _settings(folder)
    if there is None and any((folder / SAMPLES).glob("*/*.parquet")):
        say(f"{folder} holds samples, and no {SETTINGS} says how they were drawn; they go to {_set_aside(folder)}")
    if there is not None and there != settings:
        changed = [
            f"{key}: {there.get(key)} then, {settings.get(key)} now"
            for key in sorted(there.keys() | settings.keys()) if there.get(key) != settings.get(key)
        ]  # fmt: skip
        say(f"{folder} holds samples of another evaluation; they go to {_set_aside(folder)}\n  " + "\n  ".join(changed))
        there = None
    if there is None:
        parts.write_text(path, json.dumps(settings, indent=2) + "\n")


def _set_aside(folder: Path) -> Path:
    number = 1
    while (place := folder / f"earlier-{number}").exists():
        number += 1
    place.mkdir()
    for name in (CARD, CARD_TEXT, PROBLEMS, SAMPLES):
        if (folder / name).exists():
            (folder / name).rename(place / name)
    return place
