"""Reading npz files of strangers: as streams, nothing executed, nothing believed."""

import hashlib
import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
_CHUNK = 2**24


class Npz:
    """An npz file.

    Attributes:
      names: of the arrays in it.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an npz file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            self.zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise ValueError(f"{path}: not an npz file ({error})") from None
        members = [name for name in self.zip.namelist() if name.endswith(".npy")]
        self.names = [name.removesuffix(".npy") for name in members]

    def rows(self, name: str) -> "Rows":
        """An array as a stream of rows."""
        if name not in self.names:
            found = ", ".join(self.names[:8]) or "nothing"
            raise ValueError(f"{self.path}: no array {name} in it; found {found}")
        return Rows(self, name)

    def array(self, name: str, max_numbers: int = 2**28) -> np.ndarray:
        """A whole array of numbers.

        Raises:
          ValueError: none of that name, more than `max_numbers` numbers, damaged, or of objects.
        """
        rows = self.rows(name)
        if math.prod(rows.shape) > max_numbers:
            raise ValueError(
                f"{self.path}: {name} has shape {list(rows.shape)}, more than {max_numbers} numbers"
            )
        return rows.read(0, rows.shape[0]) if rows.shape else rows.scalar()

    def fingerprint(self, *names: str) -> str:
        """Of the contents of arrays: their checksums and sizes, which the file holds."""
        infos = [self.zip.getinfo(f"{name}.npy") for name in names]
        text = repr([(info.filename, info.file_size, info.CRC) for info in infos])
        return hashlib.sha256(text.encode()).hexdigest()


class Rows:
    """An array inside an npz file, read from front to back.

    Attributes:
      shape, dtype: of the array.
    """

    def __init__(self, npz: Npz, name: str):
        self.path, self.name = npz.path, name
        self._zip, self._info = npz.zip, npz.zip.getinfo(f"{name}.npy")
        self._file, self._next = self._open()
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize

    def _open(self) -> tuple[IO[bytes], int]:
        """The file at row 0, and 0."""
        try:
            file = self._zip.open(self._info)
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read_header is None:
                raise ValueError(f"npy format {version}")
            self.shape, fortran, self.dtype = read_header(file)
            if fortran and len(self.shape) > 1:
                raise ValueError("columns before rows (Fortran order)")
        except (*_DAMAGED, ValueError) as error:
            raise ValueError(f"{self.path}: {self.name} cannot be read: {error}") from None
        if self.dtype.kind not in "biufU":
            raise ValueError(
                f"{self.path}: {self.name} has dtype {self.dtype}; accepted: numbers or text"
            )
        size = math.prod(self.shape) * self.dtype.itemsize
        if self._info.file_size - file.tell() != size:
            raise ValueError(
                f"{self.path}: {self.name} has {self._info.file_size - file.tell()} bytes; its shape "
                f"{list(self.shape)} needs {size}"
            )
        return file, 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start ... stop - 1; going back means reading from the front."""
        stop = min(stop, self.shape[0])
        if start < self._next:
            self._file, self._next = self._open()
        self._skip((start - self._next) * self._row_bytes)
        data = self._take((stop - start) * self._row_bytes)
        self._next = stop
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])

    def scalar(self) -> np.ndarray:
        """The value of an array without axes."""
        return np.frombuffer(self._take(self.dtype.itemsize), self.dtype).reshape(())

    def _skip(self, count: int) -> None:
        if count and self._info.compress_type == zipfile.ZIP_STORED:
            self._file.seek(count, os.SEEK_CUR)
            return
        while count:
            count -= len(self._take(min(count, _CHUNK)))

    def _take(self, count: int) -> bytes:
        try:
            data = self._file.read(count)
        except _DAMAGED as error:
            raise ValueError(f"{self.path}: {self.name} is damaged: {error}") from None
        if len(data) != count:
            raise ValueError(f"{self.path}: {self.name} is cut off")
        return data
