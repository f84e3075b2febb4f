"""One sweep: which cells are missing, what each gives, and the report at the end."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from maskgit_pt.decoding import Settings
from maskgit_pt.files import check_folder, check_replaceable
from maskgit_pt.launch import Processes
from maskgit_pt.model_settings import ModelSettings
from maskgit_pt.pretrained import weights_fingerprint
from maskgit_pt.progress import duration
from maskgit_pt.settings import setting
from train.evaluation.context import Context
from train.evaluation.extraction import Cache
from train.evaluation.generated import ModelSource
from train.evaluation.reference import Reference
from train.evaluation.report import check_metrics
from train.evaluation.samples import METRICS
from train.evaluation.settings import EvaluationSettings
from train.sweeps.cells import (
    Cell,
    CellFiles,
    Model,
    describe,
    exported_models,
    plan,
    reference_fingerprint,
    run_models,
)
from train.sweeps.report import SUFFIXES, is_sweep, write
from train.sweeps.studies import STUDIES, Study
from train.sweeps.sweep import Sweep

SEED = "{seed}"  # in the name of a model or run: each seed has its own


@dataclasses.dataclass(frozen=True)
class SweepSettings:
    """What a sweep asks besides its grid and the settings of model, sampling and evaluation."""

    study: str | None = setting(None, f"One of: {', '.join(STUDIES)}.")
    run: str | None = setting(
        None,
        "Instead of --model, the checkpoints of a training run; --grid=step=... for some of them. It may "
        "hold {seed}, as --model.",
    )
    average: bool = setting(True, "Of --run: the averaged weights.")
    num_samples: int = setting(50_000, "In each cell.", least=1)
    output: str = setting("sweep", "Folder for the results.")
    overwrite: bool = setting(
        False, "Replace files in the way that are no results of this program."
    )


@dataclasses.dataclass(frozen=True)
class Job:
    """All that one call of the program asks for, besides the grid.

    Attributes:
      settings: of every model; its `model` is not used.
      models: folders, files or hub ids of transformers.
      decoding: of all cells, see `MaskGIT.decoding`.
      measure: what is measured, and how.
      asked: everything else.
    """

    settings: ModelSettings
    models: list[str]
    decoding: Settings
    measure: EvaluationSettings
    asked: SweepSettings

    @property
    def by_seed(self) -> bool:
        """Whether each seed has models of its own."""
        return any(SEED in name for name in (*self.models, self.asked.run or ""))

    @property
    def study(self) -> Study | None:
        """The study; None for a grid alone."""
        return STUDIES.get(self.asked.study or "")


class _TimedSource(ModelSource):
    """Knows how fast images were generated."""

    images, seconds = 0, 0.0

    def read(self, start: int, stop: int):
        begin = time.perf_counter()
        found = super().read(start, stop)
        self.seconds += time.perf_counter() - begin
        self.images += len(found)
        return found


class Sweeping:
    """One run of the program.

    Args:
      job: what was asked for.
      grid: setting -> values, of the command line.
      device, workers: where and by whom.
    """

    def __init__(
        self,
        job: Job,
        grid: dict[str, list[Any]],
        device: torch.device,
        workers: Processes,
    ):
        self.job, self.device, self.workers = job, device, workers
        names = job.measure.metric_names
        self.metrics = None if names is None else check_metrics(names, METRICS)
        study = job.study
        seeds = grid.get("seed", [job.settings.seed]) if job.by_seed else []
        axis, models = self._find_models(grid.pop("step", None), seeds)
        self.models = [model for some in models for model in some]
        self._loaded: tuple[int, Any] | None = None
        model = self._model(0)
        self.size, self.num_classes = model.image_size, model.num_classes
        self.labels = job.settings.class_ids(model.classes)
        fixed, own_grid, cases = study.at(self.size) if study else ({}, {}, {})
        own_grid = {name: v for name, v in own_grid.items() if name not in job.decoding}
        if "steps" in own_grid and "steps" not in grid:
            own_grid["steps"] = self._possible_steps(own_grid["steps"], model.num_tokens)
        self.axes, self.cells = plan(
            fixed | job.decoding, own_grid | grid, cases, models[0], axis, job.settings.seed,
            models_first=bool(study and study.over_training), seeds=seeds,
        )  # fmt: skip
        for cell in self.cells:
            try:
                model.decoding(**cell.settings)
            except ValueError as error:
                raise ValueError(f"{cell}: {error}") from None
        self.title = study.title if study else f"{' and '.join(self.axes) or 'one cell'}"

    def _find_models(
        self, steps: list[int] | None, seeds: Sequence[int]
    ) -> tuple[str, list[list[Model]]]:
        """The axis of the models, and the models of each seed; of all seeds together if `seeds` is empty."""
        asked = self.job.asked

        def find(seed: str) -> tuple[str, list[Model]]:
            if asked.run:
                run = Path(asked.run.replace(SEED, seed))
                return "step", run_models(run, steps, asked.average)
            return exported_models([name.replace(SEED, seed) for name in self.job.models])

        found = [find(str(seed)) for seed in seeds] or [find(SEED)]
        axis, first = found[0]
        for (_, models), seed in zip(found, seeds, strict=False):
            if (
                len(models) > 1
                and axis == "step"
                and [m.label for m in models] != [m.label for m in first]
            ):
                raise ValueError(
                    f"the models of seed {seed} are of steps {[m.label for m in models]}, those of seed "
                    f"{seeds[0]} of {[m.label for m in first]}; accepted: the same steps (--grid=step=...)"
                )
        return axis, [models for _, models in found]

    def run(self) -> int:
        """Computes what is missing, and writes the report."""
        asked, measure, output = self.job.asked, self.job.measure, Path(self.job.asked.output)
        if self.workers.rank == 0:
            check_folder(output)  # complains before the work
            name = asked.study or "grid"
            ours = is_sweep(output / f"{name}.json")
            for suffix in SUFFIXES:
                path = output / f"{name}{suffix}"
                check_replaceable(path, ours, asked.overwrite, "sweep")
        context = Context.make(**measure.how(self.device, self.workers))
        files = CellFiles(output / "cells")
        keys = self.workers.on_first(lambda: self._keys(context))
        found = self.workers.on_first(lambda: self._remembered(files, keys))
        missing = [i for i in range(len(self.cells)) if found[i] is None]
        missing.sort(key=lambda i: self.cells[i].model)  # each model is loaded once
        cells = "1 cell" if len(found) == 1 else f"{len(found)} cells"
        self._say(f"{cells}, {len(found) - len(missing)} remembered")
        begin, work_done = time.perf_counter(), 0.0
        work_left = sum(self._work(self.cells[i]) for i in missing)
        reference = None
        for done, i in enumerate(missing, 1):
            cell = self.cells[i]
            self._say(f"cell {done} of {len(missing)}: {cell}")
            model = self._model(cell.model)
            if reference is None and measure.reference:
                reference = self._reference(context)
                begin = time.perf_counter()
            found[i] = self._evaluate(cell, model, reference, context)
            if self.workers.rank == 0:
                files.store(keys[i], found[i])
            work_done, work_left = work_done + self._work(cell), work_left - self._work(cell)
            seconds = (time.perf_counter() - begin) / work_done * work_left
            metrics = describe({k: v for k, v in found[i]["metrics"].items() if k[-4:] != "_std"})
            rate = found[i]["images_per_second"]
            self._say(f"  {metrics}; {rate:.3g} images/s; {duration(seconds)} left")
        if self.workers.rank == 0:
            sweep = Sweep(
                asked.study or "grid", self.title, self.axes, self.cells, found, self.size
            )
            print(write(sweep, output), end="")
        return 0

    def _possible_steps(self, steps: Sequence[int], num_tokens: int) -> list[int]:
        """A study's numbers of steps without those that are too many for a small model."""
        left_out = [str(number) for number in steps if number > num_tokens]
        if left_out:
            self._say(f"left out: {', '.join(left_out)} steps; the model has {num_tokens} tokens")
        return [number for number in steps if number <= num_tokens]

    def _model(self, index: int) -> Any:
        """One of the models; the last one stays loaded."""
        if self._loaded is None or self._loaded[0] != index:
            self._loaded = None
            spec: Model = self.models[index]
            settings = self.job.settings
            model = spec.load(settings, self.device)
            if index and (model.image_size, model.num_classes) != (self.size, self.num_classes):
                raise ValueError(
                    f"{spec.name}: {model.num_classes} classes at {model.image_size} px, the first model "
                    f"has {self.num_classes} at {self.size} px; accepted: models of one kind"
                )
            if settings.compile:
                model.compile()
            self._loaded = index, model
        return self._loaded[1]

    def _keys(self, context: Context) -> list[str]:
        """What each cell's result depends on, hashed."""
        settings, measure = self.job.settings, self.job.measure
        shared = {
            "tokenizer": weights_fingerprint(settings.tokenizer) if settings.tokenizer else None,
            "labels": self.labels, "num_samples": self.job.asked.num_samples,
            "dtype": settings.dtype, "device": self.device.type, "size": self.size,
            "metrics": self.metrics, "features": context.extractor.fingerprint,
            "neighbours": measure.neighbours, "splits": measure.splits, "shuffle": measure.shuffle,
        }  # fmt: skip
        told = {name: value for name, value in settings.given.items() if value is not None}
        shared |= {"told": told} if told else {}
        if measure.reference:
            shared["reference"] = reference_fingerprint(
                measure.reference, self.size, measure.num_reference
            )
        own = [model.fingerprint() for model in self.models]
        self.weights = [[w, shared["tokenizer"]] if shared["tokenizer"] else w for w in own]
        return [
            CellFiles.key(
                shared | {"model": self.weights[c.model], "settings": c.resolved, "seed": c.seed}
            )
            for c in self.cells
        ]

    def _remembered(self, files: CellFiles, keys: list[str]) -> list[dict[str, Any] | None]:
        found = []
        for key in keys:
            result, damaged = files.load(key)
            if damaged:
                print(f"{files.path(key)} is damaged; it is made again", file=sys.stderr)
            found.append(result)
        return found

    def _reference(self, context: Context) -> Reference:
        """Read once for all cells."""
        samples = ModelSource(self._loaded[1], self.job.asked.num_samples, self.labels)
        return self.job.measure.load_reference(context, samples)

    def _evaluate(
        self, cell: Cell, model: Any, reference: Reference | None, context: Context
    ) -> dict[str, Any]:
        """The result of a cell, as it is stored."""
        spec = self.models[cell.model]
        count = self.job.asked.num_samples
        source = _TimedSource(model, count, self.labels, cell.seed, cell.settings, name=spec.name)
        if self.workers.rank == 0:
            source.protocol["weights"] = self.weights[cell.model]
        # Features of every cell would fill the disk: the cell's file is what is remembered.
        without_cache = dataclasses.replace(context, cache=Cache(None))
        result = self.job.measure.evaluate(source, reference, without_cache)
        rate = source.images / source.seconds * self.workers.world_size if source.seconds else 0.0
        return {
            "metrics": result.metrics,
            "protocol": result.protocol,
            "images_per_second": float(f"{rate:.4g}"),
        }

    @staticmethod
    def _work(cell: Cell) -> float:
        """Passes through networks, roughly: decoding an image costs as much as two of the transformer."""
        passes = 2 if cell.resolved["guidance"] else 1
        return cell.resolved["steps"] * passes + 2

    def _say(self, text: str) -> None:
        if self.workers.rank == 0:
            print(text, flush=True)
