"""Sampling completions from a policy, and grading them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..data.problems import Problem
from ..data.tokenizer import DemonstrationTable, Turn
from ..prefixes import AnswerGuard, cut, join
from ..rewards.grading import Outcome
from ..rewards.workers import Grader
from .engines import Engine, Sampling, seed_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Job:
    """One completion to be sampled."""

    problem: int
    index: int  # among the completions of this problem
    prompt_ids: Sequence[int]
    prefix_ids: Sequence[int] = ()
    max_tokens: int | None = None  # of the completion; None: as many as all may have


@dataclass(frozen=True)
class Sample:
    """One completion, graded if there was to be a verdict."""

    problem: int
    prefix_tokens: int
    completion_ids: list[int]
    text: str
    outcome: Outcome | None
    truncated: bool
    index: int = 0  # among the completions of this problem
    answer: str | None = None
    found_by: str | None = None
    start: int = 0  # the offset in the text at which the policy's own part begins

    @property
    def right(self) -> bool:
        return self.outcome is Outcome.RIGHT


def sample(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    turn: Turn,
    problems: Sequence[Problem],
    prompt_ids: Sequence[Sequence[int]],
    grader: Grader | None,
    *,
    samples: int = 1,
    max_completion_length: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    prefix_fraction: float = 0.0,
    guard: AnswerGuard = "mention",
    limits: Sequence[int | None] | None = None,
    progress: Callable[[int], object] = lambda n: None,
) -> list[Sample]:
    """``samples`` graded completions for each problem, in order, by a model that is loaded already.

    With ``prefix_fraction`` > 0 every completion starts from the first ``floor(fraction * |demonstration|)`` tokens of
    the problem's first demonstration, and problems without one are left out. Otherwise nothing is injected. A problem
    that stands in the list again goes on counting its completions, so that they differ. ``limits`` are tokens for each
    problem, where its completions are to stop earlier than ``max_completion_length``. Without a grader there are no
    outcomes.

    Args:
        turn: what the prompts end with and what ends a completion, see :attr:`~prefix_rl.policy.Policy.turn`.
        prompt_ids: the prompt of each problem, see :meth:`~prefix_rl.policy.Policy.prompt_ids`.
    """
    prefixes = prefixes_of(problems, tokenizer, turn, prefix_fraction, guard, max_completion_length)
    jobs = jobs_of(problems, prompt_ids, prefixes, samples)
    if limits is not None:
        jobs = [replace(job, max_tokens=limits[job.problem]) for job in jobs]
    found: list[Sample] = []
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        found += complete(
            engine, tokenizer, grader, problems, batch, Sampling(temperature, top_p), max_completion_length, seed
        )
        progress(len(batch))
    return found


def prefixes_of(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    turn: Turn,
    fraction: float,
    guard: AnswerGuard,
    max_completion_length: int,
) -> list[list[int] | None]:
    """What is injected for each problem: nothing at fraction 0; None where there is no demonstration to cut."""
    if fraction <= 0:
        return [[] for _ in problems]
    table = DemonstrationTable(
        [p.demonstrations for p in problems], [p.answer for p in problems], tokenizer, guard, turn=turn
    )
    return [
        cut(table[i][0], fraction, min_tokens=0, max_tokens=max_completion_length - 1).ids if table[i] else None
        for i in range(len(problems))
    ]


def jobs_of(
    problems: Sequence[Problem],
    prompt_ids: Sequence[Sequence[int]],
    prefixes: Sequence[Sequence[int] | None],
    samples: int,
) -> list[Job]:
    """The completions to be sampled, problem by problem."""
    jobs, counted = [], Counter()
    for i, (problem, prompt, prefix) in enumerate(zip(problems, prompt_ids, prefixes, strict=True)):
        if prefix is None:
            continue
        first = counted[problem.id]
        counted[problem.id] += samples
        jobs += [Job(i, first + k, prompt, prefix) for k in range(samples)]
    return jobs


def complete(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    grader: Grader | None,
    problems: Sequence[Problem],
    jobs: Sequence[Job],
    sampling: Sampling,
    max_completion_length: int,
    seed: int,
) -> list[Sample]:
    """The graded completions of one batch. Each has a seed of its own, from the problem's id and its index."""
    longest = [min(job.max_tokens or max_completion_length, max_completion_length) for job in jobs]
    made = engine.generate(
        [[*job.prompt_ids, *job.prefix_ids] for job in jobs],
        [limit - len(job.prefix_ids) for job, limit in zip(jobs, longest, strict=True)],
        [seed_of(seed, problems[job.problem].id, job.index) for job in jobs],
        sampling,
    )
    completions = [join(job.prefix_ids, new, n) for job, new, n in zip(jobs, made, longest, strict=True)]
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    prefixes = tokenizer.batch_decode([list(job.prefix_ids) for job in jobs], skip_special_tokens=True)
    asked = [
        (text, problems[job.problem].answer, len(prefix))
        for job, text, prefix in zip(jobs, texts, prefixes, strict=True)
    ]
    verdicts = grader.judge(asked) if grader else [None] * len(jobs)
    return [
        Sample(
            problem=job.problem,
            prefix_tokens=len(job.prefix_ids),
            completion_ids=completion,
            text=text,
            outcome=verdict and verdict.outcome,
            truncated=not set(completion[-1:]) & set(engine.stops),
            index=job.index,
            answer=verdict and verdict.answer,
            found_by=verdict and verdict.found_by,
            start=len(prefix),
        )
        for job, completion, text, prefix, verdict in zip(jobs, completions, texts, prefixes, verdicts, strict=True)
    ]


def by_problem(samples: Sequence[Sample]) -> list[list[bool]]:
    """Whether each sample is right, grouped by problem."""
    grouped: dict[int, list[bool]] = {}
    for s in samples:
        grouped.setdefault(s.problem, []).append(s.right)
    return list(grouped.values())


def mean_length(samples: Sequence[Sample]) -> float:
    """Mean tokens of a completion, prefix included."""
    return math.fsum(len(s.completion_ids) for s in samples) / len(samples)
