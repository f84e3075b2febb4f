"""Command lines: `maskgit-parity record` and `maskgit-parity check`."""

import importlib
import json
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from maskgit_pt import command_line
from maskgit_pt.files import replacing

RECORD_PROGRAM = "maskgit-parity record"
RECORD_USAGE = """\
Records what MaskGIT in JAX computes, in a folder that others can check their implementation against.

  maskgit-parity record --output=pack
  maskgit-parity record --output=pack256 --transformer=maskgit_imagenet256_checkpoint \\
      --tokenizer=tokenizer_imagenet256_checkpoint --official=CHECKOUT

Without files it draws weights at a small size, which the pack then carries. Files may have any
format that maskgit-convert reads. --official records Google's own code, in a checkout of
google-research/maskgit, instead of the reference. Needs the extra 'jax'."""
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
flags.DEFINE_boolean(
    "weights", True, "Put the weights into the pack if they are small.", flag_values=RECORD
)

CHECK_PROGRAM = "maskgit-parity check"
CHECK_USAGE = """\
Checks an implementation of MaskGIT against a pack; exit code 0 only if all that is given agrees.

  maskgit-parity check pack --dump=FOLDER
  maskgit-parity check pack --code=theirs.py --report=FOLDER

--dump names a folder of safetensors or npy files that your program wrote, with any of the names in
the pack's manifest.json. --code names a Python file with any of logits(ids), encode(images),
decode(indices), sample(...) and step(...); it is executed. The answer is a table of stages, the first
stage that differs, and the likely cause, found by putting known mistakes into our own networks."""

CHECK = flags.FlagValues()
flags.DEFINE_string("dump", None, "A folder of arrays that your program wrote.", flag_values=CHECK)
flags.DEFINE_string("code", None, "A Python file with your functions.", flag_values=CHECK)
flags.DEFINE_enum(
    "layout", None, ["NHWC", "NCHW"], "Layout of your maps and images; default: NHWC, or what LAYOUT "
    "in the Python file says.", flag_values=CHECK,
)  # fmt: skip
flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "In which your networks compute; default: float32, or "
    "what DTYPE in the Python file says.", flag_values=CHECK,
)  # fmt: skip
flags.DEFINE_string(
    "transformer", None, "The recorded weights, to look for causes, if the pack has none.",
    flag_values=CHECK,
)  # fmt: skip
flags.DEFINE_string(
    "tokenizer", None, "The tokenizer's weights, if the pack has none.", flag_values=CHECK
)
flags.DEFINE_string("report", None, "Folder for index.html and check.json.", flag_values=CHECK)

_arguments: list[str] = []


def record_main() -> int:
    """Records a pack as the flags say."""
    # On the CPU: an accelerator's float32 products are of lower precision by default.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    importlib.import_module("parity.jax_code")  # first: it says which extra is missing
    from parity import jax_code, official, subjects
    from parity.packs import pack, record, record_decoding

    output = _new_folder()
    given = {"transformer": RECORD.transformer, "tokenizer": RECORD.tokenizer}
    given = {kind: Path(path) for kind, path in given.items() if path}
    if given and RECORD["size"].present:
        raise command_line.UsageError("--size is for seeded weights; it excludes files")
    code = official.load(RECORD.official) if RECORD.official else jax_code.load_reference()
    with tempfile.TemporaryDirectory(prefix="maskgit_record_") as work:
        facts: dict[str, Any] = {}
        if given:
            subject = subjects.from_files(code, _as_google(given, Path(work)), Path(work))
        else:
            subject = subjects.seeded(code, SIZES[RECORD.size], Path(work), RECORD.seed)
            facts["drawn"] = {"size": RECORD.size, "seed": RECORD.seed}
        batch = RECORD.batch_size or (1 if record.is_large(subject) else 2)
        options = record_decoding.Options(batch, RECORD.steps, seed=RECORD.seed)
        picture, _ = subjects.load_picture(RECORD.image, subject.config.image_size)
        with replacing(output) as temporary:
            temporary.mkdir()
            record.record(subject, temporary, picture, options, facts, RECORD.weights)
    found = pack.read(output)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"recorded: {code.title}")
    for note in code.notes:
        print(f"note: {note}")
    print(f"{output}: {len(found.entries)} arrays, {size / 1e6:.1f} MB")
    return 0


