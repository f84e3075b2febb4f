"""The generator: input tokens, editing masks, compositing, and whole images from a key."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import torch

from maskgit_pt.inference import ImageNet_class_conditional_generator
from maskgit_pt.libml import jax_random
from maskgit_pt.utils import Bbox
from parity.bounds import FLOAT32
from parity.compare import Record, compare, compare_exact
from parity.layers import nhwc
from parity.pairs import TokenizerPair, TransformerPair

# Fractions of the image's side, in 64ths: top, left, height, width; some not on the token grid.
_BOXES = ((16, 8, 32, 36), (50, 60, 14, 4), (5, 9, 7, 11))
_LABEL = 3


def generator(
    transformer: TransformerPair,
    tokenizer: TokenizerPair,
    config: ml_collections.ConfigDict,
    picture: np.ndarray,
) -> Iterator[Record]:
    """Every method of the generator that computes something.

    Args:
      transformer, tokenizer: the nets.
      config: as official.
      picture: float32 [1, 3, H, W].
    """
    config = config.copy_and_resolve_references()
    config.eval_batch_size = 2
    ours = ImageNet_class_conditional_generator(transformer.ours, tokenizer.ours, config)
    theirs = transformer.code.generator(
        config,
        transformer.theirs,
        tokenizer.theirs,
        (transformer.variables, tokenizer.variables),
    )
    tokens = ours.create_input_tokens_normal(_LABEL)
    yield compare_exact("input tokens", tokens, theirs.create_input_tokens_normal(_LABEL))
    for fractions in _BOXES:
        box = Bbox(*(value * config.image_size // 64 for value in fractions))
        yield from _edit(ours, theirs, box, picture)
    yield _sample(ours, theirs, tokens)


def _edit(ours: Any, theirs: Any, box: Bbox, picture: np.ndarray) -> Iterator[Record]:
    name = f"box {box.top},{box.left},{box.height},{box.width}"
    image = torch.from_numpy(picture[0])
    mask, tokens = ours.create_latent_mask_and_input_tokens_for_image_editing(image, box, _LABEL)
    their_mask, their_tokens = theirs.create_latent_mask_and_input_tokens_for_image_editing(
        nhwc(picture)[0], box, _LABEL
    )
    yield compare_exact(f"{name}: latent mask", mask, their_mask)
    yield compare_exact(f"{name}: input tokens", tokens, their_tokens)
    made = np.random.default_rng(4).random((2, *picture.shape[1:])).astype(np.float32)
    blended = ours.composite_outputs(image, mask, torch.from_numpy(made))
    expected = theirs.composite_outputs(nhwc(picture)[0], their_mask, nhwc(made))
    yield compare(f"{name}: composite", nhwc(blended), np.asarray(expected), atol=FLOAT32.images)


def _sample(ours: Any, theirs: Any, tokens: Any) -> Record:
    """A whole `generate_samples`, with few steps: decoding has its own stages."""
    partitionable = bool(jax.config.jax_threefry_partitionable)
    key = jax_random.PRNGKey(ours.rng_seed(), partitionable=partitionable)
    images = ours.generate_samples(tokens, key, num_iterations=4)
    expected = theirs.generate_samples(
        jnp.asarray(tokens.numpy(), jnp.int32),
        jax.random.PRNGKey(theirs.rng_seed()),
        num_iterations=4,
    )
    return compare("images", nhwc(images), np.asarray(expected), atol=FLOAT32.images)
