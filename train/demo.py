"""Command line: `maskgit-demo`, the whole method on real images, in minutes on a CPU."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from maskgit_pt import command_line
from maskgit_pt.command_line import UsageError
from maskgit_pt.files import hold_folder
from maskgit_pt.settings import define_flags, fields, from_flags
from train.data.images import check_apart
from train.demos.images import DATA_SETS
from train.demos.own import OwnPlan
from train.demos.plan import Plan
from train.demos.settings import DemoSettings
from train.demos.stages import Stages

PROGRAM = "maskgit-demo"
USAGE = """\
Trains both stages on real images, generates, scores, and draws one page that shows it all.

  maskgit-demo --data=fashion --minutes=15
  maskgit-demo --data=digits
  maskgit-demo --data=my_images --from=maskgit256 --tokenizer=tokenizer256

fashion is Fashion-MNIST, 70,000 photographs of clothes of ten classes, 28 x 28 pixels. Its four IDX files are
looked for in --files, in Debian's folder of the package dataset-fashion-mnist, and where torchvision puts
them; --download fetches them. digits are scikit-learn's handwritten digits, 8 x 8 pixels.

Everything goes into --output: the page is index.html, the figures stand in report.json. Every step is one of
the project's commands, printed as one would type it. Interrupted, the same command goes on."""


FLAGS = flags.FlagValues()
define_flags(DemoSettings, FLAGS)
flags.DEFINE_string(
    "from", None, "Trained weights that learn the classes of a folder.", flag_values=FLAGS
)
_NOT_OF_A_FOLDER = (
    "minutes", "files", "download", "processes", "few", "tokenizer_config", "classifier_steps"
)  # fmt: skip


def main() -> int:
    """Runs the demo that the flags describe."""
    return make(from_flags(DemoSettings, FLAGS), FLAGS["from"].value)


def make(settings: DemoSettings, start: str | None) -> int:
    """Makes a demo; `start`: the trained weights that learn the classes of a folder."""
    own = settings.data not in DATA_SETS
    check(settings, start, own)
    folder = Path(settings.output or f"{Path(settings.data).name}{'_demo' * own}")
    if own:
        check_apart(folder, settings.data)
    # What the result depends on; where the images were found is no part of it.
    apart = ("output", "files", "download")
    asked = {k: v for k, v in dataclasses.asdict(settings).items() if k not in apart}
    stages = Stages(folder, asked | ({"from": start} if own else {}))
    with hold_folder(folder, "making a demo"):
        plan = OwnPlan(settings, start, folder, stages) if own else Plan(settings, folder, stages)
        report = plan.run()
    for name, value in report.items():
        print(f"{name}: {value}")
    print(f"see {folder / 'index.html'}")
    return 0


def check(settings: DemoSettings, start: str | None, own: bool) -> None:
    """Refuses flags that do not go together; `own`: `--data` is no data set that the demo knows."""
    if own and not Path(settings.data).is_dir():
        raise UsageError(f"--data={settings.data}; accepted: {', '.join(DATA_SETS)}, or a folder")
    defaults = {name: field.default for name, field in fields(DemoSettings).items()}
    others = [  # an empty list of settings has an empty tuple as its default
        name for name in _NOT_OF_A_FOLDER
        if (getattr(settings, name) or None) != (defaults[name] or None)
    ]  # fmt: skip
    if own and others:
        raise UsageError(f"--{others[0]} is for --data={' or '.join(DATA_SETS)}, not for a folder")
    if own != bool(start) or own != bool(settings.tokenizer):
        wanted = "a folder needs --from=WEIGHTS and --tokenizer" if own else "a folder for --from"
        raise UsageError(
            f"--data={settings.data} with --from={start}, --tokenizer={settings.tokenizer}; "
            f"accepted: {wanted}"
        )


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point of `maskgit-demo`; returns the exit code."""
    return command_line.run(main, FLAGS, PROGRAM, USAGE, argv)


if __name__ == "__main__":
    sys.exit(cli())
