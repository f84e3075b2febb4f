"""hmorimitsu/maskgit-torch: `{maskgit,tokenizer}_imagenet{256,512}.ckpt`, Google's weights converted.

Its notebooks save dictionaries of their own making: tensors in Flax order, the fused attention
inputs at the end, transposed tensors as views whose numbers stay in Flax order.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from convert import rules, signatures
from convert.checkpoint import Given
from convert.files.tensors import Shape
from convert.formats._tokenizer_names import PUBLISHED_SIZES, TokenizerNames
from convert.formats.format import Format, numbers
from convert.rows import Row, Rows, dense, norm
from convert.tables import OUT_KERNEL, QKV_BIAS, QKV_KERNEL

_TOKENIZER = TokenizerNames(
    encoder_block="encoder.res_blocks.{i}.{j}",
    encoder_middle="encoder.res_blocks.{i}.{j}",
    decoder_middle="decoder.res_blocks.0.{j}",
    decoder_block="decoder.res_blocks.{u}.{j}",
    upsample="decoder.res_blocks.{u}.{a}",
    parts=("norm0", "conv0", "norm1", "conv1", "conv_res"),
    codebook="quantizer.codebook.weight",
    middle_counts=True,
)
_LAYER = re.compile(r"blocks\.(\d{1,4})\.")


def _transformer_rows(layers: int) -> Rows:
    embed, head = "Embed_0", "MlmLayer_0"
    rows = {
        "tok_emb.weight": Row((f"params/{embed}/word_embeddings/embedding",)),
        "pos_emb": Row((f"params/{embed}/position_embeddings/embedding",)),
    } | norm("emb_ln", f"{embed}/embeddings_ln")
    for i in range(layers):
        ours, theirs = f"blocks.{i}", f"TransformerLayer_{i}"
        attention = f"{theirs}/Attention_0/self_attention"
        inputs = [f"params/{attention}/{name}" for name in ("query", "key", "value")]
        rows |= {
            f"{ours}.MultiHeadAttention.in_proj_weight": Row(
                tuple(f"{name}/kernel" for name in inputs), QKV_KERNEL
            ),
            f"{ours}.MultiHeadAttention.in_proj_bias": Row(
                tuple(f"{name}/bias" for name in inputs), QKV_BIAS
            ),
            f"{ours}.MultiHeadAttention.out_proj.weight": Row(
                (f"params/{attention}/out/kernel",), OUT_KERNEL
            ),
            f"{ours}.MultiHeadAttention.out_proj.bias": Row((f"params/{attention}/out/bias",)),
        }
        rows |= norm(f"{ours}.AttentionLN", f"{theirs}/Attention_0/attention_output_ln")
        rows |= dense(f"{ours}.MLP.0", f"{theirs}/Mlp_0/intermediate_output")
        rows |= dense(f"{ours}.MLP.2", f"{theirs}/Mlp_0/layer_output")
        rows |= norm(f"{ours}.MlpLN", f"{theirs}/Mlp_0/layer_output_ln")
    rows |= dense("Token_Prediction.0", f"{head}/mlm_dense")
    rows |= norm("Token_Prediction.2", f"{head}/mlm_ln")
    return rows | {"bias": Row((f"params/{head}/mlm_bias/bias",))}


class Hmorimitsu(Format):
    NAME = "hmorimitsu"
    DESCRIPTION = "hmorimitsu/maskgit-torch, *_imagenet{256,512}.ckpt"
    HOLDS = "Google's transformer or tokenizer; not the number of attention heads"
    MODEL_TYPES = ("maskgit_transformer", "maskgit_vqvae")
    WRAPPERS = ("state_dict", None)
    FLAX_MEMORY = True

    def rows_of_file(self, shapes: Mapping[str, Shape], stated: dict) -> Rows:
        (layers,) = numbers(_LAYER, shapes)
        if layers or "tok_emb.weight" in shapes:
            return _transformer_rows(layers)
        return _TOKENIZER.rows(*_TOKENIZER.sizes(shapes))

    def published_rows(self) -> Rows:
        return _TOKENIZER.rows(*PUBLISHED_SIZES)

    def rows_of_model(self, model_type: str, config: dict) -> Rows:
        if model_type == "maskgit_transformer":
            rows = _transformer_rows(config["num_hidden_layers"])
        else:
            vqvae = config["vqvae"]
            rows = _TOKENIZER.rows(len(vqvae["channel_multipliers"]), vqvae["num_res_blocks"])
        return _in_flax_order(rows)

    def heads(
        self, shapes: Mapping[str, Shape], stated: dict, given: Given
    ) -> tuple[int, list[str]]:
        if "tok_emb.weight" not in shapes:
            return 1, []
        return signatures.heads_or_default(
            signatures.last_of(shapes, "tok_emb.weight"), given.num_heads
        )

    def wrap(self, state: dict[str, Tensor], wrapper: str | None, values: dict) -> dict:
        return state if wrapper is None else values | {wrapper: state}


def _in_flax_order(rows: Rows) -> Rows:
    """As the notebooks go through the Flax tree; what they fuse comes last, layer by layer."""
    by_official = {row.officials[0]: name for name, row in rows.items() if len(row.officials) == 1}
    fused = [name for name, row in rows.items() if len(row.officials) > 1]
    fused.sort(key=lambda name: (int(name.split(".")[1]), name))
    order = [by_official[name] for name in rules.published_order(by_official)]
    return {name: rows[name] for name in order + fused}


FORMAT = Hmorimitsu()
