"""Zip archives that folders are published in: what is in them, and unpacking the few files that are wanted.

An archive comes from strangers. Its directory is read in a process of little memory (`limited`); nothing is
written under a name that it gives; and nothing is unpacked that it states to be much larger than weights are.
"""

import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from convert.files import limited
from maskgit_pt.files import printable

WEIGHTS = (".bin", ".safetensors", ".pth", ".pt", ".ckpt")  # ends of names
_START, _END, _END_64 = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06"
_TAIL_BYTES = 2**20  # of the file, in which its directory is looked for
_MAX_MEMBERS = 10_000
_MAX_RATIO = 16  # unpacked to packed; of float32 weights it is about 1.1
_SLACK = 2**20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_OUTSIDE = re.compile(r"[/\\]|.*(^|/)\.\.(/|$)|[A-Za-z]:|.*[\\\0]", re.DOTALL)


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
      path: where it is.
      name: the same as the archive writes it, perhaps with a "./" before it.
      size: bytes, unpacked.
      packed: bytes in the archive.
      problem: why it cannot be unpacked; None if it can.
    """

    path: PurePosixPath
    name: str
    size: int
    packed: int
    problem: str | None


def directory(file: BinaryIO) -> bytes:
    """The directory of a zip archive, as far as it lies in its last MiB; empty if there is none."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) < end + 22:
        return b""
    (length,) = struct.unpack_from("<L", tail, end + 12)
    if length == 0xFFFFFFFF:  # stands in the record for archives of many gigabytes
        end = tail.rfind(_END_64, 0, end)
        if end < 0 or len(tail) < end + 48:
            return b""
        (length,) = struct.unpack_from("<Q", tail, end + 40)
    return tail[max(0, end - length) : end]


def is_archive(path: Path, head: bytes) -> bool:
    """Whether a file is a zip archive with files of weights in it, by their names."""
    if not head.startswith(_START):
        return False
    with open(path, "rb") as file:
        names = directory(file).lower()
    return any(end.encode() in names for end in WEIGHTS)


def members(path: Path) -> list[Member]:
    """The files in an archive.

    Raises:
      ValueError: it is damaged, its members overlap or lead out of it, or there are too many; one line.
    """
    found = limited.run(lambda: _examine(path), path.stat().st_size)
    if isinstance(found, str):
        raise ValueError(found)
    return [Member(PurePosixPath(name), name, *rest) for name, *rest in found]


def _examine(path: Path) -> list[list] | str:
    """What `members` gives, as JSON can hold it; or what is wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as error:
        return f"its zip archive is damaged or truncated: {printable(str(error)[:100])}"
    if len(infos) > _MAX_MEMBERS:
        return f"its zip archive has {len(infos):,} members; accepted: {_MAX_MEMBERS:,}"
    for info in infos:
        if _OUTSIDE.match(info.orig_filename):
            return f"its member {printable(info.orig_filename[:100])} leads out of the archive"
    if len({PurePosixPath(info.filename) for info in infos}) < len(infos):
        return "its zip archive has two members of one name"
    if sum(info.compress_size for info in infos) > path.stat().st_size:
        return "its zip archive has members that overlap"
    files = [info for info in infos if not info.is_dir()]
    return [[info.filename, info.file_size, info.compress_size, _problem(info)] for info in files]


def _problem(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in _METHODS:
        return f"is compressed by method {info.compress_type}; accepted: stored, deflated"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link, no file"
    if info.file_size > _MAX_RATIO * info.compress_size + _SLACK:
        return f"would become {info.file_size:,} bytes out of {info.compress_size:,}, which weights do not"
    return None


def unpack(path: Path, wanted: Sequence[Member], folder: Path) -> None:
    """Writes members into a folder, each under the last part of its name.

    Raises:
      ValueError: one cannot be unpacked, is damaged, or there is no room; one line.
    """
    for member in wanted:
        if member.problem:
            raise ValueError(f"its member {printable(str(member.path))} {member.problem}")
    need, free = sum(member.size for member in wanted), shutil.disk_usage(folder).free
    if need > free:
        raise ValueError(
            f"unpacking it takes {need:,} bytes, and {folder.parent} has {free:,} free; the environment "
            "variable TMPDIR names another folder"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            for member in wanted:
                with (
                    archive.open(member.name) as source,
                    open(folder / member.path.name, "xb") as target,
                ):
                    shutil.copyfileobj(source, target, 2**20)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"its member {printable(str(member.path))} is damaged: {printable(str(error)[:100])}"
        ) from None
    except OSError as error:  # it names the folder, which nobody sees
        name = printable(str(member.path)[:100])
        raise ValueError(f"its member {name} cannot be unpacked: {error.strerror}") from None
