"""A file opened, before anybody knows whose names its tensors have: how it is packed."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from convert import flax_msgpack
from convert.files import dtypes, flax_scanner, safetensors_file, torch_file
from convert.files.flax_scanner import StoredArray
from convert.files.pickle_names import Thing
from convert.files.strangers import HEAD_BYTES, describe_stranger
from convert.files.tensors import MappedFile
from convert.formats.state_dicts import Contents, StateDict, contents, describe, flax_contents
from convert.rules import abbreviate
from maskgit_pt.pretrained import CONFIG_NAME, read_config

_MAX_CONFIG_BYTES = 2**20

ACCEPTED = (
    "folders with config.json and model.safetensors, .safetensors files, Google's Flax files, "
    "PyTorch files of hmorimitsu, open-muse, TiTok, MaskBit, MAGE, Besnier & Chen, taming, "
    "Halton-MaskGIT, LlamaGen, UnlockMGM (maskgit-convert --list)"
)


@dataclass
class Container:
    """A file of tensors under somebody's names.

    Attributes:
      path: the file; a folder, of Orbax.
      packing: how it is packed: name of a `Packing`.
      layout: the same in more words; for the user.
      candidates: its dictionaries of tensors.
      values: plain numbers and words beside them: steps, versions.
      left_out: what else there is, by key.
      things: class -> number of objects that nobody looked into.
      metadata: of safetensors.
      chunks: of Flax, tensor -> elements per chunk.
      folder: the folder that was named instead of the file, else None; of an archive, where its files are
        unpacked.
      archive: the zip archive that was named, else None.
      averaged: whether the weights are a moving average by the name of their folder.
      files: the files that hold the tensors, if `path` does not.
      compressed: whether the numbers may take more than the files.
      release: gives memory back that reading took.
      unpacked: what an archive was unpacked into; removed when nobody has it any more.
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
    archive: Path | None = None
    averaged: bool = False
    files: tuple[Path, ...] = ()
    compressed: bool = False
    release: Callable[[], None] = lambda: None
    unpacked: TemporaryDirectory | None = None

    @property
    def source(self) -> Path:
        """The file that the weights come from, the archive for what was unpacked."""
        return self.archive or self.path

    @property
    def size(self) -> int:
        """Bytes of the files."""
        files = self.files or ([self.path] if self.path.is_file() else self.path.rglob("*"))
        return sum(file.stat().st_size for file in files)


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
    from convert.formats.folders import read_index

    places = read_index(path)
    tensors: dict[str, Any] = {}
    releases = []
    files = [path.parent / name for name in sorted(set(places.values()))]
    for file in files:
        found, release = _named_tensors(file)
        tensors |= found
        releases.append(release)
    if differing := sorted(tensors.keys() ^ places.keys()):
        raise ValueError(f"its shards and its index differ in {abbreviate(differing)}")

    def release_all() -> None:
        for release in releases:
            release()

    layout = f"{len(files)} shards"
    return _container(
        path, "shards", layout, contents(tensors), files=(*files,), release=release_all
    )


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
    raise ValueError(f"its shard {file.name} holds no tensors by name")


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


def _open_orbax(path: Path) -> Container:
    from convert.formats.orbax import open_orbax  # imports what this module defines

    return open_orbax(path)


def config_beside(container: Container) -> dict:
    """The `config.json` in the folder that was named, beside the weights; {} if there is none.

    Raises:
      ValueError: it is no JSON object, or too large.
    """
    path = container.path.parent / CONFIG_NAME
    if container.folder is None or not path.is_file():
        return {}
    return read_small_config(path)


def read_small_config(path: Path) -> dict:
    """Reads a `config.json`; ValueError: see `config_beside`."""
    if (size := path.stat().st_size) > _MAX_CONFIG_BYTES:
        raise ValueError(f"{path}: {size:,} bytes; accepted: {_MAX_CONFIG_BYTES:,}")
    return read_config(path)


class Packing(NamedTuple):
    """How files are packed: its name, whether a path with these first bytes may be, opening it."""

    name: str
    matches: Callable[[Path, bytes], bool]
    open: Callable[[Path], Container]


SAFE = Packing("safetensors", is_safetensors, open_safetensors)
TORCH = Packing("PyTorch", torch_file.is_torch_file, open_torch)
FLAX = Packing("flax", is_flax, open_flax)
SHARDS = Packing("shards", is_index, open_shards)
ORBAX = Packing("Orbax", is_orbax, _open_orbax)
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
