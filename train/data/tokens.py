"""Token shards: a data set as the tokenizer sees it, on disk, with a checksum for every row.

A folder holds, for every shard, three NumPy files (`numpy.load(..., mmap_mode="r")` reads them too):

    shard-00000.tokens.npy   uint16 [images, crops, h*w]
    shard-00000.labels.npy   int32 [images]
    shard-00000.crcs.npy     uint32 [images, crops], the CRC-32 of every row of tokens

and `manifest.json`, written last: what the tokens are, and the SHA-256 of every file. A checksum a row costs
0.8% of space and a quarter of a microsecond; in return every row is checked whenever it is read, and opening
a set of any size reads the manifest alone. Rows are read with `pread`, not through a memory map: mapped pages
count as memory of the process, and would grow to the size of the set.
"""

import hashlib
import io
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from train.data.shard_files import (
    PARTS,
    REPAIR,
    check_labels,
    checksum,
    part_path,
    read_manifest,
    too_large,
)
from train.data.shard_writer import ShardWriter

__all__ = ["ShardWriter", "TokenShards", "tokenizer_fingerprint"]

_MAX_OPEN = 256  # shards a process holds open; systems allow 1024 files or so


def tokenizer_fingerprint(tokenizer: nn.Module) -> str:
    """The SHA-256 of the weights: names in order, shapes, values as float32.

    Equal for a converted folder and the file that it was converted from.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


class TokenShards:
    """Reads a folder of token shards; see `open`. May be pickled, and used after a fork.

    Attributes:
      num_images: those that were not damaged.
      crops: stored augmentations of each image.
      grid: (h, w).
      codebook_size: tokens are below it.
      class_names: one for each class.
      image_size: pixels along one side.
      tokenizer: `tokenizer_fingerprint` of what made the tokens.
      preprocessing: how the images were cropped, as JSON.
      damaged: the images that could not be read: "image" (its index), "name", "reason".
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        self.num_images: int = manifest["num_images"]
        self.crops: int = manifest["crops"]
        self.grid: tuple[int, int] = tuple(manifest["grid"])
        self.codebook_size: int = manifest["codebook_size"]
        self.class_names: list[str] = manifest["class_names"]
        self.image_size: int = manifest["image_size"]
        self.tokenizer: str = manifest["tokenizer"]
        self.preprocessing: dict[str, Any] = manifest["preprocessing"]
        self.damaged: list[dict[str, Any]] = manifest["damaged"]
        self._ends = np.cumsum([shard["images"] for shard in manifest["shards"]])
        self._open: dict[int, _OpenShard] = {}
        self._labels: np.ndarray | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "TokenShards":
        """Opens a finished folder; reads the manifest, and checks it and the sizes of the files.

        Raises:
          FileNotFoundError: no manifest, or a file that it lists is missing.
          ValueError: the manifest is damaged, or a file has another size than it says.
        """
        shards = cls(Path(folder), read_manifest(Path(folder)))
        for number in range(len(shards.manifest["shards"])):
            for part in PARTS:
                shards._check_size(number, part)
        return shards

    @property
    def num_classes(self) -> int:
        """Labels are below it."""
        return len(self.class_names)

    @property
    def checksum(self) -> str:
        """Of the manifest, and so of everything in the set."""
        return checksum(self.manifest)

    @property
    def num_tokens(self) -> int:
        """Of one crop: h*w."""
        return self.grid[0] * self.grid[1]

    def require(self, **expected: Any) -> None:
        """Checks attributes: `shards.require(image_size=256, tokenizer=fingerprint)`.

        Raises:
          ValueError: one differs.
        """
        for name, wanted in expected.items():
            found = getattr(self, name)
            if found != wanted:
                raise ValueError(
                    f"{self.folder} holds tokens with {name} {found!r}; needed here: {wanted!r}"
                )

    def tokens(self, images: np.ndarray, crops: np.ndarray) -> np.ndarray:
        """Reads rows, in any order.

        Args:
          images: integers [n] in [0, num_images).
          crops: integers [n] in [0, crops).

        Returns:
          uint16 [n, h*w].

        Raises:
          ValueError: an index out of range; a row that does not fit its checksum, or a shard that is not
            the one in the manifest (the message names the file).
        """
        images = _as_indices("image", images, self.num_images)
        crops = _as_indices("crop", crops, self.crops)
        if images.shape != crops.shape:
            raise ValueError(f"{len(images)} images and {len(crops)} crops; accepted: as many")
        result = np.empty((len(images), self.num_tokens), np.uint16)
        shard_of = np.searchsorted(self._ends, images, side="right")
        order = np.lexsort((crops, images))  # the disk likes ascending places
        for part in np.split(order, np.flatnonzero(np.diff(shard_of[order])) + 1):
            if len(part):
                number = int(shard_of[part[0]])
                rows = (images[part] - self._first(number)) * self.crops + crops[part]
                result[part] = self._shard(number).read(rows)
        if result.size and result.max() >= self.codebook_size:
            row = int(np.flatnonzero(result.max(1) >= self.codebook_size)[0])
            path = part_path(self.folder, int(shard_of[row]), "tokens")
            raise ValueError(too_large(path, result[row].max(), self.codebook_size))
        return result

    def labels(self, images: np.ndarray) -> np.ndarray:
        """The classes of images: integers [n] -> int64 [n].

        The first call of a process reads and checks all labels (4 bytes an image).

        Raises:
          ValueError: an index out of range; a shard of labels is damaged.
        """
        if self._labels is None:
            numbers = range(len(self.manifest["shards"]))
            self._labels = np.concatenate([self._read_labels(number) for number in numbers])
        return self._labels[_as_indices("image", images, self.num_images)].astype(np.int64)

    def verify(self, progress: bool = True) -> None:
        """Reads every byte against the checksums.

        Args:
          progress: show a bar.

        Raises:
          ValueError: names every file that is damaged.
        """
        from tqdm import tqdm

        problems = []
        numbers = range(len(self.manifest["shards"]))
        for number in tqdm(numbers, unit="shard", disable=None if progress else True):
            try:
                self._verify_shard(number)
            except (ValueError, OSError) as error:
                problems.append(str(error))
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise ValueError("; ".join(problems[:5]) + more)

    def _verify_shard(self, number: int) -> None:
        self._read_labels(number)
        self._read_part(number, "crcs")
        tokens = self._read_part(number, "tokens")
        if tokens.size and tokens.max() >= self.codebook_size:
            path = part_path(self.folder, number, "tokens")
            raise ValueError(too_large(path, tokens.max(), self.codebook_size))

    def _first(self, number: int) -> int:
        """The first image of a shard."""
        return int(self._ends[number - 1]) if number else 0

    def _shape(self, number: int, part: str) -> tuple[int, ...]:
        images = self.manifest["shards"][number]["images"]
        shapes = {"tokens": (self.crops, self.num_tokens), "labels": (), "crcs": (self.crops,)}
        return images, *shapes[part]

    def _check_size(self, number: int, part: str) -> None:
        path = part_path(self.folder, number, part)
        expected = self.manifest["shards"][number]["files"][part]["bytes"]
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: missing; {REPAIR}") from None
        if found != expected:
            raise ValueError(f"{path}: damaged: {found} bytes instead of {expected}; {REPAIR}")

    def _read_part(self, number: int, part: str) -> np.ndarray:
        """A whole file, checked."""
        path = part_path(self.folder, number, part)
        data = path.read_bytes()
        expected = self.manifest["shards"][number]["files"][part]["sha256"]
        if hashlib.sha256(data).hexdigest() != expected:
            raise ValueError(f"{path}: damaged, or of another set: SHA-256 differs; {REPAIR}")
        array = np.load(io.BytesIO(data), allow_pickle=False)
        if array.shape != self._shape(number, part):
            raise ValueError(f"{path}: shape {array.shape}, not {self._shape(number, part)}")
        return array

    def _read_labels(self, number: int) -> np.ndarray:
        labels = self._read_part(number, "labels")
        check_labels(part_path(self.folder, number, "labels"), labels, self.num_classes)
        return labels

    def _shard(self, number: int) -> "_OpenShard":
        shard = self._open.get(number)
        if shard is None:
            crcs = self._read_part(number, "crcs").reshape(-1)
            path = part_path(self.folder, number, "tokens")
            shard = _OpenShard(path, self._shape(number, "tokens"), crcs)
            while len(self._open) >= _MAX_OPEN:
                self._open.pop(next(iter(self._open)), None)
            self._open[number] = shard
        return shard

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}, "_labels": None}


