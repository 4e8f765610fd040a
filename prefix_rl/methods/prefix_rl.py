"""PrefixRL (arXiv 2601.18795): groups that start from a prefix of a correct trace, beside groups that do not.

``max_pi  sum over x_pre in D_pre of E_{y ~ pi(.|x_pre)} r(x_pre, y) + sum over x in D of E_{y ~ pi(.|x)} r(x, y)``
(Eq. 3.1)

- *Injected.* An epoch holds each problem with a correct trace ``cuts`` times with a prefix, and ``plain`` times
  without: 3:1. The cuts are drawn once, uniformly between ``low`` and ``high`` of the trace's tokens, and kept. All
  rollouts of a group start from the same prefix. A problem without a correct trace keeps its plain copy.
- *Credit.* ``r - mean(group)`` among the rollouts of one (problem, prefix).
- *Which tokens move.* Those that the policy wrote. The prefix is context: no gradient, no importance weight.

``traces: wrong`` is failure-prefix conditioning (arXiv 2601.20829): prefixes of the policy's rare *wrong* traces, for
problems that it solves almost always. A plain group of such a problem has no signal; behind the beginning of a failure
success is rarer, and what is learned is to recover. The paper chooses the length at which accuracy is closest to 1/2;
here ``low`` and ``high`` are given, and a longer prefix makes a problem harder. Every prefix stops before the trace
states its answer, as before the right one shows.

The traces are the policy's own, from ``prefix-rl collect`` (``data.traces``), or any demonstrations. The paper's
``plain: 0`` experiment trains on prefixed problems alone and asks for unprefixed accuracy (back-generalization).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from ..prefixes import Prefix, cut, draw_fraction, uniform
from ..rollouts import Row, Step
from .base import Fraction, Method, Needs
from .cutting import Cutting


@dataclass(frozen=True)
class PrefixRL(Cutting, Method):
    """PrefixRL with the paper's settings as defaults. ``cuts: 0`` is Dr.GRPO."""

    cuts: Annotated[int, Ge(0)] = 3
    """Prefixed copies of a problem in an epoch, each with a cut of its own."""
    plain: Annotated[int, Ge(0)] = 1
    """Copies without a prefix. 0: prefixed problems only; problems without a trace are then left out."""
    low: Fraction = 0.4
    """The least share of a trace's tokens that a prefix holds."""
    high: Fraction = 0.8
    """The largest."""
    redraw: bool = False
    """Draw the cuts anew in every step, instead of once."""
    balance: Literal["problem", "epoch"] = "problem"
    """problem: copies are counted for each problem, as in the paper. epoch: problems with a trace are repeated until
    cuts : plain holds for the whole epoch, however few they are."""

    traces: Literal["right", "wrong"] = "right"
    """wrong: prefixes of the policy's own failures, for problems that it solves almost always; needs data.traces."""

    @property
    def needs(self) -> Needs:
        return Needs(prefixes=self.cuts > 0, wrong=self.traces == "wrong", cut=self.cut)

    def faults(self, training: Mapping[str, object]) -> list[str]:
        faults = []
        if self.cuts + self.plain == 0:
            faults.append("method.cuts = 0 and method.plain = 0 leave no row to train on")
        if self.low > self.high:
            faults.append(f"method.low = {self.low} is above method.high = {self.high}")
        if self.balance == "epoch" and self.plain == 0:
            faults.append("method.balance = epoch keeps cuts : plain over an epoch, and method.plain = 0; use problem")
        return faults

    def copies(self, demonstrated: Sequence[bool]) -> list[int]:
        having = sum(demonstrated)
        cuts = self.cuts
        if self.balance == "epoch" and having:
            cuts = math.ceil(self.cuts * len(demonstrated) / having)
        return [self.plain + (cuts if has else 0) for has in demonstrated]

    def prefix(self, row: Row, step: Step) -> Prefix | None:
        """A prefix, the same for all rows of a group: it depends on problem, copy and, if re-drawn, the step."""
        if row.copy < self.plain or not row.demonstrations:
            return None
        key = (step.seed, row.problem, row.copy, *((step.index, row.group) if self.redraw else ()))
        drawn = draw_fraction(self.low, self.high, uniform("cut", *key))
        return cut(
            row.drawn("trace", *key),
            drawn if row.fraction is None else row.fraction,
            min_tokens=0 if row.fraction == 0 else 1,
            max_tokens=step.max_completion_length - 1,
        )
