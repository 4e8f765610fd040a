"""The trace store: completions that were sampled or imported, each with its outcome and its cost.

A store is a folder. ``store.json`` holds the facts about its origin; ``part-NNNNNN.parquet`` hold the traces, in order
(:class:`~prefix_rl.parts.Parts`). An interruption leaves whole parts only, and a finished part is never changed.

A demonstration from a store keeps the sampled token ids: its text is not tokenized again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import documents, parts
from ..costs import Cost
from ..errors import DataError, at_most
from ..rewards.grading import Outcome
from .trace_columns import CUT, UNGRADED, impossible, schema

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
"""Version of the files' layout."""
_FACTS, _LOCK, _ADDING, _PART = "store.json", ".lock", ".adding.lock", "part-{:06}.parquet"
_SHAPE = {
    "format": int, "tokenizer_sha256": str, "date": date | None, "model": str | None, "parameters": int | None,
    "settings": dict[str, Any] | None,
}  # fmt: skip
_SETTINGS = {"k": int, "max_pass_rate": float, "wanted": int, "cap": int}


@dataclass(frozen=True)
class Trace:
    """One completion of one problem, sampled or imported."""

    problem_id: str
    problem: str
    answer: str
    attempt: int  # number of the trace among those of its problem and source, from 0
    source: str  # name of the policy or model that sampled it, or of the imported file
    text: str
    completion_ids: list[int]  # with the id that ended it, if one did
    prompt_tokens: int  # 0 if imported: the prompt that another model saw is not known
    outcome: str  # an Outcome, or UNGRADED, or CUT
    truncated: bool  # True if it reached the length limit without an end token
    flops: float | None  # 2 N (prompt + completion tokens); None if not known
    imported: bool = False

    @property
    def reward(self) -> float | None:
        """Training reward: 1 for a right answer, else 0; None if the gold answer cannot be parsed or was not graded."""
        unknown = (Outcome.BAD_GOLD, UNGRADED, CUT)
        return None if self.outcome in unknown else float(self.outcome == Outcome.RIGHT)

    @property
    def usable(self) -> bool:
        """True if the trace can be a demonstration: right and not truncated."""
        return self.outcome == Outcome.RIGHT and not self.truncated

    @property
    def ended(self) -> bool:
        """True if the last id is one that ends a completion."""
        return not self.truncated and self.outcome != CUT

    def demonstration(self) -> dict[str, Any]:
        """Row for :class:`~prefix_rl.data.tokenizer.DemonstrationTable`; its ids lack the one that ended the trace."""
        if self.ended:
            return {"text": self.text, "ids": self.completion_ids[:-1]}
        return {"text": self.text, "ids": self.completion_ids, "ended": False}


class Tally(NamedTuple):
    """Numbers of attempts at one problem, of right ones and of usable ones."""

    attempts: int = 0
    right: int = 0
    usable: int = 0  # right and not truncated

    def plus(self, outcome: str, truncated: bool) -> Tally:
        """Tally with one more attempt.

        >>> Tally(attempts=2, right=1).plus("right", truncated=True)
        Tally(attempts=3, right=2, usable=0)
        """
        right = outcome == Outcome.RIGHT
        return Tally(self.attempts + 1, self.right + right, self.usable + (right and not truncated))


@dataclass(frozen=True)
class Account:
    """Numbers of traces, and their cost in tokens and floating-point operations."""

    traces: int = 0
    right: int = 0
    ungraded: int = 0
    truncated: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    flops: float = 0.0
    flops_unknown: int = 0
    """Number of traces with unknown operations, as of most imported ones; ``flops`` leaves them out."""


