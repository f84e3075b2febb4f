"""PyTorch's files (`torch.save`), read without PyTorch's reader and without running the pickle.

Both layouts: the zip archive (since 1.6: `NAME/data.pkl`, and a member `NAME/data/KEY` for every
storage) and the older one (pickles of a magic number, a protocol number, the machine, the object
and the storages' keys; then each storage: its length, its bytes). Tensors stay in the file until
they are read, so that the optimizer's state that comes with a checkpoint costs nothing.
"""

import io
import math
import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from convert.files import zip_file
from convert.files.flax_scanner import printable
from convert.files.pickles import Machine, PickleProblem, Thing

MAX_PICKLE_BYTES = 2**25  # Besnier & Chen's: 0.2 MB
# The older layout's first pickle, the number 0x1950a86a..., in protocols 2 to 5.
_MAGIC = re.compile(
    rb"\x80[\x02-\x05](\x95\x0d\0{7})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL
)
_MAX_DIMENSIONS = 32

# torch.XStorage -> dtype. UntypedStorage gets the dtype from the tensor.
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    "QInt8Storage": "int8",  # of quantized tensors, which stay inert
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}


@dataclass(eq=False)
class Storage:
    """Numbers in the file: `offset` is where, once known; `count` is as the pickle says."""

    key: str
    dtype: str
    count: int
    offset: int | None = None

    @property
    def nbytes(self) -> int:
        return self.count * torch.empty(0, dtype=getattr(torch, self.dtype)).element_size()


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in the file.

    Attributes:
      storage: where its numbers lie.
      dtype: a name of `dtypes.NAMES`.
      start: its first number in the storage.
      shape, stride: as PyTorch's.
    """

    storage: Storage
    dtype: str
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def span(self) -> int:
        """How many numbers of the storage it reaches over."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))

    @property
    def offset(self) -> int:
        """Of its first byte in the file."""
        itemsize = torch.empty(0, dtype=getattr(torch, self.dtype)).element_size()
        return (self.storage.offset or 0) + self.start * itemsize


@dataclass
class TorchFile:
    """What a file holds.

    Attributes:
      tree: what was saved, tensors as `StoredTensor`, other objects as `pickles.Thing`.
      things: class -> number of objects that were left inert.
      layout: "zip" or "legacy".
    """

    tree: Any
    things: dict[str, int] = field(default_factory=dict)
    layout: str = "zip"


def is_torch_file(path: Path, head: bytes) -> bool:
    """Whether a file is one, by its magic number or the members of its archive."""
    if _MAGIC.match(head):
        return True
    if not head.startswith(b"PK\x03\x04"):
        return False
    with open(path, "rb") as file:
        try:
            members = zip_file.read_directory(file, os.fstat(file.fileno()).st_size)
        except ValueError:
            return b"/data.pkl" in head or b"/data/" in head or b"/version" in head
    return any(name.endswith("/data.pkl") for name in members)


