"""A foreign file opened, before anybody knows whose names its tensors have."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.files import safetensors_file, torch_file
from convert.files.flax_scanner import printable
from convert.files.pickles import Name, Thing
from convert.files.torch_file import Storage, StoredTensor
from convert.rules import abbreviate

_MAX_CANDIDATES = 16
# What DistributedDataParallel, torch.compile and Lightning modules put before every name.
_PREFIX = re.compile(r"((module|_orig_mod|model)\.)+")
_MAX_VALUES = 64
_MAX_WORD = 256


@dataclass
class StateDict:
    """One of the dictionaries of tensors in a file.

    Attributes:
      wrapper: the key it stands under; None for the file itself.
      tensors: name -> tensor.
      left_out: what else stands between the tensors.
    """

    wrapper: str | None
    tensors: dict[str, StoredTensor]
    left_out: list[str] = field(default_factory=list)


@dataclass
class Container:
    """A file of tensors under somebody's names.

    Attributes:
      path: the file.
      size: in bytes.
      layout: how it is packed; for the user.
      candidates: its dictionaries of tensors.
      values: plain numbers and words beside them: steps, versions.
      left_out: what else there is, by key.
      things: class -> number of objects that nobody looked into.
      metadata: of safetensors.
      folder: the folder that was named instead of the file, else None.
    """

    path: Path
    size: int
    layout: str
    candidates: list[StateDict]
    values: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    things: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None


def open_safetensors(path: Path) -> Container:
    """Raises ValueError: not such a file."""
    entries, metadata = safetensors_file.read_header(path)
    tensors = {
        name: StoredTensor(
            Storage(name, dtype, _product(shape), start), dtype, 0, shape, _row_major(shape)
        )
        for name, (dtype, shape, start) in entries.items()
    }
    size = path.stat().st_size
    return Container(path, size, "safetensors", [StateDict(None, tensors)], metadata=metadata)


def open_torch(path: Path) -> Container:
    """Raises ValueError: see `torch_file.read`; or there are no tensors by name in it."""
    file = torch_file.read(path)
    tree = file.tree.items if isinstance(file.tree, Thing) and file.tree.items else file.tree
    if not isinstance(tree, dict):
        raise ValueError(f"holds {_describe(tree)}, not tensors by name (save its state_dict())")
    layout = "PyTorch" if file.layout == "zip" else "PyTorch, old layout"
    container = Container(path, path.stat().st_size, layout, [], things=file.things)
    tensors = {name: value for name, value in tree.items() if isinstance(value, StoredTensor)}
    if bare := _state_dict(None, tensors):
        container.candidates.append(bare)
    for key, value in tree.items():
        value = value.items if isinstance(value, Thing) and value.items else value
        found = (
            _state_dict(key, value) if isinstance(key, str) and isinstance(value, dict) else None
        )
        if key in tensors:
            pass
        elif found and len(container.candidates) < _MAX_CANDIDATES:
            container.candidates.append(found)
        elif _is_plain(value) and isinstance(key, str) and len(container.values) < _MAX_VALUES:
            container.values[printable(key[:_MAX_WORD])] = value
        else:
            container.left_out[printable(str(key)[:_MAX_WORD])] = _describe(value)
    if not container.candidates:
        others = [f"{key} ({what})" for key, what in container.left_out.items()]
        keys = abbreviate([*others, *container.values])
        raise ValueError(f"holds no tensors by name; it has {keys or 'nothing'}")
    return container


def _state_dict(wrapper: str | None, tree: dict) -> StateDict | None:
    result = StateDict(wrapper, {})
    for name, value in tree.items():
        if isinstance(name, str) and isinstance(value, StoredTensor):
            result.tensors[printable(name)] = value
        else:
            result.left_out.append(printable(str(name)[:_MAX_WORD]))
    prefix = _PREFIX.match(next(iter(result.tensors), ""))
    if prefix and all(name.startswith(prefix[0]) for name in result.tensors):
        result.tensors = {n.removeprefix(prefix[0]): t for n, t in result.tensors.items()}
        result.left_out.append(f"the names' prefix {prefix[0]}")
    return result if result.tensors else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, str) and len(value) < _MAX_WORD and value.isprintable() or isinstance(
        value, bool | float
    )  # fmt: skip


def _describe(value: Any) -> str:
    if isinstance(value, Thing):
        return f"an object of {value.kind}"
    if isinstance(value, Name):
        return f"the name of {value}"
    if isinstance(value, StoredTensor):
        return f"a tensor {list(value.shape)}"
    size = f" of {len(value):,}" if isinstance(value, dict | list | tuple) else ""
    return f"{'an' if isinstance(value, int) else 'a'} {type(value).__name__}{size}"


def find_weights(folder: Path) -> list[Path]:
    """The files of a folder, and of the folders in it, that begin like weights."""
    files = [path for path in entries(folder) if looks_like_weights(path)]
    own = [path for path in files if path.parent == folder]
    safe = [path for path in own if not _is_torch(path)]
    # A repository often has the same weights twice, as safetensors and as a pickle.
    return safe if len(safe) == 1 else own or files


def is_shard(path: Path) -> bool:
    """Whether a file is, by its name, one of the parts that large models are cut into."""
    return re.search(r"-\d{5}-of-\d{5}\.", path.name) is not None


def entries(folder: Path, limit: int = 1000) -> list[Path]:
    """The files of a folder and of the folders in it, sorted; not the hidden ones."""
    found: list[Path] = []
    for path in _visible(folder):
        found += [p for p in _visible(path) if p.is_file()] if path.is_dir() else [path]
        if len(found) > limit:
            break
    return [path for path in found[:limit] if path.is_file()]


def _visible(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def looks_like_weights(path: Path) -> bool:
    """Whether a file begins like safetensors or PyTorch's."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError:
        return False
    return is_safetensors(head) or torch_file.is_torch_file(path, head)


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins so has such a header."""
    return len(head) > 8 and head[8:9] == b"{" and head[6:8] == b"\0\0"


def _is_torch(path: Path) -> bool:
    with open(path, "rb") as file:
        return not is_safetensors(file.read(16))


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
