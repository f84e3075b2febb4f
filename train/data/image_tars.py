"""Images in tar files, in WebDataset's layout: `key.jpg` beside `key.cls` or `key.json`."""

import glob
import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from maskgit_pt import imagenet
from train.data.image_base import EXTENSIONS, Images, Names

_LABELS = ("cls", "json")
_MAX_LABEL_BYTES = 2**20
_MAX_CLASSES = 2**16
_BLOCK = tarfile.BLOCKSIZE


class TarImages(Images):
    """Images inside uncompressed tar files, read in any order through an index of their places.

    Nothing is ever unpacked, so names in the files (absolute, with "..", links) can do no harm. Classes
    are numbers; if there are 1000 they are taken to be ImageNet's, and named by their WordNet ids.

    Args:
      paths: the tar files; the order of the images follows theirs.
      num_classes: default: the highest label and one.

    Raises:
      ValueError: a file is no tar, is compressed, cut off or damaged; an image without a label or a label
        without an image; a label that is no number or out of range.
    """

    def __init__(self, paths: list[Path], num_classes: int | None = None):
        self.paths = paths
        names, labels = Names(), array("q")
        self._tars, self._starts, self._sizes = array("i"), array("q"), array("q")
        for number, path in enumerate(paths):
            for name, label, start, size in _index(path):
                names.append(f"{path.name}/{name}")
                labels.append(label)
                self._tars.append(number)
                self._starts.append(start)
                self._sizes.append(size)
        highest = max(labels, default=0)
        num_classes = num_classes or highest + 1
        if highest >= num_classes:
            worst = names[labels.index(highest)]
            raise ValueError(f"{worst}: label is {highest}; accepted: 0 to {num_classes - 1}")
        wordnet = num_classes == imagenet.NUM_CLASSES
        classes = imagenet.wordnet_ids() if wordnet else [str(i) for i in range(num_classes)]
        super().__init__(names, np.array(labels, np.int64), classes)

    def _read_bytes(self, index: int) -> bytes:
        path, size = self.paths[self._tars[index]], self._sizes[index]
        with open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, self._starts[index])
        if len(data) != size:
            raise ValueError(f"{path}: shorter than when it was opened; has it been replaced?")
        return data


def find_tars(pattern: str) -> list[Path]:
    """The files that a path with `*`, `?`, `[0-9]` or braces (`{000..146}`, `{a,b}`) stands for.

    Raises:
      FileNotFoundError: none, or one that braces name is missing.
    """
    paths: list[Path] = []
    for name in _expand_braces(pattern):
        found = sorted(map(Path, glob.glob(name))) if glob.has_magic(name) else [Path(name)]
        if not found or not found[0].is_file():
            raise FileNotFoundError(f"{name}: no such tar file")
        paths += found
    return paths


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    span = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", match[1])
    if span:
        numbers = range(int(span[1]), int(span[2]) + 1)
        options = [str(number).zfill(len(span[1])) for number in numbers]
    else:
        options = match[1].split(",")
    rest = _expand_braces(pattern[match.end() :])
    return [pattern[: match.start()] + option + end for option in options for end in rest]


def _index(path: Path) -> Iterator[tuple[str, int, int, int]]:
    """Name, label, place and size of every image of a tar file."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, dict[str, int]] = {}
    with open(path, "rb") as file:
        for member in _members(path, file):
            folder, _, base = member.name.rpartition("/")
            key, _, extension = base.partition(".")
            key, extension = f"{folder}/{key}", extension.lower()
            if extension in EXTENSIONS:
                if key in images:
                    raise ValueError(f"{path}: {images[key][0]!r} and {member.name!r} have one key")
                images[key] = (member.name, member.offset_data, member.size)
            elif extension in _LABELS:
                data = os.pread(
                    file.fileno(), min(member.size, _MAX_LABEL_BYTES), member.offset_data
                )
                labels.setdefault(key, {})[extension] = _parse(path, member.name, extension, data)
    alone = sorted(images.keys() ^ labels.keys())
    if alone or not images:
        _complain(path, alone, images)
    for key, image in images.items():
        name, start, size = image
        found = labels[key]
        yield name, found.get("cls", found.get("json", -1)), start, size


def _complain(path: Path, alone: list[str], images: dict) -> None:
    accepted = "accepted: WebDataset's layout, key.jpg beside key.cls (or key.json with a label)"
    if not alone:
        raise ValueError(f"{path}: no images in it; {accepted}")
    key = alone[0].lstrip("/")
    what = "an image without a label" if alone[0] in images else "a label without an image"
    raise ValueError(f"{path}: {key!r} is {what}; {accepted}")


def _members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The ordinary files of a tar; ValueError unless it is whole and nothing but a tar."""
    size, end = os.fstat(file.fileno()).st_size, 0
    try:
        # tarfile takes the beginning of a tar for a whole one; hence the checks of the end.
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # it would keep them all
                data = member.size if member.isreg() else 0
                end = member.offset_data + -(-data // _BLOCK) * _BLOCK
                if data < 0 or member.offset_data + data > size:
                    raise tarfile.ReadError(f"member {member.name!r} is cut off")
                if member.isreg() and not member.issparse():
                    yield member
    except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError) as error:
        found = " ".join(str(error).split())
        raise ValueError(f"{path}: not an uncompressed tar file, or damaged: {found}") from None
    rest = os.pread(file.fileno(), _BLOCK, end)
    if rest.strip(b"\0"):
        raise ValueError(f"{path}: damaged: no tar member at byte {end}")


def _parse(path: Path, name: str, extension: str, data: bytes) -> int:
    """The label in a .cls or .json member."""
    try:
        value = int(data) if extension == "cls" else json.loads(data)
        if isinstance(value, dict):
            value = value.get("label", value.get("cls"))
    except (ValueError, RecursionError):
        value = data[:20]
    if type(value) is not int or not 0 <= value < _MAX_CLASSES:
        accepted = 'a number, or {"label": number}' if extension == "json" else "a number"
        raise ValueError(
            f"{path}: label {name!r} is {str(value)[:40]!r}; accepted: {accepted}, 0 to {_MAX_CLASSES - 1}"
        )
    return value
