"""The ``speed`` block of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Speed:
    """Savings of computation; no setting changes what is learned (see docs/speed.md).

    >>> Speed(shared_prefix=False, trim=False, order=False, shared_prefill=False) == OFF
    True
    """

    shared_prefix: bool = True
    """Pack the rows of a micro-batch without padding, and encode what they share once."""
    trim: bool = True
    """Leave out the columns of a micro-batch that hold padding alone, where shared prefixes are not supported."""
    order: bool = True
    """Put rows that share a prefix into the same micro-batch."""
    balance: bool = True
    """With ``order``: cut the rows of an optimizer step into micro-batches with nearly equally many distinct tokens."""
    shared_prefill: bool = True
    """Generation with transformers: encode each distinct prompt + prefix once; rows that have ended leave the batch."""
    verify: Literal["first", "always", "never"] = "first"
    """Compare with the plain path on the first micro-batch of each model, on every one, or on none."""


OFF = Speed(shared_prefix=False, trim=False, order=False, shared_prefill=False)
"""TRL's own path, bit for bit."""
