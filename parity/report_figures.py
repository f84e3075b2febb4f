"""Loss curves of both sides as a picture: SVG within the page."""

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

import numpy as np

_WIDTH, _HEIGHT, _GAP = 520, 190, 70  # of the curves; below them the differences
_LEFT, _TOP, _BOTTOM = 62, 12, 34


@dataclasses.dataclass(frozen=True)
class Curve:
    """A loss step by step on both sides, float [steps]."""

    title: str
    ours: np.ndarray
    theirs: np.ndarray


def section(curves: Sequence[Curve]) -> str:
    """The part of the page; empty without curves."""
    if not curves:
        return ""
    figures = "".join(_figure(curve) for curve in curves)
    return (
        "<h2>Training</h2><p>The same weights, batches and masks through the trainer of "
        "<code>train/</code> and through JAX with optax. Above, the loss at every step, JAX as a broad "
        "line and PyTorch as dots on it; below, their difference.</p>"
        f"<div class=pictures>{figures}</div>"
    )


def _figure(curve: Curve) -> str:
    difference = np.abs(curve.ours - curve.theirs)
    caption = f"{curve.title}: largest difference {float(difference.max()):.1e}"
    return (
        f"<figure><figcaption>{html.escape(caption)}</figcaption>{_svg(curve, difference)}</figure>"
    )


def _svg(curve: Curve, difference: np.ndarray) -> str:
    steps = len(curve.theirs)
    height = _TOP + _HEIGHT + _GAP + _BOTTOM
    xs = _LEFT + (np.arange(steps) + 0.5) / steps * (_WIDTH - _LEFT)
    values = np.concatenate([curve.ours, curve.theirs])
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def y_of(value: float) -> float:
        return _TOP + (high - value) / (high - low) * _HEIGHT

    line = " ".join(
        f"{x:.1f},{y_of(v):.1f}" for x, v in zip(xs, curve.theirs, strict=True) if np.isfinite(v)
    )
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y_of(v):.1f}" r="3" fill="#c2410c"/>'
        for x, v in zip(xs, curve.ours, strict=True)
        if np.isfinite(v)
    )
    parts = [
        _grid(low, high, y_of),
        f'<polyline points="{line}" fill="none" stroke="#7db3e8" stroke-width="7" '
        f'stroke-linejoin="round"/>{dots}',
        _legend(),
        _differences(xs, difference),
        _step_numbers(xs, height),
    ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" '
        f'aria-label="{html.escape(curve.title)}" font-size="11" fill="#5d6b7e" '
        f'style="max-width:100%;height:auto">{"".join(parts)}</svg>'
    )


def _grid(low: float, high: float, y_of: Callable[[float], float]) -> str:
    step = 10 ** math.floor(math.log10(high - low))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if (high - low) / s <= 6)
    ticks = np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step
    return "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y_of(t):.1f}" y2="{y_of(t):.1f}" stroke="#dfe5ec"/>'
        f'<text x="{_LEFT - 6}" y="{y_of(t) + 4:.1f}" text-anchor="end">{t:.4g}</text>'
        for t in ticks
    )


def _legend() -> str:
    x, y = _WIDTH - 120, _TOP + 12
    return (
        f'<line x1="{x}" x2="{x + 24}" y1="{y}" y2="{y}" stroke="#7db3e8" stroke-width="7"/>'
        f'<text x="{x + 32}" y="{y + 4}">JAX, optax</text>'
        f'<circle cx="{x + 12}" cy="{y + 18}" r="3" fill="#c2410c"/>'
        f'<text x="{x + 32}" y="{y + 22}">PyTorch</text>'
    )


def _differences(xs: np.ndarray, difference: np.ndarray) -> str:
    """Bars from 0 to the largest difference."""
    base, room = _TOP + _HEIGHT + _GAP, _GAP - 18
    largest = float(difference[np.isfinite(difference)].max(initial=0.0))
    wide = max(2.0, 0.5 * (_WIDTH - _LEFT) / len(xs))
    bars = "".join(
        f'<rect x="{x - wide / 2:.1f}" y="{base - room * d / largest:.1f}" width="{wide:.1f}" '
        f'height="{room * d / largest:.1f}" fill="#8a97a8"/>'
        for x, d in zip(xs, difference, strict=True)
        if largest and np.isfinite(d)
    )
    return (
        f'{bars}<line x1="{_LEFT}" x2="{_WIDTH}" y1="{base}" y2="{base}" stroke="#8a97a8"/>'
        f'<text x="{_LEFT - 6}" y="{base - room + 4}" text-anchor="end">{largest:.0e}</text>'
        f'<text x="{_LEFT - 6}" y="{base + 4}" text-anchor="end">0</text>'
    )


def _step_numbers(xs: np.ndarray, height: int) -> str:
    every = max(1, len(xs) // 5)
    numbers = "".join(
        f'<text x="{x:.1f}" y="{height - 18}" text-anchor="middle">{step}</text>'
        for step, x in enumerate(xs)
        if step % every == 0
    )
    middle = (_LEFT + _WIDTH) / 2
    return f'{numbers}<text x="{middle}" y="{height - 3}" text-anchor="middle">step</text>'
