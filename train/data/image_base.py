"""What all image collections share: names, labels, reading."""

import hashlib
import json
from array import array
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from PIL import Image

from maskgit_pt.files import printable
from maskgit_pt.images import DamagedImage, decode_rgb

__all__ = ["EXTENSIONS", "DamagedImage", "Images", "Names"]

EXTENSIONS = frozenset("jpg jpeg png ppm pgm bmp tif tiff webp".split())  # torchvision's


class Names:
    """A list of a million strings in as many bytes as they have, and eight more each."""

    def __init__(self):
        self._text, self._ends = bytearray(), array("q")

    def append(self, name: str) -> None:
        """Adds one; bytes that are no text (as in file names) are kept."""
        self._text += name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return bytes(self._text[start : self._ends[index]]).decode("utf-8", "surrogateescape")

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The text, and where each ends."""
        ends = np.frombuffer(self._ends, np.int64) if len(self) else np.empty(0, np.int64)
        return {"text": np.frombuffer(bytes(self._text), np.uint8), "ends": ends}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Self:
        """The inverse of `to_arrays`."""
        names = cls()
        names._text += arrays["text"].tobytes()
        names._ends.frombytes(arrays["ends"].astype(np.int64).tobytes())
        return names

    def digest(self) -> bytes:
        """A SHA-256 of all of them."""
        ends = np.frombuffer(self._ends, np.int64) if len(self) else np.empty(0, np.int64)
        return hashlib.sha256(ends.astype("<i8").tobytes() + self._text).digest()


class LeftOut:
    """Counts and names what a reader leaves out, by reason.

    Attributes:
      counts: reason -> how many.
      examples: reason -> the first few names.
    """

    _FEW = 3

    def __init__(self):
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Notes one."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        names = self.examples.setdefault(reason, [])
        if len(names) < self._FEW:
            names.append(name)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """One line; empty if nothing was left out."""
        parts = []
        for reason, count in self.counts.items():
            more = ", ..." if count > self._FEW else ""
            parts.append(f"{count} {reason} ({', '.join(self.examples[reason])}{more})")
        return printable("left out: " + "; ".join(parts)) if parts else ""


class Images:
    """Pictures with classes, in a fixed order. Subclasses bring `_read_bytes`.

    Attributes:
      labels: int64 [n] in [0, len(class_names)).
      class_names: one for each class.
      left_out: what of the collection is no image of it, and why.
      places: the folders or files that were looked at -> `index_cache.place` of then.
    """

    _extra: tuple[str, ...] = ()  # attributes of a subclass that are arrays

    def __init__(
        self,
        names: Names,
        labels: Sequence[int] | np.ndarray,
        class_names: list[str],
        left_out: "LeftOut | None" = None,
    ):
        self._names, self.class_names = names, class_names
        self.labels = np.asarray(labels, np.int64)
        self.left_out = LeftOut() if left_out is None else left_out
        self.places: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The path of an image inside the collection."""
        return self._names[index]

    def read(self, index: int) -> Image.Image:
        """Decodes an image.

        Returns:
          An RGB picture as stored: an orientation in its EXIF data is not applied, and transparency is
          dropped, both as by torchvision. 16-bit greys are scaled to 8 bits.

        Raises:
          DamagedImage: it cannot be decoded.
          OSError: it cannot be read at all.
        """
        return decode_rgb(self._read_bytes(index), self.name(index))

    def fingerprint(self) -> str:
        """A SHA-256 of names, labels and classes (not of the pixels)."""
        classes = "\0".join(self.class_names).encode("utf-8", "surrogateescape")
        return hashlib.sha256(
            self._names.digest() + self.labels.astype("<i8").tobytes() + classes
        ).hexdigest()

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of the list, without pickles."""
        told = {"classes": self.class_names, "places": self.places, "left_out": vars(self.left_out)}
        text = np.frombuffer(json.dumps(told).encode(), np.uint8)
        extra = {name: np.asarray(getattr(self, name)) for name in self._extra}
        return {"labels": self.labels, "told": text} | self._names.to_arrays() | extra

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], attributes: dict[str, Any]) -> Self:
        """The inverse of `to_arrays`; `attributes` are those that are not stored."""
        told = json.loads(arrays["told"].tobytes())
        images = cls.__new__(cls)
        names, left_out = Names.from_arrays(arrays), LeftOut()
        vars(left_out).update(told["left_out"])
        Images.__init__(images, names, arrays["labels"], told["classes"], left_out)
        images.places = told["places"]
        vars(images).update({name: arrays[name] for name in cls._extra} | attributes)
        return images

    def digest(self, index: int) -> bytes:
        """A SHA-256 of an image's file."""
        return hashlib.sha256(self._read_bytes(index)).digest()

    def _read_bytes(self, index: int) -> bytes:
        raise NotImplementedError
