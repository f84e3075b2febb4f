"""The readers of packs in C and NumPy agree with the recorded pack, and notice one wrong constant."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

READERS = Path(__file__).parents[2] / "examples" / "pack_reader"
COMPILER = shutil.which("cc") or shutil.which("gcc")
STEPS = "6"  # of the recorded pack


def run_c(source, pack_folder, folder):
    (folder / "decode.c").write_text(source)
    build = [
        COMPILER,
        "-std=c99",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        "decode",
        "decode.c",
        "-lm",
    ]
    subprocess.run(build, cwd=folder, check=True)
    command = [folder / "decode", pack_folder / "decoding.safetensors", STEPS]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    ("right", "wrong", "shown"),
    [
        ("", "", ""),
        ("{13, 15, 26, 6}", "{13, 15, 26, 7}", "step 0: next key"),
        ("scores[n] < sorted", "scores[n] <= sorted", "step 0: next state"),
        ("if (score > top)", "if (score < top)", "step 0: sampled token"),
        ("floorf(", "ceilf(", "step 0: mask count"),
    ],
)
def test_the_c_program(right, wrong, shown, pack_folder, tmp_path):
    source = (READERS / "decode.c").read_text()
    assert len(source.splitlines()) <= 200 and right in source
    found = run_c(source.replace(right, wrong) if right else source, pack_folder, tmp_path)
    if right:
        assert found.returncode == 1 and f"FAIL generation.original, {shown}" in found.stdout
    else:
        assert found.returncode == 0 and found.stdout.count("ok   ") == 4


@pytest.mark.parametrize(
    ("right", "wrong", "shown"),
    [
        ("", "", ""),
        ("0.044715", "0.04", "FAIL transformer.layers.0.mlp:"),
        ("LAYERNORM_EPSILON = 1e-12", "LAYERNORM_EPSILON = 1e-3", "FAIL transformer.embed:"),
        (
            "query / math.sqrt",
            "query * math.sqrt",
            "FAIL transformer.layers.0.attention.self_attention:",
        ),
        ("@ words.T", "@ words[::-1].T", "FAIL transformer.logits:"),
    ],
)
def test_the_numpy_program(right, wrong, shown, pack_folder, monkeypatch, capsys):
    source = (READERS / "layer.py").read_text()
    assert len(source.splitlines()) <= 150 and right in source
    monkeypatch.setattr(sys, "argv", ["layer.py", str(pack_folder)])
    names = {"__name__": "layer"}
    exec(compile(source.replace(right, wrong) if right else source, "layer.py", "exec"), names)
    assert names["main"]() == bool(right)
    assert shown in capsys.readouterr().out
