"""Flax's checkpoint bytes (`flax.serialization.to_bytes`), read and written without JAX or Flax.

The format (flax/serialization.py): one MessagePack value, a tree of maps with string keys; its
leaves are plain values or extensions:
  1  array: MessagePack of (shape, dtype name, bytes in row-major order)
  2  complex number: MessagePack of (real, imaginary)
  3  NumPy scalar: as an array of shape ()
An array of more than 2**30 bytes is a map instead (every tuple in it a map from "0", "1", ...):
  {"__msgpack_chunked_array__": true, "shape": {...}, "chunks": {flat arrays}}

`flax_scanner` reads, without trusting any length in the file. Arrays of bfloat16 have the dtype
`dtypes.BFLOAT16`.
"""

import io
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from convert.files import dtypes
from convert.files.flax_scanner import (
    ARRAY,
    CHUNKED,
    COMPLEX,
    FIXED_EXTENSIONS,
    SCALAR,
    StoredArray,
    scan,
)

MAX_CHUNK_BYTES = 2**30  # as flax.serialization.MAX_CHUNK_SIZE


def loads(data: bytes | bytearray | memoryview | np.ndarray) -> Any:
    """Reads a tree whose arrays are views of `data`, copied only where chunked.

    Raises:
      ValueError: see `scan`.
    """
    view = memoryview(data).cast("B")
    return map_leaves(scan(_ViewFile(view), len(view)), lambda leaf: _array(leaf, view))


def dumps(tree: Any, max_chunk_bytes: int | None = None) -> bytes:
    """Writes a tree as `flax.serialization.to_bytes` does, but keeps the order of its keys.

    Flax sorts them (`jax.tree_util.tree_map`): with sorted keys the bytes are the same.

    Args:
      tree: dictionaries with string keys, lists, arrays, NumPy scalars, None, numbers, strings.
      max_chunk_bytes: cut longer arrays; default: `MAX_CHUNK_BYTES`.

    Raises:
      ValueError: a leaf that the format cannot hold; names it.
    """
    output = io.BytesIO()
    dump(tree, output.write, max_chunk_bytes)
    return output.getvalue()


def dump(tree: Any, write: Callable[[Any], object], max_chunk_bytes: int | None = None) -> None:
    """Like `dumps`, piece by piece to `write`; a `LazyArray` is read when its turn comes."""
    _Writer(write, max_chunk_bytes or MAX_CHUNK_BYTES).value(tree, "")


def flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("params/Embed_0/...", leaf) in the order of the tree.

    Raises:
      ValueError: a key that contains "/", or a map without entries.
    """
    for key, value in tree.items():
        if "/" in key or not key:
            raise ValueError(f"in {prefix or 'the root'}: name {key!r} is empty or contains '/'")
        if not isinstance(value, dict):
            yield prefix + key, value
        elif value:
            yield from flatten(value, f"{prefix}{key}/")
        else:
            raise ValueError(f"{prefix}{key} is an empty map")


def nest(flat: dict[str, Any]) -> dict:
    """The inverse of `flatten`."""
    tree: dict = {}
    for name, leaf in flat.items():
        *modules, last = name.split("/")
        branch = tree
        for module in modules:
            branch = branch.setdefault(module, {})
        branch[last] = leaf
    return tree


class _ViewFile:
    """A memoryview as the file that `scan` reads; io.BytesIO would copy it."""

    def __init__(self, view: memoryview):
        self.view, self.at = view, 0

    def read(self, count: int) -> bytes:
        data = self.view[self.at : self.at + count].tobytes()
        self.at += len(data)
        return data

    def seek(self, offset: int) -> None:
        self.at = offset


def map_leaves(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Applies a function to all that is neither dictionary nor list."""
    if isinstance(tree, dict):
        return {key: map_leaves(value, function) for key, value in tree.items()}
    if isinstance(tree, list):
        return [map_leaves(value, function) for value in tree]
    return function(tree)


