"""What every command line does with paths, streams, and users that are not as usual."""

import getpass
import io
import os
import platform
import subprocess
import sys
from pathlib import Path

import fresh_python
import numpy as np
import pytest
import torch
from absl import flags

from maskgit_pt import command_line
from maskgit_pt.settings import define_flags, from_flags
from train.classifier import ClassifierSettings
from train.evaluation.settings import EvaluationSettings


def call(main, *args: str) -> int:
    values = flags.FlagValues()
    for name in ("output", "models"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    return command_line.run(lambda: main(values), values, "program", "usage", args)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("~/x", "HOME/x"), ("~", "HOME"), ("~/a,~/b", "HOME/a,HOME/b"), ("a~/b", "a~/b"), ("./~/x", "./~/x"),
     ("~nobody-of-this-name/x", "~nobody-of-this-name/x"), ("a,~/b", "a,HOME/b")],
)  # fmt: skip
def test_home_folders(monkeypatch, tmp_path, given, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = []
    for arguments in ([f"--output={given}"], ["--output", given]):
        assert call(lambda values: found.append(values.output), *arguments) == 0
    assert found == [expected.replace("HOME", str(tmp_path))] * 2


def test_text_that_a_stream_cannot_hold(monkeypatch):
    for encoding, errors in (
        ("ascii", "strict"),
        ("utf-8", "strict"),
        ("ascii", "surrogateescape"),
    ):
        stream = io.TextIOWrapper(io.BytesIO(), encoding, errors, write_through=True)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert call(lambda values: print("ü 1 ± 2 \udcff")) == 0
        assert b"1" in stream.buffer.getvalue()


@pytest.mark.parametrize(
    "streams", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-", "</dev/null >/dev/null"]
)
def test_closed_streams(tmp_path, streams):
    """The work is done, and what is printed lands in no file of the program."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom absl import flags\nfrom maskgit_pt import command_line\n"
        "def main():\n"
        "    with open('result', 'w') as file:\n"
        "        print('to stdout')\n        print('to stderr', file=sys.stderr)\n"
        "        file.write('done')\n"
        "sys.exit(command_line.run(main, flags.FlagValues(), 'p', 'u'))\n"
    )
    folder = str(Path(command_line.__file__).parents[1])
    done = subprocess.run(
        f"{sys.executable} {program} {streams}", shell=True, cwd=tmp_path, timeout=120,
        env=os.environ | {"PYTHONPATH": folder},
    )  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / "result").read_text() == "done"


def test_a_user_without_a_name(monkeypatch):
    def unknown():
        raise KeyError("getpwuid(): uid not found: 4711")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(getpass, "getuser", unknown)
    assert call(lambda values: None) == 0
    assert os.environ["LOGNAME"] == f"user{os.getuid()}"


def test_a_cache_that_cannot_be(monkeypatch, tmp_path, capsys):
    """By default it is done without, and said; one that was asked for must be there."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert EvaluationSettings().cache_folder() is None
    assert "features are not remembered" in capsys.readouterr().err
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert EvaluationSettings().cache_folder() is None
    assert "no home" in capsys.readouterr().err
    with pytest.raises(OSError):
        EvaluationSettings(cache=str(tmp_path / "file" / "x")).cache_folder()
    assert EvaluationSettings(cache="").cache_folder() is None
    assert EvaluationSettings(cache=str(tmp_path / "x")).cache_folder() == str(tmp_path / "x")


PAGES_OF_LATER_TENSORS = """
import resource, sys, torch
from maskgit_pt import command_line

def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    command_line.keep_freed_memory()
print(min(fresh_pages() for turn in range(12)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of the GNU C library")
def test_freed_memory_is_kept():
    """Tensors of 64 MiB come to lie in the pages of those before; without the option always in fresh ones."""
    kept, returned = (
        int(fresh_python.run(PAGES_OF_LATER_TENSORS, how).stdout) for how in ("kept", "returned")
    )
    assert kept < 100 and returned > 10_000


def test_a_lack_of_memory_is_one_line(capsys):
    def of_torch(values):
        torch.empty(2**60, dtype=torch.uint8)

    def of_numpy(values):
        np.empty(2**60, np.uint8)

    for main in (of_torch, of_numpy):
        assert call(main) == 1
        error = capsys.readouterr().err
        assert error.startswith("program: error: not enough memory: ") and error.count("\n") == 1

    def other(values):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        call(other)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_are_finite(value):
    values = flags.FlagValues()
    define_flags(ClassifierSettings, values)
    values(["program", f"--lr={value}"])
    with pytest.raises(ValueError, match=f"--lr is {value}; accepted: a finite number"):
        from_flags(ClassifierSettings, values)
    values(["program", "--lr=0.1"])
    assert from_flags(ClassifierSettings, values).lr == 0.1
