"""The shape of a result card, and what is wrong with one that somebody changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval

from ..documents import misfit
from ..fields import check, fields_of
from ..rewards.equality import Rules

_Count = Annotated[int, Ge(0)]
_Share = Annotated[float, Interval(ge=0, le=1)]
_ESTIMATE = {"mean": _Share, "low": float, "high": float, "problems": _Count, "samples": _Count}
_CARD = {
    "policy": str, "benchmarks": dict[str, dict[str, Any]], "checkpoint": dict[str, Any], "engine": dict[str, Any],
    "sampling": dict[str, Any], "date": str, "git_commit": str | None, "versions": dict[str, str | None],
    "command": list[str],
    "prompt": {"example": str, "chat_template_sha256": str | None, "ended_by": list[str] | None,
               "notes": list[str] | None},
    "grader": {"version": int | str, "rules": dict[str, Any], "workers": Annotated[int, Ge(1)],
               "deadline": Annotated[float, Gt(0)], "memory_mb": Annotated[int, Ge(1)], "reward": str | None},
}  # fmt: skip
_BENCHMARK = {
    "source": str, "sha256": str, "prompts": dict[str, dict[str, str]], "problems": Annotated[int, Ge(1)],
    "samples": Annotated[int, Ge(1)], "accuracy": _ESTIMATE, "pass": dict[str, dict[str, Any]],
    "maj": dict[str, dict[str, Any]], "outcomes": dict[str, _Count], "no_answer_share": _Share,
    "truncated_share": _Share, "mean_completion_length": Annotated[float, Ge(0)],
    "right_by_problem": dict[str, _Count], "accuracy_by_prefix_fraction": dict[str, dict[str, Any]],
}  # fmt: skip


def fault_of(card: Mapping[str, Any]) -> str | None:
    """What is wrong with the content of a card, None if nothing is."""
    if wrong := misfit(card, _CARD):
        return wrong
    if not card["benchmarks"]:
        return "benchmarks is empty"
    if wrong := next(iter(check("grader.rules", card["grader"]["rules"], fields_of(Rules))[1].items()), None):
        return " ".join(wrong)
    return next((w for name, b in card["benchmarks"].items() if (w := _benchmark_fault(name, b))), None)


def _benchmark_fault(name: str, measured: Mapping[str, Any]) -> str | None:
    at = f"benchmarks.{name}"
    if Path(name).name != name:
        return f"{at} is no name of a benchmark"
    if wrong := misfit(measured, _BENCHMARK, at):
        return wrong
    right = measured["right_by_problem"]
    if len(right) != measured["problems"] or max(right.values()) > measured["samples"]:
        return f"{at}: right_by_problem is not of {measured['problems']} problems with {measured['samples']} samples"
    for kind in ("pass", "maj"):
        for k, found in measured[kind].items():
            if not k.isdecimal() or int(k) < 1:
                return f"{at}.{kind} has the key {k!r}, not a number of samples"
            if wrong := misfit(found, _ESTIMATE, f"{at}.{kind}.{k}"):
                return wrong
    for fraction, found in measured["accuracy_by_prefix_fraction"].items():
        if wrong := misfit(found, _ESTIMATE, f"{at}.accuracy_by_prefix_fraction.{fraction}"):
            return wrong
    for fraction in (*measured["prompts"], *measured["accuracy_by_prefix_fraction"]):
        if not fits_fraction(fraction):
            return f"{at} has numbers for {fraction!r}, not a share of the demonstrations"
    if measured["pass"].keys() != measured["maj"].keys() or "0" not in measured["prompts"]:
        return f"{at}: numbers are missing"
    return None


def fits_fraction(text: str) -> bool:
    """True if a text is a share of the demonstrations, as a card and the folders of samples write it.

    >>> fits_fraction("0.25"), fits_fraction("../x"), fits_fraction("nan")
    (True, False, False)
    """
    return re.fullmatch(r"[01](\.\d+)?(e-\d+)?", text) is not None
