"""Groups without signal: those from which nothing is learned, and what a loss is without them."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..methods.base import Method
from ..rollouts import Rollouts

COUNTS_ROWS = frozenset({"dr_grpo", "grpo", "sapo", "luspo"})
"""Losses whose normalizer counts rows, by TRL's names. That of the others counts tokens that move."""
SCALE = "kept_scale"
"""The key under which a batch says what its loss counts by, where rows are left out that TRL's normalizer counts."""


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
    no count of tokens. :data:`SCALE` takes them out of a normalizer that counts rows; with ``loss_type = None`` they
    stay in it.
    """
    here = kept.repeat_interleave(rollouts.group_size).unsqueeze(1)
    output["completion_mask"] = output["completion_mask"] * here[rows]
    counted = (
        kept.float().mean() if loss_type in COUNTS_ROWS and bool(kept.any()) else kept.new_ones((), dtype=torch.float)
    )
    output[SCALE] = 1 / counted
    masks = {"completion_mask": rollouts.completion_mask & here, "prefix_mask": rollouts.prefix_mask & here}
    return replace(rollouts, **masks)
