"""Command line: `maskgit-digits`, a short name of `maskgit-demo --data=digits`."""

import sys
from collections.abc import Sequence

from maskgit_pt import command_line
from train import demo

PROGRAM = "maskgit-digits"
USAGE = f"""\
maskgit-digits [--output=digits] is maskgit-demo --data=digits, which says:

{demo.USAGE}"""

FLAGS = demo.FLAGS


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point of `maskgit-digits`; returns the exit code."""
    argv = ["--data=digits", *(sys.argv[1:] if argv is None else argv)]
    return command_line.run(demo.main, FLAGS, PROGRAM, USAGE, argv)


if __name__ == "__main__":
    sys.exit(cli())
