"""Where images come from: folders, tar files, ADM's npz files, arrays in memory."""

import functools
import hashlib
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from maskgit_pt.sample_folder import SAMPLES_NAME, read_settings
from train.data import images as images_lib
from train.data.image_base import Images, Names
from train.data.image_folders import FolderImages, is_image
from train.data.images import crop, open_images
from train.evaluation.npz import Npz

_AT_ONCE = 1024  # files handed to the reading threads
_SAMPLE_NAME = re.compile(r"class(\d{4,})_(\d{6,})\.png")  # as maskgit_pt.sample writes them


class Source:
    """Images in a fixed order.

    Attributes:
      size: (H, W) of every image.
      labels: the class of each, int64 [N]; None if it is not known.
      class_names: what the labels stand for; None if it is not known.
      protocol: what the images are, for the report; JSON.
      prefetch: whether another thread may call `read` while a network runs.
    """

    size: tuple[int, int]
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    protocol: dict[str, Any]
    prefetch = True

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, start: int, stop: int) -> np.ndarray:
        """Images start ... stop - 1, uint8 [B, H, W, 3]; ValueError or OSError if they are damaged."""
        raise NotImplementedError

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """Changes with the images; None if it cannot be had, and nothing may be cached."""
        return None


def open_source(path: str | os.PathLike, image_size: int | None = None) -> Source:
    """Opens a folder, a collection of tar files, or an npz file.

    Args:
      path: a folder with images in it, or with folders of images, or what `train.data.images.open_images`
        accepts; or an npz file with `arr_0`, uint8 [N, H, W, 3] (the ADM evaluator's layout).
      image_size: crop the images of a folder to this square; default: they must have one size.

    Raises:
      FileNotFoundError, ValueError: nothing there, or not images.
    """
    path = Path(path)
    if path.suffix == ".npz" or (path.is_file() and path.suffix != ".tar"):
        return NpzSource(path)
    return CollectionSource(_open_collection(path), path, image_size)


class ArraySource(Source):
    """Images in memory.

    Args:
      images: uint8 [N, H, W, 3].
      name: for the report.
    """

    def __init__(self, images: np.ndarray, name: str = "array"):
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not images.size:
            raise ValueError(
                f"{name}: shape {list(images.shape)}, dtype {images.dtype}; accepted: uint8 [N, H, W, 3]"
            )
        self.images, self.size = images, images.shape[1:3]
        self.protocol = describe_images(name, self, "8-bit arrays")

    def __len__(self) -> int:
        return len(self.images)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.images[start:stop]

    @functools.cached_property
    def fingerprint(self) -> str:
        shape = str(self.images.shape).encode()
        return hashlib.sha256(shape + np.ascontiguousarray(self.images).tobytes()).hexdigest()


class NpzSource(Source):
    """`arr_0` of an npz file, read as a stream: 50,000 images need no more memory than a batch."""

    def __init__(self, path: Path):
        self.npz = Npz(path)
        self.rows = self.npz.rows("arr_0")
        shape, dtype = self.rows.shape, self.rows.dtype
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or 0 in shape:
            raise ValueError(
                f"{path}: arr_0 has shape {list(shape)} and dtype {dtype}; accepted: uint8 [N, H, W, 3]"
            )
        self.size = shape[1:3]
        self.protocol = describe_images(path.name, self, "npz")
        if "arr_1" in self.npz.names:  # the ADM evaluator's place for labels
            labels = self.npz.array("arr_1")
            self.protocol["labels"] = list_classes(np.unique(labels).tolist())
            if labels.shape == (len(self),) and labels.dtype.kind in "iu":
                self.labels = labels.astype(np.int64)
        if path.name == SAMPLES_NAME:
            self.protocol |= _generated(path.parent)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.rows.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        with self._lock:
            return self.rows.read(start, stop)

    @functools.cached_property
    def fingerprint(self) -> str:
        return self.npz.fingerprint("arr_0")


