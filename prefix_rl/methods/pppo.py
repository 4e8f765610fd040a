"""PPPO, progressive prefix-token policy optimization (arXiv 2512.15274): only the beginning of a rollout is trained.

``J = 1 / sum_k |o_k| * sum_i sum_j H(j, o_i) * min(ratio_ij * A_i, clip(ratio_ij, 1 - eps, 1 + eps_high) * A_i)``,
``H(j, o_i) = 1 if j <= floor(eta * |o_i|)``

- *Injected.* Nothing: no demonstrations are needed. The beginning is the policy's own.
- *Which tokens move.* The first ``eta`` of each rollout (``H``); the others stay in the normalizer, so the loss grows
  with ``eta``. It starts at ``share`` and is raised by ``step``, at most to ``most``, whenever the evaluation reward
  has stopped improving (Progressive Prefix Retention): ``eta_e = eta_{e-1}`` if ``V_e - V_{e-1} > 0``, else
  ``eta_{e-1} + step``, with ``V_e`` the reward of evaluation e.
- *Continued.* From the beginning of each rollout, its first ``eta``, ``continuations`` further ones are sampled and
  graded.
- *Credit.* ``R_i = sum_j r(c_ij) + r(o_i)`` over rollout and continuations, then
  ``A_i = (R_i - mean(group)) / (std(group) + 1e-6)`` (Continuation Accumulated Reward).

Only the abstract and an account of the paper were read; the rest is our reading. Open points and how they are settled
here: the paper's text speaks of no gain over consecutive evaluations and says of no number of them, its formula of one,
so ``patience`` is 1. With more, so many evaluations in a row must show no gain, and after a rise the count begins anew.
``compare: best`` measures the gain against the best evaluation so far, which noise makes raise later after a dip and
sooner after a lucky one; with ``patience: 2`` it was the rule here until November 2026. The token mean is that of a
generation batch over all ranks; the standard deviation is that of a sample (divided by N - 1). A continuation that
could not be scored is left out, and the sum scaled up for it.
"""

from __future__ import annotations

import fractions
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Interval
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..advantages import group_centered, group_std, to_tokens
from ..masks import first_fraction_mask
from ..rollouts import Memory, Rollouts
from .base import Further, Method, Needs

Share = Annotated[float, Interval(gt=0, le=1)]


