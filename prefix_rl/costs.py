"""The cost of a run: tokens, and floating-point operations.

Operations are counted as in PrefixRL (arXiv 2601.18795, App. F.2): ``2 N D`` for inference and ``6 N D`` for an update,
with ``N`` parameters and ``D`` tokens, prompt and prefix included. Attention is not in it, nor is evaluation. Whatever
the hardware, the same run costs the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Cost:
    """Counts over all ranks. They add up.

    >>> Cost(generated_tokens=3.0, flops=10.0) + Cost(generated_tokens=1.0)
    Cost(generated_tokens=4.0, injected_tokens=0.0, trained_tokens=0.0, flops=10.0)
    """

    generated_tokens: float = 0.0  # sampled by a policy
    injected_tokens: float = 0.0  # of demonstrations, as prefixes or whole
    trained_tokens: float = 0.0  # with a weight other than 0 in a loss, once for each pass over them
    flops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        theirs = asdict(other)
        return Cost(**{name: mine + theirs[name] for name, mine in asdict(self).items()})


def inference_flops(parameters: int, tokens: float) -> float:
    """``2 N D``: a forward pass over ``tokens``, generation included.

    >>> inference_flops(parameters=1000, tokens=10)
    20000
    """
    return 2 * parameters * tokens


def update_flops(parameters: int, tokens: float) -> float:
    """``6 N D``: a forward and a backward pass over ``tokens``.

    >>> update_flops(parameters=1000, tokens=10)
    60000
    """
    return 6 * parameters * tokens


def parameters_of(model) -> int:
    """Number of a model's parameters; those that are sharded over processes count whole."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
