"""Loading and saving of both nets as a folder: `config.json` and `model.safetensors`.

The Hugging Face hub's convention, so that a folder can be uploaded as it is and loaded by its hub
id.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from maskgit_pt.files import check_destination, file_sha256, write_atomically

CONFIG_NAME = "config.json"
READERS = "maskgit_pt.checkpoint_readers"  # entry points of packages that read other files
WEIGHTS_NAME = "model.safetensors"


class PretrainedMixin:
    """Adds `from_pretrained` and `save_pretrained` to an `nn.Module`.

    The class brings `model_type`, `to_config()` and `from_config(dict)`.
    """

    model_type: str

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
    ) -> Self:
        """Loads a model, in evaluation mode.

        Args:
          folder_or_hub_id: a folder that holds `config.json` and `model.safetensors`, or the id of
            such a repository on the Hugging Face hub ("owner/name").
          device: where to put the weights.
          dtype: convert the weights to this; default: as stored.
          revision: of the hub's repository.

        Raises:
          FileNotFoundError: no such folder or repository, or a file is missing in it.
          ValueError: the configuration or a tensor does not fit this class; every missing, extra or
            misshapen tensor is named.
        """
        folder = find_folder(folder_or_hub_id, revision)
        config_path = folder / CONFIG_NAME
        config = read_config(config_path)
        found = config.pop("model_type", None)
        if found != cls.model_type:
            raise ValueError(
                f"{config_path}: model_type is {found!r}; {cls.__name__} reads {cls.model_type!r}"
                + ("" if found else f" (maskgit-convert --input={folder} makes such a folder)")
            )
        try:
            with without_values():
                model = cls.from_config(config)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{config_path}: not a {cls.__name__} configuration: {error}"
            ) from None
        load_weights(model, folder / WEIGHTS_NAME, device)
        return model.to(dtype=dtype).eval() if dtype else model.eval()

    def save_pretrained(
        self, folder: str | os.PathLike, *, metadata: dict[str, str] | None = None
    ) -> None:
        """Writes `config.json` and `model.safetensors` into `folder`, made if missing.

        Each file is written under a temporary name and then renamed.

        Args:
          folder: where to.
          metadata: strings to store in the header of the weights.

        Raises:
          ValueError, NotADirectoryError: the folder holds something else; see `files.check_destination`.
        """
        import safetensors.torch

        check_destination(folder, self.model_type)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # A model that was moved to channels-last order is stored in plain order.
        state = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        data = safetensors.torch.save(state, {"format": "pt"} | (metadata or {}))
        config = {"model_type": self.model_type} | self.to_config()
        write_atomically(folder / WEIGHTS_NAME, data)
        write_atomically(folder / CONFIG_NAME, (json.dumps(config, indent=2) + "\n").encode())


def load_any(
    path_or_hub_id: str | os.PathLike,
    classes: list[type[PretrainedMixin]],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> PretrainedMixin:
    """Loads whichever of `classes` a folder, a hub id or a checkpoint file holds, in evaluation mode.

    Files (Google's, for example) and folders of other projects are read by the packages that announce a
    reader under the entry point `READERS`: a function from the path to (class name of ours,
    configuration, state dict).

    Raises:
      FileNotFoundError, ValueError: as `PretrainedMixin.from_pretrained`.
    """
    path = Path(path_or_hub_id)
    if not path.is_file() and not _is_foreign(path):
        folder = find_folder(path_or_hub_id)
        found = read_config(folder / CONFIG_NAME).get("model_type")
        for cls in classes:
            if cls.model_type == found:
                return cls.from_pretrained(folder, device=device, dtype=dtype)
    else:
        found, config, state = _reader(path)(path)
        for cls in classes:
            if cls.model_type == found:
                with without_values():
                    model = cls.from_config(config)
                model.load_state_dict(state, assign=True)
                return model.to(device=device, dtype=dtype).eval()
    accepted = ", ".join(repr(cls.model_type) for cls in classes)
    raise ValueError(f"{path_or_hub_id}: model_type is {found!r}; accepted here: {accepted}")


def _reader(path: Path) -> Callable[[Path], tuple[str, dict, dict[str, Tensor]]]:
    """What reads files of other layouts: announced, or in a checkout that is not installed by its name."""
    own = importlib.metadata.EntryPoint("convert", "convert.api:read_model", READERS)
    reader = next(iter(importlib.metadata.entry_points(group=READERS)), own)
    try:
        return reader.load()
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path} is no folder of ours; reading it needs {reader.value}, which cannot be imported "
            f"({error}); install the project (pip install -e .)"
        ) from None


def _is_foreign(folder: Path) -> bool:
    """Whether a folder holds weights that are not laid out as ours."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    config = folder / CONFIG_NAME
    if config.is_file():
        return "model_type" not in read_config(config)
    return not (folder / WEIGHTS_NAME).is_file()


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Models built under this have shapes and no values: for weights that come from a file."""
    with torch.device("meta"), _WithoutInitialValues():
        yield


class _WithoutInitialValues(TorchFunctionMode):
    """Leaves out `nn.init`, which has nothing to set on the meta device.

    `normal_` there would import torch's compiler, which takes two seconds.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


def find_folder(folder_or_hub_id: str | os.PathLike, revision: str | None = None) -> Path:
    """Returns the folder itself, or downloads the hub's repository and returns its local copy."""
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(
            f"{folder} is a file; from_pretrained reads folders with {CONFIG_NAME} and "
            f"{WEIGHTS_NAME} (maskgit-convert --input={folder} --output=FOLDER makes one)"
        )
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(folder_or_hub_id), revision=revision, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME]
            )
        )
    except Exception as error:  # the hub's client raises many kinds, all of which mean this:
        raise FileNotFoundError(
            f"{folder_or_hub_id}: no such folder, and not to be had from the Hugging Face hub "
            f"({type(error).__name__})"
        ) from error


