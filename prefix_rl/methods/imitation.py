"""Helpers of methods that learn from injected tokens: whole demonstrations as rollouts, their NLL and its weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..advantages import group_centered, to_tokens
from ..losses import negative_log_likelihood
from ..prefixes import Prefix, whole
from ..rollouts import MicroBatch, Rollouts, Row, Step


def whole_demonstration(row: Row, step: Step, count: int) -> Prefix | None:
    """A whole demonstration, drawn uniformly, for each of the first ``count`` rows of a group that has any."""
    if row.member >= count or not row.demonstrations:
        return None
    return whole(row.drawn("demonstration", step.seed, step.index, row.index), step.max_completion_length)


def credit_among_unprefixed(rollouts: Rollouts) -> Float[Tensor, "B T"]:
    """``r_i - mean(unprefixed rollouts of the group)`` on what the policy wrote."""
    credit = group_centered(rollouts.rewards, rollouts.group_size, without=rollouts.prefixed)
    return to_tokens(credit, rollouts.continuation_mask)


def imitation_weights(rollouts: Rollouts, weight: float) -> Float[Tensor, "B T"]:
    """Weight of the NLL of each injected token in units of ``1 / (B * L)``, 0 on the others.

    With it :func:`imitation_loss` adds up to ``weight`` times the mean NLL over all injected tokens of the generation
    batch, however that is cut into micro-batches and ranks.
    """
    tokens = rollouts.prefix_mask.sum().clamp(min=1)
    scale = len(rollouts.rewards) * rollouts.step.max_completion_length / tokens
    return torch.where(rollouts.prefix_mask, weight * scale, 0.0)


def imitation_loss(
    batch: MicroBatch, logps: Float[Tensor, "B T"], *, by_uncertainty: bool = False
) -> Float[Tensor, ""]:
    """The NLL of the injected tokens, weighed by their ``weights``, as a mean over rows."""
    nll = negative_log_likelihood(logps, by_uncertainty=by_uncertainty)
    weighed = torch.where(batch.prefix_mask, nll * batch.weights, 0.0)
    return weighed.sum() / (len(weighed) * batch.step.max_completion_length)