class _OpenShard:
    """The tokens of one shard, open for reading. Closed when nobody holds it any more."""

    _file: int = -1

    def __init__(self, path: Path, shape: tuple[int, ...], crcs: np.ndarray):
        self.path, self.shape, self.crcs = path, shape, crcs
        self._row_bytes = 2 * shape[-1]
        with open(path, "rb") as file:
            # The rows end the file; what NumPy's header before them says is in the manifest too.
            self._offset = os.fstat(file.fileno()).st_size - 2 * math.prod(shape)
            self._file = os.dup(file.fileno())

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows [n] of the array [images * crops, h*w] -> uint16 [n, h*w]."""
        # pread leaves the file's position alone: threads and forked processes may share the file.
        places = (self._offset + rows * self._row_bytes).tolist()
        data = [os.pread(self._file, self._row_bytes, place) for place in places]
        crcs = np.fromiter(map(zlib.crc32, data), np.uint32, len(data))
        wrong = np.flatnonzero(crcs != self.crcs[rows])
        if len(wrong):
            image, crop = divmod(int(rows[wrong[0]]), self.shape[1])
            raise ValueError(
                f"{self.path}: damaged: image {image} of this shard, crop {crop}, does not fit its "
                f"checksum; {REPAIR}"
            )
        return np.frombuffer(b"".join(data), "<u2").reshape(len(data), self.shape[-1])

    def __del__(self):
        if self._file >= 0:
            os.close(self._file)


def _as_indices(what: str, indices: np.ndarray, count: int) -> np.ndarray:
    indices = np.asarray(indices, np.int64)
    if indices.size and not 0 <= indices.min() <= indices.max() < count:
        wrong = indices.min() if indices.min() < 0 else indices.max()
        raise ValueError(f"{what} {wrong} is out of range; accepted: 0 to {count - 1}")
    return indices
