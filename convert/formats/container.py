"""A file opened, before anybody knows whose names its tensors have: how it is packed."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from convert import flax_msgpack
from convert.files import dtypes, flax_scanner, safetensors_file, torch_file
from convert.files.flax_scanner import StoredArray
from convert.files.pickle_names import Thing
from convert.files.strangers import HEAD_BYTES, describe_stranger
from convert.files.tensors import MappedFile
from convert.formats.state_dicts import Contents, StateDict, contents, describe, flax_contents
from convert.rules import abbreviate


@dataclass
class Container:
    """A file of tensors under somebody's names.

    Attributes:
      path: the file.
      packing: how it is packed: name of a `Packing`.
      layout: the same in more words; for the user.
      candidates: its dictionaries of tensors.
      values: plain numbers and words beside them: steps, versions.
      left_out: what else there is, by key.
      things: class -> number of objects that nobody looked into.
      metadata: of safetensors.
      chunks: of Flax, tensor -> elements per chunk.
      folder: the folder that was named instead of the file, else None.
      release: gives memory back that reading took.
    """

    path: Path
    packing: str
    layout: str
    candidates: list[StateDict]
    values: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    things: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    chunks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    folder: Path | None = None
    release: Callable[[], None] = lambda: None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size


def _container(path: Path, packing: str, layout: str, found: Contents, **more: Any) -> Container:
    return Container(path, packing, layout, found.candidates, found.values, found.left_out, **more)


def open_safetensors(path: Path) -> Container:
    """Raises ValueError: not such a file."""
    entries, metadata = safetensors_file.read_header(path)
    file = MappedFile(path)
    tensors = {name: file.tensor(*entry) for name, entry in entries.items()}
    found = contents(tensors) if tensors else Contents([StateDict(None, {})])
    return _container(
        path, "safetensors", "safetensors", found, metadata=metadata, release=file.release
    )


def open_flax(path: Path) -> Container:
    """Raises ValueError: see `flax_scanner.scan` and `flax_contents`."""
    with open(path, "rb") as file:
        tree = flax_scanner.scan(file, os.fstat(file.fileno()).st_size)
    if not isinstance(tree, dict):
        raise ValueError(f"holds a {type(tree).__name__}, not a tree of tensors")
    mapped = MappedFile(path)

    def tensor(leaf: Any) -> Any:
        if not isinstance(leaf, StoredArray):
            return leaf
        return mapped.joined(leaf.dtype, leaf.shape, leaf.parts)

    chunks = {
        name: tuple(count // dtypes.itemsize(leaf.dtype) for _, count in leaf.parts)
        for name, leaf in flax_msgpack.flatten(tree)
        if isinstance(leaf, StoredArray) and leaf.is_chunked
    }
    layout, found = flax_contents(flax_msgpack.map_leaves(tree, tensor))
    chunks = chunks if layout == "Flax" else {}
    return _container(path, "flax", layout, found, chunks=chunks, release=mapped.release)


def open_torch(path: Path) -> Container:
    """Raises ValueError: see `torch_file.read`; or there are no tensors by name in it."""
    file = torch_file.read(path)
    if not isinstance(file.tree, dict) or isinstance(file.tree, Thing) and not file.tree:
        raise ValueError(
            f"holds {describe(file.tree)}, not tensors by name (save its state_dict())"
        )
    if file.tree.keys() == {"state", "param_groups"}:
        raise ValueError("holds an optimizer's state, no weights; those are in another file")
    found = contents(file.tree)
    if not found.candidates:
        others = [f"{key} ({what})" for key, what in found.left_out.items()]
        keys = abbreviate([*others, *found.values])
        raise ValueError(f"holds no tensors by name; it has {keys or 'nothing'}")
    layout = "PyTorch" if file.layout == "zip" else "PyTorch's old"
    return _container(
        path, "PyTorch", layout, found, things=dict(file.things), release=file.release
    )


def find_weights(folder: Path) -> list[Path]:
    """The files of a folder, and of the folders in it, that begin like weights."""
    packed = {path: packing_of(path) for path in entries(folder) if os.access(path, os.R_OK)}
    files = [path for path, packing in packed.items() if packing in (SAFETENSORS, TORCH)]
    own = [path for path in files if path.parent == folder]
    safe = [path for path in own if packed[path] is SAFETENSORS]
    # A repository often has the same weights twice, as safetensors and as a pickle.
    return safe if len(safe) == 1 else own or files


def is_shard(path: Path) -> bool:
    """Whether a file is, by its name, one of the parts that large models are cut into."""
    return re.search(r"-\d{5}-of-\d{5}\.", path.name) is not None


def entries(folder: Path, limit: int = 1000) -> list[Path]:
    """The files of a folder and of the folders in it, sorted; not the hidden ones."""
    found: list[Path] = []
    for path in _visible(folder):
        found += [p for p in _visible(path) if p.is_file()] if path.is_dir() else [path]
        if len(found) > limit:
            break
    return [path for path in found[:limit] if path.is_file()]


def _visible(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def is_safetensors(path: Path, head: bytes) -> bool:
    """Whether a file that begins so has such a header."""
    return len(head) > 8 and head[8:9] == b"{" and head[6:8] == b"\0\0"


def is_flax(path: Path, head: bytes) -> bool:
    """Whether a file begins like a MessagePack map that is not empty, and like nothing else."""
    is_map = head[:1] and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF))
    return bool(is_map) and describe_stranger(path, head) is None


class Packing(NamedTuple):
    """How files are packed: its name, whether a file with these first bytes may be, opening it."""

    name: str
    matches: Callable[[Path, bytes], bool]
    open: Callable[[Path], Container]


SAFETENSORS = Packing("safetensors", is_safetensors, open_safetensors)
TORCH = Packing("PyTorch", torch_file.is_torch_file, open_torch)
FLAX = Packing("flax", is_flax, open_flax)


def packing_of(path: Path) -> Packing | None:
    """How a file is packed, by its first bytes; None if nothing opens it."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    return next((p for p in (SAFETENSORS, TORCH, FLAX) if p.matches(path, head)), None)
