"""Sampling completions from a policy, and grading them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..data.problems import Problem
from ..data.tokenizer import DemonstrationTable, Turn
from ..engines.base import Engine, Request, Sampling, completions, seed_of
from ..prefixes import AnswerGuard, cut
from ..rewards.functions import gold_of
from ..rewards.grading import Outcome
from ..rewards.workers import Grader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
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
    limit = max_completion_length
    requests = [request_of(job, problems, Sampling(temperature, top_p), limit, seed) for job in jobs]
    found: dict[Job, Sample] = {}
    for done in completions(engine, requests, batch_size):
        made = graded(done, engine.stops, tokenizer, grader, problems)
        found |= {request.about: one for (request, _), one in zip(done, made, strict=True)}
        progress(len(done))
    return [found[job] for job in jobs]


def prefixes_of(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    turn: Turn,
    fraction: float,
    guard: AnswerGuard,
    max_completion_length: int,
) -> list[list[int] | None]:
    """Prefix for each problem: without tokens at fraction 0; None where there is no demonstration to cut."""
    if fraction <= 0:
        return [[] for _ in problems]
    table = DemonstrationTable(
        [p.demonstrations for p in problems], [p.answer for p in problems], tokenizer, guard, turn=turn,
        problems=[p.text for p in problems],
    )  # fmt: skip
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


def request_of(
    job: Job, problems: Sequence[Problem], sampling: Sampling, max_completion_length: int, seed: int
) -> Request:
    """The request to an engine for one sample. The seed follows from the problem's id and the job's index."""
    limit = min(job.max_tokens or max_completion_length, max_completion_length) - len(job.prefix_ids)
    own = seed_of(seed, problems[job.problem].id, job.index)
    return Request([*job.prompt_ids, *job.prefix_ids], limit, own, sampling, about=job)


def graded(
    done: Sequence[tuple[Request, Sequence[int]]],
    stops: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    grader: Grader | None,
    problems: Sequence[Problem],
) -> list[Sample]:
    """The samples that completions are, graded together. ``request.about`` is the job of each."""
    jobs: list[Job] = [request.about for request, _ in done]
    completions = [[*job.prefix_ids, *ids] for job, (_, ids) in zip(jobs, done, strict=True)]
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    prefixes = tokenizer.batch_decode([list(job.prefix_ids) for job in jobs], skip_special_tokens=True)
    asked = [
        (text, gold_of(grader, problems[job.problem]), len(prefix))
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
            truncated=not set(completion[-1:]) & set(stops),
            index=job.index,
            answer=verdict and verdict.answer,
            found_by=verdict and verdict.found_by,
            start=len(prefix),
        )
        for job, completion, text, prefix, verdict in zip(jobs, completions, texts, prefixes, verdicts, strict=True)
    ]


def by_problem(samples: Sequence[Sample]) -> list[list[bool]]:
    """Outcomes of the samples, True if right, one list for each problem."""
    grouped: dict[int, list[bool]] = {}
    for s in samples:
        grouped.setdefault(s.problem, []).append(s.right)
    return list(grouped.values())


def mean_length(samples: Sequence[Sample]) -> float:
    """Mean tokens of a completion, prefix included."""
    return math.fsum(len(s.completion_ids) for s in samples) / len(samples)
