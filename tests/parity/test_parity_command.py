"""The command line and the report."""

import subprocess
import sys
from pathlib import Path

import fresh_python
import numpy as np
import pytest

from parity.__main__ import FLAGS, PROGRAM, USAGE, main
from parity.compare import compare, compare_exact, control
from parity.stages import Picture, Result

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "official"


def call(*arguments):
    from maskgit_pt import command_line

    return command_line.run(main, FLAGS, PROGRAM, USAGE, arguments)


def run(*arguments):
    command = [sys.executable, "-m", "parity", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_help_names_every_flag(capsys):
    assert call("--help") == 0
    text = capsys.readouterr().out
    for name in FLAGS:
        assert f"--{name}" in text


def test_without_jax_it_names_the_extra():
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "from parity.__main__ import cli; sys.argv[1:] = []; sys.exit(cli())"
    )
    found = fresh_python.run(code)
    assert found.returncode == 1 and found.stderr.count("\n") == 1
    assert "pip install 'maskgit_pt[jax]'" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--size=300"], 2, "--size=300"),
        (["--sead=1"], 2, "Unknown command line flag 'sead'"),
        (["--seeds=1,x"], 2, "--seeds=1,x: accepted: whole numbers"),
        (["--steps=0"], 2, "steps"),
        (["somewhere"], 2, "unexpected argument 'somewhere'"),
        (["--size=256", f"--tokenizer={GOLDEN}/tiny_tokenizer_checkpoint"], 2, "excludes files"),
        (["--transformer=nowhere"], 1, "nowhere: no such file (--transformer)"),
        (["--image=nowhere.jpg"], 1, "nowhere.jpg: no such file (--image)"),
        (["--official=/"], 1, "/: no checkout of google-research/maskgit"),
        ([f"--tokenizer={GOLDEN}/tiny_config.json"], 1, "tiny_config.json"),
        ([f"--tokenizer={GOLDEN}/tiny_transformer_checkpoint"], 1, "given as --tokenizer"),
        ([f"--transformer={GOLDEN}/tiny_transformer_checkpoint"], 1, "give the --tokenizer"),
    ],
)
def test_errors_take_one_line(arguments, code, message, capsys):
    pytest.importorskip("jax", reason="needs the extra 'jax'")
    assert call(*arguments) == code
    error = capsys.readouterr().err
    assert error.startswith(f"{PROGRAM}: error: ") and message in error
    assert error.count("\n") == 1


@pytest.fixture
def results():
    theirs = np.zeros((2, 2), np.float32)
    ours = theirs + np.float32([[0, 1e-5], [0, 0]])
    fault = control(compare("logits", theirs + 1, theirs, atol=1e-4), "a <fault>")
    image = np.random.default_rng(0).random((512, 512, 3)).astype(np.float32)
    pictures = (Picture("a <picture>", image, image + np.float32(3e-6), image),)
    logits, tokens = (
        (compare("logits", ours, theirs, atol=1e-4),),
        (compare_exact("seed 3: tokens of every step", [1], [1]),),
    )
    return [
        Result("256", "logits, float32", logits, 1.0),
        Result("256", "generation", tokens, 1.0, pictures=pictures),
        Result("256", "faults", (fault,), 1.0),
    ]


def make_page(folder, results):
    pytest.importorskip("jax", reason="needs the extra 'jax'")
    from parity import plan, report

    context = report.Context(
        other="the <other>",
        notes=("a note",),
        command="maskgit-parity --size=256",
        facts=(("versions", "jax 1"),),
        files=(("transformer", "file", "abc123", 1234567),),
        not_compared=plan.NOT_COMPARED,
    )
    report.write(folder, results, context)
    return (folder / "index.html").read_text()


def test_the_report_stands_alone_and_says_all(tmp_path, results):
    page = make_page(tmp_path / "new", results)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["index.html"]
    for word in ("http://", "https://", "<script", "<link", "url("):
        assert word not in page
    assert page.count('src="data:image/png;base64,') == 4 == page.count("<img ")
    assert page.index("PASS") < page.index("<table")
    for text in (
        "a &lt;fault&gt;",
        "a &lt;picture&gt;",
        "the &lt;other&gt;",
        "1.00e-05",
        "0, 1",
        "100.0000%",
        "abc123",
        "1,234,567",
        "difference x 2e+05",
        "maskgit-parity --size=256",
        "jax 1",
        "a note",
    ):
        assert text in page, text


def test_the_report_shows_failures_first(tmp_path, results):
    bad = Result("256", "images", (compare("images", np.ones(1), np.zeros(1)),), 1.0)
    stopped = Result("256", "gradients", (), 1.0, trouble="could not run: KeyError: 'x'")
    page = make_page(tmp_path, [*results, bad, stopped])
    assert "2 of 5 stages do not agree: 256: images; 256: gradients" in page
    assert "could not run: KeyError" in page and "<h1>FAIL</h1>" in page


def test_no_stage_is_no_pass():
    pytest.importorskip("jax", reason="needs the extra 'jax'")
    from parity import report

    assert not report.verdict([])[0]


@pytest.mark.slow
def test_the_command_without_flags(tmp_path):
    found = run(f"--report={tmp_path}")
    lines = found.stdout.splitlines()
    assert found.returncode == 0, found.stdout + found.stderr
    assert lines[-1].startswith("PASS: All ") and (tmp_path / "index.html").is_file()
    assert not any(line.startswith("FAIL") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["256", "512"])
def test_full_size(size):
    found = run(f"--size={size}", "--seeds=0", "--batch_size=1")
    assert found.returncode == 0, found.stdout + found.stderr
