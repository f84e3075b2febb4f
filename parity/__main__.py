"""Command line: `maskgit-parity`."""

import importlib
import os
import shlex
import sys
from pathlib import Path

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
extra 'jax'.

Three commands are for other implementations; each has its own --help:

  maskgit-parity record --output=PACK            records what the JAX code computes
  maskgit-parity check PACK --code=theirs.py     checks an implementation against that
  maskgit-parity peers --checkouts=FOLDER        measures the public ones, and writes a page"""
COMMANDS = ("record", "check", "peers")

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
    from parity.run import Options, Request, run

    given = {"transformer": FLAGS.transformer, "tokenizer": FLAGS.tokenizer}
    files = {kind: _existing(kind, path) for kind, path in given.items() if path}
    if FLAGS.size != "tiny" and files:
        raise command_line.UsageError("--size is for seeded weights; it excludes files")
    request = Request(
        files=files,
        size=FLAGS.size,
        official=FLAGS.official and Path(FLAGS.official),
        image=FLAGS.image and _existing("image", FLAGS.image),
        options=Options(seeds=_seeds(), steps=FLAGS.steps, batch_size=FLAGS.batch_size),
        report=FLAGS.report and Path(FLAGS.report),
        command=shlex.join([*PROGRAM.split(), *sys.argv[1:]]),
    )
    return run(request)


def _seeds() -> tuple[int, ...]:
    try:
        seeds = tuple(int(seed) for seed in FLAGS.seeds)
    except ValueError:
        raise command_line.UsageError(
            f"--seeds={','.join(FLAGS.seeds)}: accepted: whole numbers, e.g. --seeds=0,1"
        ) from None
    if not seeds:
        raise command_line.UsageError("--seeds is empty; accepted: whole numbers")
    return seeds


def _existing(flag: str, path: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file (--{flag})")
    return Path(path)


def cli() -> int:
    """Runs the command line and returns its exit code."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        if sys.argv[1] == "peers":
            from parity.peers import command as peers

            return peers.run(sys.argv[2:])
        from parity.packs import command

        return command.run(sys.argv[1], sys.argv[2:])
    return command_line.run(main, FLAGS, PROGRAM, USAGE)


if __name__ == "__main__":
    sys.exit(cli())
