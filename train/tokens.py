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
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from maskgit_pt.pretrained import write_atomically

MANIFEST_NAME = "manifest.json"
UNFINISHED_NAME = "unfinished.json"  # the settings, until there is a manifest
_FORMAT = "maskgit_pt token shards, version 1"
_PARTS = ("tokens", "labels", "crcs")
_SETTINGS = ("tokenizer", "image_size", "grid", "codebook_size", "crops", "preprocessing", "source",
             "class_names")  # fmt: skip
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


def part_path(folder: str | os.PathLike, number: int, part: str) -> Path:
    """Where a shard's "tokens", "labels" or "crcs" are."""
    return Path(folder) / f"shard-{number:05d}.{part}.npy"


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
        shards = cls(Path(folder), _read_manifest(Path(folder)))
        for number in range(len(shards.manifest["shards"])):
            for part in _PARTS:
                shards._check_size(number, part)
        return shards

    @property
    def num_classes(self) -> int:
        """Labels are below it."""
        return len(self.class_names)

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
            raise ValueError(_too_large(path, result[row].max(), self.codebook_size))
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
            raise ValueError(_too_large(path, tokens.max(), self.codebook_size))

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
            raise FileNotFoundError(f"{path}: missing; {_REPAIR}") from None
        if found != expected:
            raise ValueError(f"{path}: damaged: {found} bytes instead of {expected}; {_REPAIR}")

    def _read_part(self, number: int, part: str) -> np.ndarray:
        """A whole file, checked."""
        path = part_path(self.folder, number, part)
        data = path.read_bytes()
        expected = self.manifest["shards"][number]["files"][part]["sha256"]
        if hashlib.sha256(data).hexdigest() != expected:
            raise ValueError(f"{path}: damaged, or of another set: SHA-256 differs; {_REPAIR}")
        array = np.load(io.BytesIO(data), allow_pickle=False)
        if array.shape != self._shape(number, part):
            raise ValueError(f"{path}: shape {array.shape}, not {self._shape(number, part)}")
        return array

    def _read_labels(self, number: int) -> np.ndarray:
        labels = self._read_part(number, "labels")
        _check_labels(part_path(self.folder, number, "labels"), labels, self.num_classes)
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
            try:
                version = np.lib.format.read_magic(file)
                header = np.lib.format.read_array_header_1_0(file)
            except ValueError as error:
                raise ValueError(f"{path}: damaged ({error}); {_REPAIR}") from None
            if version != (1, 0) or header != (shape, False, np.dtype("<u2")):
                raise ValueError(f"{path}: damaged, or of another set: {header}; {_REPAIR}")
            self._offset = file.tell()
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
                f"checksum; {_REPAIR}"
            )
        return np.frombuffer(b"".join(data), "<u2").reshape(len(data), self.shape[-1])

    def __del__(self):
        if self._file >= 0:
            os.close(self._file)


