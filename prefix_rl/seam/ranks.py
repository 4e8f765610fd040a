"""The exchange of one process with the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from ..rewards.functions import agreed


class Ranks:
    """The processes of a run. All of them ask the same in the same order.

    Args:
        accelerator: accelerate's.
    """

    def __init__(self, accelerator):
        self._accelerator = accelerator

    @property
    def count(self) -> int:
        """Number of processes."""
        return self._accelerator.num_processes

    @property
    def index(self) -> int:
        """Number of this process."""
        return self._accelerator.process_index

    @property
    def device(self) -> torch.device:
        """Device on which this process computes."""
        return self._accelerator.device

    @property
    def writes(self) -> bool:
        """True if this process is the one that writes files."""
        return self._accelerator.is_main_process

    def own(self, rows: int) -> slice:
        """The places of this process's ``rows`` among those of all."""
        return slice(self.index * rows, (self.index + 1) * rows)

    def all(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of all processes in order; each holds as many, of the same width."""
        return self._accelerator.gather(rows)

    def rows(self, rows: torch.Tensor, fill: float) -> torch.Tensor:
        """The rows of all processes in order, ``(B, T, ...)``, padded with ``fill`` to the widest."""
        return self.all(self._accelerator.pad_across_processes(rows, dim=1, pad_index=fill))

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        return int(self.all(torch.tensor([number], device=self.device)).max())

    def sums(self, values: torch.Tensor) -> list[float]:
        """The sum over all processes of each value."""
        return self._accelerator.reduce(values, "sum").tolist()

    def agreed(self, functions: Iterable[object]) -> AbstractContextManager[None]:
        """Raises on every process what went wrong on any in calls of these reward functions within."""
        return agreed(functions, self.objects)

    def objects(self, items: Sequence[Any]) -> list[Any]:
        """The items of all processes, in the order of the processes."""
        from accelerate.utils import gather_object

        return gather_object(list(items))
