"""Image collections, opened by their path, and crops of images."""

import math
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from train.data import image_folders, image_tars
from train.data.image_base import DamagedImage, Images

__all__ = [
    "CROPS",
    "DamagedImage",
    "Images",
    "crop",
    "describe_crop",
    "open_images",
    "warn_of_enlarging",
]

CROPS = tuple(
    kind + flip for kind in ("center", "random", "random_resized") for flip in ("", "+flip")
)
SCALE = (0.08, 1.0)  # area of a random resized crop, as a share of the image's
RATIO = (3 / 4, 4 / 3)  # its width by its height
_ACCEPTED = (
    "accepted: a folder with a folder of images for each class, the Kaggle ImageNet download, or "
    "WebDataset .tar files (a file, a folder of them, or a pattern such as train-{000..146}.tar)"
)
_SPLITS = ("train", "val", "validation", "valid", "test")


def open_images(
    path: str | os.PathLike, split: str | None = None, num_classes: int | None = None
) -> Images:
    """Opens a collection of labelled images; what it is, is recognised from what is there.

    - ImageFolder: one folder for each class; classes are numbered by the sorted names of the folders. A class
      without images keeps its number.
    - Kaggle's ImageNet: the root of the download with split "train" or "val", or a folder inside it.
      Class = place among the sorted WordNet ids, as in every published ImageNet model.
    - WebDataset: uncompressed tar files with key.jpg beside key.cls or key.json, which hold a number or
      the name of a class.

    What is there and is no image of the collection is counted and named in `left_out`.

    The order is stable (sorted by name; inside tar files, as stored): an index means the same image on
    every machine.

    Args:
      path: a folder, a tar file, or a pattern of tar files.
      split: a part of it: a folder of this name in it, or tar files with this word in their names.
      num_classes: how many there must be; tar files do not tell (default: the highest label and one).

    Raises:
      FileNotFoundError, ValueError: says what was found and what is accepted.
    """
    images = _open(Path(path), split, num_classes)
    if num_classes and len(images.class_names) != num_classes:
        raise ValueError(f"{path}: {len(images.class_names)} classes; expected: {num_classes}")
    return images


def check_apart(
    output: str | os.PathLike, images: str | os.PathLike, flag: str = "--output"
) -> None:
    """Raises ValueError if `output` is in the folder `images`: results would count as images of a class."""
    folder = Path(images).resolve()
    if images and folder.is_dir() and Path(output).resolve().is_relative_to(folder):
        raise ValueError(
            f"{flag}={output} is in the folder of images {images}, and would count as a class; accepted: a "
            "folder elsewhere"
        )


def _open(path: Path, split: str | None, num_classes: int | None) -> Images:
    if path.is_file() or (not path.exists() and re.search(r"[*?{[]|\.tar$", str(path))):
        tars = [path] if path.is_file() else image_tars.find_tars(str(path))
        return image_tars.open_tars(_of_split(tars, split), num_classes)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; {_ACCEPTED}")
    for part in (path / image_folders.KAGGLE_DATA, path):
        if split and (part / split).is_dir():
            return _open(part / split, None, num_classes)
    folders, files = _look(path)
    tars = [path / name for name in files if name.endswith(".tar")]
    if tars and not folders:
        return image_tars.open_tars(_of_split(tars, split), num_classes)
    if split:
        raise ValueError(f"{path}: no {split!r} in it; found {_describe(folders, files)}")
    if (path / image_folders.KAGGLE_DATA).is_dir() or _are_splits(path, folders):
        raise ValueError(f"{path} has several parts; choose one: --split=train or --split=val")
    if folders:
        return image_folders.open_class_folders(path, folders)
    if any(map(image_folders.is_image, files)) and image_folders.find_kaggle_labels(path):
        return image_folders.open_kaggle_validation(path)
    raise ValueError(f"{path}: found {_describe(folders, files)}; {_ACCEPTED}")


