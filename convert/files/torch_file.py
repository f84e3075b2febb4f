"""PyTorch's files (`torch.save`), read by `torch.load(weights_only=True)`: nothing in them is run.

Both layouts: the zip archive (since PyTorch 1.6), which is mapped, and the older one, which is read into
memory. `torch.load` refuses classes that it does not know; those of settings beside the weights get
inert stand-ins here. A file is tried first in a process of little memory and time (`limited`).
"""

import io
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.utils.serialization.config  # else torch.load imports it in every process that tries

from convert.files import limited
from convert.files.archive import directory
from convert.files.pickle_names import Name, Refused, acts, makes_numbers, names_in, stand_ins
from convert.files.tensors import release_pages
from maskgit_pt.files import printable

MAX_PICKLE_BYTES = 2**23  # Besnier & Chen's: 0.2 MB
_MAGIC = (
    re.compile(  # the older layout's first pickle, the number 0x1950a86a..., in protocols 2 to 5
        rb"\x80[\x02-\x05](\x95\x0d\0{7})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL
    )
)
_MEMBER = re.compile(rb"/(data\.pkl|data/\d+|version|byteorder|\.format_version)$")
_LEGACY_PICKLES = 5  # magic number, protocol, machine, object, keys of the storages
_BLOCKED = ("os", "sys")  # modules that torch.load refuses by name


@dataclass
class TorchFile:
    """What a file holds.

    Attributes:
      tree: what was saved, unknown objects as `Thing`.
      layout: "zip" or "legacy".
      things: class -> number of objects that were left inert.
      release: gives memory back that reading took.
    """

    tree: Any
    layout: str
    things: Counter = field(default_factory=Counter)
    release: Callable[[], None] = lambda: None


def is_torch_file(path: Path, head: bytes) -> bool:
    """Whether a file is one, by its magic number or the members of its archive."""
    if _MAGIC.match(head):
        return True
    if not head.startswith(b"PK\x03\x04"):
        return False
    # The first member; what follows can be a file of PyTorch's in another archive.
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if _MEMBER.search(name):
        return True
    with open(path, "rb") as file:  # repacked by others: the directory stands at the end
        return b"/data.pkl" in directory(file)


def read(path: Path) -> TorchFile:
    """Reads a file; tensors of an archive stay in the file.

    Raises:
      Refused: it calls what no file of weights needs; names it.
      ValueError: damaged, truncated, compressed, too costly, or no such file; one line.
    """
    found = limited.run(lambda: _examine(path), path.stat().st_size)
    if "refused" in found:
        raise Refused(found["refused"])
    if "damaged" in found:
        raise ValueError(found["damaged"])
    return _load(path, [Name(*name) for name in found["names"]])


def suspicious_names(path: Path) -> list[Name]:
    """What a bare pickle, which is no checkpoint, names that would act if it were called."""
    with open(path, "rb") as file:
        data = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    found = []
    try:
        for name in names_in(data, 1):
            if name not in found:
                found.append(name)
    except ValueError:
        pass  # damaged, or a text
    # These act on what else is named.
    indirect = [name for name in found if name.known in ("builtins.getattr", "builtins.bytes")]
    return [name for name in found if acts(name)] or indirect


def _examine(path: Path) -> dict[str, Any]:
    """Tries everything; gives {"names": [...]}, {"damaged": text} or {"refused": text}."""
    try:
        with open(path, "rb") as file:
            names = _names_of(file)
        for name in names:
            if name.known.partition(".")[0] in _BLOCKED or makes_numbers(name):
                raise Refused(f"its pickle tries to run {name.in_full}")
        _load(path, names)
    except Refused as error:
        return {"refused": str(error)}
    except ValueError as error:
        return {"damaged": str(error)}
    return {"names": [[name.module, name.name] for name in names]}


def _names_of(file: BinaryIO) -> list[Name]:
    """What the pickle of a file names, after checks of what surrounds it."""
    if _MAGIC.match(file.read(32)):
        file.seek(0)
        data, pickles = file.read(MAX_PICKLE_BYTES), _LEGACY_PICKLES
    else:
        try:
            with zipfile.ZipFile(file) as opened:
                data = _check_archive(opened, os.fstat(file.fileno()).st_size)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, KeyError) as error:
            text = printable(str(error)[:100])
            raise ValueError(f"its zip archive is damaged or truncated: {text}") from None
        pickles = 1
    return list(dict.fromkeys(names_in(io.BytesIO(data), pickles)))


