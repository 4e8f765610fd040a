"""The trace store: completions that were sampled or imported, each with its outcome and its cost.

A store is a folder. ``store.json`` says how it came about; ``part-NNNNNN.parquet`` hold the traces, in order
(:class:`~prefix_rl.parts.Parts`). Whatever is cut off leaves whole parts only, and the parts before are never touched
again.

A demonstration taken from a store keeps the ids that were sampled: nothing is tokenized a second time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import parts
from ..costs import Cost
from ..errors import DataError, at_most
from ..rewards.grading import Outcome

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
"""Version of the files' layout."""
UNGRADED = "ungraded"
"""The outcome of a trace that nobody was to grade."""
CUT = "cut"
"""The outcome of a trace that was stopped on purpose, as the method learns no more of it. It is not graded either."""
_FACTS, _LOCK, _ADDING, _PART = "store.json", ".lock", ".adding.lock", "part-{:06}.parquet"


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
        self.folder, self._facts = folder, dict(facts)
        self._lock, self._adding = parts.Lock(folder / _LOCK), parts.Lock(folder / _ADDING)
        self._writers = 0  # how often this process is writing, within each other
        self._parts = parts.Parts(folder, _PART, _schema, checksums=True)

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
        if not os.path.isdir(folder):
            raise DataError(f"there is no trace store {folder} (from {Path.cwd()}); `prefix-rl collect` makes one")
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            known = facts["format"] == FORMAT and isinstance(facts["tokenizer_sha256"], str)
        except FileNotFoundError as error:
            raise DataError(
                f"{folder} is not a trace store: it has no {_FACTS}; `prefix-rl collect` makes one"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{folder / _FACTS} is damaged: {error}; restore it, or collect anew elsewhere") from error
        if not known:
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
        with self._told(self.folder / name):
            parts.write_json(self.folder / name, content)

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a JSONL file of the folder as a whole.

        Raises:
            DataError: if it cannot be written.
        """
        with self._told(self.folder / name):
            parts.write_text(self.folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    # --- writing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[TraceStore]:
        """Keeps other writers out, and removes what an earlier one left unfinished.

        Raises:
            DataError: if another process is writing, or the folder is read-only.
        """
        if self._writers:  # what is unfinished now may be a part that a process that joined is writing
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
        """Adds to what another process of the same launch is :meth:`writing`."""
        self._writers += 1
        try:
            yield self
        finally:
            self._writers -= 1

    def append(self, traces: Sequence[Trace]) -> None:
        """Adds traces as one part, which is on the disk when this returns.

        Raises:
            DataError: if it cannot be written (a full disk); the store is then as it was before.
        """
        if not traces:
            return
        rows = [{**vars(t), "completion_tokens": len(t.completion_ids), "reward": t.reward} for t in traces]
        with self.writing(), self._told(self.folder / _ADDING), self._adding.held(lambda who: None):
            self._refuse_gaps()
            with self._told(self._parts.next_path()):  # one number for each part, whoever adds it
                self._parts.append(rows)

    @contextmanager
    def _told(self, path: Path) -> Iterator[None]:
        """Says what stands and what to do if ``path`` cannot be written."""
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
        """The traces in the order in which they were added; a batch at a time is in memory."""
        names = list(Trace.__dataclass_fields__)
        for batch in self.batches(names):
            yield from (Trace(**row) for row in batch.to_pylist())

    def usable(
        self, problem_ids: Sequence[str] | None = None, outcome: Outcome | None = Outcome.RIGHT
    ) -> Iterator[Trace]:
        """The traces that can be demonstrations, of these problems: those of an ``outcome`` that ended by themselves.

        None: all there are. The others are not brought into memory.
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
        """``problem_id``, ``attempt``, ``outcome`` and ``truncated`` of all that was sampled here."""
        for batch in self.batches(["problem_id", "attempt", "outcome", "truncated", "imported"]):
            yield from (row for row in batch.to_pylist() if not row["imported"])

    def attempts(self, first: int | None = None) -> dict[str, Tally]:
        """The tally of every problem, over what was sampled here: imported traces are not attempts of the policy.

        Args:
            first: count only the first so many attempts at each problem.
        """
        found: dict[str, Tally] = {}
        for batch in self.batches(["problem_id", "attempt", "outcome", "truncated", "imported"]):
            for row in batch.to_pylist():
                tally = found.get(row["problem_id"], Tally())
                counts = not row["imported"] and (first is None or row["attempt"] < first)
                found[row["problem_id"]] = tally.plus(row["outcome"], row["truncated"]) if counts else tally
        return found

    def accounts(self) -> tuple[Account, dict[str, Account]]:
        """What was sampled here, and what was imported, by source. Tokens are counted by the store's tokenizer."""
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

    def _refuse_gaps(self) -> None:
        if missing := self._parts.missing():
            raise DataError(
                f"parts of the trace store {self.folder} are missing. Bring them back; or delete those after the first "
                "missing one, and `prefix-rl collect` samples them again:",
                at_most(missing),
            )

    def batches(self, columns: Sequence[str]) -> Iterator[RecordBatch]:
        """These columns of all traces, in the order in which they were added; a batch at a time is in memory.

        Raises:
            DataError: if a part is missing, damaged, or none of a trace store.
        """
        self._refuse_gaps()
        try:
            yield from self._parts.batches(columns)
        except parts.OtherColumns as error:
            raise DataError(
                f"{error.path} is not a part of a trace store: it has other columns; take it away"
            ) from error
        except parts.Damaged as error:
            raise DataError(
                f"{error.path} is damaged: {error}. Bring it back from a copy; or delete it and the parts "
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
