"""`maskgit-convert`: exit codes, what it prints and where."""

import os
import signal
import sys
from pathlib import Path

import fresh_python
import numpy as np
import pytest
import torch
from convert_samples import OFFICIAL, write_flax

import convert
from convert import __main__ as command
from convert import rules
from convert.verification import ledger
from maskgit_pt import files


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maskgit-convert", *map(str, arguments)])
        code = command.cli()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_there_and_back(run, google_file, model_type, tmp_path):
    code, out, err = run(f"--input={google_file}", f"--output={tmp_path / 'folder'}")
    assert (code, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "model type", "pixels", "parameters", "dtype", "input", "output", "verified", "seconds",
    ]  # fmt: skip
    assert model_type in out and str(google_file) in out and "read back, equal bit for bit" in out
    back = tmp_path / "back"
    arguments = (f"--input={tmp_path / 'folder'}", f"--output={back}", "--to=flax", "--noverify")
    code, out, err = run(*arguments)
    assert (code, err) == (0, "") and "not read back (--noverify)" in out
    assert back.read_bytes() == google_file.read_bytes()
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err == f"maskgit-convert: error: {back} exists already; --overwrite replaces it\n"
    assert run(*arguments, "--overwrite")[0] == 0


def test_problem_with_the_input(run, miniature, tmp_path):
    miniature.write_bytes(miniature.read_bytes()[:-3])
    code, out, err = run(f"--input={miniature}", f"--output={tmp_path / 'folder'}")
    assert (code, out) == (1, "")
    assert err.startswith(f"maskgit-convert: error: {miniature}: ") and err.count("\n") == 1
    assert "params/" in err
    assert [path.name for path in tmp_path.iterdir()] == [miniature.name]


def test_wrong_usage(run, miniature):
    for arguments, part in (
        ((), "--input is missing"),
        ((f"--input={miniature}",), "--output is missing"),
        ((f"--input={miniature}", "--output=x", "--to=gguf"), "gguf"),
        ((f"--input={miniature}", "--output=x", "--dtype=int8"), "--dtype=int8 is for --to=onnx"),
        ((f"--input={miniature}", "--output=x", "--num_heads=0"), "num_heads"),
        ((f"--input={miniature}", "--output=x", "--frobnicate"), "frobnicate"),
        (("--input=", "--output=x"), "--input is empty"),
        (("--inspect=",), "--inspect is empty"),
        ((f"--inspect={miniature}", "--output=x"), "--output is for --input=FILE"),
        (("--list", "--to=flax"), "--to is for --input=FILE"),
        ((f"{miniature}",), "unexpected argument"),
    ):
        code, out, err = run(*arguments)
        assert code == 2 and part in err and err.count("\n") == 1 and not out


def test_flags_that_say_nothing(run, tmp_path):
    """A tokenizer has no attention heads."""
    said = "--num_heads=7 says nothing about a maskgit_vqvae: not used"
    tokenizer = OFFICIAL / "tiny_tokenizer_checkpoint"
    assert said in run(f"--inspect={tokenizer}", "--num_heads=7")[1]
    assert said in run(f"--input={tokenizer}", f"--output={tmp_path / 'x'}", "--num_heads=7")[2]


FORGED = "ema\nverdict:      these are the weights of Google\x1b[2J"


@pytest.mark.parametrize("flag", ["inspect", "verify", "input"])
def test_text_of_a_file_forges_no_lines(flag, run, miniature, tmp_path):
    """Neither keys beside the weights nor the name of the file."""
    state = convert.load_checkpoint(miniature)[2]
    file = tmp_path / "a\nverdict: b\x1b[2J"
    torch.save({"model": state, FORGED: state, "note\nx\x1b": [1]}, file)
    more = [f"--output={tmp_path / 'folder'}"] if flag == "input" else []
    _, out, err = run(f"--{flag}={file}", "--num_heads=2", *more)
    assert r"ema\nverdict:" in out + err and "\x1b" not in out + err
    assert sum(line.startswith("verdict:") for line in out.splitlines()) == (flag == "verify")
    assert all(line.startswith("maskgit-convert: warning: ") for line in err.splitlines())
    if more:
        assert "\x1b" not in (tmp_path / "folder" / "README.md").read_text()


def test_error_of_a_forged_name(run, tmp_path):
    file = write_flax(tmp_path / "file", {f"params/{FORGED}": np.zeros(2, np.float32)})
    code, _, err = run(f"--inspect={file}")
    assert code == 1 and err.count("\n") == 1 and "\x1b" not in err


def test_file_name_that_is_no_text(run, miniature, tmp_path):
    file = miniature.rename(tmp_path / os.fsdecode(b"bad\xff"))
    assert run(f"--input={file}", f"--output={tmp_path / 'folder'}")[0] == 0
    assert r"from `bad\udcff`" in (tmp_path / "folder" / "README.md").read_text()


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
    assert code == 0 and "model type:" in out
    assert err == f"maskgit-convert: warning: 1 tensors hold NaN or infinity: {name}\n"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(miniature, tmp_path, sent):
    """The signal comes in the middle of writing, sent by the progress bar."""
    script = (
        "import os, signal, sys; from convert import __main__ as command\n"
        # A shell starts background jobs with SIGINT ignored, and that is inherited.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"command.tqdm.update = lambda *_: os.kill(os.getpid(), {int(sent)})\n"
        "sys.exit(command.cli())"
    )
    done = fresh_python.run(script, f"--input={miniature}", f"--output={tmp_path / 'folder'}")
    assert done.returncode == 130
    assert done.stderr == "maskgit-convert: error: interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == [miniature.name]


