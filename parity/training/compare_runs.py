"""Training step by step: losses, gradients, and the weights that the optimizers arrive at."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from parity.compare import Record, compare, compare_exact, compare_trees
from parity.training.run import Run

# Float32 weights that may differ by more than the bound. Adam divides a gradient by its own size: where
# that is nothing but rounding, the weight moves by the full rate, in either direction.
_STRAY_SHARE = 1e-5


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How far the two sides may differ.

    Attributes:
      first_loss: of every loss before the first update, absolute.
      loss: the same at every step.
      norm: of the gradient's norm at every step, relative.
      gradients: at the first step, times their largest magnitude where that is above 1.
      weights: at the end, and of their moving averages, absolute; None: not compared.
      rounding: whether rounding decides the weights without a gradient and the nearest logits, as in
        float32: `_STRAY_SHARE` of the weights are left out, and the accuracy.
    """

    first_loss: float
    loss: float
    norm: float
    gradients: float
    weights: float | None
    rounding: bool


TRANSFORMER32 = Bounds(1e-5, 1e-4, 1e-4, 1e-5, None, rounding=True)
TOKENIZER32 = Bounds(1e-5, 1e-4, 1e-4, 1e-5, 1e-4, rounding=True)
FLOAT64 = Bounds(1e-10, 1e-9, 1e-9, 1e-10, 1e-8, rounding=False)


def compare_runs(ours: Run, theirs: Run, bounds: Bounds) -> Iterator[Record]:
    """Everything that two runs left, in the order in which it came about."""
    if theirs.indices is not None:
        yield from _indices(ours, theirs)
    for network, gradients in theirs.gradients.items():
        largest = max(float(np.abs(value).max()) for value in gradients.values())
        atol = bounds.gradients / min(1.0, largest)  # `compare_trees` multiplies by the largest
        yield from compare_trees(
            f"{network}: gradient of", ours.gradients[network], gradients, atol
        )
    for name, curve in theirs.curves.items():
        if name == "accuracy" and bounds.rounding:
            continue
        mine, note = ours.curves[name], f"{curve[0]:.5f} to {curve[-1]:.5f}"
        if name == "grad_norm":
            yield compare(f"{name}, every step", mine, curve, rtol=bounds.norm, message=note)
            continue
        scale = max(1.0, abs(curve[0]))
        yield compare(f"{name}, first step", mine[:1], curve[:1], atol=bounds.first_loss * scale)
        yield compare(f"{name}, every step", mine, curve, atol=bounds.loss, message=note)
    if bounds.weights is not None:
        for network in theirs.parameters:
            yield from _weights(network, "weights", ours.parameters, theirs, bounds)
        for network in theirs.averages:
            yield from _weights(network, "averages", ours.averages, theirs, bounds)


def _indices(ours: Run, theirs: Run) -> Iterator[Record]:
    """A feature that goes to another code on one side alone changes all that follows."""
    for step, (mine, other) in enumerate(zip(ours.indices, theirs.indices, strict=True)):
        note = f"{len(np.unique(other))} different codes, the next one farther by {ours.gap:.1e}"
        yield compare_exact(f"indices, step {step}", mine, other, f"{note} or more")


def _weights(
    network: str, what: str, ours: dict[str, dict], theirs: Run, bounds: Bounds
) -> Iterator[Record]:
    """The weights of a network, or their averages, each parameter on its own; float32 all as one."""
    mine, start = ours[network], theirs.start[network]
    expected = (theirs.parameters if what == "weights" else theirs.averages)[network]
    moved = {name: float(np.abs(expected[name] - start[name]).max()) for name in expected}
    if not bounds.rounding:
        for name, value in expected.items():
            note = f"moved by up to {moved[name]:.1e}"
            title = f"{network}: {what}, {name}"
            yield compare(title, mine[name], value, bounds.weights, message=note)
        return
    one, other = (np.concatenate([v[name].ravel() for name in expected]) for v in (mine, expected))
    kept, most = _without_strays(one, other)
    left_out = f"left out {one.size - kept.sum()} of {one.size}, which differ by up to {most:.1e}"
    note = f"moved by up to {max(moved.values()):.1e}; {left_out}"
    yield compare(f"{network}: {what}", one[kept], other[kept], bounds.weights, message=note)


def _without_strays(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, float]:
    """Which entries to compare, bool [n], and the largest difference among the others."""
    difference = np.abs(ours - theirs)
    count = int(np.ceil(_STRAY_SHARE * ours.size))
    kept = np.ones(ours.size, bool)
    kept[np.argpartition(difference, -count)[-count:]] = False
    return kept, float(difference[~kept].max())
