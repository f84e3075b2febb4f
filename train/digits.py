"""Command line: `maskgit-digits`, a short name of `maskgit-demo --data=digits`."""

import sys
from collections.abc import Sequence

from absl import flags

from maskgit_pt import command_line
from maskgit_pt.settings import define_flags, from_flags
from train import demo
from train.demos.settings import DemoSettings

PROGRAM = "maskgit-digits"
USAGE = f"""\
maskgit-digits [--output=digits] is maskgit-demo --data=digits, which says:

{demo.USAGE}"""

_SET = {"data": "digits", "tokenizer": None}  # these are no flags

FLAGS = flags.FlagValues()
define_flags(DemoSettings, FLAGS, without=_SET)


def main() -> int:
    """Runs the demo of the digits."""
    return demo.make(from_flags(DemoSettings, FLAGS, **_SET), None)


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point of `maskgit-digits`; returns the exit code."""
    return command_line.run(main, FLAGS, PROGRAM, USAGE, argv)


if __name__ == "__main__":
    sys.exit(cli())
