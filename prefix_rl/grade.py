"""``prefix-rl grade``: a file of completions, graded; what was decided, how sure that is, and how fast it was."""

from __future__ import annotations

import contextlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import monotonic

import yaml

from . import yaml12
from .data.sources import read
from .errors import DataError, at_most, nearest
from .fields import check, fields_of
from .parts import whole
from .progress import bar
from .rewards import second
from .rewards.equality import Rules
from .rewards.grading import VERSION, Outcome, Verdict, gold_text
from .rewards.workers import Grader

KNOWN = {
    "completion": ("completion", "text", "prediction", "output", "response"),
    "answer": ("gold", "ground_truth", "answer"),  # beside a gold answer, "answer" is what the policy answered
    "start": ("start",),
    "prefix": ("prefix",),
}
"""Our columns, and the names by which they are known."""

_BLOCK = 4096  # rows in memory at once


@dataclass(frozen=True)
class Row:
    """A completion to grade. ``start`` is where the policy's own text begins, behind an injected prefix."""

    place: str
    text: str
    gold: str
    start: int
    id: object = None
    before: object = None  # the outcome that the file has


@dataclass
class Report:
    """Counts of outcomes and disagreements over all rows; the rows themselves are not kept."""

    outcomes: Counter = field(default_factory=Counter)
    found_by: Counter = field(default_factory=Counter)
    second: Counter = field(default_factory=Counter)
    changed: Counter = field(default_factory=Counter)
    disagreements: list[tuple[Row, Verdict, str | None]] = field(default_factory=list)
    bad_golds: dict[str, str] = field(default_factory=dict)
    milliseconds: array = field(default_factory=lambda: array("d"))
    seconds: float = 0.0

    @property
    def rows(self) -> int:
        return self.outcomes.total()

    def add(self, row: Row, verdict: Verdict, seconds: float, opinion: bool | None, theirs: str | None, show: int):
        self.outcomes[verdict.outcome] += 1
        self.milliseconds.append(1000 * seconds)
        if verdict.found_by:
            self.found_by[verdict.found_by] += 1
        if row.before in [*Outcome] and row.before != verdict.outcome:
            self.changed[f"{row.before} -> {verdict.outcome}"] += 1
        if verdict.outcome is Outcome.BAD_GOLD and len(self.bad_golds) < show:
            self.bad_golds.setdefault(row.gold, row.place)
        kind = "do not know" if opinion is None else "agree" if agrees(verdict, opinion) else "disagree"
        self.second[kind] += 1
        if kind == "disagree" and len(self.disagreements) < show:
            self.disagreements.append((row, verdict, theirs))


def agrees(verdict: Verdict, opinion: bool) -> bool:
    """True if the second checker agrees with the verdict. Where nothing was compared it can only report a match."""
    return (verdict.outcome is Outcome.RIGHT) is opinion


def grade(
    source: str,
    grader: Grader,
    *,
    columns: dict[str, str] | None = None,
    split: str = "train",
    output: Path | None = None,
    second_opinion: bool = True,
    show: int = 5,
) -> Report:
    """Grades every row of ``source`` and writes a line for each to ``output``, unless that is None.

    Args:
        source: see :func:`~prefix_rl.data.sources.read`.
        columns: ``{"completion": "solution", ...}`` for columns that are not in :data:`KNOWN`.
        output: JSON Lines with ``place``, ``id``, ``outcome``, ``answer``, ``found_by``, ``gold`` and, with
            ``second_opinion``, ``second`` (same, different or null) and ``second_answer``; there as a whole or not.
        show: how many disagreements, and how many gold answers that cannot be parsed, are kept to be looked at.

    Raises:
        DataError: naming every row that cannot be graded; nothing is graded then.
    """
    with bar("reading", None) as advance:
        count = _check_all(source, split, columns or {}, advance)
    grader.start()  # that takes a second, and is no part of the speed
    report, rows = Report(), (row for row, _ in rows_of(source, split, columns or {}))
    with bar("grading", count) as advance, _written(output) as write:
        while block := list(islice(rows, _BLOCK)):
            began = monotonic()
            decided = grader.timed([(row.text, row.gold, row.start) for row in block], advance)
            report.seconds += monotonic() - began
            for row, (verdict, seconds) in zip(block, decided, strict=True):
                theirs = second.find(row.text[row.start :]) if second_opinion else None
                opinion = None if theirs is None else second.same(theirs, second.find(row.gold) or row.gold)
                report.add(row, verdict, seconds, opinion, theirs, show)
                line = {"place": row.place, "id": row.id, "outcome": verdict.outcome, "answer": verdict.answer,
                        "found_by": verdict.found_by, "gold": row.gold}  # fmt: skip
                if second_opinion:
                    line |= {"second": {None: None, True: "same", False: "different"}[opinion], "second_answer": theirs}
                write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    return report


