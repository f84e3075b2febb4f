"""`Format`: what a project calls the tensors of a model; recognising, opening and writing its files.

To add a format, write one file here with a subclass of `Format` and put an object of it into the list
`FORMATS` of `formats/__init__.py`. Every class attribute and method of `Format` has a default; a format
overrides what is different:

- `NAME`, `DESCRIPTION`, `HOLDS`, `MODEL_TYPES`: for `--to`, `--list` and messages;
- `rows_of_file(shapes, stated)`: the table, for as many layers or levels as the names in a file show;
- `rows_of_model(model_type, config)`: the table of a model, in the order in which it is written;
- `heads`, `read_companion`, `stated_config`, `companions`, `wrap`, `IGNORED`: quirks.

A table (`rules.Rows`) maps each tensor of the format to official tensors (several where stacked) and a
named transform of `tables`. It never looks at the numbers. That every row is filled and every tensor is
used is checked afterwards. A format that is only written (`READS = False`) overrides `write`,
`rows_to_write` and `try_out`. A network that `maskgit_pt` has under the project's own names needs an entry in
`rules.MODEL_CLASSES` and `rules.FROM_PYTORCH` and one in `signatures.SIGNATURES`; its rows are `own_rows`.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from convert import infer, rules, signatures
from convert.checkpoint import Checkpoint, Given
from convert.files import dtypes, safetensors_file
from convert.files.tensors import Shape
from convert.formats.container import Container
from convert.formats.state_dicts import StateDict
from convert.rows import Observe, Outgoing, Rows
from convert.rules import Piece, abbreviate
from maskgit_pt.pretrained import ABOUT

_MAX_SPREAD = 64  # times the file: slices of fused tensors have gaps


class Format:
    """A format of weights.

    Attributes:
      NAME: for `--to`.
      DESCRIPTION: which files these are.
      HOLDS: what is in them; for `--list`.
      MODEL_TYPES: the types of models it can hold.
      IS_FOLDER: whether `write` makes a folder.
      WHOLE_FOLDER: whether that folder is one thing, with which nothing can be merged.
      PACKINGS: what it can be packed as, the usual one first; see `Container.packing`.
      READS: whether it can be read.
      DTYPES: what it can be written in.
      KEEPS_ORDER: whether the official order of the tensors survives.
      KEEPS_CONFIG: whether what weights do not show survives (`infer.visible`).
      WRAPPERS: keys that the tensors stand under in known files, None for bare ones; the first is
        written where the source does not tell.
      WEIGHTS_NAME: the file in the folder, for a folder.
      IGNORED: names of tensors that are no part of the model.
      FLAX_MEMORY: whether transposed tensors are written as views of numbers in Flax order.
    """

    NAME: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    HOLDS: ClassVar[str]
    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("maskgit_vqvae",)
    IS_FOLDER: ClassVar[bool] = False
    WHOLE_FOLDER: ClassVar[bool] = False
    PACKINGS: ClassVar[tuple[str, ...]] = ("PyTorch", "safetensors")
    READS: ClassVar[bool] = True
    DTYPES: ClassVar[tuple[str, ...]] = dtypes.FLOATS
    KEEPS_ORDER: ClassVar[bool] = False
    KEEPS_CONFIG: ClassVar[bool] = False
    WRAPPERS: ClassVar[tuple[str | None, ...]] = (None,)
    WEIGHTS_NAME: ClassVar[str] = ""
    IGNORED: ClassVar[re.Pattern | None] = None
    FLAX_MEMORY: ClassVar[bool] = False

    # The tables.

    def rows_of_file(self, shapes: Mapping[str, Shape], stated: dict) -> Rows:
        """The rows for as many layers or levels as the names in a file show.

        Args:
          shapes: tensor -> shape.
          stated: the configuration that came with the file, in our terms; {} if there is none.
        """
        raise NotImplementedError

    def rows_of_model(self, model_type: str, config: dict) -> Rows:
        """The rows of a model, in the order in which they are written; ValueError: cannot be."""
        raise NotImplementedError

    def published_rows(self) -> Rows:
        """The rows of the published model, to compare files with whose sizes cannot be told."""
        return {}

    # Recognising.

    def model_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those that are no part of the model left out."""
        ignored = self.IGNORED
        return {n: t for n, t in tensors.items() if not (ignored and ignored.match(n))}

    def likeness(self, state: StateDict, container: Container) -> float:
        """How much a file is like this format: shared names as a part of all names, 0 to 1."""
        shapes = _shapes(self.model_tensors(state.tensors))
        try:
            rows = self.rows_of_file(shapes, {})
        except ValueError:
            rows = self.published_rows()
        required = {name for name, row in rows.items() if not row.optional}
        shared = len(shapes.keys() & rows.keys())
        return shared / max(len(shapes.keys() | required), 1)

    # Opening.

    def read_companion(self, container: Container) -> tuple[str, dict]:
        """Name and content of the configuration that comes with the file; {} if there is none."""
        return "", {}

    def stated_config(self, companion: dict) -> dict:
        """That configuration in our terms."""
        return {}

    def heads(
        self, shapes: Mapping[str, Shape], stated: dict, given: Given
    ) -> tuple[int, list[str]]:
        """Attention heads, and a note if they had to be assumed; 1 where nothing depends on them."""
        return 1, []

    def official_layout(
        self, container: Container, tensors: Mapping[str, Tensor]
    ) -> tuple[list[str], dict[str, tuple[int, ...]]]:
        """The official order of the tensors, and `Checkpoint.chunks`."""
        return rules.published_order(tensors), {}

    def origin(self, container: Container, state: StateDict, companion: dict) -> dict:
        """`Checkpoint.origin`."""
        return {
            "format": self.NAME,
            "wrapper": state.wrapper,
            "values": container.values,
            "companion": companion,
        }

    def open(self, container: Container, state: StateDict, given: Given) -> Checkpoint:
        """Reads a file that is of this format.

        Raises:
          ValueError: it is not; names what is missing, extra or misshapen.
        """
        stored = self.model_tensors(state.tensors)
        shapes = _shapes(stored)
        _check_dtypes(stored)
        stated_in, companion = self.read_companion(container)
        stated = self.stated_config(companion)
        heads, notes = self.heads(shapes, stated, given)
        rows = self.rows_of_file(shapes, stated)
        pieces = rules.pieces_of(rows, shapes, heads)
        model_type, config = self._config(pieces, rows, shapes, heads, given)
        config = infer.merge_config(model_type, config, stated, stated_in)
        config = rules.target(model_type, config)[2]
        self._close_books(model_type, config, shapes)
        _check_given(config, given)
        if not container.compressed:
            _check_extent(stored, container)
        found = {piece.official: piece.to_official(stored[piece.torch]) for piece in pieces}
        order, chunks = self.official_layout(container, found)
        return Checkpoint(
            container.source,
            model_type,
            config,
            {name: found[name] for name in order},
            chunks,
            notes + self._left_out(container, state),
            self.origin(container, state, companion),
            container.release,
        )

    def _config(
        self, pieces: list[Piece], rows: Rows, shapes: Mapping[str, Shape], heads: int, given: Given
    ) -> tuple[str, dict]:
        official_shapes = {piece.official: piece.official_shape for piece in pieces}
        try:
            return infer.infer_config(official_shapes, heads, given.num_codes)
        except ValueError as error:
            missing = sorted(n for n, row in rows.items() if not row.optional and n not in shapes)
            extra = [f"{name} {list(shapes[name])}" for name in sorted(shapes.keys() - rows.keys())]
            lists = {"missing": missing, "not known": extra}
            problems = [f"{len(x)} {what}: {abbreviate(x)}" for what, x in lists.items() if x]
            raise ValueError("; ".join([*problems, str(error)])) from None

    def _close_books(self, model_type: str, config: dict, shapes: Mapping[str, Shape]) -> None:
        official = {p.official: p.official_shape for p in rules.target(model_type, config)[1]}
        rows = self.rows_to_write(model_type, config)
        expected = {name: row.shape(official) for name, row in rows.items()}
        rules.close_books(expected, shapes, f"a {model_type} by the names of {self.NAME}")

    def _left_out(self, container: Container, state: StateDict) -> list[str]:
        """One note on everything in the file that is not weights of the model."""
        ignored = sorted(state.tensors.keys() - self.model_tensors(state.tensors).keys())
        others = [s for s in container.candidates if s is not state]
        parts = [f"{s.wrapper or 'the top level'} ({len(s.tensors):,} tensors)" for s in others]
        parts += [f"{key} ({what})" for key, what in container.left_out.items()] + state.left_out
        if ignored:
            parts.append(f"{len(ignored)} tensors {abbreviate(ignored)}")
        return [f"left out: {abbreviate(parts, 8)}"] if parts else []

    # Writing.

    def can_write(self, model_type: str, config: dict) -> bool:
        """Whether it has a name for every tensor of a model."""
        try:
            self.rows_to_write(model_type, config)
        except ValueError:
            return False
        return True

    def rows_to_write(self, model_type: str, config: dict) -> Rows:
        """The rows of all tensors of a model, in order.

        Raises:
          ValueError: the format has no names for some of them.
        """
        if model_type not in self.MODEL_TYPES:
            raise ValueError(
                f"{self.NAME} holds {' or '.join(self.MODEL_TYPES)}, not a {model_type}"
            )
        officials = {piece.official for piece in rules.target(model_type, config)[1]}
        rows = {
            name: row
            for name, row in self.rows_of_model(model_type, config).items()
            if officials.issuperset(row.officials)
        }
        covered = {part for row in rows.values() for part in row.officials}
        if uncovered := sorted(officials - covered):
            raise ValueError(
                f"{self.NAME} cannot hold this {model_type}: no names for {abbreviate(uncovered)}"
            )
        return rows

    def uses(self, source: Checkpoint) -> tuple[str, ...]:
        """Fields of `Given` that it writes, though the model's configuration has no place for them."""
        return ()

    def marks(self, source: Checkpoint) -> list[str]:
        """What its files will not tell, or will seem to tell, about whose weights these are."""
        weights = source.config.get("vqvae", {}).get("weights")
        marks = []
        if weights and not self.KEEPS_CONFIG:
            marks.append(f"these are weights of {weights}; files of {self.NAME} cannot say so")
        if (groups := source.config.get("vqvae", {}).get("norm_groups")) and not self.KEEPS_CONFIG:
            marks.append(
                f"files of {self.NAME} cannot say that the norms have {groups} groups; other code expects 32"
            )
        about = [name for name in ABOUT if source.config.get(name) is not None]
        if about and source.model_type != "maskgit_discriminator" and not self.KEEPS_CONFIG:
            marks.append(f"files of {self.NAME} have no place for {', '.join(about)}: left out")
        return marks

    def written_dtype(self, source: Checkpoint, dtype: str | None) -> str:
        """The dtype of what is written, if `dtype` is asked for."""
        return dtype or source.dtype

    def try_out(self, source: Checkpoint, written: Path, dtype: str | None) -> str:
        """Checks what was written in a format that is not read, and says how; ValueError: it is wrong."""
        raise NotImplementedError

    def companions(self, source: Checkpoint) -> dict[str, bytes]:
        """The other files of the folder to write."""
        return {}

    def card(self, checkpoint: Checkpoint, **about: Any) -> dict[str, bytes]:
        """Files of the folder that say where the weights come from; see `model_card`."""
        return {}

    def wrap(self, state: dict[str, Tensor], wrapper: str | None, values: dict) -> Any:
        """What `torch.save` gets."""
        state = OrderedDict(state)
        return state if wrapper is None else values | {wrapper: state}

    def metadata(self, source: Checkpoint) -> dict[str, str]:
        """The metadata of a safetensors file."""
        return {"format": "pt"}

    def write(
        self,
        source: Checkpoint,
        output: Path,
        dtype: str | None,
        observe: Observe,
        packing: str | None = None,
    ) -> Path:
        """Writes a file, or a folder with its other files.

        Args:
          source: what to write.
          output: the file or folder, not yet there.
          dtype: convert to this; None: as stored.
          observe: called with the official name and the converted tensor, for each.
          packing: one of `PACKINGS`; None: the first.

        Returns:
          The file that holds the weights.

        Raises:
          ValueError: the format has no names for this model, or tensors that become one have
            different dtypes.
        """
        rows = self.rows_to_write(source.model_type, source.config)
        tensors = Outgoing(source.tensors, rows, dtype, observe, source.release)
        packing = packing or self.PACKINGS[0]
        if self.IS_FOLDER and not self.WHOLE_FOLDER:
            output.mkdir()
            for name, data in self.companions(source).items():
                (output / name).write_bytes(data)
            output = output / self.weights_name(packing)
        self.pack(source, output, tensors, packing)
        return output

    def weights_name(self, packing: str | None) -> str | None:
        """The file with the weights in a folder; None where there is none, or the folder is one thing."""
        if not self.IS_FOLDER or self.WHOLE_FOLDER:
            return None
        return self.WEIGHTS_NAME if packing in (None, self.PACKINGS[0]) else "model.safetensors"

    def pack(self, source: Checkpoint, path: Path, tensors: Outgoing, packing: str) -> None:
        """Writes the file that holds the weights."""
        if packing == "safetensors":
            safetensors_file.write(path, tensors.layout, tensors.parts, self.metadata(source))
            return
        same = source.origin.get("format") == self.NAME
        wrapper = source.origin["wrapper"] if same else self.WRAPPERS[0]
        values = source.origin.get("values", {}) if same else {}
        make = tensors.tensor_in_official_order if self.FLAX_MEMORY else tensors.tensor
        state = {name: make(name) for name in tensors.rows}
        with open(path, "xb") as file:  # by path, PyTorch would write the temporary name into it
            torch.save(self.wrap(state, wrapper, values), file)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check_dtypes(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        dtype = dtypes.name_of_torch(tensor.dtype)
        if dtype not in dtypes.FLOATS and not name.endswith("." + rules.TORCH_ONLY):
            accepted = ", ".join(dtypes.FLOATS)
            raise ValueError(f"tensor {name} is {dtype}; accepted for weights: {accepted}")


def _check_given(config: dict, given: Given) -> None:
    for name, value in (("num_attention_heads", given.num_heads), ("num_codes", given.num_codes)):
        what = name.removeprefix("num_").replace("_", " ")
        if value is not None and config.get(name, value) != value:
            raise ValueError(f"has {config[name]} {what}, not {value}")


def _check_extent(tensors: Mapping[str, Tensor], container: Container) -> None:
    """Small files can claim large tensors: by sharing numbers, or by taking few out of many."""
    if sum(tensor.nbytes for tensor in tensors.values()) > container.size:
        raise ValueError("its tensors share their numbers, and are more than the file has")
    if sum(_spanned(tensor) for tensor in tensors.values()) > _MAX_SPREAD * container.size:
        raise ValueError("its tensors are spread over the whole file, number by number")


def _spanned(tensor: Tensor) -> int:
    """Bytes from its first number to its last: what is read of the file."""
    if not tensor.numel():
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((n - 1) * step for n, step in steps)) * tensor.itemsize


def own_rows(model_type: str, config: dict) -> Rows:
    """The rows of a model that has the project's names in `maskgit_pt` too, and of any PyTorch model."""
    return rules.model_rows(model_type, config)


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
    if max((len(values) for values in found), default=0) > signatures.MAX_MODULES:
        raise ValueError(f"more than {signatures.MAX_MODULES} modules of a kind")
    return [len(values) for values in found]
