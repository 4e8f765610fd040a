"""Traces as demonstrations: the traces in a trace store replace the demonstrations of the data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import DataError, at_most
from ..methods.base import Method
from ..rewards.grading import Outcome
from .problems import Problem
from .traces import CUT, Trace, TraceStore, short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def attach(
    problems: Sequence[Problem],
    store: TraceStore,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    *,
    method: Method | None = None,
    seed: int = 0,
) -> list[Problem]:
    """The problems, with the store's right traces in place of their own demonstrations.

    A trace becomes ``{"text": ..., "ids": ...}``, where ``ids`` are the sampled token ids without the one that ended
    the trace. Traces of the policy come first, ordered by attempt; imported traces follow, in the order of the store.
    Truncated traces are left out. A problem without a right trace gets no demonstration.

    A method that needs no answers gets every trace, right or wrong; a trace that no end token closed has
    ``"ended": False``. A method that starts from failures gets the policy's wrong traces instead of the right ones.

    Args:
        tokenizer: the tokenizer that the ids must belong to, or its hash; None: not checked.
        method: the method that will train on the traces; None: a method that needs right and whole traces.
        seed: the seed of the recipe, on which the length of the method's excerpts depends.

    Raises:
        DataError: if the store belongs to another tokenizer, is empty or holds no right trace; if none of the problems
            is in it or has a right trace; if a problem has another text or answer there; if traces were cut shorter
            than the method wants them.
    """
    method = Method() if method is None else method
    if tokenizer is not None:
        store.check_tokenizer(tokenizer)
    tallies = store.attempts()
    if not tallies:
        raise DataError(f"the trace store {store.folder} is empty; `prefix-rl collect` fills it")
    known = [problem for problem in problems if problem.id in tallies]
    if not known:
        raise DataError(
            f"the trace store {store.folder} holds none of the {len(problems)} problems; it knows "
            f"{_some(tallies)}, the data has {_some([p.id for p in problems])}. Collect with the recipe's own data"
        )
    found = _matching(known, store, method, seed)
    if not found:
        wanted = _wanted(method)
        what = f"no {wanted or 'single'} trace" + (" of the data's problems" if any(store.usable(None, wanted)) else "")
        if store.accounts()[0].ungraded:
            what += "; its own were not graded, since it was collected for a method that needs no answers"
        otherwise = "import the traces of a stronger model: prefix-rl collect RECIPE --output FOLDER --import FILE"
        if method.needs.wrong:
            otherwise = "set method.traces = right"
        raise DataError(
            f"the trace store {store.folder} holds {what} (a truncated one does not count). Collect more (--cap), or "
            f"{otherwise}"
        )

    def demonstrations(problem: Problem) -> tuple[dict, ...]:
        traces = found.get(problem.id, [])
        own = sorted((t for t in traces if not t.imported), key=lambda t: t.attempt)
        return tuple(trace.demonstration() for trace in [*own, *(t for t in traces if t.imported)])

    return [replace(problem, demonstrations=demonstrations(problem)) for problem in problems]


def _matching(known: Sequence[Problem], store: TraceStore, method: Method, seed: int) -> dict[str, list[Trace]]:
    """Traces that the method can use, for each problem id.

    Raises:
        DataError: if the store has another text or answer for a problem, or traces shorter than the method needs.
    """
    given: dict[str, Problem] = {problem.id: problem for problem in known}
    found: dict[str, list[Trace]] = {}
    differing: dict[str, str] = {}
    too_short: dict[str, str] = {}
    for trace in store.usable(list(given), _wanted(method)):
        if method.needs.wrong and trace.imported:
            continue  # only failures of the policy itself are wanted
        problem = given[trace.problem_id]
        # the slice skips the answer, the first pair, if the method needs none
        for field, ours in (("answer", problem.answer), ("problem", problem.text))[not method.stages.needs_answers :]:
            if (theirs := getattr(trace, field)) != ours:
                told = f"the {field} is {short(theirs)} in the store, {short(ours)} in the data"
                differing[problem.id] = f"{problem.id}: {told}"
        wanted = method.stages.excerpt(problem.id, seed).tokens
        if trace.outcome == CUT and (wanted is None or wanted > len(trace.completion_ids)):
            told = f"cut after {len(trace.completion_ids)} tokens, wanted {'whole' if wanted is None else wanted}"
            too_short[problem.id] = f"{problem.id}: {told}"
        found.setdefault(problem.id, []).append(trace)
    differing |= {p.id: f"{p.id}: the id stands for two problems" for p in known if p.text != given[p.id].text}
    if differing:
        raise DataError(
            f"problems of the data have other texts or answers in the trace store {store.folder}, so its traces are "
            "not theirs. Collect with the recipe's own data:",
            at_most(list(differing.values())),
        )
    if too_short:
        raise DataError(
            f"the trace store {store.folder} was collected for shorter lessons: the method's block or training.seed "
            "has changed since. Undo that, or collect into another folder:",
            at_most(list(too_short.values())),
        )
    return found


def _wanted(method: Method) -> Outcome | None:
    """Outcome of the traces that the method uses; None: any outcome."""
    if not method.stages.needs_answers:
        return None
    return Outcome.WRONG if method.needs.wrong else Outcome.RIGHT


def _some(ids) -> str:
    shown = [repr(i) for i in list(ids)[:3]]
    return ", ".join(shown) + (", ..." if len(ids) > 3 else "")