def read_config(path: Path) -> dict:
    """Reads a `config.json`; ValueError if it holds no JSON object."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: missing; a model folder holds {CONFIG_NAME} and {WEIGHTS_NAME}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: holds a JSON {type(config).__name__}; accepted: an object")
    return config


def load_weights(model: nn.Module, path: Path, device: str | torch.device) -> None:
    """Fills `model`, which may be on the meta device, with the tensors of a safetensors file.

    Raises:
      FileNotFoundError, ValueError: see `PretrainedMixin.from_pretrained`.
    """
    import safetensors
    import safetensors.torch

    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: missing; a model folder holds {CONFIG_NAME} and {WEIGHTS_NAME}"
        )
    try:
        state = safetensors.torch.load_file(path, device=str(device))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None
    expected = model.state_dict()
    problems = _mismatches(expected, state)
    if problems:
        raise ValueError(f"{path}: does not fit its {CONFIG_NAME}: {problems}")
    model.load_state_dict(state, assign=True)  # keeps the dtype of the file


def _mismatches(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """Says in one line what is missing, extra or of the wrong shape; empty if nothing is."""
    wrong = [
        f"{name} has shape {list(found[name].shape)} instead of {list(expected[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name].shape != found[name].shape
    ]
    parts = [
        ("missing", sorted(expected.keys() - found.keys())),
        ("extra", sorted(found.keys() - expected.keys())),
        ("misshapen", wrong),
    ]
    return "; ".join(f"{what} {_abbreviate(names)}" for what, names in parts if names)


def _abbreviate(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def weights_fingerprint(*models: str | os.PathLike) -> str:
    """Hex SHA-256 over the files of networks, each a folder, a file or a hub id.

    Of our folders weights and settings count (weights do not hold the number of heads), of others all files.
    """
    digest = hashlib.sha256()
    for name in models:
        for file in _weight_files(name):
            digest.update(file_sha256(file).encode())
    return digest.hexdigest()


def _weight_files(name: str | os.PathLike) -> list[Path]:
    if Path(name).is_file():
        return [Path(name)]
    folder = find_folder(name)
    places = ("", "transformer", "tokenizer")
    files = [folder / place / name for place in places for name in (WEIGHTS_NAME, CONFIG_NAME)]
    files = [file for file in files if file.is_file()]
    if any(file.name == WEIGHTS_NAME for file in files):
        return files
    return sorted(path for path in folder.rglob("*") if path.is_file())
