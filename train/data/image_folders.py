"""Images in folders: one folder a class, and the Kaggle download of ImageNet."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from train.data.image_base import EXTENSIONS, Images, Names

KAGGLE_DATA = Path("ILSVRC/Data/CLS-LOC")
KAGGLE_LABELS = "LOC_val_solution.csv"


class FolderImages(Images):
    """Files below a folder."""

    def __init__(self, root: Path, names: Names, labels: np.ndarray, class_names: list[str]):
        super().__init__(names, labels, class_names)
        self.root = root

    def _read_bytes(self, index: int) -> bytes:
        with open(os.path.join(self.root, self.name(index)), "rb") as file:
            return file.read()


def is_image(name: str) -> bool:
    """Whether a file is a picture, by its name."""
    return name.rpartition(".")[2].lower() in EXTENSIONS and not name.startswith(".")


def open_class_folders(root: Path, classes: list[str]) -> FolderImages:
    """torchvision's ImageFolder: classes are the sorted names of the folders.

    Images may lie in folders below the folder of their class. Hidden files are left out, files without
    the extension of a picture counted in `num_ignored`.

    Raises:
      ValueError: a class has no images.
    """
    names, labels, ignored, empty = Names(), [], [], []
    for label, name in enumerate(classes):
        files = sorted(_walk(root / name, name))
        before = len(names)
        for file in files:
            if is_image(file.rpartition("/")[2]):
                names.append(file)
            else:
                ignored.append(file)
        labels.append(np.full(len(names) - before, label, np.int64))
        if len(names) == before:
            empty.append(name)
    if empty:
        raise ValueError(
            f"{root}: {len(empty)} of {len(classes)} class folders hold no images: "
            f"{', '.join(empty[:5])}; accepted: a folder a class, with {_extensions()} files"
        )
    images = FolderImages(root, names, np.concatenate(labels), classes)
    for file in ignored:
        images._ignore(file)
    return images


def open_kaggle_validation(folder: Path) -> FolderImages:
    """The validation images of the Kaggle download: one folder, labels in LOC_val_solution.csv.

    Class ids count the WordNet ids in order: those of the training folder where it is there, else those
    of the table.

    Raises:
      FileNotFoundError: no such table beside or above the folder.
      ValueError: it lacks an image, or names a class that the training folder lacks.
    """
    table = find_kaggle_labels(folder)
    if table is None:
        raise FileNotFoundError(
            f"{folder}: {KAGGLE_LABELS}, the labels of these images, is not beside or above it"
        )
    wordnet_ids = _read_kaggle_labels(table)
    train = folder.parent / "train"
    classes = sorted(set(wordnet_ids.values()))
    if train.is_dir():
        with os.scandir(train) as entries:
            known = sorted(entry.name for entry in entries if entry.is_dir())
        extra = sorted(set(classes) - set(known))
        if extra:
            raise ValueError(f"{table}: class {extra[0]} is not among the folders of {train}")
        classes = known
    number = {name: label for label, name in enumerate(classes)}
    names, labels, ignored = Names(), [], []
    for file in sorted(_walk(folder, "")):
        if not is_image(file.rpartition("/")[2]):
            ignored.append(file)
            continue
        key = file.rpartition("/")[2].rpartition(".")[0]
        if key not in wordnet_ids:
            raise ValueError(f"{table}: no label for {file} of {folder}")
        names.append(file)
        labels.append(number[wordnet_ids[key]])
    images = FolderImages(folder, names, np.array(labels, np.int64), classes)
    for file in ignored:
        images._ignore(file)
    return images


def find_kaggle_labels(folder: Path) -> Path | None:
    """LOC_val_solution.csv in a folder or up to four above: from CLS-LOC/val to the download's root."""
    folder = folder.absolute()
    for place in [folder, *folder.parents][:5]:
        if (place / KAGGLE_LABELS).is_file():
            return place / KAGGLE_LABELS
    return None


def _read_kaggle_labels(path: Path) -> dict[str, str]:
    """Image id -> WordNet id. A row is `ILSVRC2012_val_00000001,n01751748 111 108 330 264`."""
    labels = {}
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.reader(file):
            if not row or row[0] == "ImageId":
                continue
            if len(row) != 2 or not row[1].split():
                raise ValueError(
                    f"{path}: a line is {','.join(row)[:60]!r}; accepted: image id,WordNet id box ..."
                )
            labels[row[0]] = row[1].split()[0]
    return labels


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    """All files below a folder as `prefix/...`, links followed, hidden ones left out."""
    seen, stack = set(), [(str(folder), prefix)]
    while stack:
        path, prefix = stack.pop()
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                name = f"{prefix}/{entry.name}" if prefix else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    stack.append((entry.path, name))
                else:
                    yield name


def _extensions() -> str:
    return ", ".join(f".{name}" for name in sorted(EXTENSIONS))
