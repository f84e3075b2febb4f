"""What every command line of the project shares: parsing, `--help`, and errors in one line.

Each program owns a `flags.FlagValues()`, so that two programs can be imported by one process
although both have, say, a flag `--output`. Exit codes: 0 success, 1 a problem with the input, 2
wrong usage.
"""

import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from absl import flags

# Noted before slow imports: `launch.end_with_torchrun` asks whether it has gone meanwhile.
PARENT_PROCESS = os.getppid()


class UsageError(Exception):
    """The command line itself is wrong (exit code 2), e.g. two flags that exclude each other."""


def run(
    main: Callable[[], int | None],
    flag_values: flags.FlagValues,
    program: str,
    usage: str,
    argv: Sequence[str] | None = None,
    check: Callable[[list[str]], None] | None = None,
    arguments: list[str] | None = None,
) -> int:
    """Parses `argv` into `flag_values`, runs `main` and returns the exit code.

    Args:
      main: called without arguments after parsing; its return value (None means 0) is the exit
        code.
      flag_values: the program's own flags.
      program: how a user calls it, e.g. "maskgit-convert"; opens usage and error lines.
      usage: what it does, with examples; printed by `--help`.
      argv: arguments without the program's name; default: `sys.argv[1:]`.
      check: looks at the arguments before they are parsed, and raises if it does not like them.
      arguments: filled with the arguments that are no flags; None: there may be none.

    `ValueError`, `OSError` and `ImportError` (a missing extra) count as a problem with the input:
    one line on standard error. A reader of the output that leaves ends the program without a word.
    Anything else is a bug and keeps its traceback.
    """
    # PyTorch on Linux reads this before its first tensor: large tensors on the CPU in huge pages. A fifth of
    # the time of float32 decoding in the tokenizer went into handing out small pages.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    argv = sys.argv[1:] if argv is None else list(argv)
    usual = warnings.showwarning
    warnings.showwarning = functools.partial(_show_warning, program, usual)
    try:
        if any(arg in ("-h", "--help", "-help", "--helpfull") for arg in argv):
            print(f"{usage.strip()}\n\nFlags:\n{_describe(flag_values)}", flush=True)
            return 0
        if check is not None:
            check(argv)
        flag_values.unparse_flags()
        positional = flag_values([program, *argv])[1:]
        if arguments is not None:
            arguments[:] = positional
        elif positional:
            raise UsageError(f"unexpected argument {positional[0]!r}; options start with --")
        code = main() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads the output, `| head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still in the buffer
        return 141  # as a shell tells of SIGPIPE
    except (UsageError, flags.Error) as error:
        return _fail(program, f"{_one_line(error)} (see {program} --help)", 2)
    except (ValueError, OSError, ImportError) as error:
        return _fail(program, _one_line(error), 1)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    finally:
        warnings.showwarning = usual


def _show_warning(program: str, usual: Callable, message: Warning, category: type, *where) -> None:
    """Shows the project's warnings in one line, without the place in the code; others as usual."""
    if category is UserWarning and str(message).isprintable():
        print(f"{program}: warning: {message}", file=sys.stderr)
    else:
        usual(message, category, *where)


def _fail(program: str, message: str, code: int) -> int:
    print(f"{program}: error: {message}", file=sys.stderr)
    return code


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _describe(flag_values: flags.FlagValues) -> str:
    """One paragraph a flag: name, default, help. absl's own listing repeats the module for each."""
    lines = []
    for name in sorted(flag_values):
        flag = flag_values[name]
        default = "" if flag.default in (None, "") else f" (default: {flag.default_as_str})"
        lines.append(f"  --{name}{default}\n      {' '.join((flag.help or '').split())}")
    return "\n".join(lines)
