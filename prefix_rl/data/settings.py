"""What ``prefix-rl prepare`` keeps, and its named filters."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated

from annotated_types import Ge, Interval, Le

from ..errors import DataError
from ..fields import check, fields_of

Fraction = Annotated[float, Interval(ge=0, le=1)]
PRESETS = {"openr1-46k": {"max_completion_length": 8192, "require_demonstration": True, "demonstrations": 1}}
"""Named filters. ``openr1-46k``: what is known of OpenR1-Math-46k-8192, the training set of LUFFY (arXiv 2504.14945)
and Prefix-RFT (arXiv 2507.01679): one trace of R1 for each problem, right, of at most 8,192 tokens. Which of several
was taken is not known to us; here it is the first. So the rows need not be the very same."""


@dataclass(frozen=True)
class Settings:
    """What is kept."""

    split: str = "train"
    """The split, of data sets on the hub."""
    limit: Annotated[int, Ge(1)] | None = None
    """Read the first rows only."""
    columns: dict[str, str] = field(default_factory=dict)
    """``problem=question`` for a column that is not known by name."""
    system_turns: bool = True
    """Keep the system turns of messages; a recipe's ``data.system_prompt`` is for problems without one."""
    renumber: bool = False
    """Give new ids: the number of the row in its source."""
    against: tuple[str, ...] = ()
    """An evaluation set, whose problems must not be trained on."""
    ngram: Annotated[int, Ge(2), Le(1000)] = 8
    """A problem with so many words in a row in common with one of theirs is dropped (8; 13)."""
    spare_phrases: bool = False
    """Drop no problem for a turn of phrase, which stands in three different evaluation problems."""
    force: bool = False
    """Go on, dropping its problems, if an evaluation set stands whole in the sources."""
    similarity: Fraction | None = 0.8
    """Drop problems with the same numbers and answer whose words are as similar as that to an earlier one's; null: only
    the same ones."""
    pass_rates: str | None = None
    """Measured pass rates: rows of id and pass_rate (or right, attempts), or a trace store."""
    pass_rate: tuple[Fraction, Fraction] | None = None
    """Keep problems with a pass rate from LOW to HIGH, both included."""
    reward: str = "math"
    """The reward that a demonstration must earn: math, code, or the dotted path of a function of your own, as the first
    of ``reward.functions`` of the recipe that trains on the file."""
    append_answer: bool = False
    """Append the gold answer in a box to demonstrations that mark no final answer, as published solutions often do
    not; those that mark a wrong one are dropped all the same."""
    max_prompt_length: Annotated[int, Ge(1)] | None = None
    """Drop longer problems, in tokens of a user's turn through the tokenizer's chat template, if it has one."""
    max_completion_length: Annotated[int, Ge(2)] | None = None
    """Drop longer demonstrations, in tokens with EOS."""
    demonstrations: Annotated[int, Ge(0)] | None = None
    """At most so many for each problem, the first right ones."""
    require_demonstration: bool = False
    """Drop problems that no demonstration is left for."""
    demonstration_share: Fraction = 1.0
    """The share of the problems that keep their demonstrations (0.1, 0.01), chosen as by ``data.demonstration_share``
    of a recipe."""
    seed: int = 42
    """Of that choice; the same as a recipe's makes the same choice, and this is TRL's default."""

    def __post_init__(self):
        _, by_name = check("prepare", asdict(self), fields_of(type(self)))
        faults = [f"{name} {what}" for name, what in by_name.items()]
        if "prepare.pass_rate" not in by_name and self.pass_rate and self.pass_rate[0] > self.pass_rate[1]:
            faults.append(f"prepare.pass_rate = {list(self.pass_rate)}: must be LOW HIGH with LOW <= HIGH")
        if faults:
            raise DataError("settings that cannot be:", faults)
