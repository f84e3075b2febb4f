"""Runs a function over all images of a source, on one process or several, and remembers the result."""

import contextlib
import datetime
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from train.evaluation.sources import Source, to_tensor

Arrays = dict[str, np.ndarray]
_FORMAT = 1  # of what is remembered; raise it when extraction changes


class Workers:
    """The processes of an initialised process group, or this one alone.

    Args:
      alone: this one alone, whatever there is.

    Attributes:
      rank, count: of the processes.
    """

    def __init__(self, alone: bool = False):
        several = dist.is_available() and dist.is_initialized() and not alone
        several = several and dist.get_world_size() > 1
        self.rank, self.count, self.group = 0, 1, None
        if several:
            self.rank, self.count = dist.get_rank(), dist.get_world_size()
            # On the CPU, whatever the default group is; rank 0 may compute for long while others wait.
            self.group = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=7))

    def on_first(self, function: Callable[[], Any]) -> Any:
        """Calls `function` on rank 0; all get its result (to be pickled), or its error."""
        if self.group is None:
            return function()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = function()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def on_each_after_first(self, function: Callable[[], Any]) -> Any:
        """Calls `function` on rank 0, then on the others: so that one process alone downloads."""
        made: list[Any] = []
        self.on_first(lambda: made.append(function()))
        return made[0] if self.rank == 0 else function()

    def batches(self, count: int, batch_size: int) -> list[tuple[int, int]]:
        """The part of all batches that is this process's: a run of whole batches, so that an image is
        computed in the same batch, and rounded alike, however many processes there are."""
        total = -(-count // batch_size)
        mine = range(self.rank * total // self.count, (self.rank + 1) * total // self.count)
        return [(i * batch_size, min(count, (i + 1) * batch_size)) for i in mine]

    def gather(self, rows: np.ndarray | None) -> np.ndarray | None:
        """Joins the rows of all processes on rank 0; None elsewhere.

        Args:
          rows: [n, ...] of this process; None if it had no batch.
        """
        if self.group is None:
            return rows
        shapes: list[Any] = [None] * self.count
        described = None if rows is None else (rows.shape, rows.dtype.str)
        dist.all_gather_object(shapes, described, group=self.group)
        if self.rank:
            if rows is not None:
                data = torch.from_numpy(np.ascontiguousarray(rows).view(np.uint8).reshape(-1))
                dist.send(data, 0, group=self.group)
            return None
        parts = [] if rows is None else [rows]
        for rank in range(1, self.count):
            if shapes[rank] is not None:
                shape, dtype = shapes[rank]
                part = np.empty(shape, dtype)
                dist.recv(torch.from_numpy(part.view(np.uint8).reshape(-1)), rank, group=self.group)
                parts.append(part)
        return np.concatenate(parts)


def extract(
    source: Source,
    function: Callable[[Tensor], dict[str, Tensor]],
    names: list[str],
    workers: Workers,
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
    workers: Workers,
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


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that gets its name at the end, or is removed."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
