"""What all image collections share: names, labels, decoding."""

import hashlib
import io
from array import array
from collections.abc import Sequence

import numpy as np
from PIL import Image

EXTENSIONS = frozenset("jpg jpeg png ppm pgm bmp tif tiff webp".split())  # torchvision's
_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class DamagedImage(ValueError):
    """A file that is no picture, or only part of one; the message names it and says why.

    Args:
      name: of the image.
      reason: what is wrong.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both, so that it can be pickled
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


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

    def digest(self) -> bytes:
        """A SHA-256 of all of them."""
        ends = np.frombuffer(self._ends, np.int64) if len(self) else np.empty(0, np.int64)
        return hashlib.sha256(ends.astype("<i8").tobytes() + self._text).digest()


class Images:
    """Pictures with classes, in a fixed order. Subclasses bring `_read_bytes`.

    Attributes:
      labels: int64 [n] in [0, len(class_names)).
      class_names: one for each class.
      ignored: files that were left out because they are not of a picture's kind, at most a few.
      num_ignored: how many those were.
    """

    def __init__(self, names: Names, labels: Sequence[int] | np.ndarray, class_names: list[str]):
        self._names, self.class_names = names, class_names
        self.labels = np.asarray(labels, np.int64)
        self.ignored: list[str] = []
        self.num_ignored = 0

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
        return decode(self._read_bytes(index), self.name(index))

    def fingerprint(self) -> str:
        """A SHA-256 of names, labels and classes (not of the pixels)."""
        classes = "\0".join(self.class_names).encode("utf-8", "surrogateescape")
        return hashlib.sha256(
            self._names.digest() + self.labels.astype("<i8").tobytes() + classes
        ).hexdigest()

    def digest(self, index: int) -> bytes:
        """A SHA-256 of an image's file."""
        return hashlib.sha256(self._read_bytes(index)).digest()

    def _read_bytes(self, index: int) -> bytes:
        raise NotImplementedError

    def _ignore(self, name: str) -> None:
        self.num_ignored += 1
        if len(self.ignored) < 5:
            self.ignored.append(name)


def decode(data: bytes, name: str) -> Image.Image:
    """See `Images.read`."""
    if not data:
        raise DamagedImage(name, "empty file")
    try:
        with Image.open(io.BytesIO(data)) as file:
            file.load()
            return _to_rgb(file)
    except Image.UnidentifiedImageError:
        raise DamagedImage(name, "not an image") from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedImage(name, reason) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:  # Pillow's conversion would clip at 255
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # directly to RGB warns for some palettes
    return image.convert("RGB")
