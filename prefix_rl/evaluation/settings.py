"""The ``evaluation`` block of a recipe, which is also what ``prefix-rl evaluate`` takes on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Interval, Le

Fraction = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True)
class Evaluation:
    """Problems and sampling of evaluations; never with a prefix, except at ``prefix_fractions``."""

    data: str | None = None
    """A file of problems, a data set on the hub, or ``lab``: for accuracy while training, and for `prefix-rl evaluate`
    unless ``on`` is set. null: none."""
    split: str = "test"
    """The split, of data sets on the hub."""
    limit: Annotated[int, Ge(1)] | None = None
    """The first problems of each benchmark only."""
    allow_overlap: bool = False
    """Train although problems of ``data`` stand among the training problems."""
    on: tuple[str, ...] = ()
    """Benchmarks of `prefix-rl evaluate`: by name (aime24, aime25, amc23, math500, minerva, olympiadbench,
    gsm8k), NAME=FILE, FILE."""
    benchmarks: str | None = None
    """A folder with local files of the named benchmarks (math500.jsonl); null: $PREFIX_RL_BENCHMARKS, or else the
    hub."""
    samples: Annotated[int, Ge(1), Le(2**16)] | None = None
    """Completions for each problem; null: the benchmark's own number (32 for AIME and AMC, 1 elsewhere)."""
    k: tuple[Annotated[int, Ge(1), Le(2**16)], ...] = ()
    """Values of k for pass@k and maj@k; empty: the number of samples."""
    temperature: Annotated[float, Ge(0), Le(1000)] = 1.0
    """0: greedy. Where there is no recipe `prefix-rl evaluate` takes 0.6."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens that together have this probability."""
    max_completion_length: Annotated[int, Ge(2), Le(2**24)] | None = None
    """Tokens; null: training.max_completion_length, and where there is no recipe 8192."""
    batch_size: Annotated[int, Ge(1), Le(2**16)] | None = None
    """Completions in the making at a time in one process; null: 64, with vLLM 1,024. Servers have
    engine.max_in_flight."""
    prefix_fractions: tuple[Fraction, ...] = ()
    """Fractions of a demonstration from which the accuracy is measured too."""
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    """Seed of all sampling."""
