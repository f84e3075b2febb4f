"""The formats of weights, one file each: recognised from content, read into a `Checkpoint`.

A format is a module or object with
  NAME, DESCRIPTION, HOLDS, IS_FOLDER (what `write` makes), KEEPS_ORDER (of the official tensors),
  KINDS (what it can hold), can_write(kind, config) -> bool,
  write(source, output, dtype, observe) -> the file that holds the weights;
it holds only a table and its quirks. The tables go through the official names (`rules.py`).

Whose names the tensors of a file have decides between the formats that share a container: the one
that explains most of them (`likeness`), if that is half of them or more.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.files import torch_file
from convert.files.pickles import Refused
from convert.files.strangers import HEAD_BYTES, describe_stranger, is_pickle
from convert.formats import besnier, flax, hmorimitsu, mage, maskbit, open_muse, safetensors, taming
from convert.formats import container as containers
from convert.formats import titok as titok_format
from convert.formats.container import Container, StateDict
from convert.formats.foreign import ForeignFormat
from convert.rules import FROM_PYTORCH, abbreviate

FOREIGN: tuple[ForeignFormat, ...] = (
    hmorimitsu.FORMAT,
    open_muse.FORMAT,
    titok_format.FORMAT,
    maskbit.FORMAT,
    mage.FORMAT,
    besnier.FORMAT,
    taming.FORMAT,
)
FORMATS: tuple[Any, ...] = (safetensors, flax, *FOREIGN)
BY_NAME = {format.NAME: format for format in FORMATS}
ACCEPTED = (
    "folders with config.json and model.safetensors, .safetensors files, Google's Flax files, "
    "PyTorch files of hmorimitsu, open-muse, TiTok, MaskBit, MAGE, Besnier & Chen, taming "
    "(maskgit-convert --list)"
)
_ENOUGH = 0.5  # likeness


@dataclass(frozen=True)
class Recognised:
    """What a path is.

    Attributes:
      format: one of `FORMATS`.
      path: the file, or the folder for our own.
      container, state: of a foreign file: what is in it, and which tensors of it.
    """

    format: Any
    path: Path
    container: Container | None = None
    state: StateDict | None = None


def recognise(path: str | Path) -> Recognised:
    """Tells the format of a file or folder by its content alone.

    Raises:
      FileNotFoundError: there is nothing.
      ValueError: no format fits; one line says what it is instead, or what comes closest.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    file, folder = path, None
    if path.is_dir():
        file, folder = _weights_of(path), path
    elif not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder")
    with open(file, "rb") as opened:
        head = opened.read(HEAD_BYTES)
    if containers.is_safetensors(head):
        return _whose(path, safetensors.NAME, containers.open_safetensors, file, folder)
    if torch_file.is_torch_file(file, head):
        return _whose(path, "PyTorch", containers.open_torch, file, folder)
    _refuse_hostile_pickle(path, head)
    stranger = describe_stranger(path, head)
    if stranger is None and flax.matches(path, head):
        return Recognised(flax, path)
    if stranger is None:
        stranger = f"is of no known format, it begins with {head[:12]!r}"
    raise ValueError(f"{path} {stranger}; accepted: {ACCEPTED}")


def _weights_of(folder: Path) -> Path:
    files = containers.find_weights(folder)
    if len(files) == 1:
        return files[0]
    if shards := [file.name for file in files if containers.is_shard(file)]:
        raise ValueError(
            f"{folder} holds weights cut into shards ({abbreviate(shards)}); accepted: one file "
            "(save_pretrained with a larger max_shard_size makes one)"
        )
    if files:
        names = abbreviate([str(file.relative_to(folder)) for file in files])
        raise ValueError(f"{folder} holds weights in {len(files)} files, name one of them: {names}")
    raise ValueError(f"{folder} {describe_stranger(folder, b'')}; accepted: {ACCEPTED}")


def _refuse_hostile_pickle(path: Path, head: bytes) -> None:
    """A bare pickle is no checkpoint; one that tries to act is worth a warning."""
    if path.is_file() and is_pickle(head):
        try:
            torch_file.read_pickle(path)
        except Refused as error:
            raise ValueError(f"{path}: not read: {error}; nothing of it was run") from None
        except ValueError:
            pass  # damaged; what it is is said by the caller


