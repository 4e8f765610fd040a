"""Weights that must be finite: whoever trains, samples or measures a policy refuses others when it loads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError, UserError


class NotFiniteError(UserError):
    """NaN or infinity where training needs a number."""


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that holds NaN or infinity, None if none does. Of sharded ones it sees its own part.

    >>> first_not_finite([("a", torch.ones(2)), ("b", torch.tensor([1.0, torch.nan]))])
    'b'
    """
    names, fine = [], []
    for name, tensor in named:
        part = _own_part(tensor.detach())
        if part.is_floating_point() and part.dtype.itemsize > 1 and part.numel():
            names.append(name)
            # both are NaN if any element is: no copy of the tensor is made
            fine.append(torch.stack(torch.aminmax(part)).isfinite().all())
    return next((name for name, good in zip(names, [bool(good) for good in fine], strict=True) if not good), None)


def _own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, or its shard under DeepSpeed's stage 3 and FSDP."""
    if hasattr(tensor, "ds_tensor"):
        return tensor.ds_tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def check_weights(named: Iterable[tuple[str, Tensor]], source: str | Path) -> None:
    """Sees that weights are finite.

    Args:
        named: the parameters by name.
        source: where they were loaded from.

    Raises:
        DataError: naming the first parameter that is not.
    """
    if name := first_not_finite(named):
        raise DataError(weights_fault(source, name))


def check_saved_weights(folder: Path) -> None:
    """:func:`check_weights` for the safetensors files of a folder, for engines that load them by themselves.

    Raises:
        DataError: as :func:`check_weights`.
    """
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                check_weights(((name, file.get_tensor(name)) for name in file.keys()), folder)  # noqa: SIM118
        except (OSError, SafetensorError):
            return  # the engine says what is wrong with it


def weights_fault(source: object, name: str) -> str:
    """What is wrong with the weights of ``source``, of which the parameter ``name`` is not finite."""
    return (
        f"the weights of {source} are not finite: {name} holds NaN or infinity, and maybe others too. Such a policy "
        "answers nothing; take an earlier checkpoint"
    )
