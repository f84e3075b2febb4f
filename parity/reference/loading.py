"""Weights for the Flax reference, from any file or folder that `convert` reads."""

import os
import warnings
from typing import Any

import ml_collections
from flax import traverse_util

from convert.formats.recognise import open_checkpoint
from parity import jax_code


def load(
    path: str | os.PathLike, num_heads: int | None = None, num_codes: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """Loads a network: (Flax module, variables), for `module.apply(variables, ...)`.

    Args:
      path: Google's file, a folder that `maskgit-convert` wrote, or any other format it reads.
      num_heads, num_codes: for files that do not tell.

    Returns:
      A `Transformer` or a `VQVAE` in evaluation mode, and its weights as float32 numpy arrays.

    Raises:
      ValueError, OSError: one line that begins with the path.
    """
    checkpoint = open_checkpoint(path, num_heads, num_codes)
    for note in checkpoint.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    code, model_type, config = jax_code.load_reference(), checkpoint.model_type, checkpoint.config
    if model_type == "maskgit_transformer":
        module = code.transformer(config)
    elif model_type == "maskgit_vqvae":
        module = code.tokenizer(ml_collections.ConfigDict({"vqvae": config["vqvae"]}))
    else:
        raise ValueError(
            f"{path}: a {model_type}; the reference has: maskgit_transformer, maskgit_vqvae"
        )
    flat = {name: tensor.float().numpy() for name, tensor in checkpoint.tensors.items()}
    return module, traverse_util.unflatten_dict(flat, sep="/")
