"""Adaptive prefixes: how long a problem's prefix is follows from how its last group did.

``l_p = fraction(state_p)``, ``state_p <- seen(state_p, l_p, mean reward of the prefixed rollouts)``

- *Injected.* What ``of`` injects (PrefixRL, Prefix-RFT), with the length of a controller in the place of its own draw.
  ``rule`` chooses it, see :mod:`prefix_rl.controllers`:

  - *interval*, AdaBack (arXiv 2506.18110): uniform from an interval for each problem; a failure raises its lower end, a
    success lowers its upper one. A problem that was never seen draws from a moving average over problems, and now and
    then nothing is given.
  - *setpoint*, AdaPrefix-GRPO (arXiv 2607.07674): a common length and an offset for each problem hold success at
    ``target``; over the last part of the run all lengths fall to 0.
  - *search*, deferred: no prefix until a whole group fails, then a binary search for the shortest with which success
    lies in a band, one trial each time the problem comes round. BREAD (:mod:`.bread`) searches within the step.

- *Credit, which tokens move, extra objective.* As in ``of``. Behind PrefixRL the prefix is context, as in both
  papers.

Open points and how they are settled here: AdaPrefix-GRPO is known from its abstract alone, AdaBack from
accounts of others, so ``target``, the band, the gains and the annealing are ours. Success is the mean reward of the
group's prefixed rollouts, those without a reward left out. The copies of a problem share its controller. What a
controller is told is the length that was given, which the answer guard may have cut short. While lengths are annealed,
controllers hold still: they would work against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from statistics import fmean
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Interval

from .. import controllers
from ..prefixes import Prefix, uniform
from ..rollouts import Memory, Rollouts, Row, Step
from ..schedules import linear
from .base import Fraction, Method
from .combined import Combined
from .prefix_rl import PrefixRL

_KEY = "adaptive"  # of what is remembered
_NO_PREFIXES = "it starts no rollout from a prefix"
_WHOLE = "its demonstrations are injected whole"
_NO_ROLLOUTS = "it has no rollouts"
# What says nothing any more once a controller decides
_LENGTHS = {"prefix_rl": ("low", "high"), "prefix_rft": ("schedule", "start", "end", "high", "horizon")}


@dataclass(frozen=True)
class Adaptive(Combined):
    """Lengths by success. Where ``of`` injects nothing (``cuts: 0``, ``prefixed: 0``) this is Dr.GRPO."""

    of: Method = field(default_factory=lambda: PrefixRL(cuts=1, plain=0))
    """prefix_rl, by default with one row for each problem and no other, as in the papers; or prefix_rft."""
    rule: Literal["interval", "setpoint", "search"] = "interval"
    """interval: AdaBack. setpoint: AdaPrefix-GRPO. search: deferred."""
    target: Fraction = 0.5
    """interval: the mean reward from which on a length was enough. setpoint: where success is held (the paper: 0.5)."""
    average: Fraction = 0.8
    """interval: what the moving average for problems that were never seen keeps in a batch (the authors' code: 0.8).
    1: each starts from the whole range."""
    unaided: Fraction = 0.1
    """interval: probability of injecting nothing (the paper: 0.1)."""
    longest: Fraction = 1.0
    """interval: the longest share at first (the paper: 1; the authors' code: 0.9)."""
    gain: Annotated[float, Gt(0)] = 0.1
    """setpoint: how far a length moves, for a success that is off by 1."""
    smoothing: Annotated[float, Interval(gt=0, le=1)] = 0.5
    """setpoint: the weight of the newest batch in the moving average of success."""
    start: Fraction = 0.5
    """setpoint: the length common to all problems at first."""
    anneal: Fraction = 0.2
    """setpoint: the last share of the run, over which lengths fall to 0. 0: they do not."""
    horizon: Annotated[int, Ge(1)] | None = None
    """setpoint: the optimizer step at which lengths have fallen to 0; null: the end of the run."""
    episodes: Annotated[int, Ge(1)] = 10
    """search: the parts of a demonstration that lengths are counted in."""
    least: Fraction = 0.25
    """search: success below this is too little."""
    most: Fraction = 0.75
    """search: success above this is more than needed."""

    _read_with: ClassVar = {
        "target": ("rule", ("interval", "setpoint")),
        **dict.fromkeys(("average", "unaided", "longest"), ("rule", ("interval",))),
        **dict.fromkeys(("gain", "smoothing", "start", "anneal", "horizon"), ("rule", ("setpoint",))),
        **dict.fromkeys(("episodes", "least", "most"), ("rule", ("search",))),
    }
    """Settings that say nothing beside other values (:mod:`.idle`)."""

    takes: ClassVar = ("prefix_rl", "prefix_rft")
    refuses: ClassVar[Mapping[str, str]] = {
        "tempo": "write it the other way round, tempo with of: adaptive",
        "uft": "its hints have a schedule of their own, in pieces",
        "adaptive": "two controllers would set one length",
        "dr_grpo": _NO_PREFIXES,
        "pppo": _NO_PREFIXES,
        "sft_then_rl": _NO_PREFIXES,
        "luffy": _WHOLE,
        "sft_loss": _WHOLE,
        "relift": _WHOLE,
        "sft": _NO_ROLLOUTS,
        "upft": _NO_ROLLOUTS,
        "rft": _NO_ROLLOUTS,
    }

    def faults(self, training: Mapping[str, object]) -> list[str]:
        faults = super().faults(training)
        if self.least > self.most:
            faults.append(f"method.least = {self.least} is above method.most = {self.most}")
        if self.of.needs.wrong:
            faults.append(
                "method.of.traces = wrong: the rules hold that a longer prefix makes a problem easier, and behind a "
                "failure it is harder; take prefix_rl by itself, with low and high"
            )
        names = {name for cls in type(self.of).__mro__ for name in _LENGTHS.get(cls.__module__.rpartition(".")[2], ())}
        for key in fields(self.of):
            value = getattr(self.of, key.name)
            if key.name in names and value != key.default:
                faults.append(
                    f"method.of.{key.name} = {value} says nothing here: adaptive decides the lengths; leave it out"
                )
        return faults

    @property
    def controller(self) -> controllers.Interval | controllers.Setpoint | controllers.Search:
        """The rule with its settings."""
        if self.rule == "interval":
            return controllers.Interval(self.target, self.average, self.unaided, self.longest)
        if self.rule == "setpoint":
            return controllers.Setpoint(self.target, self.gain, self.smoothing, self.start)
        return controllers.Search(self.episodes, self.least, self.most)

    def annealed(self, step: Step) -> float:
        """The factor on all lengths: 1, and towards the end of a run with ``setpoint`` less and less, to 0."""
        if self.rule != "setpoint" or not self.anneal:
            return 1.0
        end = self.horizon or step.total
        falling = max(round(self.anneal * end), 1)
        return linear(1.0, 0.0, falling)(step.index - (end - falling))

    def fraction(self, row: Row, step: Step) -> float:
        """The share of a demonstration that a row is to get."""
        common, own = self._state(step.memory)
        # by group: its rollouts share one length
        u = uniform(_KEY, step.seed, step.index, row.problem, row.group)
        state = own.get(str(row.problem)) or self.controller.unseen(common)
        return self.annealed(step) * self.controller.fraction(state, common, u)

    def _state(self, memory: Memory) -> tuple[controllers.State, Mapping[str, controllers.State]]:
        """State common to all problems, and the state of each."""
        state = memory.get(_KEY, {})
        return state.get("common", self.controller.common), state.get("problems", {})

    def prefix(self, row: Row, step: Step) -> Prefix | None:
        return self.of.prefix(replace(row, fraction=self.fraction(row, step)), step)

    def remember(self, memory: Memory, rollouts: Rollouts) -> Memory:
        memory = super().remember(memory, rollouts)
        # shortened lengths are not the controller's, so their success says nothing of it
        if self.annealed(rollouts.step) < 1:
            return memory
        common, own = self._state(memory)
        own, successes, new = dict(own), [], []
        for problem, fraction, success in observations(rollouts):
            state = own.get(str(problem), self.controller.own)
            found = list(self.controller.seen(state, common, fraction, success))
            new += [] if str(problem) in own else [found]
            own[str(problem)] = found
            successes.append(success)
        if not successes:
            return memory
        return {
            **memory,
            _KEY: {
                "common": list(self.controller.after(common or self.controller.common, successes, new)),
                "problems": own,
            },
        }

    def metrics(self, memory: Memory) -> dict[str, float]:
        """Number of problems whose controller has seen a group, and the mean share that these would inject."""
        common, own = self._state(memory)
        if not own:
            return {}
        middle = 0.5 * (1 + self.controller.unaided)  # the middle of the draws that inject something
        lengths = [self.controller.fraction(state, common, middle) for state in own.values()]
        return {
            "adaptive/problems": float(len(own)),
            "adaptive/fraction": fmean(lengths),
            "adaptive/unaided_share": fmean(length == 0 for length in lengths),
        }


def observations(rollouts: Rollouts) -> list[tuple[int, float, float]]:
    """``(problem, injected share, mean reward)`` of each group with a planned prefix and at least one reward."""
    planned = ~rollouts.fractions.isnan() & ~rollouts.rewards.isnan()
    found = []
    for start in range(0, len(rollouts.rewards), rollouts.group_size):
        rows = slice(start, start + rollouts.group_size)
        if bool(planned[rows].any()):
            here = planned[rows]
            found.append(
                (
                    int(rollouts.problems[start]),
                    float(rollouts.fractions[rows][here].double().mean()),
                    float(rollouts.rewards[rows][here].double().mean()),
                )
            )
    return found
