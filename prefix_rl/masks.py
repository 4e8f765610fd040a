"""Masks: which tokens get gradient."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def top_entropy_mask(
    entropies: Float[Tensor, "B T"], candidates: Bool[Tensor, "B T"], share: float, *, rowwise: bool = False
) -> Bool[Tensor, "B T"]:
    """The ``share`` of the candidate tokens with the highest entropy.

    Of ``n`` candidates the lowest ``floor((1 - share) * n)`` are left out and the others are kept, exactly: ties are
    broken by position (row by row, the earlier token is kept first). With all candidates of a generation batch at once
    this is the entropy-based clipping of Prefix-RFT (arXiv 2507.01679, Sec. 3.3, share 0.2); ``rowwise`` ranks each
    row for itself.

    Args:
        entropies: in nats; only read at candidates.
        candidates: the tokens to choose among (for Prefix-RFT: the prefix tokens).
        share: in [0, 1]; taken as the decimal number that is written, so 0.9 of 10 tokens are 9.
        rowwise: choose the share of every row instead of the share of all.

    Returns:
        A mask that is True on the kept candidates and False everywhere else.

    Raises:
        ValueError: if ``share`` is not in [0, 1] or a candidate's entropy is not a number.

    >>> entropies = torch.tensor([[0.1, 2.0, 0.3], [0.4, 1.5, 9.0]])
    >>> candidates = torch.tensor([[True, True, True], [True, True, False]])
    >>> top_entropy_mask(entropies, candidates, share=0.4).tolist()
    [[False, True, False], [False, True, False]]
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share is a fraction in [0, 1], given {share}")
    if bool(torch.isnan(entropies[candidates]).any()):
        raise ValueError("a candidate token has no entropy (NaN): entropies are needed wherever candidates is True")
    dropped_share = 1 - Fraction(str(share))
    scores = entropies.masked_fill(~candidates, -math.inf)
    counts = candidates.sum(dim=1, keepdim=True)
    if not rowwise:
        scores, counts = scores.reshape(1, -1), counts.sum(dim=0, keepdim=True)
    keep = [[n - math.floor(dropped_share * n)] for (n,) in counts.tolist()]
    rank = scores.sort(dim=1, descending=True, stable=True).indices.argsort(dim=1)  # 0 = the highest entropy
    kept = rank < torch.tensor(keep, device=rank.device)
    return kept.reshape(candidates.shape) & candidates


def first_fraction_mask(mask: Bool[Tensor, "B T"], share: float) -> Bool[Tensor, "B T"]:
    """The first ``share`` of each row's tokens: ``H(j, o_i) = 1 if j <= floor(share * |o_i|)``, ``j`` counted from 1.

    What PPPO trains of a rollout (arXiv 2512.15274).

    Args:
        mask: the tokens of each row, wherever in the row they stand.
        share: in [0, 1]; taken as the decimal number that is written, so 0.29 of 100 tokens are 29.

    Returns:
        A mask that is True on the first ``floor(share * n)`` of a row's ``n`` tokens and False everywhere else.

    Raises:
        ValueError: if ``share`` is not in [0, 1].

    >>> mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    >>> first_fraction_mask(mask, share=0.4).int().tolist()
    [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share is a fraction in [0, 1], given {share}")
    counts = [[math.floor(Fraction(str(share)) * n)] for n in mask.sum(dim=1).tolist()]
    return mask & (mask.cumsum(dim=1) <= torch.tensor(counts, device=mask.device).view(-1, 1))
