"""Which format a file or folder is of, told from its content; and opening it.

The names of the tensors decide between the formats: the one that explains most of them (`likeness`), if
that is half of them or more.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from convert import infer, rules
from convert.checkpoint import Checkpoint, Given, MissingWeights
from convert.files import torch_file
from convert.files.archive import is_archive
from convert.files.pickle_names import Refused
from convert.files.strangers import describe_stranger, is_pickle
from convert.formats import FORMATS, packings
from convert.formats.container import Container
from convert.formats.folders import unpack_weights, weights_of
from convert.formats.format import Format
from convert.formats.relatives import describe_relative, describe_relative_folder
from convert.formats.state_dicts import StateDict, is_averaged
from convert.rules import abbreviate
from maskgit_pt import hub, layouts

_ENOUGH = 0.5  # likeness


@dataclass(frozen=True)
class Recognised:
    """What a path is.

    Attributes:
      format: one of `FORMATS`.
      path: the file or folder.
      container: what is in the file.
      state: which tensors of it.
      notes: how it was chosen.
    """

    format: Format
    path: Path
    container: Container
    state: StateDict
    notes: tuple[str, ...] = ()

    def open(self, given: Given = Given()) -> Checkpoint:  # noqa: B008 - it is frozen
        """Opens the weights.

        Raises:
          ValueError: one line that begins with the path.
        """
        with _outside(self.container), _named(self.path, self.format.NAME):
            found = self.format.open(self.container, self.state, given)
            found.notes += self.notes
            found.given = given
            infer.note_pixels(found.model_type, found.config, self.path.name, None)
            return found

    @property
    def layout(self) -> str:
        """How the weights are packed, and under which key they stand."""
        under = f", under {self.state.wrapper!r}" if self.state.wrapper else ""
        return f"{self.container.layout} layout{under}"


def open_checkpoint(
    path: str | Path,
    num_heads: int | None = None,
    num_codes: int | None = None,
    weights: str | None = None,
) -> Checkpoint:
    """Opens weights of any format.

    Args:
      path: file or folder.
      num_heads: attention heads of the transformer, for formats that do not store it.
      num_codes: codes of the tokenizer, for transformers that do not tell.
      weights: "ema" or "raw", for files that hold both.

    Raises:
      FileNotFoundError, ValueError: one line that begins with the path.
    """
    given = Given(num_heads, num_codes, weights)
    return recognise(path, weights).open(given)


def reopen(form: Format, path: Path, given: Given) -> Checkpoint:
    """Opens a file or folder that is known to be of a format: what was just written."""
    opened = _open(path)
    return form.open(opened, opened.candidates[0], given)


def writers(model_type: str, config: dict) -> list[str]:
    """Names of the formats that can hold a model, or the one that it holds frozen, to be read again."""
    return _able(model_type, config, reads=True)


def exporters(model_type: str, config: dict) -> list[str]:
    """Names of the formats that run a model, or the one that it holds frozen, and are not read again."""
    return _able(model_type, config, reads=False)


def _able(model_type: str, config: dict, reads: bool) -> list[str]:
    models = [(model_type, config), rules.frozen_part(model_type, config)]
    forms = [form for form in FORMATS if form.READS == reads]
    return [f.NAME for f in forms if any(f.can_write(*model) for model in models if model)]


def recognise(path: str | Path, weights: str | None = None) -> Recognised:
    """Tells the format of a file or folder by its content alone.

    Args:
      path: file or folder, or a hub id; see `hub.locate`.
      weights: "ema" or "raw", for files that hold both.

    Raises:
      FileNotFoundError: there is nothing.
      ValueError: no format fits; one line says what it is instead, or what comes closest.
    """
    path = hub.locate(path) if hub.is_id(path) else Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder")
    opened = _open(path, weights)
    if not opened.candidates:
        raise ValueError(f"{path}: holds no tensors")
    for state in opened.candidates:
        if what := describe_relative(state.tensors):
            raise ValueError(f"{path} {what}")
    with _outside(opened), _named(path, opened.packing):
        likenesses = [
            (form.likeness(state, opened), state, form)
            for state in _wanted(opened, weights)
            for form in FORMATS
            if form.READS
        ]
    # Of several sets that are alike (weights and their moving average): the one under the usual key.
    best, state, form = max(
        likenesses, key=lambda e: (e[0], e[1].wrapper in e[2].WRAPPERS, not e[1].averaged)
    )
    if best < _ENOUGH:
        raise ValueError(
            f"{path}: {_describe_unknown(opened, likenesses)}; accepted: {packings.ACCEPTED}"
        )
    notes = [_other_set(other, state) for p, other, f in likenesses if f is form and p >= best]
    return Recognised(form, path, opened, state, tuple(filter(None, notes)))


def _wanted(opened: Container, weights: str | None) -> list[StateDict]:
    if weights is None:
        return opened.candidates
    states = opened.candidates
    by_folder = opened.averaged and not any(state.averaged for state in states)
    wanted = [state for state in states if (by_folder or state.averaged) == (weights == "ema")]
    if not wanted:
        held = ", ".join(state.wrapper or "the top level" for state in opened.candidates)
        kind = "averaged" if weights == "ema" else "raw"
        raise MissingWeights(f"has no {kind} weights (--weights={weights}); it has {held}")
    return wanted


def _other_set(other: StateDict, chosen: StateDict) -> str | None:
    if other.averaged == chosen.averaged:
        return None
    names = {True: "averaged", False: "raw"}
    flag = "ema" if other.averaged else "raw"
    return (
        f"took the {names[chosen.averaged]} weights ({chosen.wrapper or 'the top level'}); --weights={flag} "
        f"takes the {names[other.averaged]} ones ({other.wrapper or 'the top level'})"
    )


def _open(path: Path, weights: str | None = None, unpacked: bool = False) -> Container:
    if known := layouts.describe(path):
        raise ValueError(f"{path} {known}")
    if path.is_dir() and (what := describe_relative_folder(path)):
        raise ValueError(f"{path} {what}")
    try:
        file = weights_of(path, weights) if path.is_dir() else path
    except MissingWeights as error:
        raise MissingWeights(f"{path}: {error}") from None
    head = packings.first_bytes(file)
    if is_archive(file, head) and not torch_file.is_torch_file(file, head):
        if unpacked:
            raise ValueError(f"{file} is a zip archive in an archive: unpack the outer one first")
        return _open_archive(file, weights)
    packing = packings.packing_of(file)
    if packing in (None, packings.FLAX):
        _refuse_hostile_pickle(path, file, head)
    if packing is None:
        what = describe_stranger(file, head)
        what = what or f"is of no known format, it begins with {head[:12]!r}"
        raise ValueError(f"{path} {what}; accepted: {packings.ACCEPTED}")
    with _named(path, packing.name):
        opened = packing.open(file)
    opened.folder = path if path.is_dir() else None
    opened.averaged = path.is_dir() and is_averaged(file.parent.name)
    return opened


def _open_archive(path: Path, weights: str | None) -> Container:
    """Opens the weights in a zip archive as those of a folder."""
    with _named(path, "zip"):
        folder, name, others = unpack_weights(path, weights)
    try:
        opened = _open(Path(folder.name), unpacked=True)
    except ValueError as error:  # it names files that nobody sees
        inner = f"{path}, {name}" if name != "." else str(path)
        raise ValueError(str(error).replace(folder.name, inner)) from None
    opened.archive, opened.unpacked = path, folder
    opened.averaged = is_averaged(PurePosixPath(name).name)
    opened.layout = f"zip archive ({name}), {opened.layout}"
    opened.left_out |= dict.fromkeys(others, "other weights in the archive")
    return opened


def _refuse_hostile_pickle(path: Path, file: Path, head: bytes) -> None:
    """A bare pickle is no checkpoint; one that tries to act is worth a warning."""
    if is_pickle(head) and (names := torch_file.suspicious_names(file)):
        listed = abbreviate([name.in_full for name in names])
        raise ValueError(
            f"{path}: not read: its pickle tries to run {listed}; nothing of it was run"
        )


def _describe_unknown(opened: Container, likenesses: list[tuple[float, StateDict, Format]]) -> str:
    """What was recognised in a file, and which formats come closest."""
    state = max(opened.candidates, key=lambda state: len(state.tensors))
    names = [f"{name} {list(tensor.shape)}" for name, tensor in state.tensors.items()]
    where = f" under {state.wrapper}" if state.wrapper else ""
    close: dict[str, float] = {}
    for likeness, _, form in sorted(likenesses, key=lambda entry: -entry[0]):
        if likeness > 0:
            close.setdefault(form.NAME, likeness)
    closest = ", ".join(f"{name} ({100 * part:.0f} % of the names)" for name, part in close.items())
    return (
        f"neither transformer nor tokenizer of a known format: a file in {opened.layout} layout with "
        f"{len(names)} tensors{where} ({abbreviate(names)}); closest: {closest or 'none'}"
    )


@contextlib.contextmanager
def _outside(container: Container) -> Iterator[None]:
    """Names the archive in place of the folder into which it was unpacked."""
    try:
        yield
    except ValueError as error:
        if container.unpacked is None:
            raise
        text = str(error).replace(container.unpacked.name, str(container.archive))
        raise ValueError(text) from None


@contextlib.contextmanager
def _named(path: Path, name: str) -> Iterator[None]:
    """Puts the path before what is wrong with a file."""
    try:
        yield
    except Refused as error:
        raise ValueError(f"{path}: not read: {error}; nothing of it was run") from None
    except MissingWeights as error:
        raise MissingWeights(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a usable {name} checkpoint: {error}") from None
