"""Seeded weights (see `seeded`) in the Flax tree, and files of them in Google's format."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization, traverse_util

from parity import seeded
from parity.jax_code import JaxCode


def transformer_variables(
    code: JaxCode, config: dict[str, Any], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{"params": ...} of a Transformer built from `config` (its constructor's arguments)."""
    ids = np.zeros((1, config["max_position_embeddings"]), np.int32)
    return _fill("maskgit_transformer", _shapes(code.transformer(config), ids), seed)


def tokenizer_variables(code: JaxCode, config: Any, seed: int = 0) -> dict[str, dict[str, Any]]:
    """{"params": ...} of a VQVAE built from `config` (with `config.vqvae`)."""
    side = 2 ** len(config.vqvae.channel_multipliers)
    module = code.tokenizer(config)

    def everything(module: Any, images: np.ndarray) -> Any:
        return module.decode(module.encode({"image": images})[0])

    images = np.zeros((1, side, side, 3), np.float32)
    return _fill("maskgit_vqvae", _shapes(module, images, method=everything), seed)


def discriminator_variables(code: JaxCode, config: Any, seed: int = 0) -> dict[str, dict[str, Any]]:
    """{"params": ...} of a Discriminator built from `config`."""
    module = code.discriminator.Discriminator(config=config, train=False)
    images = np.zeros((1, config.image_size, config.image_size, 3), np.float32)
    return _fill("maskgit_discriminator", _shapes(module, images), seed)


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


def _fill(model_type: str, shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Any]:
    return traverse_util.unflatten_dict(seeded.draw(model_type, shapes, seed), sep="/")
