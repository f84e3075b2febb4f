"""Command line: `maskgit-sweep`, the studies of the 2023 report and sweeps of one's own."""

import copy
import dataclasses
import difflib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from absl import flags

from maskgit_pt import command_line, imagenet, launch, sample
from maskgit_pt.command_line import UsageError
from maskgit_pt.pretrained import weights_fingerprint
from train import evaluate as evaluate_program
from train.evaluation import Context, ModelSource, Processes, evaluate
from train.evaluation.extraction import Cache
from train.evaluation.reference import Reference, load_reference
from train.evaluation.report import check_metrics
from train.evaluation.samples import METRICS
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
from train.sweeps.report import Sweep, write
from train.sweeps.studies import STUDIES, Study

PROGRAM = "maskgit-sweep"
USAGE = """\
Samples and evaluates a model at many settings: a study of the 2023 report (Besnier & Chen), or a grid of
one's own. Ends with a table, beside published numbers where they are known, and a plot.

  maskgit-sweep --list
  maskgit-sweep --study=schedulers --model=besnier512 --tokenizer=vqgan \\
      --reference=VIRTUAL_imagenet512.npz
  maskgit-sweep --study=training --run=runs/best256 --tokenizer=tokenizer256 \\
      --reference=VIRTUAL_imagenet256_labeled.npz --num_samples=10000
  maskgit-sweep --grid=guidance=0,1,2,3 --grid=steps=8,12 --model=maskgit256 \\
      --tokenizer=tokenizer256 --reference=VIRTUAL_imagenet256_labeled.npz

Writes NAME.md, NAME.csv, NAME.json and NAME.png into --output, NAME being the study's. Every cell's result
is kept in --output/cells: the same command, after an interruption or with more values, computes only what
is missing. Settings of sampling given as flags hold for all cells and win over a study's. Under `torchrun
--nproc_per_node=GPUS -m train.sweep ...` the processes share the images of each cell."""

FLAGS = flags.FlagValues()
flags.DEFINE_string("study", None, f"One of: {', '.join(STUDIES)}.", flag_values=FLAGS)
flags.DEFINE_multi_string(
    "grid", [], "SETTING=VALUE,VALUE,...; several times for several settings, the first along the plot. "
    "With --study: other values of one of its settings, or another axis.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_list(
    "model", [], "Transformers to sample from (folders, files or hub ids), or folders with both networks. "
    "Several are an axis: of training steps, where all are exported from a run.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string("run", None, "Instead of --model, the checkpoints of a training run; "
                    "--grid=step=... for some of them.", flag_values=FLAGS)  # fmt: skip
flags.DEFINE_bool("average", True, "Of --run: the averaged weights.", flag_values=FLAGS)
flags.DEFINE_bool("list", False, "Only list the studies.", flag_values=FLAGS)
flags.DEFINE_integer("num_samples", 50_000, "In each cell.", 1, flag_values=FLAGS)
flags.DEFINE_string("output", "sweep", "Folder for the results.", flag_values=FLAGS)
_SAMPLING = (
    "sampler", "steps", "schedule", "choice_temperature", "choice", "remasking", "eta", "shift",
    "softmax_temperature", "guidance", "guidance_schedule",
)  # fmt: skip
_SWEPT = (*_SAMPLING, "seed")
for _name in (*_SWEPT, "dtype", "device", "threads", "compile", "labels"):
    FLAGS[_name] = copy.deepcopy(sample.FLAGS[_name])
for _name in (
    "tokenizer", "reference", "num_reference", "metrics", "features", "inception_weights", "neighbours",
    "splits", "shuffle", "cache", "batch_size",
):  # fmt: skip
    FLAGS[_name] = copy.deepcopy(evaluate_program.FLAGS[_name])
FLAGS["labels"].help = evaluate_program.FLAGS["labels"].help
FLAGS["cache"].help += " Here only the reference's."


def main() -> int:
    """Runs the program on parsed flags."""
    if FLAGS.list:
        return _list()
    study, grid = _check_usage()
    device = launch.pick_device(FLAGS.device, FLAGS.threads)
    advice = launch.out_of_memory(device, f"--batch_size={FLAGS.batch_size}")
    with Processes() as processes, advice:
        return _Sweeping(study, grid, device, processes).run()


