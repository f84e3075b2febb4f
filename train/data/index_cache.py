"""Lists of images, remembered between commands: looking for a million of them takes a minute.

A list is used again if every folder or tar file that it was made from has the time and size of then.
"""

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from maskgit_pt.files import atomic_file, user_cache
from train.data.image_base import Images

SMALLEST = 10_000  # images; fewer are listed anew
_FORMAT = 2  # raise it when a reader lists otherwise
# Nanoseconds; a folder that changed so recently may change within the same time stamp.
_SETTLED = 2 * 10**9


def remembered(
    make: Callable[[], Images], cls: type[Images], wanted: dict[str, Any], **attributes: Any
) -> Images:
    """The list that `make` would make, from the user's cache folder if it is there and still right.

    Args:
      make: lists the images; its result's `places` say what it looked at.
      cls: its class.
      wanted: all else that the list depends on, as JSON.
      **attributes: of the result, which are not stored.
    """
    folder = user_cache("indexes")
    if folder is None:
        return make()
    text = json.dumps([_FORMAT, cls.__name__, wanted], sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
    found = _load(path, cls, attributes)
    if found is not None:
        return found
    begun = time.time_ns()
    images = make()
    newest = max((changed for _, changed in images.places.values()), default=begun)
    if len(images) >= SMALLEST and newest < begun - _SETTLED:
        _store(path, images)
    return images


def place(path: str | os.PathLike) -> list[int]:
    """Size (0 for a folder) and time of change, in nanoseconds."""
    status = os.stat(path)
    return [0 if os.path.isdir(path) else status.st_size, status.st_mtime_ns]


def _load(path: Path, cls: type[Images], attributes: dict[str, Any]) -> Images | None:
    """None if there is nothing, or it is damaged or no longer right."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images = cls.from_arrays(dict(file), attributes)
        if all(place(name) == then for name, then in images.places.items()):
            return images
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        pass
    return None


def _store(path: Path, images: Images) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            np.savez(file, **images.to_arrays())
    except OSError:  # no room, or not allowed: the list is made again next time
        pass
