"""Seeded weights of trained-like magnitude, under Google's names; needs no JAX.

A freshly initialised network hides faults: with biases 0, gains 1 and kernels of .02 many a wrong
epsilon, bias or transpose leaves no trace. Here the gains of LayerNorm and GroupNorm lie in
.5 ... 1.9, no bias is zero, kernels keep the variance, and the logits' standard deviation is about 10.
"""

import math
import zlib

import numpy as np

LOGIT_STD = 10.0
MODEL_TYPES = {"transformer": "maskgit_transformer", "tokenizer": "maskgit_vqvae"}


def draw(model_type: str, shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Draws every array from its own stream, so that it depends on its name and the seed alone.

    Args:
      model_type: "maskgit_transformer", "maskgit_vqvae" or "maskgit_discriminator".
      shapes: Google's name ("params/...") -> shape.
      seed: of the streams.

    Returns:
      Name -> float32.
    """
    leaves = {"maskgit_transformer": _transformer_leaf, "maskgit_vqvae": _tokenizer_leaf}
    leaf = leaves.get(model_type, _plain_leaf)
    flat = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        flat[name] = leaf(name, shape, rng).astype(np.float32)
    return flat


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