class TraceStore:
    """A folder of traces: :meth:`create` makes a new one, :meth:`open` opens an existing one.

    Several processes may read a store while one writes to it; a second writer is refused.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]):
        self.folder, self._facts = folder, dict(facts)
        self._lock, self._adding = parts.Lock(folder / _LOCK), parts.Lock(folder / _ADDING)
        self._writers = 0  # depth of nested writing() and joined() in this process
        self._parts = parts.Parts(folder, _PART, schema, checksums=True)

    @classmethod
    def create(cls, folder: Path | str, facts: Mapping[str, Any]) -> TraceStore:
        """Creates an empty store.

        Args:
            folder: must not hold a store yet; it is created if it does not exist.
            facts: the origin of the traces, in JSON types; must have ``tokenizer_sha256``.

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
        """Opens the store in a folder, and removes a part that was interrupted while it was written.

        Raises:
            DataError: if there is no such folder, it holds no trace store, or parts are missing.
        """
        folder = Path(folder)
        if not os.path.isdir(folder):
            raise DataError(f"there is no trace store {folder} (from {Path.cwd()}); `prefix-rl collect` makes one")
        try:
            facts = documents.read(folder / _FACTS, _SHAPE)
            if (settings := facts.get("settings")) and (wrong := documents.misfit(settings, _SETTINGS, "settings")):
                raise parts.Damaged(folder / _FACTS, wrong)
        except parts.Damaged as error:
            if not os.path.lexists(folder / _FACTS):
                raise DataError(
                    f"{folder} is not a trace store: it has no {_FACTS}; `prefix-rl collect` makes one"
                ) from error
            raise DataError(f"{error.path} is damaged: {error}; restore it, or collect anew elsewhere") from error
        if facts["format"] != FORMAT:
            raise DataError(
                f"{folder} is a trace store of format {facts['format']}, and this version reads format {FORMAT}; read "
                "it with the version that wrote it, or collect anew"
            )
        store = cls(folder, facts)
        store._refuse_gaps()
        if any(folder.glob(f"*{parts.PARTIAL}")):
            with suppress(DataError), store.writing():
                pass  # refused: it is another writer's part in the making, or the folder is read-only; leave it
        return store

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about the origin of the traces: those of :meth:`create` as changed by :meth:`update`."""
        return dict(self._facts)

    def update(self, facts: Mapping[str, Any]) -> None:
        """Adds or replaces facts.

        Raises:
            DataError: if they cannot be written; the old facts then stay.
        """
        merged = {**self._facts, **facts}
        with self.writing():
            self.write_json(_FACTS, merged)
        self._facts = merged

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file in the folder, as a whole.

        Raises:
            DataError: if it cannot be written.
        """
        with self._told(self.folder / name):
            parts.write_json(self.folder / name, content)

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a JSON Lines file in the folder, as a whole.

        Raises:
            DataError: if it cannot be written.
        """
        with self._told(self.folder / name):
            parts.write_text(self.folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    # --- writing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[TraceStore]:
        """Holds the lock against other writers, and removes parts that an earlier writer left unfinished.

        Raises:
            DataError: if another process is writing, or the folder is read-only.
        """
        if self._writers:  # nothing is removed: a joined process may be writing an unfinished part now
            yield self
            return
        try:
            with self._lock.held():
                self._parts.remove_leftovers()
                self._writers += 1
                try:
                    yield self
                finally:
                    self._writers -= 1
        except parts.Taken as who:
            raise DataError(f"another process is writing to {self.folder}{who}; wait for it, or stop it") from None

    @contextmanager
    def joined(self) -> Iterator[TraceStore]:
        """Lets this process append while another process of the same launch holds :meth:`writing`."""
        self._writers += 1
        try:
            yield self
        finally:
            self._writers -= 1

    def append(self, traces: Sequence[Trace]) -> None:
        """Appends traces as one part, which is on the disk when this returns.

        Raises:
            DataError: if the part cannot be written (a full disk); the store is then unchanged.
        """
        if not traces:
            return
        rows = [{**vars(t), "completion_tokens": len(t.completion_ids), "reward": t.reward} for t in traces]
        with self.writing(), self._told(self.folder / _ADDING), self._adding.held(lambda who: None):
            self._refuse_gaps()
            with self._told(self._parts.next_path()):  # numbers are unique, since the lock is held
                self._parts.append(rows)

    @contextmanager
    def _told(self, path: Path) -> Iterator[None]:
        """Turns an OSError at ``path`` into a DataError that says what is left and what to do."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{path} could not be written: {error.strerror or error}. What {self.folder} holds so far is "
                "untouched; make room (or give back the right to write), and the same command goes on from there"
            ) from error

    # --- reading ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self.batches(["attempt"]))

    def __iter__(self) -> Iterator[Trace]:
        """Traces in the order in which they were added; one batch at a time is in memory."""
        names = list(Trace.__dataclass_fields__)
        for batch in self.batches(names):
            yield from (Trace(**row) for row in batch.to_pylist())

    def usable(
        self, problem_ids: Sequence[str] | None = None, outcome: Outcome | None = Outcome.RIGHT
    ) -> Iterator[Trace]:
        """Traces of these problems with this outcome, without truncated ones. Other traces are filtered out in Arrow.

        Args:
            problem_ids: ids of the problems; None: all problems.
            outcome: the outcome; None: all traces of the problems, truncated ones included.
        """
        import pyarrow
        import pyarrow.compute

        wanted = None if problem_ids is None else pyarrow.array(problem_ids, pyarrow.string())
        for batch in self.batches(list(Trace.__dataclass_fields__)):
            compute = pyarrow.compute
            if wanted is not None:
                batch = batch.filter(compute.is_in(batch["problem_id"], value_set=wanted))
            if outcome is not None:
                ended = compute.invert(batch["truncated"])
                batch = batch.filter(compute.and_(compute.equal(batch["outcome"], str(outcome)), ended))
            yield from (Trace(**row) for row in batch.to_pylist())

    def outcomes(self) -> Iterator[dict[str, Any]]:
        """Rows of ``problem_id``, ``attempt``, ``outcome`` and ``truncated``, for all traces but imported ones."""
        for batch in self.batches(["problem_id", "attempt", "outcome", "truncated", "imported"]):
            yield from (row for row in batch.to_pylist() if not row["imported"])

    def attempts(self, first: int | None = None) -> dict[str, Tally]:
        """Tally of every problem. Imported traces do not count: they are not attempts of the policy.

        Args:
            first: number of first attempts to count at each problem; None: all.

        Raises:
            DataError: if a trace is there twice; as :meth:`batches`.
        """
        found: dict[str, Tally] = {}
        seen: dict[tuple[str, str | None], int] = {}  # a bit for each attempt
        for batch in self.batches(["problem_id", "attempt", "outcome", "truncated", "imported", "source"]):
            for row in batch.to_pylist():
                tally = found.get(row["problem_id"], Tally())
                of = row["problem_id"], row["source"] if row["imported"] else None
                if seen.get(of, 0) >> row["attempt"] & 1:
                    raise DataError(
                        f"{self.folder} holds attempt {row['attempt']} at problem {short(row['problem_id'])} twice: "
                        "one of its parts is there twice, or stems from another store; take it away"
                    )
                seen[of] = seen.get(of, 0) | 1 << row["attempt"]
                counts = not row["imported"] and (first is None or row["attempt"] < first)
                found[row["problem_id"]] = tally.plus(row["outcome"], row["truncated"]) if counts else tally
        return found

    def accounts(self) -> tuple[Account, dict[str, Account]]:
        """Account of the sampled traces, and one of the imported traces for each source, in the store's own tokens."""
        sampled, imported = Account(), {}
        columns = ["source", "prompt_tokens", "completion_tokens", "outcome", "truncated", "flops", "imported"]
        for batch in self.batches(columns):
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
        """Cost of all traces of the store, right or wrong.

        ``generated_tokens`` counts the sampled traces only. An imported trace adds the operations that its row states;
        most state none (see ``flops_unknown`` of :meth:`accounts`) and add nothing.
        """
        sampled, imported = self.accounts()
        flops = sampled.flops + sum(account.flops for account in imported.values())
        return Cost(generated_tokens=float(sampled.generated_tokens), flops=flops)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase | str) -> None:
        """Checks that the token ids of this store belong to a tokenizer.

        Args:
            tokenizer: the tokenizer, or its :func:`tokenizer_sha256`.

        Raises:
            DataError: if they belong to another tokenizer.
        """
        given = tokenizer if isinstance(tokenizer, str) else tokenizer_sha256(tokenizer)
        if given != self._facts["tokenizer_sha256"]:
            raise DataError(
                f"{self.folder} holds the ids of another tokenizer ({self._facts['tokenizer_sha256'][:12]}..., not "
                f"{given[:12]}...). Import its texts for this one: prefix-rl collect RECIPE --output NEW_FOLDER "
                f"--import {self.folder}"
            )

    def _refuse_gaps(self) -> None:
        if missing := self._parts.missing():
            raise DataError(
                f"parts of the trace store {self.folder} are missing. Bring them back; or delete those after the first "
                "missing one, and `prefix-rl collect` samples them again:",
                at_most(missing),
            )

    def batches(self, columns: Sequence[str]) -> Iterator[RecordBatch]:
        """Columns of all traces, in the order in which they were added; one batch at a time is in memory.

        Raises:
            DataError: if a part is missing or damaged, or does not belong to a trace store.
        """
        self._refuse_gaps()
        try:
            for path in self._parts.paths().values():
                for batch in self._parts.read(path, columns):
                    if wrong := impossible(batch):
                        raise parts.Damaged(path, wrong)
                    yield batch
        except parts.OtherColumns as error:
            raise DataError(f"{error.path} is not a part of a trace store: {error}; take it away") from error
        except parts.Damaged as error:
            raise DataError(
                f"{error.path} is damaged: {error}. Bring it back from a copy; or delete it and the parts "
                "after it, and `prefix-rl collect` samples them again"
            ) from error


def short(text: str) -> str:
    """The text in quotation marks, cut to 60 characters for an error message."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of a tokenizer, the same for tokenizers that give the same ids.

    Truncation and padding are left out: they are settings of the last call, not of the tokenizer. So are the roles of
    special tokens (which one is EOS): they do not change the ids of a text.
    """
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content["truncation"] = content["padding"] = None
    else:
        content = [sorted(tokenizer.get_vocab().items()), sorted(map(str, tokenizer.all_special_tokens))]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
