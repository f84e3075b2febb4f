"""Images in tar files, in WebDataset's layout: `key.jpg` beside `key.cls` or `key.json`."""

import collections
import glob
import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from maskgit_pt import imagenet
from train.data.image_base import EXTENSIONS, Images, LeftOut, Names
from train.data.index_cache import place, remembered

_LABELS = ("cls", "json")
_MAX_LABEL_BYTES = 2**20
_MAX_CLASSES = 2**16
_MAX_NAME = 100  # letters
_BLOCK = tarfile.BLOCKSIZE
_ACCEPTED = "accepted: WebDataset's layout, key.jpg beside key.cls (or key.json with a label)"


class TarImages(Images):
    """Images inside uncompressed tar files, read in any order through an index of their places.

    Nothing is ever unpacked, so names in the files (absolute, with "..", links) can do no harm. Labels are
    numbers; if there are 1000 they are taken to be ImageNet's, and named by their WordNet ids. Or they are
    names: of ImageNet's classes if all are WordNet ids, else numbered in sorted order.

    Args:
      paths: the tar files; the order of the images follows theirs.
      num_classes: default: the highest label and one.

    Raises:
      ValueError: a file is no tar, is compressed, cut off or damaged; an image without a label or a label
        without an image; a label that is neither a name nor in range.
    """

    _extra = ("_tars", "_starts", "_sizes")

    def __init__(self, paths: list[Path], num_classes: int | None = None):
        self.paths = paths
        places = {str(path): place(path) for path in paths}
        names, left_out, labels = Names(), LeftOut(), []
        self._tars, self._starts, self._sizes = array("i"), array("q"), array("q")
        for number, path in enumerate(paths):
            for name, label, start, size in _index(path, left_out):
                names.append(f"{path.name}/{name}")
                labels.append(label)
                self._tars.append(number)
                self._starts.append(start)
                self._sizes.append(size)
        numbers, classes = _number(names, labels, num_classes)
        super().__init__(names, numbers, classes, left_out)
        self.places = places

    def _read_bytes(self, index: int) -> bytes:
        path, size = self.paths[self._tars[index]], int(self._sizes[index])
        with open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, int(self._starts[index]))
        if len(data) != size:
            raise ValueError(f"{path}: shorter than when it was opened; has it been replaced?")
        return data


def open_tars(paths: list[Path], num_classes: int | None = None) -> TarImages:
    """`TarImages`, its index from the user's cache if the files are as they were."""
    paths = [path.absolute() for path in paths]
    wanted = {"paths": list(map(str, paths)), "num_classes": num_classes}
    return remembered(lambda: TarImages(paths, num_classes), TarImages, wanted, paths=paths)


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


def _number(
    names: Names, labels: list[int | str], num_classes: int | None
) -> tuple[np.ndarray, list[str]]:
    """Labels int64 [n], and the names of the classes, of labels that are all numbers or all names."""
    words = sorted({label for label in labels if isinstance(label, str)})
    if words and len(words) < len(set(labels)):
        number = next(i for i, label in enumerate(labels) if not isinstance(label, str))
        raise ValueError(
            f"{names[number]}: label is {labels[number]}, others are names such as {words[0]!r}; "
            "accepted: only numbers or only names"
        )
    wordnet = imagenet.wordnet_ids()
    if words:
        classes = wordnet if set(words) <= set(wordnet) else words
        places = {name: number for number, name in enumerate(classes)}
        return np.array([places[label] for label in labels], np.int64), list(classes)
    highest = max(labels, default=0)
    num_classes = num_classes or highest + 1
    if highest >= num_classes:
        worst = names[labels.index(highest)]
        raise ValueError(f"{worst}: label is {highest}; accepted: 0 to {num_classes - 1}")
    is_imagenet = num_classes == imagenet.NUM_CLASSES
    classes = wordnet if is_imagenet else [str(i) for i in range(num_classes)]
    return np.array(labels, np.int64), list(classes)


