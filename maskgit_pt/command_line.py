"""What every command line of the project shares: parsing, `--help`, and errors in one line.

Each program owns a `flags.FlagValues()`, so that two programs can be imported by one process
although both have, say, a flag `--output`. Exit codes: 0 success, 1 a problem with the input, 2
wrong usage.
"""

import contextlib
import ctypes
import functools
import getpass
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO

from absl import flags

from maskgit_pt.files import printable

# Noted before slow imports: `launch.end_with_torchrun` asks whether it has gone meanwhile.
PARENT_PROCESS = os.getppid()

# Options of the GNU C library's `mallopt`, from its malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


_NO_MEMORY = "DefaultCPUAllocator: "  # begins PyTorch's reason


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
    keep_memory: bool = True,
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
      keep_memory: call `keep_freed_memory`; a program that only reads and writes tensors needs less without.

    `ValueError`, `OSError`, `ImportError` (a missing extra) and a lack of memory count as a problem with the
    input: one line on standard error. A reader of the output that leaves ends the program without a word.
    Anything else is a bug and keeps its traceback.

    A value that begins with ~ is a path in a home folder. Standard streams that are closed or missing are
    replaced by the null device; characters that a stream's encoding lacks are written as escapes. A user whom
    the system has no name for gets one.
    """
    _mend_streams()
    _name_user()
    if keep_memory:
        keep_freed_memory()
    argv = [_expand_home(arg) for arg in (sys.argv[1:] if argv is None else argv)]
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
        _to_nowhere(sys.stdout)  # what is still in the buffer
        return 141  # as a shell tells of SIGPIPE
    except (UsageError, flags.Error) as error:
        return _fail(program, f"{_one_line(error)} (see {program} --help)", 2)
    except (ValueError, OSError, ImportError) as error:
        return _fail(program, _one_line(error), 1)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and _NO_MEMORY not in str(error):
            raise
        return _fail(program, f"not enough memory: {_one_line(error)}", 1)
    finally:
        warnings.showwarning = usual


def keep_freed_memory() -> None:
    """Lets this process keep large pieces of memory that it has freed, for the next tensor of that size.

    The GNU C library otherwise returns pieces above 32 MiB to the system, and asks for fresh pages the next
    time: a fifth of the time of the tokenizer's float32 forward passes on a CPU. Other libraries are
    left alone.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, 2**30)
        set_option(_M_TRIM_THRESHOLD, 2**31 - 1)  # a C int


def _show_warning(program: str, usual: Callable, message: Warning, category: type, *where) -> None:
    """Shows the project's warnings in one line, without the place in the code; others as usual."""
    if category is UserWarning and str(message).isprintable():
        print(f"{program}: warning: {message}", file=sys.stderr)
    else:
        usual(message, category, *where)


def _fail(program: str, message: str, code: int) -> int:
    try:
        print(f"{program}: error: {message}", file=sys.stderr, flush=True)
    except OSError:  # nobody reads it: the exit code has to do
        _to_nowhere(sys.stderr)
    return code


def _mend_streams() -> None:
    """Gives the program three standard streams that it can write to, whatever it was started with.

    With a closed stream (`>&-`) the next file that is opened would get its number, and what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        try:
            os.fstat(number)
            missing = stream is None
        except OSError:
            missing = True
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
        if missing and stream is getattr(sys, f"__{name}__"):  # nobody has replaced it
            stream = open(os.devnull, "w" if number else "r")  # noqa: SIM115, open as long as the program
            setattr(sys, name, stream)
        if number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _name_user() -> None:
    """Names a user who has no entry in the system's list: PyTorch's compiler asks for the name."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"user{os.getuid()}"


def _to_nowhere(stream: TextIO) -> None:
    """Lets go of what a stream whose reader has left still holds."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _expand_home(argument: str) -> str:
    """Expands ~ and ~name at the beginning of an argument, of its value, or of an item of a list.

    The shell does so only at the beginning of a word: in bash `--output=~/x` arrives as it stands.
    """

    def expanded(path: str) -> str:
        return os.path.expanduser(path) if path.startswith("~") else path

    flag, equals, value = (
        argument.partition("=") if argument.startswith("-") else ("", "", argument)
    )
    return flag + equals + ",".join(map(expanded, value.split(",")))


def _one_line(error: BaseException | str) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return printable(f"{error.filename}: {error.strerror}")
    return printable(" ".join(str(error).split())) or type(error).__name__


def _describe(flag_values: flags.FlagValues) -> str:
    """One paragraph a flag: name, default, help. absl's own listing repeats the module for each."""
    lines = []
    for name in sorted(flag_values):
        flag = flag_values[name]
        default = "" if flag.default in (None, "") else f" (default: {flag.default_as_str})"
        lines.append(f"  --{name}{default}\n      {' '.join((flag.help or '').split())}")
    return "\n".join(lines)
