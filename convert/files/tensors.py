"""Tensors that stay in their file until they are needed, and memory that is used again and again.

A conversion holds one tensor at a time. Fresh memory for each would cost more time (page faults)
than the copying itself, hence `Buffer`; a memory map would count every page it has touched as ours,
hence plain reads.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convert.files import dtypes

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
    """Keeps PyTorch from sharing out small copies, bound by memory, among threads.

    Waking its team costs more than it brings, the more so while other threads hash.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, not copied."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


class OpenFile:
    """A file to read tensors from at any offset."""

    def __init__(self, path: Path):
        self.path = path
        self._file = open(path, "rb", buffering=0)

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fills `target`; OSError if the file ends before."""
        try:
            self._file.seek(offset)
            while target and (count := self._file.readinto(target)):
                target = target[count:]
        except OSError as error:
            raise OSError(f"{self.path}: cannot be read: {error.strerror}") from None
        if target:
            raise OSError(f"{self.path}: became shorter while it was read")

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file, under its official name and in its official layout.

    Attributes:
      file: where.
      dtype: a name of `dtypes.NAMES`.
      shape: official.
      stored_shape: in the file.
      parts: (offset, bytes) of what makes up the stored tensor.
      view: from the stored layout to the official one.
    """

    file: OpenFile
    dtype: str
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]
    view: Callable[[Tensor], Tensor] = lambda tensor: tensor

    def read(self, buffer: Buffer) -> Tensor:
        """Reads it into `buffer`; official shape, maybe strided."""
        stored = buffer.tensor(self.stored_shape, self.dtype)
        target = as_bytes(stored)
        for offset, count in self.parts:
            self.file.read_into(target[:count], offset)
            target = target[count:]
        return self.view(stored)
