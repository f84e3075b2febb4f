"""The tokenizer: activations block by block, indices, images, and the quantizers in training."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from convert import rules
from maskgit_pt.libml.jax_random import Key
from parity import weights
from parity.bounds import FLOAT32, FLOAT64, Bounds
from parity.compare import Record, compare, compare_exact, compare_trees
from parity.jax_code import jit
from parity.layers import capture_torch, nhwc
from parity.pairs import TokenizerPair
from parity.stages import Finding, Picture

TAU = 0.7
NOISE_SEED = 5
# The official quantizer casts its losses to float32, in float64 as well.
OFFICIAL_ROUNDING = 5e-7
LOSSES = ("quantizer_loss", "e_latent_loss", "q_latent_loss", "entropy_loss")


def activations(
    pair: TokenizerPair, images: np.ndarray, atol: float = 0.0, rtol: float = 0.0
) -> Iterator[Record]:
    """Every block of the encoder on `images` [B, 3, H, W], and of the decoder on their codes."""
    tensor = torch.from_numpy(images)
    with torch.no_grad():
        indices = pair.ours.encode_to_indices(tensor)
    runs = {
        "encoder": (lambda: pair.ours.encoder(tensor), pair.encode, nhwc(images)),
        "decoder": (
            lambda: pair.ours.decode_from_indices(indices),
            pair.decode,
            indices.numpy().astype(np.int32),
        ),
    }
    for name, (call, run, inputs) in runs.items():
        paths = pair.paths(name)
        ours = capture_torch(pair.ours, paths, call)
        _, theirs = run(pair.variables, inputs)
        for module, path in paths.items():
            expected = theirs[path]
            if module.endswith("conv_out:input"):
                # The last norm and its activation are one operation here, two in Flax.
                expected = _ACTIVATIONS[pair.config.vqvae.activation_fn](expected)
            yield compare(module, nhwc(ours[module]), expected, atol, rtol)


_ACTIVATIONS = {"relu": jax.nn.relu, "swish": jax.nn.swish}


def results(
    pair: TokenizerPair, images: np.ndarray, bounds: Bounds, title: str = ""
) -> Iterator[Finding]:
    """Features, indices, quantized features and decoded images; the first image for the report.

    Args:
      pair: the tokenizer.
      images: [B, 3, H, W].
      bounds: of features and images.
      title: of the image in the report; without one it is left out.
    """
    ours, theirs = our_results(pair, images), their_results(pair, images)
    spread = f"{len(np.unique(theirs['indices']))} different codes"
    yield compare("features", ours["features"], theirs["features"], rtol=bounds.blocks)
    yield compare_exact("indices", ours["indices"], theirs["indices"], spread)
    yield compare("quantized", ours["quantized"], theirs["quantized"], rtol=bounds.blocks)
    yield compare("images", ours["images"], theirs["images"], atol=bounds.images)
    if title:
        yield Picture(title, ours["images"][0], theirs["images"][0], nhwc(images)[0])


def our_results(pair: TokenizerPair, images: np.ndarray) -> dict[str, np.ndarray]:
    """Features, indices, quantized features and decoded images of `images` [B, 3, H, W], NHWC."""
    with torch.no_grad():
        quantized, found = pair.ours.encode(torch.from_numpy(images))
        indices = pair.ours.encode_to_indices(torch.from_numpy(images))
        decoded = pair.ours.decode_from_indices(indices)
    return {
        "features": nhwc(found.get("raw", quantized)),
        "indices": indices.numpy(),
        "quantized": nhwc(quantized),
        "images": nhwc(decoded),
    }


def their_results(pair: TokenizerPair, images: np.ndarray) -> dict[str, np.ndarray]:
    """The same in JAX."""
    found, _ = pair.encode(pair.variables, nhwc(images))
    decoded, _ = pair.decode(pair.variables, found["indices"])
    return {name: np.asarray(value) for name, value in found.items()} | {
        "images": np.asarray(decoded)
    }


def in_float64(pair: TokenizerPair, images: np.ndarray) -> Iterator[Finding]:
    """Every block, and the results, in float64."""
    images = images.astype(np.float64)
    with pair.in_float64() as double:
        yield from activations(double, images, rtol=FLOAT64.blocks)
        yield from results(double, images, FLOAT64)


def training32(pair: TokenizerPair, images: np.ndarray, quantizer: str) -> Iterator[Record]:
    """A quantizer, "vq" or "gumbel", in training mode in float32."""
    yield from training(pair, images, quantizer, FLOAT32)


def training64(pair: TokenizerPair, images: np.ndarray, quantizer: str) -> Iterator[Record]:
    """The same in float64."""
    with pair.in_float64() as double:
        yield from training(double, images.astype(np.float64), quantizer, FLOAT64)


def training(
    pair: TokenizerPair, images: np.ndarray, quantizer: str, bounds: Bounds
) -> Iterator[Record]:
    """A quantizer in training mode: losses, straight-through output, gradients of every parameter.

    The loss differentiated is the mean squared reconstruction error plus the quantizer's.
    """
    ours, theirs = pair.in_training(quantizer)
    rng = jax.random.PRNGKey(NOISE_SEED)
    pixels = jnp.asarray(nhwc(images))

    def their_loss(variables: dict[str, Any]) -> tuple[jax.Array, Any]:
        def both(module: Any) -> Any:
            quantized, found = module.encode({"image": pixels, "tau": TAU})
            return module.decode(quantized), quantized, found

        decoded, quantized, found = theirs.apply(variables, method=both, rngs={"rng": rng})
        return jnp.mean((decoded - pixels) ** 2) + found["quantizer_loss"], (quantized, found)

    gradient_function = jit(jax.value_and_grad(their_loss, has_aux=True), quick=True)
    (loss, (quantized, found)), gradients = gradient_function(pair.variables)

    key = _noise_key(theirs, pair.variables, rng) if quantizer == "gumbel" else None
    target = torch.from_numpy(images)
    our_quantized, our_found = ours.encode(target, tau=TAU, rng=key)
    our_loss = (ours.decode(our_quantized) - target).square().mean() + our_found["quantizer_loss"]
    parameters = dict(ours.named_parameters())
    our_gradients = torch.autograd.grad(our_loss, list(parameters.values()))

    for name in LOSSES:
        if name in found and not isinstance(our_found[name], float):
            value = np.asarray(our_found[name].detach(), np.float32)
            yield compare(name, value, found[name], bounds.loss, OFFICIAL_ROUNDING)
    yield compare("whole loss", our_loss, loss, bounds.loss, OFFICIAL_ROUNDING)
    indices = our_found["encoding_indices"]
    yield compare_exact("indices", indices, found["encoding_indices"])
    yield compare("encodings", our_found["encodings"], found["encodings"], atol=10 * bounds.loss)
    yield compare("quantized", nhwc(our_quantized), quantized, atol=10 * bounds.loss)
    yield from compare_trees(
        "gradient of",
        dict(zip(parameters, our_gradients, strict=True)),
        rules.to_torch(weights.flatten(gradients), "maskgit_vqvae", ours.to_config()),
        *bounds.gradients,
    )


def _noise_key(module: Any, variables: dict[str, Any], rng: jax.Array) -> Key:
    """The key from which Flax draws the noise: `rng` with the quantizer's place folded in."""
    quantizer = module.bind(variables, rngs={"rng": rng}).quantizer
    words = [int(word) for word in np.asarray(quantizer.make_rng("rng"))]
    partitionable = bool(jax.config.jax_threefry_partitionable)
    return Key.from_words(words, partitionable=partitionable)
