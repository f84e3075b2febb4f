"""Files that appear whole or not at all, and their hashes."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

# What a folder can hold, which nothing else may join or replace: names by which it is known.
_MARKS = {
    "a training run": ("checkpoints", "metrics.jsonl"),
    "samples": ("settings.json",),
    "token shards": ("manifest.json", "unfinished.json"),
    "a model": (
        "model.safetensors",
        "transformer/model.safetensors",
        "tokenizer/model.safetensors",
    ),
}


def printable(text: str) -> str:
    """Text that came from outside, fit for a line on a terminal: what is no letter or sign is escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, *, durable: bool = False) -> Iterator[Path]:
    """Gives a temporary name beside `path`; what is made there gets its name if all went well.

    The temporary name is `.<name>.<8 hexadecimal digits>.tmp`. A folder's files replace those of the same
    name in an existing folder; others there stay. On any error, an interruption included, what was made
    is removed.

    Args:
      path: of the file or folder to make.
      durable: wait until the disk has it.

    Raises:
      OSError: `path` cannot be written; `strerror` is the system's reason, `filename` is `path`.
    """
    path = Path(os.path.abspath(path))  # "." has no name
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        files = list(temporary.iterdir()) if temporary.is_dir() else [temporary]
        for file in files if durable else []:
            synchronise(file)
        if temporary.is_dir() and path.is_dir():
            for file in files:  # all can be replaced, or none is
                if file.is_file() and (path / file.name).is_dir():
                    raise OSError(
                        errno.EISDIR, f"its {file.name} is a folder, to be replaced by a file"
                    )
            for file in files:
                os.replace(file, path / file.name)
            temporary.rmdir()
        else:
            os.replace(temporary, path)
        if durable:
            synchronise(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # a read-only disk; the first error is the one to tell
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # names the temporary file, or none
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Gives an open file that gets the name `path` at the end, or is removed; errors as `replacing`."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        yield file


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all; errors as `replacing`."""
    with atomic_file(path) as file:
        file.write(data)


def user_cache(name: str) -> Path | None:
    """`maskgit_pt/NAME` in the user's cache folder, not made; None for a user without a home."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(base) / "maskgit_pt" / name


def check_destination(folder: str | os.PathLike, model_type: str) -> None:
    """Refuses a folder where a model's files would stand among, or replace, those of something else.

    Args:
      folder: where `config.json` and `model.safetensors` are to be written.
      model_type: of the model; an older one of this type may be replaced.

    Raises:
      NotADirectoryError: it is a file.
      ValueError: it holds a training run, another kind of model, samples, or token shards.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; accepted: a folder for the model")
    found, _ = _held(folder, but="a model")
    if found is None and (folder / "config.json").exists():
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
            kind = config.get("model_type") if isinstance(config, dict) else None
        except ValueError:
            kind = None
        if kind != model_type:
            found = f"a model of type {kind!r}" if kind else "the settings of something else"
    if found:
        raise ValueError(f"{folder} holds {found}, which stays as it is; choose another folder")


def check_folder(output: str | os.PathLike, flag: str = "--output") -> Path:
    """Makes a folder for results, before the work.

    Raises:
      ValueError: it cannot be made or written.
    """
    if not os.fspath(output):
        raise ValueError(f"{flag} is empty; accepted: a folder, made if missing")
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "it cannot be written"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise ValueError(f"{flag}={folder}: {reason}; accepted: a folder, made if missing")
    return folder


def refuse_others(folder: Path, own: str) -> None:
    """Raises ValueError if a folder holds results of another kind than `own`, a key of `_MARKS`."""
    what, name = _held(folder, but=own)
    if what is not None:
        raise ValueError(
            f"{folder} holds {what} ({name}); accepted: another folder, made if missing"
        )


def _held(folder: Path, but: str) -> tuple[str | None, str]:
    """What a folder holds besides `but`, and the name that tells; None if nothing."""
    for what, names in _MARKS.items():
        found = [name for name in names if what != but and (folder / name).exists()]
        if found:
            return what, found[0]
    return None, ""


def check_replaceable(path: Path, is_ours: bool, overwrite: bool, what: str) -> None:
    """Raises ValueError if `path` exists and is not what it would be replaced by.

    Args:
      path: of the file to write.
      is_ours: whether the file that is there is an earlier one of this kind; asked only if there is one.
      overwrite: replace it all the same.
      what: would be written, for the message.
    """
    if path.exists() and not is_ours and not overwrite:
        raise ValueError(
            f"{path} is there and is no {what} of this program; name another file, or --overwrite"
        )


@contextlib.contextmanager
def hold_folder(folder: str | os.PathLike, doing: str, seconds: float = 10.0) -> Iterator[None]:
    """Holds a folder for this process; the system lets go of it when the process ends, however it ends.

    Args:
      folder: exists. No file is made in it.
      doing: what another process would be doing there, for the message.
      seconds: how long to wait for another process, which may be about to end.

    Raises:
      ValueError: another process keeps it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not lock(handle, seconds):
            raise ValueError(
                f"{folder}: another process is {doing} there; wait for its end, or name another --output"
            )
        yield
    finally:
        os.close(handle)


def lock(handle: int, seconds: float) -> bool:
    """Locks an open file or folder, waiting at most so long; False if another process keeps it.

    On file systems without locks it counts as locked.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        except OSError:
            return True


def synchronise(path: str | os.PathLike) -> None:
    """Waits until the disk has a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file, in hexadecimal.

    Raises:
      FileNotFoundError: there is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_sha256(path: str | os.PathLike, beside: Iterable[Path] = ()) -> str:
    """Returns the SHA-256 of a file; of a folder, that of the names and hashes of its files.

    Args:
      path: file or folder.
      beside: files that belong to it, as shards to their index; then it is that of all names and hashes.
    """
    path = Path(path)
    if not path.is_dir() and not beside:
        return file_sha256(path)
    folder = path if path.is_dir() else path.parent
    files = (
        [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path, *beside]
    )
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(os.fsencode(f"{file.relative_to(folder)}\0{file_sha256(file)}\n"))
    return digest.hexdigest()