def read(path: Path) -> TorchFile:
    """Reads all but the numbers.

    Raises:
      pickles.Refused: it calls what no file of weights needs.
      ValueError: damaged, truncated, compressed, or no such file; one line.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(32)
        file.seek(0)
        return _read_legacy(file, size) if _MAGIC.match(head) else _read_zip(file, size)


def read_pickle(path: Path) -> TorchFile:
    """Reads a bare pickle, which is no checkpoint, to tell what is in it."""
    with open(path, "rb") as file:
        data = file.read(MAX_PICKLE_BYTES)
    machine = Machine()
    return TorchFile(machine.load(io.BytesIO(data)), dict(machine.things), "pickle")


def _read_zip(file: BinaryIO, size: int) -> TorchFile:
    members = zip_file.read_directory(file, size)
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"its zip archive has {len(pickles)} members data.pkl; accepted: one")
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "constants.pkl" in members:
        raise ValueError("is a TorchScript program, no file of weights")
    if _content(file, members, folder + "byteorder", 16) == b"big":
        raise ValueError("its numbers are big-endian; accepted: little-endian")
    storages = _Storages()
    machine = storages.machine()
    tree = machine.load(io.BytesIO(_content(file, members, pickles[0], MAX_PICKLE_BYTES)))
    for storage in storages.by_key.values():
        member = _plain_member(members, f"{folder}data/{storage.key}")
        if member.size < storage.nbytes:
            raise ValueError(
                f"its storage {printable(storage.key)} has {member.size:,} bytes, "
                f"its pickle says {storage.nbytes:,}"
            )
        storage.offset = member.offset
    return TorchFile(tree, dict(machine.things))


def _plain_member(members: dict[str, zip_file.Member], name: str) -> zip_file.Member:
    if name not in members:
        raise ValueError(f"its zip archive lacks {printable(name)}")
    if not members[name].is_plain:
        raise ValueError(
            f"its member {printable(name)} is compressed ({members[name].packed_size:,} bytes for "
            f"{members[name].size:,}), which PyTorch's files never are"
        )
    return members[name]


def _content(file: BinaryIO, members: dict[str, zip_file.Member], name: str, most: int) -> bytes:
    if name not in members:
        return b""
    member = _plain_member(members, name)
    if member.size > most:
        raise ValueError(f"its {printable(name)} has {member.size:,} bytes; accepted: {most:,}")
    file.seek(member.offset)
    return file.read(member.size)


def _read_legacy(file: BinaryIO, size: int) -> TorchFile:
    storages = _Storages()
    machine = storages.machine()
    data = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    _, _, machine_info, tree, keys = (machine.load(data) for _ in range(5))
    if isinstance(machine_info, dict) and machine_info.get("little_endian") is False:
        raise ValueError("its numbers are big-endian; accepted: little-endian")
    listed = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not listed or sorted(keys) != sorted(storages.by_key):
        raise ValueError("its list of storages does not fit its pickle")
    at = data.tell()
    for key in keys:
        file.seek(at)
        length = file.read(8)
        storage = storages.by_key[key]
        if len(length) < 8 or at + 8 + storage.nbytes > size:
            raise ValueError(f"it ends within storage {printable(key)} (truncated?)")
        if struct.unpack("<q", length)[0] != storage.count:
            raise ValueError(f"its storage {printable(key)} has another length than stated")
        storage.offset = at + 8
        at += 8 + storage.nbytes
    return TorchFile(tree, dict(machine.things), "legacy")


class _Storages:
    """Makes storages and tensors out of what a pickle says of them."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def machine(self) -> Machine:
        rebuild = "torch._utils._rebuild_"
        builders = {
            rebuild + "tensor": _tensor,
            rebuild + "tensor_v2": _tensor,
            rebuild + "tensor_v3": _tensor_v3,
            rebuild + "parameter": lambda tensor, *_: tensor,
            rebuild + "parameter_with_state": lambda tensor, *_: tensor,
        }
        machine = Machine(self.storage, builders)

        def with_attributes(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
            """What the function gives; class and attributes of the tensor are not needed."""
            if not isinstance(arguments, tuple) or getattr(function, "known", "") == own:
                raise TypeError
            return machine.call(function, arguments)

        own = "torch._tensor._rebuild_from_type_v2"
        builders[own] = with_attributes
        return machine

    def storage(self, identity: Any) -> Any:
        """Of the persistent id ("storage", class, key, place, count), maybe with a view's place."""
        if not isinstance(identity, tuple) or not 4 <= len(identity) <= 6:
            raise PickleProblem("its pickle refers to data in an unknown way")
        if identity[0] == "module":  # the old layout's, of a class of networks, with its source
            return identity[1]
        kind, cls, key, _, count, *view = identity
        name = getattr(cls, "name", "")
        if kind != "storage" or name not in _STORAGES or not isinstance(key, str):
            raise PickleProblem(
                f"its pickle has a storage of an unknown kind, {printable(str(name))}"
            )
        if not _is_size(count) or any(part is not None for part in view):
            raise PickleProblem("its pickle has a storage of an impossible size")
        made = self.by_key.setdefault(key, Storage(key, _STORAGES[name], count))
        if (made.dtype, made.count) != (_STORAGES[name], count):
            raise PickleProblem(f"its storage {printable(key)} has two sizes")
        return made


def _tensor(storage: Any, start: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    """As `torch._utils._rebuild_tensor_v2`, once everything fits."""
    if not isinstance(storage, Storage):
        raise PickleProblem("its pickle has a tensor without a storage")
    return _checked(StoredTensor(storage, storage.dtype, start, _sizes(shape), _sizes(stride)))


def _tensor_v3(
    storage: Any,
    start: Any,
    shape: Any,
    stride: Any,
    gradient: Any,
    hooks: Any,
    dtype: Any,
    *_: Any,
) -> StoredTensor:
    """As `torch._utils._rebuild_tensor_v3`, whose storage is untyped bytes."""
    name = getattr(dtype, "name", "")
    if not isinstance(storage, Storage) or name not in _DTYPES:
        raise PickleProblem(f"its pickle has a tensor of dtype {printable(str(name))}")
    return _checked(StoredTensor(storage, name, start, _sizes(shape), _sizes(stride)))


# Those without a storage of their own name; older versions of PyTorch lack some.
_DTYPES = frozenset(_STORAGES.values()) | {
    name
    for name in dir(torch)
    if name in ("uint16", "uint32", "uint64") or re.fullmatch(r"float8_\w+", name)
}


def _checked(tensor: StoredTensor) -> StoredTensor:
    itemsize = torch.empty(0, dtype=getattr(torch, tensor.dtype)).element_size()
    fits = (
        _is_size(tensor.start)
        and len(tensor.shape) == len(tensor.stride) <= _MAX_DIMENSIONS
        and (tensor.start + tensor.span) * itemsize <= tensor.storage.nbytes
        and math.prod(tensor.shape) <= tensor.span  # else numbers would be shared, without limit
    )
    if not fits:
        raise PickleProblem(
            f"its pickle has a tensor {list(tensor.shape)[:8]} that does not fit its storage of "
            f"{tensor.storage.count:,} numbers"
        )
    return tensor


def _sizes(sizes: Any) -> tuple[int, ...]:
    if isinstance(sizes, Thing):  # torch.Size
        (sizes,) = sizes.arguments
    if not isinstance(sizes, tuple | list) or not all(_is_size(size) for size in sizes):
        raise PickleProblem("its pickle has a tensor of an impossible shape")
    return tuple(sizes)


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**48