class CollectionSource(Source):
    """Image files.

    Args:
      images: the files.
      path: of the collection.
      image_size: crop to this square, as `train.data.images.crop` does with kind "center".
    """

    def __init__(self, images: Images, path: Path, image_size: int | None = None):
        self.images, self.path, self.image_size = images, path, image_size
        if image_size is None:
            first = images.read(0)
            self.size = (first.height, first.width)
        else:
            self.size = (image_size, image_size)
        self.protocol = describe_images(path.name or str(path), self, _formats(images))
        if image_size is not None:
            images_lib.warn_of_enlarging(images, image_size, str(path))
            how = images_lib.describe_crop("center")["resampling"]
            self.protocol["resize"] = f"center crop, shorter side to {image_size} ({how})"
        if len(images.class_names) > 1:
            self.protocol["labels"] = f"{len(images.class_names)} classes"
            self.labels, self.class_names = images.labels, images.class_names
        if _SAMPLE_NAME.fullmatch(images.name(0)):
            self.protocol |= _generated(path)
            names = map(_SAMPLE_NAME.fullmatch, map(images.name, range(len(images))))
            self.labels = np.array([int(name[1]) for name in names], np.int64)
        self._threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1))

    def __len__(self) -> int:
        return len(self.images)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.stack(list(self._threads.map(self._read, range(start, min(stop, len(self))))))

    def _read(self, index: int) -> np.ndarray:
        image = self.images.read(index)
        if self.image_size is not None:
            return crop(image, self.image_size, "center", None)
        if (image.height, image.width) != self.size:
            raise ValueError(
                f"{self.path}: {self.images.name(index)} is {_by(image.height, image.width)}, the first "
                f"image {_by(*self.size)}; accepted: images of one size"
            )
        return np.asarray(image)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of all names and the whole content of all files, which takes as long as reading them does."""
        digest = hashlib.sha256(self.images.fingerprint().encode())
        # A bar of large sets only, and on a terminal.
        with tqdm(total=len(self), desc="fingerprint", unit="img", disable=None, delay=5) as bar:
            for start in range(0, len(self), _AT_ONCE):
                indices = range(start, min(start + _AT_ONCE, len(self)))
                digest.update(b"".join(self._threads.map(self.images.digest, indices)))
                bar.update(len(indices))
        return digest.hexdigest() + f" {self.image_size}"


class FirstImages(Source):
    """The first images of a source, or as many spread evenly over it.

    Args:
      source: the source.
      count: how many.
      spread: over the whole; good for files that are sorted by class.

    Raises:
      ValueError: the source has fewer.
    """

    def __init__(self, source: Source, count: int, spread: bool = False):
        if not 1 <= count <= len(source):
            raise ValueError(
                f"{source.protocol['name']} has {len(source)} images; {count} were asked for"
            )
        self.source, self.size, self.prefetch = source, source.size, source.prefetch
        self.index = [i * len(source) // count for i in range(count)] if spread else range(count)
        self.class_names = source.class_names
        if source.labels is not None:
            self.labels = source.labels[list(self.index)]
        which = "evenly spread" if spread else "the first"
        self.protocol = source.protocol | {
            "count": count, "subset": f"{which} {count} of {len(source)}",
        }  # fmt: skip
        if count == len(source):
            self.protocol = source.protocol

    def __len__(self) -> int:
        return len(self.index)

    def read(self, start: int, stop: int) -> np.ndarray:
        wanted = self.index[start:stop]
        if wanted[-1] - wanted[0] == len(wanted) - 1:
            return self.source.read(wanted[0], wanted[-1] + 1)
        return np.concatenate([self.source.read(i, i + 1) for i in wanted])

    @functools.cached_property
    def fingerprint(self) -> str | None:
        whole = self.source.fingerprint
        return whole and f"{whole} {self.protocol.get('subset')}"


def to_bytes(images: torch.Tensor) -> np.ndarray:
    """[B, 3, H, W] in [0, 1], clipped -> uint8 [B, H, W, 3], rounded as `maskgit_pt.utils.to_pil` does."""
    images = images.detach().float().clamp(0, 1).mul(255).round().byte()
    return images.permute(0, 2, 3, 1).cpu().numpy()


def to_tensor(images: np.ndarray, device: str | torch.device = "cpu") -> torch.Tensor:
    """uint8 [B, H, W, 3] -> uint8 [B, 3, H, W]."""
    # torch warns of arrays that cannot be written.
    images = np.require(images, requirements=["C", "W"])
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous()


def check_same_size(samples: Source, reference: Source) -> None:
    """ValueError if the images of two sources have different sizes."""
    if tuple(samples.size) != tuple(reference.size):
        raise ValueError(
            f"images of {samples.protocol['name']} are {_by(*samples.size)}, those of "
            f"{reference.protocol['name']} {_by(*reference.size)}; accepted: the same size"
        )


def _open_collection(path: Path) -> Images:
    if not path.is_dir():
        return open_images(path)
    top = sorted(entry.name for entry in os.scandir(path) if is_image(entry.name))
    samples = {int(found[2]): name for name in top if (found := _SAMPLE_NAME.fullmatch(name))}
    if samples:  # a folder of maskgit_pt.sample: no grid, no pictures of steps; in order
        return _files(path, [samples[index] for index in sorted(samples)])
    if top:
        return _files(path, top)
    nothing = f"{path}: no images; accepted: PNG or JPEG files, or folders of them"
    if not any(path.iterdir()):
        raise ValueError(nothing)
    images = open_images(path)
    if not len(images):
        raise ValueError(nothing)
    return images


def _files(path: Path, names: list[str]) -> FolderImages:
    found = Names()
    for name in names:
        found.append(name)
    return FolderImages(path, found, np.zeros(len(names), np.int64), ["all"])


def _generated(path: Path) -> dict[str, Any]:
    """How maskgit_pt.sample made the images of a folder, if it did."""
    settings = read_settings(path)
    if not isinstance(settings.get("labels"), list):
        return {}
    apart = ("labels", "seed", "sampler", "model", "tokenizer", "threads")
    return {
        "labels": f"{list_classes(settings['labels'])} in turn",
        "seed": settings.get("seed"),
        "sampler": settings.get("sampler"),
        "settings": {n: v for n, v in sorted(settings.items()) if n not in apart},
        "weights": [settings.get("model"), settings.get("tokenizer")],
    }


def list_classes(labels: Sequence[Any]) -> str:
    """Returns classes in words, runs joined: "classes 0-4, 7"."""
    parts: list[list[Any]] = []
    for label in labels:
        if parts and type(label) is int and label == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], label]
        else:
            parts.append([label])
    listed = ", ".join("-".join(map(str, part)) for part in parts)
    return f"class{'es' if len(labels) > 1 else ''} {listed}"


def describe_images(name: str, source: Source, form: str) -> dict[str, Any]:
    """Returns what a report says of any images."""
    return {"name": name, "count": len(source), "size": _by(*source.size), "format": form}


def _formats(images: Images) -> str:
    suffixes = {images.name(i).rpartition(".")[2].lower() for i in range(len(images))}
    names = sorted({Image.registered_extensions().get(f".{suffix}", suffix) for suffix in suffixes})
    return " and ".join(names)


def _by(height: int, width: int) -> str:
    return f"{height} x {width}"
