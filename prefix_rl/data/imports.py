"""Traces of other models: matched with the problems, tokenized, graded, and added to a trace store."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, at_most
from ..rewards.functions import gold_of
from ..rewards.workers import Grader
from .problems import Problem, is_unicode
from .sources import read
from .tokenizer import Turn, encode, turn_of
from .traces import UNGRADED, Trace, TraceStore, short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXT_COLUMNS = ("text", "completion", "solution")
_IMPORTED_AT_ONCE = 512  # traces of one part of an import


def import_traces(
    given: str | Path,
    store: TraceStore,
    tokenizer: PreTrainedTokenizerBase,
    grader: Grader | None,
    problems: Sequence[Problem],
    source: str | None = None,
    progress: Callable[[int], object] = lambda n: None,
    turn: Turn | None = None,
) -> dict[str, Any]:
    """Grades traces of other models and adds all of them, right or wrong, to a trace store.

    A row identifies its problem by ``problem_id``, or else by the text in ``problem``, and has the trace in ``text``,
    ``completion`` or ``solution``. It may have ``source``, ``truncated`` and ``flops`` (cost of the trace in
    floating-point operations). Rows of other problems are counted and left out. A trace that the store already has
    (same problem, source and text) is not added again, so an interrupted import can be repeated.

    Args:
        given: a file that :func:`~prefix_rl.data.sources.read` reads, or the folder of another trace store, also of
            another tokenizer.
        tokenizer: the tokenizer of the store; the texts of the traces are tokenized with it.
        grader: grades the traces; None: they stay ungraded.
        source: the name of the model; None: the row's ``source``, or else the file's name.
        progress: called with the number of rows just finished.
        turn: the text before a trace, and the id that ends a trace unless it is truncated; None: no text, and EOS.

    Returns:
        Numbers of rows: ``rows`` (read), ``added``, ``known`` (in the store already), ``other_problems`` (left out);
        and ``outcomes``, the number of added traces for each outcome.

    Raises:
        DataError: with every row that cannot be used, before anything is added; or if no row belongs to a problem.
    """
    store.check_tokenizer(tokenizer)
    turn = turn or turn_of([], tokenizer)
    if Path(given).resolve() == store.folder.resolve():
        raise DataError(f"{given} is the trace store itself; give the traces of another one")
    match, by_id = _Matcher(problems), {problem.id: problem for problem in problems}
    counts = _check_all(given, match)
    outcomes: Counter[str] = Counter()
    waiting: list[Trace] = []

    def add() -> None:
        samples = [(trace.text, gold_of(grader, by_id[trace.problem_id])) for trace in waiting]
        graded = grader.grade(samples) if grader else [UNGRADED] * len(samples)
        store.append([replace(t, outcome=str(outcome)) for t, outcome in zip(waiting, graded, strict=True)])
        outcomes.update(map(str, graded))
        waiting.clear()

    with store.writing():
        known, numbers = _imported_already(store)
        for _, row in _rows(given):
            progress(1)
            problem, _ = match(row)
            if problem is None:
                continue
            name = source or row.get("source") or Path(given).name
            if (key := _key(problem.id, name, _text_of(row))) in known:
                counts["known"] += 1
                continue
            known.add(key)
            waiting.append(_trace(row, problem, name, numbers[problem.id, name], tokenizer, turn))
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


def _check_all(given: str | Path, match: _Matcher) -> Counter[str]:
    """Numbers of all rows and of the rows of other problems. All rows are checked before the first one is added.

    Raises:
        DataError: with the rows that cannot be used; or if no row belongs to a problem.
    """
    counts, wrong = Counter(), []
    for place, row in _rows(given):
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
    return counts


def _trace(
    row: dict, problem: Problem, source: str, attempt: int, tokenizer: PreTrainedTokenizerBase, turn: Turn
) -> Trace:
    """Trace of a row, not graded yet."""
    text, truncated = _text_of(row), bool(row.get("truncated"))
    ids = _ids(text, tokenizer, turn)
    return Trace(
        problem_id=problem.id,
        problem=problem.text,
        answer=problem.answer,
        attempt=attempt,
        source=source,
        text=text,
        completion_ids=ids if truncated else [*ids, turn.end],
        prompt_tokens=0,
        outcome="",
        truncated=truncated,
        flops=None if row.get("flops") is None else float(row["flops"]),
        imported=True,
    )


class _Matcher:
    """Matches a row with its problem; returns the problem (None: no match) and the faults of the row."""

    def __init__(self, problems: Sequence[Problem]):
        self._by_id = {problem.id: problem for problem in problems}
        self._by_text = {problem.text: problem for problem in reversed(problems)}  # the first problem with a text wins

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
            wrong.append(f"problem {named.id} is {short(named.text)} in the data, here it is {short(text)}")
        return (None if wrong else named or self._by_text.get(str(text))), wrong


def _rows(given: str | Path) -> Iterator[tuple[str, dict]]:
    """Pairs ``(place, row)`` from a file or from another trace store."""
    if Path(given).is_dir():
        for number, trace in enumerate(TraceStore.open(given), start=1):
            if trace.text.strip():  # a trace of nothing but EOS cannot be imported
                yield f"{given}, trace {number}", vars(trace)
    else:
        yield from read(str(given))


def _text_of(row: dict) -> Any:
    return next((row[name] for name in _TEXT_COLUMNS if row.get(name) is not None), None)


def _ids(text: str, tokenizer: PreTrainedTokenizerBase, turn: Turn) -> list[int]:
    """Token ids of a trace, up to the first id that would end a completion (EOS, padding, a stop id)."""
    ids, _ = encode(text, tokenizer, turn.behind)
    stops = {tokenizer.eos_token_id, tokenizer.pad_token_id, *turn.stops}
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]


def _key(problem_id: str, source: str, text: str) -> tuple[str, str, bytes]:
    return problem_id, source, hashlib.sha256(text.encode()).digest()


def _imported_already(store: TraceStore) -> tuple[set[tuple[str, str, bytes]], Counter]:
    """Keys of the imported traces, and their number for each problem and source."""
    known, numbers = set(), Counter()
    for batch in store.batches(["problem_id", "source", "text", "imported"]):
        for row in batch.to_pylist():
            if row["imported"]:
                known.add(_key(row["problem_id"], row["source"], row["text"]))
                numbers[row["problem_id"], row["source"]] += 1
    return known, numbers
