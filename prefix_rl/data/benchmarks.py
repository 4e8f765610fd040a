"""Benchmarks for evaluation: the well-known ones, read from the hub or from local files, and files of your own."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError, at_most, nearest
from ..progress import say
from ..rewards.functions import gold_of
from ..rewards.grading import Outcome
from ..rewards.workers import Grader
from .columns import with_chat
from .problems import Problem, problem_of, row_faults
from .sources import SUFFIXES, fingerprint, read

FOLDER_VARIABLE = "PREFIX_RL_BENCHMARKS"


@dataclass(frozen=True)
class Benchmark:
    """A well-known benchmark: its data set on the hub, its size, the usual number of samples, its column names."""

    hub: str
    split: str
    problems: int  # number of problems
    samples: int = 1  # samples of each problem in papers
    config: str | None = None
    problem: str = "problem"  # name of the column on the hub; so are answer and id
    answer: str = "answer"
    id: str = "id"
    files: tuple[str, ...] = ()  # further names of local files, without the suffix


BENCHMARKS = {
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "train", 30, 32),
    "aime25": Benchmark("math-ai/aime25", "test", 30, 32),
    "amc23": Benchmark("math-ai/amc23", "test", 40, 32, problem="question"),
    "math500": Benchmark("HuggingFaceH4/MATH-500", "test", 500, id="unique_id"),
    "minerva": Benchmark("math-ai/minervamath", "test", 272, problem="question"),
    "olympiadbench": Benchmark("math-ai/olympiadbench", "test", 674, problem="question", answer="final_answer"),
    "gsm8k": Benchmark("openai/gsm8k", "test", 1319, config="main", problem="question", files=("gsm8k-test",)),
}
"""avg@32 for the competitions of 30 or 40 problems and one sample elsewhere, as LUFFY (arXiv 2504.14945) and
Prefix-RFT (arXiv 2507.01679) report them."""


@dataclass(frozen=True)
class Task:
    """The problems of one benchmark, and the number of samples to take of each."""

    name: str
    problems: Sequence[Problem]
    samples: int
    source: str
    file_sha256: str | None = None
    """SHA-256 of the local file; None for the hub."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the ids, problems and answers, in their order: everything that decides the score."""
        digest = hashlib.sha256()
        for p in self.problems:
            columns = [sorted(p.columns.items())] if p.columns else []
            digest.update(repr((p.id, p.text, p.answer, *columns)).encode())
        return digest.hexdigest()


def load(
    on: Sequence[str],
    *,
    folder: str | None = None,
    samples: int | None = None,
    limit: int | None = None,
    split: str = "test",
    answers: bool = True,
    columns: bool = False,
) -> list[Task]:
    """Tasks for the benchmarks, files and data sets in ``on``.

    Args:
        on: for each task a benchmark's name, ``name=FILE``, a file of problems, or a data set on the hub (owner/name).
        folder: the folder with local files of the benchmarks, ``name.jsonl``; None: $PREFIX_RL_BENCHMARKS.
        samples: number of samples of each problem; None: the usual number of the benchmark.
        limit: number of problems to take from the start of each benchmark; None: all.
        split: the split of a data set that is no known benchmark.
        answers, columns: as for :func:`prefix_rl.data.problems.load`.

    Raises:
        DataError: for an unknown name (with the nearest), a name given twice, a file that is not there, a row without
            a problem or an answer, two rows with one id, or a hub that cannot be reached.
    """
    folder = folder or os.environ.get(FOLDER_VARIABLE)
    if folder and not os.path.isdir(folder):
        raise DataError(f"there is no folder {folder} with files of benchmarks (--benchmarks or ${FOLDER_VARIABLE})")
    tasks, wrong = [], []
    for entry in on:
        try:
            name, source, benchmark = _find(entry.strip(), folder)
            rows = read(source, split) if source else _from_hub(name, benchmark)
            found = _problems(name, benchmark, rows, answers, columns)
        except DataError as error:
            wrong.append(error)
            continue
        if benchmark and len(found) != benchmark.problems:
            say(
                f"{name}: {len(found):,} problems in {source or benchmark.hub}; "
                f"the benchmark has {benchmark.problems:,}"
            )
        tasks.append(
            Task(
                name,
                found[:limit],
                samples or (benchmark.samples if benchmark else 1),
                source or f"{benchmark.hub} ({benchmark.split})",
                fingerprint(source) if source else None,
            )
        )
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise DataError(f"{len(wrong)} of {len(on)} benchmarks cannot be had:", [str(error) for error in wrong])
    twice = [name for name, n in Counter(task.name for task in tasks).items() if n > 1]
    if twice:
        raise DataError(f"two benchmarks are called {', '.join(twice)}; tell them apart with --on NAME=FILE")
    return tasks


