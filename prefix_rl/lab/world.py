r"""The world: chains of additions, their demonstrations, and the slips that the base policy learns.

A problem gives a number and ``slots`` additions modulo ``modulus``; the solution writes every running total, and boxes
the totals after each third of the way::

    problem         12 -1 -9 -7 -8 -4 +5 +2 ... -6 +6 ?
    demonstration   11 2 15 7 3 8 10 ... 15 1 \boxed{( 10 , 9 , 1 )}

``operations`` of the additions are hard (1 to 9 up or down); the others are ``+0``. So the number of hard additions is
the difficulty, and every problem has the same layout. Since the answer takes three totals, a wrong chain cannot box it
by luck: guessing wins one time in 8,000.

The base policy is trained on a corpus in which each hard addition slips upwards by one with probability ``slip_small``
(steps of 1 to 5) or ``slip_large`` (6 to 9). Slips never cancel out, and a large step is wrong more often than right,
so neither sampling nor greedy decoding solves a long problem, though every single step is within reach.

``world: parities`` is another one, see :mod:`prefix_rl.lab.parities`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Interval, Le
from jaxtyping import Int
from torch import Tensor

from ..data.problems import Problem
from ..rewards.workers import Grader
from . import parities

Fraction = Annotated[float, Interval(ge=0, le=1)]
_HELD_OUT = 10**6  # seeds of held-out problems start here


# The settings that only one of the worlds has
_OWN = {
    "additions": (
        "slots", "modulus", "sentences", "slip_small", "slip_large", "operations", "demonstrations", "garbled", "leap",
    ),
    "parities": ("length", "spaced", "copies"),
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """Settings of the world. ``slots``, ``modulus``, ``sentences``, the slips, ``length``, ``spaced``, ``copies`` and
    the ``base_*`` fields decide the base policy."""

    world: Literal["additions", "parities"] = "additions"
    """additions: chains of additions. parities: chains of parities (arXiv 2506.18110)."""
    length: Annotated[int, Ge(1), Le(256)] = 16
    """parities: bits of a problem; a solution has twice as many."""
    spaced: bool = False
    """parities: a word between two bits of the problem, so that each stands at a constant distance from its parity."""
    copies: bool = False
    """parities: the base policy has also learned to copy the bits of a problem, behind a mark of its own."""
    slots: Annotated[int, Ge(3), Le(256)] = 20
    """Additions in a problem."""
    modulus: Annotated[int, Ge(2), Le(1000)] = 20
    """Totals are 0 ... modulus - 1."""
    sentences: Annotated[int, Ge(1), Le(256)] | None = None
    """additions: totals of a sentence; a full stop stands behind every so many but the last. null: no full stops."""
    slip_small: Fraction = 0.3
    """Probability of a slip at a step of 1 to 5, in the base policy's corpus."""
    slip_large: Fraction = 0.7
    """Probability of a slip at a step of 6 to 9."""
    base_steps: Annotated[int, Ge(1), Le(10**6)] = 4000
    """Training steps of the base policy, 32 fresh problems each."""
    base_seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    """Seed of the base policy."""
    operations: Annotated[int, Ge(1), Le(256)] = 20
    """Hard additions in a problem: its difficulty."""
    problems: Annotated[int, Ge(1), Le(10**5)] = 64
    """Training problems."""
    held_out: Annotated[int, Ge(1), Le(10**5)] = 256
    """Problems to evaluate on."""
    demonstrations: Literal["clean", "garbled", "slipping", "restating", "terse"] = "clean"
    """Their author. clean: an expert. garbled: some totals are random numbers, though chain and answer are right.
    slipping: a weaker teacher, some of whose totals are one too high; chain and answer are right. restating: an expert
    of other habits, who writes every addition before its total (so solutions are twice as long). terse: a faultless
    expert who leaps: in the place of most totals stands a comma, and each total that is written follows from ``leap``
    additions at once."""
    leap: Annotated[int, Ge(2)] = 3
    """terse: additions from one total that is written to the next, at most."""
    garbled: Fraction = 0.3
    """The share of totals that garbled and slipping demonstrations get wrong."""
    demonstrated: Annotated[int, Ge(0), Le(10**5)] | None = None
    """Number of training problems with a demonstration; null: all."""
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    """Seed of the training problems. The held-out problems are the same for every seed."""
    held_out_seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    """Another value, another set of held-out problems (settings are chosen on one, results reported on another)."""

    def faults(self) -> list[str]:
        """Faults of settings that cannot stand together, in words."""
        defaults, faults = World(), []
        for name in _OWN["parities" if self.world == "additions" else "additions"]:
            if getattr(self, name) != getattr(defaults, name):
                faults.append(f"data.lab.{name} = {getattr(self, name)} says nothing in data.lab.world = {self.world}")
        if faults:
            return faults
        if self.world == "parities":
            asked = self.problems + self.held_out
            return [] if asked <= 2**self.length else [
                f"data.lab.length = {self.length} makes {2**self.length} different problems; data.lab.problems and "
                f"data.lab.held_out ask for {asked}"
            ]  # fmt: skip
        if self.operations > self.slots:
            return [f"data.lab.operations = {self.operations} does not fit into data.lab.slots = {self.slots}"]
        return []

    @property
    def vocabulary(self) -> list[str]:
        """Every word; its place is its token id."""
        if self.world == "parities":
            return [*parities.VOCABULARY, parities.COPY] if self.copies else parities.VOCABULARY
        numbers = [str(n) for n in range(self.modulus)]
        steps = [f"+{d}" for d in range(10)] + [f"-{d}" for d in range(1, 10)]
        return ["<pad>", "<eos>", "<unk>", "?", r"\boxed{(", ",", ")}", *numbers, *steps, *["."] * bool(self.sentences)]

    @property
    def longest(self) -> int:
        """More tokens than a problem with its solution has."""
        return 4 * (self.length if self.world == "parities" else self.slots) + 32

    def grader(self) -> Grader | None:
        """The grader of this world; None: the reward of real data."""
        return parities.ParityGrader() if self.world == "parities" else None

    @property
    def marked(self) -> tuple[int, int, int]:
        """The totals (counted from 0) that the answer takes: after a third, two thirds and all of the way."""
        return tuple(round(self.slots * third / 3) - 1 for third in (1, 2, 3))

    @property
    def stops(self) -> list[bool]:
        """For each total, whether a full stop stands behind it.

        >>> [j for j, ends in enumerate(World(sentences=5).stops) if ends]
        [4, 9, 14]
        """
        return [bool(self.sentences) and j % self.sentences == 0 for j in range(1, self.slots)] + [False]

    @property
    def landings(self) -> list[bool]:
        """For each total, whether a terse expert writes it: the marked ones, and every ``leap``-th before each.

        >>> [j for j, written in enumerate(World().landings) if written]
        [0, 3, 6, 9, 12, 13, 16, 19]
        """
        following = [min(mark for mark in self.marked if mark >= j) for j in range(self.slots)]
        return [(mark - j) % self.leap == 0 for j, mark in enumerate(following)]


