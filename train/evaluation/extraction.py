"""Runs a function over all images of a source, on one process or several, and remembers the result."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from maskgit_pt.files import atomic_file
from maskgit_pt.launch import Processes
from train.evaluation.sources import Source, to_tensor

Arrays = dict[str, np.ndarray]
_FORMAT = 1  # of what is remembered; raise it when extraction changes


def extract(
    source: Source,
    function: Callable[[Tensor], dict[str, Tensor]],
    names: list[str],
    workers: Processes,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 50,
    progress: bool = False,
    description: str = "images",
) -> Arrays:
    """Calls `function` on batches of images and joins what it returns.

    Args:
      source: the images.
      function: uint8 [B, 3, H, W] on the device -> name -> [B, ...].
      names: what to keep of it.
      workers: they share the batches.

    Returns:
      name -> [N, ...] on rank 0; {} elsewhere.
    """
    batches = workers.batches(len(source), batch_size)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    total = sum(stop - start for start, stop in batches)
    hidden = not progress or workers.rank > 0
    with tqdm(total=total, unit="img", desc=description, disable=hidden or None) as bar:
        for images in _read(source, batches):
            found = function(to_tensor(images, device))
            for name in names:
                parts[name].append(found[name].cpu().numpy())
            bar.update(len(images))
    joined = {name: np.concatenate(rows) if rows else None for name, rows in parts.items()}
    gathered = {name: workers.gather(rows) for name, rows in joined.items()}
    return gathered if workers.rank == 0 else {}


def _read(source: Source, batches: list[tuple[int, int]]) -> Iterator[np.ndarray]:
    """One batch ahead, where the source allows it."""
    if not source.prefetch:
        yield from (source.read(*batch) for batch in batches)
        return
    with ThreadPoolExecutor(1) as thread:
        ahead = None
        for batch in batches:
            following = thread.submit(source.read, *batch)
            if ahead is not None:
                yield ahead.result()
            ahead = following
        if ahead is not None:
            yield ahead.result()


class Cache:
    """Arrays on disk, by a fingerprint of what they were made from.

    Args:
      folder: made when something is stored; None: nothing is remembered.
    """

    def __init__(self, folder: str | os.PathLike | None):
        self.folder = Path(folder) if folder else None

    def load(self, key: str, names: list[str]) -> Arrays | None:
        """What was stored, memory-mapped; None if there is nothing, or not for all names."""
        found = {}
        for name in names:
            try:
                found[name] = np.load(self._path(key, name), mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError):
                return None  # nothing there, or damaged: it is made again
        return found

    def store(self, key: str, arrays: Arrays) -> None:
        """Each array appears whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            with atomic_file(self._path(key, name)) as file:
                np.save(file, array, allow_pickle=False)

    def _path(self, key: str, name: str) -> Path:
        return self.folder / f"{key}.{name}.npy"


def remembered(
    cache: Cache,
    parts: Callable[[], list[Any]],
    names: list[str],
    workers: Processes,
    make: Callable[[], Arrays],
) -> Arrays:
    """From the cache, or made by all processes and stored; on rank 0, {} elsewhere.

    Args:
      parts: gives everything the arrays depend on, as JSON, called on rank 0 and only if there is a cache;
        a None among them means that they cannot be remembered.
    """
    key = found = None
    if cache.folder is not None and workers.rank == 0:
        known = parts()
        if None not in known:
            text = json.dumps([_FORMAT, *known], sort_keys=True)
            key = hashlib.sha256(text.encode()).hexdigest()[:32]
            found = cache.load(key, names)
    if workers.on_first(lambda: found is not None):
        return found or {}
    made = make()
    if key is not None:
        cache.store(key, made)
    return made
