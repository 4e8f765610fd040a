"""Settings of ``prefix-rl prepare``, and its named filters (presets)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated

from annotated_types import Ge, Interval, Le

from ..errors import DataError
from ..fields import check, fields_of

Fraction = Annotated[float, Interval(ge=0, le=1)]
PRESETS = {"openr1-46k": {"max_completion_length": 8192, "require_demonstration": True, "demonstrations": 1}}
"""Named filters. ``openr1-46k`` follows the published description of OpenR1-Math-46k-8192, the training set of LUFFY
(arXiv 2504.14945) and Prefix-RFT (arXiv 2507.01679): one right trace of R1 for each problem, of at most 8,192 tokens.
We do not know which trace was chosen where there were several, and take the first; so some rows may differ."""


@dataclass(frozen=True)
class Settings:
    """Conditions on the rows and demonstrations that are kept."""

    split: str = "train"
    """The split to read, for data sets on the hub."""
    limit: Annotated[int, Ge(1)] | None = None
    """Number of rows to read from the start of the sources; null: all."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name and the data set's name, ``problem=question``, for a column that is not recognized."""
    system_turns: bool = True
    """Keep the system turns of messages; a recipe's ``data.system_prompt`` is for problems without one."""
    renumber: bool = False
    """Replace all ids by new ones: the number of the row in its source."""
    against: tuple[str, ...] = ()
    """An evaluation set, whose problems must not be trained on."""
    ngram: Annotated[int, Ge(2), Le(1000)] = 8
    """Number of words in a row shared with an evaluation problem at which a problem is dropped (usual: 8 or 13)."""
    spare_phrases: bool = False
    """Do not drop a problem for a mere turn of phrase: a run of words that occurs in three different evaluation
    problems."""
    force: bool = False
    """Go on even if the sources contain a whole evaluation set; its problems are dropped."""
    similarity: Fraction | None = 0.8
    """Similarity of words at which a problem is dropped as a near-duplicate of an earlier one with the same numbers and
    answer; null: only exact copies are dropped."""
    pass_rates: str | None = None
    """Measured pass rates: a file of rows with id and pass_rate (or right and attempts), or a trace store."""
    pass_rate: tuple[Fraction, Fraction] | None = None
    """Keep problems with a pass rate from LOW to HIGH, both included."""
    reward: str = "math"
    """The reward that a demonstration must earn: math, code, or the dotted path of a function of your own. It should be
    the first of ``reward.functions`` in the recipe that trains on the file."""
    append_answer: bool = False
    """Append the gold answer in a box to demonstrations that mark no final answer, as is common in published solutions;
    demonstrations that mark a wrong answer are still dropped."""
    max_prompt_length: Annotated[int, Ge(1)] | None = None
    """Largest number of tokens of a problem, counted as a user's turn in the tokenizer's chat template, if it has one;
    longer problems are dropped."""
    max_completion_length: Annotated[int, Ge(2)] | None = None
    """Largest number of tokens of a demonstration, EOS included; longer demonstrations are dropped."""
    demonstrations: Annotated[int, Ge(0)] | None = None
    """Largest number of demonstrations to keep for each problem, the first right ones; null: all."""
    require_demonstration: bool = False
    """Drop problems that have no demonstration left."""
    demonstration_share: Fraction = 1.0
    """The share of the problems that keep their demonstrations (0.1, 0.01), chosen in the same way as
    ``data.demonstration_share`` of a recipe."""
    seed: int = 42
    """The seed of that choice; a recipe with the same seed makes the same choice. The default is TRL's."""

    def __post_init__(self):
        _, by_name = check("prepare", asdict(self), fields_of(type(self)))
        faults = [f"{name} {what}" for name, what in by_name.items()]
        if "prepare.pass_rate" not in by_name and self.pass_rate and self.pass_rate[0] > self.pass_rate[1]:
            faults.append(f"prepare.pass_rate = {list(self.pass_rate)}: must be LOW HIGH with LOW <= HIGH")
        if faults:
            raise DataError("settings that cannot be:", faults)
