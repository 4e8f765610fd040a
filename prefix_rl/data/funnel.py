"""The funnel of ``prefix-rl prepare``: numbers of rows and demonstrations that enter, are dropped and stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

STEPS = {
    "check": "rows that hold what is needed",
    "contamination": "problems of no evaluation set",
    "duplicates": "each problem once",
    "difficulty": "pass rates as asked for",
    "budget": "demonstrations that fit",
    "grading": "demonstrations that earn the training reward",
    "choice": "as many demonstrations as asked for",
}
"""Steps in their order, and a description of what passes each."""
WITH_ITS_PROBLEM = "its problem was dropped"


class Funnel:
    """Counts of rows and demonstrations that entered and were dropped, and a list of the dropped ones."""

    def __init__(self):
        self.entered = Counter()
        self.dropped: dict[str, dict[str, Counter]] = {
            step: {"rows": Counter(), "demonstrations": Counter()} for step in STEPS
        }
        self.listed: list[dict] = []

    def enter(self, demonstrations: int) -> None:
        """Counts a row that enters, and its demonstrations."""
        self.entered.update(rows=1, demonstrations=demonstrations)

    def drop(self, step: str, reason: str, row: dict, demonstrations: int = 0, **details) -> None:
        """Counts and lists a row that is dropped, with the demonstrations that go with it."""
        self.dropped[step]["rows"][reason] += 1
        if demonstrations:
            self.dropped[step]["demonstrations"][WITH_ITS_PROBLEM] += demonstrations
        self._list(row, step, reason, details)

    def drop_demonstration(self, step: str, reason: str, row: dict, number: int) -> None:
        """Counts and lists the dropped demonstration ``number`` (from 0) of a row that stays."""
        self.dropped[step]["demonstrations"][reason] += 1
        self._list(row, step, reason, {"demonstration": number})

    def _list(self, row: dict, step: str, reason: str, details: dict) -> None:
        named = {"place": row["place"], **({"id": row["id"]} if "id" in row else {})}
        self.listed.append({**named, "step": step, "reason": reason, **details})

    def counts(self) -> dict:
        """The counts as plain JSON."""
        return {
            "entered": dict(self.entered),
            "dropped": {s: {k: dict(c) for k, c in d.items()} for s, d in self.dropped.items()},
        }


def steps_of(counts: Iterable[dict]) -> list[dict]:
    """Numbers left after each step, and the numbers and reasons of what it dropped, summed over :meth:`Funnel.counts`.

    >>> funnel = Funnel()
    >>> funnel.enter(2); funnel.enter(1)
    >>> funnel.drop("check", "problem is empty", {"place": "f:1"}, demonstrations=2)
    >>> steps = steps_of([funnel.counts()])
    >>> steps[0]
    {'step': 'read', 'rows': 2, 'demonstrations': 3, 'dropped': {'rows': {}, 'demonstrations': {}}}
    >>> steps[1]["rows"], steps[1]["demonstrations"], steps[1]["dropped"]["rows"]
    (1, 1, {'problem is empty': 1})
    """
    entered, dropped = Counter(), {step: {"rows": Counter(), "demonstrations": Counter()} for step in STEPS}
    for one in counts:
        entered.update(one["entered"])
        for step, kinds in one["dropped"].items():
            for kind, reasons in kinds.items():
                dropped[step][kind].update(reasons)
    left = {kind: entered[kind] for kind in ("rows", "demonstrations")}
    found = [{"step": "read", **left, "dropped": {"rows": {}, "demonstrations": {}}}]
    for step, kinds in dropped.items():
        left = {kind: left[kind] - kinds[kind].total() for kind in left}
        found.append({"step": step, **left, "dropped": {kind: dict(sorted(c.items())) for kind, c in kinds.items()}})
    return found


def table(steps: list[dict]) -> str:
    """Funnel as a table for a terminal."""
    lines = [f"{'step':<14}{'rows':>10}{'demonstrations':>16}   dropped"]
    for step in steps:
        reasons = [f"{n:,} {kind if n > 1 else kind[:-1]}: {reason}" for kind, counts in step["dropped"].items()
                   for reason, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]  # fmt: skip
        first, *more = reasons or [""]
        lines.append(f"{step['step']:<14}{step['rows']:>10,}{step['demonstrations']:>16,}   {first}".rstrip())
        lines += [" " * 43 + reason for reason in more]
    return "\n".join(lines)
