"""Groups without signal: those from which nothing is learned, and what a loss is without them."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..methods.base import Method
from ..rollouts import Rollouts

COUNTS_ROWS = frozenset({"dr_grpo", "grpo", "sapo", "luspo"})
"""Losses whose normalizer counts rows, by TRL's names. That of the others counts tokens that move."""
SCALE, EXTRA_SCALE = "loss_scale", "extra_scale"
"""The keys under which a batch says what TRL's loss counts by, and what an extra objective does."""


def with_signal(method: Method, rollouts: Rollouts, whole: Rollouts) -> torch.Tensor:
    """True for the groups ``(P,)`` that the method learns something from: credit, from the ``whole`` rollouts, on a
    token in the loss, or a weight, other than 0."""
    # 1e-6: what is left of a difference of floats
    credited = (method.advantages(whole).abs() > 1e-6) & rollouts.completion_mask
    return (credited | (method.weights(rollouts) != 0)).any(dim=1).view(-1, rollouts.group_size).any(dim=1)


def skipped(
    output: dict[str, torch.Tensor], rollouts: Rollouts, kept: torch.Tensor, loss_type: str | None, rows: slice
) -> Rollouts:
    """The rollouts as if the groups that are not ``kept (P,)`` were not there; so is ``output`` from now on, which is
    TRL's batch of these ``rows``.

    Those groups get no tokens, as rollouts that ``mask_truncated_completions`` leaves out, so they are in no term and
    no count of tokens. The scales take them out of normalizers that count rows, which an extra objective's always does;
    with ``loss_type = None`` they stay in them.
    """
    here = kept.repeat_interleave(rollouts.group_size).unsqueeze(1)
    output["completion_mask"] = output["completion_mask"] * here[rows]
    one = kept.new_ones((), dtype=torch.float)
    output[EXTRA_SCALE] = 1 / kept.float().mean() if loss_type and bool(kept.any()) else one
    output[SCALE] = output[EXTRA_SCALE] if loss_type in COUNTS_ROWS else one
    masks = {"completion_mask": rollouts.completion_mask & here, "prefix_mask": rollouts.prefix_mask & here}
    return replace(rollouts, **masks)
