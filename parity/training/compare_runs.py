"""Training step by step: losses, gradients, and the weights that the optimizers arrive at."""

from collections.abc import Iterator

import numpy as np

from parity.bounds import RunBounds
from parity.compare import Record, compare, compare_exact, compare_trees
from parity.training.run import Run


def compare_runs(ours: Run, theirs: Run, bounds: RunBounds) -> Iterator[Record]:
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
        if name == "accuracy" and bounds.stray_share:
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
    network: str, what: str, ours: dict[str, dict], theirs: Run, bounds: RunBounds
) -> Iterator[Record]:
    """The weights of a network, or their averages, each parameter on its own; float32 all as one."""
    mine, start = ours[network], theirs.start[network]
    expected = (theirs.parameters if what == "weights" else theirs.averages)[network]
    moved = {name: float(np.abs(expected[name] - start[name]).max()) for name in expected}
    if not bounds.stray_share:
        for name, value in expected.items():
            note = f"moved by up to {moved[name]:.1e}"
            title = f"{network}: {what}, {name}"
            yield compare(title, mine[name], value, bounds.weights, message=note)
        return
    one, other = (np.concatenate([v[name].ravel() for name in expected]) for v in (mine, expected))
    kept, most = _without_strays(one, other, bounds.stray_share)
    left_out = f"left out {one.size - kept.sum()} of {one.size}, which differ by up to {most:.1e}"
    note = f"moved by up to {max(moved.values()):.1e}; {left_out}"
    yield compare(f"{network}: {what}", one[kept], other[kept], bounds.weights, message=note)


def _without_strays(ours: np.ndarray, theirs: np.ndarray, share: float) -> tuple[np.ndarray, float]:
    """Which entries to compare, bool [n], and the largest difference among the others."""
    difference = np.abs(ours - theirs)
    count = int(np.ceil(share * ours.size))
    kept = np.ones(ours.size, bool)
    kept[np.argpartition(difference, -count)[-count:]] = False
    return kept, float(difference[~kept].max())
