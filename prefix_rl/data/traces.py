"""The trace store: completions that were sampled or imported, each with its outcome and its cost.

A store is a folder. ``store.json`` says how it came about; ``part-NNNNNN.parquet`` hold the traces, in order. A part is
written beside and renamed, so whatever is cut off leaves whole parts only. The parts before are never touched again.

A demonstration taken from a store keeps the ids that were sampled: nothing is tokenized a second time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ..costs import Cost
from ..errors import DataError, at_most
from ..methods.base import Method
from ..rewards.grading import Outcome
from ..rewards.workers import Grader
from .problems import Problem, is_unicode
from .sources import read
from .tokenizer import encode

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
"""Version of the files' layout."""
UNGRADED = "ungraded"
"""The outcome of a trace that nobody was to grade."""
CUT = "cut"
"""The outcome of a trace that was stopped on purpose, as the method learns no more of it. It is not graded either."""
_FACTS, _PARTIAL, _LOCK, _ADDING = "store.json", ".partial", ".lock", ".adding.lock"
_PART = re.compile(r"part-(\d{6,})\.parquet")
_TEXT_COLUMNS = ("text", "completion", "solution")
_IMPORTED_AT_ONCE = 512  # traces of one part of an import


@dataclass(frozen=True)
class Trace:
    """One completion of one problem."""

    problem_id: str
    problem: str
    answer: str
    attempt: int  # counts the traces of this problem and source from 0
    source: str  # the policy that sampled it, or where it was imported from
    text: str
    completion_ids: list[int]  # with the id that ended it, if one did
    prompt_tokens: int  # 0 if imported: the prompt that another model saw is not known
    outcome: str  # an Outcome, or UNGRADED, or CUT
    truncated: bool  # nothing ended it: it ran into the length limit of all completions
    flops: float | None  # 2 N (prompt + completion tokens); None if not known
    imported: bool = False

    @property
    def reward(self) -> float | None:
        """As the training reward: 1 for a right answer, None where the gold answer cannot be parsed or nobody graded,
        else 0."""
        unknown = (Outcome.BAD_GOLD, UNGRADED, CUT)
        return None if self.outcome in unknown else float(self.outcome == Outcome.RIGHT)

    @property
    def usable(self) -> bool:
        """Whether it can be a demonstration: right, and ended by itself."""
        return self.outcome == Outcome.RIGHT and not self.truncated

    @property
    def ended(self) -> bool:
        """Whether the last of its ids is one that ends a completion."""
        return not self.truncated and self.outcome != CUT

    def demonstration(self) -> dict[str, Any]:
        """What :class:`~prefix_rl.data.tokenizer.DemonstrationTable` reads: the ids without the one that ended them."""
        if self.ended:
            return {"text": self.text, "ids": self.completion_ids[:-1]}
        return {"text": self.text, "ids": self.completion_ids, "ended": False}


class Tally(NamedTuple):
    """What became of the attempts at one problem."""

    attempts: int = 0
    right: int = 0
    usable: int = 0  # right, and not cut off

    def plus(self, outcome: str, truncated: bool) -> Tally:
        """With one more attempt.

        >>> Tally(attempts=2, right=1).plus("right", truncated=True)
        Tally(attempts=3, right=2, usable=0)
        """
        right = outcome == Outcome.RIGHT
        return Tally(self.attempts + 1, self.right + right, self.usable + (right and not truncated))


@dataclass(frozen=True)
class Account:
    """Traces of one kind, and what they cost."""

    traces: int = 0
    right: int = 0
    ungraded: int = 0
    truncated: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    flops: float = 0.0
    flops_unknown: int = 0
    """Traces whose operations are not known, as of most imported ones; ``flops`` leaves them out."""


