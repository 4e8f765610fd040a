"""Live bytes of tensors: what a run holds at its peak, counted without a clock or the process's memory."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations read or wrote, from the first time that they are seen until they are freed.

    The work space inside one operation is not seen.
    """

    def __init__(self):
        super().__init__()
        self.now, self.peak, self._sizes = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._see((args, kwargs))
        result = func(*args, **(kwargs or {}))
        self._see(result)
        return result

    def _see(self, tree):
        for tensor in tree_leaves(tree):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._sizes:
                    weakref.finalize(storage, self._freed, key)
                    self._sizes[key] = 0
                self.now += size - self._sizes[key]
                self._sizes[key] = size
        self.peak = max(self.peak, self.now)

    def _freed(self, key):
        self.now -= self._sizes.pop(key, 0)
