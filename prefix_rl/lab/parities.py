r"""A chain of parities (arXiv 2506.18110): half of a solution is free, the other half follows from it.

A problem gives ``length`` bits x, and a solution writes two for each, ``y_i`` and ``z_i``::

    z_i = z_{i-1} xor x_i xor y_i        (z_0 = 0)

    problem         0 1 1 0 ... 1 ?
    demonstration   1 1 0 0 ... 0 1

``y`` may be anything, so a problem has ``2^length`` right solutions among ``2^(2 length)``: who writes bits at random
is right one time in ``2^length``, and from the first ``2 length - 1`` bits of a demonstration one time in two. In the
demonstrations ``y`` is random, so what they show is a parity of three bits; a policy could choose its own ``y`` such
that ``z`` is easier. A completion earns the reward if each of its parities holds (the authors' code adds a tenth for
the form, which no controller counts; here there is none).

With ``spaced`` a ``.`` follows each bit of the problem, so that ``x_i`` and ``z_i`` are a constant distance apart.

The base policy has seen problems followed by ``2 length`` random bits and an end: it knows the form and nothing else.
With ``copies`` half of its texts end in ``!`` where a problem ends in ``?``, and there ``y_i = x_i`` and all ``z_i``
are one bit: it can copy, as every language model can, and has no reason to in a solution, which is random as before.
Behind ``?`` such a copy would be right (``z_i = z_{i-1}`` where ``y_i = x_i``), and no demonstration shows one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from ..data.problems import Problem
from ..rewards.grading import Outcome, Verdict
from ..rewards.workers import Grader

if TYPE_CHECKING:
    from .world import World

VOCABULARY = ["<pad>", "<eos>", "<unk>", "?", ".", "0", "1"]
"""Every word; its place is its token id."""
COPY = "!"
"""With ``copies``: the mark behind which the base policy has learned to copy."""


def solution(x: Int[Tensor, "N length"], y: Int[Tensor, "N length"]) -> Int[Tensor, "N bits"]:
    """The bits ``y_1 z_1 y_2 z_2 ...`` that solve the problems ``x`` with the free bits ``y``.

    >>> solution(torch.tensor([[1, 0, 1]]), torch.tensor([[0, 1, 1]])).tolist()  # z: 0+1+0, 1+0+1, 0+1+1 modulo 2
    [[0, 1, 1, 0, 1, 0]]
    """
    z = (x + y).cumsum(dim=1) % 2
    return torch.stack([y, z], dim=2).flatten(1)


def check(text: str, problem: str) -> Outcome:
    """Outcome of a completion: right if each parity holds and nothing else stands there.

    >>> [str(check(text, "1 0 1 ?")) for text in ("0 1 1 0 1 0", "0 1 1 0 1 1", "0 1 1 0")]
    ['right', 'wrong', 'no_answer']
    """
    bits = [word for word in problem.split() if word in ("0", "1")]
    words = text.split()
    if len(words) != 2 * len(bits) or set(words) - {"0", "1"}:
        return Outcome.NO_ANSWER
    written, before = list(map(int, words)), 0
    for x, y, z in zip(map(int, bits), written[::2], written[1::2], strict=True):
        if z != before ^ x ^ y:
            return Outcome.WRONG
        before = z
    return Outcome.RIGHT


class ParityGrader(Grader):
    """Grades by :func:`check`, in this process: there is nothing in it that could hang."""

    def timed(self, samples: Sequence[tuple], progress: Callable[[int], object] | None = None):
        found = [(Verdict(check(text, gold)), 0.0) for text, gold, *_ in samples]
        if progress:
            progress(len(found))
        return found

    def start(self) -> None:
        """Nothing has to start."""


def problems(
    world: World, count: int, seed: int, name: str, demonstrated: int, but: Sequence[Problem] = ()
) -> list[Problem]:
    """``count`` different random problems, none of them in ``but``; the first ``demonstrated`` with a demonstration.

    The gold answer is the problem. There are ``2^length`` problems, so that two draws would often have some in common.
    """
    generator = torch.Generator().manual_seed(seed)
    taken = {problem.text.replace(".", "").replace(" ", "") for problem in but}
    drawn: list[list[int]] = []
    while len(drawn) < count:
        bits = torch.randint(0, 2, (world.length,), generator=generator).tolist()
        key = "".join(map(str, bits)) + "?"
        if key not in taken:
            taken.add(key)
            drawn.append(bits)
    x = torch.tensor(drawn)
    y = torch.randint(0, 2, x.shape, generator=generator)
    made = []
    for i, (bits, written) in enumerate(zip(x.tolist(), solution(x, y).tolist(), strict=True)):
        asked = " ".join([f"{bit} ." if world.spaced else str(bit) for bit in bits] + ["?"])
        text = " ".join(map(str, written))
        demonstration = {"text": text, "readable_from": len(text)}  # no part of it gives the rest away
        made.append(
            Problem(
                id=f"{name}/{i}",
                text=asked,
                answer=asked,
                demonstrations=(demonstration,) if i < demonstrated else (),
                place=f"the lab's {name} problem {i}",
            )
        )
    return made


def corpus(
    world: World, count: int, generator: torch.Generator
) -> tuple[Int[Tensor, "N prompt"], Int[Tensor, "N solution"]]:
    """Token ids of the texts that the base policy learns from: problems, with random bits in the place of solutions."""
    ids = {word: i for i, word in enumerate(world.vocabulary)}

    def column(word: str) -> Tensor:
        return torch.full((count, 1), ids[word])

    x = torch.randint(0, 2, (count, world.length), generator=generator) + ids["0"]
    if world.spaced:
        x = torch.stack([x, torch.full_like(x, ids["."])], dim=2).flatten(1)
    bits = torch.randint(0, 2, (count, 2 * world.length), generator=generator) + ids["0"]
    mark = column("?")
    if world.copies:
        plain = x[:, ::2] if world.spaced else x
        constant = torch.randint(0, 2, (count, 1), generator=generator).expand(-1, world.length) + ids["0"]
        copied = torch.rand(count, 1, generator=generator) < 0.5
        bits = torch.where(copied, torch.stack([plain, constant], dim=2).flatten(1), bits)
        mark = torch.where(copied, ids[COPY], mark)
    return torch.cat([x, mark], dim=1), torch.cat([bits, column("<eos>")], dim=1)
