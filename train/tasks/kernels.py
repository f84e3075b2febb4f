"""How the transformer is computed in training: attention kernels, compiling, residual stream, recomputing."""

import contextlib
import functools
from collections.abc import Callable

import ml_collections
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from train import settings

ATTENTION = ("auto", "flash", "cudnn", "efficient")
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs")
RESIDUALS = ("float32", "bfloat16")
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_HOPPER = (9, 0)
# Not worth compiling, or never called.
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Embedding, nn.Dropout)


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that are not known; ValueError names the field."""
    settings.check_choice(config, "attention", ATTENTION)
    settings.check_choice(config, "compile_mode", COMPILE_MODES)
    settings.check_choice(config, "residual", RESIDUALS)
    if config.residual == "bfloat16" and config.precision != "bfloat16":
        raise ValueError(
            "config.residual is 'bfloat16' while config.precision is 'float32'; accepted: float32"
        )


def attention(choice: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Prefers an attention kernel; the others stand in where it cannot be used.

    Args:
      choice: of `ATTENTION`; "auto" prefers cuDNN's on Hopper cards and leaves the choice to PyTorch on
        others. (PyTorch's users report cuDNN's to be faster on Hopper and slower on A100s; the GPU tests
        time all of them.)
      device: the kernel's.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    if choice == "auto":
        if torch.cuda.get_device_capability(device) != _HOPPER:
            return contextlib.nullcontext()
        choice = "cudnn"
    first = _BACKENDS[choice]
    rest = [backend for backend in _BACKENDS.values() if backend != first]
    return sdpa_kernel([first, *rest, SDPBackend.MATH], set_priority=True)


def compile_options(config: ml_collections.ConfigDict) -> dict[str, object]:
    """How `torch.compile` is called for all parts."""
    return {"dynamic": False, "mode": config.compile_mode}


def layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a model, those of a decoder included."""
    return [*model.blocks, *getattr(model, "decoder_blocks", [])]


def prepare(model: nn.Module, config: ml_collections.ConfigDict) -> None:
    """Changes in place how a model computes; its parameters and their names stay.

    - `config.residual` "bfloat16": layer norms give bfloat16, which halves what the residual stream moves;
      their means and variances are still taken in float32.
    - `config.compile`: the layers (one compilation serves all: gradients leave the backward pass layer by
      layer and are reduced while it goes on), the embedding and the head.
    - `config.recompute`: the layers' activations are computed again in the backward pass instead of kept.
    """
    if config.residual == "bfloat16":
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.forward = functools.partial(_half_layer_norm, module)
    if config.recompute:
        for block in layers(model):
            block.forward = _recomputed(block.forward)
    if config.compile:
        outer = [part for part in model.children() if not isinstance(part, _CONTAINERS)]
        for part in [*layers(model), *outer]:
            part.compile(**compile_options(config))


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(
        *arguments: Tensor,
    ) -> Tensor:  # a function of its own: nothing else can be compiled here
        return checkpoint(forward, *arguments, use_reentrant=False)

    return call


def _half_layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        half = torch.bfloat16
        weight, bias = norm.weight.to(half), norm.bias.to(half)
        return F.layer_norm(x.to(half), norm.normalized_shape, weight, bias, norm.eps)
