"""The files of token shards: names, manifest, checks that reading and writing share."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from maskgit_pt.files import write_atomically

MANIFEST_NAME = "manifest.json"
UNFINISHED_NAME = "unfinished.json"  # the settings, until there is a manifest
FORMAT = "maskgit_pt token shards, version 1"
PARTS = ("tokens", "labels", "crcs")
SETTINGS = ("tokenizer", "image_size", "grid", "codebook_size", "crops", "preprocessing", "source",
             "class_names")  # fmt: skip
REPAIR = "maskgit-tokenize, run again as before, makes damaged shards anew"


def part_path(folder: str | os.PathLike, number: int, part: str) -> Path:
    """Where a shard's "tokens", "labels" or "crcs" are."""
    return Path(folder) / f"shard-{number:05d}.{part}.npy"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of a finished folder, without its checksum.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, or of another format.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        if (folder / UNFINISHED_NAME).exists():
            raise FileNotFoundError(
                f"{folder}: unfinished; run the same maskgit-tokenize command again"
            )
        found = "no manifest.json there" if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"{folder}: {found}; accepted: what maskgit-tokenize wrote")
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        found = str(manifest.get("format"))[:60]
        raise ValueError(f"{path}: format is {found!r}; accepted: {FORMAT!r}")
    if manifest.pop("checksum", None) != checksum(manifest):
        raise ValueError(f"{path}: damaged: its checksum differs; restore it, or make the set anew")
    return manifest


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError if the file holds anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: damaged, not a JSON object")
    return value


def write_file(path: Path, data: bytes) -> None:
    """Writes a file as a whole or not at all; OSError says that nothing else is lost."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written: {error.strerror or error}; finished shards are kept, and the same "
            "command goes on from them"
        ) from None


def to_json(value: dict[str, Any]) -> bytes:
    """The inverse of `read_json`."""
    return (json.dumps(value, indent=1) + "\n").encode()


def checksum(manifest: dict[str, Any]) -> str:
    """Of a manifest without this entry."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def npy_bytes(array: np.ndarray) -> bytes:
    """The file that `numpy.save` would write."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0))
    return buffer.getvalue()


def check_labels(path: Path, labels: np.ndarray, num_classes: int) -> None:
    """Raises ValueError, naming `path`, if a label is not in [0, num_classes)."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"{path}: label {wrong} is out of range; accepted: 0 to {num_classes - 1}")


def too_large(path: Path, token: int, codebook_size: int) -> str:
    """What to say of a token that is not in the codebook."""
    return f"{path}: token {token} is out of range; accepted: 0 to {codebook_size - 1}"
