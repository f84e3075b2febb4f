"""Command line: `maskgit-convert`."""

import signal
import sys

from absl import flags
from tqdm import tqdm

from convert import api, formats, inspection
from convert.checkpoint import WEIGHTS, Given
from convert.files import dtypes
from convert.verification import verify
from maskgit_pt import command_line, hub
from maskgit_pt.files import printable
from maskgit_pt.nets.self_guidance import GELUS

PROGRAM = "maskgit-convert"
USAGE = """\
Converts MaskGIT weights of any origin: Google's Flax files, files of the projects that ported them, and
those of Besnier & Chen, to PyTorch folders and back.

  maskgit-convert --input=maskgit_imagenet256_checkpoint --output=maskgit256
  maskgit-convert --input=maskgit256 --output=maskgit_imagenet256_checkpoint --to=flax
  maskgit-convert --input=maskgit_imagenet256.ckpt --output=maskgit_imagenet256_checkpoint --to=flax
  maskgit-convert --input=maskgit256 --output=maskgit256_jax --to=orbax
  maskgit-convert --input=maskgit256 --output=maskgit256_onnx --to=onnx
  maskgit-convert --inspect=FILE
  maskgit-convert --verify=FILE --against=OTHER
  maskgit-convert --list

What the input is, is told from its content. A PyTorch folder holds config.json, model.safetensors
and README.md; `from_pretrained` of the networks and of maskgit_pt.MaskGIT loads it.
The output is read back and compared with the input bit for bit before it gets its name. Nothing
that a file contains is ever executed."""

_DTYPES = (*dtypes.FLOATS, "int8")
FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "input", None, "File, folder or Hugging Face hub id to convert.", flag_values=FLAGS
)
flags.DEFINE_string(
    "output", None, "Folder to make or file to write, depending on --to.", flag_values=FLAGS
)
flags.DEFINE_enum(
    "to",
    "safetensors",
    sorted(formats.BY_NAME),
    f"Format of the output: {', '.join(formats.BY_NAME)}; see --list.",
    flag_values=FLAGS,
)
flags.DEFINE_bool("list", False, "Show the formats and what each holds.", flag_values=FLAGS)
flags.DEFINE_string(
    "inspect", None, "Tell what a file, a folder or a hub id is.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "safetensors",
    False,
    "Write another project's format as a safetensors file instead of PyTorch's.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "dtype",
    None,
    list(_DTYPES),
    f"Convert the weights: {', '.join(_DTYPES)} (int8: ONNX alone). Not given: as stored; ONNX: float32.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "noverify",
    False,
    "Do not read the output back and compare it; saves a third.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "verify",
    None,
    "Compare a file, a folder or a hub id with what is known of the published ones.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "against",
    None,
    "With --verify: another copy, of any format, to compare with.",
    flag_values=FLAGS,
)
flags.DEFINE_bool("overwrite", False, "Replace an output that exists.", flag_values=FLAGS)
flags.DEFINE_enum(
    "weights",
    None,
    WEIGHTS,
    "Which weights to take from a file that holds both: the moving average (ema) or the raw ones.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "pixels",
    None,
    "Side of the images that a tokenizer was trained on, for its config.json: tokenizers for 256 and 512 px "
    "look alike. Not given: as the published file is named.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "gelu",
    None,
    GELUS,
    "Which GELU a network with a self-guidance module (UnlockMGM) runs with, for its config.json. Not given: "
    "erf, as its authors run it; Google's is tanh.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "push",
    None,
    "OWNER/NAME on the Hugging Face hub, to which the output is uploaded.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "num_heads",
    None,
    "Attention heads, for weights that do not tell (hmorimitsu, besnier, bare .safetensors files). "
    "Not given: 16, as the published models have.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "num_codes",
    None,
    "Codes of the tokenizer, for weights that do not tell (besnier). Not given: 1024, as published; of "
    "a smaller vocabulary the largest power of two.",
    lower_bound=1,
    flag_values=FLAGS,
)


