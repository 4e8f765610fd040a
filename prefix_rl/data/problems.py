"""Problems for training and evaluation, and the checks of the rows that they are read from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import DataError, at_most
from ..prefixes import AnswerGuard, uniform
from ..rewards.functions import gold_of
from ..rewards.grading import Outcome, gold_text
from ..rewards.workers import Grader
from .columns import with_chat
from .sources import ENOUGH_FAULTS, read
from .turns import chat, is_chat, turn_faults

MAX_CHARACTERS = 1_000_000
"""Largest number of characters in a field: a longer one is a broken export, and would cost memory on every rank."""

_LONGEST_ID = 1000
_INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\0"  # no blanks to Python, and nothing to a reader


@dataclass(frozen=True)
class Problem:
    """One problem with its gold answer and its demonstrations."""

    id: str
    text: str
    answer: str
    demonstrations: tuple[dict, ...] = ()  # {"text": ..., and other keys that DemonstrationTable reads}
    place: str = ""  # file and line, or row, that it was read from
    turns: tuple[dict, ...] = ()  # messages; empty if the problem is one turn of the user
    source: str = ""  # name of the file, where several are mixed
    repeats: int = 1  # number of occurrences in an epoch
    columns: Mapping[str, Any] = field(default_factory=dict)  # other columns of its row, for reward functions

    def as_row(self) -> dict:
        """Row of a training file."""
        return {
            "id": self.id,
            "problem": list(self.turns) or self.text,
            "answer": self.answer,
            "demonstrations": list(self.demonstrations),
        }


def load(
    source: str, split: str = "train", limit: int | None = None, answers: bool = True, columns: bool = False
) -> list[Problem]:
    """Problems of a training or evaluation file.

    A row has ``problem`` (a text or messages), ``answer`` and optionally ``demonstrations`` (texts, or objects with a
    ``text``) or one ``solution``. Instead it may have chat messages, or TRL's ``prompt`` and ``completion``
    (:func:`~prefix_rl.data.columns.with_chat`).

    Args:
        limit: number of rows to read; None: all.
        answers: False if the answer may be missing, null or empty.
        columns: True to keep the other columns of each row, for reward functions.

    Raises:
        DataError: with every row that has another form, or the id of an earlier row.
    """
    problems, faults, places = [], [], {}
    for number, (place, row) in enumerate(read(source, split)):
        if (limit is not None and number >= limit) or len(faults) >= ENOUGH_FAULTS:
            break
        row, wrong = with_chat(row)
        wrong = wrong + row_faults(row, answers)
        faults += [f"{place}: {what}" for what in wrong]
        if not wrong:
            problem = problem_of(row, number, place, columns)
            if problem.id in places:
                there = f"{place}: the id {problem.id!r} stands at {places[problem.id]} already"
                faults.append(f"{there}; `prefix-rl prepare --renumber` gives new ones")
            places.setdefault(problem.id, place)
            problems.append(problem)
    if faults:
        hint = "`prefix-rl prepare` turns raw rows into training rows and drops what cannot be used, with its reason."
        if len(faults) >= ENOUGH_FAULTS:
            hint += f" Behind the first {len(faults):,} faults no row was read."
        raise DataError(f"{source} holds rows that cannot be used; nothing was trained. {hint}", at_most(faults))
    return problems


def row_faults(row: dict, answers: bool = True) -> list[str]:
    """Faults of a row; empty if it can be used. With ``answers`` False the answer may be missing."""
    wrong = []
    for column in ("problem", "answer") if answers or row.get("answer") not in (None, "") else ("problem",):
        value = row.get(column)
        if column not in row:
            wrong.append(f"no column {column!r}; there are {', '.join(map(repr, row)) or 'none'}")
        elif column == "problem" and is_chat(value):
            wrong += [f"problem: {what}" for what in turn_faults(value)]
        elif isinstance(value, bool) or not isinstance(value, str | int | float):
            wrong.append(f"{column} is {'null' if value is None else 'a ' + type(value).__name__}, not a text")
        elif isinstance(value, float) and not math.isfinite(value):
            wrong.append(f"{column} is {value}, not a text")
        elif not str(value).strip().strip(_INVISIBLE).strip():
            wrong.append(f"{column} is empty")
        elif len(str(value)) > MAX_CHARACTERS:
            wrong.append(f"{column} has {len(str(value)):,} characters, more than {MAX_CHARACTERS:,}")
        elif not is_unicode(str(value)):
            wrong.append(f"{column} is broken Unicode (half of a surrogate pair)")
    demonstrations = _demonstrations(row)
    if demonstrations is None:
        wrong.append("demonstrations must be a list of texts, or of objects with a text")
    elif any(len(d["text"]) > MAX_CHARACTERS for d in demonstrations):
        wrong.append(f"a demonstration has more than {MAX_CHARACTERS:,} characters")
    elif not all(is_unicode(d["text"]) for d in demonstrations):
        wrong.append("a demonstration is broken Unicode (half of a surrogate pair)")
    else:
        wrong += [f"demonstration {n}: {what}" for n, d in enumerate(demonstrations, 1) for what in _beside_the_text(d)]
    if row.get("id") is not None and (isinstance(row["id"], bool) or not isinstance(row["id"], str | int)):
        wrong.append(f"id is a {type(row['id']).__name__}, not a text or an integer")
    elif not is_unicode(str(row.get("id"))):
        wrong.append("id is broken Unicode (half of a surrogate pair)")
    elif len(str(row.get("id"))) > _LONGEST_ID:
        wrong.append(f"id has more than {_LONGEST_ID:,} characters")
    return wrong


def refuse_ids_beyond(known: int, problems: Sequence[Problem], policy: str) -> None:
    """Refuses demonstrations with token ids that are not in the vocabulary of the policy.

    Args:
        known: number of ids in the vocabulary.
        policy: name of the policy, for the message.

    Raises:
        DataError: with the rows that have such ids.
    """
    beyond = [
        f"{problem.place or problem.id}: the id {highest}"
        for problem in problems for d in problem.demonstrations if (highest := max(d.get("ids") or (0,))) >= known
    ]  # fmt: skip
    if beyond:
        raise DataError(
            f"the tokenizer of {policy} has {known} ids, and demonstrations hold others: they are another tokenizer's. "
            "Take `ids` out, and the texts are tokenized:",
            at_most(beyond),
        )


def is_unicode(text: str) -> bool:
    """True if a text can be encoded as UTF-8: it holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _demonstrations(row: dict) -> tuple[dict, ...] | None:
    given = row.get("demonstrations")
    if given is None:
        given = [row["solution"]] if row.get("solution") is not None else []
    if not isinstance(given, list):
        return None
    made = [{"text": d} if isinstance(d, str) else d for d in given]
    if not all(isinstance(d, dict) and isinstance(d.get("text"), str) for d in made):
        return None
    return tuple(made)


