"""Where the weights in a folder or an archive are: one file, shards with an index, or the folder itself."""

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import TypeVar

from convert.checkpoint import MissingWeights
from convert.files import archive
from convert.files.strangers import describe_stranger
from convert.formats import packings
from convert.formats.state_dicts import is_averaged
from convert.rules import abbreviate
from maskgit_pt import layouts
from maskgit_pt.layouts import CONFIG_NAME

P = TypeVar("P", bound=PurePath)

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_DEPTH = 3  # of folders in folders: of an archive, a checkpoint, a model
# What a trainer saves beside the weights, under names that end like theirs.
_STATE = re.compile(r"(optimizer|scheduler|scaler|sampler|random_states)(_\d+)?\.\w+")
_COMPANIONS = (".json", ".yaml", ".yml")
_MAX_COMPANION_BYTES = 2**20


def weights_of(folder: Path, weights: str | None = None) -> Path:
    """Returns the file with the weights, the index of their shards, or a folder that Orbax wrote.

    Args:
      folder: with weights in it, or in folders in it.
      weights: "ema" or "raw", where folders hold both; None: those of the moving average.

    Raises:
      ValueError: there is none, or there are several; one line that says what the folder is instead.
    """
    if known := layouts.describe(folder):
        raise ValueError(f"{folder} {known}")
    orbax = [path for path in (folder, *_folders(folder)) if packings.is_orbax(path, b"")]
    if orbax:
        return _only(folder, orbax, "Orbax checkpoints in {} folders")
    packed = {path: packings.packing_of(path) for path in entries(folder)}
    files = [path for path, packing in packed.items() if packing in packings.IN_FOLDERS]
    if not files:
        packed = {path: packings.packing_of(path) for path in entries(folder, _DEPTH)}
        files = [path for path, packing in packed.items() if packing in packings.IN_FOLDERS]
    if not files:  # what a hub's repository may hold alone
        files = [path for path in packed if archive.is_archive(path, packings.first_bytes(path))]
    configs = {path.parent for path in packed if path.name == CONFIG_NAME}
    if one_set := of_averages(files, configs, weights):
        return _only(folder, one_set, "weights in {} files")
    own = [path for path in files if path.parent == folder]
    indexes = [path for path in own if packed[path] is packings.SHARDS]
    shards = [path for path in own if _SHARD.search(path.name)]
    if indexes:
        own = [path for path in own if path not in shards]
    elif shards:
        raise ValueError(
            f"{folder} holds weights cut into shards ({abbreviate([p.name for p in shards])}) without the "
            "index that belongs to them (model.safetensors.index.json)"
        )
    # A repository often has the same weights twice, as safetensors and as a pickle.
    safe = [path for path in own if ".safetensors" in path.name or packed[path] is packings.SAFE]
    files = safe if len(safe) == 1 else own or files
    if not files:
        raise ValueError(
            f"{folder} {describe_stranger(folder, b'')}; accepted: {packings.ACCEPTED}"
        )
    return _only(folder, files, "weights in {} files")


def of_averages(files: Iterable[P], configs: Collection[PurePath], weights: str | None) -> list[P]:
    """Which files to take where folders like `ema_model` and `unwrapped_model` hold both kinds of weights.

    Args:
      files: files of weights, each in the folder of its model.
      configs: the folders that have a configuration.
      weights: "ema" or "raw"; None: averaged ones, with which the trainers that save so sample.

    Returns:
      The files; none where no folder is called after an average.

    Raises:
      MissingWeights: "raw" is asked for, and there is none.
    """
    models = [file for file in files if file.parent in configs and not _STATE.fullmatch(file.name)]
    averaged = [file for file in models if is_averaged(file.parent.name)]
    if not averaged or weights != "raw":
        return averaged
    raw = [file for file in models if file not in averaged]
    if not raw:
        raise MissingWeights(
            f"has no raw weights (--weights=raw); it has {averaged[0].parent.name}"
        )
    return raw


def unpack_weights(path: Path, weights: str | None) -> tuple[TemporaryDirectory, str, list[str]]:
    """Unpacks the one file of weights in an archive and the configuration beside it.

    Args:
      path: the archive.
      weights: as in `weights_of`.

    Returns:
      Where to, the name of their folder in the archive, and the names of all other weights there.

    Raises:
      ValueError: not one such file, or it cannot be unpacked; one line.
    """
    visible = [
        member
        for member in archive.members(path)
        if not any(part.startswith((".", "__")) for part in member.path.parts)
    ]
    by_path = {member.path: member for member in visible}
    files = [place for place in by_path if place.suffix.lower() in archive.WEIGHTS]
    files = [place for place in files if not _STATE.fullmatch(place.name)]
    configs = {place.parent for place in by_path if place.name == CONFIG_NAME}
    found = of_averages(files, configs, weights)
    found = found or [file for file in files if file.parent in configs] or files
    safe = [file for file in found if file.suffix.lower() == ".safetensors"]
    found = safe if len(safe) == 1 else found
    if not found:
        raise ValueError(
            f"is a zip archive without weights; accepted: names ending in {', '.join(archive.WEIGHTS)}"
        )
    if len(found) != 1:
        names = abbreviate([str(place) for place in found])
        raise ValueError(
            f"is a zip archive with weights in {len(found)} files ({names}); unpack it and name one of them"
        )
    (place,) = found
    beside = [
        member
        for member in visible
        if member.path.parent == place.parent
        and member.path.suffix in _COMPANIONS
        and member.size <= _MAX_COMPANION_BYTES
    ]
    folder = TemporaryDirectory(prefix="maskgit-convert-", ignore_cleanup_errors=True)
    archive.unpack(path, [by_path[place], *beside], Path(folder.name))
    others = [str(file) for file in files if file != place]
    return folder, str(place.parent), others


def _only(folder: Path, found: list[Path], what: str) -> Path:
    if len(found) > 1:
        names = abbreviate([str(path.relative_to(folder)) for path in found])
        raise ValueError(f"{folder} holds {what.format(len(found))}, name one of them: {names}")
    return found[0]


def entries(folder: Path, depth: int = 1, limit: int = 1000) -> list[Path]:
    """The readable files of a folder and of the folders in it, so deep; sorted; not the hidden ones."""
    found: list[Path] = []
    for path in _visible(folder):
        if len(found) >= limit:
            break
        if not path.is_dir():
            found += [path] if path.is_file() and os.access(path, os.R_OK) else []
        elif depth:
            found += entries(path, depth - 1, limit - len(found))
    return found


def _visible(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]
