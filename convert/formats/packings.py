"""How files are packed: which can be opened, and their tensors by name, whosever names these are."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from convert import flax_msgpack
from convert.files import dtypes, flax_scanner, safetensors_file, torch_file
from convert.files.flax_scanner import StoredArray
from convert.files.pickle_names import Refused, Thing
from convert.files.strangers import HEAD_BYTES, describe_stranger
from convert.files.tensors import MappedFile
from convert.formats.container import Container
from convert.formats.orbax import open_orbax
from convert.formats.state_dicts import Contents, StateDict, contents, describe, flax_contents
from convert.rules import abbreviate
from maskgit_pt.files import printable

_MAX_INDEX_BYTES = 2**24

ACCEPTED = (
    "folders with config.json and model.safetensors, .safetensors files, Google's Flax files, "
    "PyTorch files of hmorimitsu, open-muse, TiTok, MaskBit, MAGE, Besnier & Chen, taming, "
    "Halton-MaskGIT, LlamaGen, UnlockMGM (maskgit-convert --list)"
)


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


def open_shards(path: Path) -> Container:
    """Opens all shards that an index names.

    Raises:
      ValueError: a shard is missing or damaged, or holds other tensors than the index says.
    """
    places = _read_index(path)
    tensors: dict[str, Any] = {}
    releases = []
    files = [path.parent / name for name in sorted(set(places.values()))]
    for file in files:
        try:
            found, release = _named_tensors(file)
        except ValueError as error:
            kind = Refused if isinstance(error, Refused) else ValueError
            raise kind(f"its shard {file.name}: {error}") from None
        named = {name for name, place in places.items() if place == file.name}
        if differing := sorted(printable(str(key)) for key in found.keys() ^ named):
            raise ValueError(
                f"its shard {file.name} and its index differ in {abbreviate(differing)}"
            )
        tensors |= found
        releases.append(release)

    def release_all() -> None:
        for release in releases:
            release()

    layout = f"{len(files)} shards"
    return _container(
        path, "shards", layout, contents(tensors), files=(*files,), release=release_all
    )


def _read_index(path: Path) -> dict[str, str]:
    """Reads an index of shards: tensor -> file beside the index.

    Raises:
      ValueError: not such an index; one line.
    """
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise ValueError(f"its index has more than {_MAX_INDEX_BYTES:,} bytes")
    try:
        places = json.loads(path.read_text(encoding="utf-8-sig"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"its index has no weight_map: {type(error).__name__}") from None
    if not isinstance(places, dict):
        raise ValueError("its weight_map is no JSON object")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"its weight_map names {name!r}; accepted: files beside it")
        if not (path.parent / name).is_file():
            raise ValueError(f"its shard {name} is missing")
    return places


def _named_tensors(file: Path) -> tuple[dict[str, Any], Callable[[], None]]:
    packing = packing_of(file)
    if packing is SAFE:
        entries, _ = safetensors_file.read_header(file)
        mapped = MappedFile(file)
        return {n: mapped.tensor(*entry) for n, entry in entries.items()}, mapped.release
    if packing is TORCH:
        read = torch_file.read(file)
        if isinstance(read.tree, dict):
            return read.tree, read.release
    raise ValueError("holds no tensors by name")


def is_safetensors(path: Path, head: bytes) -> bool:
    """Whether a file that begins so has such a header."""
    return len(head) > 8 and head[8:9] == b"{" and head[6:8] == b"\0\0"


def is_flax(path: Path, head: bytes) -> bool:
    """Whether a file begins like a MessagePack map that is not empty, and like nothing else."""
    is_map = head[:1] and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF))
    return bool(is_map) and describe_stranger(path, head) is None


def is_index(path: Path, head: bytes) -> bool:
    """Whether a file is, by its name, an index of shards."""
    return path.name.endswith(".index.json")


def is_orbax(path: Path, head: bytes) -> bool:
    """Whether a folder is an Orbax checkpoint."""
    return (path / "_METADATA").is_file() or (path / "_CHECKPOINT_METADATA").is_file()


class Packing(NamedTuple):
    """How files are packed: its name, whether a path with these first bytes may be, opening it."""

    name: str
    matches: Callable[[Path, bytes], bool]
    open: Callable[[Path], Container]


SAFE = Packing("safetensors", is_safetensors, open_safetensors)
TORCH = Packing("PyTorch", torch_file.is_torch_file, open_torch)
FLAX = Packing("flax", is_flax, open_flax)
SHARDS = Packing("shards", is_index, open_shards)
ORBAX = Packing("Orbax", is_orbax, open_orbax)
PACKINGS = (ORBAX, SHARDS, SAFE, TORCH, FLAX)
IN_FOLDERS = (SHARDS, SAFE, TORCH)


def packing_of(path: Path) -> Packing | None:
    """How a file or folder is packed, by its first bytes; None if nothing opens it."""
    head = first_bytes(path)
    return next((packing for packing in PACKINGS if packing.matches(path, head)), None)


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file; none of a folder."""
    if path.is_dir():
        return b""
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES)
