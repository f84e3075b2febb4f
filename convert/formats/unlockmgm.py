"""JiwanHur/UnlockMGM: `UnlockMGM_imagenet_{256,512}.zip`, folders of `config.json` and `pytorch_model.bin`.

Google's transformer, frozen, under the names of open-muse, and a self-guidance module; see
`nets/self_guidance.py`. Query, key and value stand apart. The head has a matrix of its own, in the published
files a copy of the word embeddings.

The configuration (class MaskGitTransformerTOAST) also holds settings of its training and of its moving
average, which are kept, and choices of the class that the published models make one way: any other is another
network, and refused.
"""

import json
import re
from collections.abc import Mapping

from convert import infer
from convert.checkpoint import Checkpoint, Given
from convert.files import dtypes
from convert.files.tensors import Shape, rows_that_differ
from convert.formats.container import Container, config_beside
from convert.formats.format import Format, numbers
from convert.formats.state_dicts import StateDict
from convert.rows import Row, Rows, dense, norm
from convert.tables import OUT_KERNEL, QKV_BIAS, QKV_KERNEL
from maskgit_pt.pretrained import CONFIG_NAME

_MODEL_TYPE = "self_guided_transformer"
_CLASS = "MaskGitTransformerTOAST"
_LAYER = re.compile(r"transformer_layers\.(\d{1,4})\.")
_EMBEDDINGS, _HEAD = "embed.word_embeddings.weight", "mlm_layer.to_logits.weight"
# theirs -> ours
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "num_classes": "num_classes",
    "tg_factor": "tg_factor",
}
# Choices of the class that say what the network is.
_CHOICES = {
    "_class_name": _CLASS,
    "add_cross_attention": False,
    "layer_norm_embeddings": True,
    "layer_norm_eps": 1e-12,
    "norm_type": "layernorm",
    "project_encoder_hidden_states": False,
    "use_bias": True,
    "use_blank_second": True,
    "use_encoder_layernorm": False,
    "use_maskgit_mlp": True,
    "use_mlm_layer": True,
    "use_mlm_layernorm": True,
    "use_normformer": False,
    "use_toast": True,
}
# What else the class saves; of its training.
_REST = {
    "_version": "0.0.1",
    "encoder_hidden_size": 1024,
    "lambda_var": 0.1,
    "predict_all": False,
    "train_head": False,
}


class UnlockMGM(Format):
    NAME = "unlockmgm"
    DESCRIPTION = "JiwanHur/UnlockMGM, UnlockMGM_imagenet_{256,512}.zip and the folders in it"
    HOLDS = "Google's transformer with its self-guidance module"
    MODEL_TYPES = (_MODEL_TYPE,)
    IS_FOLDER = True
    WEIGHTS_NAME = "pytorch_model.bin"

    def rows_of_file(self, shapes: Mapping[str, Shape], stated: dict) -> Rows:
        return _rows(*numbers(_LAYER, shapes))

    def rows_of_model(self, model_type: str, config: dict) -> Rows:
        return _rows(config["num_hidden_layers"])

    def read_companion(self, container: Container) -> tuple[str, dict]:
        return CONFIG_NAME, config_beside(container)

    def stated_config(self, companion: dict) -> dict:
        for name, accepted in _CHOICES.items():
            if (found := companion.get(name, accepted)) != accepted:
                raise ValueError(f"{CONFIG_NAME} says {name} {found!r}; accepted: {accepted!r}")
        stated = {
            ours: companion[theirs] for theirs, ours in _FIELDS.items() if theirs in companion
        }
        return stated | {"broadcast_dropout": False}  # PyTorch draws for every element

    def heads(
        self, shapes: Mapping[str, Shape], stated: dict, given: Given
    ) -> tuple[int, list[str]]:
        heads = stated.get("num_attention_heads")
        if heads is None:
            return infer.heads_of(_MODEL_TYPE, shapes, given.num_heads)
        if type(heads) is not int or heads < 1:
            raise ValueError(f"num_attention_heads is {heads!r}; accepted: a number from 1")
        if given.num_heads not in (None, heads):
            raise ValueError(f"{CONFIG_NAME} says {heads} attention heads, not {given.num_heads}")
        return heads, []

    def open(self, container: Container, state: StateDict, given: Given) -> Checkpoint:
        found = super().open(container, state, given)
        stated = self.read_companion(container)[1]
        for name, value in _counts(found.config).items():
            if stated.get(name, value) != value:
                raise ValueError(
                    f"{CONFIG_NAME} says {name} {stated[name]!r}, the weights show {value}"
                )
        found.notes.append(infer.GELU_NOTE)
        head, embeddings = state.tensors[_HEAD], state.tensors[_EMBEDDINGS]
        if head.dtype != embeddings.dtype:
            kinds = [dtypes.name_of_torch(tensor.dtype) for tensor in (head, embeddings)]
            found.notes.append(
                f"tensor {_HEAD} is {kinds[0]}, {_EMBEDDINGS} {kinds[1]}: not compared, although the "
                "published files hold a copy"
            )
        elif differing := rows_that_differ(head, embeddings):
            found.notes.append(
                f"tensor {_HEAD} differs from {_EMBEDDINGS}, of which the published files hold a copy, in "
                f"{differing:,} of {found.config['vocab_size']:,} rows"
            )
        return found

    def companions(self, source: Checkpoint) -> dict[str, bytes]:
        config = source.config
        same = source.origin.get("format") == self.NAME
        written = _REST | _CHOICES | (source.origin["companion"] if same else {})
        written |= {theirs: config[ours] for theirs, ours in _FIELDS.items()}
        written |= _counts(config)
        text = json.dumps(dict(sorted(written.items())), indent=2) + "\n"
        return {CONFIG_NAME: text.encode()}

    def marks(self, source: Checkpoint) -> list[str]:
        marks = super().marks(source)
        if source.config["gelu"] == "erf":
            return marks
        return [
            *marks,
            "files of unlockmgm cannot say that the GELU is the tanh form; its code runs erf",
        ]


