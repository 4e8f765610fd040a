"""The shape of a result card, as far as each of its readers needs it, and what is wrong with one that was changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval

from ..documents import misfit
from ..fields import check, fields_of
from ..rewards.equality import Rules

_Count = Annotated[int, Ge(0)]
_Some = Annotated[int, Ge(1)]
_Share = Annotated[float, Interval(ge=0, le=1)]
_ESTIMATE = {"mean": _Share, "low": float, "high": float, "problems": _Count, "samples": _Count}
_COMPARED = {
    "policy": str, "benchmarks": dict[str, dict[str, Any]], "engine": dict[str, Any], "sampling": dict[str, Any],
    "grader": dict[str, Any], "prompt": dict[str, Any],
}  # fmt: skip
_COMPARED_BENCHMARK = {
    "sha256": str, "samples": _Some, "accuracy": _ESTIMATE, "right_by_problem": dict[str, _Count],
}  # fmt: skip
_WHOLE = {
    "checkpoint": dict[str, Any], "date": str, "git_commit": str | None, "versions": dict[str, str | None],
    "command": list[str],
    "prompt": {"example": str, "chat_template_sha256": str | None, "ended_by": list[str] | None,
               "notes": list[str] | None},
    "grader": {"version": int | str, "rules": dict[str, Any], "workers": _Some, "deadline": Annotated[float, Gt(0)],
               "memory_mb": _Some, "reward": str | None},
}  # fmt: skip
_WHOLE_BENCHMARK = {
    "source": str, "prompts": dict[str, dict[str, str]], "problems": _Some, "pass": dict[str, dict[str, Any]],
    "maj": dict[str, dict[str, Any]], "outcomes": dict[str, _Count], "no_answer_share": _Share,
    "truncated_share": _Share, "mean_completion_length": Annotated[float, Ge(0)],
    "accuracy_by_prefix_fraction": dict[str, dict[str, Any]],
}  # fmt: skip
_SHOWN = {"mean": float, "low": float | None, "high": float | None, "problems": int | None, "samples": int | None}


def compared_fault(card: Mapping[str, Any]) -> str | None:
    """What keeps a card from being compared with another, None if nothing does."""
    return misfit(card, _COMPARED) or _first(card["benchmarks"], _compared_benchmark)


def whole_fault(card: Mapping[str, Any]) -> str | None:
    """What is wrong with a card that is to be written anew from its samples, None if nothing is."""
    if wrong := compared_fault(card) or misfit(card, _WHOLE):
        return wrong
    if faults := check("grader.rules", card["grader"]["rules"], fields_of(Rules))[1]:
        return " ".join(next(iter(faults.items())))
    return _first(card["benchmarks"], _whole_benchmark)


def shown_fault(card: Mapping[str, Any]) -> str | None:
    """What keeps the numbers of a card, be it of an older version, from being shown; None if nothing does."""
    if card.get("accuracy") is not None and (wrong := misfit(card["accuracy"], _SHOWN, "accuracy")):
        return wrong
    if wrong := misfit(card, {"benchmarks": dict[str, dict[str, Any]] | None}):
        return wrong
    return _first(card.get("benchmarks") or {"none": {}}, _shown_benchmark)


def _first(benchmarks: Mapping[str, Any], fault: Callable[[str, Any], str | None]) -> str | None:
    if not benchmarks:
        return "benchmarks is empty"
    return next((wrong for name, b in benchmarks.items() if (wrong := fault(f"benchmarks.{name}", b))), None)


def _compared_benchmark(at: str, measured: Mapping[str, Any]) -> str | None:
    if wrong := misfit(measured, _COMPARED_BENCHMARK, at):
        return wrong
    right = measured["right_by_problem"].values()
    if not right or max(right) > measured["samples"]:
        return f"{at}: right_by_problem does not go with {measured['samples']} samples of a problem"
    return None


def _whole_benchmark(at: str, measured: Mapping[str, Any]) -> str | None:
    if Path(at).name != at:
        return f"{at} is no name of a benchmark"
    if wrong := misfit(measured, _WHOLE_BENCHMARK, at):
        return wrong
    if len(measured["right_by_problem"]) != measured["problems"]:
        return f"{at}: right_by_problem is not of {measured['problems']} problems"
    if measured["pass"].keys() != measured["maj"].keys() or "0" not in measured["prompts"]:
        return f"{at}: numbers are missing"
    fractions = (*measured["prompts"], *measured["accuracy_by_prefix_fraction"])
    if other := next((f for f in fractions if not is_fraction(f)), None):
        return f"{at} has numbers for {other!r}, not a share of the demonstrations"
    estimates = {f"{kind}.{k}": found for kind in ("pass", "maj") for k, found in measured[kind].items()}
    if other := next((key for key in estimates if not re.fullmatch(r"\w+\.[1-9]\d{0,8}", key)), None):
        return f"{at}.{other}: not a number of samples"
    estimates |= {f"accuracy_by_prefix_fraction.{f}": e for f, e in measured["accuracy_by_prefix_fraction"].items()}
    return next((wrong for key, found in estimates.items() if (wrong := misfit(found, _ESTIMATE, f"{at}.{key}"))), None)


def _shown_benchmark(at: str, measured: Mapping[str, Any]) -> str | None:
    shape = {"samples": int | None, "problems": int | None, "pass": dict[str, dict[str, Any]] | None}
    if wrong := misfit(measured, shape, at):
        return wrong
    found = {"accuracy": measured.get("accuracy"), **{f"pass.{k}": e for k, e in (measured.get("pass") or {}).items()}}
    if other := next((key for key in found if not re.fullmatch(r"accuracy|pass\.[1-9]\d{0,8}", key)), None):
        return f"{at}.{other}: not a number of samples"
    return next((w for key, e in found.items() if e is not None and (w := misfit(e, _SHOWN, f"{at}.{key}"))), None)


def is_fraction(text: str) -> bool:
    """True if a text is a share of the demonstrations, as a card and the folders of samples write it.

    >>> is_fraction("0.25"), is_fraction("5e-05"), is_fraction("../x"), is_fraction("nan")
    (True, True, False, False)
    """
    return re.fullmatch(r"\d(\.\d+)?(e-\d+)?", text) is not None
