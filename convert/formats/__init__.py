"""The formats of weights, one file each: recognised from content, read into a `Checkpoint`.

A format is a module with
  NAME, DESCRIPTION, IS_FOLDER (what `write` makes),
  matches(path, head) -> bool,
  open_checkpoint(path, num_heads) -> Checkpoint,
  write(source, output, dtype, observe) -> the file that holds the weights;
it holds only a table and its quirks. The tables go through the official names (`rules.py`).
"""

from pathlib import Path
from types import ModuleType

from convert.checkpoint import Checkpoint
from convert.formats import flax, safetensors
from convert.recognise import HEAD_BYTES, describe_stranger

FORMATS: tuple[ModuleType, ...] = (safetensors, flax)  # tried in this order
BY_NAME = {module.NAME: module for module in FORMATS}


def recognise(path: str | Path) -> ModuleType:
    """Returns the format of a file or folder, judged by its content alone.

    Raises:
      FileNotFoundError: there is nothing.
      ValueError: no format fits; one line says what it is instead.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    head = b""
    if path.is_file():
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    elif not path.is_dir():
        raise ValueError(f"{path} is neither a file nor a folder")
    stranger = describe_stranger(path, head)
    if stranger is None:
        for module in FORMATS:
            if module.matches(path, head):
                return module
        begins = f", it begins with {head[:12]!r}" if head else ""
        stranger = f"is of no known format{begins}"
    accepted = "; ".join(module.DESCRIPTION for module in FORMATS)
    raise ValueError(f"{path} {stranger}; accepted: {accepted}")


def open_checkpoint(path: str | Path, num_heads: int | None = None) -> Checkpoint:
    """Opens weights of any format; use the result as a context manager.

    Args:
      path: file or folder.
      num_heads: attention heads of the transformer, for formats that do not store it.

    Raises:
      FileNotFoundError, ValueError: one line that begins with the path.
    """
    module = recognise(path)
    try:
        return module.open_checkpoint(Path(path), num_heads)
    except ValueError as error:
        raise ValueError(f"{path}: not a usable {module.NAME} checkpoint: {error}") from None
