"""Output that appears whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


def check_output(path: Path, is_folder: bool, overwrite: bool) -> None:
    """Refuses to replace anything without `overwrite`, and a folder by a file or the reverse.

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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside `path`; what is made there gets its name if all went well.

    A folder's files replace those of the same name in an existing folder; others there stay.
    On any error, an interruption included, what was made is removed.

    Raises:
      OSError: the system's reason why it cannot be written.
    """
    path = Path(os.path.abspath(path))  # "." has no name
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        files = list(temporary.iterdir()) if temporary.is_dir() else [temporary]
        for file in files:
            synchronise(file)
        if temporary.is_dir() and path.is_dir():
            for file in files:
                os.replace(file, path / file.name)
            temporary.rmdir()
        else:
            os.replace(temporary, path)
        synchronise(path.parent)
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # names the temporary file, or none
            raise OSError(f"{path}: cannot be written: {error.strerror}") from None
        raise


def synchronise(path: Path) -> None:
    """Waits until the disk has a file or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
