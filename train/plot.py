"""Command line: draws the curves of training runs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from maskgit_pt import command_line as cl
from train import expected_curves, pages, settings
from train.expected_curves import Band, Expected
from train.run.metrics import read_metrics
from train.tasks.token_metrics import PREFIX

PROGRAM = "maskgit-plot"
USAGE = """
maskgit-plot RUN [RUN ...] [--output=curves.png] [--smooth=0.9] [--expected=FILE]
maskgit-plot RUN RUN [RUN ...] --record=FILE.json

One picture with a panel for each metric, over steps, a line for each run. Losses at several mask ratios
share a panel; what was measured on held-out tokens is dashed, in the panel of the same metric in training.

Behind the curves of the first run stand those that are expected of its recipe, if its settings are the
recorded ones: a grey band holds 95 % of the points of a run of another seed. --record makes such a file from
the logs of runs that differ by their seed alone.
"""

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", None, "Picture; default: RUN/curves.png.", flag_values=FLAGS)
flags.DEFINE_float(
    "smooth", 0.0, "Weight of the past in a moving average, 0 to below 1.", 0.0, 0.9999, flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_string("expected", None, "Recorded curves to draw; default: those of the project that belong to "
                    "the run's settings; an empty --expected= for none.", flag_values=FLAGS)  # fmt: skip
flags.DEFINE_string(
    "record", None, "Write what the runs have in common to this file.", flag_values=FLAGS
)
_RUNS: list[str] = []
_WITH_HELD_OUT = ("loss", "accuracy", "loss_at_ratio")


def main() -> int:
    """Runs the program on parsed flags."""
    if not _RUNS:
        raise cl.UsageError("name the folder of a run")
    runs = list(dict.fromkeys(Path(run) for run in _RUNS))
    short = len({run.name for run in runs}) == len(runs)
    curves = {run.name if short else str(run): read_metrics(run) for run in runs}
    for run, lines in zip(runs, curves.values(), strict=True):
        if not lines:
            raise FileNotFoundError(f"{run}: no metrics.jsonl with any line in it")
    if FLAGS.record is not None:
        return _record(runs)
    output = Path(FLAGS.output or runs[0] / "curves.png")
    if output.suffix.lower() != ".png":
        raise cl.UsageError(f"--output={output}; accepted: the name of a .png file")
    expected, told = _expected(runs[0])
    if told:
        print(told)
    if expected is not None:
        print(
            f"points of {runs[0]} in their bands: {expected.describe(next(iter(curves.values())))}"
        )
    draw(curves, output, FLAGS.smooth, expected.bands if expected else None)
    print(output)
    return 0


def _record(runs: list[Path]) -> int:
    path = Path(FLAGS.record)
    if path.suffix.lower() != ".json":
        raise cl.UsageError(f"--record={path}; accepted: the name of a .json file")
    expected = Expected.record(runs, path.stem)
    if path.exists():
        Expected.load(path)  # complains about any other file
    expected.save(path)
    print(f"{path}: {', '.join(expected.bands)} of the seeds {expected.seeds}")
    return 0


def _expected(run: Path) -> tuple[Expected | None, str]:
    """The expected curves of a run, and a line about them."""
    if FLAGS.expected == "" or not (run / settings.FILE_NAME).is_file():
        return None, ""
    if FLAGS.expected is None:
        return expected_curves.find(run)
    expected = Expected.load(Path(FLAGS.expected))
    if told := expected.differences(run):
        raise ValueError(f"{run} is not what {FLAGS.expected} was recorded of: {told}")
    return expected, f"expected curves of {expected.recipe}, seeds {expected.seeds}"


def draw(
    curves: dict[str, list[dict[str, float]]],
    output: Path,
    smooth: float = 0.0,
    bands: dict[str, Band] | None = None,
) -> None:
    """Writes the picture.

    Args:
      curves: for each run its lines, see `metrics.read_metrics`.
      output: PNG file.
      smooth: see `--smooth`.
      bands: of metrics, to be drawn behind the curves.

    Raises:
      ImportError: matplotlib is missing.
    """
    panels = _panels(curves)
    figure, axes = pages.panels(len(panels), 5, 3.2)
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            if bands and name in bands:
                band, label = bands[name], "expected" if len(names) == 1 else None
                axis.fill_between(band.steps, band.low, band.high, color="0.85", label=label)
        _draw_panel(axis, title, names, curves, smooth)
    output.parent.mkdir(parents=True, exist_ok=True)
    pages.save_figure(figure, output, dpi=110)


def _panels(curves: dict[str, list[dict[str, float]]]) -> dict[str, list[str]]:
    """Titles and the metrics under them, in the order of the metrics."""
    names = dict.fromkeys(n for lines in curves.values() for line in lines for n in line)
    panels: dict[str, list[str]] = {}
    for name in names:
        if name != "step":
            panels.setdefault(_title(name), []).append(name)
    return {title: sorted(members) for title, members in panels.items()}


def _title(name: str) -> str:
    """Names the panel of a metric: losses at all mask ratios share one, as do training and held out."""
    trained = name.removeprefix(PREFIX)
    title = "loss_at_ratio" if trained.startswith("loss_at_ratio") else trained
    return title if title in _WITH_HELD_OUT else name


def _draw_panel(
    axis: Any,
    title: str,
    names: list[str],
    curves: dict[str, list[dict[str, float]]],
    smooth: float,
) -> None:
    colours: dict[tuple[str, str], Any] = {}  # a metric in training and held out has one
    for run, lines in curves.items():
        for name in sorted(names, key=lambda name: name.startswith(PREFIX)):
            points = [(line["step"], line[name]) for line in lines if name in line]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            trained = name.removeprefix(PREFIX) if title != name else name
            ratio = trained.removeprefix("loss_at_ratio_") if trained != title else ""
            held_out = trained != name
            parts = (run if len(curves) > 1 else "", ratio, "held out" if held_out else "")
            style = {"linestyle": "--", "marker": "."} if held_out else {}
            (drawn,) = axis.plot(
                steps,
                values if held_out else _smoothed(values, smooth),
                label=" ".join(filter(None, parts)) or "training",
                linewidth=1.2,
                color=colours.get((run, trained)),
                **style,
            )
            colours[run, trained] = drawn.get_color()
    axis.set_title(title.replace("_", " "))
    axis.set_xlabel("steps")
    axis.grid(alpha=0.3)
    if len(axis.lines) > 1 or axis.collections:
        axis.legend(fontsize="small")


def _smoothed(values: Sequence[float], weight: float) -> list[float]:
    """A moving average that starts without bias."""
    result, total, norm = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result.append(total / norm)
    return result


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cl.run(main, FLAGS, PROGRAM, USAGE, argv, arguments=_RUNS)


if __name__ == "__main__":
    sys.exit(cli())