def test_as_a_program_without_jax(miniature, tmp_path):
    """JAX is not needed, nor imported."""
    script = (
        "import sys; sys.modules['jax'] = sys.modules['flax'] = None\n"
        "from convert.__main__ import cli; sys.exit(cli())"
    )
    done = fresh_python.run(script, f"--input={miniature}", f"--output={tmp_path / 'folder'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "folder" / "model.safetensors").is_file()


def test_list(run):
    code, out, err = run("--list")
    assert (code, err) == (0, "")
    table = out.split("\n\n")[0].splitlines()[1:]
    assert [line.split()[0] for line in table[::2]] == list(command.formats.BY_NAME)
    for line, below, form in zip(table[::2], table[1::2], command.formats.FORMATS, strict=True):
        assert ("a folder" if form.IS_FOLDER else "a file") in line and line.endswith(form.HOLDS)
        assert below.strip() == form.DESCRIPTION
    assert max(map(len, out.splitlines())) <= 100


def test_nobody_reads_the_output():
    """As with `| head`, which leaves after some lines."""
    script = (
        "import os, runpy; reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)\n"
        "runpy.run_module('convert', run_name='__main__', alter_sys=True)"
    )
    done = fresh_python.run(script, "--list")
    assert (done.returncode, done.stderr) == (141, "")


def test_inspect(run, google_file, model_type, foreign_files, tmp_path):
    code, out, err = run(f"--inspect={google_file}")
    assert (code, err) == (0, "")
    rows = dict(line.split(":", 1) for line in out.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["model type"] == model_type and rows["dtype"] == "float32" and rows["pixels"]
    assert rows["file sha256"] == files.file_sha256(google_file)
    assert rows["published"] == "no published file is known to have these shapes"
    assert rows["can become"].startswith("safetensors, flax, hmorimitsu")
    # The fingerprint is that of the weights, whatever they are packed in.
    for number, to in enumerate(rows["can become"].split(", ")):
        path = tmp_path / str(number)
        assert run(f"--input={google_file}", f"--output={path}", f"--to={to}")[0] == 0
        heads = ["--num_heads=4"] if model_type == "maskgit_transformer" else []
        again = run(f"--inspect={path}", *heads)[1]
        assert f"fingerprint:  {rows['fingerprint']}" in again


def test_inspect_besnier(run, foreign_files):
    golden = Path(__file__).parents[1] / "golden" / "besnier" / "tiny_maskgit.pth"
    code, out, err = run(f"--inspect={golden}", "--num_heads=4")
    assert (code, err) == (0, "")
    for part in (
        "model type:   besnier_transformer",
        "pixels:       unknown, 4 x 4 tokens an image",
        "parameters:   84,588",
        "heads:        4",
        "step:         7",
        "says:         iter 7, global_epoch 3",
        "can become:   safetensors, besnier",
        "notes:        left out: optimizer_state_dict",
        "under 'model_state_dict'",
    ):
        assert part in out, out
    code, out, err = run(f"--inspect={golden.with_name('missing')}")
    assert code == 1 and "no such file" in err and err.count("\n") == 1


def test_modes_exclude_each_other(run, miniature):
    for arguments in (("--list", f"--inspect={miniature}"), ("--list", f"--input={miniature}")):
        code, _, err = run(*arguments)
        assert code == 2 and "exclude each other" in err


PUBLISHED_PARAMETERS = [
    172_457_193, 173_047_017, 54_515_587, 174_160_874, 176_306_666, 72_141_699,
    23_031_425, 69_344_769, 142_224_641, 69_508_609, 142_470_401, 479_984_641,
    200_989_804, 464_407_148, 215_806_201, 216_396_025,
    71_948_939, 70_175_371,  # with the 65,536 numbers of their record
    174_620_906,
]  # fmt: skip


def test_published_shapes():
    """The published sizes are told apart by their shapes; one also by its values."""
    found = []
    for known in ledger.models().values():
        shapes, _, config = rules.target(known.model_type, known.config)
        found.append(sum(np.prod(shape, dtype=int) for shape in shapes.values()))
        text = ledger.describe(known.model_type, config, known.ranges, "float32")
        assert text.startswith(f"has the shapes of: {ledger.entries_of(known)[0].name}")
        if known.ranges:
            assert text.endswith("and their range of values in each of 13 tensors")
            officials = {
                piece.official for piece in rules.target(known.model_type, known.config)[1]
            }
            assert known.ranges.keys() <= officials
            as_half = {
                name: tuple(torch.tensor(values).bfloat16().tolist())
                for name, values in known.ranges.items()
            }
            assert ledger.describe(known.model_type, config, as_half, "bfloat16") == text
            name = "params/MlmLayer_0/mlm_bias/bias"
            others = known.ranges | {name: (-0.7683, 0.8642)}
            text = ledger.describe(known.model_type, config, others, "float32")
            assert text.endswith(
                f"but not their values: 1 of 13 tensors have another range ({name})"
            )
    assert found == PUBLISHED_PARAMETERS
