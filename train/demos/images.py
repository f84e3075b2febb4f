"""The data sets of the demo, found on this machine or downloaded, and written as tar files by class name."""

import dataclasses
import gzip
import io
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from maskgit_pt.files import atomic_file

FASHION_CLASSES = (
    "t-shirt-top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
_PARTS = {"train": "train", "test": "t10k"}  # split -> how its files begin
# Debian's package, and where torchvision puts the set below its root.
_PLACES = ("/usr/share/datasets/fashion-mnist", "~/.cache/torchvision", "data", ".")
_IN_PLACES = ("", "FashionMNIST/raw", "fashion-mnist")
_MOST_BYTES = 2**30  # of an unpacked IDX file
_UNSIGNED_BYTES = 8  # IDX's code for them
_HELD_OUT = 360  # digits
_SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))


@dataclasses.dataclass(frozen=True)
class Part:
    """Images and what they show.

    Attributes:
      images: uint8 [n, H, W].
      labels: int64 [n].
    """

    images: np.ndarray
    labels: np.ndarray

    def few(self, count: int) -> "Part":
        """The first images."""
        return Part(self.images[:count], self.labels[:count])


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set that the demo knows.

    Attributes:
      title: for the page.
      source: whose it is, in a sentence.
      class_names: in the order of the labels.
      tokenizer_recipe, recipe: of `train/configs`; samples are drawn as the recipe draws its pictures.
      flip: whether a mirrored image shows the same.
      training_part: what the tokenizer is trained on: "train", or "shifted".
      load: from `--files` (None: look in the usual places), whether to download, and the seed, the parts.
    """

    title: str
    source: str
    class_names: tuple[str, ...]
    tokenizer_recipe: str
    recipe: str
    flip: bool
    training_part: str
    load: Callable[[str | None, bool, int], dict[str, Part]]


def load_fashion(files: str | None, download: bool, seed: int) -> dict[str, Part]:
    """The 60,000 and 10,000 images of Fashion-MNIST.

    Args:
      files: a folder with the four IDX files, packed with gzip or not; None: the usual places.
      download: fetch them through torchvision if they are nowhere.
      seed: not used: the set has its own test part.

    Raises:
      FileNotFoundError: they are not there; the message says where they were looked for.
      ValueError: a file is damaged.
      ImportError: to download, torchvision is missing.
    """
    del seed
    folder = _find_fashion(files)
    if folder is None and download:
        folder = _download_fashion(Path(files or "~/.cache/torchvision").expanduser())
    if folder is None:
        looked = files or ", ".join(_PLACES)
        raise FileNotFoundError(
            f"Fashion-MNIST is not here; looked in {looked}. Give --download, or --files=FOLDER with the "
            "four IDX files, or install Debian's package dataset-fashion-mnist"
        )
    parts = {}
    for split, start in _PARTS.items():
        images, labels = (
            read_idx(_idx_file(folder, start, kind)) for kind in ("images-idx3", "labels-idx1")
        )
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise ValueError(
                f"{folder}: {split} has images {list(images.shape)} and labels {list(labels.shape)}; "
                "accepted: [n, H, W] and [n]"
            )
        if labels.size and labels.max() >= len(FASHION_CLASSES):
            raise ValueError(f"{folder}: a label of {split} is {labels.max()}; accepted: 0 to 9")
        parts[split] = Part(images, labels.astype(np.int64))
    return parts


def _idx_file(folder: Path, start: str, kind: str) -> Path:
    """The file of images or labels, packed or not."""
    packed, plain = (folder / f"{start}-{kind}-ubyte{end}" for end in (".gz", ""))
    return plain if plain.is_file() and not packed.is_file() else packed


def _find_fashion(files: str | None) -> Path | None:
    places = [files] if files else [os.environ.get("TORCHVISION_DATA"), *_PLACES]
    for place in filter(None, places):
        for below in _IN_PLACES:
            folder = Path(place).expanduser() / below
            wanted = [
                _idx_file(folder, start, kind)
                for start in _PARTS.values()
                for kind in ("images-idx3", "labels-idx1")
            ]
            if all(path.is_file() for path in wanted):
                return folder
    return None


def _download_fashion(root: Path) -> Path:
    from train.evaluation.torchvision_import import import_torchvision

    import_torchvision()
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(f"Fashion-MNIST cannot be downloaded: {reason}") from None
    return root / "FashionMNIST" / "raw"


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """Reads an IDX file of bytes (LeCun's format for MNIST), packed with gzip or not.

    Returns:
      uint8, of the shape that the file states.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is packed badly, cut off, too long, or no such file.
    """
    data = _unpacked(Path(path))
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTES:
        raise ValueError(f"{path}: not an IDX file of bytes; it begins with {data[:4].hex()}")
    dimensions = data[3]
    start = 4 + 4 * dimensions
    if not 1 <= dimensions <= 4 or len(data) < start:
        raise ValueError(
            f"{path}: an IDX file of {dimensions} dimensions, cut off or not of images"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    expected = int(np.prod(shape, dtype=object))
    if len(data) - start != expected:
        raise ValueError(
            f"{path}: states {' x '.join(map(str, shape))} bytes, and holds {len(data) - start}; "
            "cut off or damaged"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _unpacked(path: Path) -> bytes:
    with open(path, "rb") as file:
        if file.read(2) != b"\x1f\x8b":
            file.seek(0)
            return file.read(_MOST_BYTES)
    try:
        with gzip.open(path) as file:
            return file.read(_MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: packed badly or cut off: {error}") from None


def load_digits(files: str | None, download: bool, seed: int) -> dict[str, Part]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8; every fifth is held out, by the seed.

    "shifted" holds the training digits five times, four of them shifted by a pixel: the tokenizer, with few
    images to learn from, then gives unseen ones back better (by 2 dB).

    Raises:
      ImportError: scikit-learn is missing.
      ValueError: --files or --download was given.
    """
    if files or download:
        raise ValueError(
            "--files and --download belong to --data=fashion; digits come with scikit-learn"
        )
    try:
        from sklearn import datasets, model_selection
    except ImportError:
        raise ImportError(
            "scikit-learn is not installed; it comes with the extra 'train': pip install 'maskgit_pt[train]'"
        ) from None
    digits = datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    train, test, train_labels, test_labels = model_selection.train_test_split(
        images, digits.target, test_size=_HELD_OUT, stratify=digits.target, random_state=seed
    )
    shifted = np.concatenate([shift(train, *by) for by in _SHIFTS])
    return {
        "train": Part(train, train_labels),
        "test": Part(test, test_labels),
        "shifted": Part(shifted, np.tile(train_labels, len(_SHIFTS))),
    }


def shift(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Moves images [n, H, W] by at most a pixel; black comes in."""
    _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def write_tar(path: str | os.PathLike, part: Part, class_names: tuple[str, ...]) -> None:
    """Writes images as a tar file in WebDataset's layout: NUMBER.png beside NUMBER.cls, the class's name."""
    with atomic_file(path) as file, tarfile.open(fileobj=file, mode="w") as tar:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)  # its fixed date: the same images give the same bytes
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        for number, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            data = io.BytesIO()
            Image.fromarray(image).save(data, "PNG", compress_level=1)
            add(f"{number:06d}.png", data.getvalue())
            add(f"{number:06d}.cls", class_names[label].encode())


DATA_SETS = {
    "fashion": DataSet(
        "photographs of clothes",
        "Fashion-MNIST (Zalando Research, MIT licence): 70,000 photographs, 28 x 28 pixels, ten classes",
        FASHION_CLASSES, "fashion_tokenizer", "fashion", True, "train", load_fashion,
    ),
    "digits": DataSet(
        "handwritten digits",
        "scikit-learn's handwritten digits (UCI, E. Alpaydin and C. Kaynak): 1,797 of 8 x 8 pixels",
        tuple(map(str, range(10))), "digits_tokenizer", "digits", False, "shifted", load_digits,
    ),
}  # fmt: skip