class TraceStore:
    """A folder of traces. Made by :meth:`create`, read by :meth:`open`.

    Several processes may read a store while one writes to it; a second writer is refused.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]):
        from filelock import FileLock

        self.folder, self._facts = folder, dict(facts)
        self._lock = FileLock(folder / _LOCK, timeout=0)
        self._adding = FileLock(folder / _ADDING)
        self._joined = False

    @classmethod
    def create(cls, folder: Path | str, facts: Mapping[str, Any]) -> TraceStore:
        """A new, empty store.

        Args:
            folder: must not hold a store yet; it is made if need be.
            facts: whatever says how the traces come about, JSON; ``tokenizer_sha256`` must be among it.

        Raises:
            DataError: if there is a store already, or the folder cannot be written.
        """
        folder = Path(folder)
        if "tokenizer_sha256" not in facts:
            raise ValueError("the facts of a trace store must hold tokenizer_sha256")
        if (folder / _FACTS).exists() or any(folder.glob("part-*")):
            raise DataError(f"{folder} holds a trace store already; open it, or give another folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"the folder {folder} cannot be made: {error.strerror or error}") from error
        store = cls(folder, {})
        store.update({"format": FORMAT, **facts})
        return store

    @classmethod
    def open(cls, folder: Path | str) -> TraceStore:
        """The store in a folder. A part that was cut off while it was written is removed.

        Raises:
            DataError: if there is no such folder, it holds no trace store, or parts are missing.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"there is no trace store {folder} (from {Path.cwd()}); `prefix-rl collect` makes one")
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            known = facts["format"] == FORMAT and isinstance(facts["tokenizer_sha256"], str)
        except FileNotFoundError as error:
            raise DataError(
                f"{folder} is not a trace store: it has no {_FACTS}; `prefix-rl collect` makes one"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / _FACTS} is damaged: {error}; restore it, or collect anew elsewhere") from error
        if not known:
            raise DataError(
                f"{folder} is a trace store of format {facts['format']}, and this version reads format {FORMAT}; read "
                "it with the version that wrote it, or collect anew"
            )
        store = cls(folder, facts)
        store._parts()
        if any(folder.glob(f"*{_PARTIAL}")):
            with (
                suppress(DataError),
                store.writing(),
            ):  # it is another writer's part in the making, or read-only: leave it
                pass
        return store

    @property
    def facts(self) -> dict[str, Any]:
        """How the traces came about: what :meth:`create` was given and :meth:`update` replaced."""
        return dict(self._facts)

    def update(self, facts: Mapping[str, Any]) -> None:
        """Adds or replaces facts.

        Raises:
            DataError: if they cannot be written; the old ones then stand.
        """
        merged = {**self._facts, **facts}
        with self.writing():
            self.write_json(_FACTS, merged)
        self._facts = merged

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file of the folder as a whole.

        Raises:
            DataError: if it cannot be written.
        """
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        self._write(self.folder / name, lambda file: file.write(text.encode()))

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a JSONL file of the folder as a whole.

        Raises:
            DataError: if it cannot be written.
        """
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._write(self.folder / name, lambda file: file.write(text.encode()))

    # --- writing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[TraceStore]:
        """Keeps other writers out, and removes what an earlier one left unfinished.

        Raises:
            DataError: if another process is writing, or the folder is read-only.
        """
        from filelock import Timeout

        if self._joined:
            yield self
            return
        try:
            self._lock.acquire()
        except Timeout as error:
            raise DataError(f"another process is writing to {self.folder}; wait for it, or stop it") from error
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written: {error.strerror or error}") from error
        try:
            if self._lock.lock_counter == 1:  # later, processes that joined may be writing
                for leftover in self.folder.glob(f"*{_PARTIAL}"):
                    leftover.unlink(missing_ok=True)
            yield self
        finally:
            self._lock.release()

    @contextmanager
    def joined(self) -> Iterator[TraceStore]:
        """Adds to what another process of the same launch is :meth:`writing`."""
        self._joined = True
        try:
            yield self
        finally:
            self._joined = False

    def append(self, traces: Sequence[Trace]) -> None:
        """Adds traces as one part, which is on the disk when this returns.

        Raises:
            DataError: if it cannot be written (a full disk); the store is then as it was before.
        """
        import pyarrow
        import pyarrow.parquet

        if not traces:
            return
        rows = [{**vars(t), "completion_tokens": len(t.completion_ids), "reward": t.reward} for t in traces]
        table = pyarrow.Table.from_pylist(rows, schema=_schema())
        with self.writing(), self._adding:  # one number for each part, whoever adds it
            self._write(
                self.folder / f"part-{len(self._parts()):06}.parquet",
                lambda file: pyarrow.parquet.write_table(table, file, compression="zstd", write_page_checksum=True),
            )

    def _write(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        """A file that appears when it is whole and on the disk."""
        partial = path.with_name(path.name + _PARTIAL)
        try:
            with partial.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            handle = os.open(path.parent, os.O_RDONLY)  # so that the new name is on the disk, too
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise DataError(
                f"{path} could not be written: {error.strerror or error}. What {self.folder} holds so far is "
                "untouched; make room (or give back the right to write), and the same command goes on from there"
            ) from error

    # --- reading ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self._batches(["attempt"]))

    def __iter__(self) -> Iterator[Trace]:
        """The traces in the order in which they were added; a batch at a time is in memory."""
        names = list(Trace.__dataclass_fields__)
        for batch in self._batches(names):
            yield from (Trace(**row) for row in batch.to_pylist())

    def usable(self, problem_ids: Sequence[str] | None = None, right: bool = True) -> Iterator[Trace]:
        """The traces that can be demonstrations, of these problems: the right ones that ended by themselves, or all.

        The others are not brought into memory.
        """
        import pyarrow
        import pyarrow.compute

        wanted = None if problem_ids is None else pyarrow.array(problem_ids, pyarrow.string())
        for batch in self._batches(list(Trace.__dataclass_fields__)):
            compute = pyarrow.compute
            if wanted is not None:
                batch = batch.filter(compute.is_in(batch["problem_id"], value_set=wanted))
            if right:
                ended = compute.invert(batch["truncated"])
                batch = batch.filter(compute.and_(compute.equal(batch["outcome"], str(Outcome.RIGHT)), ended))
            yield from (Trace(**row) for row in batch.to_pylist())

    def outcomes(self) -> Iterator[dict[str, Any]]:
        """``problem_id``, ``attempt``, ``outcome`` and ``truncated`` of all that was sampled here."""
        for batch in self._batches(["problem_id", "attempt", "outcome", "truncated", "imported"]):
            yield from (row for row in batch.to_pylist() if not row["imported"])

    def attempts(self, first: int | None = None) -> dict[str, Tally]:
        """The tally of every problem, over what was sampled here: imported traces are not attempts of the policy.

        Args:
            first: count only the first so many attempts at each problem.
        """
        found: dict[str, Tally] = {}
        for batch in self._batches(["problem_id", "attempt", "outcome", "truncated", "imported"]):
            for row in batch.to_pylist():
                tally = found.get(row["problem_id"], Tally())
                counts = not row["imported"] and (first is None or row["attempt"] < first)
                found[row["problem_id"]] = tally.plus(row["outcome"], row["truncated"]) if counts else tally
        return found

    def accounts(self) -> tuple[Account, dict[str, Account]]:
        """What was sampled here, and what was imported, by source. Tokens are counted by the store's tokenizer."""
        sampled, imported = Account(), {}
        columns = ["source", "prompt_tokens", "completion_tokens", "outcome", "truncated", "flops", "imported"]
        for batch in self._batches(columns):
            for row in batch.to_pylist():
                old = imported.get(row["source"], Account()) if row["imported"] else sampled
                new = Account(
                    traces=old.traces + 1,
                    right=old.right + (row["outcome"] == Outcome.RIGHT),
                    ungraded=old.ungraded + (row["outcome"] in (UNGRADED, CUT)),
                    truncated=old.truncated + row["truncated"],
                    prompt_tokens=old.prompt_tokens + row["prompt_tokens"],
                    generated_tokens=old.generated_tokens + row["completion_tokens"],
                    flops=old.flops + (row["flops"] or 0.0),
                    flops_unknown=old.flops_unknown + (row["flops"] is None),
                )
                if row["imported"]:
                    imported[row["source"]] = new
                else:
                    sampled = new
        return sampled, imported

    def cost(self) -> Cost:
        """What the store has cost: every trace, right or wrong.

        ``generated_tokens`` are those sampled here. Imported traces count with the operations that came with them; most
        come without (see ``flops_unknown`` of :meth:`accounts`) and count nothing.
        """
        sampled, imported = self.accounts()
        flops = sampled.flops + sum(account.flops for account in imported.values())
        return Cost(generated_tokens=float(sampled.generated_tokens), flops=flops)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase | str) -> None:
        """Checks that the ids of this store are those of a tokenizer (or of its :func:`tokenizer_sha256`).

        Raises:
            DataError: if they are not.
        """
        given = tokenizer if isinstance(tokenizer, str) else tokenizer_sha256(tokenizer)
        if given != self._facts["tokenizer_sha256"]:
            raise DataError(
                f"{self.folder} holds the ids of another tokenizer ({self._facts['tokenizer_sha256'][:12]}..., not "
                f"{given[:12]}...). Import its texts for this one: prefix-rl collect RECIPE --output NEW_FOLDER "
                f"--import {self.folder}"
            )

    def _parts(self) -> list[Path]:
        """The part files in order.

        Raises:
            DataError: if one is missing.
        """
        found = {int(m[1]): p for p in self.folder.iterdir() if (m := _PART.fullmatch(p.name))}
        missing = [f"part-{n:06}.parquet" for n in range(max(found, default=-1) + 1) if n not in found]
        if missing:
            raise DataError(
                f"parts of the trace store {self.folder} are missing. Bring them back; or delete those after the first "
                "missing one, and `prefix-rl collect` samples them again:",
                at_most(missing),
            )
        return [found[n] for n in sorted(found)]

    def _batches(self, columns: list[str]) -> Iterator[RecordBatch]:
        import pyarrow
        import pyarrow.parquet

        for part in self._parts():
            try:
                with pyarrow.parquet.ParquetFile(part, page_checksum_verification=True) as file:
                    if file.schema_arrow.names != _schema().names:
                        raise DataError(f"{part} is not a part of a trace store: it has other columns; take it away")
                    yield from file.iter_batches(columns=columns)
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(
                    f"{part} is damaged: {str(error).strip()}. Bring it back from a copy; or delete it and the parts "
                    "after it, and `prefix-rl collect` samples them again"
                ) from error


