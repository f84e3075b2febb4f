"""Expected curves: what the metrics of a recipe looked like over several seeds, to compare a run with.

Recorded bands stand in `train/expected_curves_data`, a JSON file each: the settings that decide the curves,
the steps, and for each metric its mean and the range of a further run.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from maskgit_pt.files import write_atomically
from train import settings
from train.run.metrics import read_metrics

FOLDER = Path(__file__).with_name("expected_curves_data")
_FORMAT = "maskgit_pt expected curves, version 1"
_OF_THE_MACHINE = ("step", "learning_rate", "images_per_second", "memory_gib", "mfu", "matrix_share",
                   "matrix_share_at_most")  # fmt: skip
_NEIGHBOURS = 2  # points on either side that tell how much a point scatters
_NORMAL = 1.96  # 95 % of a normal distribution
_DIGITS = 5  # that are kept of a number

Curve = list[dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Band:
    """One metric at some steps.

    Attributes:
      steps: ascending.
      mean: over the recorded runs.
      low, high: where 95 % of the points of a further run are expected, if only its seed differs.
    """

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]

    @classmethod
    def of(cls, steps: Sequence[int], values: np.ndarray) -> Self:
        """From values [runs, steps] of two runs or more.

        The scatter of a point is that of the runs around their mean, over it and its neighbours; the range is
        Student's, for one further run.
        """
        runs, count = values.shape
        mean, squares = values.mean(0), values.var(0, ddof=1)
        near = [
            range(max(0, i - _NEIGHBOURS), min(count, i + _NEIGHBOURS + 1)) for i in range(count)
        ]
        width = np.array(
            [_student(len(part) * (runs - 1)) * math.sqrt(squares[part].mean()) for part in near]
        ) * math.sqrt(1 + 1 / runs)
        rounded = (_rounded(v) for v in (mean, mean - width, mean + width))
        return cls([int(step) for step in steps], *rounded)

    def share_inside(self, steps: Sequence[int], values: Sequence[float]) -> float | None:
        """The share of the points that lie in the band; None if none is at a step that it covers."""
        inside = [
            np.interp(step, self.steps, self.low) <= value <= np.interp(step, self.steps, self.high)
            for step, value in zip(steps, values, strict=True)
            if self.steps[0] <= step <= self.steps[-1]
        ]
        return sum(inside) / len(inside) if inside else None


@dataclasses.dataclass(frozen=True)
class Expected:
    """The bands of a recipe.

    Attributes:
      recipe: its name.
      decides: the settings that decide the curves, see `settings.deciding`.
      seeds: of the recorded runs.
      bands: metric -> band.
    """

    recipe: str
    decides: dict[str, object]
    seeds: list[int]
    bands: dict[str, Band]

    @classmethod
    def record(cls, runs: Sequence[Path], recipe: str) -> Self:
        """From the logs of runs that differ by their seed alone.

        Raises:
          ValueError: fewer than two runs, other settings, the same seed twice, or no common steps.
          FileNotFoundError: no such run.
        """
        if len(runs) < 2:
            raise ValueError(f"expected curves are of two runs or more; found {len(runs)}")
        configs = [settings.read(run) for run in runs]
        decides, seeds = settings.deciding(configs[0]), [int(config.seed) for config in configs]
        for run, config in zip(runs, configs, strict=True):
            if told := _differences(settings.deciding(config), decides):
                raise ValueError(
                    f"{run}: {told} in {runs[0]}; accepted: runs that differ by their seed"
                )
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"the runs have the seeds {seeds}; accepted: each once")
        curves = [read_metrics(run) for run in runs]
        bands = {}
        for name in dict.fromkeys(name for line in curves[0] for name in line):
            found = [
                {line["step"]: line[name] for line in curve if name in line} for curve in curves
            ]
            steps = sorted(set.intersection(*(set(values) for values in found)))
            if steps and name not in _OF_THE_MACHINE:
                values = np.array([[values[step] for step in steps] for values in found], float)
                bands[name] = Band.of(steps, values)
        if not bands:
            raise ValueError(f"the logs of {', '.join(map(str, runs))} have no step in common")
        return cls(recipe, decides, seeds, bands)

    def save(self, path: Path) -> None:
        """Writes a JSON file."""
        told = {"format": _FORMAT} | dataclasses.asdict(self)
        write_atomically(path, (json.dumps(told, indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """The inverse of `save`.

        Raises:
          FileNotFoundError, ValueError: no such file, or it holds something else.
        """
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told.pop("format") != _FORMAT:
                raise ValueError("another format")
            bands = {name: Band(**band) for name, band in told.pop("bands").items()}
            for band in bands.values():
                arrays = [np.asarray(values, float) for values in dataclasses.astuple(band)]
                if not arrays[0].size or any(a.shape != arrays[0].shape for a in arrays):
                    raise ValueError("arrays of different lengths")
            return cls(**told, bands=bands)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:100]
            raise ValueError(
                f"{path}: no expected curves ({reason}); accepted: {_FORMAT}"
            ) from None

    def differences(self, run: Path) -> str:
        """In which settings that decide a run differs from the recorded ones; empty: in none."""
        recorded = settings.deciding(self.decides)  # with the settings that came later
        return _differences(settings.deciding(settings.read(run)), recorded)

    def describe(self, curve: Curve) -> str:
        """How many points of a run lie in the bands, in words."""
        parts = []
        for name, band in self.bands.items():
            points = [(line["step"], line[name]) for line in curve if name in line]
            share = band.share_inside(*zip(*points, strict=True)) if points else None
            if share is not None:
                parts.append(f"{name} {share:.0%}")
        return ", ".join(parts)


def find(run: Path, folder: Path = FOLDER) -> tuple[Expected | None, str]:
    """The recorded curves that belong to a run's settings.

    Returns:
      The curves, or None; and a line about them, or about what the nearest ones differ in.
    """
    known = [Expected.load(path) for path in sorted(folder.glob("*.json"))]
    near = sorted(((expected.differences(run), expected) for expected in known),
                  key=lambda pair: pair[0].count(";") + bool(pair[0]))  # fmt: skip
    if not near:
        return None, "no expected curves are recorded"
    told, expected = near[0]
    if told:
        return None, f"no expected curves for these settings; nearest is {expected.recipe}: {told}"
    return expected, f"expected curves of {expected.recipe}, seeds {expected.seeds}"


def _differences(here: dict[str, object], there: dict[str, object]) -> str:
    names = sorted(here.keys() | there.keys())
    differing = [name for name in names if here.get(name) != there.get(name)]
    parts = [
        f"{name} is {here.get(name)} here and {there.get(name)} there" for name in differing[:4]
    ]
    more = f"; {len(differing) - 4} more" if len(differing) > 4 else ""
    return "; ".join(parts) + more


def _student(freedom: int) -> float:
    """Half the width of Student's 95 %, expanded about the normal distribution (Hill 1970's first terms)."""
    z, f = _NORMAL, freedom
    return (
        z
        + (z**3 + z) / (4 * f)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * f**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * f**3)
    )


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]
