"""What an output may replace."""

import os
from pathlib import Path

from convert.files.archive import WEIGHTS
from convert.rules import abbreviate


def check_output(
    path: Path, is_folder: bool, overwrite: bool, weights_name: str | None = None
) -> None:
    """Refuses to replace anything without `overwrite`, and a folder by a file or the reverse.

    Args:
      path: the output.
      is_folder: whether it is to be one.
      overwrite: whether what is there may be replaced.
      weights_name: the file with the weights in a folder; None for a folder that is one thing and is never
        written into one that exists.

    Raises:
      ValueError, FileExistsError, FileNotFoundError: one line.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    if os.path.lexists(path) and not (path.is_dir() or path.is_file()):
        raise ValueError(f"{path} is neither a file nor a folder: choose another name")
    if path.is_dir() != is_folder and path.exists():
        found, wanted = ("folder", "file") if path.is_dir() else ("file", "folder")
        raise ValueError(f"{path} is a {found}; this output is a {wanted}: choose another name")
    if path.exists() and not overwrite and not (is_folder and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already; --overwrite replaces it")
    # Folders in the folder may be called after an average, which is read first.
    found = [*path.glob("*"), *path.glob("*/*")] if path.is_dir() else []
    there = [str(file.relative_to(path)) for file in found]
    if there and weights_name is None:
        raise FileExistsError(f"{path} exists already and cannot be merged with: remove it first")
    others = [n for n in there if n.endswith((*WEIGHTS, ".index.json")) and n != weights_name]
    if others:
        raise FileExistsError(
            f"{path} holds other weights ({abbreviate(sorted(others))}), which would stay beside "
            f"{weights_name}: remove them, or choose another name"
        )
