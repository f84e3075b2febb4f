"""How well a tokenizer rebuilds images: PSNR, SSIM, LPIPS, use of the codebook."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgit_pt.files import file_sha256
from train.evaluation.features import load_weights
from train.evaluation.precision import full_precision

SSIM_WINDOW, _SIGMA = 11, 1.5
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0: pooling
_VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
_LPIPS_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-vgg16-lpips.pth"
)


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB; infinite for equal ones.

    Args:
      images, originals: uint8 [B, 3, H, W].

    Returns:
      float64 [B].
    """
    error = (images.double() - originals.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / error)


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004).

    With the paper's Gaussian window (11 x 11, sigma 1.5) and constants (0.01 and 0.03), a map for each
    colour channel where the whole window fits, averaged.

    Args:
      images, originals: uint8 [B, 3, H, W], 11 pixels high and wide or more.

    Returns:
      float64 [B].
    """
    if min(images.shape[2:]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs images of {SSIM_WINDOW} pixels or more; found {list(images.shape[2:])}"
        )
    x, y = images.double(), originals.double()
    mean_x, mean_y = _blur(x), _blur(y)
    # Rounding may make the variance of a flat image negative.
    variance_x = (_blur(x * x) - mean_x**2).clamp(min=0)
    variance_y = (_blur(y * y) - mean_y**2).clamp(min=0)
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def _blur(x: Tensor) -> Tensor:
    offsets = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    C = x.shape[1]
    x = F.conv2d(x, weights.view(1, 1, -1, 1).expand(C, 1, -1, 1), groups=C)
    return F.conv2d(x, weights.view(1, 1, 1, -1).expand(C, 1, 1, -1), groups=C)


def codebook_use(tokens: np.ndarray, codebook_size: int) -> tuple[float, float]:
    """How much of the codebook the tokens of all images use.

    Args:
      tokens: whole numbers in [0, codebook_size), any shape.
      codebook_size: codes in all.

    Returns:
      The share of codes that occur, and the perplexity exp(entropy of their frequencies), at most
      `codebook_size`.
    """
    counts = np.bincount(np.asarray(tokens).reshape(-1), minlength=codebook_size)
    share = counts[counts > 0] / counts.sum()
    return float((counts > 0).mean()), float(np.exp(-(share * np.log(share)).sum()))


class LPIPS:
    """Learned perceptual distance, version 0.1 with VGG16 (Zhang et al. 2018); 0 for equal images.

    Args:
      vgg16: torchvision's state file of VGG16 (the classifier's weights may be missing).
      linear: the weights of the five maps.
      device: where it runs.

    Raises:
      FileNotFoundError, ValueError: a file is missing or holds something else.
    """

    def __init__(
        self,
        vgg16: str | os.PathLike,
        linear: str | os.PathLike,
        device: str | torch.device = "cpu",
    ):
        self.slices = _vgg16_slices()
        self._load_vgg16(Path(vgg16))
        self.weights = _linear_weights(Path(linear))
        self.slices.to(device)
        self.weights = [weight.to(device) for weight in self.weights]
        self.fingerprint = f"{file_sha256(vgg16)} {file_sha256(linear)}"

    @classmethod
    def from_flag(cls, text: str, device: str | torch.device = "cpu") -> "LPIPS":
        """From "VGG16FILE,LINEARFILE"."""
        paths = [part.strip() for part in text.split(",")]
        if len(paths) != 2 or not all(paths):
            raise ValueError(
                f"--lpips_weights is {text!r}; accepted: two files, VGG16,LINEAR, from {_VGG16_URL} and "
                f"{_LPIPS_URL}"
            )
        return cls(*paths, device=device)

    def _load_vgg16(self, path: Path) -> None:
        state = load_weights(path)
        # torchvision numbers all layers through: features.0.weight, features.2.weight, ...
        found = {
            name.removeprefix("features."): value.float()
            for name, value in state.items()
            if name.startswith("features.")
        }
        # A slice comes before the number here: 1.5.weight.
        names = {name.partition(".")[2]: name for name in self.slices.state_dict()}
        try:
            renamed = {names[name]: value for name, value in found.items()}
            self.slices.load_state_dict(renamed, assign=True)
        except (KeyError, RuntimeError):
            raise ValueError(
                f"{path}: not torchvision's weights of VGG16; accepted: {_VGG16_URL}"
            ) from None
        self.slices.requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, images: Tensor, originals: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] twice -> float32 [B]."""
        total = torch.zeros(len(images), device=images.device)
        with full_precision():
            x = _normalize(torch.cat([images, originals]))
            for layers, weight in zip(self.slices, self.weights, strict=True):
                x = layers(x)
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                a, b = unit.chunk(2)
                total += F.conv2d((a - b).square(), weight).mean((1, 2, 3))
        return total


def _normalize(images: Tensor) -> Tensor:
    """uint8 -> ImageNet's mean 0 and standard deviation 1, as LPIPS rounds those constants."""
    shift = torch.tensor([-0.030, -0.088, -0.188], device=images.device).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], device=images.device).view(3, 1, 1)
    return (images.float() / 127.5 - 1 - shift) / scale


def _vgg16_slices() -> nn.ModuleList:
    """VGG16's convolutions, cut after the last activation of each size; layers keep their numbers."""
    slices, number, width = nn.ModuleList([nn.Sequential()]), 0, 3
    for out in _VGG16:
        if out == 0:
            slices.append(nn.Sequential())
            slices[-1].add_module(str(number), nn.MaxPool2d(2))
            number += 1
            continue
        with torch.device("meta"):
            slices[-1].add_module(str(number), nn.Conv2d(width, out, 3, padding=1))
        slices[-1].add_module(str(number + 1), nn.ReLU())
        number, width = number + 2, out
    return slices


def _linear_weights(path: Path) -> list[Tensor]:
    """[1, C, 1, 1] for each slice."""
    state = load_weights(path)
    names = [f"lin{i}.model.1.weight" for i in range(5)]
    shapes = [(1, width, 1, 1) for width in (64, 128, 256, 512, 512)]
    if [tuple(state[name].shape) if name in state else None for name in names] != shapes:
        raise ValueError(f"{path}: not the linear weights of LPIPS 0.1; accepted: {_LPIPS_URL}")
    return [state[name].float() for name in names]
