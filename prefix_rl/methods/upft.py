"""UPFT: unsupervised prefix fine-tuning, "The First Few Tokens Are All You Need" (arXiv 2503.02875).

The policy answers each question once; the first ``t`` tokens of what it wrote are learned, whether they lead to the
right answer or not. A small share of the questions gives its full trace, so that the policy does not unlearn to end::

    L = - [ sum over prefix questions of log pi(r_<t | x, instruction) + sum over full ones of log pi(r | x) ] / tokens

No answers are needed, and few tokens are sampled: the collection stops a prefix trace after ``t``. What it rests on:
traces of one question begin alike, right or wrong, and differ later (the paper's prefix self-consistency).

The paper's template asks prefix questions for a beginning only. It is given for training; here the same prompt is
sampled with, so that what is learned is what the policy says to that prompt. Each token weighs the same, as in
:mod:`~prefix_rl.methods.sft`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

from ..prefixes import Demonstration, uniform
from .base import Fraction, Method, Needs
from .stage import Excerpt, Supervised, SupervisedOnly


@dataclass(frozen=True)
class UPFT(SupervisedOnly, Method):
    """The first tokens of one trace of each question. The defaults are the paper's for Llama-3.1-8B-Instruct."""

    tokens: Annotated[int, Ge(1)] = 8
    """t: number of first tokens of a trace that are learned. The paper: 8 for Llama-3.1-8B-Instruct, 32 for
    Qwen2.5-Math-7B-Instruct, 128 for DeepSeek-R1-Distill-Qwen-7B. A trace that ends earlier is learned with its end."""
    full_share: Fraction = 0.1
    """The share of the questions that give their FULL trace, drawn by problem id and the recipe's seed. This is the
    paper's p (0.1; 0.3 for LIMO); the released code's ``planning_pruning_ratio`` is the share of prefixes, 1 - p."""
    instruction: str = (
        "\n\nDo not solve all of it yet. Write only a first step, one that a complete solution could be built on."
    )
    """Appended to prefix questions, in the paper's sense and in other words; empty: nothing. Full ones have the normal
    prompt."""
    label_filter: bool = False
    """true: the form with labels. Traces are sampled in full and graded, and the first right one of a question is
    learned, cut as above; a question without one teaches nothing."""
    supervised: Supervised = field(
        default_factory=lambda: Supervised(epochs=1, learning_rate=1e-6, warmup=0.03, min_lr=1.0)
    )
    """The supervised stage; ``min_lr: 1`` keeps the learning rate constant after the warm-up. Epochs in the paper: 1
    (OpenMathInstruct-2, U-Hard), 2 (PRM800K) or 3 (LIMO, with a learning rate of 2e-6)."""

    needs = Needs(whole=True)
    own_traces = 1

    @property
    def needs_answers(self) -> bool:
        return self.label_filter

    def faults(self, training: Mapping[str, object]) -> list[str]:
        faults, longest = super().faults(training), training["max_completion_length"]
        if self.tokens >= longest:
            faults.append(
                f"method.tokens = {self.tokens} is not below training.max_completion_length = {longest}: no trace "
                "would be cut; lower it"
            )
        return faults

    def lessons(self, problem_id: str, demonstrations: Sequence[Demonstration], seed: int) -> Sequence[Demonstration]:
        """The first one."""
        return demonstrations[:1]

    def excerpt(self, problem_id: str, seed: int) -> Excerpt:
        """The whole trace for ``full_share`` of the problems, else its first ``tokens``."""
        if uniform("full trace", seed, problem_id) < self.full_share:
            return Excerpt()
        return Excerpt(self.tokens, self.instruction)
