"""`python -m convert`: exit codes, what it prints and where."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from convert_samples import write_flax

from convert import __main__ as command


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maskgit-convert", *map(str, arguments)])
        code = command.cli()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_there_and_back(run, google_file, kind, tmp_path):
    code, out, err = run(f"--input={google_file}", f"--output={tmp_path / 'folder'}")
    assert (code, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "kind", "pixels", "parameters", "dtype", "input", "output", "verified", "seconds",
    ]  # fmt: skip
    assert kind in out and str(google_file) in out and "read back, equal bit for bit" in out
    back = tmp_path / "back"
    arguments = (f"--input={tmp_path / 'folder'}", f"--output={back}", "--to=flax", "--noverify")
    code, out, err = run(*arguments)
    assert (code, err) == (0, "") and "not read back (--noverify)" in out
    assert back.read_bytes() == google_file.read_bytes()
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err == f"python -m convert: error: {back} exists already; --overwrite replaces it\n"
    assert run(*arguments, "--overwrite")[0] == 0


def test_problem_with_the_input(run, miniature, tmp_path):
    miniature.write_bytes(miniature.read_bytes()[:-3])
    code, out, err = run(f"--input={miniature}", f"--output={tmp_path / 'folder'}")
    assert (code, out) == (1, "")
    assert err.startswith(f"python -m convert: error: {miniature}: ") and err.count("\n") == 1
    assert "params/" in err
    assert [path.name for path in tmp_path.iterdir()] == [miniature.name]


def test_wrong_usage(run, miniature):
    for arguments, part in (
        ((), "--input is missing"),
        ((f"--input={miniature}",), "--output is missing"),
        ((f"--input={miniature}", "--output=x", "--to=onnx"), "onnx"),
        ((f"--input={miniature}", "--output=x", "--dtype=int8"), "int8"),
        ((f"--input={miniature}", "--output=x", "--num_heads=0"), "num_heads"),
        ((f"--input={miniature}", "--output=x", "--frobnicate"), "frobnicate"),
        ((f"{miniature}",), "unexpected argument"),
    ):
        code, out, err = run(*arguments)
        assert code == 2 and part in err and err.count("\n") == 1 and not out


def test_help(run):
    code, out, _ = run("--help")
    assert code == 0
    for flag in ("input", "output", "to", "dtype", "verify", "overwrite", "num_heads"):
        assert f"--{flag}" in out


def test_not_finite_is_a_warning(run, miniature_flat, tmp_path):
    name = "params/MlmLayer_0/mlm_bias/bias"
    miniature_flat[name][0] = np.nan
    file = write_flax(tmp_path / "file", miniature_flat)
    code, out, err = run(f"--input={file}", f"--output={tmp_path / 'folder'}")
    assert code == 0 and "kind:" in out
    assert err == f"python -m convert: warning: 1 tensors hold NaN or infinity: {name}\n"


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(miniature, tmp_path, sent):
    """The signal comes in the middle of writing, sent by the progress bar."""
    script = (
        "import os, sys; from convert import __main__ as command\n"
        f"command.tqdm.update = lambda *_: os.kill(os.getpid(), {int(sent)})\n"
        "sys.exit(command.cli())"
    )
    done = run_script(script, f"--input={miniature}", f"--output={tmp_path / 'folder'}")
    assert done.returncode == 130
    assert done.stderr == "python -m convert: error: interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == [miniature.name]


def test_as_a_program_without_jax(miniature, tmp_path):
    """JAX is not needed, nor imported."""
    script = (
        "import sys; sys.modules['jax'] = sys.modules['flax'] = None\n"
        "from convert.__main__ import cli; sys.exit(cli())"
    )
    done = run_script(script, f"--input={miniature}", f"--output={tmp_path / 'folder'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "folder" / "model.safetensors").is_file()
