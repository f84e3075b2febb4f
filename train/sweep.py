"""Command line: `maskgit-sweep`, the studies of the 2023 report and sweeps of one's own."""

import difflib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from maskgit_pt import command_line, decoding, launch
from maskgit_pt.command_line import UsageError
from maskgit_pt.launch import Processes
from maskgit_pt.model_settings import ModelSettings
from maskgit_pt.settings import define_flags, from_flags
from train.evaluation.settings import EvaluationSettings
from train.sweeps.cells import describe
from train.sweeps.run import Job, Sweeping, SweepSettings
from train.sweeps.studies import STUDIES

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

  maskgit-sweep --study=guidance --grid=seed=0,1,2 --model=clothes_{seed} --tokenizer=tokenizer \\
      --features=classifier:classifier --reference=images/test.tar --num_samples=2000

Writes NAME.md, NAME.csv, NAME.json and NAME.png into --output, NAME being the study's. Every cell's result
is kept in --output/cells: the same command, after an interruption or with more values, computes only what
is missing. Over several seeds table and plot show mean and standard deviation, and what the report found is
judged. Settings of sampling given as flags hold for all cells and win over a study's. Under `torchrun
--nproc_per_node=GPUS -m train.sweep ...` the processes share the images of each cell."""

FLAGS = flags.FlagValues()
flags.DEFINE_list(
    "model", [], "Transformers to sample from (folders, files or hub ids), or folders with both networks. "
    "Several are an axis: of training steps, where all are exported from a run. {seed} in a name stands "
    "for the values of --grid=seed=...: models that were trained with these seeds.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_multi_string(
    "grid", [], "SETTING=VALUE,VALUE,...; several times for several settings, the first along the plot. "
    "With --study: other values of one of its settings, or another axis.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_bool("list", False, "Only list the studies.", flag_values=FLAGS)
define_flags(SweepSettings, FLAGS)
define_flags(ModelSettings, FLAGS, without=["model"])
define_flags(EvaluationSettings, FLAGS)
decoding.define_flags(FLAGS)
FLAGS["cache"].help += " Here only the reference's."
_SWEPT = (*(name for name in decoding.NAMES if name in FLAGS), "seed")


def main() -> int:
    """Runs the program on parsed flags."""
    if FLAGS.list:
        return _list()
    job = Job(
        from_flags(ModelSettings, FLAGS, model=None),
        FLAGS.model,
        decoding.from_flags(FLAGS),
        from_flags(EvaluationSettings, FLAGS),
        from_flags(SweepSettings, FLAGS),
    )
    _check_usage(job)
    grid = _grid(job)
    device = job.settings.pick_device()
    advice = launch.out_of_memory(device, f"--batch_size={job.measure.batch_size}")
    with Processes() as processes, advice:
        return Sweeping(job, grid, device, processes).run()


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


def _check_usage(job: Job) -> None:
    asked = job.asked
    if asked.study is not None and asked.study not in STUDIES:
        raise UsageError(f"--study={asked.study}: unknown{_hint(asked.study, STUDIES)}")
    if job.study is None and not FLAGS.grid:
        raise UsageError(f"--study or --grid is missing; studies: {', '.join(STUDIES)}")
    if bool(job.models) == bool(asked.run):
        raise UsageError("one of --model and --run is needed")
    if asked.run and not job.settings.tokenizer:
        raise UsageError("--run needs --tokenizer")
    if not job.measure.reference and job.measure.metrics != "inception_score":
        raise UsageError(
            "--reference is missing: images (a folder or npz), an ADM reference batch or statistics; "
            "only --metrics=inception_score goes without"
        )
    if job.study and job.study.over_training and not (len(job.models) > 1 or asked.run):
        raise UsageError(
            f"--study={asked.study} needs --run=RUN, or several models: --model=A,B,..."
        )


def _grid(job: Job) -> dict[str, list[Any]]:
    """The grid of the command line: setting -> values."""
    grid = {}
    for text in FLAGS.grid:
        name, values = _parse_axis(text, (*_SWEPT, "step") if job.asked.run else _SWEPT)
        if name in grid:
            raise UsageError(f"--grid={text}: {name} is there twice")
        if name in _SWEPT and FLAGS[name].present:
            raise UsageError(f"--grid={text} and --{name} exclude each other")
        grid[name] = values
    return grid


def _parse_axis(text: str, known: Sequence[str]) -> tuple[str, list[Any]]:
    """ "steps=8,12" -> ("steps", [8, 12])."""
    name, equals, values = text.partition("=")
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


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point of `maskgit-sweep`; returns the exit code."""
    return command_line.run(main, FLAGS, PROGRAM, USAGE, argv)


if __name__ == "__main__":
    sys.exit(cli())
