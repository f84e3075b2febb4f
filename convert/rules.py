"""The tables between official (Flax) and PyTorch names, and the two directions they are used in.

A row is: PyTorch module, official module, what the module is. Placeholders stand for numbers; three
official modules in braces are stacked, in that order, along the first axis of one PyTorch tensor.
What a module is says its tensors, each with a named transform. The tables are never searched by
substring, and a transpose is never guessed from a rank.

Conversion walks the tensors of the PyTorch module and fails on any without a rule; then every
official tensor must have been used and every shape must agree (`close_books`).
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import ml_collections
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convert import dtypes
from maskgit_pt.nets.discriminator import Discriminator
from maskgit_pt.nets.maskgit_transformer import Transformer
from maskgit_pt.nets.vqgan_tokenizer import VQVAE

Shape = tuple[int, ...]


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
_CODEBOOK = {"codebook": ("params", "codebook", IDENTITY)}

# {i}: any number; {i+1}: one more; {norm}: GroupNorm, LayerNorm or BatchNorm;
# {last}: the number of the Encoder's or Decoder's last convolution.
_ATTENTION = "TransformerLayer_{i}/Attention_0"
TABLES = {
    "transformer": [
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
    "tokenizer": [
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
    "discriminator": [
        ("conv_in", "Conv_0", _CONV),
        ("res_blocks.{i}.conv0", "ResBlock_{i}/Conv_0", _CONV),
        ("res_blocks.{i}.conv_shortcut", "ResBlock_{i}/Conv_1", _CONV),
        ("res_blocks.{i}.conv1", "ResBlock_{i}/Conv_2", _CONV),
        ("conv_out", "Conv_1", _CONV),
        ("dense0", "Dense_0", _DENSE),
        ("dense1", "Dense_1", _DENSE),
    ],
}
MODEL_CLASSES = {"transformer": Transformer, "tokenizer": VQVAE, "discriminator": Discriminator}
NORM_NAMES = {"GN": "GroupNorm", "LN": "LayerNorm", "BN": "BatchNorm"}
# PyTorch counts the batches a BatchNorm has seen, Flax does not; with a fixed momentum nobody asks.
TORCH_ONLY = "num_batches_tracked"


@dataclass(frozen=True)
class Piece:
    """One official tensor and where it goes: rows of a PyTorch tensor, all of them unless stacked.

    Attributes:
      official: e.g. "params/Embed_0/word_embeddings/embedding".
      torch: e.g. "embed.word_embeddings.weight".
      torch_shape: of the whole PyTorch tensor.
      transform: between the official tensor and the rows.
      index, count: the rows are the `index`-th of `count` equal parts.
      heads: attention heads.
    """

    official: str
    torch: str
    torch_shape: Shape
    transform: Transform
    index: int
    count: int
    heads: int

    @property
    def rows_shape(self) -> Shape:
        if self.count == 1:
            return self.torch_shape
        return (self.torch_shape[0] // self.count, *self.torch_shape[1:])

    @functools.cached_property
    def official_shape(self) -> Shape:
        rows = torch.empty(self.rows_shape, device="meta")
        return tuple(self.transform.to_official(rows, self.heads).shape)

    def check(self) -> None:
        """Raises ValueError if the transform does not fit the shape."""
        try:
            fits = self.count == 1 or self.torch_shape[0] % self.count == 0
            fits = fits and len(self.official_shape) >= 0  # raises where it cannot be made
        except (RuntimeError, IndexError, ValueError):
            fits = False
        if not fits:
            raise ValueError(
                f"tensor {self.torch} has shape {list(self.torch_shape)}, which does not fit "
                f"{self.transform.name}" + (f", {self.heads} heads" if self.heads > 1 else "")
            )

    def rows_of(self, tensor: Tensor) -> Tensor:
        """The rows of the whole PyTorch tensor (a view)."""
        return tensor if self.count == 1 else tensor.tensor_split(self.count)[self.index]

    def to_official(self, tensor: Tensor) -> Tensor:
        """The official tensor within the whole PyTorch tensor (a view)."""
        return self.transform.to_official(self.rows_of(tensor), self.heads)


def pieces_of(
    kind: str, shapes: Mapping[str, Shape], heads: int = 1, norm_type: str = "GN"
) -> list[Piece]:
    """Applies the table of `kind` to PyTorch tensors.

    Args:
      kind: "transformer", "tokenizer" or "discriminator".
      shapes: PyTorch name -> shape; of a model, or of what a file holds.
      heads: attention heads.
      norm_type: "GN", "LN" or "BN", for the tokenizer.

    Raises:
      ValueError: a tensor without a rule, or whose shape its rule cannot handle.
    """
    pieces = []
    last = {half: _last_conv(half, shapes) for half in ("encoder", "decoder")}
    for name, shape in shapes.items():
        if name.endswith("." + TORCH_ONLY):
            continue
        module, _, leaf = name.rpartition(".")
        row = _find_row(kind, module)
        if row is None or leaf not in row[1]:
            raise ValueError(f"tensor {name} {list(shape)} is none of a {kind}: no rule for it")
        fields = {"norm": NORM_NAMES[norm_type], "last": last.get(module.split(".")[0])}
        officials = _expand(row[0], fields)
        collection, official_leaf, transform = row[1][leaf]
        for index, official in enumerate(officials):
            piece = Piece(
                f"{collection}/{official}/{official_leaf}",
                name, tuple(shape), transform, index, len(officials), heads,
            )  # fmt: skip
            piece.check()
            pieces.append(piece)
    return pieces


def _last_conv(half: str, names: Iterable[str]) -> int:
    resampling = re.compile(rf"{half}\.(down|up)sample_convs\.\d+\.weight")
    return 1 + sum(bool(resampling.fullmatch(name)) for name in names)


@functools.cache
def _patterns(kind: str) -> list[tuple[re.Pattern, str, dict]]:
    number = r"(?P<i>0|[1-9]\\d{0,5})"
    return [
        (re.compile(re.sub(r"\\{i\\}", number, re.escape(module))), official, leaves)
        for module, official, leaves in TABLES[kind]
    ]


@functools.lru_cache(maxsize=4096)
def _find_row(kind: str, module: str) -> tuple[str, dict] | None:
    """Returns (official module with {i} filled in, leaves) of the row that the module matches."""
    for pattern, official, leaves in _patterns(kind):
        if match := pattern.fullmatch(module):
            if "i" in pattern.groupindex:
                i = int(match["i"])
                official = official.replace("{i}", str(i)).replace("{i+1}", str(i + 1))
            return official, leaves
    return None


def _expand(official: str, fields: dict) -> list[str]:
    """"a/{query,key}" -> ["a/query", "a/key"]; "a/{norm}_0" -> ["a/GroupNorm_0"]."""
    before, brace, rest = official.partition("{")
    if not brace:
        return [official]
    inside, _, after = rest.partition("}")
    options = inside.split(",") if "," in inside else [str(fields[inside])]
    return [before + option + after for option in options]


class _WithoutInitialValues(TorchFunctionMode):
    """Leaves out `nn.init`: on the meta device there is nothing to set, and `normal_` there imports
    torch's compiler (2 seconds)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


