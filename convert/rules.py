"""Applies the `tables` between official and PyTorch names, in both directions.

The tables are never searched by substring, and a transpose is never guessed from a rank. Conversion
walks the tensors of the PyTorch module and fails on any without a rule; then every official tensor
must have been used and every shape must agree (`close_books`).
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ml_collections
import numpy as np
import torch
from torch import Tensor, nn

from convert.files import dtypes
from convert.files.tensors import Shape
from convert.rows import Outgoing, Row, Rows
from convert.tables import TABLES, Transform
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.nets.discriminator import Discriminator
from maskgit_pt.nets.halton_transformer import HaltonTransformer
from maskgit_pt.nets.llamagen_vq import LlamaGenVQ
from maskgit_pt.nets.mage import Mage
from maskgit_pt.nets.maskgit_transformer import Transformer
from maskgit_pt.nets.self_guidance import SelfGuidedTransformer
from maskgit_pt.nets.taming_vqgan import TamingVQGAN
from maskgit_pt.nets.vqgan_tokenizer import VQVAE
from maskgit_pt.pretrained import PretrainedMixin, without_values

# By the `model_type` of their config.json.
MODEL_CLASSES = {
    "maskgit_transformer": Transformer,
    "maskgit_vqvae": VQVAE,
    "maskgit_discriminator": Discriminator,
    "besnier_transformer": BesnierTransformer,
    "taming_vqgan": TamingVQGAN,
    "halton_transformer": HaltonTransformer,
    "llamagen_vq": LlamaGenVQ,
    "mage": Mage,
    "self_guided_transformer": SelfGuidedTransformer,
}
# Models that hold another one, frozen: what is within it, and settings that only the whole has.
_FROZEN_PARTS = {
    "self_guided_transformer": ("maskgit_transformer", ("num_classes", "tg_factor", "gelu"))
}
# Models that come from PyTorch: their official names are those of the published files, which ours
# are too, and nothing is transformed.
FROM_PYTORCH = ("besnier_transformer", "taming_vqgan", "halton_transformer", "llamagen_vq", "mage")
NORM_NAMES = {"GN": "GroupNorm", "LN": "LayerNorm", "BN": "BatchNorm"}
# PyTorch counts the batches a BatchNorm has seen, Flax does not; with a fixed momentum nobody asks.
TORCH_ONLY = "num_batches_tracked"


@dataclass(frozen=True)
class Piece:
    """One official tensor and where it goes: rows of a tensor, all of them unless stacked.

    Attributes:
      official: e.g. "params/Embed_0/word_embeddings/embedding".
      torch: e.g. "embed.word_embeddings.weight".
      torch_shape: of the whole tensor.
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
            fits = self.torch_shape[0] % self.count == 0 and bool(self.official_shape)
        except (RuntimeError, IndexError, ValueError, TypeError, OverflowError):
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


def table_rows(model_type: str, shapes: Mapping[str, Shape], norm_type: str = "GN") -> Rows:
    """Looks PyTorch tensors up in the table of a `model_type`.

    Args:
      model_type: a key of `MODEL_CLASSES`.
      shapes: PyTorch name -> shape; of a model, or of what a file holds.
      norm_type: "GN", "LN" or "BN", for the tokenizer.

    Raises:
      ValueError: a tensor without a rule.
    """
    if model_type in FROM_PYTORCH:
        return {name: Row((name,)) for name in shapes}
    rows = {}
    last = {half: _last_conv(half, shapes) for half in ("encoder", "decoder")}
    for name, shape in shapes.items():
        if name.endswith("." + TORCH_ONLY):
            rows[name] = Row(())
            continue
        module, _, leaf = name.rpartition(".")
        row = _find_row(model_type, module)
        if row is None or leaf not in row[1]:
            raise ValueError(
                f"tensor {name} {list(shape)} is not known in a {model_type}: there is no rule for it"
            )
        fields = {"norm": NORM_NAMES[norm_type], "last": last.get(module.split(".")[0])}
        collection, official_leaf, transform = row[1][leaf]
        officials = (f"{collection}/{o}/{official_leaf}" for o in _expand(row[0], fields))
        rows[name] = Row(tuple(officials), transform)
    return rows


def pieces_of(rows: Rows, shapes: Mapping[str, Shape], heads: int = 1) -> list[Piece]:
    """Takes tensors apart into official ones; names without a row are left to `close_books`.

    Args:
      rows: what the tensors are.
      shapes: name -> shape.
      heads: attention heads.

    Raises:
      ValueError: a shape that its transform cannot handle.
    """
    pieces = []
    for name, shape in shapes.items():
        row = rows.get(name, Row(()))
        for index, official in enumerate(row.officials):
            pieces.append(
                Piece(official, name, tuple(shape), row.transform, index, len(row.officials), heads)
            )
            pieces[-1].check()
    return pieces


def _last_conv(half: str, names: Iterable[str]) -> int:
    resampling = re.compile(rf"{half}\.(down|up)sample_convs\.\d+\.weight")
    return 1 + sum(bool(resampling.fullmatch(name)) for name in names)


