"""Command line: trains the transformer or the tokenizer from scratch."""

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from maskgit_pt import command_line as cl
from maskgit_pt import launch
from maskgit_pt.launch import Processes
from train import loop, settings
from train.run import early_stop

PROGRAM = "maskgit-train"
USAGE = """
maskgit-train --config=RECIPE --output=FOLDER [--config.FIELD=VALUE ...]

Trains with the settings of a recipe, one of the project's by name (train/configs/*.py) or a file, e.g.

  maskgit-train --config=best256 --output=runs/best256 --config.data.tokens=tokens256
  torchrun --nproc_per_node=8 --no-python maskgit-train --config=best256 --output=runs/best256 \\
      --config.data.tokens=tokens256

--dry_run prints all settings; train/configs/defaults.py, and tokenizer_defaults.py for the tokenizer, explain
them.

The folder then holds config.json, checkpoints/, metrics.jsonl, tensorboard/ and pictures/. Run the same
command again to go on from the newest checkpoint, on any number of processes. maskgit-plot draws
the curves; maskgit-export makes a folder for from_pretrained.
"""


def make_flags(argv: Sequence[str]) -> flags.FlagValues:
    """The program's flags; `--config.x` depends on the recipe that `argv` names."""
    values = flags.FlagValues()
    settings.define_flag(values, argv)
    flags.DEFINE_string(
        "output", None, "Folder of the run; made, or gone on with.", flag_values=values
    )
    flags.DEFINE_enum(
        "device", None, ["cuda", "cpu"], "Default: cuda if there is one.", flag_values=values
    )
    flags.DEFINE_integer("threads", None, "Of PyTorch on the CPU.", 1, flag_values=values)
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Check settings, data and networks, print sizes and cost, and stop.",
        flag_values=values,
    )
    return values


def main(values: flags.FlagValues) -> int:
    """Runs the program on parsed flags."""
    if values.config is None or not (values.output or values.dry_run):
        raise cl.UsageError("--config=RECIPE and --output=FOLDER are needed")
    settings.check_ranges(values.config)  # before anything is made of them, a time limit say
    device = launch.pick_device(values.device, values.threads or 0)
    advice = "try a larger --config.accumulation_steps or a smaller --config.batch_size"
    memory = launch.out_of_memory(device, f"--config.batch_size={values.config.batch_size}", advice)
    timeout = datetime.timedelta(minutes=values.config.get("timeout_minutes", 10.0))
    with Processes(device, timeout=timeout) as processes, memory:
        if values.dry_run:
            _describe(values.config, processes)
            if values.output:
                settings.compare(values.config, Path(values.output))
            return 0
        try:
            state = loop.train(values.config, Path(values.output), processes)
        except FloatingPointError as error:
            raise ValueError(str(error)) from None
    done = state.step >= values.config.num_train_steps
    done = done or early_stop.best_step(Path(values.output), values.config) is not None
    return 0 if done else 143  # as after SIGTERM


def _describe(config: object, processes: Processes) -> None:
    about, work = loop.task_class(config).describe(config, processes)
    if not processes.is_main:
        return
    for name, value in settings.flatten(config).items():
        print(f"{name} = {value!r}")
    print()
    work *= config.num_train_steps * config.batch_size
    hours = work / 312e12 / 0.5 / 3600
    about |= {
        "all steps": f"{work / 1e18:,.3g} EFLOP, {hours:,.4g} A100-hours at half of 312 TFLOP/s (modelled)"
    }
    for name, value in about.items():
        print(f"{name}: {value}")


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = settings.with_recipe_files(sys.argv[1:] if argv is None else argv)
    values = make_flags(argv)
    return cl.run(lambda: main(values), values, PROGRAM, USAGE, argv, settings.check_arguments)


if __name__ == "__main__":
    sys.exit(cli())
