"""Command line: draws the curves of training runs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from maskgit_pt import command_line as cl
from train.run.metrics import read_metrics
from train.tasks.token_metrics import PREFIX

PROGRAM = "maskgit-plot"
USAGE = """
maskgit-plot RUN [RUN ...] [--output=curves.png] [--smooth=0.9]

One picture with a panel for each metric, over steps, a line for each run. Losses at several mask ratios
share a panel; what was measured on held-out tokens is dashed, in the panel of the same metric in training.
"""

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", None, "Picture; default: RUN/curves.png.", flag_values=FLAGS)
flags.DEFINE_float(
    "smooth", 0.0, "Weight of the past in a moving average, 0 to below 1.", 0.0, 0.9999, flag_values=FLAGS
)  # fmt: skip
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
    output = Path(FLAGS.output or runs[0] / "curves.png")
    if output.suffix.lower() != ".png":
        raise cl.UsageError(f"--output={output}; accepted: the name of a .png file")
    draw(curves, output, FLAGS.smooth)
    print(output)
    return 0


def draw(curves: dict[str, list[dict[str, float]]], output: Path, smooth: float = 0.0) -> None:
    """Writes the picture.

    Args:
      curves: for each run its lines, see `metrics.read_metrics`.
      output: PNG file.
      smooth: see `--smooth`.

    Raises:
      ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "matplotlib is not installed; it comes with the extra 'train': pip install 'maskgit_pt[train]'"
        ) from None
    panels = _panels(curves)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        _draw_panel(axis, title, names, curves, smooth)
    for axis in axes[len(panels) :]:
        axis.remove()
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(output)


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
    if len(axis.lines) > 1:
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
