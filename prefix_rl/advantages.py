"""Advantages: from rewards to credit."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def group_centered(
    rewards: Float[Tensor, " B"], group_size: int, without: Bool[Tensor, " B"] | None = None
) -> Float[Tensor, " B"]:
    """Rewards minus the mean of their group, without division by a standard deviation.

    ``A_i = r_i - mean_{j in group(i)} r_j``: Dr.GRPO (arXiv 2503.20783), and the pooled estimator of Prefix-RFT
    (arXiv 2507.01679, Eq. 3), whose mean runs over prefixed and plain rollouts alike. Rows ``p * G ... p * G + G - 1``
    form a group.

    Args:
        rewards: one for each rollout; NaN marks a rollout that could not be scored. It is left out of the mean and
            gets advantage 0.
        group_size: G.
        without: rows to leave out of the mean, though not out of the result. With the prefixed rows here, every
            rollout is measured against the unprefixed ones.

    Returns:
        The advantages. 0 for a whole group in which no row is left to take the mean of.

    Raises:
        ValueError: if the rows are not whole groups.

    >>> group_centered(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4)
    tensor([ 0.7500, -0.2500, -0.2500, -0.2500])
    >>> prefixed = torch.tensor([True, False, False, False])
    >>> group_centered(torch.tensor([1.0, 0.0, 0.0, 1.0]), group_size=4, without=prefixed)
    tensor([ 0.6667, -0.3333, -0.3333,  0.6667])
    """
    if rewards.numel() % group_size:
        raise ValueError(f"{rewards.numel()} rewards are not whole groups of {group_size}")
    rewards_PG = rewards.view(-1, group_size)
    counted_PG = rewards_PG if without is None else rewards_PG.masked_fill(without.view(-1, group_size), torch.nan)
    baseline_P = torch.nanmean(counted_PG, dim=1)
    return torch.nan_to_num(rewards - baseline_P.repeat_interleave(group_size), nan=0.0)


def to_tokens(advantages: Float[Tensor, " B"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Each rollout's advantage at each of its tokens, 0 elsewhere.

    >>> to_tokens(torch.tensor([0.5, -1.0]), torch.tensor([[True, True], [True, False]]))
    tensor([[ 0.5000,  0.5000],
            [-1.0000,  0.0000]])
    """
    return torch.where(mask, advantages.unsqueeze(1), 0.0)
