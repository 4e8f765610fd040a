"""Totals of a trace store, in numbers and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .. import preflight
from ..data.attempts import Plan
from ..data.problems import Problem
from ..data.traces import Account, Tally, TraceStore


def summarize(store: TraceStore, problems: Sequence[Problem]) -> dict[str, Any]:
    """Totals of a store: difficulty of the problems, number of those with traces, and cost.

    ``pass_at_k`` and ``hard`` are None before every problem has been sampled ``k`` times, and where nothing is graded.
    Operations are 2 N for each token of prompt and completion (PrefixRL, App. F.2); those of imported traces are known
    only if they came along.
    """
    facts = store.facts
    plan = Plan(**{name: facts["settings"][name] for name in asdict(Plan())}) if "settings" in facts else None
    tallies = store.attempts()
    every = [tallies.get(p.id, Tally()) for p in problems]
    sampled, imported = store.accounts()
    levels = hard = None
    if plan and facts["settings"].get("graded", True) and all(tally.attempts >= plan.k for tally in every):
        found = store.attempts(plan.k)
        first = [found[p.id] for p in problems]
        never = sum(tally.right == 0 for tally in first)
        rarely = sum(tally.right > 0 and plan.is_hard(tally) for tally in first)
        levels = {"k": plan.k, "never": never, "rarely": rarely, "solved": len(problems) - never - rarely,
                  "pass_at_k": 1 - never / len(problems)}  # fmt: skip
        at = [every[i] for i, tally in enumerate(first) if plan.is_hard(tally)]
        hard = {
            "problems": len(at),
            "with_all_wanted": sum(tally.usable >= plan.wanted for tally in at),
            "with_some": sum(0 < tally.usable < plan.wanted for tally in at),
            "with_none": sum(tally.usable == 0 for tally in at),
            "mean_attempts": sum(tally.attempts for tally in at) / len(at) if at else None,
            "ids": [p.id for p, tally in zip(problems, first, strict=True) if plan.is_hard(tally)],
        }
    return {
        "policy": facts.get("model"),
        "parameters": facts.get("parameters"),
        "data": facts.get("data"),
        "problems": len(problems),
        "problems_with_a_usable_trace": len({trace.problem_id for trace in store.usable()}),
        "settings": facts.get("settings"),
        "pass_at_k": levels,
        "hard": hard,
        "sampled": _described(sampled),
        "imported": {name: _described(account) for name, account in sorted(imported.items())},
        "versions": preflight.versions(),
    }


def _described(account: Account) -> dict[str, Any]:
    return {**asdict(account), "wrong": account.traces - account.right - account.ungraded}


def collect_main_table(summary: Mapping[str, Any]) -> str:
    """The summary as a few lines for a terminal."""
    lines = [f"{summary['problems']:,} problems of {summary['data']}"]

    def line(count: int, what: str) -> None:
        lines.append(f"  {count:>11,}  {what}")

    if levels := summary["pass_at_k"]:
        rate = summary["settings"]["max_pass_rate"]
        lines.append(f"{summary['policy']}, {levels['k']:,} attempts at every problem")
        line(levels["never"], "never solved")
        if rate > 0:
            line(levels["rarely"], f"solved rarely (at most {rate:.3g} of the attempts)")
        line(levels["solved"], "solved")
    if hard := summary["hard"]:
        attempts = f", {hard['mean_attempts']:,.0f} attempts each in the mean" if hard["problems"] else ""
        lines.append(f"{hard['problems']:,} hard problems{attempts}")
        wanted = summary["settings"]["wanted"]
        line(hard["with_all_wanted"], f"have {wanted} right traces" if wanted > 1 else "have a right trace")
        if hard["with_some"]:
            line(hard["with_some"], "have fewer")
        line(hard["with_none"], f"have none after {summary['settings']['cap']:,} attempts")
    kinds = {"sampled": summary["sampled"]} | {f"imported from {k}": v for k, v in summary["imported"].items()}
    for name, account in kinds.items():
        if account["traces"]:
            unknown = f", not known for {account['flops_unknown']:,}" if account["flops_unknown"] else ""
            lines.append(f"{account['traces']:,} traces {name}")
            if account["ungraded"]:
                line(account["ungraded"], "not graded")
            if account["ungraded"] < account["traces"]:
                line(account["right"], "right")
                line(account["wrong"], "not right")
            line(account["generated_tokens"], "tokens generated")
            lines.append(f"  {account['flops']:>11.3g}  floating-point operations{unknown}")
    return "\n".join(lines)
