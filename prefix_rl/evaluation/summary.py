"""Graded samples to numbers: avg@k, pass@k, maj@k, outcomes, truncation, length."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from ..errors import DataError
from ..progress import bar
from ..rewards.grading import Outcome
from ..rewards.workers import Grader
from .metrics import bootstrap, estimate, majority_at_k, pass_at_k

Row = Mapping[str, Any]  # of samples.SCHEMA, without the text


def ks_of(asked: Sequence[int], samples: Mapping[str, int]) -> dict[str, list[int]]:
    """The k of pass@k and maj@k for each benchmark: those asked for that it has samples for; all of them if none is.

    Raises:
        DataError: for a k that no benchmark has samples for.

    >>> ks_of([4, 8], {"aime24": 32, "math500": 4})
    {'aime24': [4, 8], 'math500': [4]}
    >>> ks_of([], {"aime24": 32, "math500": 1})
    {'aime24': [32], 'math500': []}
    """
    most = max(samples.values())
    if large := [k for k in asked if k > most]:
        drawn = ", ".join(f"{n} of {name}" for name, n in samples.items())
        raise DataError(
            f"k = {', '.join(map(str, large))} is larger than the number of samples of a problem ({drawn}); draw more "
            f"with --samples {max(large)}, or ask for a smaller --k"
        )
    return {name: [k for k in sorted(set(asked or [n])) if 1 < k <= n] for name, n in samples.items()}


def summarize(problems: Sequence[str], rows: Sequence[Row], ks: Sequence[int], grader: Grader) -> dict[str, Any]:
    """Accuracy, pass@k, maj@k and lengths of the samples of one benchmark.

    Args:
        problems: ids, in their order; each has the same number of rows.
        rows: the samples.
        ks: for pass@k and maj@k.
        grader: decides which wrong answers are the same, for maj@k.
    """
    grouped: dict[str, list[Row]] = {name: [] for name in problems}
    for row in rows:
        grouped[row["problem"]].append(row)
    samples = len(rows) // len(problems)
    right = {name: sum(row["outcome"] == Outcome.RIGHT for row in group) for name, group in grouped.items()}
    shares = [right[name] / samples for name in problems]
    resampled = bootstrap(shares)
    found: dict[str, Any] = {
        "problems": len(problems),
        "samples": samples,
        "accuracy": asdict(estimate(shares, samples=samples)) | {"bootstrap": resampled and list(resampled)},
        "pass": {},
        "maj": {},
    }
    votes = [] if not ks else [votes_of(group) for group in _classes(list(grouped.values()), grader)]
    for k in ks:
        passed = [pass_at_k(samples, right[name], k) for name in problems]
        agreed = [majority_at_k(*vote, k) for vote in votes]
        found["pass"][str(k)] = asdict(estimate(passed, samples=samples))
        found["maj"][str(k)] = asdict(estimate(agreed, samples=samples))
    outcomes = Counter(row["outcome"] for row in rows)
    return found | {
        "outcomes": dict(sorted(outcomes.items())),
        "no_answer_share": outcomes[str(Outcome.NO_ANSWER)] / len(rows),
        "truncated_share": fmean(row["truncated"] for row in rows),
        "mean_completion_length": fmean(row["tokens"] for row in rows),
        "right_by_problem": right,
    }


def votes_of(answers: Sequence[str | bool | None]) -> tuple[int, list[int], int]:
    """Number of samples that are right, numbers with each other answer, and number with none."""
    counts = Counter(answers)
    right, silent = counts.pop(True, 0), counts.pop(None, 0)
    return right, sorted(counts.values(), reverse=True), silent


def _classes(groups: Sequence[Sequence[Row]], grader: Grader) -> list[list[str | bool | None]]:
    """Vote of each sample: True is the right answer, None is no vote, a text stands for all answers equal to it.

    Right answers are one class by definition. Two wrong ones are the same if the grader takes either for the other, and
    so are those that a chain of such pairs connects. Integers are the same only if they are the same digits.
    """
    votes: list[list[str | bool | None]] = [
        [True if row["outcome"] == Outcome.RIGHT else _bare(row["answer"]) for row in group] for group in groups
    ]
    pairs = []
    for q, group in enumerate(votes):
        wrong = sorted({vote for vote in group if isinstance(vote, str)})
        pairs += [(q, a, b) for a in wrong for b in wrong if a != b and not (_is_integer(a) and _is_integer(b))]
    with bar("comparing answers", len(pairs)) as advance:
        outcomes = grader.grade([(rf"\boxed{{{a}}}", b) for _, a, b in pairs], advance)
    stands_for: list[dict[str, str]] = [{} for _ in groups]

    def root(q: int, answer: str) -> str:
        while answer in stands_for[q]:
            answer = stands_for[q][answer]
        return answer

    for (q, a, b), outcome in zip(pairs, outcomes, strict=True):
        first, second = sorted((root(q, a), root(q, b)))
        if outcome is Outcome.RIGHT and first != second:
            stands_for[q][second] = first
    return [[root(q, vote) if isinstance(vote, str) else vote for vote in group] for q, group in enumerate(votes)]


def _bare(answer: str | None) -> str | None:
    return " ".join(answer.split()) or None if answer else None


def _is_integer(answer: str) -> bool:
    return re.fullmatch(r"-?\d+", answer) is not None
