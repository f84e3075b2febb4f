"""The recorded vectors in `tests/golden/official`, and the tiny models that they belong to."""

import copy
import functools
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
OFFICIAL = GOLDEN / "official"


def golden(name: str) -> dict[str, np.ndarray]:
    """Loads a file of recorded vectors, `tests/golden/official/NAME.npz`."""
    with np.load(OFFICIAL / f"{name}.npz") as file:
        return dict(file)


def assert_close(ours, theirs, tolerance: float = 1e-5, name: str = "array") -> None:
    """Fails if the largest error exceeds `tolerance` times the scale (largest magnitude) of `theirs`."""
    ours = ours.detach().cpu().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape, f"{name}: shape {ours.shape}, recorded {theirs.shape}"
    difference = np.abs(ours.astype(np.float64) - theirs)
    worst = np.unravel_index(difference.argmax(), difference.shape) if difference.size else ()
    bound = tolerance * max(np.abs(theirs).max(initial=0), 1e-30)
    assert difference.max(initial=0) <= bound, (
        f"{name}: off by {difference.max():.3g} at {tuple(map(int, worst))}, bound {bound:.3g}"
    )


def nchw(array: np.ndarray) -> torch.Tensor:
    """[B, H, W, C] as recorded -> [B, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def nhwc(tensor: torch.Tensor) -> np.ndarray:
    """[B, C, H, W] -> [B, H, W, C], to compare with what is recorded."""
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def load_tiny(kind: str, **overrides) -> torch.nn.Module:
    """Builds one of the tiny models; `overrides` replace fields of `config.vqvae`."""
    return copy.deepcopy(_read_tiny(kind, **overrides))


@functools.cache
def _read_tiny(kind: str, **overrides) -> torch.nn.Module:
    from convert import load_checkpoint
    from convert.rules import build

    model_type, config, state_dict = load_checkpoint(OFFICIAL / f"tiny_{kind}_checkpoint")
    if kind == "tokenizer":
        config["vqvae"] |= overrides
    model = build(model_type, config)
    model.load_state_dict(state_dict)
    return model.eval()
