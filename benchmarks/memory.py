"""Memory of a computation: bytes of the tensors that operations make, counted at every operation,
and the peak of a process's resident memory."""

import weakref
from pathlib import Path

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Bytes of the memory that operations allocate, while it lives: now and at the peak.

    What a kernel takes and gives back within itself is not seen, on either side, and nothing of
    what a compiled graph does.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def ignore(self, *tensors: Tensor) -> None:
        """Weights and inputs that were there before."""
        self.known.update(tensor.untyped_storage() for tensor in tensors)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage)
                weakref.finalize(storage, self._freed, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return out

    def _freed(self, num_bytes: int) -> None:
        self.now -= num_bytes


def forget_peak() -> None:
    """Begin anew: a child may even have the peak of its parent. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """Bytes: the peak of the resident memory since it was last forgotten. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