def _new_folder() -> Path:
    if not RECORD.output:
        raise command_line.UsageError("--output is missing: the folder for the pack")
    output = Path(RECORD.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: exists and is not an empty folder (--output)")
    output.parent.mkdir(parents=True, exist_ok=True)
    return output


def _as_google(given: dict[str, Path], work: Path) -> dict[str, Path]:
    """The files in Google's format, converted if they are not."""
    import convert

    files = {}
    for kind, path in given.items():
        if not path.exists():
            raise ValueError(f"{path}: no such file (--{kind})")
        files[kind] = work / f"given_{kind}_checkpoint"
        convert.convert(path, files[kind], to="flax", dtype="float32")
    return files


def check_main() -> int:
    """Checks as the flags say; 0 if all that was given agrees, 1 otherwise."""
    from parity.packs import check, pack
    from parity.packs.theirs import Caller, load_code, read_dump
    from parity.stages import summary_line

    if len(_arguments) != 1:
        raise command_line.UsageError("name one pack: maskgit-parity check PACK --dump=FOLDER")
    if bool(CHECK.dump) == bool(CHECK.code):
        raise command_line.UsageError("give either --dump or --code")
    started = time.perf_counter()
    opened = pack.read(_arguments[0])
    module = load_code(Path(CHECK.code)) if CHECK.code else None
    layout = CHECK.layout or getattr(module, "LAYOUT", "NHWC")
    dtype = CHECK.dtype or getattr(module, "DTYPE", "float32")
    for name, value, accepted in (("LAYOUT", layout, ("NHWC", "NCHW")),
                                  ("DTYPE", dtype, ("float32", "bfloat16"))):  # fmt: skip
        if value not in accepted:
            raise ValueError(f"{CHECK.code}: {name} is {value!r}; accepted: {', '.join(accepted)}")
    theirs = (
        Caller(module, opened, layout).collect()
        if module
        else read_dump(Path(CHECK.dump), opened, layout)
    )
    files = {"transformer": CHECK.transformer, "tokenizer": CHECK.tokenizer}
    report = check.check(opened, theirs, dtype, files)
    if not report.results:
        raise ValueError(f"{CHECK.dump or CHECK.code}: {report.sentence}")
    for result in report.results:
        print(summary_line(result))
    for line in lines(opened, report):
        print(line)
    seconds = time.perf_counter() - started
    if CHECK.report:
        _write_report(Path(CHECK.report), opened, report, dtype, seconds)
        print(f"report: {Path(CHECK.report) / 'index.html'}")
    print(f"{'PASS' if report.passed else 'FAIL'}: {report.sentence} ({seconds:.0f} s)")
    return 0 if report.passed else 1


def lines(pack: Any, report: Any) -> list[str]:
    """What stands below the table: first difference, causes, notes, what was not checked."""
    from parity.packs.check import step_of

    found = []
    if report.first is not None:
        step = step_of(pack, report.first)
        where = f" at {report.first.where}" if report.first.where else ""
        in_step = "" if step is None or ", step" in report.first.name else f", step {step}"
        found.append(f"first stage that differs: {report.first.name}{in_step}{where}")
    found += [f"likely cause: {cause}" for cause in report.causes]
    found += [f"note: {note}" for note in report.notes]
    if report.unchecked:
        found.append(f"not checked: {'; '.join(report.unchecked)}")
    return found


def _write_report(folder: Path, pack: Any, report: Any, dtype: str, seconds: float) -> None:
    from parity import report as pages
    from parity.packs.check import as_json

    recorded = pack.manifest.get("recorded_from", {})
    facts = (
        ("command", shlex.join([*CHECK_PROGRAM.split(), *sys.argv[2:]])),
        (
            "pack",
            f"{pack.folder.name}, recorded from {recorded.get('code')}, {recorded.get('date')}",
        ),
        ("computes in", dtype),
        ("time", f"{seconds:.0f} s"),
    )
    pages.write_page(
        folder, "check.html", passed=report.passed, sentence=report.sentence,
        results=report.results, lines=lines(pack, report), report=report, facts=facts,
    )  # fmt: skip
    with replacing(folder / "check.json") as temporary:
        temporary.write_text(json.dumps(as_json(pack, report), indent=1), encoding="utf-8")


def run(command: str, argv: list[str]) -> int:
    """Runs "record" or "check" and returns its exit code."""
    if command == "record":
        return command_line.run(record_main, RECORD, RECORD_PROGRAM, RECORD_USAGE, argv)
    return command_line.run(
        check_main, CHECK, CHECK_PROGRAM, CHECK_USAGE, argv, arguments=_arguments
    )
