"""Figures of the report: images of both sides as panels, loss curves as points to be drawn."""

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from parity.stages import Curve, Picture

SHOWN_PIXELS = 256
_WIDTH, _HEIGHT, _GAP = 520, 190, 70  # of the curves; below them the differences
_LEFT, _TOP, _BOTTOM, _ROOM = 62, 12, 34, 52


def panels(picture: Picture) -> dict[str, Any]:
    """Caption and panels for the macro `panels` of figures.html."""
    difference = np.abs(np.float64(picture.ours) - np.float64(picture.theirs)).max(-1)
    largest = float(difference.max())
    factor = _amplification(largest)
    shown = [] if picture.original is None else [("original", _shrink(picture.original))]
    shown += [
        ("JAX", _shrink(picture.theirs)),
        ("PyTorch", _shrink(picture.ours)),
        (f"difference x {factor:.0e}", _shrink(difference[..., None], np.max) * factor),
    ]
    return {
        "caption": f"{picture.title}: largest difference {largest:.1e}",
        "panels": [(name, _png(pixels)) for name, pixels in shown],
    }


def _amplification(largest: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... that keeps `largest` at 1 or below."""
    if not 0 < largest < 1:
        return 1.0
    power = 10.0 ** math.floor(-math.log10(largest))
    return next(power * digit for digit in (5, 2, 1) if power * digit * largest <= 1 or digit == 1)


def _shrink(image: np.ndarray, how: Any = np.mean) -> np.ndarray:
    """Blocks of pixels of [H, W, C] become one, until the side is at most 256."""
    step = max(1, image.shape[0] // SHOWN_PIXELS)
    blocks = image.reshape(image.shape[0] // step, step, image.shape[1] // step, step, -1)
    return how(blocks, (1, 3))


def _png(image: np.ndarray) -> str:
    """[H, W, 1 or 3] in [0, 1] -> data URI."""
    pixels = np.uint8(np.round(255 * np.clip(np.nan_to_num(image), 0, 1)))
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def plot(curve: Curve) -> dict[str, Any]:
    """Coordinates for the macro `curves` of figures.html; values that are not finite are left out."""
    steps, base = len(curve.theirs), _TOP + _HEIGHT + _GAP
    xs = np.round(_LEFT + (np.arange(steps) + 0.5) / steps * (_WIDTH - _LEFT), 1)
    low, high = _limits(np.concatenate([curve.ours, curve.theirs]))

    def points(values: np.ndarray) -> list[tuple[float, float]]:
        ys = _TOP + (high - values) / (high - low) * _HEIGHT
        return [
            (float(x), round(float(y), 1)) for x, y in zip(xs, ys, strict=True) if np.isfinite(y)
        ]

    difference = np.abs(curve.ours - curve.theirs)
    largest = float(difference[np.isfinite(difference)].max(initial=0.0))
    wide = round(max(2.0, 0.5 * (_WIDTH - _LEFT) / steps), 1)
    ticks = _ticks(low, high)
    return {
        "title": curve.title,
        "caption": f"{curve.title}: largest difference {largest:.1e}",
        "left": _LEFT,
        "width": _WIDTH,
        "height": base + _BOTTOM,
        "base": base,
        "room": _ROOM,
        "ticks": [
            (round(float(_TOP + (high - tick) / (high - low) * _HEIGHT), 1), f"{tick:.4g}")
            for tick in ticks
        ],
        "theirs": points(curve.theirs),
        "ours": points(curve.ours),
        "bar_width": wide,
        "differences": [
            (round(float(x - wide / 2), 1), round(float(_ROOM * d / largest), 1))
            for x, d in zip(xs, difference, strict=True)
            if largest and np.isfinite(d)
        ],
        "largest": f"{largest:.0e}",
        "steps": [(float(x), i) for i, x in enumerate(xs) if i % max(1, steps // 5) == 0],
    }


def _limits(values: np.ndarray) -> tuple[float, float]:
    """The lowest and highest finite value, with a margin."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> np.ndarray:
    """At most seven round numbers between `low` and `high`."""
    step = 10 ** math.floor(math.log10(high - low))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if (high - low) / s <= 6)
    return np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step
