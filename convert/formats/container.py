"""A file opened, before anybody knows whose names its tensors have: how it is packed."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convert import flax_msgpack
from convert.files import dtypes, flax_scanner, safetensors_file, torch_file
from convert.files.flax_scanner import StoredArray, printable
from convert.files.pickle_names import Thing
from convert.files.strangers import HEAD_BYTES, describe_stranger
from convert.files.tensors import MappedFile
from convert.rules import abbreviate

_MAX_CANDIDATES = 16
# What DistributedDataParallel, torch.compile and Lightning modules put before every name.
_PREFIX = re.compile(r"((module|_orig_mod|model)\.)+")
_MAX_VALUES = 64
_MAX_WORD = 256


@dataclass
class StateDict:
    """One of the dictionaries of tensors in a file.

    Attributes:
      wrapper: the key it stands under; None for the file itself.
      tensors: name -> tensor, mapped where the file allows it.
      left_out: what else stands between the tensors.
    """

    wrapper: str | None
    tensors: dict[str, Tensor]
    left_out: list[str] = field(default_factory=list)


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


def open_safetensors(path: Path) -> Container:
    """Raises ValueError: not such a file."""
    entries, metadata = safetensors_file.read_header(path)
    file = MappedFile(path)
    tensors = {name: file.tensor(*entry) for name, entry in entries.items()}
    return Container(
        path, SAFETENSORS.name, "safetensors", [StateDict(None, tensors)], metadata=metadata,
        release=file.release,
    )  # fmt: skip


def open_flax(path: Path) -> Container:
    """Raises ValueError: see `flax_scanner.scan`; or a leaf is no tensor."""
    with open(path, "rb") as file:
        tree = flax_scanner.scan(file, os.fstat(file.fileno()).st_size)
    if not isinstance(tree, dict):
        raise ValueError(f"holds a {type(tree).__name__}, not a tree of tensors")
    stored = dict(flax_msgpack.flatten(tree))
    for name, leaf in stored.items():
        if not isinstance(leaf, StoredArray):
            raise ValueError(f"{name} is a {type(leaf).__name__}, not a tensor")
    mapped = MappedFile(path)
    tensors = {n: mapped.joined(leaf.dtype, leaf.shape, leaf.parts) for n, leaf in stored.items()}
    chunks = {
        name: tuple(count // dtypes.itemsize(leaf.dtype) for _, count in leaf.parts)
        for name, leaf in stored.items()
        if leaf.is_chunked
    }
    return Container(
        path, FLAX.name, "Flax", [StateDict(None, tensors)], chunks=chunks, release=mapped.release
    )


def open_torch(path: Path) -> Container:
    """Raises ValueError: see `torch_file.read`; or there are no tensors by name in it."""
    file = torch_file.read(path)
    if not isinstance(file.tree, dict) or isinstance(file.tree, Thing) and not file.tree:
        raise ValueError(
            f"holds {_describe(file.tree)}, not tensors by name (save its state_dict())"
        )
    layout = "PyTorch" if file.layout == "zip" else "PyTorch's old"
    container = Container(
        path, TORCH.name, layout, [], things=dict(file.things), release=file.release
    )
    tensors = {name: value for name, value in file.tree.items() if _is_tensor(value)}
    if bare := _state_dict(None, tensors):
        container.candidates.append(bare)
    for key, value in file.tree.items():
        found = (
            _state_dict(key, value) if isinstance(key, str) and isinstance(value, dict) else None
        )
        if key in tensors:
            pass
        elif found and len(container.candidates) < _MAX_CANDIDATES:
            container.candidates.append(found)
        elif _is_plain(value) and isinstance(key, str) and len(container.values) < _MAX_VALUES:
            container.values[printable(key[:_MAX_WORD])] = value
        else:
            container.left_out[printable(str(key)[:_MAX_WORD])] = _describe(value)
    if not container.candidates:
        others = [f"{key} ({what})" for key, what in container.left_out.items()]
        keys = abbreviate([*others, *container.values])
        raise ValueError(f"holds no tensors by name; it has {keys or 'nothing'}")
    return container


def _is_tensor(value: Any) -> bool:
    """Whether it is a tensor of numbers in memory that is addressed by strides."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _state_dict(wrapper: str | None, tree: dict) -> StateDict | None:
    result = StateDict(wrapper, {})
    for name, value in tree.items():
        if isinstance(name, str) and _is_tensor(value):
            result.tensors[printable(name)] = value.detach()
        else:
            result.left_out.append(printable(str(name)[:_MAX_WORD]))
    prefix = _PREFIX.match(next(iter(result.tensors), ""))
    if prefix and all(name.startswith(prefix[0]) for name in result.tensors):
        result.tensors = {n.removeprefix(prefix[0]): t for n, t in result.tensors.items()}
        result.left_out.append(f"the names' prefix {prefix[0]}")
    return result if result.tensors else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, str) and len(value) < _MAX_WORD and value.isprintable() or isinstance(
        value, bool | float
    )  # fmt: skip


def _describe(value: Any) -> str:
    if isinstance(value, Thing):
        return f"an object of {value.kind}"
    if isinstance(value, type) and issubclass(value, Thing):
        return f"the name of {value.kind}"
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    size = f" of {len(value):,}" if isinstance(value, dict | list | tuple) else ""
    return f"{'an' if isinstance(value, int) else 'a'} {type(value).__name__}{size}"


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
