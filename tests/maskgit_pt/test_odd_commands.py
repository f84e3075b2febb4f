"""No command prints a traceback: random combinations of flags, streams, odd paths and odd files.

`python tests/maskgit_pt/test_odd_commands.py 500` tries 500 of them; a few run with the other tests.
"""

import contextlib
import io
import random
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image
from recorded import GOLDEN, OFFICIAL

from convert import __main__ as convert
from maskgit_pt import command_line, sample
from train import evaluate, export, plot, sweep, tokenize

PROGRAMS = {
    "sample": (sample.main, sample.FLAGS),
    "evaluate": (evaluate.main, evaluate.FLAGS),
    "sweep": (sweep.main, sweep.FLAGS),
    "tokenize": (tokenize.main, tokenize.FLAGS),
    "export": (export.main, export.FLAGS),
    "convert": (convert.main, convert.FLAGS),
    "plot": (plot.main, plot.FLAGS),
}
TEXTS = ["", "0", "-1", "1.5", "nan", "inf", "1e400", "x", "ü", "\udcff", "a,b", "~", "../..", "0,0,4,4",
         "1,2,3,-4", "9" * 40, "linear", "all", "lorikeet", "\n", "%s", "--"]  # fmt: skip
NUMBERS = ["0", "1", "2", "-1", "1.5", "true", "false", "nan", "9" * 40]
WAITING = ("timeout", "wait")  # would only be slow


def odd_files(folder: Path) -> list[str]:
    """Files and folders that are not what a command expects."""
    Image.new("RGB", (20, 20)).save(folder / "small.png")
    photo = (GOLDEN / "photo.jpg").read_bytes()
    contents = {
        "cut.jpg": photo[:2000], "empty": b"", "text.txt": b"hello", "bad.npz": b"PK\x03\x04zzz",
        "bad.tar": b"\0" * 600, "bad.pth": b"\x80\x02}q\x00.", "bad.safetensors": b"\xff" * 40,
        "config.json": b"\xef\xbb\xbf[]", "ü \udcff.png": b"x",
    }  # fmt: skip
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    np.savez(folder / "one.npz", np.zeros((3, 16, 16, 3), np.uint8))
    np.savez(folder / "other.npz", np.zeros(3))
    (folder / "folder" / "inner").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "nowhere")
    good = [OFFICIAL / "tiny_transformer_checkpoint", OFFICIAL / "tiny_tokenizer_checkpoint"]
    made = [str(path) for path in folder.iterdir()] + [str(path) for path in good]
    return [*made, str(folder / "nowhere"), "/dev/null", "/dev/null/x", str(GOLDEN / "photo.jpg")]


def command(rng: random.Random, folder: Path, files: list[str]) -> tuple[str, list[str]]:
    """A program and arguments; mostly enough of them that it gets far."""
    name = rng.choice(list(PROGRAMS))
    values: flags.FlagValues = PROGRAMS[name][1]
    given = {"output": str(folder / f"out-{name}")}
    usual = {
        "model": OFFICIAL / "tiny_transformer_checkpoint",
        "tokenizer": OFFICIAL / "tiny_tokenizer_checkpoint",
        "device": "cpu", "threads": "1", "steps": "1", "num_samples": "2", "features": "pixels",
        "cache": "", "batch_size": "2", "reference": folder / "one.npz", "grid": "seed=1,2",
        "metrics": "fid", "input": OFFICIAL / "tiny_transformer_checkpoint",
    }  # fmt: skip
    if name == "evaluate" and rng.random() < 0.5:
        usual |= {"samples": folder / "one.npz"}
        usual = {key: usual[key] for key in usual if key not in ("model", "tokenizer", "steps")}
    if name == "tokenize":
        usual |= {"input": rng.choice(files), "image_size": "16"}
    given |= {key: str(value) for key, value in usual.items() if key in values}
    for key in rng.sample(sorted(values), min(len(list(values)), rng.randrange(3))):
        if not any(word in key for word in WAITING):
            kind = type(values[key].parser).__name__
            numeric = kind.startswith(("Integer", "Float", "Boolean", "Enum"))
            texts = [*NUMBERS, *(getattr(values[key].parser, "enum_values", None) or [])]
            given[key] = rng.choice(texts if numeric else files if rng.random() < 0.7 else TEXTS)
    if "num_samples" in values and not given.get("num_samples", "").isdigit():
        given["num_samples"] = "2"
    return name, [f"--{key}={value}" for key, value in given.items()]


def attempt(seed: int, folder: Path, files: list[str]) -> str | None:
    """Runs one command in this process; the traceback, if it has one."""
    name, arguments = command(random.Random(seed), folder, files)
    main, values = PROGRAMS[name]
    out, error = (io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True) for _ in range(2))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = command_line.run(main, values, name, "usage", arguments)
        text = error.buffer.getvalue().decode("ascii")
        bad = "Traceback" in text or code not in (0, 1, 2)
        return f"{seed}: {name} {arguments}: code {code}\n{text}" if bad else None
    except BaseException:
        return f"{seed}: {name} {arguments}\n{traceback.format_exc()}"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("odd")
    return folder, odd_files(folder)


@pytest.mark.parametrize("seed", range(24))
def test_no_traceback(place, monkeypatch, seed):
    monkeypatch.chdir(place[0])
    assert attempt(seed, *place) is None


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        made = odd_files(Path(name))
        tried = range(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
        found = [text for seed in tried if (text := attempt(seed, Path(name), made))]
        print("\n".join(found))
        print(f"{len(found)} of {len(tried)} commands end with a traceback")
    sys.exit(bool(found))
