"""Images in folders: one for each class, and the Kaggle download of ImageNet."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from train.data.image_base import EXTENSIONS, Images, LeftOut, Names
from train.data.index_cache import place, remembered

KAGGLE_DATA = Path("ILSVRC/Data/CLS-LOC")
KAGGLE_LABELS = "LOC_val_solution.csv"
_JUNK = frozenset(
    ("@eadir", "lost+found", "__macosx", "#recycle", "#snapshot", "$recycle.bin")
    + ("system volume information", "thumbs.db", "desktop.ini")
)


class FolderImages(Images):
    """Files below a folder."""

    def __init__(
        self,
        root: Path,
        names: Names,
        labels: np.ndarray,
        class_names: list[str],
        left_out: LeftOut | None = None,
    ):
        super().__init__(names, labels, class_names, left_out)
        self.root = root

    def _read_bytes(self, index: int) -> bytes:
        with open(os.path.join(self.root, self.name(index)), "rb") as file:
            return file.read()


def is_image(name: str) -> bool:
    """Whether a file is a picture, by its name."""
    return name.rpartition(".")[2].lower() in EXTENSIONS and not name.startswith(".")


def open_class_folders(root: Path, classes: list[str]) -> FolderImages:
    """torchvision's ImageFolder: classes are the sorted names of the folders.

    Images may lie in folders below the folder of their class. A class without images keeps its number.
    What else is there is noted in `left_out`: hidden files, files without the extension of an image, dead
    links, and the folders that file servers and archives add.

    Raises:
      ValueError: no class has images.
    """
    root, wanted = root.absolute(), {"root": str(root.absolute()), "classes": classes}
    return remembered(lambda: _list_classes(root, classes), FolderImages, wanted, root=root)


def _list_classes(root: Path, classes: list[str]) -> FolderImages:
    names, labels, left_out, places = Names(), [], LeftOut(), {str(root): place(root)}
    for name, is_folder in _entries(root, left_out):
        if not is_folder:
            left_out.add("files outside class folders", name)
    for label, name in enumerate(classes):
        before = len(names)
        for file in sorted(_walk(root / name, name, left_out, places)):
            names.append(file)
        labels.append(np.full(len(names) - before, label, np.int64))
        if len(names) == before:
            left_out.add("class folders without images, which keep their numbers", name)
    if not len(names):
        raise ValueError(
            f"{root}: the {len(classes)} class folders hold no images ({', '.join(classes[:5])}); "
            f"accepted: one folder for each class, with {_extensions()} files"
        )
    images = FolderImages(root, names, np.concatenate(labels), classes, left_out)
    images.places = places
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
        known = [name for name, is_folder in _entries(train, LeftOut()) if is_folder]
        extra = sorted(set(classes) - set(known))
        if extra:
            raise ValueError(f"{table}: class {extra[0]} is not among the folders of {train}")
        classes = known
    number = {name: label for label, name in enumerate(classes)}
    names, labels, left_out = Names(), [], LeftOut()
    for file in sorted(_walk(folder, "", left_out, {})):
        key = file.rpartition("/")[2].rpartition(".")[0]
        if key not in wordnet_ids:
            raise ValueError(f"{table}: no label for {file} of {folder}")
        names.append(file)
        labels.append(number[wordnet_ids[key]])
    return FolderImages(folder, names, np.array(labels, np.int64), classes, left_out)


def find_kaggle_labels(folder: Path) -> Path | None:
    """LOC_val_solution.csv in a folder or up to four above: from CLS-LOC/val to the download's root."""
    folder = folder.absolute()
    for above in [folder, *folder.parents][:5]:
        if (above / KAGGLE_LABELS).is_file():
            return above / KAGGLE_LABELS
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


def is_junk(name: str) -> bool:
    """Whether a folder is one that a file server, an archive or a system has added."""
    return name.lower() in _JUNK


def _entries(folder: Path | str, left_out: LeftOut, prefix: str = "") -> list[tuple[str, bool]]:
    """Names in a folder, and whether they are folders; hidden ones, those of systems, dead links and what is
    neither file nor folder are noted instead."""
    kept = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                left_out.add("hidden files", prefix + entry.name)
            elif is_junk(entry.name):
                left_out.add("files or folders of a system", prefix + entry.name)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                left_out.add("dead links", prefix + entry.name)
            elif not entry.is_dir() and not entry.is_file():  # a pipe would keep the reader waiting
                left_out.add("pipes and other special files", prefix + entry.name)
            else:
                kept.append((entry.name, entry.is_dir()))
    return kept


def _walk(
    folder: Path, prefix: str, left_out: LeftOut, places: dict[str, list[int]]
) -> Iterator[str]:
    """All images below a folder as `prefix/...`, links followed; notes the folders in `places`.

    A link to a folder above would bring the images of other classes.
    """
    above = folder.absolute().parents if prefix else ()
    seen, stack = (
        {_identity(path) for path in above},
        [(str(folder), f"{prefix}/" if prefix else "")],
    )
    while stack:
        path, prefix = stack.pop()
        if _identity(path) in seen:
            left_out.add("links to a folder that is read already, or above", prefix.rstrip("/"))
            continue
        seen.add(_identity(path))
        places[path] = place(path)
        for name, is_folder in _entries(path, left_out, prefix):
            if is_folder:
                stack.append((os.path.join(path, name), f"{prefix}{name}/"))
            elif is_image(name):
                yield prefix + name
            else:
                left_out.add("files that are not images by their names", prefix + name)


def _identity(path: Path | str) -> tuple[int, int]:
    """The same for all names of a folder."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _extensions() -> str:
    return ", ".join(f".{name}" for name in sorted(EXTENSIONS))
