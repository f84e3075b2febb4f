"""The transformer: activations layer by layer, logits, loss and gradients."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from convert import rules
from maskgit_pt.libml import losses
from parity import weights
from parity.bounds import FLOAT64, Bounds
from parity.compare import Record, compare, compare_exact, compare_trees
from parity.layers import capture_torch
from parity.pairs import TransformerPair

LABEL_SMOOTHING = 0.1


def make_ids(pair: TransformerPair, batch: int, seed: int = 0) -> np.ndarray:
    """Class and tokens, int32 [B, N]: sample 0 all masked, the next ones less and less."""
    rng = np.random.default_rng([seed, 1])
    ids = rng.integers(0, pair.codes, (batch, pair.length)).astype(np.int32)
    shares = np.resize([1.0, 0.6, 0.25, 0.0], batch)[:, None]
    ids[rng.random(ids.shape) < shares] = -1
    ids[:, 0] = pair.codes + rng.integers(0, pair.classes, batch)
    return ids


def activations(
    pair: TransformerPair, ids: np.ndarray, atol: float = 0.0, rtol: float = 0.0
) -> Iterator[Record]:
    """Embedding, both halves of every layer, and the head's steps."""
    ours = capture_torch(pair.ours, pair.paths, lambda: pair.ours(torch.from_numpy(ids).long()))
    theirs = [pair.forward(pair.variables, row[None])[1] for row in ids]
    for name, path in pair.paths.items():
        expected = np.concatenate([np.asarray(captured[path]) for captured in theirs])
        yield compare(name, ours[name], expected, atol, rtol)


def make_training_ids(pair: TransformerPair) -> np.ndarray:
    """As `make_ids`, with something masked in every sample; batches as in `parity.training`."""
    return np.resize(make_ids(pair, 3), (4, pair.length))


def our_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """[B, N] -> [B, N, V], one sample at a time: at full size a batch of logits is large."""
    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(row[None]).long()).numpy() for row in ids])


def their_logits(pair: TransformerPair, ids: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(pair.forward(pair.variables, row[None])[0]) for row in ids])


def logits(
    pair: TransformerPair, ids: np.ndarray, atol: float = 0.0, rtol: float = 0.0
) -> Iterator[Record]:
    """All V logits, their argmax, and the shortened head against the cut."""
    ours, theirs = our_logits(pair.ours, ids), their_logits(pair, ids)
    yield compare("logits", ours, theirs, atol, rtol)
    note = f"logit std {theirs.std():.1f}"
    yield compare_exact("argmax of all logits", ours.argmax(-1), theirs.argmax(-1), note)
    cut, their_cut = ours[..., : pair.codes], theirs[..., : pair.codes]
    yield compare_exact("argmax of code logits", cut.argmax(-1), their_cut.argmax(-1))
    with torch.inference_mode():
        short = pair.ours(torch.from_numpy(ids[:1]).long(), num_logits=pair.codes)
    yield compare("logits[..., :codes] computed alone", short, their_cut[:1], atol, rtol)


def gradients(pair: TransformerPair, ids: np.ndarray, bounds: Bounds) -> Iterator[Record]:
    """The training loss (logits cut to the codes, masked positions) and its gradients.

    No dropout. Every parameter is compared, under its PyTorch name, through the conversion rules.
    """
    rng = np.random.default_rng(2)
    labels = rng.integers(0, pair.codes, ids.shape).astype(np.int32)
    dtype = next(pair.ours.parameters()).dtype
    mask = (ids == -1).astype(np.float64 if dtype == torch.float64 else np.float32)

    parameters = dict(pair.ours.named_parameters())
    ours = losses.weighted_sequence_cross_entropy_loss(
        labels=torch.from_numpy(labels).long(),
        logits=pair.ours(torch.from_numpy(ids).long())[..., : pair.codes],
        weights=torch.from_numpy(mask),
        label_smoothing=LABEL_SMOOTHING,
    )
    our_gradients = torch.autograd.grad(ours, list(parameters.values()))

    (theirs, _), their_gradients = pair.loss_and_gradients(
        pair.variables, ids, labels, mask, LABEL_SMOOTHING
    )
    yield compare("loss", ours, theirs, atol=bounds.loss)
    yield from compare_trees(
        "gradient of",
        dict(zip(parameters, our_gradients, strict=True)),
        rules.to_torch(
            weights.flatten(their_gradients), "maskgit_transformer", pair.ours.to_config()
        ),
        *bounds.gradients,
    )


def in_float64(pair: TransformerPair) -> Iterator[Record]:
    """Activations, logits, loss and gradients, all in float64."""
    with pair.in_float64() as double:
        yield from activations(double, make_ids(pair, 2), rtol=FLOAT64.layers)
        yield from logits(double, make_ids(pair, 4), FLOAT64.logits)
        yield from gradients(double, make_training_ids(pair), FLOAT64)
