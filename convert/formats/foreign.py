"""What the formats of other projects share: one table of names serves reading, checking, writing.

A table is a function from sizes (how many layers, levels, blocks) to rows: foreign tensor name ->
official tensors (several where stacked) and a named transform of `tables`. It never looks at what a
file holds; that every row is filled and every tensor used is checked afterwards.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from convert import infer, rules
from convert.checkpoint import Checkpoint, check_dtypes
from convert.files import dtypes, safetensors_file
from convert.files.tensors import Buffer, FileTensor, OpenFile, as_bytes
from convert.files.torch_file import StoredTensor
from convert.formats.container import Container, StateDict
from convert.rules import Piece, Shape, abbreviate
from convert.tables import CONV, IDENTITY, Transform

Observe = Callable[[str, Tensor], None]
_MAX_SPREAD = 64  # times the file: slices of fused tensors have gaps


@dataclass(frozen=True)
class Row:
    """What a foreign tensor is.

    Attributes:
      officials: the official tensors, in the order in which they are stacked.
      transform: between each of them and its part of the foreign tensor.
      optional: whether a model of these sizes may do without it (shortcuts).
    """

    officials: tuple[str, ...]
    transform: Transform = IDENTITY
    optional: bool = False


Rows = dict[str, Row]


def norm(foreign: str, official: str, optional: bool = False) -> Rows:
    """The rows of a norm."""
    return {
        f"{foreign}.weight": Row((f"params/{official}/scale",), IDENTITY, optional),
        f"{foreign}.bias": Row((f"params/{official}/bias",), IDENTITY, optional),
    }


def conv(foreign: str, official: str, bias: bool = True, optional: bool = False) -> Rows:
    """The rows of a convolution."""
    rows = {f"{foreign}.weight": Row((f"params/{official}/kernel",), CONV, optional)}
    if bias:
        rows[f"{foreign}.bias"] = Row((f"params/{official}/bias",), IDENTITY, optional)
    return rows


class ForeignFormat:
    """A format of another project. The attributes and hooks are all that a format fills in.

    Attributes:
      NAME: for `--to`.
      DESCRIPTION: which files these are.
      HOLDS: what is in them; for `--list`.
      IS_FOLDER: whether `write` makes a folder.
      KINDS: kinds of models it can hold.
      WRAPPERS: keys that the tensors stand under in known files, None for bare ones; the first is
        written where the source does not tell.
      WEIGHTS_NAME: the file in the folder, for a folder.
      IGNORED: names of tensors that are no part of the model.
      FLAX_MEMORY: whether transposed tensors are written as views of numbers in Flax order.
    """

    NAME: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    HOLDS: ClassVar[str]
    IS_FOLDER: ClassVar[bool] = False
    KEEPS_ORDER: ClassVar[bool] = False
    KINDS: ClassVar[tuple[str, ...]] = ("tokenizer",)
    WRAPPERS: ClassVar[tuple[str | None, ...]] = (None,)
    WEIGHTS_NAME: ClassVar[str] = ""
    IGNORED: ClassVar[re.Pattern | None] = None
    FLAX_MEMORY: ClassVar[bool] = False

    def rows_of_file(self, shapes: Mapping[str, Shape]) -> Rows:
        """The rows for as many layers or levels as the names in a file show."""
        raise NotImplementedError

    def published_rows(self) -> Rows:
        """The rows of the published model, to compare files with whose sizes cannot be told."""
        return {}

    def rows_of_model(self, kind: str, config: dict) -> Rows:
        """The rows of a model, in the order in which they are written; ValueError: cannot be."""
        raise NotImplementedError

    def read_companion(self, container: Container) -> tuple[str, dict]:
        """Name and content of the configuration that comes with the file; {} if there is none."""
        return "", {}

    def stated_config(self, companion: dict) -> dict:
        """That configuration in our terms."""
        return {}

    def wrap(self, state: dict[str, Tensor], wrapper: str | None, values: dict) -> Any:
        """What `torch.save` gets."""
        state = OrderedDict(state)
        return state if wrapper is None else values | {wrapper: state}

    def companions(self, source: Checkpoint) -> dict[str, bytes]:
        """The other files of the folder to write."""
        return {}

    def model_tensors(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Those that are no part of the model left out."""
        ignored = self.IGNORED
        return {n: t for n, t in tensors.items() if not (ignored and ignored.match(n))}

    def likeness(self, state: StateDict, container: Container) -> float:
        """How much a file is like this format: shared names as a part of all names, 0 to 1."""
        shapes = {n: t.shape for n, t in self.model_tensors(state.tensors).items()}
        try:
            rows = self.rows_of_file(shapes)
        except ValueError:
            rows = self.published_rows()
        required = {name for name, row in rows.items() if not row.optional}
        shared = len(shapes.keys() & rows.keys())
        return shared / max(len(shapes.keys() | required), 1)

    def open_state(
        self,
        container: Container,
        state: StateDict,
        num_heads: int | None = None,
        num_codes: int | None = None,
    ) -> Checkpoint:
        """Reads a file that is of this format.

        Raises:
          ValueError: it is not; names what is missing, extra or misshapen.
        """
        stored = self.model_tensors(state.tensors)
        shapes = {name: tensor.shape for name, tensor in stored.items()}
        check_dtypes({name: tensor.dtype for name, tensor in stored.items()})
        rows = self.rows_of_file(shapes)
        heads, notes = self.heads(shapes, num_heads)
        pieces = _pieces(rows, shapes, heads)
        kind, config = self._config(pieces, rows, shapes, heads, num_codes)
        stated_in, companion = self.read_companion(container)
        config = infer.merge_config(kind, config, self.stated_config(companion), stated_in)
        _, expected, config = rules.target(kind, config)
        self._close_books(kind, {p.official: p.official_shape for p in expected}, rows, shapes)
        if sum(_bytes(tensor) for tensor in stored.values()) > container.size:
            raise ValueError("its tensors share their numbers, and are more than the file has")
        if sum(_spanned(tensor) for tensor in stored.values()) > _MAX_SPREAD * container.size:
            raise ValueError("its tensors are spread over the whole file, number by number")
        opened = OpenFile(container.path)
        found = {
            piece.official: _file_tensor(opened, piece, stored[piece.torch]) for piece in pieces
        }
        order = rules.published_order([piece.official for piece in expected])
        origin = {
            "format": self.NAME,
            "wrapper": state.wrapper,
            "values": container.values,
            "companion": companion,
        }
        return Checkpoint(
            container.path, opened, kind, config, {name: found[name] for name in order},
            notes=notes + self._left_out(container, state), origin=origin,
        )  # fmt: skip

    def heads(self, shapes: Mapping[str, Shape], num_heads: int | None) -> tuple[int, list[str]]:
        """Attention heads, and a note if they had to be assumed; 1 where there is no attention."""
        return 1, []

    def _config(
        self, pieces: list[Piece], rows: Rows, shapes: Mapping[str, Shape], heads: int,
        num_codes: int | None,
    ) -> tuple[str, dict]:  # fmt: skip
        official_shapes = {piece.official: piece.official_shape for piece in pieces}
        try:
            return infer.infer_config(official_shapes, heads, num_codes)
        except ValueError as error:
            missing = sorted(n for n, row in rows.items() if not row.optional and n not in shapes)
            extra = [f"{name} {list(shapes[name])}" for name in sorted(shapes.keys() - rows.keys())]
            lists = {"missing": missing, "not known": extra}
            problems = [f"{len(x)} {what}: {abbreviate(x)}" for what, x in lists.items() if x]
            raise ValueError("; ".join([*problems, str(error)])) from None

    def _close_books(
        self, kind: str, official: dict[str, Shape], rows: Rows, shapes: Mapping[str, Shape]
    ) -> None:
        expected = {}
        for name, row in rows.items():
            if all(part in official for part in row.officials):
                part = torch.empty(official[row.officials[0]], device="meta")
                part = row.transform.to_torch(part).shape
                expected[name] = (len(row.officials) * part[0], *part[1:])
        rules.close_books(expected, shapes, f"a {kind} by the names of {self.NAME}")
        covered = {part for row in rows.values() for part in row.officials}
        if uncovered := sorted(official.keys() - covered):
            raise ValueError(f"{self.NAME} has no names for {abbreviate(uncovered)}")

    def _left_out(self, container: Container, state: StateDict) -> list[str]:
        """One note on everything in the file that is not weights of the model."""
        ignored = sorted(state.tensors.keys() - self.model_tensors(state.tensors).keys())
        others = [s for s in container.candidates if s is not state]
        parts = [f"{s.wrapper or 'the top level'} ({len(s.tensors):,} tensors)" for s in others]
        parts += [f"{key} ({what})" for key, what in container.left_out.items()] + state.left_out
        if ignored:
            parts.append(f"{len(ignored)} tensors {abbreviate(ignored)}")
        return [f"left out: {abbreviate(parts, 8)}"] if parts else []

    def can_write(self, kind: str, config: dict) -> bool:
        """Whether it has a name for every tensor of a model."""
        if kind not in self.KINDS:
            return False
        try:
            self.rows_to_write(kind, config)
        except ValueError:
            return False
        return True

    def rows_to_write(self, kind: str, config: dict) -> Rows:
        """The rows of all tensors of a model, in order.

        Raises:
          ValueError: the format has no names for some of them.
        """
        if kind not in self.KINDS:
            raise ValueError(f"{self.NAME} holds {' or '.join(self.KINDS)}, not a {kind}")
        officials = {piece.official for piece in rules.target(kind, config)[1]}
        rows = {
            name: row
            for name, row in self.rows_of_model(kind, config).items()
            if officials.issuperset(row.officials)
        }
        covered = {part for row in rows.values() for part in row.officials}
        if uncovered := sorted(officials - covered):
            raise ValueError(
                f"{self.NAME} cannot hold this {kind}: no names for {abbreviate(uncovered)}"
            )
        return rows

    def write(
        self,
        source: Checkpoint,
        output: Path,
        dtype: str | None,
        observe: Observe,
        safetensors: bool = False,
    ) -> Path:
        """Writes a file, or a folder with its other files.

        Args:
          source: what to write.
          output: the file or folder.
          dtype: convert to this; None: as stored.
          observe: called with the official name and the converted tensor, for each.
          safetensors: a file of that layout in place of PyTorch's.

        Returns:
          The file that holds the weights.

        Raises:
          ValueError: the format has no names for this model.
        """
        rows = self.rows_to_write(source.kind, source.config)
        if self.IS_FOLDER:
            output.mkdir()
            for name, data in self.companions(source).items():
                (output / name).write_bytes(data)
            output = output / ("model.safetensors" if safetensors else self.WEIGHTS_NAME)
        tensors = _Tensors(source, rows, dtype, observe)
        if safetensors:
            _write_safetensors(output, tensors)
            return output
        same = source.origin.get("format") == self.NAME
        wrapper = source.origin["wrapper"] if same else self.WRAPPERS[0]
        values = source.origin.get("values", {}) if same else {}
        state = {name: tensors.read(name) for name in rows}
        if not self.FLAX_MEMORY:
            for name in state:
                state[name] = state[name].contiguous()
        with open(output, "xb") as file:  # by path, PyTorch would write the temporary name into it
            torch.save(self.wrap(state, wrapper, values), file)
        return output


