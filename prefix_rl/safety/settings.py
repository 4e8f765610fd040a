"""The ``safety`` block of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt


@dataclass(frozen=True)
class Safety:
    """Reactions to what goes wrong while it trains; no setting changes what is learned as long as nothing does."""

    not_finite: Literal["stop", "skip"] = "stop"
    """NaN or infinity in log-probabilities, loss or gradient: stop before anything is written, or leave that update
    out."""
    skips_in_a_row: Annotated[int, Ge(1)] = 5
    """Number of updates left out in a row after which training stops all the same."""
    slow_step: Annotated[float, Gt(1)] = 10.0
    """Time of a step, as a multiple of the median, after which the stacks of all processes are written ..."""
    slow_seconds: Annotated[float, Gt(0)] = 120.0
    """... but not before these seconds."""
    first_seconds: Annotated[float, Gt(0)] = 1800.0
    """The same, before the first step has ended."""
    end_after: Annotated[float, Gt(0)] | None = 1800.0
    """Seconds without progress after the stacks were written, at which the run is ended; null: never."""
    grace: Annotated[float, Gt(0)] | None = 600.0
    """Seconds that a run asked to stop (SIGTERM, SIGUSR1) has to end its step and save; null: no limit."""