@dataclass(frozen=True)
class PPPO(Method):
    """PPPO with the paper's settings as defaults.

    ``share: 1, progressive: false, continuations: 0, normalize: false, normalizer: constant`` is Dr.GRPO.
    """

    share: Share = 0.15
    """The share of a rollout's tokens that is trained, at first."""
    progressive: bool = True
    """Raise it when the evaluation reward stalls; this needs evaluation during training."""
    step: Share = 0.05
    """Amount by which it is raised."""
    most: Share = 0.35
    """Largest share that it is raised to."""
    compare: Literal["previous", "best"] = "previous"
    """Evaluation that a reward must exceed to be a gain: the previous one (the paper), or the best so far."""
    patience: Annotated[int, Ge(1)] = 1
    """Evaluations in a row without a gain after which it is raised (the paper's formula: 1)."""
    continuations: Annotated[int, Ge(0)] = 8
    """Further continuations of each rollout's beginning, whose rewards add to its own. 0: its own reward alone."""
    normalize: bool = True
    """Divide credit by the standard deviation of the group."""
    normalizer: Literal["tokens", "constant"] = "tokens"
    """tokens: the loss is a mean over all tokens of the batch (the paper), but for rollouts that it leaves out.
    constant: Dr.GRPO's rollouts x max_completion_length."""

    _read_with: ClassVar = dict.fromkeys(("step", "most", "compare", "patience"), ("progressive", (True,)))
    """Settings that say nothing beside other values (:mod:`.idle`)."""

    @property
    def needs(self) -> Needs:
        return Needs(further=Further(self.continuations, self.beginnings) if self.continuations else None)

    def faults(self, training: Mapping[str, object]) -> list[str]:
        faults = []
        if self.progressive and training.get("eval_strategy", "steps") in ("no", None):
            faults.append(
                "method.progressive = true raises the share when the reward of evaluations stalls, but "
                "training.eval_strategy = no: set training.eval_strategy = steps, training.eval_steps and "
                "evaluation.data, or method.progressive = false"
            )
        if self.progressive and self.share > self.most:
            faults.append(f"method.share = {self.share} is above method.most = {self.most}, up to which it is raised")
        if self.normalizer == "tokens" and training.get("loss_type", "dr_grpo") != "dr_grpo":
            faults.append(
                f"method.normalizer = tokens turns the constant normalizer of loss_type = dr_grpo into a mean over "
                f"tokens; loss_type = {training['loss_type']} has a normalizer of its own: set method.normalizer = "
                "constant"
            )
        if self.normalizer == "tokens" and (training.get("entropy_coef") or training.get("use_adaptive_entropy")):
            faults.append(
                "method.normalizer = tokens turns the normalizer of the whole loss into a mean over tokens, and an "
                "entropy bonus is one already: it would be raised; set method.normalizer = constant, or no bonus"
            )
        return faults

    def share_now(self, memory: Memory) -> float:
        """``eta``, as the decimal number that adds up from the settings."""
        raised = _exact(self.share) + memory.get("rises", 0) * _exact(self.step)
        return float(min(raised, _exact(self.most))) if self.progressive else self.share

    def remember_evaluation(self, memory: Memory, reward: float) -> Memory:
        before = memory.get(self.compare, -math.inf)
        rises, waited = memory.get("rises", 0), 0 if reward > before else memory.get("waited", 0) + 1
        if waited == self.patience:
            rises, waited = rises + 1, 0
        kept = max(reward, before) if self.compare == "best" else reward
        return {**memory, self.compare: kept, "rises": rises, "waited": waited}

    def metrics(self, memory: Memory) -> dict[str, float]:
        return {"share": self.share_now(memory)}

    def update_mask(self, rollouts: Rollouts, entropies: Float[Tensor, "B T"] | None) -> Bool[Tensor, "B T"]:
        return first_fraction_mask(rollouts.completion_mask, self.share_now(rollouts.step.memory))

    def beginnings(self, rollouts: Rollouts) -> Int[Tensor, " B"]:
        """Number of tokens of each rollout that its further continuations keep: those that move."""
        return self.update_mask(rollouts, None).sum(dim=1)

    def advantages(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        rewards = _accumulated(torch.cat([rollouts.rewards.unsqueeze(1), rollouts.continued], dim=1))
        credit = group_centered(rewards, rollouts.group_size)
        if self.normalize:
            # 1e-6: in a group without differences the deviation is 0
            credit = credit / (group_std(rewards, rollouts.group_size) + 1e-6)
        return to_tokens(credit, rollouts.completion_mask)

    def scale(self, rollouts: Rollouts) -> float:
        if self.normalizer == "constant":
            return 1.0
        # undoes the constant normalizer of dr_grpo, and divides by the tokens of the rollouts that the loss takes
        constant = len(rollouts.rewards) * rollouts.step.max_completion_length
        return constant / max(int(rollouts.completion_mask.sum()), 1)


def _exact(number: float) -> fractions.Fraction:
    """The decimal number that is written: 0.15 + 3 * 0.05 is 0.3."""
    return fractions.Fraction(str(number))


def _accumulated(rewards: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """The sum of each row, scaled up for what could not be scored; NaN where nothing could.

    >>> _accumulated(torch.tensor([[1.0, 0.0, 1.0], [1.0, torch.nan, 0.0]]))
    tensor([2.0000, 1.5000])
    """
    return rewards.nansum(dim=1) * rewards.size(1) / (~rewards.isnan()).sum(dim=1)
