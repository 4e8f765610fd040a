"""Settings of the block ``reward`` of a recipe."""

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
    """Reward functions (see docs/rewards.md), processes that grade, and rules of grading (see docs/grading.md)."""

    functions: tuple[str, ...] = (functions.MATH,)
    """Reward functions: math, code, or the dotted path of your own function. The first decides what is right."""
    weights: tuple[float, ...] | None = None
    """Factor of each function in the sum of rewards; null: 1 for each."""
    fallback: Literal["last", "none"] = TRAINING_RULES.fallback
    """Answer of a text without a marker (as a box). none: there is none. last: its last formula or number."""
    workers: Annotated[int, Ge(1), Le(256)] = 2
    """Number of grading processes on each rank."""
    deadline: Annotated[float, Ge(0.1), Le(86400)] = 5.0
    """Seconds that grading one sample may take; your own function may take as many for each completion of a call."""
    memory_mb: Annotated[int, Ge(256), Le(2**20)] = 2048
    """MiB of address space of one grading process; for your own function, in addition to what its import took."""

    @property
    def rules(self) -> Rules:
        """Rules of grading, without the other settings of this block."""
        return Rules(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Rules)})

    def grader(self) -> Grader:
        """Grader with these settings. Its workers start when they are first needed."""
        return Grader(self.workers, self.deadline, self.memory_mb, self.rules)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of a row that at least one of the functions requires."""
        return list(dict.fromkeys(column for name in self.functions for column in functions.needed(name)))

    @property
    def takes_columns(self) -> bool:
        """True if a function other than ``math`` is used, which may read further columns of the rows."""
        return self.functions != (functions.MATH,)
