"""What the kernel is told about memory that is about to be read or filled. Hints: without Linux, or
with a kernel that does not know one, nothing happens, and every result is the same."""

import ctypes
import mmap
import sys
from typing import Any

from torch import Tensor

_HUGE_PAGE, _BIG = 2**21, 2**23  # of x86; what is smaller is not worth a call
_WILLNEED, _HUGEPAGE, _POPULATE_READ = 3, 14, 22  # Linux's mman.h


def _libc() -> Any:
    """The C library's madvise, which other threads may run beside; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


_LIBC = _libc()


def bring_in(tensor: Tensor) -> Tensor:
    """Map a tensor's pages, read from their file where need be, in one go instead of one fault
    after the other. The same tensor; one in plain memory stays as it is."""
    _advise(
        tensor, _WILLNEED, mmap.PAGESIZE
    )  # large requests to the disk, which faults of their own are not
    _advise(tensor, _POPULATE_READ, mmap.PAGESIZE)
    return tensor


def in_large_pages(tensor: Tensor) -> Tensor:
    """The same tensor, not yet written to, for whose memory the kernel may take large pages: it is
    asked for once in 2 MiB instead of once in 4 KiB."""
    _advise(tensor, _HUGEPAGE, _HUGE_PAGE)
    return tensor


def _advise(tensor: Tensor, advice: int, page: int) -> None:
    """madvise for the memory of a contiguous tensor: its small pages as far as they reach, or the
    large ones that lie within it."""
    size = tensor.numel() * tensor.element_size()
    if _LIBC is None or size < _BIG or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    start, stop = tensor.data_ptr(), tensor.data_ptr() + size
    if page == mmap.PAGESIZE:
        start -= start % page
    else:
        start, stop = -(-start // page) * page, stop // page * page
    if stop > start:
        _LIBC.madvise(start, stop - start, advice)