def _list() -> int:
    for name, study in STUDIES.items():
        print(f"{name}: {study.title}")
        for size in (256, 512):
            fixed, grid, cases = study.at(size)
            lines = [f"{case}: {describe(settings)}" for case, settings in cases.items()]
            lines += [f"{axis}: {', '.join(map(str, values))}" for axis, values in grid.items()]
            lines += [f"at {describe(fixed)}"] if fixed else []
            print(f"  {size} px  " + "\n          ".join(lines))
    return 0


def _check_usage() -> tuple[Study | None, dict[str, list[Any]]]:
    """The study, and the grid of the command line."""
    if FLAGS.study is not None and FLAGS.study not in STUDIES:
        raise UsageError(f"--study={FLAGS.study}: unknown{_hint(FLAGS.study, STUDIES)}")
    study = STUDIES[FLAGS.study] if FLAGS.study else None
    if study is None and not FLAGS.grid:
        raise UsageError(f"--study or --grid is missing; studies: {', '.join(STUDIES)}")
    if bool(FLAGS.model) == bool(FLAGS.run):
        raise UsageError("one of --model and --run is needed")
    if FLAGS.run and not FLAGS.tokenizer:
        raise UsageError("--run needs --tokenizer")
    if not FLAGS.reference and FLAGS.metrics != "inception_score":
        raise UsageError(
            "--reference is missing: images (a folder or npz), an ADM reference batch or statistics; "
            "only --metrics=inception_score goes without"
        )
    grid = {}
    for text in FLAGS.grid:
        name, values = _parse_axis(text)
        if name in grid:
            raise UsageError(f"--grid={text}: {name} is there twice")
        if FLAGS[name].present if name in _SWEPT else False:
            raise UsageError(f"--grid={text} and --{name} exclude each other")
        grid[name] = values
    several = len(FLAGS.model) > 1 or FLAGS.run
    if study and study.over_training and not several:
        raise UsageError(
            f"--study={FLAGS.study} needs --run=RUN, or several models: --model=A,B,..."
        )
    return study, grid


def _parse_axis(text: str) -> tuple[str, list[Any]]:
    """ "steps=8,12" -> ("steps", [8, 12])."""
    name, equals, values = text.partition("=")
    known = (*_SWEPT, "step") if FLAGS.run else _SWEPT
    if name not in known:
        hint = "; several models go into --model=A,B" if name == "model" else _hint(name, known)
        raise UsageError(f"--grid={text}: there is no setting {name!r}{hint}")
    if not equals or not values:
        raise UsageError(f"--grid={text}: no values; accepted: {name}=VALUE,VALUE,...")
    parser = FLAGS["seed" if name == "step" else name].parser
    try:
        parsed = [parser.parse(value.strip()) for value in values.split(",")]
    except (ValueError, TypeError) as error:
        raise UsageError(f"--grid={text}: {error}") from None
    return name, list(dict.fromkeys(parsed))


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    listed = f"known: {', '.join(known)}"
    return f"; did you mean {near[0]}? ({listed})" if near else f"; {listed}"


class _TimedSource(ModelSource):
    """Knows how fast images were generated."""

    images, seconds = 0, 0.0

    def read(self, start: int, stop: int):
        begin = time.perf_counter()
        found = super().read(start, stop)
        self.seconds += time.perf_counter() - begin
        self.images += len(found)
        return found


