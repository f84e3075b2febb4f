"""Loading and saving of both nets as a folder: `config.json` and `model.safetensors`.

The Hugging Face hub's convention, so that a folder can be uploaded as it is and loaded by its hub
id.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from maskgit_pt import hub, layouts
from maskgit_pt.files import check_destination, file_sha256, write_atomically
from maskgit_pt.hub import WEIGHTS_NAME, HubMixin
from maskgit_pt.layouts import CONFIG_NAME

READERS = "maskgit_pt.checkpoint_readers"  # entry points of packages that read other files
_MOST_NAMES, _LONGEST_NAME = 2**16, 200  # of classes; letters


class PretrainedMixin(HubMixin):
    """Adds `from_pretrained`, `save_pretrained` and `push_to_hub` to an `nn.Module`.

    The class brings `model_type`, and its constructor keeps its arguments as the dict `_config`. A class that
    is made from anything else overrides `to_config` and `from_config`.

    Attributes:
      class_names: of a transformer: what its classes are called, one name for each; None: not known, or
        ImageNet's (see `imagenet.classes_of`).
      image_size: the side in pixels of the images that it was trained on; None: not known.
      tokenizer_fingerprint: of a transformer: the SHA-256 of the weights of the tokenizer whose tokens it was
        trained on; None: not known.
    """

    model_type: str
    class_names: list[str] | None = None
    image_size: int | None = None
    tokenizer_fingerprint: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """Loads a model, in evaluation mode; see `load_any`.

        Args:
          source: a folder that holds `config.json` and `model.safetensors`; a folder or file of any format
            that `maskgit-convert` reads; or the id of such on the Hugging Face hub ("owner/name").
          device: where to put the weights.
          dtype: convert the weights to this; default: as stored.
          **options: `num_heads`, `num_codes`, `weights`; `revision`, `token`, `cache_dir`,
            `local_files_only`, `force_download`.

        Raises:
          FileNotFoundError: no such folder or repository, or a file is missing in it.
          ValueError: the configuration or a tensor does not fit this class; every missing, extra or
            misshapen tensor is named.
        """
        return load_any(source, [cls], device=device, dtype=dtype, **options)

    @classmethod
    def _from_folder(
        cls, folder: Path, device: str | torch.device, dtype: torch.dtype | None
    ) -> Self:
        config_path = folder / CONFIG_NAME
        config = read_config(config_path)
        try:
            with without_values():
                model = cls.from_full_config(config)
        except ValueError as error:
            raise ValueError(f"{config_path}: {error}") from None
        except (TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError) as error:
            reason = str(error).partition("\n")[0]  # PyTorch's go on with a trace
            raise ValueError(
                f"{config_path}: not a {cls.__name__} configuration: {reason}"
            ) from None
        load_weights(model, folder / WEIGHTS_NAME, device)
        return model.to(dtype=dtype).eval() if dtype else model.eval()

    def to_config(self) -> dict:
        """The constructor's arguments."""
        return dict(self._config)

    @classmethod
    def from_config(cls, config: dict) -> Self:
        """The inverse of `to_config`."""
        return cls(**config)

    def full_config(self) -> dict:
        """What `config.json` holds: the model's type and settings, and how it is used, if that is known."""
        about = {name: getattr(self, name) for name in ABOUT}
        known = {name: value for name, value in about.items() if value is not None}
        return {"model_type": self.model_type} | self.to_config() | known

    @classmethod
    def from_full_config(cls, config: dict) -> Self:
        """The inverse of `full_config`; the model's type need not be there.

        Raises:
          ValueError: one of the entries `ABOUT` makes no sense.
        """
        settings = {name: value for name, value in config.items() if name not in ABOUT}
        settings.pop("model_type", None)
        model = cls.from_config(settings)
        for name, value in _read_about(config).items():
            setattr(model, name, value)
        return model

    def _save_pretrained(
        self, save_directory: Path, metadata: dict[str, str] | None = None
    ) -> None:
        import safetensors.torch

        check_destination(save_directory, self.model_type)
        save_directory.mkdir(parents=True, exist_ok=True)
        # A model that was moved to channels-last order is stored in plain order.
        state = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        data = safetensors.torch.save(state, {"format": "pt"} | (metadata or {}))
        write_atomically(save_directory / WEIGHTS_NAME, data)
        text = json.dumps(self.full_config(), indent=2) + "\n"
        write_atomically(save_directory / CONFIG_NAME, text.encode())


# Entries of `config.json` that say how a model is used; they are no arguments of its constructor.
ABOUT = ("class_names", "image_size", "tokenizer_fingerprint")


