"""The layers whose outputs are compared, by their names on both sides, and how PyTorch's are caught."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def transformer_layers(layers: int) -> dict[str, str]:
    """PyTorch submodule -> Flax submodule: embedding, both halves of every layer, the head's steps."""
    paths = {"embed": "Embed_0"}
    for i in range(layers):
        flax_layer = f"TransformerLayer_{i}"
        paths |= {
            f"layers.{i}.attention.self_attention": f"{flax_layer}/Attention_0/self_attention",
            f"layers.{i}.attention": f"{flax_layer}/Attention_0",
            f"layers.{i}.mlp.intermediate_output": f"{flax_layer}/Mlp_0/intermediate_output",
            f"layers.{i}.mlp": f"{flax_layer}/Mlp_0",
        }
    heads = ("mlm_dense", "mlm_ln", "mlm_bias")
    return paths | {f"mlm_layer.{name}": f"MlmLayer_0/{name}" for name in heads}


def tokenizer_layers(name: str, coder: nn.Module) -> dict[str, str]:
    """The same of an encoder or decoder, in the order of computation, by which Flax numbers them too.

    Args:
      name: "encoder" or "decoder".
      coder: the PyTorch module.
    """
    norm = {"ChannelLayerNorm": "LayerNorm"}.get(
        type(coder.norm_out).__name__, type(coder.norm_out).__name__
    )
    between = "downsample_convs" if name == "encoder" else "upsample_convs"
    paths = {f"{name}.conv_in": f"{name}/Conv_0"}
    convs = len(getattr(coder, between))
    for k in range(len(coder.res_blocks)):
        paths[f"{name}.res_blocks.{k}"] = f"{name}/ResBlock_{k}"
        level, j = divmod(k, coder.num_res_blocks)
        i = level if name == "encoder" else level - 1  # the decoder begins with the middle
        if j == coder.num_res_blocks - 1 and 0 <= i < convs:
            paths[f"{name}.{between}.{i}"] = f"{name}/Conv_{i + 1}"
    return paths | {
        f"{name}.conv_out:input": f"{name}/{norm}_0",
        f"{name}.conv_out": f"{name}/Conv_{convs + 1}",
    }


def capture_torch(
    module: nn.Module, names: Iterable[str], call: Callable[[], Any]
) -> dict[str, Tensor]:
    """What the submodules `names` return while `call` runs; for "NAME:input", what NAME is given.

    Copies: the next operation may work in place.
    """
    captured: dict[str, Tensor] = {}
    hooks = []
    for name in names:
        submodule = module.get_submodule(name.removesuffix(":input"))

        def keep_output(_: nn.Module, __: Any, output: Tensor, name: str = name) -> None:
            captured[name] = output.detach().clone()

        def keep_input(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            captured[name] = inputs[0].detach().clone()

        if name.endswith(":input"):
            hooks.append(submodule.register_forward_pre_hook(keep_input))
        else:
            hooks.append(submodule.register_forward_hook(keep_output))
    try:
        with torch.no_grad():
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return captured


def nhwc(images: Any) -> np.ndarray:
    """[B, C, H, W] -> [B, H, W, C] as numpy."""
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))
