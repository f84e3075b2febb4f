"""From official names and shapes to what the model is: its type, configuration and resolution.

Weights show sizes only. What they do not show (dropout, initial standard deviation, activation,
quantizer and its losses) gets the official default.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from convert import rules
from convert.rules import Shape
from convert.signatures import DEFAULT_HEADS, SIGNATURES, Shapes, heads_or_default, last_of
from maskgit_pt.nets.self_guidance import GELUS

# What weights do not show, so that only the stated configuration can tell.
_NOT_IN_WEIGHTS = {
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "broadcast_dropout",
    "activation_fn",
    "quantizer",
    "commitment_cost",
    "entropy_loss_ratio",
    "entropy_loss_type",
    "entropy_temperature",
    "blur_resample",
    "width_rule",
    "weights",
    "pixels",
    "dropout",
    "resolution",
    "attention_resolutions",
    "num_codes",
    "num_classes",
    "class_names",
    "image_size",
    "tokenizer_fingerprint",
    "decoder_num_heads",
    "norm_groups",
    "gelu",
}


def likeness(names: Iterable[str], model_types: Iterable[str], torch_names: bool = False) -> float:
    """Which part of the names is that of one of these types, 0 to 1."""
    names = list(names)
    return max(
        (_votes(names, model_type, torch_names) for model_type in model_types), default=0
    ) / max(len(names), 1)


def infer_model_type(names: Iterable[str], torch_names: bool = False) -> str:
    """Returns the type of model of which most tensors remind.

    Raises:
      ValueError: no tensor reminds of any.
    """
    names = list(names)
    votes = {model_type: _votes(names, model_type, torch_names) for model_type in SIGNATURES}
    model_type = max(votes, key=votes.get)
    if not votes[model_type]:
        raise ValueError(
            f"neither transformer nor tokenizer: {len(names)} tensors ({rules.abbreviate(names)}), "
            "of which none has a name of these models"
        )
    return model_type


def _votes(names: list[str], model_type: str, torch_names: bool) -> int:
    sign = SIGNATURES[model_type].torch_names if torch_names else SIGNATURES[model_type].names
    return sum(bool(sign.match(name)) for name in names)


def infer_config(
    flat: Mapping[str, Any], num_heads: int = DEFAULT_HEADS, num_codes: int | None = None
) -> tuple[str, dict]:
    """Returns the type of model and the configuration that official names and shapes show.

    Args:
      flat: official name -> array, or anything that has a `.shape`, or the shape itself.
      num_heads: attention heads, where shapes do not show them.
      num_codes: codebook size, likewise; None: see `signatures.likely_codes`.

    Returns:
      (a key of `rules.MODEL_CLASSES`, a dictionary for `rules.build`).

    Raises:
      ValueError: a tensor that tells a size is missing or has a wrong shape; names it.
    """
    shapes = {name: tuple(getattr(value, "shape", value)) for name, value in flat.items()}
    model_type = infer_model_type(shapes)
    config = SIGNATURES[model_type].config(Shapes(shapes), num_heads, num_codes)
    return model_type, rules.target(model_type, config)[2]


def merge_config(model_type: str, inferred: dict, stated: dict, stated_in: str) -> dict:
    """Completes the inferred configuration by the stated one.

    Args:
      model_type: as inferred.
      inferred: from `infer_config`.
      stated: what a `config.json` says.
      stated_in: its name, for errors.

    Raises:
      ValueError: they disagree about something that the weights show.
    """
    stated = dict(stated)
    if (found := stated.pop("model_type", model_type)) != model_type:
        raise ValueError(f"{stated_in} says model_type {found!r}, the weights show {model_type!r}")
    result = {}
    for key, value in inferred.items():
        told = stated.get(key, value)
        if isinstance(value, dict):
            if not isinstance(told, dict):
                raise ValueError(f"{stated_in} says {key} {told!r}, no JSON object")
            value = merge_config(model_type, value, told, stated_in)
        elif key not in _NOT_IN_WEIGHTS and told != value:
            raise ValueError(f"{stated_in} says {key} {told!r}, the weights show {value!r}")
        result[key] = told if key in _NOT_IN_WEIGHTS else value
    return {**stated, **result}


def heads_of(
    model_type: str, shapes: Mapping[str, Shape], num_heads: int | None
) -> tuple[int, list[str]]:
    """The number of attention heads of a model where a file does not tell, and a note if it was assumed.

    Args:
      model_type: one with `Signature.width`.
      shapes: our names -> shapes.
      num_heads: as the user says; None: as published.

    Raises:
      ValueError: it does not fit, or no model of this width was published.
    """
    width = last_of(shapes, SIGNATURES[model_type].width)
    known = SIGNATURES[model_type].heads
    if known is None:
        return heads_or_default(width, num_heads)
    if num_heads is None and width not in known:
        widths = ", ".join(f"{heads} at {width}" for width, heads in known.items())
        raise ValueError(
            f"the number of attention heads is not in the file, and its width is {width}; the published "
            f"models have {widths}; --num_heads says how many it has"
        )
    note = (
        f"the number of attention heads is not in the file: took {known.get(width)}, as the published "
        f"model of width {width} has (--num_heads says otherwise)"
    )
    return num_heads or known[width], [] if num_heads else [note]


def visible(config: dict) -> dict:
    """The part of a configuration that weights show."""
    return {
        key: visible(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _NOT_IN_WEIGHTS
    }


# Files of the official tokenizer as they are published -> side of the images it was trained on.
_PUBLISHED_PIXELS = {
    r"tokenizer_imagenet256(_checkpoint|\.ckpt)|maskgit-vqgan-imagenet-f16-256(\.bin)?"
    r"|maskgit_tokenizer\.bin|vqgan_jax_strongaug\.ckpt": 256,
    r"tokenizer_imagenet512(_checkpoint|\.ckpt)": 512,
}


def note_pixels(model_type: str, config: dict, file: str, pixels: int | None) -> None:
    """Notes in a tokenizer's configuration for which images it is, which the weights do not show.

    Args:
      model_type, config: of the model; the configuration is changed.
      file: its name, for published ones.
      pixels: side of the images, if the user says it.

    Raises:
      ValueError: the model is no tokenizer that `pixels` can be noted of.
    """
    if model_type != "maskgit_vqvae":
        if pixels is not None:
            raise ValueError(f"--pixels is for the official tokenizer, this is a {model_type}")
        return
    named = [side for name, side in _PUBLISHED_PIXELS.items() if re.fullmatch(name, file)]
    pixels = pixels or config["vqvae"].get("pixels") or next(iter(named), None)
    if pixels is not None:
        config["vqvae"]["pixels"] = pixels


GELU_NOTE = (
    "runs with the erf GELU, as its authors run it and trained the module; Google's is the tanh form "
    "(--gelu=tanh)"
)


def note_gelu(model_type: str, config: dict, gelu: str) -> None:
    """Notes in a configuration with which GELU the network runs, which the weights do not show.

    Raises:
      ValueError: another type of model, or another GELU.
    """
    if "gelu" not in config:
        raise ValueError(
            f"--gelu is for networks with a self-guidance module, this is a {model_type}"
        )
    if gelu not in GELUS:
        raise ValueError(f"--gelu is {gelu!r}; accepted: {', '.join(GELUS)}")
    config["gelu"] = gelu


_TRANSFORMERS = (
    "maskgit_transformer", "besnier_transformer", "halton_transformer", "mage", "self_guided_transformer",
)  # fmt: skip


def resolution(model_type: str, config: dict) -> str:
    """What the model is for, in pixels: "256 x 256", "any multiple of 16"; of transformers that do not tell
    and were not published so, "unknown, 7 x 7 tokens an image"."""
    if model_type in _TRANSFORMERS:
        if config.get("image_size"):
            return f"{config['image_size']} x {config['image_size']}"
        tokens = config.get("num_tokens") or config["max_position_embeddings"] - 1
        if token := _pixels_of_token(model_type, config):
            return f"{token * math.isqrt(tokens)} x {token * math.isqrt(tokens)}"
        side = math.isqrt(tokens)
        grid = f"{side} x {side} tokens" if side * side == tokens else f"{tokens} tokens"
        return f"unknown, {grid} an image"
    if model_type == "maskgit_vqvae":
        if pixels := config.get("image_size") or config["vqvae"].get("pixels"):
            return f"{pixels} x {pixels}"
        return f"any multiple of {2 ** (len(config['vqvae']['channel_multipliers']) - 1)}"
    if model_type in ("taming_vqgan", "llamagen_vq"):
        return f"any multiple of {2 ** (len(config['channel_multipliers']) - 1)}"
    return f"{config['image_size']} x {config['image_size']}"


# The published transformers, whose tokenizers make one token of 16 x 16 pixels: their tokens an image, and
# what else they have in common.
_PUBLISHED_TOKENS = (256, 576, 1024)
_PUBLISHED_IDS = {
    "maskgit_transformer": ("vocab_size", 2025),
    "self_guided_transformer": ("vocab_size", 2025),
    "besnier_transformer": ("num_codes", 1024),
    "halton_transformer": ("num_codes", 16384),
}


def _pixels_of_token(model_type: str, config: dict) -> int | None:
    """The side of a transformer's token in pixels; None where neither weights nor publication tell."""
    if model_type == "mage":
        levels = len(config["vqvae"]["channel_multipliers"]) if "vqvae" in config else 0
        return 2 ** (levels - 1) if levels else config["patch_size"]
    tokens = config.get("num_tokens") or config["max_position_embeddings"] - 1
    key, ids = _PUBLISHED_IDS[model_type]
    return 16 if tokens in _PUBLISHED_TOKENS and config[key] == ids else None
