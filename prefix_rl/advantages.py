"""Advantages: from rewards to credit."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
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
    # of equal rewards the mean is exactly theirs; a sum of floats may be off, and the group would seem to differ
    least_P, most_P = (
        counted_PG.nan_to_num(nan=end).aminmax(dim=1)[i] for i, end in enumerate((torch.inf, -torch.inf))
    )
    baseline_P = torch.where(least_P == most_P, least_P, baseline_P)
    # NaN: the row has no reward, or no row of its group is left to take the mean of
    return torch.nan_to_num(rewards - baseline_P.repeat_interleave(group_size), nan=0.0)


def to_tokens(advantages: Float[Tensor, " B"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Each rollout's advantage at each of its tokens, 0 elsewhere.

    >>> to_tokens(torch.tensor([0.5, -1.0]), torch.tensor([[True, True], [True, False]]))
    tensor([[ 0.5000,  0.5000],
            [-1.0000,  0.0000]])
    """
    return torch.where(mask, advantages.unsqueeze(1), 0.0)


def group_std(rewards: Float[Tensor, " B"], group_size: int) -> Float[Tensor, " B"]:
    """The standard deviation of each rollout's group, unbiased (``n - 1``, as ``torch.std`` and verl's GRPO have it).

    NaN rewards are left out; 0 where fewer than two are left.

    >>> group_std(torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, torch.nan]), group_size=3)
    tensor([0.5774, 0.5774, 0.5774, 0.0000, 0.0000, 0.0000])
    """
    centered_PG = group_centered(rewards, group_size).view(-1, group_size)
    scored_P = (~rewards.isnan()).view(-1, group_size).sum(dim=1)
    variance_P = centered_PG.square().sum(dim=1) / (scored_P - 1).clamp(min=1)
    return variance_P.sqrt().repeat_interleave(group_size)


def prefix_tree(
    completion_ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"], rewards: Float[Tensor, " B"], group_size: int
) -> Float[Tensor, "B T"]:
    """Change of the expected reward at each token, by the tree of a group's completions (TEMPO, arXiv 2509.18314).

    ``TD_it = V(s_{i,t+1}) - V(s_it)``, where ``V(s)`` is the mean reward of the completions of the group that begin
    with the tokens ``s``. It is 0 wherever nobody turns off: inside a prefix that all share, and behind the place from
    which a completion is alone. Along a completion that ends alone the terms add up to ``r_i - mean(group)``.

    Args:
        completion_ids: EOS is a token like any other, so a completion that ended differs from one that goes on.
        mask: True on the completion; padding agrees with nothing.
        rewards: one for each completion; NaN: left out of every mean, and its own terms are 0.
        group_size: G. Rows ``p * G ... p * G + G - 1`` form a group.

    Returns:
        The terms, 0 on padding. Time is ``O(B G T)`` without a Python loop over tokens or pairs, memory ``O(B T)``.

    Raises:
        ValueError: if the rows are not whole groups.

    >>> ids = torch.tensor([[5, 6, 8], [5, 6, 9], [5, 7, 8], [4, 6, 8]])
    >>> prefix_tree(ids, ids > 0, torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4)
    tensor([[ 0.0833,  0.1667,  0.5000],
            [ 0.0833,  0.1667, -0.5000],
            [ 0.0833, -0.3333,  0.0000],
            [-0.2500,  0.0000,  0.0000]])
    """
    rows, width = completion_ids.shape
    if rows % group_size:
        raise ValueError(f"{rows} completions are not whole groups of {group_size}")
    scored = ~rewards.isnan()
    values = torch.nan_to_num(rewards.double())
    # Of the completions that agree with row i on its first d tokens: how many there are, and the sum of their rewards.
    # Each is first counted at the depth where it leaves row i, then at every depth before that.
    count, total = torch.zeros(2, rows, width + 1, dtype=torch.double, device=rewards.device)
    members = torch.arange(rows, device=rewards.device).view(-1, group_size)
    for member in members.T:  # one member of every group at a time: pairs of whole groups would take G times the memory
        other = member.repeat_interleave(group_size)
        agree = (completion_ids == completion_ids[other]) & mask & mask[other]
        left = torch.cat([agree, torch.zeros_like(agree[:, :1])], dim=1).int().argmin(dim=1, keepdim=True)
        count.scatter_add_(1, left, scored[other].double().unsqueeze(1))
        total.scatter_add_(1, left, values[other].unsqueeze(1))
    # a completion that leaves row i at depth d agrees with it at every depth before
    count, total = (x.flip(1).cumsum(dim=1).flip(1) for x in (count, total))
    value = total / count
    # as many completions before and behind a token: nobody turns off there
    turned = (count[:, 1:] != count[:, :-1]) & mask & scored.unsqueeze(1)
    return torch.where(turned, value[:, 1:] - value[:, :-1], 0.0).to(rewards.dtype)
