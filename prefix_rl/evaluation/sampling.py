"""Sampling completions from a policy, and grading them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..data.problems import Problem
from ..data.tokenizer import DemonstrationTable, encode_prompt
from ..prefixes import AnswerGuard, cut, join
from ..rewards.grading import Outcome
from ..rewards.workers import Grader

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sample:
    """One graded completion."""

    problem: int
    prefix_tokens: int
    completion_ids: list[int]
    text: str
    outcome: Outcome
    truncated: bool

    @property
    def right(self) -> bool:
        return self.outcome is Outcome.RIGHT


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prompts: Sequence[str | list[dict[str, str]]],
    grader: Grader,
    *,
    samples: int = 1,
    max_completion_length: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    prefix_fraction: float = 0.0,
    guard: AnswerGuard = "mention",
    progress: Callable[[int], object] = lambda n: None,
) -> list[Sample]:
    """``samples`` graded completions for each problem, in order.

    With ``prefix_fraction`` > 0 every completion starts from the first ``floor(fraction * |demonstration|)`` tokens of
    the problem's first demonstration, and problems without one are left out. Otherwise nothing is injected.
    """
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    stops = _eos_ids(model, tokenizer)
    table = DemonstrationTable(
        [p.demonstrations for p in problems], [p.answer for p in problems], tokenizer, guard, stop_ids=stops
    )
    jobs = []  # (problem, prompt ids, prefix ids)
    for index, prompt in enumerate(prompts):
        prefix: list[int] = []
        if prefix_fraction > 0:
            if not table[index]:
                continue
            prefix = cut(table[index][0], prefix_fraction, min_tokens=0, max_tokens=max_completion_length - 1).ids
        jobs += [(index, encode_prompt(prompt, tokenizer), prefix)] * samples

    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    config = GenerationConfig(
        max_new_tokens=max_completion_length,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0],
        eos_token_id=stops,
        disable_compile=True,
        **sampling,
    )
    pad = config.pad_token_id
    found: list[Sample] = []
    for start in range(0, len(jobs), batch_size):
        chunk = jobs[start : start + batch_size]
        torch.manual_seed(seed * 1_000_003 + start)  # a batch draws the same whatever was sampled before it
        rows = [prompt + prefix for _, prompt, prefix in chunk]
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        made = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
        completions = [
            join(prefix, until_stop(new, stops), max_completion_length)
            for (_, _, prefix), new in zip(chunk, made, strict=True)
        ]
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        outcomes = grader.grade([(text, problems[i].answer) for (i, _, _), text in zip(chunk, texts, strict=True)])
        for (index, _, prefix), completion, text, outcome in zip(chunk, completions, texts, outcomes, strict=True):
            found.append(Sample(index, len(prefix), completion, text, outcome, completion[-1] not in stops))
        progress(len(chunk))
    return found


def until_stop(ids: Sequence[int], stops: Sequence[int]) -> list[int]:
    """The ids up to and including the first stop.

    >>> until_stop([5, 6, 1, 0, 0], stops=[1])
    [5, 6, 1]
    """
    end = next((i + 1 for i, token in enumerate(ids) if token in stops), len(ids))
    return list(ids[:end])


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a completion: the model's and the tokenizer's."""
    declared = model.generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([*declared, tokenizer.eos_token_id]))


def by_problem(samples: Sequence[Sample]) -> list[list[bool]]:
    """Whether each sample is right, grouped by problem."""
    grouped: dict[int, list[bool]] = {}
    for s in samples:
        grouped.setdefault(s.problem, []).append(s.right)
    return list(grouped.values())


def mean_length(samples: Sequence[Sample]) -> float:
    """Mean tokens of a completion, prefix included."""
    return math.fsum(len(s.completion_ids) for s in samples) / len(samples)
