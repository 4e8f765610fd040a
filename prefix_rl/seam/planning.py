"""Prefixes: planned for rows, injected, joined with what follows. Lists of ids, no tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..arguments import demonstrations_and_answers
from ..data.mixing import REPEATS
from ..data.tokenizer import DemonstrationTable, continuation_start
from ..errors import DataError
from ..methods.base import Method
from ..prefixes import NO_PREFIX, Demonstration, Prefix, join
from ..rollouts import Row, Step
from .batch import COPY, ROW, GenerationBatch, Planned
from .ranks import Ranks

if TYPE_CHECKING:
    from datasets import Dataset

T = TypeVar("T")


def taken_apart(dataset: Dataset) -> tuple[Dataset, list[list], list[str]]:
    """The data set without its demonstrations; the demonstrations, and the answer, of each row."""
    demonstrations, answers = demonstrations_and_answers(dataset)
    rest = [name for name in dataset.column_names if name != "demonstrations"]
    return dataset.select_columns(rest), demonstrations, answers


def usable_demonstrations(
    method: Method, demonstrations: Sequence[Sequence], answers: Sequence[str], tokenizer, longest: int, **how
) -> DemonstrationTable:
    """The demonstrations that the method can use.

    Args:
        demonstrations, answers: those of each row of the data set.
        longest: tokens of a completion.
        how: further arguments of the table: the guard, and the turn behind the prompt.

    Raises:
        DataError: if the method injects prefixes and there is none.
    """
    usable = partial(method.needs.usable, longest=longest)
    table = DemonstrationTable(demonstrations, answers, tokenizer, usable=usable, cut=method.needs.cut, **how)
    if not (method.needs.prefixes or method.needs.hint) or any(table):
        return table
    why = (
        f"empty, or longer than max_completion_length = {longest} with its end"
        if method.needs.whole
        else "shorter than two tokens, or shows its answer from the first token on (answer_guard = none would "
        "allow that) or, with method.cut = sentences, before its first sentence ends (tokens: cut anywhere)"
    )
    raise DataError(
        f"{type(method).__name__} starts rollouts from demonstrations, but no demonstration can be used: every "
        f"one is missing, {why}"
    )


def epoch(method: Method, demonstrations: Sequence[Sequence], dataset: Dataset | None = None) -> tuple[list, list]:
    """The rows of an epoch: of each its problem, and which of the problem's copies it is. Of a mixture they stand there
    as often as the ``dataset`` says.

    Which problems have usable ``demonstrations`` is not asked where it makes no difference: the answer takes time.

    >>> epoch(Method(), [["a demonstration"], []])
    ([0, 1], [0, 0])
    """
    count, again = len(demonstrations), [1] * len(demonstrations)
    if dataset is not None and REPEATS in dataset.column_names:
        again = dataset[REPEATS]
    copies = [1] * count
    # one with a demonstration among so many: where even that makes no difference, nothing does
    if method.copies([True] + [False] * count) != [1] * (count + 1):
        copies = method.copies([bool(demonstrations[problem]) for problem in range(count)])
    rows = [
        (problem, copy) for problem in range(count) for copy in range(copies[problem]) for _ in range(again[problem])
    ]
    return [problem for problem, _ in rows], [copy for _, copy in rows]


class Planner:
    """Plans generation batches.

    Args:
        method: asked for the prefixes.
        demonstrations: the usable ones of each problem.
        dataset: the rows of an epoch, as TRL gets them.
        group_size: rollouts of a prompt.
        ranks: over which a generation batch goes.
        tokenizer: decodes prefixes, to tell where continuations begin.
    """

    def __init__(
        self, method: Method, demonstrations: Sequence[Sequence[Demonstration]], dataset: Dataset, group_size: int,
        ranks: Ranks, tokenizer,
    ):  # fmt: skip
        self.method, self.demonstrations, self.dataset = method, demonstrations, dataset
        self.group_size, self.ranks, self.tokenizer = group_size, ranks, tokenizer
        self.identities = list(zip(dataset[ROW], dataset[COPY], strict=True))
        # reversed, so that of a problem's copies the first one counts
        self.place_of = {problem: i for i, (problem, _) in reversed(list(enumerate(self.identities)))}

    def planned(self, inputs: Sequence[Mapping[str, Any]], step: Step) -> GenerationBatch:
        """The rows of this rank, or those of the problems that are due in their place, with their prefixes.

        Raises:
            DataError: on all ranks, if some row of any rank was to start from a prefix and none does.
        """
        own = self.ranks.own(len(inputs))
        if step.due:
            # the rows that TRL's sampler chose are passed over until the next epoch
            due = [self.place_of[problem] for problem in problems_in_place(step.due, own, self.group_size)]
            inputs = [self.dataset[place] for place in due]
        rows = [
            Row(own.start + i, self.group_size, given[ROW], self.demonstrations[given[ROW]], given[COPY])
            for i, given in enumerate(inputs)
        ]
        plan, asked = plan_of(self.method, rows, step)
        planned, hints = Planned.over(self.ranks, plan, asked), None
        injects = self.method.needs.prefixes or self.method.needs.hint
        if injects and bool(planned.asked.any()) and not bool(planned.prefixed.any()):
            raise DataError(
                f"step {step.index}: {type(self.method).__name__} injected no prefix although rows of "
                "the batch ask for one; going on would be plain Dr.GRPO under another name. Look at min_prefix_tokens, "
                "max_prefix_tokens and the answer guard"
            )
        if self.method.needs.hint:
            inputs = [self.hinted(given, prefix) for given, prefix in zip(inputs, plan, strict=True)]
            plan, hints = [NO_PREFIX] * len(plan), planned
            planned = Planned.over(self.ranks, plan, [False] * len(plan))
        return GenerationBatch(inputs, rows, plan, planned, step, hints)

    def planned_row(self, given: Mapping[str, Any], row: Row, step: Step) -> tuple[Mapping[str, Any], Row, Prefix]:
        """One row by itself: as TRL gets it, and what it starts from."""
        [prefix], _ = plan_of(self.method, [row], step)
        return (self.hinted(given, prefix), row, NO_PREFIX) if self.method.needs.hint else (given, row, prefix)

    def hinted(self, given: Mapping[str, Any], prefix: Prefix) -> Mapping[str, Any]:
        """TRL's row with a hint at the end of its prompt: of the text, or of its last turn."""
        if not prefix.ids:
            return given
        # half a character at its end is none
        hint = self.tokenizer.decode(prefix.ids, skip_special_tokens=True).rstrip("\ufffd")
        prompt, behind = given["prompt"], self.method.needs.hint.text.replace("{}", hint)
        if isinstance(prompt, str):
            return {**given, "prompt": prompt + behind}
        return {**given, "prompt": [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + behind}]}

    def for_grading(
        self, plan: Sequence[Prefix], inputs: Sequence[Mapping[str, Any]], completions, completion_ids
    ) -> Sequence[Mapping[str, Any]]:
        """The rows with a column for reward functions: where in the completion's text the policy's own text begins.

        A demonstration injected whole is no answer of the policy's either way: it is graded as it stands. Where the
        method injects nothing there is no such column.
        """
        if not self.method.needs.prefixes:
            return inputs
        starts = []
        for prefix, ids, completion in zip(plan, completion_ids, completions, strict=True):
            text = completion if isinstance(completion, str) else completion[-1]["content"] or ""
            partial = prefix.ids and not prefix.complete
            starts.append(continuation_start(text, prefix.ids, ids, self.tokenizer) if partial else 0)
        return [{**given, "continuation_start": start} for given, start in zip(inputs, starts, strict=True)]


