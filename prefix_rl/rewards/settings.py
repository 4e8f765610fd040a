"""The ``reward`` block of a recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from . import functions
from .equality import TRAINING_RULES, Rules
from .workers import Grader


@dataclass(frozen=True)
class Reward(Rules):
    """What is rewarded (see docs/rewards.md), the processes that grade, and the rules (see docs/grading.md)."""

    functions: tuple[str, ...] = (functions.MATH,)
    """The rewards: math, code, or dotted paths of functions of your own. The first decides what is right."""
    weights: tuple[float, ...] | None = None
    """What each of them is multiplied by in the sum; null: 1 each."""
    fallback: Literal["last", "none"] = TRAINING_RULES.fallback
    """none: an answer must be marked. last: without a mark, the last formula or number of the text."""
    workers: Annotated[int, Ge(1), Le(256)] = 2
    """Grading processes on each rank."""
    deadline: Annotated[float, Ge(0.1), Le(86400)] = 5.0
    """Seconds that one sample may take; a function of your own has so many for each completion of a call."""
    memory_mb: Annotated[int, Ge(256), Le(2**20)] = 2048
    """Address space of one grading process, MiB; for a function of your own, beyond what its import took."""

    @property
    def rules(self) -> Rules:
        """The rules of mathematics alone."""
        return Rules(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Rules)})

    def grader(self) -> Grader:
        """The workers that grade by these settings; they start when first needed."""
        return Grader(self.workers, self.deadline, self.memory_mb, self.rules)

    @property
    def columns(self) -> list[str]:
        """The columns of a row that some of the functions cannot do without."""
        return list(dict.fromkeys(column for name in self.functions for column in functions.needed(name)))

    @property
    def takes_columns(self) -> bool:
        """Whether the further columns of the rows are read at all."""
        return self.functions != (functions.MATH,)