def _whose(path: Path, packed: str, opener: Any, file: Path, folder: Path | None) -> Recognised:
    try:
        container = opener(file)
        container.folder = folder
        likenesses = [
            (form.likeness(state, container), state, form)
            for state in container.candidates
            for form in FOREIGN
        ]
    except Refused as error:
        raise ValueError(f"{path}: not read: {error}; nothing of it was run") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a usable {packed} checkpoint: {error}") from None
    ours = max(safetensors.likeness(state.tensors) for state in container.candidates)
    # Of several sets that are alike (weights and their moving average): the one under the usual key.
    best, state, form = max(likenesses, key=lambda e: (e[0], e[1].wrapper in e[2].WRAPPERS))
    if packed == safetensors.NAME and (ours and ours >= best or _is_ours(form, best, state)):
        return Recognised(safetensors, path)
    if best >= _ENOUGH:
        return Recognised(form, path, container, state)
    if packed == safetensors.NAME and ours:
        return Recognised(safetensors, path)
    raise ValueError(f"{path}: {_describe_unknown(container, likenesses)}; accepted: {ACCEPTED}")


def _is_ours(form: ForeignFormat, likeness: float, state: StateDict) -> bool:
    """Whether a safetensors file under foreign names may be one of ours, whose names are the same."""
    whole = len(form.model_tensors(state.tensors)) == len(state.tensors)
    return likeness >= _ENOUGH and whole and form.KINDS[0] in FROM_PYTORCH


def _describe_unknown(container: Container, likenesses: list) -> str:
    """What was recognised in a file, and which formats come closest."""
    state = max(container.candidates, key=lambda state: len(state.tensors))
    names = [f"{name} {list(tensor.shape)}" for name, tensor in state.tensors.items()]
    where = f" under {state.wrapper}" if state.wrapper else ""
    close: dict[str, float] = {}
    for likeness, _, form in sorted(likenesses, key=lambda entry: -entry[0]):
        if likeness > 0:
            close.setdefault(form.NAME, likeness)
    closest = ", ".join(f"{name} ({100 * part:.0f} % of the names)" for name, part in close.items())
    return (
        f"neither transformer nor tokenizer of a known format: a file in {container.layout} layout with "
        f"{len(names)} tensors{where} ({abbreviate(names)}); closest: {closest or 'none'}"
    )


def open_checkpoint(
    path: str | Path, num_heads: int | None = None, num_codes: int | None = None
) -> Checkpoint:
    """Opens weights of any format; use the result as a context manager.

    Args:
      path: file or folder.
      num_heads: attention heads of the transformer, for formats that do not store it.
      num_codes: codes of the tokenizer, for transformers that do not tell.

    Raises:
      FileNotFoundError, ValueError: one line that begins with the path.
    """
    return open_recognised(recognise(path), num_heads, num_codes)


def open_recognised(
    found: Recognised, num_heads: int | None = None, num_codes: int | None = None
) -> Checkpoint:
    """`open_checkpoint` of what `recognise` gave."""
    with _named(found.path, found.format.NAME):
        if found.container is None:
            return found.format.open_checkpoint(found.path, num_heads, num_codes)
        return found.format.open_state(found.container, found.state, num_heads, num_codes)


def open_as(
    format: Any, path: Path, num_heads: int | None = None, num_codes: int | None = None
) -> Checkpoint:
    """Opens a file or folder that is known to be of a format: what was just written."""
    if not isinstance(format, ForeignFormat):
        return format.open_checkpoint(path, num_heads, num_codes)
    file = _weights_of(path) if path.is_dir() else path
    with open(file, "rb") as opened:
        safe = containers.is_safetensors(opened.read(HEAD_BYTES))
    container = containers.open_safetensors(file) if safe else containers.open_torch(file)
    container.folder = path if path.is_dir() else None
    return format.open_state(container, container.candidates[0], num_heads, num_codes)


def writers(kind: str, config: dict) -> list[str]:
    """Names of the formats that can hold a model."""
    return [form.NAME for form in FORMATS if form.can_write(kind, config)]


@contextlib.contextmanager
def _named(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: not a usable {name} checkpoint: {error}") from None
