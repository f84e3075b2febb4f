"""Classifiers as feature extractors: any network, in a folder with a small `config.json` and its weights.

`config.json` is data; nothing that a folder holds is executed. Its fields:

  model_type   "classifier"
  network      what is built: [[LAYER, {ARGUMENT: VALUE}], ...], layers of `torch.nn` one after the other (see
               `LAYERS`); or "torchvision:NAME", a classification model of torchvision; or anything, where the
               caller brings the network
  arguments    of a torchvision model, or of the class that the caller names, e.g. {"num_classes": 10}
  features     the name of the module whose output is the features (`network.named_modules()`; of layers, the
               number); an output [B, C, h, w] is averaged over h and w
  image_size   pixels of a side; images of another size are resized to it, bilinear and antialiased
  mean, std    of the three channels, of images in 0 ... 1
  class_names  one for each logit
  about        free: how it was trained
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgit_pt.files import check_destination, write_atomically
from maskgit_pt.layouts import CONFIG_NAME
from maskgit_pt.pretrained import (
    WEIGHTS_NAME,
    load_weights,
    read_config,
    weights_fingerprint,
    without_values,
)
from train.evaluation.precision import full_precision
from train.evaluation.torchvision_import import import_torchvision

MODEL_TYPE = "classifier"
LAYERS = (
    "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "AvgPool2d", "BatchNorm1d", "BatchNorm2d", "Conv2d",
    "Dropout", "Dropout2d", "ELU", "Flatten", "GELU", "GroupNorm", "Hardswish", "Identity",
    "InstanceNorm2d", "LayerNorm", "LeakyReLU", "Linear", "MaxPool2d", "Mish", "PReLU", "ReLU", "ReLU6",
    "SiLU", "Sigmoid", "Softplus", "Tanh", "ZeroPad2d",
)  # fmt: skip
_MOST_LAYERS = 1000
_MOST_NUMBERS = 2**31  # that a layer may give of one image
_TORCHVISION = "torchvision:"
_BUILDING = (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError, OverflowError,
             AssertionError, NotImplementedError, MemoryError)  # fmt: skip
Layers = list[list[Any]]


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """What stands in `config.json`, see above; checked when it is made.

    Raises:
      ValueError: a field that is not what it must be.
    """

    network: str | Layers
    features: str
    image_size: int
    class_names: list[str]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        accepted = {
            "network": (_is_network(self.network), f'"{_TORCHVISION}NAME" or [[LAYER, {{...}}], ...]'),
            "features": (isinstance(self.features, str) and self.features, "the name of a module"),
            "image_size": (type(self.image_size) is int and 1 <= self.image_size <= 4096, "1 to 4096"),
            "class_names": (_is_list(self.class_names, str), "a list of names"),
            "arguments": (isinstance(self.arguments, dict), "an object"),
            "mean": (_is_list(self.mean, float, int) and len(self.mean) == 3, "three numbers"),
            "std": (
                _is_list(self.std, float, int) and len(self.std) == 3 and min(self.std) > 0,
                "three numbers above 0",
            ),
        }  # fmt: skip
        for name, (good, what) in accepted.items():
            if not good:
                found = str(getattr(self, name))[:60]
                raise ValueError(f"{name} is {found!r}; accepted: {what}")

    @classmethod
    def read(cls, folder: str | os.PathLike) -> Self:
        """Reads `config.json` of a folder.

        Raises:
          FileNotFoundError, ValueError: it is missing, or not the configuration of a classifier.
        """
        path = Path(folder) / CONFIG_NAME
        values = read_config(path)
        kind = values.pop("model_type", None)
        if kind != MODEL_TYPE:
            raise ValueError(f"{path}: model_type is {kind!r}; accepted: {MODEL_TYPE!r}")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        needed = {name for name in ("network", "features", "image_size", "class_names")}
        wrong = sorted(values.keys() - fields.keys()) or sorted(needed - values.keys())
        if wrong:
            what = "unknown" if wrong[0] in values else "missing"
            raise ValueError(
                f"{path}: the field {wrong[0]!r} is {what}; accepted: {', '.join(fields)}"
            )
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def save_classifier(
    folder: str | os.PathLike, network: nn.Module, config: ClassifierConfig
) -> None:
    """Writes a folder for `--features=classifier:FOLDER`.

    Args:
      folder: made if missing; an older classifier in it is replaced.
      network: any module that turns float [B, 3, S, S] into logits [B, C]. It must be what `config.network`
        describes, unless whoever reads the folder brings the network (`--classifier_network`).
      config: see above.

    Raises:
      ValueError: the folder holds something else.
    """
    import safetensors.torch

    folder = Path(folder)
    check_destination(folder, MODEL_TYPE)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    write_atomically(folder / WEIGHTS_NAME, safetensors.torch.save(state, {"format": "pt"}))
    text = json.dumps({"model_type": MODEL_TYPE} | dataclasses.asdict(config), indent=2) + "\n"
    write_atomically(folder / CONFIG_NAME, text.encode())


class _OfLayers(nn.Sequential):
    """What `build_layers` builds."""


def build_layers(layers: Layers) -> nn.Sequential:
    """Builds `[[LAYER, {ARGUMENT: VALUE}], ...]`.

    Raises:
      ValueError: a layer that is not one of `LAYERS`, or arguments that it does not take.
    """
    modules = []
    for number, (name, arguments) in enumerate(layers):
        if name not in LAYERS:
            raise ValueError(f"layer {number} is {name!r}; accepted: {', '.join(LAYERS)}")
        if {"device", "dtype"} & arguments.keys():
            raise ValueError(f"layer {number}: device and dtype cannot be set")
        try:
            modules.append(getattr(nn, name)(**arguments))
        except _BUILDING as error:
            raise ValueError(f"layer {number}, {name}: {_first_line(error)}") from None
    return _OfLayers(*modules)


class Classifier:
    """The features and logits of a classifier; see `features.Extractor`.

    Args:
      folder: with `config.json` and `model.safetensors`.
      device: where it runs.
      network: instead of what `config.json` names: FILE.py:NAME, a class or function of your own that is
        called with `arguments` and returns a module. The file is run.

    Attributes:
      class_names: one for each logit.

    Raises:
      ImportError: torchvision is needed and not installed.
      FileNotFoundError, ValueError: a file is missing, or does not fit; one line says what was found.
    """

    name, has_logits = "classifier", True

    def __init__(
        self,
        folder: str | os.PathLike,
        device: str | torch.device = "cpu",
        network: str | None = None,
    ):
        folder = Path(folder)
        self.config = config = ClassifierConfig.read(folder)
        self._features: Tensor | None = None
        try:
            self.network = _build(config, network).eval()
            width = self._try()  # before the weights: this asks about shapes
        except ValueError as error:
            raise ValueError(f"{folder / CONFIG_NAME}: {error}") from None
        load_weights(self.network, folder / WEIGHTS_NAME, "cpu")
        self.network.float().to(device)
        self.class_names = config.class_names
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
            for values in (config.mean, config.std)
        )
        self.fingerprint = weights_fingerprint(folder)
        self.protocol = {
            "name": self.name,
            "network": f"{_describe(config, network)}, {width} features of module {config.features!r} at "
            f"{config.image_size} px (not Inception)",
            "classes": len(self.class_names),
            "weights": self.fingerprint,
        }

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 3, H, W] -> {"features": float32 [B, D], "logits": float32 [B, C]}."""
        with full_precision():
            return self._run(self.normalize(images))

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 [B, 3, S, S]."""
        return normalize(images, self.config.image_size, self._mean, self._std)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.network(images)
        features, self._features = self._features, None
        if isinstance(features, Tensor) and features.ndim > 2:
            features = features.flatten(2).mean(2)
        return {"features": features, "logits": logits}

    def _keep(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        del module, inputs
        self._features = output

    def _try(self) -> int:
        """Runs the network once, on a black image; returns the number of features."""
        modules, config = dict(self.network.named_modules()), self.config
        if config.features not in modules:
            raise ValueError(
                f"features is {config.features!r}, which is no module of the network; the last ones are "
                f"{', '.join(list(modules)[-6:])}"
            )
        modules[config.features].register_forward_hook(self._keep)
        size, of_layers = config.image_size, isinstance(self.network, _OfLayers)
        black = torch.zeros(1, 3, size, size, device="meta" if of_layers else "cpu")
        try:
            with torch.inference_mode(), _bounded(self.network):
                shapes = {name: list(value.shape) for name, value in self._run(black).items()}
        except _BUILDING as error:
            raise ValueError(f"the network does not run: {_first_line(error)}") from None
        classes = len(config.class_names)
        if shapes["logits"] != [1, classes]:
            raise ValueError(
                f"the network gives logits {shapes['logits']} of an image, class_names has {classes}"
            )
        if len(shapes["features"]) != 2:
            raise ValueError(f"features have shape {shapes['features']}; accepted: [B, D]")
        return shapes["features"][1]


def normalize(images: Tensor, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, size, size]: resized, less the mean, by the deviation."""
    images = images.float() / 255
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return (images - mean) / std