def problems_in_place(due: Sequence[int], own: slice, group_size: int) -> list[int]:
    """The problem of each of this rank's rows, where ``due`` ones take the place of the batch's.

    >>> problems_in_place([7, 5], slice(2, 6), group_size=4)  # the second of two ranks would have slice(6, 8)
    [7, 7, 5, 5]
    """
    return [due[i // group_size] for i in range(own.start, own.stop)]


def plan_of(method: Method, rows: Sequence[Row], step: Step) -> tuple[list[Prefix], list[bool]]:
    """Prefix of each row, and True for each row that was to start from one.

    A row for which the method has no prefix was not, nor one that was to get a prefix of length 0.
    """
    found = [method.prefix(row, step) for row in rows]
    # drawn = 0 of a demonstration is a length that was asked for; of = 0: there was no demonstration to cut
    asked = [prefix is not None and (prefix.drawn > 0 or not prefix.of) for prefix in found]
    return [NO_PREFIX if prefix is None else prefix for prefix in found], asked


def to_generate(plan: Sequence[Prefix], all_rows: bool) -> list[int]:
    """The rows that the generation back-end is asked for: not those that are complete already.

    vLLM is asked for ``all_rows``, since its processes share their prompts out by position; what it writes behind a
    complete row is thrown away. At least one row is asked for: sharded parameters are gathered by all ranks.

    >>> to_generate([Prefix([5], complete=True), Prefix([6])], all_rows=False)
    [1]
    """
    if all_rows:
        return list(range(len(plan)))
    return [i for i, prefix in enumerate(plan) if not prefix.complete] or [0]


def begun(prompts: Sequence[Sequence[int]], plan: Sequence[Prefix], rows: Sequence[int]) -> list[list[int]]:
    """The ids that these rows are continued from: the prompt, and its prefix if that is not complete."""
    return [[*prompts[i], *([] if plan[i].complete else plan[i].ids)] for i in rows]


def joined(
    plan: Sequence[Prefix], written: Mapping[int, Sequence[T]], budget: int, fill: T | None = None, ids: bool = True
) -> list[list[T]]:
    """The completion of each row, ``prefix | what was written behind it``, within ``budget`` tokens.

    Args:
        written: by row; whatever was written behind a complete prefix is dropped.
        fill: stands for a prefix token, unless its ``ids`` are meant.
    """
    return [
        join(prefix.ids if ids else [fill] * len(prefix.ids), () if prefix.complete else written[i], budget)
        for i, prefix in enumerate(plan)
    ]


def check_tokens(plan: Sequence[Prefix], completions: Sequence[Sequence[int]]) -> None:
    """The prefixes stand in the batch token by token as they were planned.

    Raises:
        RuntimeError: naming the first row in which one does not.
    """
    for row, (prefix, ids) in enumerate(zip(plan, completions, strict=True)):
        if list(ids[: len(prefix.ids)]) != prefix.ids:
            raise RuntimeError(
                f"row {row} should start with a prefix of {len(prefix.ids)} tokens and does not: the generation "
                "back-end dropped or changed it"
            )