class ShardWriter:
    """Fills a folder with token shards, in any order and by several processes; takes up what is there.

    Args:
      folder: made if missing.
      grid: (h, w) of the tokens.
      crops: stored augmentations of each image.
      codebook_size: tokens are below it.
      class_names: one for each class.
      image_size: pixels along one side.
      tokenizer: `tokenizer_fingerprint`.
      preprocessing: how images were cropped: JSON.
      source: what the images are and how they are split into shards: JSON.
      leader: whether this process writes what concerns all shards; exactly one must.

    Raises:
      ValueError: the folder holds shards of something else; the message says what differs.
      OSError: it cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        grid: tuple[int, int],
        crops: int,
        codebook_size: int,
        class_names: Sequence[str],
        image_size: int,
        tokenizer: str,
        preprocessing: dict[str, Any] | None = None,
        source: dict[str, Any] | None = None,
        leader: bool = True,
    ):
        if not 1 <= codebook_size <= 2**16:
            raise ValueError(f"codebook_size is {codebook_size}; accepted: 1 to 65536 (uint16)")
        self.folder = Path(folder)
        values = (tokenizer, image_size, list(grid), codebook_size, crops, preprocessing or {},
                  source or {}, list(class_names))  # fmt: skip
        self.settings = json.loads(json.dumps(dict(zip(_SETTINGS, values, strict=True))))
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file; accepted: a folder for the shards")
        if leader:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_up()
            self._remove_leftovers()
        self._finished = self._earlier_records()

    def missing(self, count: int) -> list[int]:
        """Which of the shards 0 ... count - 1 are still to be made; reads the others to check them."""
        return [number for number in range(count) if not self._holds(number)]

    def write(
        self,
        number: int,
        tokens: np.ndarray,
        labels: np.ndarray,
        damaged: Iterable[dict[str, Any]] = (),
    ) -> None:
        """Writes one shard: it is there as a whole or not at all.

        Args:
          number: of the shard.
          tokens: integers [n, crops, h*w] below the codebook's size.
          labels: integers [n] below the number of classes.
          damaged: images of this shard that could not be read: "image", "name", "reason".

        Raises:
          ValueError: a shape or a value is wrong.
          OSError: it cannot be written.
        """
        path = part_path(self.folder, number, "tokens")
        h, w = self.settings["grid"]
        shape = (len(labels), self.settings["crops"], h * w)
        if tokens.shape != shape:
            raise ValueError(f"{path}: tokens have shape {tokens.shape}; accepted: {shape}")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.settings["codebook_size"]:
            wrong = tokens.min() if tokens.min() < 0 else tokens.max()
            raise ValueError(_too_large(path, wrong, self.settings["codebook_size"]))
        _check_labels(path, labels, len(self.settings["class_names"]))
        tokens = np.ascontiguousarray(tokens, "<u2")
        rows = tokens.reshape(-1, h * w).view(f"V{2 * h * w}").reshape(-1)
        crcs = np.fromiter(map(zlib.crc32, rows), "<u4", len(rows)).reshape(shape[:2])
        arrays = {"tokens": tokens, "labels": np.asarray(labels, "<i4"), "crcs": crcs}
        files = {}
        for part, array in arrays.items():
            data = _npy_bytes(array)
            self._write(part_path(self.folder, number, part), data)
            files[part] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        record = {"images": len(labels), "damaged": list(damaged), "files": files}
        self._write(self._record_path(number), _to_json(record))

    def finish(self, count: int) -> TokenShards:
        """Writes the manifest of the shards 0 ... count - 1, which must all be there; the leader's part."""
        records = [self._read_record(number) for number in range(count)]
        absent = [number for number, record in enumerate(records) if record is None]
        if absent:
            raise ValueError(f"{self.folder}: shard {absent[0]} has not been written")
        damaged = [image for record in records for image in record["damaged"]]
        num_images = sum(record["images"] for record in records)
        manifest = {"format": _FORMAT, "num_images": num_images, **self.settings}
        manifest |= {"damaged": damaged, "shards": records}
        manifest["checksum"] = _checksum(manifest)
        self._write(self.folder / MANIFEST_NAME, _to_json(manifest))
        (self.folder / UNFINISHED_NAME).unlink(missing_ok=True)
        for path in self.folder.glob("shard-*.json"):
            path.unlink()
        return TokenShards.open(self.folder)

    def _take_up(self) -> None:
        """Compares the settings with those of what is there, or writes them."""
        for name in (MANIFEST_NAME, UNFINISHED_NAME):
            path = self.folder / name
            if path.exists():
                manifest = name == MANIFEST_NAME
                found = _read_manifest(self.folder) if manifest else _read_json(path)
                differences = _differences(found, self.settings)
                if differences:
                    raise ValueError(
                        f"{self.folder} holds shards made otherwise: {differences}; choose another folder"
                    )
                return
        self._write(self.folder / UNFINISHED_NAME, _to_json(self.settings))

    def _remove_leftovers(self) -> None:
        """What a killed process was writing (see `write_atomically`)."""
        for pattern in (".shard-*", f".{MANIFEST_NAME}.*", f".{UNFINISHED_NAME}.*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def _earlier_records(self) -> list[dict[str, Any]]:
        """Those of the manifest, if the folder was complete once."""
        if (self.folder / MANIFEST_NAME).exists():
            return _read_manifest(self.folder)["shards"]
        return []

    def _record_path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.json"

    def _read_record(self, number: int) -> dict[str, Any] | None:
        if self._record_path(number).exists():
            return _read_json(self._record_path(number))
        return self._finished[number] if number < len(self._finished) else None

    def _holds(self, number: int) -> bool:
        try:
            record = self._read_record(number)
            if record is None:
                return False
            for part in _PARTS:
                with open(part_path(self.folder, number, part), "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != record["files"][part]["sha256"]:
                    return False
        except (FileNotFoundError, ValueError):
            return False
        return True

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_atomically(path, data)
        except OSError as error:
            raise OSError(
                f"{path} cannot be written: {error.strerror or error}; finished shards are kept, and the "
                "same command goes on from them"
            ) from None


_REPAIR = "python -m train.tokenize, run again as before, makes damaged shards anew"


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        if (folder / UNFINISHED_NAME).exists():
            raise FileNotFoundError(
                f"{folder}: unfinished; run the same python -m train.tokenize command again"
            )
        found = "no manifest.json there" if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"{folder}: {found}; accepted: what python -m train.tokenize wrote")
    manifest = _read_json(path)
    if manifest.get("format") != _FORMAT:
        found = str(manifest.get("format"))[:60]
        raise ValueError(f"{path}: format is {found!r}; accepted: {_FORMAT!r}")
    if manifest.pop("checksum", None) != _checksum(manifest):
        raise ValueError(f"{path}: damaged: its checksum differs; restore it, or make the set anew")
    return manifest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: damaged, not a JSON object")
    return value


def _to_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0))
    return buffer.getvalue()


def _as_indices(what: str, indices: np.ndarray, count: int) -> np.ndarray:
    indices = np.asarray(indices, np.int64)
    if indices.size and not 0 <= indices.min() <= indices.max() < count:
        wrong = indices.min() if indices.min() < 0 else indices.max()
        raise ValueError(f"{what} {wrong} is out of range; accepted: 0 to {count - 1}")
    return indices


def _check_labels(path: Path, labels: np.ndarray, num_classes: int) -> None:
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"{path}: label {wrong} is out of range; accepted: 0 to {num_classes - 1}")


def _too_large(path: Path, token: int, codebook_size: int) -> str:
    return f"{path}: token {token} is out of range; accepted: 0 to {codebook_size - 1}"


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Which settings differ, in words; empty if none."""
    differences = []
    for name in _SETTINGS:
        pairs = [(name, found.get(name), wanted[name])]
        if isinstance(wanted[name], dict) and isinstance(found.get(name), dict):
            keys = sorted(found[name].keys() | wanted[name].keys())
            pairs = [(f"{name}.{k}", found[name].get(k), wanted[name].get(k)) for k in keys]
        for label, there, here in pairs:
            if there != here:
                short = [
                    text if len(text) < 50 else text[:47] + "..."
                    for text in map(repr, (there, here))
                ]
                differences.append(f"{label} is {short[0]} there and {short[1]} now")
    return ", ".join(differences)
