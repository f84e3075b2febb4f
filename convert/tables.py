"""The tables between official (Flax) and PyTorch names.

A row is: PyTorch module, official module, what the module is. Placeholders stand for numbers; three
official modules in braces are stacked, in that order, along the first axis of one PyTorch tensor.
What a module is says its tensors, each with a named transform. `rules` applies the tables.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Transform:
    """Both directions of one change of layout, as views: nothing is copied.

    `to_official` also takes the number of attention heads, which PyTorch's shapes do not show.
    """

    name: str
    to_torch: Callable[[Tensor], Tensor]
    to_official: Callable[[Tensor, int], Tensor]


IDENTITY = Transform("identity", lambda x: x, lambda x, heads: x)
DENSE = Transform("dense: [in, out] <-> [out, in]", lambda x: x.mT, lambda x, heads: x.mT)
CONV = Transform(
    "conv: [H, W, in, out] <-> [out, in, H, W]",
    lambda x: x.permute(3, 2, 0, 1),
    lambda x, heads: x.permute(2, 3, 1, 0),
)
QKV_KERNEL = Transform(
    "qkv kernel: [D, heads, D/heads] <-> [D, D]",
    lambda x: x.flatten(1).mT,
    lambda x, heads: x.mT.unflatten(1, (heads, -1)),
)
QKV_BIAS = Transform(
    "qkv bias: [heads, D/heads] <-> [D]",
    lambda x: x.flatten(),
    lambda x, heads: x.unflatten(0, (heads, -1)),
)
OUT_KERNEL = Transform(
    "attention out kernel: [heads, D/heads, D] <-> [D, D]",
    lambda x: x.flatten(0, 1).mT,
    lambda x, heads: x.mT.unflatten(0, (heads, -1)),
)

# What a module is: PyTorch tensor -> official collection, official tensor, transform.
_BIAS = {"bias": ("params", "bias", IDENTITY)}
_DENSE = {"weight": ("params", "kernel", DENSE)} | _BIAS
_CONV = {"weight": ("params", "kernel", CONV)} | _BIAS
_EMBED = {"weight": ("params", "embedding", IDENTITY)}
_NORM = {
    "weight": ("params", "scale", IDENTITY),
    "running_mean": ("batch_stats", "mean", IDENTITY),
    "running_var": ("batch_stats", "var", IDENTITY),
} | _BIAS
_QKV = {"weight": ("params", "kernel", QKV_KERNEL), "bias": ("params", "bias", QKV_BIAS)}
_OUT = {"weight": ("params", "kernel", OUT_KERNEL)} | _BIAS
# Of the self-guidance module, which comes from PyTorch: only its names are those of a tree.
_MODULE = {leaf: ("self_guidance", leaf, IDENTITY) for leaf in ("weight", "bias")}
_CODEBOOK = {"codebook": ("params", "codebook", IDENTITY)}

# {i}: any number; {i+1}: one more; {norm}: GroupNorm, LayerNorm or BatchNorm;
# {last}: the number of the Encoder's or Decoder's last convolution.
_ATTENTION = "TransformerLayer_{i}/Attention_0"
TABLES = {
    "maskgit_transformer": [
        ("embed.word_embeddings", "Embed_0/word_embeddings", _EMBED),
        ("embed.position_embeddings", "Embed_0/position_embeddings", _EMBED),
        ("embed.embeddings_ln", "Embed_0/embeddings_ln", _NORM),
        ("embed.embedding_hidden_mapping", "Embed_0/embedding_hidden_mapping", _DENSE),
        (
            "layers.{i}.attention.self_attention.qkv",
            _ATTENTION + "/self_attention/{query,key,value}",
            _QKV,
        ),
        ("layers.{i}.attention.self_attention.out", _ATTENTION + "/self_attention/out", _OUT),
        ("layers.{i}.attention.attention_output_ln", _ATTENTION + "/attention_output_ln", _NORM),
        (
            "layers.{i}.mlp.intermediate_output",
            "TransformerLayer_{i}/Mlp_0/intermediate_output",
            _DENSE,
        ),
        ("layers.{i}.mlp.layer_output", "TransformerLayer_{i}/Mlp_0/layer_output", _DENSE),
        ("layers.{i}.mlp.layer_output_ln", "TransformerLayer_{i}/Mlp_0/layer_output_ln", _NORM),
        ("mlm_layer.mlm_dense", "MlmLayer_0/mlm_dense", _DENSE),
        ("mlm_layer.mlm_ln", "MlmLayer_0/mlm_ln", _NORM),
        ("mlm_layer.mlm_bias", "MlmLayer_0/mlm_bias", _BIAS),
    ],
    "maskgit_vqvae": [
        *(
            row
            for half in ("encoder", "decoder")
            for row in (
                (f"{half}.conv_in", f"{half}/Conv_0", _CONV),
                (f"{half}.res_blocks.{{i}}.norm0", f"{half}/ResBlock_{{i}}/{{norm}}_0", _NORM),
                (f"{half}.res_blocks.{{i}}.conv0", f"{half}/ResBlock_{{i}}/Conv_0", _CONV),
                (f"{half}.res_blocks.{{i}}.norm1", f"{half}/ResBlock_{{i}}/{{norm}}_1", _NORM),
                (f"{half}.res_blocks.{{i}}.conv1", f"{half}/ResBlock_{{i}}/Conv_1", _CONV),
                (f"{half}.res_blocks.{{i}}.conv_shortcut", f"{half}/ResBlock_{{i}}/Conv_2", _CONV),
                (f"{half}.downsample_convs.{{i}}", f"{half}/Conv_{{i+1}}", _CONV),
                (f"{half}.upsample_convs.{{i}}", f"{half}/Conv_{{i+1}}", _CONV),
                (f"{half}.norm_out", f"{half}/{{norm}}_0", _NORM),
                (f"{half}.conv_out", f"{half}/Conv_{{last}}", _CONV),
            )
        ),
        ("quantizer", "quantizer", _CODEBOOK),
    ],
    "maskgit_discriminator": [
        ("conv_in", "Conv_0", _CONV),
        ("res_blocks.{i}.conv0", "ResBlock_{i}/Conv_0", _CONV),
        ("res_blocks.{i}.conv_shortcut", "ResBlock_{i}/Conv_1", _CONV),
        ("res_blocks.{i}.conv1", "ResBlock_{i}/Conv_2", _CONV),
        ("conv_out", "Conv_1", _CONV),
        ("dense0", "Dense_0", _DENSE),
        ("dense1", "Dense_1", _DENSE),
    ],
}
# Google's transformer, frozen, and what was trained on top of it.
TABLES["self_guided_transformer"] = [
    *TABLES["maskgit_transformer"],
    ("head", "head", _MODULE),
    ("guidance", "top_down", {"top_down_transform": ("self_guidance", "transform", IDENTITY)}),
    *(
        (f"guidance.cls_anchor_gen.{part}", f"class_anchor/{part}", _MODULE)
        for part in ("mlp_p", "mlp_c", "mlp_f", "mlp_t", "layer_norm")
    ),
    ("guidance.decoders.{i}.linear", "decoder_{i}/linear", _MODULE),
    ("guidance.decoders.{i}.linear2", "decoder_{i}/linear2", _MODULE),
]
