"""Runs our PyTorch networks and names what they compute as a pack does."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from maskgit_pt import VQVAE, Transformer
from parity.layers import (
    capture_torch,
    nhwc,
    tokenizer_layers,
    transformer_layers,
)

NORM_OUT = "conv_out:input"  # what the last convolution is given: normalised and activated


def stage_names(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Name in a pack -> submodule in PyTorch and in Flax, in the order of computation."""
    if isinstance(model, Transformer):
        layers = transformer_layers(len(model.layers))
        names = {f"transformer.{ours}": (ours, theirs) for ours, theirs in layers.items()}
        del names["transformer.mlm_layer.mlm_bias"]  # the logits, which have their own name
        return names
    names = {}
    for half in ("encoder", "decoder"):
        for ours, theirs in tokenizer_layers(half, getattr(model, half)).items():
            names["tokenizer." + ours.replace(NORM_OUT, "norm_out")] = (ours, theirs)
    return names


def transformer_arrays(model: nn.Module, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Every layer's output and the logits for int [B, N]."""
    names = {name: ours for name, (ours, _) in stage_names(model).items()}
    found: dict[str, Any] = {}

    def call() -> None:
        found["logits"] = model(torch.tensor(ids).long())

    captured = capture_torch(model, names.values(), call)
    arrays = {name: as_numpy(captured[ours]) for name, ours in names.items()}
    return arrays | {"transformer.logits": as_numpy(found["logits"])}


def encoder_arrays(model: VQVAE, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every map of the encoder, the indices and their distances for float [B, H, W, 3]."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    pixels = pixels.to(next(model.parameters()).dtype)
    found: dict[str, Any] = {}

    def call() -> None:
        found["quantized"], results = model.encode(pixels)
        found["indices"] = results["encoding_indices"]

    arrays = _maps(model, "encoder", call)
    arrays["tokenizer.indices"] = found["indices"].numpy()
    arrays["tokenizer.quantized"] = nhwc(found["quantized"].float())
    return arrays


def decoder_arrays(model: VQVAE, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Every map of the decoder and the images for int [B, h, w]."""
    codes = torch.tensor(indices).long()
    arrays = _maps(model, "decoder", lambda: model.decode_from_indices(codes))
    last = arrays.pop("tokenizer.decoder.conv_out")
    return arrays | {"tokenizer.images": last}


def _maps(model: VQVAE, half: str, call: Callable[[], Any]) -> dict[str, np.ndarray]:
    names = {name: ours for name, (ours, _) in stage_names(model).items() if ours.startswith(half)}
    captured = capture_torch(model, names.values(), call)
    return {name: np.moveaxis(as_numpy(captured[ours]), 1, -1) for name, ours in names.items()}


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """bfloat16 as float32, everything else as it is."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
