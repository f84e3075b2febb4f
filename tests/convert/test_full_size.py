"""Google's sizes: bytes, time and memory. `pytest -m slow -s tests/convert/test_full_size.py`"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import convert
from convert import flax_msgpack
from maskgit_pt.nets.self_guidance import SelfGuidedTransformer

pytestmark = pytest.mark.slow
MANIFEST = json.loads(Path(__file__).with_name("google_manifest.json").read_text())
FILES = [name for name in MANIFEST if name != "about"]


@pytest.fixture(scope="module", params=FILES)
def google_file(request, tmp_path_factory) -> Path:
    """A seeded file of full size, with the names, shapes and order of Google's."""

    def tensor(name: str, shape: list[int]) -> flax_msgpack.LazyArray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values = rng.standard_normal(shape, np.float32)
        return flax_msgpack.LazyArray("float32", tuple(shape), lambda: values.tobytes())

    flat = {name: tensor(name, shape) for name, shape in MANIFEST[request.param].items()}
    path = tmp_path_factory.mktemp("full_size") / request.param
    with open(path, "wb") as file:
        flax_msgpack.dump(flax_msgpack.nest(flat), file.write)
    yield path
    shutil.rmtree(path.parent)


def read_and_write_with_flax(path: Path, copy: Path) -> None:
    from flax import serialization

    with open(path, "rb") as file:
        data = file.read()
    serialization.from_bytes(None, data)
    with open(copy, "wb") as file:
        file.write(data)


def test_time(google_file):
    """Each way, verified and hashed: at most 1.5 times what Flax takes to read and write once.

    Needs a machine that does nothing else: the hashing runs beside the conversion.
    """
    if os.getloadavg()[0] > os.cpu_count() - 0.5:
        pytest.skip(f"the machine is busy (load {os.getloadavg()[0]:.1f})")
    pytest.importorskip("flax.serialization", reason="needs the extra 'jax'")
    folder, back, copy = (google_file.with_name(name) for name in ("folder", "back", "copy"))
    steps = {
        "flax": lambda: read_and_write_with_flax(google_file, copy),
        "import": lambda: convert.convert(google_file, folder),
        "export": lambda: convert.convert(folder, back, to="flax"),
    }
    seconds = {name: [] for name in steps}
    for _ in range(7):
        shutil.rmtree(folder, ignore_errors=True)
        for file in (back, copy):
            file.unlink(missing_ok=True)
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    assert back.read_bytes() == google_file.read_bytes()
    for name, values in seconds.items():
        print(f"{name}: median {statistics.median(values):.2f} s, least {min(values):.2f} s")
    assert min(seconds["import"]) <= 1.5 * min(seconds["flax"])
    assert min(seconds["export"]) <= 1.5 * min(seconds["flax"])


def peak_memory(*arguments: str) -> int:
    """Bytes at the most of a process that converts; without arguments, of the bare interpreter."""
    script = "import sys\nif sys.argv[1:]:\n from convert.__main__ import cli\n assert cli() == 0\n"
    # Not ru_maxrss, which counts the process that started this one too.
    script += "print(open('/proc/self/status').read())"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) * 1024


def test_memory(google_file):
    """Above the interpreter's own, PyTorch included: at most 1.3 times the file."""
    own = peak_memory()
    folder, back = google_file.with_name("folder2"), google_file.with_name("back2")
    for arguments in (
        (f"--input={google_file}", f"--output={folder}"),
        (f"--input={folder}", f"--output={back}", "--to=flax"),
    ):
        used = peak_memory(*arguments) - own
        ratio = used / google_file.stat().st_size
        print(f"{used / 2**20:.0f} MiB, {ratio:.2f} times the file")
        assert 0.1 < ratio <= 1.3


@pytest.mark.parametrize("form", ["hmorimitsu", "open-muse", "titok", "maskbit", "mage"])
def test_through_foreign_formats(google_file, form, tmp_path):
    """Google's bytes come back from every format that holds the model; one copy in memory, no more."""
    is_transformer = google_file.name.startswith("maskgit")
    if is_transformer and form != "hmorimitsu":
        pytest.skip("holds tokenizers only")
    foreign, rebuilt = tmp_path / "foreign", tmp_path / "rebuilt"
    size, own = google_file.stat().st_size, peak_memory()
    for source, target, to in ((google_file, foreign, form), (foreign, rebuilt, "flax")):
        used = peak_memory(f"--input={source}", f"--output={target}", f"--to={to}") - own
        print(f"{form}, to {to}: {used / size:.2f} times the file")
        assert used < 1.3 * size + 2**28  # PyTorch itself takes 2**27.7
    assert rebuilt.read_bytes() == google_file.read_bytes()


def test_through_the_archives_of_unlockmgm(google_file, tmp_path):
    """A self-guided model on Google's weights, in a zip as published, gives Google's bytes again."""
    if not google_file.name.startswith("maskgit"):
        pytest.skip("holds transformers only")
    _, config, state = convert.load_checkpoint(google_file)
    torch.manual_seed(0)
    model = SelfGuidedTransformer(**config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith(("guidance.", "head.")) for name in missing)
    model.head.weight.data.copy_(model.embed.word_embeddings.weight)
    model.save_pretrained(tmp_path / "ours")
    del model, state
    convert.convert(tmp_path / "ours", tmp_path / "ema_model", to="unlockmgm")
    path = tmp_path / "UnlockMGM_imagenet.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as opened:
        for file in (tmp_path / "ema_model").iterdir():
            opened.write(file, f"checkpoint-50000/ema_model/{file.name}")
    used = peak_memory(f"--input={path}", f"--output={tmp_path / 'rebuilt'}", "--to=flax")
    used -= peak_memory()
    print(f"{used / 2**20:.0f} MiB, {used / path.stat().st_size:.2f} times the archive")
    assert used < 1.3 * google_file.stat().st_size + 2**28
    assert (tmp_path / "rebuilt").read_bytes() == google_file.read_bytes()
