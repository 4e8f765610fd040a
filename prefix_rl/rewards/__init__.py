"""Rewards for verifiable answers. Answers are graded in worker processes, which are killed when they take too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from .equality import TRAINING_RULES
from .grading import Outcome, gold_text
from .workers import Grader


class MathReward:
    """Reward of a completion: 1 if its final answer is right, 0 if not, None if the gold answer cannot be parsed.

    TRL calls it as a reward function. The answer is looked for in the whole completion (prefix and continuation), but
    an answer that ends inside the prefix does not count.

    Args:
        grader: worker processes and their rules. Default: two workers, and only a marked answer (as in a box) counts.
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
        """Rewards of plain or conversational completions, one each, against the ``answer`` column of the data set.

        Args:
            continuation_start: for each completion the offset, in characters, at which the policy's own text begins.
            log_metric: is called with the share of each outcome (``outcome/right`` and so on).
            log_extra: is called with the outcomes and with the final answers of the completions.
        """
        texts = [c if isinstance(c, str) else c[-1]["content"] or "" for c in completions]  # no content: a tool call
        golds = list(map(gold_text, answer))
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
"""Reward function with the default settings. Its workers start at the first call."""