def _build(config: ClassifierConfig, network: str | None) -> nn.Module:
    """The network: of layers without values, so that absurd sizes take no memory."""
    if network is not None:
        return _of_caller(network)(**config.arguments)
    if not isinstance(config.network, str):
        with without_values():
            return build_layers(config.network)
    if not config.network.startswith(_TORCHVISION):
        raise ValueError(
            f"network is {config.network!r}, code of its own; name it with "
            "--classifier_network=FILE.py:CLASS"
        )
    name = config.network.removeprefix(_TORCHVISION)
    import_torchvision()
    models = importlib.import_module("torchvision.models")
    if name not in models.list_models(module=models):
        raise ValueError(f"network: torchvision has no classification model {name!r}")
    if "weights" in config.arguments:
        raise ValueError("arguments: weights cannot be named; they are those of the folder")
    try:
        return models.get_model(name, weights=None, **config.arguments)
    except _BUILDING as error:
        raise ValueError(f"network {config.network}: {_first_line(error)}") from None


def _of_caller(network: str) -> Callable[..., nn.Module]:
    path, colon, name = network.rpartition(":")
    if not colon or not path.endswith(".py") or not name:
        raise ValueError(f"--classifier_network={network}; accepted: FILE.py:CLASS")
    if not Path(path).is_file():
        raise FileNotFoundError(f"--classifier_network: {path}: no such file")
    spec = importlib.util.spec_from_file_location("classifier_network", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise ValueError(f"--classifier_network: {path} defines no {name}")
    return getattr(module, name)


@contextlib.contextmanager
def _bounded(network: nn.Module):
    """Under this a layer whose output is absurdly large ends the pass after that layer's."""

    def check(module: nn.Module, inputs: tuple, output: Any) -> None:
        del inputs
        if isinstance(output, Tensor) and output.numel() > _MOST_NUMBERS:
            raise ValueError(f"{type(module).__name__} gives {output.numel()} numbers of one image")

    hooks = [module.register_forward_hook(check) for module in network.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _describe(config: ClassifierConfig, network: str | None) -> str:
    if network is not None:
        return Path(network.rpartition(":")[0]).name + ":" + network.rpartition(":")[2]
    if isinstance(config.network, str):
        return config.network
    return f"{len(config.network)} layers"


def _is_network(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, list | tuple) and 0 < len(value) <= _MOST_LAYERS and all(
        isinstance(layer, list | tuple) and len(layer) == 2
        and isinstance(layer[0], str) and isinstance(layer[1], dict)
        for layer in value
    )  # fmt: skip


def _is_list(value: Any, *kinds: type) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(type(v) in kinds for v in value)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
