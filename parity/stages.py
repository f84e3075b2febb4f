"""Runs named stages of comparisons and keeps what they found."""

import dataclasses
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from parity.compare import Record


@dataclasses.dataclass(frozen=True)
class Picture:
    """Images of both sides for the report: float [H, W, 3], unclipped."""

    title: str
    ours: np.ndarray
    theirs: np.ndarray
    original: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Curve:
    """A loss step by step on both sides, float [steps]."""

    title: str
    ours: np.ndarray
    theirs: np.ndarray


Finding = Record | Picture | Curve


@dataclasses.dataclass(frozen=True)
class Stage:
    """A named list of comparisons, not yet run.

    Attributes:
      section: heading it stands under.
      title: what it compares.
      run: makes the records, one at a time; among them pictures and curves for the report.
    """

    section: str
    title: str
    run: Callable[[], Iterable[Finding]]


@dataclasses.dataclass(frozen=True)
class Result:
    """A stage that has run.

    Attributes:
      records: one for every comparison.
      seconds: how long it took.
      trouble: why it could not run, or could not run to its end; such a stage has not passed.
      pictures, curves: what it leaves for the report.
    """

    section: str
    title: str
    records: tuple[Record, ...]
    seconds: float
    trouble: str = ""
    pictures: tuple[Picture, ...] = ()
    curves: tuple[Curve, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.trouble and bool(self.records) and all(r.passed for r in self.records)

    @property
    def worst(self) -> Record | None:
        """The record nearest to failing, or beyond it."""
        return max(self.records, key=lambda r: (not r.passed, r.strain), default=None)


def progress(line: str) -> None:
    """Shows on a terminal what is being done; an empty line wipes it."""
    if sys.stderr.isatty() and multiprocessing.parent_process() is None:
        print(f"\r\033[K{line[:100]}", end="", file=sys.stderr, flush=True)


def run_stages(stages: Iterable[Stage]) -> Iterator[Result]:
    """Runs the stages in order; one that breaks off is a failed result, not the end of the run."""
    for stage in stages:
        progress(f"{stage.section}: {stage.title} ...")
        start = time.perf_counter()
        found: list[Finding] = []
        trouble = ""
        try:
            found.extend(stage.run())
        except Exception as error:  # whatever the code under comparison raises is a finding
            traceback.print_exc(file=sys.stderr)
            trouble = f"could not run: {type(error).__name__}: {' '.join(str(error).split())}"
        records, pictures, curves = (
            tuple(one for one in found if isinstance(one, kind))
            for kind in (Record, Picture, Curve)
        )
        if not records and not trouble:
            trouble = "compared nothing"
        seconds = time.perf_counter() - start
        progress("")
        yield Result(stage.section, stage.title, records, seconds, trouble, pictures, curves)


def summary_line(result: Result) -> str:
    """One line of the table on standard output."""
    verdict = "ok  " if result.passed else "FAIL"
    line = f"{verdict} {result.section:<9} {result.title:<56} {describe(result):<62}"
    return f"{line} {result.seconds:6.1f} s"


def describe(result: Result) -> str:
    """The worst comparison of a stage in a few words, or why there is none."""
    worst = result.worst
    if result.trouble or worst is None:
        return result.trouble
    count = f"{len(result.records)} compared"
    if worst.control:
        noticed = sum(r.passed for r in result.records)
        return f"{noticed} of {len(result.records)} faults noticed"
    if worst.max_abs is None:
        if worst.passed:
            return f"all equal, {count}"
        share = "" if worst.agreement is None else f" ({worst.agreement:.4%} equal)"
        return f"{worst.name}{share}: {worst.message}"
    if worst.message and not worst.passed:
        return f"{worst.name}: {worst.message}"
    return f"max |diff| {worst.max_abs:.1e} (bound {worst.tolerance}), {count}"