def _find(entry: str, folder: str | None) -> tuple[str, str | None, Benchmark | None]:
    """Name, file or data set to read (None: the benchmark's own on the hub), and the benchmark if it is a known one."""
    name, given, source = (part.strip() for part in entry.partition("="))
    if given:
        if not re.fullmatch(r"[\w.-]+", name):
            raise DataError(f"--on {entry}: a benchmark's name is made of letters, digits, '.', '-' and '_'")
        return name, source, BENCHMARKS.get(name)
    if name in BENCHMARKS:
        return name, _in_folder(name, folder) if folder else None, BENCHMARKS[name]
    if os.path.isfile(entry) or entry.endswith(SUFFIXES) or "/" in entry:
        stem = Path(entry).name
        for suffix in SUFFIXES:
            stem = stem.removesuffix(suffix)
        return stem, entry, None
    raise DataError(
        f"{entry!r} is no benchmark{nearest(entry, BENCHMARKS)}; there are {', '.join(BENCHMARKS)}, or give a file: "
        f"--on FILE or --on NAME=FILE ({', '.join(SUFFIXES)} with the columns problem and answer)"
    )


def _in_folder(name: str, folder: str) -> str | None:
    """Path of a benchmark's local file; None if the folder has none, so that it is read from the hub."""
    candidates = [Path(folder, stem + suffix) for stem in (name, *BENCHMARKS[name].files) for suffix in SUFFIXES]
    return next((str(path) for path in candidates if os.path.isfile(path)), None)


def _from_hub(name: str, benchmark: Benchmark) -> Iterator[tuple[str, dict]]:
    import datasets

    try:
        rows = datasets.load_dataset(benchmark.hub, benchmark.config, split=benchmark.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{name} is {benchmark.hub} (split {benchmark.split}) on the hub, and the hub did not give it: "
            f"{str(error).strip().splitlines()[0]}\n  Without a network give a local file: --on {name}=FILE, or "
            f"--benchmarks FOLDER (or ${FOLDER_VARIABLE}) with {name}.jsonl in it; JSON Lines with the columns problem "
            "and answer. With one, look at HF_HUB_OFFLINE."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{benchmark.hub} ({benchmark.split}), row {number}", dict(row)


def _problems(
    name: str, benchmark: Benchmark | None, rows: Iterator[tuple[str, dict]], answers: bool, columns: bool
) -> list[Problem]:
    problems, places, wrong = [], {}, {}  # dicts: place of each id; places of each fault
    for number, (place, row) in enumerate(rows):
        if benchmark:
            row = _in_our_words(row, benchmark)
        row, unread = with_chat(row)
        faults = unread + row_faults(row, answers)
        given = str(number if row.get("id") is None else row["id"])
        if given in places:
            faults.append(f"the id {given!r} stands at {places[given]} too")
        places[given] = place
        for fault in faults:
            wrong.setdefault(fault, []).append(place)
        if not faults:
            problem = problem_of(row, number, place, columns)
            problems.append(replace(problem, demonstrations=_demonstrations(row)))
    if wrong:
        listed = [
            f"{at[0]}: {fault}{f', and {len(at) - 1} more rows' if at[1:] else ''}" for fault, at in wrong.items()
        ]
        raise DataError(
            f"{name} cannot be evaluated on: a row needs a problem and an answer, and an id of its own if it has one",
            at_most(listed),
        )
    return problems


def _in_our_words(row: dict, benchmark: Benchmark) -> dict:
    """A row of the hub with its columns renamed to those of a local file: ``problem``, ``answer``, ``id``."""
    for ours in ("problem", "answer", "id"):
        theirs = getattr(benchmark, ours)
        if ours not in row and theirs in row:
            row = {**row, ours: row[theirs]}
    answer = row.get("answer")
    if isinstance(answer, list):  # OlympiadBench: one text for each part
        row = {**row, "answer": ", ".join(str(part).strip().strip("$") for part in answer)}
    elif isinstance(answer, str) and "####" in answer:  # GSM8K: the answer ends the solution
        row = {**row, "solution": answer, "answer": answer.rpartition("####")[2].strip().replace(",", "")}
    if isinstance(row.get("solution"), list):
        row = {**row, "solution": "\n\n".join(map(str, row["solution"]))}
    return row


def _demonstrations(row: dict) -> tuple[dict, ...]:
    given = row.get("demonstrations") or ([row["solution"]] if row.get("solution") else [])
    made = ({"text": d} if isinstance(d, str) else d for d in given)
    return tuple(d for d in made if d["text"].strip())


def check_answers(tasks: Sequence[Task], grader: Grader) -> None:
    """Refuses tasks whose gold answers cannot be parsed.

    Raises:
        DataError: with the place and the answer of each such row.
    """
    for task in tasks:
        outcomes = grader.grade([("", gold_of(grader, p)) for p in task.problems])
        wrong = [
            f"{p.place}: {p.answer[:60]!r}" for p, outcome in zip(task.problems, outcomes, strict=True)
            if outcome in (Outcome.BAD_GOLD, Outcome.TIMEOUT, Outcome.CRASH)
        ]  # fmt: skip
        if wrong:
            raise DataError(
                f"{task.name} has answers that cannot be parsed, so that no completion could be right; mend or "
                "leave out these rows:",
                at_most(wrong),
            )