class _Sweeping:
    """One run of the program.

    Args:
      study: None for a grid alone.
      grid: of the command line.
      device, workers: where and by whom.
    """

    def __init__(
        self,
        study: Study | None,
        grid: dict[str, list[Any]],
        device: torch.device,
        workers: Processes,
    ):
        self.device, self.workers = device, workers
        self.metrics = None
        if FLAGS.metrics is not None:
            names = [name.strip() for name in FLAGS.metrics.split(",") if name.strip()]
            self.metrics = check_metrics(names, METRICS)
        if FLAGS.run:
            axis = "step"
            self.models = run_models(Path(FLAGS.run), grid.pop("step", None), FLAGS.average)
        else:
            axis, self.models = exported_models(FLAGS.model)
        self._loaded: tuple[int, Any] | None = None
        model = self._model(0)
        self.size, self.num_classes = model.image_size, model.num_classes
        try:
            self.labels = imagenet.parse_labels(FLAGS.labels or "all", self.num_classes)
        except ValueError as error:
            raise ValueError(f"--labels: {error}") from None
        fixed, own_grid, cases = study.at(self.size) if study else ({}, {}, {})
        given = {name: FLAGS[name].value for name in _SAMPLING if FLAGS[name].present}
        own_grid = {name: v for name, v in own_grid.items() if name not in given}
        if "steps" in own_grid and "steps" not in grid:
            own_grid["steps"] = self._possible_steps(own_grid["steps"], model.num_tokens)
        self.axes, self.cells = plan(
            fixed | given, own_grid | grid, cases, self.models, axis, FLAGS.seed,
            models_first=bool(study and study.over_training),
        )  # fmt: skip
        for cell in self.cells:
            try:
                model.decoding(**cell.settings)
            except ValueError as error:
                raise ValueError(f"{cell}: {error}") from None
        self.title = study.title if study else f"{' and '.join(self.axes) or 'one cell'}"

    def run(self) -> int:
        """Computes what is missing, and writes the report."""
        output = Path(FLAGS.output)
        if self.workers.rank == 0:
            output.mkdir(parents=True, exist_ok=True)  # complains before the work
        context = Context.make(
            FLAGS.features, FLAGS.inception_weights, evaluate_program.cache_folder(FLAGS.cache),
            self.device, FLAGS.batch_size, progress=True, workers=self.workers,
        )  # fmt: skip
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
            if reference is None and FLAGS.reference:
                reference = self._reference(context)
                begin = time.perf_counter()
            found[i] = self._evaluate(cell, model, reference, context)
            if self.workers.rank == 0:
                files.store(keys[i], found[i])
            work_done, work_left = work_done + self._work(cell), work_left - self._work(cell)
            seconds = (time.perf_counter() - begin) / work_done * work_left
            metrics = describe({k: v for k, v in found[i]["metrics"].items() if k[-4:] != "_std"})
            rate = found[i]["images_per_second"]
            self._say(f"  {metrics}; {rate:.3g} images/s; {_duration(seconds)} left")
        if self.workers.rank == 0:
            sweep = Sweep(
                FLAGS.study or "grid", self.title, self.axes, self.cells, found, self.size
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
            model = spec.load(FLAGS.tokenizer, self.device, getattr(torch, FLAGS.dtype))
            if index and (model.image_size, model.num_classes) != (self.size, self.num_classes):
                raise ValueError(
                    f"{spec.name}: {model.num_classes} classes at {model.image_size} px, the first model "
                    f"has {self.num_classes} at {self.size} px; accepted: models of one kind"
                )
            if FLAGS.compile:
                model.compile()
            self._loaded = index, model
        return self._loaded[1]

    def _keys(self, context: Context) -> list[str]:
        """What each cell's result depends on, hashed."""
        shared = {
            "tokenizer": weights_fingerprint(FLAGS.tokenizer) if FLAGS.tokenizer else None,
            "labels": self.labels, "num_samples": FLAGS.num_samples, "dtype": FLAGS.dtype,
            "device": self.device.type, "size": self.size, "metrics": self.metrics,
            "features": context.extractor.fingerprint, "neighbours": FLAGS.neighbours,
            "splits": FLAGS.splits, "shuffle": FLAGS.shuffle,
        }  # fmt: skip
        if FLAGS.reference:
            shared["reference"] = reference_fingerprint(
                FLAGS.reference, self.size, FLAGS.num_reference
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
                print(f"{PROGRAM}: {files.path(key)} is damaged; it is made again", file=sys.stderr)
            found.append(result)
        return found

    def _reference(self, context: Context) -> Reference:
        """Read once for all cells."""
        samples = ModelSource(self._loaded[1], FLAGS.num_samples, self.labels)
        return load_reference(
            FLAGS.reference, context, samples, count=FLAGS.num_reference
        )  # fmt: skip

    def _evaluate(
        self, cell: Cell, model: Any, reference: Reference | None, context: Context
    ) -> dict[str, Any]:
        """The result of a cell, as it is stored."""
        spec = self.models[cell.model]
        source = _TimedSource(
            model, FLAGS.num_samples, self.labels, cell.seed, cell.settings, name=spec.name
        )
        if self.workers.rank == 0:
            source.protocol["weights"] = self.weights[cell.model]
        # Features of every cell would fill the disk: the cell's file is what is remembered.
        without_cache = dataclasses.replace(context, cache=Cache(None))
        result = evaluate(
            source, reference, metrics=self.metrics, neighbours=FLAGS.neighbours, splits=FLAGS.splits,
            shuffle=FLAGS.shuffle, context=without_cache,
        )  # fmt: skip
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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point of `maskgit-sweep`; returns the exit code."""
    return command_line.run(main, FLAGS, PROGRAM, USAGE, argv)


if __name__ == "__main__":
    sys.exit(cli())
