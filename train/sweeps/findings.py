"""What the 2023 report found in its studies, as statements that a sweep can be held against.

The report is Besnier & Chen, arXiv 2310.14400, on ImageNet. Its figures show curves whose numbers are not in
the text, so a finding is about the order of values, not about their size. A sweep judges it seed by seed:

  holds               for every seed
  does not hold here  for no seed
  undecided           for some
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from train.evaluation.report import markdown, metric_name
from train.sweeps.sweep import Sweep

HOLDS, FAILS, UNDECIDED = "holds", "does not hold here", "undecided"
_TREND = 0.7  # Spearman's rank correlation from which on a curve rises
_SATURATED = 0.1  # of the whole improvement: what may still come after the steps that are enough
_ENOUGH_STEPS = 12
_BEST_TEMPERATURES = (4.5, 7.0)  # of the report, at 256 and 512 px
Curve = dict[Any, float]  # value of the axis -> metric


@dataclasses.dataclass(frozen=True)
class Finding:
    """One statement of the report.

    Attributes:
      study: in which study.
      text: what was found.
      metric: which metric it is about, as `train.evaluate` names it.
      judge: whether a curve of this metric agrees; None if it lacks the values to tell.
    """

    study: str
    text: str
    metric: str
    judge: Callable[[Curve], bool | None]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a sweep says to a finding.

    Attributes:
      finding: the finding.
      verdict: `HOLDS`, `FAILS` or `UNDECIDED`.
      agreeing, seeds: for how many seeds it holds, of how many.
      figures: the mean over seeds at each value, as text.
    """

    finding: Finding
    verdict: str
    agreeing: int
    seeds: int
    figures: str


def _lower_with_noise(curve: Curve) -> bool | None:
    noisy = next((curve[at] for at in _BEST_TEMPERATURES if at in curve), None)
    return None if noisy is None or 0.0 not in curve else noisy < curve[0.0]


def _saturates(curve: Curve) -> bool | None:
    after = [value for at, value in curve.items() if at >= _ENOUGH_STEPS]
    before = [value for at, value in curve.items() if at < _ENOUGH_STEPS]
    if len(after) < 2 or not before:
        return None
    enough = curve[min(at for at in curve if at >= _ENOUGH_STEPS)]
    return enough - min(after) <= _SATURATED * (max(before) - min(after))


def _rises(curve: Curve) -> bool | None:
    return _trend(curve) >= _TREND if len(curve) > 2 else None


def _falls(curve: Curve) -> bool | None:
    return _trend(curve) <= -_TREND if len(curve) > 2 else None


def _trend(curve: Curve) -> float:
    """Spearman's rank correlation of values with places; without ties."""
    ranks = [np.argsort(np.argsort(row)) for row in (list(curve), list(curve.values()))]
    return float(np.corrcoef(*ranks)[0, 1])


def _lowest_inside(curve: Curve) -> bool | None:
    best = min(curve, key=curve.get)
    return best not in (min(curve), max(curve)) if len(curve) > 2 else None


def _lowest_at(value: Any) -> Callable[[Curve], bool | None]:
    return lambda curve: min(curve, key=curve.get) == value if value in curve else None


def _ends(names: Sequence[str], highest: bool) -> Callable[[Curve], bool | None]:
    """Whether these are the values with the highest, or lowest, numbers."""

    def judge(curve: Curve) -> bool | None:
        if not set(names) < curve.keys():
            return None
        order = sorted(curve, key=curve.get, reverse=highest)
        return set(order[: len(names)]) == set(names)

    return judge


FINDINGS = (
    Finding("gumbel", "noise in the confidence lowers FID", "fid", _lower_with_noise),
    Finding("steps", "FID hardly improves after 12 steps", "fid", _saturates),
    Finding("steps", "the Inception Score rises with the steps", "inception_score", _rises),
    Finding("guidance", "FID is lowest at a weight between none and the largest", "fid", _lowest_inside),
    Finding("guidance", "FID is lowest at weight 3", "fid", _lowest_at(3.0)),
    Finding("guidance", "the Inception Score rises with the weight", "inception_score", _rises),
    Finding("schedulers", "root and linear have the highest Inception Scores", "inception_score",
            _ends(("root", "linear"), highest=True)),
    Finding("schedulers", "root and linear have the highest FID", "fid",
            _ends(("root", "linear"), highest=True)),
    Finding("schedulers", "square has the lowest FID at 12 steps", "fid",
            _ends(("square",), highest=False)),
    Finding("training", "FID falls along the training", "fid", _falls),
    Finding("training", "the Inception Score rises along the training", "inception_score", _rises),
)  # fmt: skip


def judge(sweep: Sweep) -> list[Verdict]:
    """Holds a study's sweep against the findings of the report; [] for other sweeps.

    A sweep with other axes than the study's own and seeds is not judged.
    """
    along = next(iter(sweep.axes), "")
    if not sweep.axes or set(sweep.axes) - {along, "seed"}:
        return []
    extractor = sweep.results[0]["protocol"]["features"]["name"]
    verdicts = []
    for finding in FINDINGS:
        metric = metric_name(finding.metric, extractor)
        if finding.study != sweep.name or metric not in sweep.metrics:
            continue
        curves: dict[int, Curve] = {}
        for cell, result in zip(sweep.cells, sweep.results, strict=True):
            curves.setdefault(cell.seed, {})[cell.labels[along]] = result["metrics"][metric]
        found = [finding.judge(curve) for curve in curves.values()]
        if None in found:
            continue
        agreeing = sum(found)
        verdict = HOLDS if agreeing == len(found) else FAILS if not agreeing else UNDECIDED
        values = next(iter(curves.values()))
        figures = ", ".join(
            f"{_short(at)}: {np.mean([curve[at] for curve in curves.values()]):.3g}"
            for at in values
        )
        verdicts.append(Verdict(finding, verdict, agreeing, len(found), figures))
    return verdicts


def as_markdown(verdicts: Sequence[Verdict]) -> list[str]:
    """A title and a table; [] for no verdicts."""
    if not verdicts:
        return []
    table = [["the report found", "here", "seeds", "our means"], ["---"] * 4]
    table += [
        [v.finding.text, v.verdict, f"{v.agreeing} of {v.seeds}", v.figures] for v in verdicts
    ]
    return ["## What Besnier & Chen found", markdown(table).rstrip()]


def as_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Each as an object."""
    return [
        {"finding": v.finding.text, "verdict": v.verdict, "agreeing": v.agreeing, "seeds": v.seeds}
        for v in verdicts
    ]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
