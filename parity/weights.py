"""Seeded weights of trained-like magnitude, in the Flax tree, and files of them in Google's format.

A freshly initialised network hides faults: with biases 0, gains 1 and kernels of .02 many a wrong
epsilon, bias or transpose leaves no trace. Here the gains of LayerNorm and GroupNorm lie in
.5 ... 1.9, no bias is zero, kernels keep the variance, and the logits' standard deviation is about 10.
"""

import math
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization, traverse_util

from parity.jax_code import JaxCode

LOGIT_STD = 10.0


def transformer_variables(
    code: JaxCode, config: dict[str, Any], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{"params": ...} of a Transformer built from `config` (its constructor's arguments)."""
    ids = np.zeros((1, config["max_position_embeddings"]), np.int32)
    return _fill(_shapes(code.transformer(config), ids), seed, _transformer_leaf)


def tokenizer_variables(code: JaxCode, config: Any, seed: int = 0) -> dict[str, dict[str, Any]]:
    """{"params": ...} of a VQVAE built from `config` (with `config.vqvae`)."""
    side = 2 ** len(config.vqvae.channel_multipliers)
    module = code.tokenizer(config)

    def everything(module: Any, images: np.ndarray) -> Any:
        return module.decode(module.encode({"image": images})[0])

    images = np.zeros((1, side, side, 3), np.float32)
    return _fill(_shapes(module, images, method=everything), seed, _tokenizer_leaf)


def discriminator_variables(code: JaxCode, config: Any, seed: int = 0) -> dict[str, dict[str, Any]]:
    """{"params": ...} of a Discriminator built from `config`."""
    module = code.discriminator.Discriminator(config=config, train=False)
    images = np.zeros((1, config.image_size, config.image_size, 3), np.float32)
    return _fill(_shapes(module, images), seed, _plain_leaf)


def write_checkpoint(variables: dict[str, Any], path: Path) -> None:
    """Writes a file as Google's: `flax.serialization.to_bytes({"params": ...})`."""
    path.write_bytes(serialization.to_bytes(variables))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads such a file with Flax itself: {"params": nested numpy arrays}."""
    return serialization.msgpack_restore(Path(path).read_bytes())


def flatten(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Nested tree -> {"params/Embed_0/...": array}."""
    flat = traverse_util.flatten_dict(variables, sep="/")
    return {name: np.asarray(value) for name, value in flat.items()}


def to_float64(variables: dict[str, Any]) -> dict[str, Any]:
    """The same tree in float64."""
    return jax.tree_util.tree_map(lambda value: np.asarray(value, np.float64), variables)


def _shapes(module: Any, *inputs: Any, **options: Any) -> dict[str, tuple[int, ...]]:
    key = jax.random.PRNGKey(0)
    tree = jax.eval_shape(lambda *values: module.init(key, *values, **options), *inputs)
    flat = traverse_util.flatten_dict(dict(tree), sep="/")
    return {name: tuple(leaf.shape) for name, leaf in flat.items() if name.startswith("params/")}


def _fill(shapes: dict[str, tuple[int, ...]], seed: int, leaf: Any) -> dict[str, Any]:
    """Every array from its own stream, so that it depends on its name and the seed alone."""
    flat = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        flat[name] = leaf(name, shape, rng).astype(np.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def _plain_leaf(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    kind = name.rpartition("/")[2]
    if kind == "scale":
        return rng.uniform(0.5, 1.9, shape)
    if kind == "bias":
        return rng.normal(0.0, 0.1, shape)
    if kind == "kernel":
        return rng.normal(0.0, 1 / math.sqrt(math.prod(shape[:-1])), shape)
    raise ValueError(f"{name}: no rule to draw it by")


def _transformer_leaf(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    kind = name.rpartition("/")[2]
    if kind == "embedding":
        # A logit sums D products of an embedding with the head's LayerNorm output, whose mean
        # square is that of gain and bias, 1.61. The LayerNorm after the embeddings undoes it.
        return rng.normal(0.0, LOGIT_STD / math.sqrt(1.61 * shape[-1]), shape)
    if kind == "kernel" and name.rpartition("/")[0].endswith(("query", "key", "value")):
        return rng.normal(0.0, 1 / math.sqrt(shape[0]), shape)  # [D, heads, D / heads]
    return _plain_leaf(name, shape, rng)


def _tokenizer_leaf(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name.endswith("codebook"):
        return rng.normal(0.0, _feature_std(shape[-1]), shape)
    values = _plain_leaf(name, shape, rng)
    if "/encoder/" in name and _is_last_conv(name, shape):
        return values * _feature_std(shape[-1])
    if "/decoder/" in name and shape[-1] == 3:
        return values / 4 + (0.5 if len(shape) == 1 else 0.0)  # images of about .5 +- .25
    return values


def _feature_std(width: int) -> float:
    """Makes squared distances to the codes about .64 whatever the width.

    The entropy loss divides them by .01: were they large, float32 would leave it few digits.
    """
    return math.sqrt(0.32 / width)


def _is_last_conv(name: str, shape: tuple[int, ...]) -> bool:
    """The encoder's last convolution: the only one with a bias, and the only 1x1 outside a block."""
    outside = "ResBlock" not in name and "Norm" not in name
    return outside and (len(shape) == 1 or shape[:2] == (1, 1))


def flatten_intermediates(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """Flax's captured outputs, a tuple with one entry per call -> {path: first call's array}."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {name: np.asarray(calls[0]) for name, calls in flat.items()}
