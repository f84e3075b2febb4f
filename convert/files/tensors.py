"""Tensors that stay in their file until they are needed, and memory that is used again and again.

A conversion holds one tensor at a time. Fresh memory for each would cost more time (page faults)
than the copying itself, hence `Buffer`. A mapped page counts as ours once it was touched, hence
`MappedFile.release`.
"""

import contextlib
import ctypes
import math
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from convert.files import dtypes

Shape = tuple[int, ...]
_SLICE = 64  # measured; whole cache lines, of 16 float32


class Buffer:
    """Memory for one tensor at a time."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def tensor(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """An uninitialised contiguous tensor, valid until the next call."""
        size = math.prod(shape) * dtypes.itemsize(dtype)
        if size > self._bytes.numel():
            self._bytes = torch.empty(size, dtype=torch.uint8)
        return self._bytes[:size].view(dtypes.torch_dtype(dtype)).view(shape)

    def copy(self, tensor: Tensor, dtype: str) -> Tensor:
        """The tensor in row-major order and in `dtype`; a copy only where that changes anything.

        Valid until the next call. It is copied in slices along the axis that is slowest in memory
        (kernel sizes left aside), so that what a slice reads and writes stays in the processor's
        cache: up to five times as fast as copying a large transposed tensor at once.
        """
        if tensor.is_contiguous() and dtypes.name_of_torch(tensor.dtype) == dtype:
            return tensor
        target = self.tensor(tuple(tensor.shape), dtype)
        long_axes = [axis for axis, size in enumerate(tensor.shape) if size > _SLICE]
        if not long_axes:
            return target.copy_(tensor)
        axis = max(long_axes, key=tensor.stride)
        slices = zip(target.split(_SLICE, axis), tensor.split(_SLICE, axis), strict=True)
        for part, source in slices:
            part.copy_(source)
        return target


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keeps PyTorch on the calling thread: for small work, waking other threads costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def rows_that_differ(a: Tensor, b: Tensor) -> int:
    """How many rows of two matrices differ bit by bit, without memory for more than a few of them.

    Raises:
      ValueError: they have another shape or dtype.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)} do not compare")
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return 0
    count = 0
    for parts in zip(a.split(1024), b.split(1024), strict=True):
        bits = [part.contiguous().view(torch.uint8) for part in parts]
        count += int((bits[0] != bits[1]).any(-1).sum())
    return count


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, not copied."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


class MappedFile:
    """A file whose tensors are mapped into memory: nothing is read before it is used.

    The mapping is closed when its last tensor is gone.
    """

    def __init__(self, path: Path):
        self.size = path.stat().st_size
        with open(path, "rb") as file:
            # Private and writable, because PyTorch knows no read-only tensors.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if self.size else b""

    def tensor(self, dtype: str, shape: Shape, offset: int, stride: Shape | None = None) -> Tensor:
        """The tensor whose first number lies at `offset`; the caller has checked the bounds."""
        stride = row_major(shape) if stride is None else stride
        span = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if 0 in shape:
            return torch.empty(shape, dtype=dtypes.torch_dtype(dtype))
        flat = torch.frombuffer(
            self._map, dtype=dtypes.torch_dtype(dtype), count=span, offset=offset
        )
        return flat.as_strided(shape, stride)

    def joined(self, dtype: str, shape: Shape, parts: Sequence[tuple[int, int]]) -> Tensor:
        """The tensor whose numbers lie in (offset, bytes) parts; a copy if there are several."""
        if len(parts) == 1:
            return self.tensor(dtype, shape, parts[0][0])
        itemsize = dtypes.itemsize(dtype)
        pieces = [self.tensor(dtype, (size // itemsize,), offset) for offset, size in parts]
        return torch.cat(pieces).view(shape)

    def release(self) -> None:
        """Gives the memory back that was used for reading; what is read again is mapped again."""
        if self._map and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def release_pages(start: int, end: int) -> None:
    """As `MappedFile.release`, for addresses that lie in one private mapping of a file."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = end // mmap.PAGESIZE * mmap.PAGESIZE - start
    if length > 0:
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def row_major(shape: Shape) -> Shape:
    """The strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