def main() -> int:
    """Converts as the flags say and prints a summary; or lists, inspects or verifies."""
    _check_usage()
    if FLAGS.list:
        print(inspection.list_formats())
        return 0
    if FLAGS.inspect is not None:
        rows = inspection.inspect(FLAGS.inspect, FLAGS.num_heads, FLAGS.num_codes, FLAGS.weights)
        print(_lines(rows))
        return 0
    if FLAGS.verify is not None:
        given = Given(FLAGS.num_heads, FLAGS.num_codes, FLAGS.weights)
        result = verify.verify(FLAGS.verify, FLAGS.against, given)
        print(_lines(result.rows))
        return 1 if result.problems else 0
    for name in ("input", "output"):
        if not FLAGS[name].value:
            raise command_line.UsageError(f"--{name} is missing")
    # disable=None: a bar only where standard error is a terminal.
    with tqdm(unit="B", unit_scale=True, disable=None, leave=False, delay=0.5) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        summary = api.convert(
            FLAGS.input,
            FLAGS.output,
            to=FLAGS.to,
            dtype=FLAGS.dtype,
            verify=not FLAGS.noverify,
            overwrite=FLAGS.overwrite,
            num_heads=FLAGS.num_heads,
            num_codes=FLAGS.num_codes,
            weights=FLAGS.weights,
            pixels=FLAGS.pixels,
            gelu=FLAGS.gelu,
            safetensors=FLAGS.safetensors,
            progress=progress,
        )
    for warning in summary.warnings:
        print(printable(f"{PROGRAM}: warning: {warning}"), file=sys.stderr)
    print(describe(summary, FLAGS.input, FLAGS.output))
    if FLAGS.push:
        print(f"{'uploaded:':12}{hub.upload(FLAGS.output, FLAGS.push)}")
    return 0


# Flags of a conversion alone.
_CONVERTING = (
    *("output", "to", "safetensors", "dtype", "noverify", "overwrite"),
    *("pixels", "gelu", "push"),
)


def _check_usage() -> None:
    for name in ("input", "output", "inspect", "verify", "against", "push"):
        if FLAGS[name].value == "":
            raise command_line.UsageError(f"--{name} is empty")
    doing = [
        FLAGS.list,
        *(FLAGS[name].value is not None for name in ("inspect", "verify", "input")),
    ]
    if sum(doing) > 1:
        raise command_line.UsageError("--input, --list, --inspect and --verify exclude each other")
    if FLAGS.input is None and any(doing):
        for name in _CONVERTING:
            if FLAGS[name].present:
                raise command_line.UsageError(f"--{name} is for --input=FILE")
    if FLAGS.against is not None and FLAGS.verify is None:
        raise command_line.UsageError("--against is for --verify=FILE")
    if FLAGS.dtype == "int8" and FLAGS.to != "onnx":
        raise command_line.UsageError("--dtype=int8 is for --to=onnx")


def _lines(rows: dict[str, str]) -> str:
    return "\n".join(printable(f"{name + ':':14}{value}") for name, value in rows.items())


def describe(summary: api.Summary, input: str, output: str) -> str:
    """The lines that a conversion prints."""
    rows = {
        "model type": summary.model_type,
        "pixels": summary.resolution,
        "parameters": f"{summary.parameters:,}",
        "dtype": summary.dtype,
        "input": f"{input} ({summary.input_format}, {summary.input_layout}), sha256 {summary.input_sha256}",
        "output": f"{output} ({summary.output_format}), sha256 {summary.output_sha256}",
        "verified": summary.check,
        "seconds": f"{summary.seconds:.1f}",
    }
    return "\n".join(printable(f"{name + ':':12}{value}") for name, value in rows.items())


def cli() -> int:
    """Runs the command line and returns its exit code."""
    # Being terminated is like Ctrl-C: no half-written output stays behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return command_line.run(main, FLAGS, PROGRAM, USAGE, keep_memory=False)


if __name__ == "__main__":
    sys.exit(cli())
