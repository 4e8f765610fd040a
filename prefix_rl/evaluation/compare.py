"""Two evaluations side by side: the same problems or none, a paired test, and what it would take to see more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import DataError, nearest
from .card import read_card
from .pairs import Comparison, Measured, compare


def compare_folders(ours: Path, theirs: Path, on: Sequence[str] = ()) -> dict[str, Any]:
    """Compares the accuracies of two evaluations, ``ours - theirs``, by benchmark and in the mean over benchmarks.

    Args:
        ours: the folder of an evaluation.
        theirs: that of the one to compare with.
        on: compare these benchmarks only.

    Returns:
        ``ours`` and ``theirs`` (the policies), ``benchmarks`` (for each both accuracies and the difference), ``mean``
        (the difference over all), and ``warnings``: settings in which the two differ besides the policy.

    Raises:
        DataError: if one of them is no evaluation, or they are about different problems.
    """
    cards = read_card(ours), read_card(theirs)
    names = _common(cards, (str(ours), str(theirs)), on)
    measured = {name: _measured(cards[0]["benchmarks"][name], cards[1]["benchmarks"][name]) for name in names}
    lines = {
        name: {
            "ours": cards[0]["benchmarks"][name]["accuracy"],
            "theirs": cards[1]["benchmarks"][name]["accuracy"],
            "samples": [m.our_samples, m.their_samples],
            "difference": asdict(compare(m)),
        }
        for name, m in measured.items()
    }
    return {
        "ours": {"folder": str(ours), "policy": cards[0]["policy"]},
        "theirs": {"folder": str(theirs), "policy": cards[1]["policy"]},
        "benchmarks": lines,
        "mean": asdict(compare(*measured.values())),
        "warnings": _differences(*cards),
    }


def _common(cards: Sequence[Mapping[str, Any]], folders: Sequence[str], on: Sequence[str]) -> list[str]:
    """The benchmarks to compare on, every one on the same problems in both."""
    first, second = (card["benchmarks"] for card in cards)
    known = list(dict.fromkeys([*first, *second]))
    unknown = [f"{name}{nearest(name, known)}" for name in on if name not in known]
    if unknown:
        raise DataError(f"neither evaluation has {', '.join(unknown)}; there are {', '.join(known)}")
    wanted = list(on) or known
    wrong = []
    for name in wanted:
        lacking = [folder for folder, of in zip(folders, (first, second), strict=True) if name not in of]
        if lacking:
            wrong.append(f"{name}: {lacking[0]} was not evaluated on it")
        elif first[name]["sha256"] != second[name]["sha256"]:
            wrong.append(f"{name}: {_what_differs(first[name], second[name])}")
    if wrong:
        both = [
            name
            for name in known
            if name in first and name in second and first[name]["sha256"] == second[name]["sha256"]
        ]
        hint = (
            f"compare on what they share with --on {','.join(both)}" if both else "evaluate both on the same problems"
        )
        raise DataError(f"{folders[0]} and {folders[1]} are about different problems; {hint}", wrong)
    return wanted


def _what_differs(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    a, b = ours["right_by_problem"], theirs["right_by_problem"]
    if a.keys() == b.keys():
        same = list(a) == list(b)
        return f"the same {len(a)} ids, but {'other problems or answers under them' if same else 'in another order'}"
    only = [(f"{len(x.keys() - y.keys())} problems only in the {which}", next((i for i in x if i not in y), None))
            for which, x, y in (("first", a, b), ("second", b, a)) if x.keys() - y.keys()]  # fmt: skip
    return f"{len(a)} and {len(b)} problems; " + ", ".join(f"{what} ({example}, ...)" for what, example in only)


def _measured(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Measured:
    a, b = ours["right_by_problem"], theirs["right_by_problem"]
    return Measured(
        [a[i] / ours["samples"] for i in a], [b[i] / theirs["samples"] for i in a], ours["samples"], theirs["samples"]
    )


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Conditions other than the policy that differ, in words: the difference may come from them."""
    found = []
    for block, keys in (
        ("sampling", ("temperature", "top_p", "max_completion_length")),
        ("grader", ("version", "rules", "reward")),
        ("engine", ("name", "version", "dtype")),
        ("prompt", ("prompt", "system_prompt", "instruction", "chat_template_sha256", "chat_template_kwargs", "date")),
    ):
        for key in keys:
            a, b = ours[block].get(key), theirs[block].get(key)
            if a != b:
                found.append(f"{block}: {key} is {a!r} in the first and {b!r} in the second")
    return found


# --- what a person sees -----------------------------------------------------------------------------------------------


def rows_of(found: Mapping[str, Any]) -> list[list[str]]:
    """The table: a head, a row for each benchmark, and the mean where there are several."""
    head = [
        "benchmark",
        "problems",
        "samples",
        "first",
        "second",
        "difference [95 %]",
        "p",
        "to find one as large (80 % power)",
    ]
    rows = []
    for name, line in found["benchmarks"].items():
        difference, (a, b) = Comparison(**line["difference"]), line["samples"]
        rows.append(
            [
                name, str(difference.problems), str(a) if a == b else f"{a}, {b}",
                *(f"{100 * line[side]['mean']:.1f} %" for side in ("ours", "theirs")),
                *_cells(difference), needed(difference, a if a == b else None),
            ]
        )  # fmt: skip
    if len(rows) > 1:
        mean = Comparison(**found["mean"])
        sides = [_mean([line[side]["mean"] for line in found["benchmarks"].values()]) for side in ("ours", "theirs")]
        rows.append(["mean", str(mean.problems), "", *sides, *_cells(mean), needed(mean, None)])
    return [head, *rows]


def _mean(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f} %"


def _cells(d: Comparison) -> list[str]:
    return [f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]", f"{d.p:.2g}"]


def needed(d: Comparison, samples: int | None) -> str:
    """Number of samples, or of problems, that would show the measured difference, in words.

    >>> needed(Comparison(0.04, -0.02, 0.10, 0.2, 30, 0.09, 5.1, 8.0), samples=32)
    '256 samples a problem, or 153 problems'
    >>> needed(Comparison(0.04, -0.02, 0.10, 0.2, 30, 0.09, 5.1, math.inf), samples=32)
    '153 problems; no number of samples of these is enough'
    """
    if d.problems_factor is None:
        return f"no difference measured; one of {100 * d.detectable:.1f} points would be seen"
    if d.problems_factor <= 1:
        return "these are enough"
    problems = f"{_up(d.problems_factor * d.problems)} problems"
    if d.samples_factor is None:
        return f"{problems} (of more samples nothing is known: one a problem)"
    if math.isinf(d.samples_factor):
        return f"{problems}; no number of samples of these is enough"
    more = f"{d.samples_factor:.1f} times the samples" if samples is None else (
        f"{_up(d.samples_factor * samples)} samples a problem")  # fmt: skip
    return f"{more}, or {problems}"


def _up(value: float) -> str:
    return f"{math.ceil(value - 1e-9):,}"
