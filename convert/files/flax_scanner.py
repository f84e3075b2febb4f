"""The walk through a Flax checkpoint that finds its arrays; `flax_msgpack` describes the format.

No length in the file is trusted: each is held against what is left before anything is allocated.
Array data is passed over, not read, so that a file of any size is opened in little memory.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from convert.files import dtypes
from maskgit_pt.files import printable

ARRAY, COMPLEX, SCALAR = 1, 2, 3  # extension types
CHUNKED = "__msgpack_chunked_array__"

# Bounds on what a file may ask for. Google's files have 393 arrays at depth 6, keys of 24 bytes.
MAX_DEPTH = 64
MAX_VALUES = 100_000
MAX_KEY_BYTES = 1024
MAX_TEXT_BYTES = 2**20
MAX_DIMENSIONS = 32
MAX_ELEMENTS = 2**48

# First byte -> struct format of the number that follows.
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d",
    0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
# First byte -> what follows, and the struct format of its length.
_SIZED = {
    0xC4: ("bytes", ">B"), 0xC5: ("bytes", ">H"), 0xC6: ("bytes", ">I"),
    0xC7: ("extension", ">B"), 0xC8: ("extension", ">H"), 0xC9: ("extension", ">I"),
    0xD9: ("string", ">B"), 0xDA: ("string", ">H"), 0xDB: ("string", ">I"),
    0xDC: ("list", ">H"), 0xDD: ("list", ">I"),
    0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip
FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_LEAST_BYTES = {"list": 1, "map": 2}  # per element; of the rest, a length counts bytes


@dataclass(frozen=True)
class StoredArray:
    """Where an array's bytes lie in a file.

    Attributes:
      dtype: a name of `dtypes.NAMES`.
      shape: its dimensions.
      parts: (offset, bytes) of each chunk, in order; one where the array is not chunked.
      is_scalar: extension 3, a NumPy scalar.
      is_chunked: stored as chunks, maybe as a single one.
    """

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]
    is_scalar: bool = False
    is_chunked: bool = False


def scan(file: BinaryIO, size: int) -> Any:
    """Reads a tree with a `StoredArray` in place of each array.

    Args:
      file: seekable, at its start.
      size: its length in bytes.

    Raises:
      ValueError: not such a file; says where in the tree and at which byte.
    """
    return _Scanner(file, size).tree()


class _Scanner:
    """Walks a file once; `at` is the offset, `end` what the value at hand must not go beyond."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.at, self.end, self.values = file, 0, size, 0

    def tree(self) -> Any:
        tree = self.value("", 0)
        if self.at != self.end:
            raise ValueError(f"{self.end - self.at} bytes follow the tree's end (byte {self.at})")
        return tree

    def fail(self, path: str, problem: str) -> None:
        raise ValueError(f"{path or 'the root'} (byte {self.at}): {problem}")

    def need(self, count: int, path: str) -> None:
        if count > self.end - self.at:
            self.fail(path, f"needs {count:,} bytes, {self.end - self.at:,} are left (truncated?)")

    def take(self, count: int, path: str) -> bytes:
        self.need(count, path)
        data = self.file.read(count)
        if len(data) != count:
            self.fail(path, "the file became shorter while it was read")
        self.at += count
        return data

    def skip(self, count: int, path: str) -> int:
        """Returns the offset of the `count` bytes that it passes over."""
        self.need(count, path)
        start = self.at
        self.at += count
        self.file.seek(self.at)
        return start

    def number(self, fmt: str, path: str) -> int | float:
        return struct.unpack(fmt, self.take(struct.calcsize(fmt), path))[0]

    def header(self, path: str) -> tuple[str, Any]:
        """Returns ("constant", value), or what follows and its length or count."""
        first = self.take(1, path)[0]
        if first < 0x80:
            return "constant", first
        if first >= 0xE0:
            return "constant", first - 0x100
        if first in _CONSTANTS:
            return "constant", _CONSTANTS[first]
        if first in _NUMBERS:
            return "constant", self.number(_NUMBERS[first], path)
        if first < 0xC0:
            kind, length = (
                ("map", first & 0xF) if first < 0x90
                else ("list", first & 0xF) if first < 0xA0
                else ("string", first & 0x1F)
            )  # fmt: skip
        elif first in FIXED_EXTENSIONS:
            kind, length = "extension", FIXED_EXTENSIONS[first]
        elif first in _SIZED:
            kind, fmt = _SIZED[first]
            length = self.number(fmt, path)
        else:
            self.fail(path, f"byte 0x{first:02x} is not MessagePack")
        self.need(length * _LEAST_BYTES.get(kind, 1), path)
        return kind, length

    def plain(self, path: str) -> Any:
        """A number, boolean or None; anything else gives None too."""
        kind, value = self.header(path)
        return value if kind == "constant" else None

    def value(self, path: str, depth: int) -> Any:
        self.values += 1
        if depth > MAX_DEPTH:
            self.fail(path[:80] + "...", f"nested deeper than {MAX_DEPTH} levels")
        kind, length = self.header(path)
        if kind == "constant":
            return length
        if kind == "map":
            return self.map(length, path, depth)
        if kind == "extension":
            return self.extension(length, path)
        if kind in ("string", "bytes") and length > MAX_TEXT_BYTES:
            self.fail(path, f"{length:,} bytes of text; at most {MAX_TEXT_BYTES:,} are accepted")
        if kind == "string":
            return self.string(length, path)
        if kind == "bytes":
            return self.take(length, path)
        self.count(length, path)
        return [self.value(f"{path}[{i}]", depth + 1) for i in range(length)]

    def count(self, more: int, path: str) -> None:
        if self.values + more > MAX_VALUES:
            self.fail(path, f"the tree has more than {MAX_VALUES:,} values")

    def string(self, length: int, path: str) -> str:
        data = self.take(length, path)
        try:
            return data.decode()
        except UnicodeDecodeError:
            self.fail(path, f"{data[:40]!r} is not UTF-8 text")

    def map(self, length: int, path: str, depth: int) -> Any:
        self.count(length, path)
        result: dict[str, Any] = {}
        for _ in range(length):
            kind, size = self.header(path)
            if kind != "string" or size > MAX_KEY_BYTES:
                self.fail(path, f"expected a name of at most {MAX_KEY_BYTES} bytes, found a {kind}")
            key = self.string(size, path)
            where = f"{path}/{printable(key)}" if path else printable(key)
            if key in result:
                self.fail(where, "occurs twice")
            result[key] = self.value(where, depth + 1)
        return self.unchunked(result, path) if CHUNKED in result else result

    def unchunked(self, chunked: dict, path: str) -> StoredArray:
        """Joins a chunked array; Flax's `_unchunk`."""
        shape, chunks = _tuple(chunked.get("shape")), _tuple(chunked.get("chunks"))
        if len(chunked) != 3 or chunked[CHUNKED] is not True or shape is None or not chunks:
            self.fail(path, f"a chunked array must hold {CHUNKED}: true, shape and chunks")
        if not all(isinstance(c, StoredArray) and len(c.shape) == 1 for c in chunks):
            self.fail(path, "the chunks of an array must be flat arrays")
        if len({chunk.dtype for chunk in chunks}) != 1:
            self.fail(path, "the chunks of an array differ in dtype")
        self.check_shape(shape, path)
        if math.prod(shape) != sum(chunk.shape[0] for chunk in chunks):
            self.fail(path, f"chunks do not add up to shape {list(shape)}")
        parts = tuple(part for chunk in chunks for part in chunk.parts)
        return StoredArray(chunks[0].dtype, shape, parts, is_chunked=True)

    def extension(self, length: int, path: str) -> StoredArray | complex:
        code = self.number(">b", path)
        self.need(length, path)
        outer, self.end = self.end, self.at + length  # what is inside must not reach beyond it
        if code in (ARRAY, SCALAR):
            result = self.array(path, is_scalar=code == SCALAR)
        elif code == COMPLEX:
            result = self.complex(path)
        else:
            self.fail(path, f"extension type {code} is unknown; Flax writes 1, 2 and 3")
        if self.at != self.end:
            self.fail(path, f"{self.end - self.at:,} bytes too many")
        self.end = outer
        return result

    def array(self, path: str, is_scalar: bool) -> StoredArray:
        if self.header(path) != ("list", 3):
            self.fail(path, "an array must hold (shape, dtype, bytes)")
        kind, dimensions = self.header(path)
        if kind != "list" or dimensions > MAX_DIMENSIONS:
            self.fail(path, f"a shape must be a list of at most {MAX_DIMENSIONS} numbers")
        shape = tuple(self.plain(path) for _ in range(dimensions))
        self.check_shape(shape, path)
        kind, length = self.header(path)
        if kind not in ("string", "bytes") or length > MAX_KEY_BYTES:
            self.fail(path, "a dtype must be a string")
        dtype = self.take(length, path).decode(errors="replace")
        if dtype not in dtypes.NAMES:
            accepted = ", ".join(dtypes.NAMES)
            self.fail(path, f"dtype {dtype!r} is not supported; accepted: {accepted}")
        kind, length = self.header(path)
        if kind not in ("string", "bytes"):
            self.fail(path, "an array's data must be bytes")
        if length != (expected := math.prod(shape) * dtypes.itemsize(dtype)):
            self.fail(path, f"{dtype} {list(shape)} takes {expected:,} bytes, not {length:,}")
        if is_scalar and shape:
            self.fail(path, f"a NumPy scalar has shape {list(shape)}")
        return StoredArray(dtype, shape, ((self.skip(length, path), length),), is_scalar)

    def check_shape(self, shape: tuple, path: str) -> None:
        if not all(type(n) is int and n >= 0 for n in shape):
            self.fail(path, "a shape must be a list of whole numbers")
        if is_absurd(shape):
            self.fail(path, f"shape {list(shape[:8])} is absurdly large")

    def complex(self, path: str) -> complex:
        if self.header(path) == ("list", 2):
            numbers = self.plain(path), self.plain(path)
            if all(isinstance(number, float) for number in numbers):
                return complex(*numbers)
        self.fail(path, "a complex number must hold (real, imaginary)")


def is_absurd(shape: tuple[int, ...] | list[int]) -> bool:
    """Whether no tensor can have this shape, not even an empty one."""
    return len(shape) > MAX_DIMENSIONS or math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS


def _tuple(numbered: Any) -> tuple | None:
    """{"0": a, "1": b} -> (a, b), as Flax stores tuples; None for anything else."""
    if not isinstance(numbered, dict) or set(numbered) != {str(i) for i in range(len(numbered))}:
        return None
    return tuple(numbered[str(i)] for i in range(len(numbered)))
