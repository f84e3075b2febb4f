"""Command lines: `python -m parity record` and `python -m parity check`."""

import importlib
import os
import sys
import tempfile
from pathlib import Path

from absl import flags

from maskgit_pt import command_line
from maskgit_pt.files import replacing

RECORD_USAGE = """\
Records what MaskGIT in JAX computes, in a folder that others can check their implementation against.

  python -m parity record --output=pack
  python -m parity record --output=pack256 --transformer=maskgit_imagenet256_checkpoint \\
      --tokenizer=tokenizer_imagenet256_checkpoint --official=CHECKOUT

Without files it draws weights at a small size, which the pack then carries. Files may have any format that
`python -m convert` reads. --official records Google's own code, in a checkout of google-research/maskgit,
instead of the reference. Needs the extra 'jax'. docs/check_your_port.md shows the whole way."""
SIZES = {"small": "pack", "256": "256", "512": "512"}

RECORD = flags.FlagValues()
flags.DEFINE_string("output", None, "The folder for the pack; new or empty.", flag_values=RECORD)
flags.DEFINE_string("transformer", None, "Weights of the transformer.", flag_values=RECORD)
flags.DEFINE_string("tokenizer", None, "Weights of the tokenizer.", flag_values=RECORD)
flags.DEFINE_enum("size", "small", list(SIZES), "Size of the seeded models.", flag_values=RECORD)
flags.DEFINE_string(
    "official", None, "A checkout of google-research/maskgit to record.", flag_values=RECORD
)
flags.DEFINE_string(
    "image", None, "A photograph for the tokenizer; default: the one among the tests.",
    flag_values=RECORD,
)  # fmt: skip
flags.DEFINE_integer(
    "seed", 0, "Seed of weights (if drawn), inputs and keys.", lower_bound=0,
    upper_bound=2**32 - 1, flag_values=RECORD,
)  # fmt: skip
flags.DEFINE_integer(
    "batch_size", None, "Samples; default: 2, at full size 1.", lower_bound=1, flag_values=RECORD
)
flags.DEFINE_integer("steps", 12, "Decoding steps.", lower_bound=3, flag_values=RECORD)


def record_main() -> int:
    """Records a pack as the flags say."""
    # On the CPU: an accelerator's float32 products are of lower precision by default.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    importlib.import_module("parity.jax_code")  # first: it says which extra is missing
    from parity import jax_code, official, subjects
    from parity.packs import pack, record, record_decoding

    if not RECORD.output:
        raise command_line.UsageError("--output is missing: the folder for the pack")
    output = Path(RECORD.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: exists and is not an empty folder (--output)")
    given = {"transformer": RECORD.transformer, "tokenizer": RECORD.tokenizer}
    given = {kind: Path(path) for kind, path in given.items() if path}
    if given and RECORD["size"].present:
        raise command_line.UsageError("--size is for seeded weights; it excludes files")
    code = official.load(RECORD.official) if RECORD.official else jax_code.load_reference()
    with tempfile.TemporaryDirectory(prefix="maskgit_record_") as work:
        size = SIZES[RECORD.size]
        if given:
            subject = subjects.from_files(code, _google(given, Path(work)), Path(work), _progress)
            facts = {"drawn": None}
        else:
            subject = subjects.seeded(code, size, Path(work), _progress, RECORD.seed)
            facts = {"drawn": {"size": RECORD.size, "seed": RECORD.seed}}
        batch = RECORD.batch_size or (1 if subject.full_size else 2)
        options = record_decoding.Options(
            batch, RECORD.steps, min(2, RECORD.steps - 1), RECORD.seed
        )
        picture, _ = subjects.load_picture(RECORD.image, subject.config.image_size)
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as temporary:
            temporary.mkdir()
            record.record(subject, temporary, picture, options, facts, _progress)
    _progress("")
    found = pack.read(output)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"recorded: {code.title}")
    print(f"{output}: {len(found.entries)} arrays, {size / 1e6:.1f} MB")
    return 0


def _google(given: dict[str, Path], work: Path) -> dict[str, Path]:
    """The files in Google's format, converted if they are not."""
    import convert

    files = {}
    for kind, path in given.items():
        if not path.exists():
            raise ValueError(f"{path}: no such file (--{kind})")
        files[kind] = work / f"given_{kind}_checkpoint"
        convert.convert(path, files[kind], to="flax", dtype="float32")
    return files


def _progress(line: str) -> None:
    """Shows on a terminal what is being done; an empty line wipes it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line[:100]}", end="", file=sys.stderr, flush=True)
