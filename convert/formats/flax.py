"""Google's files: Flax MessagePack of `{"params": {...}}`; see `flax_msgpack`."""

import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from convert import flax_msgpack, infer, rules
from convert.checkpoint import Checkpoint, check_dtypes
from convert.files import dtypes, flax_scanner
from convert.files.tensors import Buffer, FileTensor, OpenFile, as_bytes

NAME = "flax"
DESCRIPTION = "Flax msgpack file (Google's own format)"
HOLDS = "Google's transformer, tokenizer or discriminator"
IS_FOLDER = False
KEEPS_ORDER = True
KINDS = ("transformer", "tokenizer", "discriminator")


def can_write(kind: str, config: dict) -> bool:
    """Whether it is a model that Google's code has."""
    return kind in KINDS


def matches(path: Path, head: bytes) -> bool:
    """Whether a file that begins with `head` is one: a MessagePack map that is not empty."""
    is_map = head[:1] and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF))
    return bool(is_map) and path.is_file()


def open_checkpoint(
    path: Path, num_heads: int | None = None, num_codes: int | None = None
) -> Checkpoint:
    """Opens a file.

    Args:
      path: a file.
      num_heads: attention heads; must be what the file shows, if given.
      num_codes: of no use here.

    Raises:
      ValueError: not such a file, or not the weights of one of our models; one line.
    """
    with open(path, "rb") as file:
        tree = flax_scanner.scan(file, os.fstat(file.fileno()).st_size)
    if not isinstance(tree, dict):
        raise ValueError(f"holds a {type(tree).__name__}, not a tree of tensors")
    stored = dict(flax_msgpack.flatten(tree))
    for name, leaf in stored.items():
        if not isinstance(leaf, flax_scanner.StoredArray):
            raise ValueError(f"{name} is a {type(leaf).__name__}, not a tensor")
    shapes = {name: leaf.shape for name, leaf in stored.items()}
    kind, config = infer.infer_config(shapes)
    pieces = rules.target(kind, config)[1]
    rules.close_books({p.official: p.official_shape for p in pieces}, shapes, f"a {kind}")
    check_dtypes({name: leaf.dtype for name, leaf in stored.items()})
    if num_heads not in (None, heads := config.get("num_attention_heads")):
        raise ValueError(f"has {heads} attention heads, not {num_heads}")
    opened = OpenFile(path)
    tensors = {
        name: FileTensor(opened, leaf.dtype, leaf.shape, leaf.shape, leaf.parts)
        for name, leaf in stored.items()
    }
    chunks = {
        name: tuple(count // dtypes.itemsize(leaf.dtype) for _, count in leaf.parts)
        for name, leaf in stored.items()
        if leaf.is_chunked
    }
    return Checkpoint(path, opened, kind, config, tensors, chunks)


def write(
    source: Checkpoint,
    output: Path,
    dtype: str | None,
    observe: Callable[[str, Tensor], None],
) -> Path:
    """Writes a file.

    Args:
      source: what to write; its order and chunks are kept.
      output: the file.
      dtype: convert to this; None: as stored.
      observe: called with the official name and the converted tensor, for each.

    Returns:
      The file that holds the weights: `output`.

    Raises:
      ValueError: Google's code has no such model.
    """
    if not can_write(source.kind, source.config):
        raise ValueError(f"Google's format holds {', '.join(KINDS)}; this is a {source.kind}")
    stored, converted = Buffer(), Buffer()

    def leaf(name: str, tensor: FileTensor) -> flax_msgpack.LazyArray:
        def read() -> memoryview:
            result = converted.copy(tensor.read(stored), dtype or tensor.dtype)
            observe(name, result)
            return as_bytes(result)

        return flax_msgpack.LazyArray(
            dtype or tensor.dtype, tensor.shape, read, source.chunks.get(name)
        )

    leaves = {name: leaf(name, tensor) for name, tensor in source.tensors.items()}
    with open(output, "xb") as file:
        flax_msgpack.dump(flax_msgpack.nest(leaves), file.write)
    return output
