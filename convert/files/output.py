"""What an output may replace."""

from pathlib import Path


def check_output(path: Path, is_folder: bool, overwrite: bool, merges: bool = True) -> None:
    """Refuses to replace anything without `overwrite`, and a folder by a file or the reverse.

    Without `merges` a folder is never written into one that exists.

    Raises:
      ValueError, FileExistsError, FileNotFoundError: one line.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    if path.is_dir() != is_folder and path.exists():
        found, wanted = ("folder", "file") if path.is_dir() else ("file", "folder")
        raise ValueError(f"{path} is a {found}; this output is a {wanted}: choose another name")
    if path.exists() and not overwrite and not (is_folder and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already; --overwrite replaces it")
    if is_folder and not merges and path.exists() and any(path.iterdir()):
        raise FileExistsError(f"{path} exists already and cannot be merged with: remove it first")