def _index(path: Path, left_out: LeftOut) -> Iterator[tuple[str, int | str, int, int]]:
    """Name, label, place and size of every image of a tar file."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, dict[str, int | str]] = {}
    with open(path, "rb") as file:
        for member in _members(path, file, left_out):
            folder, _, base = member.name.rpartition("/")
            stem, _, extension = base.rpartition(".")
            key, extension = f"{folder}/{stem}", extension.lower()
            if base.startswith("."):
                left_out.add("hidden files", f"{path.name}/{member.name}")
            elif extension in EXTENSIONS:
                if key in images:
                    raise ValueError(f"{path}: {images[key][0]!r} and {member.name!r} have one key")
                images[key] = (member.name, member.offset_data, member.size)
            elif extension in _LABELS:
                data = os.pread(
                    file.fileno(), min(member.size, _MAX_LABEL_BYTES), member.offset_data
                )
                labels.setdefault(key, {})[extension] = _parse(path, member.name, extension, data)
            else:
                left_out.add("files that are neither image nor label", f"{path.name}/{member.name}")
    pairs = _pair(path, images, labels, left_out)
    for key, (name, start, size) in images.items():
        if key in pairs:
            found = labels[pairs[key]]
            yield name, found.get("cls", found.get("json", -1)), start, size


def _pair(path: Path, images: dict, labels: dict, left_out: LeftOut) -> dict[str, str]:
    """The key of every image's label: its name without the extension, or up to its first dot.

    WebDataset takes the name up to the first dot for the key. So `a.png` and `a.cls` belong together, also
    `v2.1.png` and `v2.1.cls`; of `a.seg.png`, `a.jpg` and `a.cls` the first is another part of sample `a`
    and is left out, but without `a.jpg` it is the image.
    """
    pairs = {key: key for key in images if key in labels}
    free = labels.keys() - pairs.keys()
    short = {key: _up_to_first_dot(key) for key in images if key not in pairs}
    alike = collections.Counter(short.values())
    for key, first in short.items():
        if first in free and alike[first] == 1:
            pairs[key] = first
        elif first != key and first in pairs:
            left_out.add("further images of a sample", f"{path.name}/{images[key][0]}")
        else:
            _complain(path, key.lstrip("/"), "an image without a label")
    unused = free - set(pairs.values())
    if unused:
        _complain(path, min(unused).lstrip("/"), "a label without an image")
    if not pairs:
        raise ValueError(f"{path}: no images in it; {_ACCEPTED}")
    return pairs


def _up_to_first_dot(key: str) -> str:
    folder, slash, base = key.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _complain(path: Path, name: str, what: str) -> NoReturn:
    raise ValueError(f"{path}: {name!r} is {what}; {_ACCEPTED}")


def _members(path: Path, file: BinaryIO, left_out: LeftOut) -> Iterator[tarfile.TarInfo]:
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
                elif not member.isdir():
                    left_out.add("links and other special files", f"{path.name}/{member.name}")
    except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError) as error:
        found = " ".join(str(error).split())
        raise ValueError(f"{path}: not an uncompressed tar file, or damaged: {found}") from None
    rest = os.pread(file.fileno(), _BLOCK, end)
    if rest.strip(b"\0"):
        raise ValueError(f"{path}: damaged: no tar member at byte {end}")


def _parse(path: Path, name: str, extension: str, data: bytes) -> int | str:
    """The label in a .cls or .json member: a number, or the name of a class."""
    value: Any = data[:200]
    try:
        value = json.loads(data) if extension == "json" else data[:200].decode().strip()
        if isinstance(value, dict):
            value = value.get("label", value.get("cls"))
        if isinstance(value, str) and value.lstrip("+-").isdecimal():
            value = int(value)
    except (ValueError, RecursionError):
        pass
    is_name = isinstance(value, str) and 0 < len(value) <= _MAX_NAME and value.isprintable()
    is_name = is_name and not re.fullmatch(r"[-+\d.,eE]+", value)  # 1.9 is a mistake
    if not is_name and (type(value) is not int or not 0 <= value < _MAX_CLASSES):
        what = f"a number from 0 to {_MAX_CLASSES - 1}, or the name of a class"
        accepted = f'{what}, or {{"label": either}}' if extension == "json" else what
        raise ValueError(f"{path}: label {name!r} is {str(value)[:40]!r}; accepted: {accepted}")
    return value
