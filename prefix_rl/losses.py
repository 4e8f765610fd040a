"""Terms of a loss that TRL does not have. Each gives one value for each token; a method weighs and sums them."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def shaped_ratio(logps: Float[Tensor, "B T"], gamma: float) -> Float[Tensor, "B T"]:
    """``f(p) = p / (p + gamma)`` of the policy's probability ``p``: LUFFY's policy shaping (arXiv 2504.14945).

    It stands where the surrogate has ``pi / pi_old``, on tokens that somebody else wrote. Its gradient,
    ``gamma * p / (p + gamma)^2 * grad log p``, is largest at ``p = gamma``: rare tokens count more than they would by
    ``p`` itself, certain ones less.

    Raises:
        ValueError: if ``gamma`` is not above 0.

    >>> import torch
    >>> shaped_ratio(torch.log(torch.tensor([[0.1, 0.9]])), gamma=0.1)
    tensor([[0.5000, 0.9000]])
    """
    if gamma <= 0:
        raise ValueError(f"gamma must be above 0, given {gamma}")
    p = logps.exp()
    return p / (p + gamma)


def negative_log_likelihood(logps: Float[Tensor, "B T"], *, by_uncertainty: bool = False) -> Float[Tensor, "B T"]:
    """``-log p`` of each token.

    With ``by_uncertainty`` each token is weighed by ``p * (1 - p)``, without gradient through the weight: CHORD-phi
    (arXiv 2508.11408), which lets go of tokens that the policy is sure of, either way.

    >>> import torch
    >>> negative_log_likelihood(torch.log(torch.tensor([[0.5]])))
    tensor([[0.6931]])
    >>> negative_log_likelihood(torch.log(torch.tensor([[0.5]])), by_uncertainty=True)
    tensor([[0.1733]])
    """
    if not by_uncertainty:
        return -logps
    p = logps.detach().exp()
    return -logps * p * (1 - p)


def divergence(logps: Float[Tensor, "B T"], reference: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """``exp(r - l) - (r - l) - 1``: an estimate of KL(policy || reference) at each token, never negative.

    ``l`` and ``r`` are the log-probabilities under policy and reference. It is the one that TRL's GRPO
    adds (Schulman's k3).

    >>> import torch
    >>> divergence(torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.5, 0.25]])))  # 0.5 + ln 2 - 1
    tensor([[0.0000, 0.1931]])
    """
    difference = reference - logps
    return difference.exp() - difference - 1
