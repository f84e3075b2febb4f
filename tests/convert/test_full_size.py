"""Google's sizes: bytes, time and memory. `pytest -m slow -s tests/convert/test_full_size.py`"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

import convert
from convert import flax_msgpack

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
    """Each way, verified and hashed: at most 1.5 times what Flax takes to read and write once."""
    pytest.importorskip("flax.serialization", reason="needs the extra 'jax'")
    folder, back = google_file.with_name("folder"), google_file.with_name("back")
    steps = {
        "flax": lambda: read_and_write_with_flax(google_file, google_file.with_name("copy")),
        "import": lambda: convert.convert(google_file, folder),
        "export": lambda: convert.convert(folder, back, to="flax"),
    }
    seconds = {name: [] for name in steps}
    for _ in range(6):  # the first is not counted
        shutil.rmtree(folder, ignore_errors=True)
        back.unlink(missing_ok=True)
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    assert back.read_bytes() == google_file.read_bytes()
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print({name: round(median, 2) for name, median in medians.items()})
    assert medians["import"] <= 1.5 * medians["flax"]
    assert medians["export"] <= 1.5 * medians["flax"]


def peak_memory(*arguments: str | Path) -> int:
    """Bytes at the most, of a Python process."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, cwd=root
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


def test_memory(google_file):
    """Above the interpreter's own, PyTorch included: at most 1.3 times the file."""
    own = peak_memory("-c", "pass")
    folder, back = google_file.with_name("folder2"), google_file.with_name("back2")
    for arguments in (
        (f"--input={google_file}", f"--output={folder}"),
        (f"--input={folder}", f"--output={back}", "--to=flax"),
    ):
        used = peak_memory("-m", "convert", *arguments) - own
        ratio = used / google_file.stat().st_size
        print(f"{used / 2**20:.0f} MiB, {ratio:.2f} times the file")
        assert ratio <= 1.3
