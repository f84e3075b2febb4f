"""A whole sweep: its cells and their results."""

import dataclasses
from typing import Any

import numpy as np

from maskgit_pt.decoding import resolve
from train.sweeps.cells import Cell, describe
from train.sweeps.studies import PUBLISHED, Published


@dataclasses.dataclass
class Sweep:
    """A whole sweep.

    Attributes:
      name: of its files.
      title: above table and plot.
      axes: axis -> values, the first one along the plot.
      cells: all cells.
      results: of each: metrics, protocol, images_per_second.
      image_size: of the model.
    """

    name: str
    title: str
    axes: dict[str, list[Any]]
    cells: list[Cell]
    results: list[dict[str, Any]]
    image_size: int

    @property
    def comparable(self) -> bool:
        """Whether metrics are those that are published: Inception's."""
        return any(m in ("fid", "inception_score") for m in self.results[0]["metrics"])

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics but deviations."""
        return [name for name in self.results[0]["metrics"] if not name.endswith("_std")]

    @property
    def seeds(self) -> int:
        """How many seeds are an axis beside another one; 1 if they are none."""
        return len(self.axes["seed"]) if "seed" in self.axes and len(self.axes) > 1 else 1

    def over_seeds(self) -> "Sweep":
        """The sweep without its axis of seeds: means, and standard deviations over the seeds."""
        if self.seeds == 1:
            return self
        groups: dict[str, list[int]] = {}
        for i, cell in enumerate(self.cells):
            rest = {name: value for name, value in cell.labels.items() if name != "seed"}
            groups.setdefault(describe(rest), []).append(i)
        cells, results = [], []
        for members in groups.values():
            first = self.cells[members[0]]
            labels = {name: value for name, value in first.labels.items() if name != "seed"}
            cells.append(dataclasses.replace(first, labels=labels))
            results.append(self._mean(members))
        axes = {name: values for name, values in self.axes.items() if name != "seed"}
        return dataclasses.replace(self, axes=axes, cells=cells, results=results)

    def _mean(self, members: list[int]) -> dict[str, Any]:
        """One result of several cells."""
        own = [self.results[i] for i in members]
        metrics = {}
        for name in self.metrics:
            values = [result["metrics"][name] for result in own]
            metrics |= {name: float(np.mean(values)), f"{name}_std": float(np.std(values, ddof=1))}
        rate = float(np.mean([result["images_per_second"] for result in own]))
        return own[0] | {"metrics": metrics, "images_per_second": rate}

    def published(self) -> list[tuple[Published, int]]:
        """Published results of these settings, each with the number of the last such cell."""
        found = []
        for record in PUBLISHED if self.comparable else ():
            settings = resolve(record.settings)
            same = [i for i, cell in enumerate(self.cells) if cell.resolved == settings]
            if same and record.image_size == self.image_size:
                found.append((record, same[-1]))
        return found
