"""Steps 4 to 7 of ``prefix-rl prepare``: difficulty, budget, grading and choice turn read rows into training rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from ..rewards.functions import FunctionGrader, gold_of
from ..rewards.grading import Outcome, final_answer, gold_fault
from ..rewards.workers import Grader
from . import duplicates
from .chunks import Chunks, as_line
from .difficulty import PassRates
from .funnel import Funnel
from .problems import Problem, graded
from .rows import Rows
from .tokenizer import encode, prompt_length

if TYPE_CHECKING:
    from .prepare import Progress, Settings

MAX_DEMONSTRATIONS = 256
"""Largest number of demonstrations of a problem after those of its copies are added."""


def make_all(
    chunks: Chunks, rows: Rows, settings: Settings, tokenizer, rates: PassRates, grader: Grader, progress: Progress
) -> list[dict]:
    """Turns the read rows into training rows, chunk by chunk; returns the facts of each chunk."""
    made = chunks.finished("made")
    samples = np.maximum(rows.demonstrations, 1)
    advance = progress("grading demonstrations", int(samples.sum()))
    advance(int(samples[: made[-1]["through"] if made else 0].sum()))
    while (first := made[-1]["through"] if made else 0) < rows.starts[-1]:
        made.append(_make_chunk(chunks, len(made), first, rows, settings, tokenizer, rates, grader, advance))
    return made


def _make_chunk(
    chunks: Chunks, number: int, first: int, rows: Rows, settings: Settings, tokenizer, rates, grader, advance
) -> dict:
    """Turns the read rows from ``first`` on into training rows, to the end of its chunk or until the chunk is full."""
    funnel, waiting, rated, size, place = Funnel(), [], 0, 0, first
    for place, line in enumerate(rows.lines(first), start=first):
        row, count = json.loads(line), int(rows.demonstrations[place])
        kind = int(rows.kind[place])
        if kind != duplicates.KEPT:
            gone = 0 if kind == duplicates.SAME else count
            kept = rows[int(rows.of[place])]
            both = {} if kind == duplicates.SAME else {"problem": row["problem"], "of_problem": kept["problem"]}
            funnel.drop("duplicates", _DUPLICATES[kind], row, gone, of=kept["id"], **both)
        else:
            row = _with_copies(row, rows.copies(place), funnel)
            rate = rates.of(row["id"])
            rated += rate is not None
            rate = row.pop("pass_rate", None) if rate is None else rate
            row = {**row, **({} if rate is None else {"pass_rate": rate})}
            if reason := _difficulty(rate, settings.pass_rate):
                funnel.drop("difficulty", reason, row, len(row["demonstrations"]))
            elif _is_too_long(row.get("turns") or row["problem"], tokenizer, settings.max_prompt_length):
                reason = f"its prompt is longer than max_prompt_length = {settings.max_prompt_length} tokens"
                funnel.drop("budget", reason, row, len(row["demonstrations"]))
            else:
                waiting.append(_fitting(row, tokenizer, settings.max_completion_length, funnel))
                size += sum(len(d["text"]) for d in waiting[-1]["demonstrations"])
        if size > chunks.characters_at_once:
            break
    samples = np.maximum(rows.demonstrations[first : place + 1], 1).sum()
    advance(max(int(samples) - sum(max(len(row["demonstrations"]), 1) for row in waiting), 0))
    done = []
    outcomes = graded([_problem(row) for row in waiting], grader, advance)
    appended = 0
    if settings.append_answer:
        appended = _append_answers(waiting, outcomes, grader)
    for row, of_row in zip(waiting, outcomes, strict=True):
        row = _right(row, of_row, funnel, grader)
        if row and settings.append_answer:
            row = _fitting(row, tokenizer, settings.max_completion_length, funnel)  # they have become longer
        row = row and _chosen(row, settings, funnel)
        if row:
            done.append(row)
    readable = iter(
        grader.readable([(d["text"], r["answer"], r["problem"]) for r in done for d in r["demonstrations"]])
    )
    done = [_final(row, readable) for row in done]
    having = np.array([bool(row["demonstrations"]) for row in done], bool)
    facts = {
        "through": place + 1,
        "rated": rated,
        "rows": len(done),
        "demonstrations": sum(len(r["demonstrations"]) for r in done),
        **({"answers_appended": appended} if settings.append_answer else {}),
        "funnel": funnel.counts(),
    }
    chunks.put("made", number, [as_line(row) for row in done], funnel.listed, having, facts)
    return facts


_DUPLICATES = {
    duplicates.SAME: "the same problem as an earlier row, which got its demonstrations",
    duplicates.OTHER_ANSWER: "the same problem as an earlier row, with another answer",
    duplicates.NEAR: "nearly the same problem as an earlier row, with the same numbers and answer",
}
_OUTCOMES = {
    Outcome.WRONG: "its final answer is not the gold answer",
    Outcome.NO_ANSWER: "it states no final answer",
    Outcome.TIMEOUT: "grading it took too long",
    Outcome.CRASH: "grading it crashed",
    Outcome.BAD_GOLD: "the gold answer cannot be parsed",
}


def _with_copies(row: dict, copies: Iterator[dict], funnel: Funnel) -> dict:
    """A row with the demonstrations of its copies added, each text once."""
    given = chain(row["demonstrations"], (d for copy in copies for d in copy["demonstrations"]))
    kept, texts = [], set()
    for n, demonstration in enumerate(given):
        if demonstration["text"] in texts:
            funnel.drop_demonstration("duplicates", "the problem has the same one already", row, n)
        elif len(kept) == MAX_DEMONSTRATIONS:
            funnel.drop_demonstration("duplicates", f"the problem has {MAX_DEMONSTRATIONS} already", row, n)
        else:
            texts.add(demonstration["text"])
            kept.append(demonstration)
    return {**row, "demonstrations": kept}


def _difficulty(rate: float | None, wanted: tuple[float, float] | None) -> str | None:
    if wanted is None:
        return None
    if rate is None:
        return "its pass rate is not known"
    return None if wanted[0] <= rate <= wanted[1] else f"its pass rate is outside {wanted[0]:g} to {wanted[1]:g}"


def _is_too_long(problem: str | list, tokenizer, max_prompt_length: int | None) -> bool:
    return max_prompt_length is not None and prompt_length(problem, tokenizer) > max_prompt_length


def _fitting(row: dict, tokenizer, max_completion_length: int | None, funnel: Funnel) -> dict:
    """A row without the demonstrations that are shorter than two tokens or too long for training."""
    if tokenizer is None:
        return row
    kept = []
    for n, demonstration in enumerate(row["demonstrations"]):
        length = len(demonstration.get("ids") or encode(demonstration["text"], tokenizer)[0]) + 1  # and EOS
        if length - 1 < 2:
            funnel.drop_demonstration("budget", "it is shorter than two tokens", row, n)
        elif max_completion_length is not None and length > max_completion_length:
            reason = f"it is longer than max_completion_length = {max_completion_length} tokens"
            funnel.drop_demonstration("budget", reason, row, n)
        else:
            kept.append(demonstration)
    return {**row, "demonstrations": kept}


APPENDED = "\n\n\\boxed{{{}}}"
"""Template of the text that is appended to a demonstration that states no answer."""


def _append_answers(rows: Sequence[dict], outcomes: Sequence[list[Outcome]], grader: Grader) -> int:
    """Appends the gold answer to demonstrations that mark no answer, if they are right then; updates their outcomes.

    Demonstrations with token ids or offsets stay unchanged, since those belong to the old text. So do demonstrations
    that were cut off inside a thought.

    Returns:
        Number of demonstrations that got an answer.
    """
    candidates = [
        (row, n) for row, of_row in zip(rows, outcomes, strict=True)
        for n, (demonstration, outcome) in enumerate(zip(row["demonstrations"], of_row, strict=False))
        if set(demonstration) == {"text"} and row["answer"] and _states_none(demonstration["text"], outcome)
    ]  # fmt: skip
    texts = [row["demonstrations"][n]["text"] + APPENDED.format(row["answer"]) for row, n in candidates]
    golds = [gold_of(grader, _problem(row)) for row, _ in candidates]
    found = grader.grade(list(zip(texts, golds, strict=True)))
    of = {id(row): of_row for row, of_row in zip(rows, outcomes, strict=True)}
    for (row, n), text, outcome in zip(candidates, texts, found, strict=True):
        of[id(row)][n] = outcome
        if outcome is Outcome.RIGHT:
            row["demonstrations"][n] = {"text": text}
    return sum(outcome is Outcome.RIGHT for outcome in found)


def _states_none(text: str, outcome: Outcome) -> bool:
    """True if a demonstration marks no answer. Its outcome may be WRONG all the same: the rules may have taken its last
    formula as the answer, or a reward function of the user judged it."""
    guessed = outcome is Outcome.WRONG and final_answer(text) is None
    return (outcome is Outcome.NO_ANSWER or guessed) and not _is_cut_off(text)


def _is_cut_off(text: str) -> bool:
    """True if a text ends inside its thought."""
    return "<think>" in text and "</think>" not in text


def _problem(row: dict) -> Problem:
    """Problem of a read row, in the form that the grader takes."""
    demonstrations, columns = tuple(row["demonstrations"]), row.get("columns", {})
    return Problem(row["id"], row["problem"], row["answer"], demonstrations, row["place"], columns=columns)


def _right(row: dict, outcomes: Sequence[Outcome], funnel: Funnel, grader: Grader | FunctionGrader) -> dict | None:
    """A row with only the demonstrations that earn the reward; None if its problem cannot be graded at all."""
    own = grader.function.name if isinstance(grader, FunctionGrader) else None
    if set(outcomes) == {Outcome.BAD_GOLD}:
        fault = gold_fault(row["answer"]) or "it cannot be parsed"
        reason = "the gold answer cannot be parsed" if "parsed" in fault else f"no gold answer: {fault}"
        reason = f"the reward {own} cannot grade it (it returns None)" if own else reason
        funnel.drop("grading", reason, row, len(row["demonstrations"]), answer=row["answer"][:500])
        return None
    kept = []
    for n, (demonstration, outcome) in enumerate(zip(row["demonstrations"], outcomes, strict=False)):
        if outcome is Outcome.RIGHT:
            kept.append(demonstration)
        else:
            why = f"it does not earn the reward {own}" if own and outcome is Outcome.WRONG else _OUTCOMES[outcome]
            funnel.drop_demonstration("grading", why, row, n)
    return {**row, "demonstrations": kept}


def _chosen(row: dict, settings: Settings, funnel: Funnel) -> dict | None:
    """A row with at most ``settings.demonstrations`` of its own; None if it needs one and has none."""
    kept = row["demonstrations"][: settings.demonstrations]
    for n in range(len(kept), len(row["demonstrations"])):
        funnel.drop_demonstration("choice", f"the problem has {settings.demonstrations} already", row, n)
    if settings.require_demonstration and not kept:
        funnel.drop("choice", "no demonstration is left", row)
        return None
    return {**row, "demonstrations": kept}


def _final(row: dict, readable: Iterator[dict[str, int]]) -> dict:
    """Row of a training file; ``readable`` yields, for each demonstration, the offsets at which its answer shows."""
    demonstrations = [{**d, "readable": next(readable)} for d in row["demonstrations"]]
    made = {name: row[name] for name in ("id", "problem", "answer")} | {"demonstrations": demonstrations}
    made["problem"] = row.get("turns") or row["problem"]
    made |= {"pass_rate": row["pass_rate"]} if "pass_rate" in row else {}
    return made | row.get("columns", {})
