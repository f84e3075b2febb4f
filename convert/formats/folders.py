"""Where the weights in a folder are: one file, shards with an index, or the folder itself (Orbax)."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from convert.files.strangers import describe_stranger
from convert.formats import container
from convert.rules import abbreviate
from maskgit_pt import layouts

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_MAX_INDEX_BYTES = 2**24


def weights_of(folder: Path) -> Path:
    """Returns the file with the weights, the index of their shards, or a folder that Orbax wrote.

    Raises:
      ValueError: there is none, or there are several; one line that says what the folder is instead.
    """
    if known := layouts.describe(folder):
        raise ValueError(f"{folder} {known}")
    orbax = [path for path in (folder, *_folders(folder)) if container.is_orbax(path, b"")]
    if orbax:
        return _only(folder, orbax, "Orbax checkpoints in {} folders")
    packed = {path: container.packing_of(path) for path in entries(folder)}
    files = [path for path, packing in packed.items() if packing in container.IN_FOLDERS]
    own = [path for path in files if path.parent == folder]
    indexes = [path for path in own if packed[path] is container.SHARDS]
    shards = [path for path in own if _SHARD.search(path.name)]
    if indexes:
        own = [path for path in own if path not in shards]
    elif shards:
        raise ValueError(
            f"{folder} holds weights cut into shards ({abbreviate([p.name for p in shards])}) without the "
            "index that belongs to them (model.safetensors.index.json)"
        )
    # A repository often has the same weights twice, as safetensors and as a pickle.
    safe = [path for path in own if ".safetensors" in path.name or packed[path] is container.SAFE]
    files = safe if len(safe) == 1 else own or files
    if not files:
        raise ValueError(
            f"{folder} {describe_stranger(folder, b'')}; accepted: {container.ACCEPTED}"
        )
    return _only(folder, files, "weights in {} files")


def _only(folder: Path, found: list[Path], what: str) -> Path:
    if len(found) > 1:
        names = abbreviate([str(path.relative_to(folder)) for path in found])
        raise ValueError(f"{folder} holds {what.format(len(found))}, name one of them: {names}")
    return found[0]


def entries(folder: Path, limit: int = 1000) -> list[Path]:
    """The readable files of a folder and of the folders in it, sorted; not the hidden ones."""
    found: list[Path] = []
    for path in _visible(folder):
        found += _visible(path) if path.is_dir() else [path]
        if len(found) > limit:
            break
    return [path for path in found[:limit] if path.is_file() and os.access(path, os.R_OK)]


def _visible(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def read_index(path: Path) -> dict[str, str]:
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