def _look(path: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the folders and the files there, without hidden ones."""
    folders, files = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and not image_folders.is_junk(entry.name):
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)


def _are_splits(path: Path, folders: list[str]) -> bool:
    """train/ and val/ with folders inside are parts, not two classes."""
    if "train" not in folders or not set(folders) <= set(_SPLITS):
        return False
    return bool(_look(path / "train")[0])


def _of_split(tars: list[Path], split: str | None) -> list[Path]:
    """Those tar files that have the split as a word in their name."""

    def belongs(path: Path, name: str) -> bool:
        return re.search(rf"(^|[^a-z]){re.escape(name)}([^a-z]|$)", path.name) is not None

    if split:
        chosen = [path for path in tars if belongs(path, split)]
        if not chosen:
            raise ValueError(f"{tars[0].parent}: no tar file has {split!r} in its name")
        return chosen
    found = [name for name in _SPLITS if any(belongs(path, name) for path in tars)]
    if len(found) > 1:
        options = " or ".join(f"--split={name}" for name in found)
        raise ValueError(f"{tars[0].parent}: tar files of several parts; choose one: {options}")
    return tars


def _describe(folders: list[str], files: list[str]) -> str:
    def some(what: str, names: list[str]) -> str:
        more = ", ..." if len(names) > 3 else ""
        return f"{len(names)} {what} ({', '.join(names[:3])}{more})" if names else f"no {what}"

    return f"{some('folders', folders)} and {some('files', files)}"


def crop(image: Image.Image, size: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Cuts a square out of an image and scales it, in one step: bicubic, antialiased.

    Args:
      image: RGB.
      size: of the result.
      kind: "center": the shorter side becomes `size`, the middle is taken; "random": the same, from a
        random place along the longer side; "random_resized": torchvision's RandomResizedCrop, a part of
        8% to 100% of the area and of a ratio from 3:4 to 4:3, squeezed into a square. With "+flip"
        appended, mirrored with probability 1/2.
      rng: the choice depends on it alone.

    Returns:
      uint8 [size, size, 3].

    Raises:
      ValueError: an unknown kind.
    """
    if kind not in CROPS:
        raise ValueError(f"crop is {kind!r}; accepted: {', '.join(CROPS)}")
    place, _, flip = kind.partition("+")
    if place == "random_resized":
        box = _random_resized_box(image.width, image.height, rng)
    else:
        box = _square_box(image.width, image.height, size, rng if place == "random" else None)
    pixels = np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    if flip and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def warn_of_enlarging(images: Images, size: int, name: str) -> None:
    """Warns if the first image of a collection is smaller than what is to be made of it.

    Args:
      images: the collection.
      size: the side of the squares in pixels.
      name: of the collection.
    """
    try:
        first = images.read(0)
    except (DamagedImage, OSError):
        return  # whoever reads all of them says so
    if min(first.width, first.height) < size:
        warnings.warn(
            f"{name}: the first image is {first.width} x {first.height}; images are enlarged to {size} px",
            stacklevel=3,
        )


def describe_crop(kind: str) -> dict[str, Any]:
    """All that `crop` does, as JSON."""
    described = {"crop": kind, "resampling": "bicubic, antialiased"}
    if kind.startswith("random_resized"):
        described |= {"scale": list(SCALE), "ratio": [round(value, 6) for value in RATIO]}
    return described


_Box = tuple[float, float, float, float]  # left, top, right, bottom


def _square_box(width: int, height: int, size: int, rng: np.random.Generator | None) -> _Box:
    """The largest square; at the middle if there is no `rng`.

    It starts at a whole pixel of the scaled image, so that an image of the right size is not resampled.
    """
    side = min(width, height)
    extra = (max(width, height) - side) * size // side  # pixels to choose from, after scaling
    offset = (extra // 2 if rng is None else int(rng.integers(extra + 1))) * side / size
    offset = min(offset, max(width, height) - side)  # the division rounds
    left, top = (offset, 0.0) if width > height else (0.0, offset)
    return left, top, left + side, top + side


def _random_resized_box(width: int, height: int, rng: np.random.Generator) -> _Box:
    """torchvision's rule: ten attempts, then the middle with the nearest accepted ratio."""
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
