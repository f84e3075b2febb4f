"""The directory of a zip archive: where the members lie that are stored uncompressed.

Only what PyTorch writes is supported: no compression, hence no bombs; no encryption, no splitting.
Python's `zipfile` would hold the directory of any size in memory and does not tell offsets.
(APPNOTE.TXT of PKWARE, 4.3 and 4.5.3.)
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO

MAX_DIRECTORY_BYTES = 2**22  # of 1,000 members: 0.1 MB
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_MAX_COMMENT = 2**16
_ABSENT32 = 0xFFFFFFFF  # the number stands in the zip64 field


@dataclass(frozen=True)
class Member:
    """A member of the archive.

    Attributes:
      offset: of its first byte in the file.
      size: in bytes, unpacked.
      packed_size: in bytes, in the file.
      is_plain: neither compressed nor encrypted.
    """

    offset: int
    size: int
    packed_size: int
    is_plain: bool


def read_directory(file: BinaryIO, size: int) -> dict[str, Member]:
    """Returns name -> member, in the order of the directory.

    Args:
      file: the archive, seekable.
      size: its length.

    Raises:
      ValueError: damaged; or members overlap, or two have the same name.
    """
    try:
        members = _members(file, size)
    except struct.error:
        raise ValueError("its zip archive has a damaged directory") from None
    end = 0
    for member in sorted(members.values(), key=lambda member: member.offset):
        if member.offset < end:
            raise ValueError("its zip archive has members that overlap")
        end = member.offset + member.packed_size
    return members


def _members(file: BinaryIO, size: int) -> dict[str, Member]:
    start, length = _find_directory(file, size)
    if length > MAX_DIRECTORY_BYTES or start + length > size:
        raise ValueError(f"its zip directory takes {length:,} bytes at {start:,} of {size:,}")
    file.seek(start)
    members: dict[str, Member] = {}
    directory, at = file.read(length), 0
    while at < len(directory):
        if directory[at : at + 4] != _CENTRAL:
            raise ValueError("its zip archive has a damaged directory")
        name, member, at = _central_header(file, directory, at, size)
        if name in members:
            raise ValueError("its zip archive has two members of one name")
        members[name] = member
    return members


def _find_directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """Where the directory starts, and its length."""
    tail_size = min(size, _MAX_COMMENT + 22 + 20)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    at = tail.rfind(_END)
    if at < 0 or at + 22 > len(tail):
        raise ValueError("its zip archive has no end (truncated?)")
    length, start = struct.unpack_from("<II", tail, at + 12)
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR64:
        (end64,) = struct.unpack_from("<Q", tail, at - 12)
        if end64 + 56 > size:
            raise ValueError("its zip archive ends beyond the file (truncated?)")
        file.seek(end64)
        record = file.read(56)
        if record[:4] != _END64:
            raise ValueError("its zip archive has a damaged end")
        length, start = struct.unpack_from("<QQ", record, 40)
    return start, length


def _central_header(
    file: BinaryIO, directory: bytes, at: int, size: int
) -> tuple[str, Member, int]:
    flags, method = struct.unpack_from("<HH", directory, at + 8)
    packed, unpacked, name_size, extra_size, comment_size = struct.unpack_from(
        "<IIHHH", directory, at + 20
    )
    (local,) = struct.unpack_from("<I", directory, at + 42)
    name = directory[at + 46 : at + 46 + name_size].decode("utf-8", "replace")
    extra_at = at + 46 + name_size
    extra = directory[extra_at : extra_at + extra_size]
    unpacked, packed, local = _with_zip64(extra, unpacked, packed, local)
    if local + 30 > size:
        raise ValueError("its zip archive has a member beyond the file (truncated?)")
    file.seek(local)
    header = file.read(30)
    if header[:4] != _LOCAL:
        raise ValueError("its zip archive has a damaged member")
    offset = local + 30 + sum(struct.unpack_from("<HH", header, 26))
    if offset + packed > size:
        raise ValueError("its zip archive has a member beyond the file (truncated?)")
    is_plain = method == 0 and not flags & 1 and packed == unpacked
    member = Member(offset, unpacked, packed, is_plain)
    return name, member, extra_at + extra_size + comment_size


def _with_zip64(extra: bytes, *numbers: int) -> list[int]:
    """Fills in what did not fit into 32 bits: each absent number in turn, from the zip64 field."""
    result, at = list(numbers), 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            places = [i for i, number in enumerate(result) if number == _ABSENT32]
            for k, place in enumerate(places):
                if 8 * (k + 1) > length or at + 12 + 8 * k > len(extra):
                    raise ValueError("its zip archive has a damaged directory")
                (result[place],) = struct.unpack_from("<Q", extra, at + 4 + 8 * k)
        at += 4 + length
    return result