def _rows(layers: int) -> Rows:
    """In the order of the file."""
    embed, head, module = "Embed_0", "MlmLayer_0", "self_guidance"
    rows = {
        "top_down_transform": Row((f"{module}/top_down/transform",)),
        _EMBEDDINGS: Row((f"params/{embed}/word_embeddings/embedding",)),
        "embed.position_embeddings.weight": Row((f"params/{embed}/position_embeddings/embedding",)),
    } | norm("embed.embeddings_ln", f"{embed}/embeddings_ln")
    for i in range(layers):
        theirs, google = f"transformer_layers.{i}", f"TransformerLayer_{i}"
        attention = f"{google}/Attention_0/self_attention"
        rows |= norm(f"{theirs}.attn_layer_norm", f"{google}/Attention_0/attention_output_ln")
        for part in ("query", "key", "value"):
            rows[f"{theirs}.attention.{part}.weight"] = Row(
                (f"params/{attention}/{part}/kernel",), QKV_KERNEL
            )
            rows[f"{theirs}.attention.{part}.bias"] = Row(
                (f"params/{attention}/{part}/bias",), QKV_BIAS
            )
        out = f"{theirs}.attention.out"
        rows[f"{out}.weight"] = Row((f"params/{attention}/out/kernel",), OUT_KERNEL)
        rows[f"{out}.bias"] = Row((f"params/{attention}/out/bias",))
        rows |= dense(f"{theirs}.ffn.intermediate_output", f"{google}/Mlp_0/intermediate_output")
        rows |= dense(f"{theirs}.ffn.layer_output", f"{google}/Mlp_0/layer_output")
        rows |= norm(f"{theirs}.ffn.layer_norm", f"{google}/Mlp_0/layer_output_ln")
    rows |= dense("mlm_layer.mlm_dense", f"{head}/mlm_dense")
    rows |= norm("mlm_layer.mlm_ln", f"{head}/mlm_ln")
    rows |= {
        _HEAD: Row((f"{module}/head/weight",)),
        "mlm_layer.to_logits.bias": Row((f"params/{head}/mlm_bias/bias",)),
    }
    own = ["mlp_p.weight", "mlp_c.weight", "mlp_f.weight"]
    own += ["mlp_t.weight", "mlp_t.bias", "layer_norm.weight", "layer_norm.bias"]
    for name in own:
        official = name.replace(".", "/")
        rows[f"cls_anchor_gen.{name}"] = Row((f"{module}/class_anchor/{official}",))
    for i in range(layers):
        for part in ("linear", "linear2"):
            official = f"{module}/decoder_{i}/{part}/weight"
            rows[f"decoders.{i}.{part}.weight"] = Row((official,))
    return rows


def _counts(config: dict) -> dict:
    """What their configuration says once more: codes, classes and the mask share the ids."""
    return {
        "codebook_size": config["vocab_size"] - config["num_classes"] - 1,
        "mask_token_id": config["vocab_size"] - 1,
        "num_vq_tokens": config["max_position_embeddings"] - 1,
    }


FORMAT = UnlockMGM()
