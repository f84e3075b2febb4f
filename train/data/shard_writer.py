"""Writes token shards; see `train.tokens` for what they are."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.data.shard_files import (
    FORMAT,
    MANIFEST_NAME,
    PARTS,
    SETTINGS,
    UNFINISHED_NAME,
    check_labels,
    checksum,
    npy_bytes,
    part_path,
    read_json,
    read_manifest,
    to_json,
    too_large,
    write_file,
)


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
        self.settings = json.loads(json.dumps(dict(zip(SETTINGS, values, strict=True))))
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
            raise ValueError(too_large(path, wrong, self.settings["codebook_size"]))
        check_labels(path, labels, len(self.settings["class_names"]))
        tokens = np.ascontiguousarray(tokens, "<u2")
        rows = tokens.reshape(-1, h * w).view(f"V{2 * h * w}").reshape(-1)
        crcs = np.fromiter(map(zlib.crc32, rows), "<u4", len(rows)).reshape(shape[:2])
        arrays = {"tokens": tokens, "labels": np.asarray(labels, "<i4"), "crcs": crcs}
        files = {}
        for part, array in arrays.items():
            data = npy_bytes(array)
            write_file(part_path(self.folder, number, part), data)
            files[part] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        record = {"images": len(labels), "damaged": list(damaged), "files": files}
        write_file(self._record_path(number), to_json(record))

    def finish(self, count: int) -> None:
        """Writes the manifest of the shards 0 ... count - 1; the leader's part.

        Raises:
          ValueError: one has not been written, or all are empty.
          OSError: it cannot be written.
        """
        records = [self._read_record(number) for number in range(count)]
        absent = [number for number, record in enumerate(records) if record is None]
        if absent:
            raise ValueError(f"{self.folder}: shard {absent[0]} has not been written")
        damaged = [image for record in records for image in record["damaged"]]
        num_images = sum(record["images"] for record in records)
        if not num_images:
            first = "; ".join(f"{image['name']}: {image['reason']}" for image in damaged[:1])
            raise ValueError(f"{self.folder}: not one image could be read ({first})")
        manifest = {"format": FORMAT, "num_images": num_images, **self.settings}
        manifest |= {"damaged": damaged, "shards": records}
        manifest["checksum"] = checksum(manifest)
        write_file(self.folder / MANIFEST_NAME, to_json(manifest))
        (self.folder / UNFINISHED_NAME).unlink(missing_ok=True)
        for path in self.folder.glob("shard-*.json"):
            path.unlink()

    def _take_up(self) -> None:
        """Compares the settings with those of what is there, or writes them."""
        for name in (MANIFEST_NAME, UNFINISHED_NAME):
            path = self.folder / name
            if path.exists():
                manifest = name == MANIFEST_NAME
                found = read_manifest(self.folder) if manifest else read_json(path)
                differences = _differences(found, self.settings)
                if differences and not (manifest or any(self.folder.glob("shard-*.json"))):
                    continue  # begun, and nothing made
                if differences:
                    raise ValueError(
                        f"{self.folder} holds shards made otherwise: {differences}; choose another folder"
                    )
                return
        write_file(self.folder / UNFINISHED_NAME, to_json(self.settings))

    def _remove_leftovers(self) -> None:
        """What a killed process was writing (see `write_atomically`)."""
        for pattern in (".shard-*", f".{MANIFEST_NAME}.*", f".{UNFINISHED_NAME}.*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def _earlier_records(self) -> list[dict[str, Any]]:
        """Those of the manifest, if the folder was complete once."""
        if (self.folder / MANIFEST_NAME).exists():
            return read_manifest(self.folder)["shards"]
        return []

    def _record_path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.json"

    def _read_record(self, number: int) -> dict[str, Any] | None:
        if self._record_path(number).exists():
            return read_json(self._record_path(number))
        return self._finished[number] if number < len(self._finished) else None

    def _holds(self, number: int) -> bool:
        try:
            record = self._read_record(number)
            if record is None:
                return False
            for part in PARTS:
                with open(part_path(self.folder, number, part), "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != record["files"][part]["sha256"]:
                    return False
        except (FileNotFoundError, ValueError):
            return False
        return True


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Which settings differ, in words; empty if none."""
    differences = []
    for name in SETTINGS:
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
