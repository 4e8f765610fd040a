"""Rewards: a verifiable answer, graded by math-verify in processes that can be killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from .equality import TRAINING_RULES
from .grading import Outcome
from .workers import Grader


class MathReward:
    """1 for a right final answer, 0 for any other outcome, None where the gold answer cannot be parsed.

    A reward function as TRL calls it. The completion counts as a whole, prefix and continuation; but an answer that
    stands in the prefix alone is none.

    Args:
        grader: the workers, with their rules; unless given, two that want an answer to be marked.
    """

    __name__ = "math_reward"
    in_process = True  # its workers are the processes

    def __init__(self, grader: Grader | None = None):
        self.grader = grader or Grader(rules=TRAINING_RULES)

    def __call__(
        self,
        completions: Sequence[str] | Sequence[list[dict[str, str]]],
        answer: Sequence[str],
        continuation_start: Sequence[int] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: object,
    ) -> list[float | None]:
        """Grades plain or conversational completions against the data set's ``answer`` column.

        The trainer gives ``continuation_start``: for each completion the offset at which the policy's own text begins.
        ``log_metric`` gets the share of each outcome (``outcome/right`` and so on), ``log_extra`` the outcomes
        and the answers that were found.
        """
        texts = [c if isinstance(c, str) else c[-1]["content"] or "" for c in completions]  # no content: a tool call
        golds = ["" if gold is None else str(gold) for gold in answer]
        starts = [0] * len(texts) if continuation_start is None else continuation_start
        verdicts = self.grader.judge(list(zip(texts, golds, starts, strict=True)))
        outcomes = [verdict.outcome for verdict in verdicts]
        if log_extra:
            log_extra("outcome", [str(outcome) for outcome in outcomes])
            log_extra("found", [verdict.answer for verdict in verdicts])
        if log_metric:
            counts = Counter(outcomes)
            for outcome in Outcome:
                log_metric(f"outcome/{outcome}", counts[outcome] / max(len(outcomes), 1))
        return [None if outcome is Outcome.BAD_GOLD else float(outcome is Outcome.RIGHT) for outcome in outcomes]


math_reward = MathReward()
"""The reward with its default settings; its workers start at the first call."""