class _Tensors:
    """The foreign tensors of a source, made one at a time."""

    def __init__(self, source: Checkpoint, rows: Rows, dtype: str | None, observe: Observe):
        self.source, self.rows, self.observe = source, rows, observe
        self.buffer = Buffer()
        self.dtypes: dict[str, str] = {}
        for name, row in rows.items():
            found = {dtype or source.tensors[part].dtype for part in row.officials}
            if len(found) > 1:
                raise ValueError(
                    f"what goes into {name} is {' and '.join(sorted(found))}; --dtype makes them equal"
                )
            self.dtypes[name] = found.pop()

    def read(self, name: str) -> Tensor:
        """The tensor, with the official order of its numbers in memory where it is not stacked."""
        row, dtype = self.rows[name], dtypes.torch_dtype(self.dtypes[name])
        parts = []
        for official in row.officials:
            part = self.source.tensors[official].read(self.buffer)
            part = part.contiguous().to(dtype, copy=True)
            self.observe(official, part)
            parts.append(row.transform.to_torch(part))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def shape(self, name: str) -> Shape:
        parts = [
            self.rows[name].transform.to_torch(
                torch.empty(self.source.tensors[part].shape, device="meta")
            )
            for part in self.rows[name].officials
        ]
        return (sum(part.shape[0] for part in parts), *parts[0].shape[1:])


