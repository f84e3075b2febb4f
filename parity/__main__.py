"""Command line: `maskgit-parity`."""

import importlib
import importlib.metadata
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags

from maskgit_pt import command_line

PROGRAM = "maskgit-parity"
USAGE = """\
Proves that maskgit_pt computes what MaskGIT in JAX computes; exit code 0 only if all agrees.

  maskgit-parity
  maskgit-parity --report=parity_report
  maskgit-parity --transformer=maskgit_imagenet256_checkpoint \\
      --tokenizer=tokenizer_imagenet256_checkpoint --official=CHECKOUT --report=parity_report

Without flags it draws weights at a small size, writes them as Google-format checkpoints, converts
those, and compares layer by layer, logits, gradients, random streams, decoding step by step,
images, and training step by step with the Flax reference. Given Google's files, or --size=256 or
512 for seeded weights of the full size, it compares those as well. --official compares with
Google's own code, in a checkout of google-research/maskgit, instead of the reference. Needs the
extra 'jax'."""

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "transformer", None, "Google's transformer file: maskgit_imagenet*.", flag_values=FLAGS
)
flags.DEFINE_string(
    "tokenizer", None, "Google's tokenizer file: tokenizer_imagenet*.", flag_values=FLAGS
)
flags.DEFINE_enum(
    "size", "tiny", ["tiny", "256", "512"], "Size of the seeded models.", flag_values=FLAGS
)
flags.DEFINE_string(
    "official", None, "A checkout of google-research/maskgit to compare with.", flag_values=FLAGS
)
flags.DEFINE_string(
    "image", None, "A photograph for the tokenizer; default: the one among the tests.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_list("seeds", ["0", "1"], "Seeds of the decoding runs.", flag_values=FLAGS)
flags.DEFINE_integer("steps", 8, "Decoding steps.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 2, "Samples a decoding run.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("report", None, "Folder for the report, index.html.", flag_values=FLAGS)


def main() -> int:
    """Compares as the flags say; 0 if all agree, 1 otherwise."""
    # Both sides on the CPU: an accelerator's float32 products are of lower precision by default.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Not at the top: JAX takes seconds to import. This one first: it says which extra is missing.
    importlib.import_module("parity.jax_code")
    from parity import subjects
    from parity.training import plan as plan_training

    started = time.perf_counter()
    if FLAGS.size != "tiny" and _files():
        raise command_line.UsageError("--size is for seeded weights; it excludes files")
    options = _options()
    picture_path = _existing("image", FLAGS.image)
    if FLAGS.report:
        Path(FLAGS.report).mkdir(parents=True, exist_ok=True)  # not after minutes of work
    code, stages = _code()
    with subjects.make_folder() as folder:
        models = _subjects(code, Path(folder))
        tokenizer = plan_training.TokenizerTraining(code, Path(folder) / "images")
        results, pictures, curves = _run(stages, models, tokenizer, picture_path, options)
    seconds = time.perf_counter() - started
    return _conclude(results, pictures, curves, code, models, options, seconds)


def _code() -> tuple[Any, list[Any]]:
    """The JAX side, and the stages that need no weights."""
    from parity import jax_code, official, plan

    if not FLAGS.official:
        code = jax_code.load_reference()
        return code, plan.code_stages(code)
    code = official.load(FLAGS.official)
    configs = official.load_configs(FLAGS.official)
    return code, [plan.config_stage(configs), *plan.code_stages(code)]


def _subjects(code: Any, folder: Path) -> list[Any]:
    """What to compare: the small models always; before them the large ones, if any."""
    from parity import subjects

    models = []
    if _files():
        models.append(subjects.from_files(code, _files(), folder, _progress))
    elif FLAGS.size != "tiny":
        models.append(subjects.seeded(code, FLAGS.size, folder, _progress))
    models.append(subjects.seeded(code, "tiny", folder, _progress))
    return models


def _run(
    stages: list[Any], models: list[Any], tokenizer: Any, image: Path | None, options: Any
) -> tuple[list[Any], list[Any], list[Any]]:
    """Runs all stages, printing a line after each; results, pictures and loss curves."""
    from parity import plan, subjects
    from parity.stages import run_stages, summary_line

    results, plans = [], []
    for model in reversed(models):  # the small ones first: a fault shows soon
        size = model.config.image_size
        planned = plan.SubjectPlan(model, subjects.load_picture(image, size)[0], options)
        plans.append(planned)
        stages = stages + planned.stages()
    stages = stages + tokenizer.stages()
    for result in run_stages(stages, _progress):
        _progress("")
        print(summary_line(result), flush=True)
        results.append(result)
    pictures = [picture for planned in plans for picture in planned.pictures]
    curves = [curve for planned in plans for curve in planned.curves]
    return results, pictures, curves + tokenizer.curves


def _conclude(
    results: list[Any],
    pictures: list[Any],
    curves: list[Any],
    code: Any,
    models: list[Any],
    options: Any,
    seconds: float,
) -> int:
    """Prints the verdict and writes the report."""
    from parity import plan, report, subjects

    passed, sentence = report.verdict(results)
    if FLAGS.report:
        facts = (
            *_versions(),
            ("seeds", ", ".join(map(str, options.seeds))),
            ("samples a decoding run", str(options.batch_size)),
            ("picture", subjects.load_picture(FLAGS.image, 16)[1]),
            ("time", f"{seconds:.0f} s"),
        )
        context = report.Context(
            other=code.title,
            notes=code.notes,
            command=shlex.join([*PROGRAM.split(), *sys.argv[1:]]),
            facts=facts,
            files=tuple(row for model in models for row in model.files),
            not_compared=plan.NOT_COMPARED,
        )
        report.write(FLAGS.report, results, pictures, context, curves)
        print(f"report: {Path(FLAGS.report) / 'index.html'}")
    for note in code.notes:
        print(f"note: {note}")
    print(f"compared with: {code.title}")
    print(f"{'PASS' if passed else 'FAIL'}: {sentence} ({seconds:.0f} s)")
    return 0 if passed else 1


def _options() -> Any:
    from parity import plan

    try:
        seeds = tuple(int(seed) for seed in FLAGS.seeds)
    except ValueError:
        raise command_line.UsageError(
            f"--seeds={','.join(FLAGS.seeds)}: accepted: whole numbers, e.g. --seeds=0,1"
        ) from None
    if not seeds:
        raise command_line.UsageError("--seeds is empty; accepted: whole numbers")
    return plan.Options(seeds=seeds, steps=FLAGS.steps, batch_size=FLAGS.batch_size)


def _files() -> dict[str, Path]:
    given = {"transformer": FLAGS.transformer, "tokenizer": FLAGS.tokenizer}
    return {kind: _existing(kind, path) for kind, path in given.items() if path}


def _existing(flag: str, path: str | None) -> Path | None:
    if path is not None and not Path(path).is_file():
        raise ValueError(f"{path}: no such file (--{flag})")
    return Path(path) if path else None


def _versions() -> tuple[tuple[str, str], ...]:
    names = ("maskgit_pt", "torch", "jax", "jaxlib", "flax", "optax", "numpy")

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed as a package"

    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        ("versions", f"Python {platform.python_version()}, {versions}"),
        ("machine", f"{platform.machine()}, {platform.system()}"),
        ("date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
    )


def _progress(line: str) -> None:
    """Shows on a terminal what is being done; an empty line wipes it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line[:100]}", end="", file=sys.stderr, flush=True)


def cli() -> int:
    """Runs the command line and returns its exit code."""
    return command_line.run(main, FLAGS, PROGRAM, USAGE)


if __name__ == "__main__":
    sys.exit(cli())