def _array(leaf: Any, view: memoryview) -> Any:
    if not isinstance(leaf, StoredArray):
        return leaf
    dtype = dtypes.numpy_dtype(leaf.dtype)
    parts = [np.frombuffer(view[at : at + count], dtype) for at, count in leaf.parts]
    array = (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(leaf.shape)
    return array[()] if leaf.is_scalar else array


@dataclass(frozen=True)
class LazyArray:
    """An array for `dump` that is made when it is written.

    Attributes:
      dtype: a name of `dtypes.NAMES`.
      shape: its dimensions.
      read: returns its bytes in row-major order, valid until the next call of any `read`.
      chunks: elements per chunk; default: by size, as Flax.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Any]
    chunks: tuple[int, ...] | None = None


class _Writer:
    def __init__(self, write: Callable[[Any], object], max_chunk_bytes: int):
        self.write, self.max_chunk_bytes = write, max_chunk_bytes
        self.packer = msgpack.Packer()

    def value(self, value: Any, path: str) -> None:
        if isinstance(value, dict):
            self.write(self.packer.pack_map_header(len(value)))
            for key, child in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"{path or 'the root'}: key {key!r} is no string")
                self.write(self.packer.pack(key))
                self.value(child, f"{path}/{key}" if path else key)
        elif isinstance(value, list):
            self.write(self.packer.pack_array_header(len(value)))
            for i, child in enumerate(value):
                self.value(child, f"{path}[{i}]")
        elif isinstance(value, LazyArray):
            self.lazy_array(value)
        elif isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
            self.array(value, path)
        else:
            self.plain(value, path)

    def array(self, value: Any, path: str) -> None:
        is_scalar = isinstance(value, np.generic)
        array = np.asarray(value)
        try:
            dtype = dtypes.name_of(array.dtype)
        except ValueError as error:
            raise ValueError(f"{path or 'the root'}: {error}") from None
        data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        if is_scalar:
            self.piece(SCALAR, dtype, (), data)
        else:
            self.lazy_array(LazyArray(dtype, array.shape, lambda: data))

    def lazy_array(self, array: LazyArray) -> None:
        size, itemsize = math.prod(array.shape), dtypes.itemsize(array.dtype)
        chunks = array.chunks
        if chunks is None and size * itemsize > self.max_chunk_bytes:
            count = max(1, self.max_chunk_bytes // itemsize)
            chunks = [min(count, size - start) for start in range(0, size, count)]
        data = array.read()
        if chunks is None:
            self.piece(ARRAY, array.dtype, array.shape, data)
            return
        pack = self.packer.pack
        self.write(self.packer.pack_map_header(3))
        self.write(pack(CHUNKED) + pack(True))
        self.write(pack("shape") + pack({str(i): n for i, n in enumerate(array.shape)}))
        self.write(pack("chunks") + self.packer.pack_map_header(len(chunks)))
        start = 0
        for i, count in enumerate(chunks):
            self.write(pack(str(i)))
            self.piece(ARRAY, array.dtype, (count,), data[start : start + count * itemsize])
            start += count * itemsize

    def piece(self, code: int, dtype: str, shape: tuple[int, ...], data: Any) -> None:
        pack = self.packer.pack
        inner = self.packer.pack_array_header(3) + pack(list(shape)) + pack(dtype)
        inner += _sized_header(len(data), {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"})
        length = len(inner) + len(data)
        fixed = {count: bytes([first]) for first, count in FIXED_EXTENSIONS.items()}.get(length)
        header = fixed or _sized_header(length, {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"})
        self.write(header + bytes([code]) + inner)
        self.write(data)

    def plain(self, value: Any, path: str) -> None:
        if isinstance(value, complex):
            value = msgpack.ExtType(COMPLEX, msgpack.packb((value.real, value.imag)))
        elif not isinstance(value, bool | int | float | str | bytes | None):
            raise ValueError(f"{path or 'the root'}: a {type(value).__name__} cannot be stored")
        self.write(self.packer.pack(value))


def _sized_header(length: int, formats: dict[int, str]) -> bytes:
    """The shortest header that holds `length`, as the msgpack library chooses it."""
    for first, fmt in formats.items():
        if length < 256 ** struct.calcsize(fmt):
            return bytes([first]) + struct.pack(fmt, length)
    raise ValueError(f"{length:,} bytes are too many for one MessagePack value (2**32 - 1)")
