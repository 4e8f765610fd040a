"""BREAD (arXiv 2506.17211): a group that fails is generated again at once, from a prefix that helps.

``A_i = r_i - mean(group)`` on what the policy wrote. Of a group without a right rollout all G are generated again
behind ``d_1 ... d_k``, a beginning of its demonstration with which some are right and some are not, sought by halves.

- *Injected.* Nothing, at first. Where a whole group fails, its demonstration is divided into ``episodes`` parts, whole
  sentences each, and a binary search within the step looks for a number of them that helps (Episode Anchor Search):
  ``low, high = 0, K + 1``; try ``k = (low + high) // 2``; no rollout right: ``low = k``; all right: ``high = k``;
  otherwise it has ended, and these rollouts are the group's.
- *Which tokens move.* What the policy wrote; the prefix is context.
- *Credit.* That of the group: all its rollouts start from the same prefix, or from none.

Published are the condition (all fail), the search within the step by halves, K = 10 episodes of sentences or
paragraphs, all rollouts from the same place, GRPO with the group's standard deviation (``normalize: true``) and a KL to
the reference (``training.beta``). The full text was not read, only the abstract and a survey's account. Ours are: a
trial samples the whole group, so that the trial that succeeds is the group; success is a reward above 0; sentences are
shared out evenly; where the answer guard ends a prefix, the parts behind it are no candidates; and a search that ends
between a length at which nothing is right and one at which everything is puts the unaided rollouts back, since neither
teaches anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Annotated

from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from ..advantages import group_centered, group_std, to_tokens
from ..cuts import Cut
from ..prefixes import Demonstration, Prefix
from ..rollouts import Rollouts, Step
from .base import Earlier, Fraction, Method, Needs
from .cutting import Cutting


@dataclass(frozen=True)
class BREAD(Cutting, Method):
    """BREAD with mean-centred credit. ``episodes: 0`` is Dr.GRPO."""

    episodes: Annotated[int, Ge(0)] = 10
    """K, parts of a demonstration that the search counts in (the paper: 10). 0: no group is helped."""
    normalize: bool = False
    """Divide credit by the standard deviation of the group (the paper does)."""
    demonstrated_share: Fraction = 0.0
    """Least share of an epoch that problems with a demonstration make up: where they are few, they are repeated until
    then. 0: each problem once, as in the paper."""
    cut: Cut = field(default="sentences", kw_only=True)
    """Places where parts may end. tokens: parts of equal length, for demonstrations without sentences."""

    @property
    def needs(self) -> Needs:
        if not self.episodes:
            return Needs()
        # bisection of K candidates needs at most so many trials, and a last round may put a group back
        return Needs(prefixes=True, cut=self.cut, help_rounds=self.episodes.bit_length() + 1)

    def faults(self, training: Mapping[str, object]) -> list[str]:
        if self.demonstrated_share == 1:
            return ["method.demonstrated_share = 1 leaves no place for problems without a demonstration"]
        return []

    def copies(self, demonstrated: Sequence[bool]) -> list[int]:
        """Copies of each problem: of h problems with a demonstration among n each has the least c for which
        ``c h / (c h + n - h) >= demonstrated_share``.

        >>> BREAD(demonstrated_share=0.5).copies([True] + 9 * [False])
        [9, 1, 1, 1, 1, 1, 1, 1, 1, 1]
        """
        having = sum(demonstrated)
        copies = 1
        if having and self.episodes:
            odds = self.demonstrated_share / (1 - self.demonstrated_share)
            # 1e-9: a product that is a whole number but for rounding asks for no copy more
            copies = ceil(odds * (len(demonstrated) - having) / having - 1e-9)
        return [max(copies, 1) if has else 1 for has in demonstrated]

    def help(self, rollouts: Rollouts, step: Step) -> Mapping[int, Prefix | Earlier]:
        history, size = [*rollouts.earlier, rollouts], rollouts.group_size
        answers: dict[int, Prefix | Earlier] = {}
        for start in range(0, len(rollouts.rewards), size):
            row, rows = rollouts.rows[start], slice(start, start + size)
            outcomes = [outcome(batch.rewards[rows]) for batch in history]
            if outcomes[0] != "none" or not row.demonstrations:
                continue
            drawn = row.drawn("bread", step.seed, step.index, row.group)
            lengths = anchors(drawn, self.episodes, step.max_completion_length - 1)
            trial = search(len(lengths), outcomes[1:])
            if trial is not None:
                length = lengths[trial - 1]
                prefix = Prefix(list(drawn.ids[:length]), length, len(drawn.ids), share=drawn.share_of(length))
                answers |= dict.fromkeys(range(start, start + size), prefix)
            elif outcomes[-1] != "some" and bool(rollouts.prefixed[rows].any()):
                answers |= dict.fromkeys(range(start, start + size), Earlier(0))
        return answers

    def advantages(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        credit = group_centered(rollouts.rewards, rollouts.group_size)
        if self.normalize:
            # 1e-6: in a group without differences the deviation is 0
            credit = credit / (group_std(rollouts.rewards, rollouts.group_size) + 1e-6)
        return to_tokens(credit, rollouts.completion_mask)


def outcome(rewards: Float[Tensor, " G"]) -> str:
    """How a group did: ``none`` of its rollouts earned a reward above 0, ``all`` the same one, or ``some`` more than
    others. What could not be scored is left out; a group of which nothing could is none.

    >>> import torch
    >>> [outcome(torch.tensor(r)) for r in ([0.0, 0.0], [1.0, torch.nan], [0.0, 1.0])]
    ['none', 'all', 'some']
    """
    scored = rewards[~rewards.isnan()]
    if not bool((scored > 0).any()):
        return "none"
    return "all" if bool((scored == scored[0]).all()) else "some"


def anchors(demonstration: Demonstration, episodes: int, longest: int) -> list[int]:
    """Numbers of tokens in the first 1, 2, ... parts of a demonstration, as far as a prefix may go; ascending.

    Of ``n`` sentences the first k of ``K`` parts hold ``floor(k * n / K)``, of tokens or shares likewise. With fewer
    sentences than parts each is a part of its own.

    >>> five_sentences = Demonstration(tuple(range(9)), safe_length=9, places=(2, 3, 5, 7))
    >>> anchors(five_sentences, episodes=2, longest=100)
    [3, 7]
    >>> anchors(Demonstration(tuple(range(9)), safe_length=5), episodes=3, longest=100)
    [3, 5]
    """
    tokens, places = len(demonstration.ids), demonstration.places
    if places is None:
        ends: Sequence[int] = [demonstration.length_of(k / episodes) for k in range(1, episodes + 1)]
    else:
        sentences = len(places) + 1
        parts = min(episodes, sentences)
        ends = [*(places[k * sentences // parts - 1] for k in range(1, parts)), tokens]
    limit = min(longest, demonstration.safe_length, tokens - 1)
    found = (demonstration.cut_at(min(end, limit)) for end in ends)
    return [length for length in dict.fromkeys(found) if length > 0]


def search(candidates: int, outcomes: Sequence[str]) -> int | None:
    """Next trial of a binary search among ``1 ... candidates``, after these outcomes of its trials; None: it has ended.

    >>> search(10, []), search(10, ["none"]), search(10, ["none", "all"]), search(10, ["none", "some"])
    (5, 8, 6, None)
    """
    low, high = 0, candidates + 1
    for outcome_ in outcomes:
        if high - low <= 1 or outcome_ == "some":
            return None
        trial = (low + high) // 2
        low, high = (trial, high) if outcome_ == "none" else (low, trial)
    return (low + high) // 2 if high - low > 1 else None