def _check_archive(archive: zipfile.ZipFile, size: int) -> bytes:
    """Returns the pickle of an archive whose members are as PyTorch writes them."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise ValueError("its zip archive has two members of one name")
    pickles = [member for member in members if member.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"its zip archive has {len(pickles)} members data.pkl; accepted: one")
    folder = pickles[0].filename.removesuffix("data.pkl")
    if folder + "constants.pkl" in names:
        raise ValueError("is a TorchScript program, no file of weights")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise ValueError(
                f"its member {printable(member.filename)} is compressed ({member.compress_size:,} "
                f"bytes for {member.file_size:,}), which PyTorch's files never are"
            )
    if sum(member.file_size for member in members) > size:
        raise ValueError("its zip archive has members that overlap")
    if (length := pickles[0].file_size) > MAX_PICKLE_BYTES:
        raise ValueError(f"its data.pkl has {length:,} bytes; accepted: {MAX_PICKLE_BYTES:,}")
    if (damaged := archive.testzip()) is not None:
        raise ValueError(
            f"its member {printable(damaged)} does not have its checksum (CRC-32): the file is damaged"
        )
    if folder + "byteorder" in names and archive.read(folder + "byteorder") == b"big":
        raise ValueError("its numbers are big-endian; accepted: little-endian")
    return archive.read(pickles[0])


def _load(path: Path, names: list[Name]) -> TorchFile:
    """`torch.load` with stand-ins for what is named; its errors in one line."""
    with open(path, "rb") as file:
        legacy = bool(_MAGIC.match(file.read(32)))
    # torch.load takes a path that ends so for a safetensors file, whatever is in it.
    misnamed = path.suffix == ".safetensors"
    mapped = not legacy and not misnamed
    things: Counter = Counter()
    storages: list[tuple[int, int]] = []

    def keep(storage: torch.UntypedStorage, _: str) -> torch.UntypedStorage:
        storages.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
        return storage

    with (
        torch.serialization.safe_globals(stand_ins(names, things)),
        warnings.catch_warnings(),
        open(path, "rb") as file,
    ):
        warnings.simplefilter("ignore")
        source = file if misnamed else path
        try:
            tree = torch.load(source, map_location=keep, weights_only=True, mmap=mapped)
        except (Refused, MemoryError):
            raise
        except Exception as error:  # torch.load has no list of what it raises for damaged files
            raise _one_line(error) from None
    if not mapped or not storages:
        return TorchFile(tree, "legacy" if legacy else "zip", things)
    # All storages of an archive are parts of one mapping of the file.
    start, end = min(at for at, _ in storages), max(end for _, end in storages)
    return TorchFile(tree, "zip", things, lambda: release_pages(start, end))


def _one_line(error: Exception) -> ValueError:
    """What is wrong with a file, out of an exception of `torch.load`."""
    text = str(error)
    if refused := re.search(r"unrecognized function (.{1,200}?)( which belongs|\n|$)", text):
        return Refused(f"its pickle tries to run {printable(refused[1])}")
    if refused := re.search(r"GLOBAL (\S{1,200})", text):
        return Refused(f"its pickle tries to run {printable(refused[1])}")
    if "allocate memory" in text:
        return ValueError("its pickle asks for more memory than weights need")
    # FRAME, MEMOIZE, SHORT_BINUNICODE, STACK_GLOBAL
    if re.search(r"Unsupported operand (149|148|140|147)\b", text):
        return ValueError(
            "its pickle has protocol 4 or later, which torch.load(weights_only=True) does not read; "
            "torch.save writes protocol 2 unless it is told otherwise"
        )
    lines = text.partition("WeightsUnpickler error:")[2].strip() or text.strip()
    first = printable(re.split(r"\n|\. |\. ?\(", lines)[0][:200])
    return ValueError(f"its pickle or archive is damaged: {type(error).__name__} {first}".rstrip())