@functools.cache
def _patterns(model_type: str) -> list[tuple[re.Pattern, str, dict]]:
    number = r"(?P<i>0|[1-9]\\d{0,5})"
    return [
        (re.compile(re.sub(r"\\{i\\}", number, re.escape(module))), official, leaves)
        for module, official, leaves in TABLES[model_type]
    ]


@functools.lru_cache(maxsize=4096)
def _find_row(model_type: str, module: str) -> tuple[str, dict] | None:
    """Returns (official module with {i} filled in, leaves) of the row that the module matches."""
    for pattern, official, leaves in _patterns(model_type):
        if match := pattern.fullmatch(module):
            if "i" in pattern.groupindex:
                i = int(match["i"])
                official = official.replace("{i}", str(i)).replace("{i+1}", str(i + 1))
            return official, leaves
    return None


def has_rule(model_type: str, name: str) -> bool:
    """Whether the table of `model_type` knows a PyTorch tensor."""
    module, _, leaf = name.rpartition(".")
    row = _find_row(model_type, module)
    return leaf == TORCH_ONLY or row is not None and leaf in row[1]


def _expand(official: str, fields: dict) -> list[str]:
    """Fills braces: "a/{query,key}" -> ["a/query", "a/key"]; "a/{norm}_0" -> ["a/GroupNorm_0"]."""
    before, brace, rest = official.partition("{")
    if not brace:
        return [official]
    inside, _, after = rest.partition("}")
    options = inside.split(",") if "," in inside else [str(fields[inside])]
    return [before + option + after for option in options]


@functools.lru_cache(maxsize=32)
def _target(model_type: str, config_json: str) -> tuple[dict[str, Shape], list[Piece], dict, Rows]:
    config = json.loads(config_json)
    with without_values():
        model = build(model_type, config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # The class fills in what `config` leaves out.
    if isinstance(model, PretrainedMixin):
        config = model.full_config()
        del config["model_type"]
    rows = table_rows(model_type, shapes, config.get("vqvae", {}).get("norm_type", "GN"))
    return shapes, pieces_of(rows, shapes, config.get("num_attention_heads", 1)), config, rows


def frozen_part(model_type: str, config: dict) -> tuple[str, dict] | None:
    """Type and configuration of the model that one holds, frozen; None if it holds none."""
    if model_type not in _FROZEN_PARTS:
        return None
    part, own = _FROZEN_PARTS[model_type]
    return part, {name: value for name, value in config.items() if name not in own}


def build(model_type: str, config: dict) -> nn.Module:
    """Makes the PyTorch module of `model_type` from the dictionary that its `full_config` gives."""
    if model_type == "maskgit_discriminator":
        return Discriminator(ml_collections.ConfigDict(config))
    return MODEL_CLASSES[model_type].from_full_config(config)


def target(model_type: str, config: dict) -> tuple[dict[str, Shape], list[Piece], dict]:
    """Returns (PyTorch name -> shape, all pieces, complete config) of a model.

    Raises:
      ValueError: the configuration is not one of this type.
    """
    shapes, pieces, complete, _ = _checked_target(model_type, config)
    return dict(shapes), list(pieces), json.loads(json.dumps(complete))


def model_rows(model_type: str, config: dict) -> Rows:
    """Returns what the tensors of a PyTorch model are, in the module's order; errors as `target`."""
    return dict(_checked_target(model_type, config)[3])


def _checked_target(
    model_type: str, config: dict
) -> tuple[dict[str, Shape], list[Piece], dict, Rows]:
    try:
        return _target(model_type, json.dumps(config, sort_keys=True))
    except (
        TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError, RecursionError
    ) as error:  # fmt: skip
        raise ValueError(f"no {model_type} configuration: {type(error).__name__} {error}") from None


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
    """ "a, b, c, d and 7 more"."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def to_torch(flat: Mapping[str, np.ndarray], model_type: str, config: dict) -> dict[str, Tensor]:
    """Converts official arrays to a PyTorch state dict.

    Args:
      flat: official name ("params/...") -> array.
      model_type: a key of `MODEL_CLASSES`.
      config: as `infer_config` gives it.

    Returns:
      What `load_state_dict` takes, in the module's order; contiguous, in the arrays' dtype.

    Raises:
      ValueError: missing, extra or misshapen arrays.
    """
    pieces = target(model_type, config)[1]
    close_books(
        {piece.official: piece.official_shape for piece in pieces},
        {name: np.shape(array) for name, array in flat.items()},
        f"this {model_type}",
    )
    tensors = {name: dtypes.to_tensor(np.asarray(array)) for name, array in flat.items()}
    return Outgoing(tensors, model_rows(model_type, config)).state_dict()


def to_official(
    state_dict: Mapping[str, Tensor], model_type: str, config: dict
) -> dict[str, np.ndarray]:
    """The inverse of `to_torch`: PyTorch state dict -> official arrays, in published order.

    Raises:
      ValueError: missing, extra or misshapen tensors.
    """
    shapes, pieces, _ = target(model_type, config)
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    close_books(shapes, found, f"this {model_type}")
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