@dataclass(frozen=True)
class Chains:
    """Chains of additions in vectorized form."""

    start: Int[Tensor, " N"]
    steps: Int[Tensor, "N slots"]
    totals: Int[Tensor, "N slots"]  # as they are
    slipped: Int[Tensor, "N slots"]  # as the corpus has them


def chains(world: World, operations: Int[Tensor, " N"], generator: torch.Generator) -> Chains:
    """One random chain for each entry of ``operations``, with that many hard additions at random places."""
    shape = (len(operations), world.slots)
    start = torch.randint(0, world.modulus, shape[:1], generator=generator)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    size = torch.randint(1, 10, shape, generator=generator)
    place = torch.rand(shape, generator=generator).argsort(dim=1).argsort(dim=1)
    size = size * (place < operations.unsqueeze(1))
    steps = sign * size
    chance = torch.where(size > 5, world.slip_large, world.slip_small) * (size > 0)
    slips = (torch.rand(shape, generator=generator) < chance).long()
    return Chains(
        start=start,
        steps=steps,
        totals=(start.unsqueeze(1) + steps.cumsum(dim=1)) % world.modulus,
        slipped=(start.unsqueeze(1) + (steps + slips).cumsum(dim=1)) % world.modulus,
    )


def held_out_problems(world: World) -> list[Problem]:
    """The problems to evaluate on, each with a clean demonstration. Training never sees them."""
    seed, kind = _HELD_OUT + world.held_out_seed, "restating" if world.demonstrations == "restating" else "clean"
    return _problems(world, world.held_out, seed, "held-out", kind, world.held_out)


def training_problems(world: World) -> list[Problem]:
    """The problems to train on."""
    demonstrated = world.problems if world.demonstrated is None else world.demonstrated
    return _problems(world, world.problems, world.seed, "train", world.demonstrations, demonstrated)


def _problems(world: World, count: int, seed: int, name: str, kind: str, demonstrated: int) -> list[Problem]:
    if world.world == "parities":
        but = held_out_problems(world) if name == "train" else ()
        return parities.problems(world, count, seed, name, demonstrated, but)
    generator = torch.Generator().manual_seed(seed)
    made = chains(world, torch.full((count,), world.operations), generator)
    share = world.garbled if kind in ("garbled", "slipping") else 0.0
    wrong = torch.rand(made.totals.shape, generator=generator) < share
    wrong[:, -1] = False
    noise = torch.randint(0, world.modulus, made.totals.shape, generator=generator)
    noise = (made.totals + 1) % world.modulus if kind == "slipping" else noise
    written = torch.where(wrong, noise, made.totals)
    found = []
    for i in range(count):
        answer = [int(made.totals[i, j]) for j in world.marked]
        additions = [f"{int(s):+d}" for s in made.steps[i]]
        totals = [str(int(t)) for t in written[i]]
        if kind == "terse":
            totals = [total if there else "," for total, there in zip(totals, world.landings, strict=True)]
        words = []
        for addition, total, stop in zip(additions, totals, world.stops, strict=True):
            words += [addition] * (kind == "restating") + [total] + ["."] * stop
        box = rf"\boxed{{( {' , '.join(map(str, answer))} )}}"
        # the answer can be read as soon as the last total stands there
        demonstration = {"text": " ".join([*words, box]), "readable_from": len(" ".join(words[:-1])) + 1}
        found.append(
            Problem(
                id=f"{name}/{i}",
                text=" ".join([str(int(made.start[i])), *additions, "?"]),
                answer=f"({', '.join(map(str, answer))})",
                demonstrations=(demonstration,) if i < demonstrated else (),
                place=f"the lab's {name} problem {i}",
            )
        )
    return found