_OFFSET = "must be an offset in its text, a whole number of at least 0"


def _beside_the_text(demonstration: dict) -> list[str]:
    """Faults of the token ids and offsets that a demonstration has besides its text."""
    wrong, ids, offsets = [], demonstration.get("ids"), demonstration.get("readable")
    if ids is not None and not (isinstance(ids, list) and all(_whole(i, 2**31 - 1) for i in ids)):
        wrong.append("ids must be a list of token ids, whole numbers from 0 to 2147483647")
    elif ids is not None and len(ids) > MAX_CHARACTERS:
        wrong.append(f"ids holds {len(ids):,} tokens, more than {MAX_CHARACTERS:,}")
    if not _whole(demonstration.get("readable_from"), 2**31 - 1, null=True):
        wrong.append(f"readable_from {_OFFSET}")
    if offsets is not None and not (
        isinstance(offsets, dict) and all(_whole(o, 2**31 - 1, null=True) for o in offsets.values())
    ):
        wrong.append(f"readable must be an object with an offset for each guard; each {_OFFSET}")
    if not isinstance(demonstration.get("ended", True), bool):
        wrong.append("ended must be true or false")
    return wrong


def _whole(value: object, most: int, null: bool = False) -> bool:
    return (null and value is None) or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most)


_OWN = {"id", "problem", "answer", "demonstrations", "solution", "prompt", "completion", "completion_ids", "messages"}


def further(row: dict) -> dict[str, Any]:
    """Columns of a row that only reward functions use."""
    return {name: value for name, value in row.items() if name not in _OWN}


