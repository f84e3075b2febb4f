"""Command line: `maskgit-parity peers`."""

import importlib
import os
import tempfile
import time
from pathlib import Path

from absl import flags

from maskgit_pt import command_line
from maskgit_pt.files import write_atomically

PROGRAM = "maskgit-parity peers"
USAGE = """\
Measures public implementations of MaskGIT against Google's function, and writes a page about them.

  maskgit-parity peers --checkouts=FOLDER
  maskgit-parity peers --checkouts=FOLDER --pack=pack256 --output=ports256.md

FOLDER holds checkouts as OWNER/NAME, e.g. hmorimitsu/maskgit-torch; their code is executed. Those
that are missing are listed as not run. The weights are those of the pack; without --pack a small one
is recorded first, which needs the extra 'jax'."""

FLAGS = flags.FlagValues()
flags.DEFINE_string("checkouts", None, "Folder of checkouts, OWNER/NAME.", flag_values=FLAGS)
flags.DEFINE_string("pack", None, "A pack of 'maskgit-parity record'.", flag_values=FLAGS)
flags.DEFINE_string("output", "docs/ports.md", "The page, Markdown.", flag_values=FLAGS)
flags.DEFINE_integer("images", 12, "Images made with each.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string(
    "transformer", None, "The transformer's weights, if the pack has none.", flag_values=FLAGS
)
flags.DEFINE_string(
    "tokenizer", None, "The tokenizer's weights, if the pack has none.", flag_values=FLAGS
)


def main() -> int:
    """Measures and writes the page; 0 whatever was found."""
    if not FLAGS.checkouts:
        raise command_line.UsageError("--checkouts is missing: the folder of checkouts")
    checkouts = Path(FLAGS.checkouts)
    if not checkouts.is_dir():
        raise ValueError(f"{checkouts}: no such folder (--checkouts)")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from parity.packs import pack
    from parity.peers import measure
    from parity.report import render

    with tempfile.TemporaryDirectory(prefix="maskgit_peers_") as work:
        folder = Path(FLAGS.pack) if FLAGS.pack else _record(Path(work) / "pack")
        opened = pack.read(folder)
        files = {"transformer": FLAGS.transformer, "tokenizer": FLAGS.tokenizer}
        rows = measure.measure(opened, checkouts, Path(work), FLAGS.images, files)
    facts = opened.manifest["model"]
    page = render(
        "ports.md",
        rows=rows,
        images=FLAGS.images,
        layers=facts["transformer"]["num_hidden_layers"] if facts.get("transformer") else None,
        pixels=opened.whole("images").shape[1] if "images" in opened.entries else None,
        recorded=opened.manifest.get("recorded_from", {}).get(
            "code", "code that the pack does not name"
        ),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )
    output = Path(FLAGS.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page.encode("utf-8"))
    for row in rows:
        verdict = {True: "agrees", False: "differs", None: f"not run: {row.trouble}"}[row.passed]
        print(f"{row.peer.repository}, {row.peer.kind}: {verdict}")
        for cause in row.causes:
            print(f"  {cause}")
    print(f"page: {output}")
    return 0


def _record(folder: Path) -> Path:
    """Records seeded networks of a size that every public implementation can hold."""
    importlib.import_module("parity.jax_code")  # first: it says which extra is missing
    from parity import jax_code, subjects
    from parity.packs import record, record_decoding

    folder.mkdir()
    subject = subjects.seeded(jax_code.load_reference(), "ports", folder.parent)
    picture, _ = subjects.load_picture(None, subject.config.image_size)
    record.record(
        subject,
        folder,
        picture,
        record_decoding.Options(2, 8),
        {"drawn": {"size": "ports", "seed": 0}},
    )
    return folder


def run(argv: list[str]) -> int:
    """Runs the command and returns its exit code."""
    return command_line.run(main, FLAGS, PROGRAM, USAGE, argv)
