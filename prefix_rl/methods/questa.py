"""QuestA (arXiv 2507.13266): the first part of a solution stands in the question, as a hint.

``max_pi  sum over x of E_{y ~ pi(.|x + hint_p(x))} r(x, y)``, with ``hint_p(x)`` the first p of a solution, as text

- *Injected.* Nothing into the rollout. The prompt ends with the first p of a demonstration: ``first`` of it, and from
  step ``switch`` on ``then``. All rollouts of a group have the same prompt.
- *Credit.* ``A = r - mean(group)``. *Which tokens move.* All of the rollout; the hint is part of the question.

The baseline for prefixes: the policy is told how a solution begins, instead of having begun it. Evaluation never sees a
hint. Published are p = 50 % for 100 steps and then 25 % for 1,900 (with 0 % at last nothing was gained), on the hardest
of 26 thousand problems, with 16 rollouts a group and groups without signal filtered out (``training`` has a setting for
that). That was read in an account of the paper. Ours are the words around the hint, that it is cut by tokens or as
``cut`` says, where the paper takes a share of the text, that it stops where the answer becomes readable
(``data.answer_guard``), and the group's mean without its deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from ..prefixes import Prefix, cut
from ..rollouts import Row, Step
from .base import Fraction, Hint, Method, Needs
from .cutting import Cutting


@dataclass(frozen=True)
class QuestA(Cutting, Method):
    """QuestA with the paper's shares. ``first: 0, then: 0`` is Dr.GRPO."""

    first: Fraction = 0.5
    """Share of a demonstration in the prompt, at first."""
    then: Fraction = 0.25
    """The same from ``switch`` on."""
    switch: Annotated[int, Ge(0)] | None = None
    """Optimizer step at which the share changes; null: 0.05 of the run (the paper: 100 of 2,000)."""
    max_hint_tokens: Annotated[int, Ge(1)] = 2048
    """Longer hints are cut to this. Prompt, hint and completion must fit into the model's context."""
    instruction: str = "\n\nA solution may begin like this:\n{}"
    """Text at the end of the prompt; the hint stands in the place of ``{}``."""

    @property
    def needs(self) -> Needs:
        if not self.first and not self.then:
            return Needs()
        return Needs(hint=Hint(self.instruction, self.max_hint_tokens), cut=self.cut)

    def faults(self, training: Mapping[str, object]) -> list[str]:
        if self.instruction.count("{}") == 1:
            return []
        return [f"method.instruction = {self.instruction!r} must have {{}} once, where the hint is to stand"]

    def share(self, step: Step) -> float:
        """p: share of a demonstration that prompts have at this step."""
        switch = round(0.05 * step.total) if self.switch is None else self.switch
        return self.first if step.index < switch else self.then

    def prefix(self, row: Row, step: Step) -> Prefix | None:
        """A hint, the same for all rows of a group."""
        share = self.share(step)
        if not share or not row.demonstrations:
            return None
        hinted = row.drawn("hinted", step.seed, step.index, row.group)
        return cut(hinted, share, max_tokens=self.max_hint_tokens)