def _write_safetensors(path: Path, tensors: _Tensors) -> None:
    layout = {name: (tensors.dtypes[name], tensors.shape(name)) for name in tensors.rows}
    with open(path, "xb") as file:
        file.write(safetensors_file.header(layout, {"format": "pt"}))
        for name in tensors.rows:
            file.write(as_bytes(tensors.read(name).contiguous()))


def _pieces(rows: Rows, shapes: Mapping[str, Shape], heads: int) -> list[Piece]:
    pieces = []
    for name, shape in shapes.items():
        if name not in rows:
            continue  # named when the books are closed
        row = rows[name]
        for index, official in enumerate(row.officials):
            piece = Piece(official, name, shape, row.transform, index, len(row.officials), heads)
            piece.check()
            pieces.append(piece)
    return pieces


def _bytes(tensor: StoredTensor) -> int:
    return math.prod(tensor.shape) * dtypes.itemsize(tensor.dtype)


def _spanned(tensor: StoredTensor) -> int:
    """Bytes from its first number to its last: what is read of the file."""
    return tensor.span * dtypes.itemsize(tensor.dtype)


def _file_tensor(file: OpenFile, piece: Piece, stored: StoredTensor) -> FileTensor:
    """The official tensor within a foreign one, of any order in memory."""
    size = _spanned(stored)

    def view(numbers: Tensor) -> Tensor:
        return piece.to_official(numbers.as_strided(stored.shape, stored.stride))

    parts = ((stored.offset, size),)
    return FileTensor(file, stored.dtype, piece.official_shape, (stored.span,), parts, view)


def numbers(pattern: re.Pattern, names: Iterable[str]) -> list[int]:
    """How many different values each group of a pattern of names takes: [levels, blocks].

    Raises:
      ValueError: more than any model has.
    """
    found: list[set[int]] = [set() for _ in range(pattern.groups)]
    for name in names:
        if match := pattern.match(name):
            for values, text in zip(found, match.groups(), strict=True):
                values.add(int(text))
    if max((len(values) for values in found), default=0) > infer.MAX_MODULES:
        raise ValueError(f"more than {infer.MAX_MODULES} modules of a kind")
    return [len(values) for values in found]