@functools.lru_cache(maxsize=32)
def _target(kind: str, config_json: str) -> tuple[dict[str, Shape], list[Piece], dict]:
    config = json.loads(config_json)
    with torch.device("meta"), _WithoutInitialValues():
        model = build(kind, config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # The class fills in what `config` leaves out.
    config = model.to_config() if hasattr(model, "to_config") else config
    heads = config.get("num_attention_heads", 1)
    norm_type = config.get("vqvae", {}).get("norm_type", "GN")
    return shapes, pieces_of(kind, shapes, heads, norm_type), config


def model_type(kind: str) -> str:
    """What `config.json` calls this kind."""
    return getattr(MODEL_CLASSES[kind], "model_type", f"maskgit_{kind}")


def build(kind: str, config: dict) -> nn.Module:
    """Makes the PyTorch module of `kind` from the dictionary that its `to_config` gives."""
    if kind == "discriminator":
        return Discriminator(ml_collections.ConfigDict(config))
    return MODEL_CLASSES[kind].from_config(config)


def target(kind: str, config: dict) -> tuple[dict[str, Shape], list[Piece], dict]:
    """Returns (PyTorch name -> shape, all pieces, complete config) of a model.

    Raises:
      ValueError: the configuration is not one of this kind.
    """
    try:
        shapes, pieces, complete = _target(kind, json.dumps(config, sort_keys=True))
    except (
        TypeError, KeyError, AttributeError, RuntimeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise ValueError(f"no {kind} configuration: {type(error).__name__} {error}") from None
    return dict(shapes), list(pieces), json.loads(json.dumps(complete))


def close_books(expected: Mapping[str, Shape], found: Mapping[str, Shape], of: str) -> None:
    """Checks that both hold the same names with the same shapes.

    Raises:
      ValueError: one line with every missing, extra and misshapen tensor (the first few of each).
    """
    missing = [f"{name} {list(expected[name])}" for name in sorted(expected.keys() - found.keys())]
    extra = [f"{name} {list(found[name])}" for name in sorted(found.keys() - expected.keys())]
    misshapen = [
        f"{name} is {list(found[name])} instead of {list(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if tuple(expected[name]) != tuple(found[name])
    ]
    lists = {"missing": missing, "not known": extra, "of a wrong shape": misshapen}
    problems = [f"{len(x)} {what}: {abbreviate(x)}" for what, x in lists.items() if x]
    if problems:
        raise ValueError(f"tensors do not fit {of}: {'; '.join(problems)}")


def abbreviate(items: list[str], limit: int = 4) -> str:
    """"a, b, c, d and 7 more"."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def to_torch(flat: Mapping[str, np.ndarray], kind: str, config: dict) -> dict[str, Tensor]:
    """Converts official arrays to a PyTorch state dict.

    Args:
      flat: official name ("params/...") -> array.
      kind: "transformer", "tokenizer" or "discriminator".
      config: as `infer_config` gives it.

    Returns:
      What `load_state_dict` takes, in the module's order; contiguous, in the arrays' dtype.

    Raises:
      ValueError: missing, extra or misshapen arrays.
    """
    shapes, pieces, _ = target(kind, config)
    close_books(
        {piece.official: piece.official_shape for piece in pieces},
        {name: np.shape(array) for name, array in flat.items()},
        f"this {kind}",
    )
    state = {name: torch.zeros((), dtype=torch.int64) for name in shapes}
    for piece in pieces:
        tensor = dtypes.to_tensor(np.asarray(flat[piece.official]))
        if piece.index == 0:
            state[piece.torch] = torch.empty(piece.torch_shape, dtype=tensor.dtype)
        piece.rows_of(state[piece.torch]).copy_(piece.transform.to_torch(tensor))
    return state


def to_official(state_dict: Mapping[str, Tensor], kind: str, config: dict) -> dict[str, np.ndarray]:
    """The inverse of `to_torch`: PyTorch state dict -> official arrays, in published order.

    Raises:
      ValueError: missing, extra or misshapen tensors.
    """
    shapes, pieces, _ = target(kind, config)
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    close_books(shapes, found, f"this {kind}")
    flat = {
        piece.official: dtypes.to_numpy(
            piece.to_official(state_dict[piece.torch].detach().cpu()).contiguous()
        )
        for piece in pieces
    }
    return {name: flat[name] for name in published_order(flat)}


def published_order(names: Iterable[str]) -> list[str]:
    """Sorts official names as in Google's files: by name, but the transformer's head comes last.

    (Modules stand in the order of their creation, layers sorted as strings; in the tokenizer that
    is the order of the names.)
    """
    return sorted(names, key=lambda name: ("/MlmLayer_0/" in name, name.split("/")))