def _read_about(config: dict) -> dict[str, Any]:
    """The checked entries `ABOUT` of a configuration; those that are missing or null are left out."""
    about = {name: config[name] for name in ABOUT if config.get(name) is not None}
    size, names = about.get("image_size", 1), about.get("class_names", [])
    fingerprint = about.get("tokenizer_fingerprint", "")
    if not isinstance(fingerprint, str) or len(fingerprint) > _LONGEST_NAME:
        raise ValueError(
            f"tokenizer_fingerprint is {ascii(fingerprint)[:60]}; accepted: a SHA-256 in hex"
        )
    if type(size) is not int or size < 1:
        raise ValueError(f"image_size is {size!r}; accepted: pixels, a whole number from 1")
    if not isinstance(names, list) or len(names) > _MOST_NAMES:
        found = f"{len(names)} names" if isinstance(names, list) else type(names).__name__
        raise ValueError(f"class_names holds {found}; accepted: a list of at most {_MOST_NAMES}")
    for name in names:
        printable = isinstance(name, str) and name.isprintable() and name.strip()
        if not printable or len(name) > _LONGEST_NAME:
            raise ValueError(
                f"class_names holds {ascii(name)[:60]}; accepted: printable text of at most "
                f"{_LONGEST_NAME} letters"
            )
    return about


def load_any(
    source: str | os.PathLike,
    classes: list[type[PretrainedMixin]],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    num_heads: int | None = None,
    num_codes: int | None = None,
    weights: str | None = None,
    **options: Any,
) -> PretrainedMixin:
    """Loads whichever of `classes` a folder, a file or a hub id holds, in evaluation mode.

    Files (Google's, for example) and folders of other projects are read by the packages that announce a
    reader under the entry point `READERS`: a function from the path and the three settings below to (model
    type, configuration, state dict, notes). What it had to assume is told as a `UserWarning`.

    Args:
      source: see `hub.locate`.
      classes: what is accepted.
      device: where to put the weights.
      dtype: convert the weights to this; default: as stored.
      num_heads: attention heads, for weights that do not tell.
      num_codes: codes of the tokenizer, for transformers that do not tell.
      weights: "ema" or "raw", for files that hold both.
      **options: of `hub.locate`: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
      FileNotFoundError: there is no such path or repository, or a file is missing in it.
      ValueError: it holds none of the classes, is damaged, or tells other than what is given.
    """
    path = hub.locate(source, **options)
    if known := layouts.describe(path):
        raise ValueError(f"{path} {known}")
    given = {"num_heads": num_heads, "num_codes": num_codes, "weights": weights}
    state = None
    if _is_foreign(path):
        found, config, state, notes = _reader(path)(path, **given)
        for note in notes:
            warnings.warn(f"{source}: {note}", stacklevel=2)
    else:
        config = read_config(path / CONFIG_NAME)
        found = config.get("model_type")
        _check_given(path / CONFIG_NAME, config, num_heads, num_codes)
    cls = next((cls for cls in classes if cls.model_type == found), None)
    if cls is None:
        accepted = ", ".join(repr(cls.model_type) for cls in classes)
        where = path if state is not None else path / CONFIG_NAME
        raise ValueError(f"{where}: model_type is {found!r}; accepted here: {accepted}")
    if state is None:
        return cls._from_folder(path, device, dtype)
    with without_values():
        model = cls.from_full_config(config)
    model.load_state_dict(state, assign=True)
    return model.to(device=device, dtype=dtype).eval()


def _check_given(path: Path, config: dict, num_heads: int | None, num_codes: int | None) -> None:
    for name, value in (("num_attention_heads", num_heads), ("num_codes", num_codes)):
        if value is not None and config.get(name, value) != value:
            raise ValueError(f"{path}: says {name} {config[name]}, not {value}")


def _reader(path: Path) -> Callable[..., tuple[str, dict, dict[str, Tensor], list[str]]]:
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


def _is_foreign(path: Path) -> bool:
    """Whether a path holds weights that are not laid out as ours."""
    if path.is_file():
        return True
    config = path / CONFIG_NAME
    if not (path / WEIGHTS_NAME).is_file() and any(path.glob("*.index.json")):
        return True  # cut into shards
    if config.is_file():
        return "model_type" not in read_config(config)
    return any(path.iterdir()) and not (path / WEIGHTS_NAME).is_file()


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Models built under this have shapes and no values: for weights that come from a file."""
    with torch.device("meta"), _WithoutInitialValues():
        yield


class _WithoutInitialValues(TorchFunctionMode):
    """Leaves out `nn.init`, which has nothing to set on the meta device.

    `normal_` there would import torch's compiler, which takes two seconds.

    A configuration that asks for endless layers ends with a ValueError.
    """

    # Of PyTorch's functions; the largest published network needs some thousands.
    _MOST_CALLS = 50_000

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        if self.calls > self._MOST_CALLS:
            raise ValueError("asks for far more layers than any network here has")
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


def read_config(path: Path) -> dict:
    """Reads a `config.json`; ValueError if it holds no JSON object."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: missing; a model folder holds {CONFIG_NAME} and {WEIGHTS_NAME}"
        )
    try:
        # With or without a mark of its byte order.
        config = json.loads(path.read_text(encoding="utf-8-sig"))
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
    folder = hub.locate(name)
    if folder.is_file():
        return [folder]
    places = ("", "transformer", "tokenizer")
    files = [folder / place / name for place in places for name in (WEIGHTS_NAME, CONFIG_NAME)]
    files = [file for file in files if file.is_file()]
    if any(file.name == WEIGHTS_NAME for file in files):
        return files
    return sorted(path for path in folder.rglob("*") if path.is_file())
