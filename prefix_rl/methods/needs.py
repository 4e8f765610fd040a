"""What a method needs of a run, declared beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from ..cuts import Cut
from ..prefixes import Demonstration
from ..rollouts import Rollouts


@dataclass(frozen=True)
class Further:
    """Further continuations of what rollouts began with. They are sampled and graded; none is trained on."""

    count: int
    """C, continuations of each rollout. Their rewards are :attr:`~prefix_rl.rollouts.Rollouts.continued`."""
    beginnings: Callable[[Rollouts], Int[Tensor, " B"]]
    """Number of tokens of each completion that they keep; its prefix in any case. A whole completion leaves nothing to
    continue: its rewards are the rollout's own."""


@dataclass(frozen=True)
class Earlier:
    """An answer of :meth:`~prefix_rl.methods.base.Method.help`: a rollout becomes again what it was before, in
    ``rollouts.earlier[round]``."""

    round: int  # 0: the unaided one


@dataclass(frozen=True)
class Hint:
    """What :meth:`~prefix_rl.methods.base.Method.prefix` answers with stands in the prompt, as text, at its end."""

    text: str
    """Text at the end of the prompt, with ``{}`` in the place of the hint."""
    longest: int
    """Tokens of a hint, at most: so many the prompt may grow."""


@dataclass(frozen=True)
class Needs:
    """Things that a run computes only for methods that need them."""

    prefixes: bool = False
    """Rollouts start from prefixes. A run in which no row got one that was to have one stops with an error."""
    whole: bool = False
    """Demonstrations are used from beginning to end, injected or learned; otherwise the answer stays unread."""
    entropies: bool = False
    """:meth:`~prefix_rl.methods.base.Method.update_mask` reads entropies. They cost a pass without gradient over the
    prefixed rows."""
    further: Further | None = None
    """Continuations of beginnings, beside the rollouts; None: none."""
    cut: Cut = "tokens"
    """Places where demonstrations are cut. ``entropy`` and ``surprisal`` follow from the policy that the run starts
    from: it reads every demonstration once before the first step."""
    help_rounds: int = 0
    """Times that :meth:`~prefix_rl.methods.base.Method.help` is asked within a step, at most; 0: never."""
    hint: Hint | None = None
    """Prefixes are no beginnings of rollouts but hints in their prompts; None: they are beginnings."""
    wrong: bool = False
    """Demonstrations are failures: traces of a store (``data.traces``) that were graded wrong."""

    def usable(self, demonstration: Demonstration, longest: int | None = None) -> bool:
        """True if a demonstration serves; the others are as if they were not there.

        One that is used whole needs a token, and must fit into ``longest`` tokens with its end (None: it may be of any
        length). Of the others some prefix must leave the answer unread and a token to generate.
        """
        if not self.whole:
            return demonstration.usable()
        return len(demonstration.ids) > 0 and (longest is None or len(demonstration.ids) < longest)
