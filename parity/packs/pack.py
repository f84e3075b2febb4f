"""The pack on disk: `manifest.json` and safetensors files, written whole and read with suspicion."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from convert.files import safetensors_file
from maskgit_pt.files import file_sha256, replacing
from parity.packs.arrays import Entry, parts_of

FORMAT = "maskgit-parity-pack"
VERSION = 1
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 2**25
_SECTIONS = {"model": dict, "weights": dict, "decoding": list, "files": dict, "arrays": list}
_STORED_DTYPES = ("float32", "int32", "uint32")
LEGEND = {
    "B": "samples",
    "N": "tokens, the class token first, then the grid row by row",
    "D": "width of the transformer",
    "F": "width of the MLP",
    "V": "vocabulary: codes, classes, mask",
    "K": "codes",
    "H": "rows of pixels or of a map",
    "W": "columns of pixels or of a map",
    "C": "channels",
    "h": "rows of tokens",
    "w": "columns of tokens",
    "S": "decoding steps that are run, start_iter first",
    "T": "the best few, best first",
    "P": "axes of a parameter, in Google's layout",
    "k": "two 32-bit words of a key, the high one first",
}


@dataclasses.dataclass
class Pack:
    """An opened pack.

    Attributes:
      folder: where it lies.
      manifest: as in `manifest.json`, checked.
      entries: what is recorded, in the order of computation.
    """

    folder: Path
    manifest: dict[str, Any]
    entries: dict[str, Entry]

    def __post_init__(self):
        self._open: dict[str, dict[str, np.ndarray]] = {}

    def part(self, entry: Entry, name: str) -> np.ndarray:
        """One stored array of `entry`: its own name, or one with an ending of `arrays`."""
        if entry.file not in self._open:
            path = self.folder / entry.file
            self._open[entry.file] = safetensors.numpy.load_file(path)
        return self._open[entry.file][name]

    def whole(self, name: str) -> np.ndarray:
        """An array that is stored whole.

        Raises:
          ValueError: there is none of this name.
        """
        entry = self.entries.get(name)
        if entry is None or entry.stride:
            raise ValueError(f"{self.folder}: holds no whole array {name!r}")
        return self.part(entry, name)


def write(folder: str | os.PathLike, manifest: dict[str, Any], arrays: list[Any]) -> None:
    """Writes a pack beside files that `folder` may hold already.

    Args:
      folder: of the pack.
      manifest: all but "format", "version", "axes", "arrays"; "files" is completed.
      arrays: pairs of `Entry` and values.
    """
    folder = Path(folder)
    by_file: dict[str, dict[str, np.ndarray]] = {}
    for entry, values in arrays:
        by_file.setdefault(entry.file, {}).update(parts_of(entry, values))
    for name, parts in by_file.items():
        safetensors.numpy.save_file(parts, folder / name)
        manifest["files"][name] = describe_file(folder / name)
    head = {"format": FORMAT, "version": VERSION}
    rows = [_row(entry) for entry, _ in arrays]
    text = _to_text(head | manifest | {"axes": LEGEND}, rows)
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(text, encoding="utf-8")


def describe_file(path: Path) -> dict[str, Any]:
    """What the manifest says of a file: its size and SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _to_text(manifest: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """JSON with a line for each array, so that a person can read down the names."""
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    text = json.dumps(manifest, indent=1)
    return f'{text[:-2]},\n "arrays": [\n  {lines}\n ]\n}}\n'


def _row(entry: Entry) -> dict[str, Any]:
    row = dataclasses.asdict(entry) | {"shape": list(entry.shape)}
    row["bounds"] = {dtype: float(f"{bound:.3g}") for dtype, bound in entry.bounds.items()}
    optional = {"stride": 0, "rounding": None, "bounds": {}, "given": False}
    return {key: value for key, value in row.items() if optional.get(key, ...) != value}


def read(folder: str | os.PathLike, hashes: bool = True) -> Pack:
    """Opens a pack and checks that it is whole.

    Args:
      folder: of the pack.
      hashes: compare the files' SHA-256 as well as their headers.

    Raises:
      ValueError, OSError: one line that names the file and what is wrong with it.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    entries: dict[str, Entry] = {}
    for number, row in enumerate(manifest["arrays"]):
        entry = _entry(folder / MANIFEST, number, row)
        if entry.name in entries:
            raise ValueError(f"{folder / MANIFEST}: array {entry.name!r} stands there twice")
        entries[entry.name] = entry
    _check_files(folder, manifest["files"], hashes)
    by_file: dict[str, dict[str, Any]] = {}
    for entry in entries.values():
        if entry.file not in manifest["files"]:
            raise ValueError(f"{folder / MANIFEST}: {entry.name} is in {entry.file!r}, not listed")
        by_file.setdefault(entry.file, {}).update(entry.stored_shapes())
    for name, expected in by_file.items():
        _check_header(folder / name, expected)
    return Pack(folder, manifest, entries)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder}: no pack: there is no {MANIFEST} in it")
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ValueError(
            f"{path}: {path.stat().st_size:,} bytes; accepted: {_MAX_MANIFEST_BYTES:,}"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise ValueError(f"{path}: format is {found!r}; accepted: {FORMAT!r}")
    if manifest.get("version") != VERSION:
        found = manifest.get("version")
        raise ValueError(f"{path}: version {found!r} of the format; accepted: {VERSION}")
    for key, kind in _SECTIONS.items():
        if not isinstance(manifest.get(key), kind):
            raise ValueError(f"{path}: {key!r} is missing or no {kind.__name__} (truncated?)")
    return manifest


_FIELDS = {field.name: field for field in dataclasses.fields(Entry)}


def _entry(path: Path, number: int, row: Any) -> Entry:
    where = f"{path}: array {number}"
    if not isinstance(row, dict) or not set(row) <= set(_FIELDS):
        raise ValueError(f"{where}: accepted fields: {', '.join(_FIELDS)}")
    try:
        entry = Entry(**(row | {"shape": tuple(row["shape"])}))
    except (TypeError, KeyError):
        raise ValueError(f"{where}: fields are missing") from None
    texts = (entry.name, entry.axes, entry.dtype, entry.about, entry.file)
    numbers = [entry.rounding or 0.0, *(entry.bounds or {}).values()]
    sound = (
        all(isinstance(text, str) for text in texts)
        and entry.dtype in _STORED_DTYPES
        and all(type(n) is int and 0 <= n <= 2**40 for n in (*entry.shape, entry.stride))
        and len(entry.axes.split()) == len(entry.shape) <= 8
        and isinstance(entry.bounds, dict)
        and all(isinstance(n, int | float) and 0 <= n < np.inf for n in numbers)
        and (entry.dtype != "float32" or entry.given or "float32" in entry.bounds)
    )
    if not sound:
        raise ValueError(
            f"{where} ({str(entry.name)[:60]}): axes, shape, dtype or bounds are wrong"
        )
    return entry


def _check_files(folder: Path, files: dict[str, Any], hashes: bool) -> None:
    for name, facts in files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{folder / MANIFEST}: file {name!r} lies outside the pack")
        if not isinstance(facts, dict) or type(facts.get("bytes")) is not int:
            raise ValueError(f"{folder / MANIFEST}: file {name!r} is not described")
        if not path.is_file():
            raise ValueError(f"{path}: missing from the pack")
        if path.stat().st_size != facts["bytes"]:
            raise ValueError(
                f"{path}: {path.stat().st_size:,} bytes; the manifest says {facts['bytes']:,} "
                "(truncated?)"
            )
        if hashes and file_sha256(path) != facts.get("sha256"):
            raise ValueError(f"{path}: damaged: its SHA-256 is not that of the manifest")


def _check_header(path: Path, expected: dict[str, tuple[tuple[int, ...], str]]) -> None:
    try:
        found, _ = safetensors_file.read_header(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for name, (shape, dtype) in expected.items():
        if name not in found or found[name][:2] != (dtype, shape):
            raise ValueError(f"{path}: tensor {name} is not as the manifest says")
