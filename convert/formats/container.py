"""A file opened, before anybody knows whose names its tensors have."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from convert.formats.state_dicts import StateDict
from maskgit_pt.pretrained import CONFIG_NAME, read_config

_MAX_CONFIG_BYTES = 2**20


@dataclass
class Container:
    """A file of tensors under somebody's names.

    Attributes:
      path: the file; a folder, of Orbax.
      packing: how it is packed: name of a `packings.Packing`.
      layout: the same in more words; for the user.
      candidates: its dictionaries of tensors.
      values: plain numbers and words beside them: steps, versions.
      left_out: what else there is, by key.
      things: class -> number of objects that nobody looked into.
      metadata: of safetensors.
      chunks: of Flax, tensor -> elements per chunk.
      folder: the folder that was named instead of the file, else None; of an archive, where its files are
        unpacked.
      archive: the zip archive that was named, else None.
      averaged: whether the weights are a moving average by the name of their folder.
      files: the files that hold the tensors, if `path` does not.
      compressed: whether the numbers may take more than the files.
      release: gives memory back that reading took.
      unpacked: what an archive was unpacked into; removed when nobody has it any more.
    """

    path: Path
    packing: str
    layout: str
    candidates: list[StateDict]
    values: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    things: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    chunks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    folder: Path | None = None
    archive: Path | None = None
    averaged: bool = False
    files: tuple[Path, ...] = ()
    compressed: bool = False
    release: Callable[[], None] = lambda: None
    unpacked: TemporaryDirectory | None = None

    @property
    def source(self) -> Path:
        """The file that the weights come from, the archive for what was unpacked."""
        return self.archive or self.path

    @property
    def size(self) -> int:
        """Bytes of the files."""
        files = self.files or ([self.path] if self.path.is_file() else self.path.rglob("*"))
        return sum(file.stat().st_size for file in files)


def config_beside(container: Container) -> dict:
    """The `config.json` in the folder that was named, beside the weights; {} if there is none.

    Raises:
      ValueError: it is no JSON object, or too large.
    """
    path = container.path.parent / CONFIG_NAME
    if container.folder is None or not path.is_file():
        return {}
    return read_small_config(path)


def read_small_config(path: Path) -> dict:
    """Reads a `config.json`; ValueError: see `config_beside`."""
    if (size := path.stat().st_size) > _MAX_CONFIG_BYTES:
        raise ValueError(f"{path}: {size:,} bytes; accepted: {_MAX_CONFIG_BYTES:,}")
    return read_config(path)