def _schema() -> Schema:
    """The columns of a part: the fields of a trace, and two that follow from them."""
    import pyarrow as pa

    def column(name: str, kind: Any, nullable: bool = False) -> pa.Field:
        return pa.field(name, kind, nullable=nullable)

    return pa.schema(
        [
            column("problem_id", pa.string()),
            column("problem", pa.string()),
            column("answer", pa.string()),
            column("attempt", pa.int32()),
            column("source", pa.string()),
            column("text", pa.string()),
            column("completion_ids", pa.list_(pa.int32())),
            column("prompt_tokens", pa.int32()),
            column("completion_tokens", pa.int32()),
            column("reward", pa.float64(), nullable=True),
            column("outcome", pa.string()),
            column("truncated", pa.bool_()),
            column("flops", pa.float64(), nullable=True),
            column("imported", pa.bool_()),
        ]
    )


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash that is the same for tokenizers that give the same ids.

    Truncation and padding are left out: they are settings of the last call, not of the tokenizer. So are the roles of
    special tokens (which one is EOS): they do not change the ids of a text.
    """
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content["truncation"] = content["padding"] = None
    else:
        content = [sorted(tokenizer.get_vocab().items()), sorted(map(str, tokenizer.all_special_tokens))]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# --- traces as demonstrations -----------------------------------------------------------------------------------------


def attach(
    problems: Sequence[Problem],
    store: TraceStore,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    *,
    method: Method | None = None,
    seed: int = 0,
) -> list[Problem]:
    """The problems, with the store's right traces in place of the demonstrations that they had.

    A trace becomes ``{"text": ..., "ids": ...}``, where the ids are those that were sampled, without the one that ended
    it. What was sampled here comes first, by attempt; then what was imported, in the order of the store. Truncated
    traces are left out. A problem without a right trace gets no demonstration.

    A method that needs no answers gets every trace, whatever came of it; one that nothing ended has ``"ended": False``.

    Args:
        tokenizer: the one, or the hash of the one, that the ids must belong to; None: not checked.
        method: what the traces are for; None: one that needs right and whole traces.
        seed: the recipe's, which the method's excerpts depend on.

    Raises:
        DataError: if the store belongs to another tokenizer, is empty or holds no right trace; if none of the problems
            is in it or has a right trace; if a problem has another text or answer there; if traces were cut shorter
            than the method wants them.
    """
    method = Method() if method is None else method
    if tokenizer is not None:
        store.check_tokenizer(tokenizer)
    tallies = store.attempts()
    if not tallies:
        raise DataError(f"the trace store {store.folder} is empty; `prefix-rl collect` fills it")
    known = [problem for problem in problems if problem.id in tallies]
    if not known:
        raise DataError(
            f"the trace store {store.folder} holds none of the {len(problems)} problems; it knows "
            f"{_some(tallies)}, the data has {_some([p.id for p in problems])}. Collect with the recipe's own data"
        )
    given: dict[str, Problem] = {problem.id: problem for problem in known}
    found: dict[str, list[Trace]] = {}
    differing: dict[str, str] = {}
    short: dict[str, str] = {}
    for trace in store.usable(list(given), right=method.needs_answers):
        for field in ("answer", "problem") if method.needs_answers else ("problem",):
            theirs = getattr(trace, field)
            ours = given[trace.problem_id].text if field == "problem" else given[trace.problem_id].answer
            if theirs != ours:
                told = f"the {field} is {_short(theirs)} in the store, {_short(ours)} in the data"
                differing[trace.problem_id] = f"{trace.problem_id}: {told}"
        wanted = method.excerpt(trace.problem_id, seed).tokens
        if trace.outcome == CUT and (wanted is None or wanted > len(trace.completion_ids)):
            told = f"cut after {len(trace.completion_ids)} tokens, wanted {'whole' if wanted is None else wanted}"
            short[trace.problem_id] = f"{trace.problem_id}: {told}"
        found.setdefault(trace.problem_id, []).append(trace)
    differing |= {p.id: f"{p.id}: the id stands for two problems" for p in known if p.text != given[p.id].text}
    if differing:
        raise DataError(
            f"problems of the data have other texts or answers in the trace store {store.folder}, so its traces are "
            "not theirs. Collect with the recipe's own data:",
            at_most(list(differing.values())),
        )
    if short:
        raise DataError(
            f"the trace store {store.folder} was collected for shorter lessons: the method's block or training.seed "
            "has changed since. Undo that, or collect into another folder:",
            at_most(list(short.values())),
        )
    if not found:
        what = "no right trace" if not any(store.usable()) else "no right trace of the data's problems"
        if store.accounts()[0].ungraded:
            what += "; its own were not graded, since it was collected for a method that needs no answers"
        raise DataError(
            f"the trace store {store.folder} holds {what} (a truncated one does not count). Collect more (--cap), or "
            "import the traces of a stronger model: prefix-rl collect RECIPE --output FOLDER --import FILE"
        )

    def demonstrations(problem: Problem) -> tuple[dict, ...]:
        traces = found.get(problem.id, [])
        own = sorted((t for t in traces if not t.imported), key=lambda t: t.attempt)
        return tuple(trace.demonstration() for trace in [*own, *(t for t in traces if t.imported)])

    return [replace(problem, demonstrations=demonstrations(problem)) for problem in problems]


def _some(ids) -> str:
    shown = [repr(i) for i in list(ids)[:3]]
    return ", ".join(shown) + (", ..." if len(ids) > 3 else "")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


# --- importing --------------------------------------------------------------------------------------------------------


def import_traces(
    given: str | Path,
    store: TraceStore,
    tokenizer: PreTrainedTokenizerBase,
    grader: Grader | None,
    problems: Sequence[Problem],
    source: str | None = None,
    progress: Callable[[int], object] = lambda n: None,
) -> dict[str, Any]:
    """Grades traces of other models and adds all of them, right or wrong; returns what was done with the rows.

    A row names its problem by ``problem_id``, or else by the text in ``problem``, and holds the trace in ``text``,
    ``completion`` or ``solution``. It may hold ``source``, ``truncated`` and ``flops`` (what it cost, in floating-point
    operations). Rows of other problems are counted and left out. What the store already has of the same problem, source
    and text is not added twice, so an import that was cut off goes on.

    Args:
        given: a file that :func:`~prefix_rl.data.sources.read` reads, or the folder of another trace store, be it of
            another tokenizer.
        grader: None: nobody is to grade them.
        tokenizer: that of the store. A trace is tokenized here, once; EOS ends it unless it is truncated.
        source: the name of the model; None: the row's ``source``, or else the file's name.
        progress: called with the number of rows just done.

    Returns:
        ``rows`` read, ``added``, ``known`` (not added twice), ``other_problems`` (left out), and ``outcomes`` of what
        was added.

    Raises:
        DataError: naming every row that cannot be used, before anything is added; or if no row belongs to a problem.
    """
    store.check_tokenizer(tokenizer)
    if Path(given).resolve() == store.folder.resolve():
        raise DataError(f"{given} is the trace store itself; give the traces of another one")
    match = _Matcher(problems)
    counts, wrong = Counter(), []
    for place, row in _rows(given):  # first all the rows are looked at, so that nothing is done by halves
        problem, what = match(row)
        counts["rows"] += 1
        counts["other_problems"] += problem is None and not what
        wrong += [f"{place}: {w}" for w in what]
    if wrong:
        raise DataError(f"{given} holds rows that cannot be imported; nothing was added:", at_most(wrong))
    if counts["other_problems"] == counts["rows"]:
        raise DataError(
            f"none of the {counts['rows']} rows of {given} belongs to a problem of the data; nothing was added. A row "
            "is matched by problem_id, or by the very text of problem"
        )
    known, numbers = _imported_already(store)
    outcomes: Counter[str] = Counter()
    waiting: list[Trace] = []

    def add() -> None:
        samples = [(trace.text, trace.answer) for trace in waiting]
        graded = grader.grade(samples) if grader else [UNGRADED] * len(samples)
        store.append([replace(t, outcome=str(outcome)) for t, outcome in zip(waiting, graded, strict=True)])
        outcomes.update(map(str, graded))
        waiting.clear()

    with store.writing():
        for _, row in _rows(given):
            progress(1)
            problem, _ = match(row)
            if problem is None:
                continue
            text = _text_of(row)
            name = source or row.get("source") or Path(given).name
            if (key := _key(problem.id, name, text)) in known:
                counts["known"] += 1
                continue
            known.add(key)
            ids, truncated = _ids(text, tokenizer), bool(row.get("truncated"))
            waiting.append(
                Trace(
                    problem_id=problem.id,
                    problem=problem.text,
                    answer=problem.answer,
                    attempt=numbers[problem.id, name],
                    source=name,
                    text=text,
                    completion_ids=ids if truncated else [*ids, tokenizer.eos_token_id],
                    prompt_tokens=0,
                    outcome="",
                    truncated=truncated,
                    flops=None if row.get("flops") is None else float(row["flops"]),
                    imported=True,
                )
            )
            numbers[problem.id, name] += 1
            if len(waiting) == _IMPORTED_AT_ONCE:
                add()
        add()
    return {
        "rows": counts["rows"],
        "added": outcomes.total(),
        "known": counts["known"],
        "other_problems": counts["other_problems"],
        "outcomes": dict(sorted(outcomes.items())),
    }


class _Matcher:
    """Finds the problem of a row, and what is wrong with the row."""

    def __init__(self, problems: Sequence[Problem]):
        self._by_id = {problem.id: problem for problem in problems}
        self._by_text = {problem.text: problem for problem in reversed(problems)}  # of equal ones the first

    def __call__(self, row: dict) -> tuple[Problem | None, list[str]]:
        wrong = []
        trace, text = _text_of(row), row.get("problem")
        if not isinstance(trace, str) or not trace.strip():
            wrong.append(f"no trace in {', '.join(_TEXT_COLUMNS)}; there are {', '.join(map(repr, row)) or 'none'}")
        elif not is_unicode(trace):
            wrong.append("the trace is broken Unicode (half of a surrogate pair)")
        if row.get("problem_id") is None and not isinstance(text, str):
            wrong.append("neither problem_id nor the text of problem names its problem")
        flops = row.get("flops")
        if flops is not None and (isinstance(flops, bool) or not isinstance(flops, int | float) or not flops >= 0):
            wrong.append(f"flops = {flops!r}, not a number of operations")
        for column, kind in (("truncated", bool), ("source", str)):
            if row.get(column) is not None and not isinstance(row[column], kind):
                wrong.append(f"{column} = {row[column]!r}, not a {'text' if kind is str else 'truth value'}")
        named = self._by_id.get(str(row.get("problem_id")))
        if named and isinstance(text, str) and text != named.text:
            wrong.append(f"problem {named.id} is {_short(named.text)} in the data, here it is {_short(text)}")
        return (None if wrong else named or self._by_text.get(str(text))), wrong


def _rows(given: str | Path) -> Iterator[tuple[str, dict]]:
    """``(place, row)`` of a file or of another trace store."""
    if Path(given).is_dir():
        for number, trace in enumerate(TraceStore.open(given), start=1):
            if trace.text.strip():  # nothing but an EOS: nothing to import
                yield f"{given}, trace {number}", vars(trace)
    else:
        yield from read(str(given))


def _text_of(row: dict) -> Any:
    return next((row[name] for name in _TEXT_COLUMNS if row.get(name) is not None), None)


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a trace up to where EOS or padding would end it."""
    ids, _ = encode(text, tokenizer)
    stops = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]


def _key(problem_id: str, source: str, text: str) -> tuple[str, str, bytes]:
    return problem_id, source, hashlib.sha256(text.encode()).digest()


def _imported_already(store: TraceStore) -> tuple[set[tuple[str, str, bytes]], Counter]:
    """The keys of the imported traces, and how many there are of each problem and source."""
    known, numbers = set(), Counter()
    for batch in store._batches(["problem_id", "source", "text", "imported"]):
        for row in batch.to_pylist():
            if row["imported"]:
                known.add(_key(row["problem_id"], row["source"], row["text"]))
                numbers[row["problem_id"], row["source"]] += 1
    return known, numbers
