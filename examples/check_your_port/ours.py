"""What maskgit_pt itself looks like to `maskgit-parity check`: a file to start your own from.

  maskgit-parity record --output=pack
  maskgit-parity check pack --code=examples/check_your_port/ours.py

Inputs are NumPy arrays. Give as many of the functions as you have.
"""

import json
from pathlib import Path

import numpy as np
import torch

import convert
from convert import rules
from maskgit_pt.libml import jax_random, parallel_decode

LAYOUT = "NCHW"  # of the images that encode is given and decode returns; the default is NHWC
DTYPE = "float32"  # or "bfloat16", for which the pack has wider bounds


def load(pack: str) -> None:
    """Is called first, with the folder of the pack: the place to load its weights."""
    global transformer, tokenizer, codes
    transformer, tokenizer = (
        _model(Path(pack) / "weights" / f"{model_type}_checkpoint")
        for model_type in ("transformer", "tokenizer")
    )
    codes = json.loads((Path(pack) / "manifest.json").read_text())["model"]["codes"]


def _model(path: Path) -> torch.nn.Module:
    model_type, config, state_dict = convert.load_checkpoint(path)  # Google's format
    model = rules.build(model_type, config)
    model.load_state_dict(state_dict)
    return model.eval()


def logits(ids: np.ndarray) -> torch.Tensor:
    """int64 [B, N], -1 where masked -> [B, N, V], or only the logits of the codes."""
    return transformer(torch.from_numpy(ids))


def encode(images: np.ndarray) -> torch.Tensor:
    """float32 [B, 3, H, W] in [0, 1] -> indices [B, h, w]; or a pair: indices, features."""
    with torch.no_grad():
        return tokenizer.encode_to_indices(torch.from_numpy(images))


def decode(indices: np.ndarray) -> torch.Tensor:
    """int64 [B, h, w] -> images, not clipped."""
    with torch.no_grad():
        return tokenizer.decode_from_indices(torch.from_numpy(indices))


def sample(
    tokens: np.ndarray,
    key: tuple[int, int],
    num_iter: int,
    start_iter: int,
    temperature: float,
    partitionable: bool,
) -> torch.Tensor:
    """A whole run: int64 [B, N] and a JAX key -> the guess of every step, [B, num_iter, N]."""
    with torch.no_grad():
        return parallel_decode.decode(
            torch.from_numpy(tokens),
            jax_random.Key.from_words(list(key), partitionable),
            lambda ids: transformer(ids, codes),
            num_iter=num_iter,
            start_iter=start_iter,
            choice_temperature=temperature,
        )
