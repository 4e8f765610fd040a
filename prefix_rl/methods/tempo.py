"""TEMPO (arXiv 2509.18314): the tree of a group's completions says which token made the difference.

``A_it = (r_i - mean(group) + V(s_{i,t+1}) - V(s_it)) / (std(group) + 1e-6)``

- *Credit.* The completions of a group are laid over each other, token by token (Prefix-to-Tree). ``V(s)`` is the mean
  reward of those that begin with ``s``, and ``V(s_{t+1}) - V(s_t)`` what token t did to it: 0 wherever all go on alike,
  and wherever a completion is alone. This temporal difference is added to the credit of the method in ``of``; both are
  divided by the group's standard deviation.
- *Injected, which tokens move, extra objective.* As in ``of``. Where a group shares a prefix (PrefixRL, UFT) the root
  of the tree is the end of that prefix; where one of its rollouts starts from a prefix (Prefix-RFT) it turns off at
  its first token, unless a plain rollout happens to begin alike.

The released code has no weight on the temporal difference, no threshold and no discount, and its deviation is unbiased
(``torch.std``). Two things are ours: padding agrees with nothing (the code compares a padded place with the padding's
id), and a rollout without a reward is left out of every mean. The paper's loss is GRPO's; here it is Dr.GRPO's, which
does not divide by a completion's length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from ..advantages import group_std, prefix_tree
from ..rollouts import Rollouts
from .base import Method
from .combined import Combined
from .dr_grpo import DrGRPO

_EPSILON = 1e-6
_OWN_CREDIT = "it gives credit in its own way, which values of the tree would count twice"
_NO_ROLLOUTS = "it has no rollouts, so no tree"


@dataclass(frozen=True)
class TEMPO(Combined):
    """TEMPO with the paper's settings as defaults. ``weight: 0`` with ``normalize: false`` is the method in ``of``."""

    of: Method = field(default_factory=DrGRPO)
    """The method that answers the other questions; the paper: dr_grpo."""
    weight: Annotated[float, Ge(0)] = 1
    """Weight of the temporal difference."""
    normalize: bool = True
    """Divide by the group's standard deviation, as GRPO does and the paper's code."""

    takes: ClassVar = ("dr_grpo", "prefix_rl", "prefix_rft", "uft", "adaptive", "sft_then_rl")
    refuses: ClassVar[Mapping[str, str]] = {
        "luffy": "its demonstrations are no completions of the policy's, and their credit goes through a shaped ratio",
        "sft_loss": "its demonstrations stand in the group without being of it",
        "relift": "its supervised steps have groups of demonstrations, which are no tree of the policy's",
        "pppo": _OWN_CREDIT,
        "tempo": "its tree would be counted twice",
        "sft": _NO_ROLLOUTS,
        "upft": _NO_ROLLOUTS,
        "rft": _NO_ROLLOUTS,
    }

    def faults(self, training: Mapping[str, object]) -> list[str]:
        faults, of, path = super().faults(training), self.of, "method.of"
        while isinstance(of, Combined):
            of, path = of.of, f"{path}.of"
        credit = getattr(of, "credit", "pooled")
        if credit != "pooled":
            faults.append(
                f"{path}.credit = {credit}: the root of the tree is the mean of all rollouts of a group; use pooled"
            )
        return faults

    def advantages(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        credit = super().advantages(rollouts)
        if self.weight:
            tree = prefix_tree(rollouts.completion_ids, rollouts.completion_mask, rollouts.rewards, rollouts.group_size)
            credit = credit + self.weight * tree
        if self.normalize:
            credit = credit / (group_std(rollouts.rewards, rollouts.group_size).unsqueeze(1) + _EPSILON)
        return credit
