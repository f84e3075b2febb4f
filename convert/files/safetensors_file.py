"""The safetensors layout (huggingface/safetensors, README), read and written tensor by tensor.

8 bytes, the length of the header; the header, JSON of name -> dtype, shape and place; the data
without gaps. The library holds (or maps, which counts the same) the whole file in memory; this
does not.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from convert.files import dtypes
from convert.files.flax_scanner import is_absurd
from convert.files.tensors import Shape, as_bytes
from maskgit_pt.files import printable

MAX_HEADER_BYTES = 2**24  # ours have 100 kB; parsing takes ten times the memory
MAX_TENSORS = 100_000


def read_header(path: Path) -> tuple[dict[str, tuple[str, Shape, int]], dict[str, str]]:
    """Reads and checks the header: the data must be filled without gaps, as the library demands.

    Returns:
      Name -> (dtype, shape, offset in the file), and the metadata.

    Raises:
      ValueError: not a safetensors file.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"its header takes {length:,} bytes, the file {size:,} (truncated?)")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"its header takes {length:,} bytes; accepted: {MAX_HEADER_BYTES:,}")
        text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("its header is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"its header is not JSON: {error}") from None
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise ValueError(f"its header is no JSON object of at most {MAX_TENSORS:,} tensors")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata is no map from strings to strings")
    entries = {printable(name): _entry(printable(name), entry) for name, entry in header.items()}
    at = 0
    for name, (_, _, start, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if start != at:
            raise ValueError(f"tensor {name} starts at byte {start:,} of the data, not at {at:,}")
        at = end
    data = 8 + length
    if at != size - data:
        raise ValueError(f"its tensors take {at:,} bytes, its data {size - data:,} (truncated?)")
    places = {n: (dtype, shape, data + start) for n, (dtype, shape, start, _) in entries.items()}
    return places, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"its header has {printable(twice)} twice")
    return result


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name} must have dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(
            type(n) is int and 0 <= n <= 2**48 for n in numbers
        ):
            raise ValueError(f"tensor {name}: shape and data_offsets must list whole numbers")
    if is_absurd(shape):
        raise ValueError(f"tensor {name}: shape {shape[:8]} is absurdly large")
    try:
        dtype = dtypes.from_safetensors_name(entry["dtype"])
    except ValueError as error:
        raise ValueError(f"tensor {name}: {error}") from None
    expected = math.prod(shape) * dtypes.itemsize(dtype)
    if len(offsets) != 2 or offsets[1] - offsets[0] != expected:
        raise ValueError(
            f"tensor {name}: {dtype} {shape} takes {expected:,} bytes, not those of {offsets}"
        )
    return dtype, tuple(shape), *offsets


def header(tensors: dict[str, tuple[str, Shape]], metadata: dict[str, str]) -> bytes:
    """Returns what stands before the data: name -> (dtype, shape), the data in the same order."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + math.prod(shape) * dtypes.itemsize(dtype)
        entries[name] = {
            "dtype": dtypes.safetensors_name(dtype),
            "shape": list(shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    return struct.pack("<Q", len(text)) + text


def write(
    path: Path,
    layout: dict[str, tuple[str, Shape]],
    parts: Callable[[str], Iterable[Tensor]],
    metadata: dict[str, str],
) -> None:
    """Writes a new file: name -> (dtype, shape), and for each name its numbers, part by part."""
    with open(path, "xb") as file:
        file.write(header(layout, metadata))
        for name in layout:
            for part in parts(name):
                file.write(as_bytes(part))
