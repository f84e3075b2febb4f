"""Feature extractors: TF-Inception for published metrics, and two small ones that need no weights.

A classifier of one's own stands in `classifiers`.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgit_pt.files import file_sha256
from train.evaluation.classifiers import Classifier
from train.evaluation.precision import full_precision
from train.evaluation.torchvision_import import import_torch_fidelity

# Made by torch-fidelity from Google's graph classify_image_graph_def.pb (2015-12-05).
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = (
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
)

INCEPTION_FEATURES = 2048
_SPATIAL_CHANNELS = 7  # of ADM's evaluator
INCEPTION_SPATIAL_FEATURES = 17 * 17 * _SPATIAL_CHANNELS


class Extractor(Protocol):
    """Turns images into features.

    Attributes:
      name: opens the names of metrics, unless it is "inception".
      has_logits: whether it gives logits as well.
      class_names: optional: what the logits are of, where these are the classes of the images.
      protocol: what it is, for the report; JSON.
      fingerprint: changes with the features it gives.
    """

    name: str
    has_logits: bool
    protocol: dict[str, Any]
    fingerprint: str

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 3, H, W] -> {"features": float32 [B, D]}, and "logits" float32 [B, C].

        An extractor with a true attribute `has_spatial` gives "spatial" float32 [B, S] as well.
        """


class Inception:
    """Inception v3 as in Google's graph, by torch-fidelity: what FID, IS and ADM's metrics are made of.

    Features are the 2048 of the last pooling; logits the 1008 of the last layer without its bias. Spatial
    features are the first 7 channels of the layer "mixed_6/conv" of Google's graph (guided-diffusion,
    evaluations/evaluator.py), 17 x 17 x 7 numbers, channels last. Images of any size are resized to 299 x
    299 inside, as TensorFlow 1 does.

    Args:
      weights: torch-fidelity's file; default: downloaded once into PyTorch's hub folder.
      device: where it runs.

    Raises:
      ImportError: the extra 'eval' is not installed.
      FileNotFoundError: no such file, or it cannot be downloaded.
      ValueError: the file holds something else.
    """

    name, has_logits, has_spatial = "inception", True, True

    def __init__(
        self, weights: str | os.PathLike | None = None, device: str | torch.device = "cpu"
    ):
        fidelity = import_torch_fidelity()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = Path(weights) if weights else _download_inception()
        self.fingerprint = file_sha256(path)
        load_weights(path)  # refuses what would run code: torch-fidelity's loading does not
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], str(path)
            )
        except (RuntimeError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{path}: not the weights of Inception v3 as torch-fidelity stores them; accepted: "
                f"{INCEPTION_FILE} from {INCEPTION_URL}"
            ) from None
        self.network.to(device)
        # torch-fidelity returns no spatial features.
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)
        self.protocol = {
            "name": self.name,
            "network": "TF-Inception v3 (2015-12-05) of torch-fidelity, 2048 pooled features, logits "
            "without bias, TF1 bilinear resize to 299 x 299",
            "weights": self.fingerprint,
            "torch-fidelity": fidelity.__version__,
        }

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        with full_precision():
            features, logits = self.network(images)
        return {"features": features, "logits": logits, "spatial": self._spatial}

    def _keep_spatial(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        del module, inputs
        self._spatial = output[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


class Pixels:
    """The mean colours of an 8 x 8 grid: for tests, and pictures as simple as digits."""

    name, has_logits = "pixels", False
    protocol = {"name": "pixels", "network": "mean colours of an 8 x 8 grid (not Inception)"}
    fingerprint = "pixels 1"

    def __init__(self, device: str | torch.device = "cpu"):
        del device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": F.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1)}


class RandomNetwork:
    """A small network with random weights, always the same: for tests of the whole command.

    Its features tell pictures apart, and its classes mean nothing.
    """

    name, has_logits = "random", True
    fingerprint = "random 1"
    protocol = {
        "name": "random",
        "network": "small convolutional network with random weights (not Inception)",
    }

    def __init__(self, device: str | torch.device = "cpu"):
        generator = torch.Generator().manual_seed(0)
        widths, layers = (3, 16, 32, 64), []
        for i in range(3):
            conv = nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1)
            layers += [conv, nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(256, 10)
        for parameter in (*self.body.parameters(), *self.head.parameters()):
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data = values / max(1, parameter[0].numel()) ** 0.5
        self.body.to(device)
        self.head.to(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        with full_precision():
            features = self.body(images.float() / 127.5 - 1)
            return {"features": features, "logits": 20 * self.head(features)}


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "inception": Inception,
    "pixels": Pixels,
    "random": RandomNetwork,
}


CLASSIFIER = "classifier:"  # and a folder, see `classifiers`


def check_name(name: str) -> str:
    """The name of an extractor; ValueError for one that `make_extractor` does not know."""
    if name in EXTRACTORS or (name.startswith(CLASSIFIER) and name != CLASSIFIER):
        return name
    accepted = ", ".join((*EXTRACTORS, f"{CLASSIFIER}FOLDER"))
    raise ValueError(f"features are {name!r}; accepted: {accepted}")


def make_extractor(
    name: str,
    weights: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    network: str | None = None,
) -> Extractor:
    """One of `EXTRACTORS`, or "classifier:FOLDER".

    Args:
      name: which.
      weights: belong to "inception".
      device: where it runs.
      network: belongs to a classifier, see `classifiers.Classifier`.
    """
    check_name(name)
    if network and not name.startswith(CLASSIFIER):
        raise ValueError(f"features {name!r} take no network; it belongs to {CLASSIFIER}FOLDER")
    if weights and name != "inception":
        raise ValueError(f"features {name!r} take no weights; they belong to 'inception'")
    if name.startswith(CLASSIFIER):
        return Classifier(name.removeprefix(CLASSIFIER), device, network)
    return Inception(weights, device) if name == "inception" else EXTRACTORS[name](device=device)


def load_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a PyTorch file, without executing anything in it.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the unpickler raises almost anything on other files
        state = None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: not a PyTorch state dict (.pth of named tensors)")
    return state


def _download_inception() -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = path.stem.rpartition("-")[2]  # of the SHA-256
        try:
            torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=prefix)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"the Inception weights cannot be downloaded ({error}); get {INCEPTION_URL} and name the "
                "file with --inception_weights=FILE, or use --features=pixels for numbers that are not FID"
            ) from None
    return path