def problem_of(row: dict, number: int, place: str, columns: bool = False) -> Problem:
    """Problem of a row that :func:`row_faults` has no fault of.

    Args:
        number: the id of the problem if the row has none.
        columns: True to keep the other columns of the row.
    """
    asked = chat(row["problem"]) if is_chat(row["problem"]) else None
    return Problem(
        id=str(number if row.get("id") is None else row["id"]),
        text=asked.text if asked else str(row["problem"]),
        answer=gold_text(row.get("answer")).strip(),
        demonstrations=tuple(d for d in _demonstrations(row) if d["text"].strip()),
        place=place,
        turns=() if asked is None or asked.plain else asked.asked,
        columns=further(row) if columns else {},
    )


def graded(
    problems: Sequence[Problem], grader: Grader, progress: Callable[[int], object] | None = None
) -> list[list[Outcome]]:
    """Outcomes of the demonstrations under the training reward, one list for each problem.

    A problem without demonstrations has one outcome, that of an empty text, which shows a gold answer that cannot be
    parsed (``bad_gold``).
    """
    samples = [(d["text"], gold_of(grader, p)) for p in problems for d in p.demonstrations or ({"text": ""},)]
    outcomes = iter(grader.grade(samples, progress))
    return [[next(outcomes) for _ in p.demonstrations or (None,)] for p in problems]


def verify(
    problems: Sequence[Problem],
    grader: Grader,
    progress: Callable[[int], object] | None = None,
    wanted: Outcome = Outcome.RIGHT,
) -> tuple[list[Problem], list[Problem], Counter]:
    """Grades every demonstration with the training reward.

    Returns:
        The problems, each with its demonstrations of the ``wanted`` outcome only; the problems whose gold answer cannot
        be parsed (they are not in the first list); and the number of demonstrations for each outcome.
    """
    kept, bad_gold, counts = [], [], Counter()
    for problem, outcomes in zip(problems, graded(problems, grader, progress), strict=True):
        if set(outcomes) == {Outcome.BAD_GOLD}:
            bad_gold.append(problem)
            continue
        fit = tuple(d for d, o in zip(problem.demonstrations, outcomes, strict=False) if o is wanted)
        counts.update(outcomes[: len(problem.demonstrations)])
        kept.append(replace(problem, demonstrations=fit))
    return kept, bad_gold, counts


def guarded(
    problems: Sequence[Problem],
    guard: AnswerGuard,
    grader: Grader,
    progress: Callable[[int], object] | None = None,
    trusted: bool = True,
) -> list[Problem]:
    """Problems whose demonstrations have the offsets at which their answer shows (:mod:`prefix_rl.rewards.guard`).

    Offsets that the data give as ``readable_from`` are always kept; those in ``readable`` only if ``trusted``. All
    others are computed.
    """

    def known(demonstration: dict) -> bool:
        told = trusted and (demonstration.get("readable") or {}).get(guard) is not None
        return guard == "none" or told or demonstration.get("readable_from") is not None

    samples = [(d["text"], p.answer, p.text) for p in problems for d in p.demonstrations if not known(d)]
    found = iter(grader.readable(samples, progress, computed=guard == "computed"))
    return [
        replace(p, demonstrations=tuple(d if known(d) else {**d, "readable": next(found)} for d in p.demonstrations))
        if p.demonstrations
        else p
        for p in problems
    ]


def with_demonstrations_for(problems: Sequence[Problem], share: float, seed: int) -> list[Problem]:
    """Problems, of which ``round(share * n)`` keep their demonstrations, where n is the number of those that have any.

    A smaller share keeps a subset of the demonstrations of a larger share (Prefix-RFT's 10 % and 1 %).
    """
    kept = set(keeping([i for i, problem in enumerate(problems) if problem.demonstrations], share, seed).tolist())
    return [p if i in kept or not p.demonstrations else replace(p, demonstrations=()) for i, p in enumerate(problems)]


def keeping(rows: Sequence[int], share: float, seed: int) -> np.ndarray:
    """Rows ``(round(share * n),)`` that keep their demonstrations, out of n; a larger share keeps these and more."""
    rows = np.asarray(rows, dtype=np.int64)
    if share == 1:
        return rows
    draws = np.fromiter((uniform("demonstration_share", seed, int(i)) for i in rows), np.float64, len(rows))
    return np.sort(rows[np.argsort(draws, kind="stable")[: round(share * len(rows))]])