def parse_rules(pairs: Sequence[str]) -> Rules:
    """``["percent=exact"]`` -> ``Rules(percent="exact")``."""
    faults, given = [], {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            given |= {name: yaml12.load(value)} if equals else {}
        except yaml.YAMLError:
            equals = ""
        if not equals:
            faults.append(f"--rule {pair}: give NAME=VALUE")
    values, wrong = check("rule", given, fields_of(Rules))
    faults += [f"--rule {name.partition('.')[2]}: {why}" for name, why in wrong.items()]
    if faults:
        raise DataError("these rules cannot be graded by:", faults)
    return Rules(**values)


# --- reading ----------------------------------------------------------------------------------------------------------


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """``["completion=solution"]`` -> ``{"completion": "solution"}``."""
    faults = []
    for pair in pairs:
        ours, equals, _ = pair.partition("=")
        if not equals or ours not in KNOWN:
            why = f"{ours} is not one of them{nearest(ours, KNOWN)}" if equals else "there is no ="
            faults.append(f"--column {pair}: {why}")
    if faults:
        raise DataError(f"OURS in --column OURS=THEIRS is one of {', '.join(KNOWN)}:", faults)
    return {ours: theirs for ours, _, theirs in (pair.partition("=") for pair in pairs)}


def _check_all(source: str, split: str, columns: dict[str, str], advance) -> int:
    """The number of rows, all of which can be graded."""
    faults, count = [], 0
    for _, wrong in rows_of(source, split, columns):
        count += 1
        faults += wrong
        advance(1)
    if faults:
        raise DataError(f"{source} holds rows that cannot be graded; nothing was graded:", at_most(faults))
    return count


def rows_of(source: str, split: str, columns: dict[str, str]) -> Iterator[tuple[Row | None, list[str]]]:
    """Every row, or what is wrong with it. A column that no row could have is a fault of the first row alone."""
    names = None
    for place, raw in read(source, split):
        if names is None:
            names = _names(raw, columns, source)
        yield _row(place, raw, names)


def _names(raw: dict, columns: dict[str, str], source: str) -> dict[str, str]:
    """The column of the file for each of ours; a start or a prefix may first stand in a later row."""
    wanted = [theirs for theirs in columns.values() if theirs]
    faults = [f"there is no column {theirs!r}{nearest(theirs, raw)}" for theirs in wanted if theirs not in raw]
    names = {ours: next((n for n in known if n in raw), known[0]) for ours, known in KNOWN.items()} | columns
    for ours in ("completion", "answer"):
        if names[ours] not in raw and names[ours] not in wanted:
            faults.append(f"no column holds the {ours}; known by name are {', '.join(KNOWN[ours])}")
    if faults:
        hint = "name a column with --column, as in --column completion=solution"
        raise DataError(f"{source} has the columns {', '.join(map(repr, raw)) or 'none'}; {hint}:", faults)
    return names


def _row(place: str, raw: dict, names: dict[str, str]) -> tuple[Row | None, list[str]]:
    missing = [names[ours] for ours in ("completion", "answer") if names[ours] not in raw]
    if missing:
        return None, [
            f"{place}: no column {name!r}; there are {', '.join(map(repr, raw)) or 'none'}" for name in missing
        ]
    text, gold = _content(raw[names["completion"]]), raw[names["answer"]]
    start, prefix = raw.get(names["start"]), raw.get(names["prefix"])
    faults = []
    if text is None:
        faults.append(f"{names['completion']} is {_kind(raw[names['completion']])}, not a text or a list of messages")
    if isinstance(gold, bool) or not isinstance(gold, str | int | float):
        faults.append(f"{names['answer']} is {_kind(gold)}, not a text or a number")
    if start is not None and (type(start) is not int or not 0 <= start <= len(text or "")):
        faults.append(
            f"{names['start']} = {start!r} is no offset in the text of {len(text or ''):,} characters; "
            "--column start= leaves that column unread"
        )
    elif start is None and prefix is not None:
        if isinstance(prefix, str) and (text or "").startswith(prefix):
            start = len(prefix)
        else:
            faults.append(
                f"the text does not begin with its {names['prefix']}; --column prefix= leaves that column unread"
            )
    if faults:
        return None, [f"{place}: {fault}" for fault in faults]
    return Row(place, text, gold_text(gold), start or 0, raw.get("id", raw.get("problem_id")), raw.get("outcome")), []


def _content(completion: object) -> str | None:
    """The text of a completion, the last message's of a conversation; None for anything else."""
    if isinstance(completion, list) and completion and isinstance(completion[-1], dict):
        completion = completion[-1].get("content")
    return completion if isinstance(completion, str) else None


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


@contextlib.contextmanager
def _written(output: Path | None):
    """A function that writes one line; the file appears when all is done. Lone surrogates become their JSON escapes."""
    if output is None:
        yield lambda line: None
        return
    with whole(output) as file:
        yield lambda line: file.write(line.encode("utf-8", "backslashreplace"))


# --- what a person reads ----------------------------------------------------------------------------------------------


def table(report: Report, second_opinion: bool = True) -> str:
    """The report as text."""
    total = max(report.rows, 1)
    lines = [f"{report.rows:,} completion{'s' * (report.rows != 1)}, graded by version {VERSION} of the grader"]
    lines += [
        f"  {n:>9,}  {100 * n / total:5.1f} %  {outcome}" for outcome in Outcome if (n := report.outcomes[outcome])
    ]
    if report.found_by:
        lines.append("the answer was found by")
        lines += [f"  {n:>9,}  {100 * n / total:5.1f} %  {how}" for how, n in report.found_by.most_common()]
    if report.changed:
        lines.append("other than the outcome that the file has")
        lines += [_share(n, total, change) for change, n in report.changed.most_common()]
    if report.bad_golds:
        lines.append("gold answers that cannot be parsed, the first of them")
        lines += [f"  {place}: {shown(gold)}" for gold, place in report.bad_golds.items()]
    if second_opinion:
        decided = report.second["agree"] + report.second["disagree"]
        lines.append(
            f"a second, independent checker decided {decided:,} of them ({100 * decided / total:.1f} %) and disagrees "
            f"on {report.second['disagree']:,}" + (", the first of which are" if report.disagreements else "")
        )
        for row, verdict, theirs in report.disagreements:
            lines.append(f"  {row.place}: gold {shown(row.gold)}")
            lines.append(f"      {verdict.outcome:<10} {shown(verdict.answer)}")
            opinion = "different" if verdict.outcome is Outcome.RIGHT else "same"
            lines.append(f"      {opinion:<10} {shown(theirs)}  (second checker)")
    times = sorted(report.milliseconds)
    at = {share: times[min(int(share * len(times)), len(times) - 1)] for share in (0.5, 0.99, 1.0)}
    lines.append(
        f"{report.rows / max(report.seconds, 1e-9):,.0f} completions a second; one takes {at[0.5]:.2f} ms (median), "
        f"{at[0.99]:.2f} ms (p99), {at[1.0]:.1f} ms (longest)"
    )
    return "\n".join(lines)


def _share(n: int, total: int, what: str) -> str:
    return f"  {n:>9,}  {100 * n / total:5.1f} %  {what}"


def shown(answer: str | None, width: int = 70) -> str:
    r"""An answer on one line of a terminal.

    >>> shown("a\nb")
    'a\\nb'
    """
    if answer is None:
        return "(none)"
    line = answer[: width + 1].encode("unicode_escape" if not answer.isprintable() else "utf-8", "backslashreplace")
    text = line.decode("utf-8")
    return text if len(text) <= width else text[: width - 3] + "..."
