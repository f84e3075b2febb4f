"""Tensors that stay in their file until they are needed, and memory that is used again and again.

A conversion holds one tensor at a time. Fresh memory for each would cost more time (page faults)
than the copying itself, hence `Buffer`; a memory map would count every page it has touched as ours,
hence plain reads.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convert import dtypes


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
        """A contiguous copy, maybe in another dtype, valid until the next call."""
        return self.tensor(tuple(tensor.shape), dtype).copy_(tensor)


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
        while target:
            count = os.preadv(self._file.fileno(), [target], offset)
            if not count:
                raise OSError(f"{self.path}: became shorter while it was read")
            target, offset = target[count:], offset + count

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
