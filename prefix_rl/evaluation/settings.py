"""The ``evaluation`` block of a recipe, which is also what ``prefix-rl evaluate`` takes on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

Fraction = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True)
class Evaluation:
    """What it is evaluated on, and how; never with a prefix, except at ``prefix_fractions``."""

    data: str | None = None
    """A file of problems, a data set on the hub, or ``lab``: for accuracy while training, and for `prefix-rl evaluate`
    unless ``on`` is given. null: none."""
    split: str = "test"
    """The split, of data sets on the hub."""
    limit: Annotated[int, Ge(1)] | None = None
    """The first problems of each benchmark only."""
    allow_overlap: bool = False
    """Train although problems of ``data`` stand among the training problems."""
    on: tuple[str, ...] = ()
    """What `prefix-rl evaluate` measures on: benchmarks (aime24, aime25, amc23, math500, minerva, olympiadbench,
    gsm8k), NAME=FILE, FILE."""
    benchmarks: str | None = None
    """A folder with local files of the named benchmarks (math500.jsonl); null: $PREFIX_RL_BENCHMARKS, or else the
    hub."""
    samples: Annotated[int, Ge(1)] | None = None
    """Completions for each problem; null: the benchmark's own number (32 for AIME and AMC, 1 elsewhere)."""
    k: tuple[Annotated[int, Ge(1)], ...] = ()
    """Of pass@k and maj@k; empty: the number of samples."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates."""
    temperature: Annotated[float, Ge(0)] = 1.0
    """0: greedy. Where there is no recipe `prefix-rl evaluate` takes 0.6."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens that together have this probability."""
    max_completion_length: Annotated[int, Ge(2)] | None = None
    """Tokens; null: training.max_completion_length, and where there is no recipe 8192."""
    batch_size: Annotated[int, Ge(1)] | None = None
    """Completions generated and saved together; null: 64, with vLLM 1,024."""
    prefix_fractions: tuple[Fraction, ...] = ()
    """Also the accuracy from these fractions of a demonstration."""
    seed: int = 0
    """Of all sampling."""

    @property
    def at_once(self) -> int:
        """Completions generated together."""
        return self.batch_size or (64 if self.engine == "transformers" else 1024)
