"""Token shards: reading, checksums, taking up, memory."""

import contextlib
import errno
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import fresh_python
import numpy as np
import pytest
import torch
from recorded import OFFICIAL, load_tiny

from maskgit_pt.pretrained import load_any
from train.data import shard_files
from train.data.tokens import ShardWriter, TokenShards, tokenizer_fingerprint

SETTINGS = {
    "grid": (2, 3), "crops": 2, "codebook_size": 100, "class_names": ["a", "b", "c"],
    "image_size": 32, "tokenizer": "0" * 64, "preprocessing": {"crop": "random", "seed": 1},
}  # fmt: skip
SIZES = (5, 3, 0, 4)


@pytest.fixture
def made(tmp_path):
    """A small set: folder, tokens [12, 2, 6], labels [12]."""
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, 100, (12, 2, 6)), rng.integers(0, 3, 12)
    writer, start = ShardWriter(tmp_path / "set", **SETTINGS), 0
    for number, size in enumerate(SIZES):
        rows = slice(start, start + size)
        writer.write(number, tokens[rows], labels[rows])
        start += size
    writer.finish(len(SIZES))
    return tmp_path / "set", tokens, labels


def flip(path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_rows(made):
    folder, tokens, labels = made
    shards = TokenShards.open(folder)
    assert (shards.num_images, shards.crops, shards.grid, shards.num_classes) == (12, 2, (2, 3), 3)
    rng = np.random.default_rng(1)
    images, crops = rng.integers(0, 12, 50), rng.integers(0, 2, 50)
    found = shards.tokens(images, crops)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, tokens[images, crops])
    found = shards.labels(images)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, labels[images])
    assert shards.tokens([], []).shape == (0, 6)
    mapped = np.load(folder / "shard-00001.tokens.npy", mmap_mode="r")
    assert mapped.dtype == np.uint16
    np.testing.assert_array_equal(mapped, tokens[5:8])
    shards.verify(progress=False)
    with pytest.raises(ValueError, match="image 12 is out of range; accepted: 0 to 11"):
        shards.tokens([12], [0])
    with pytest.raises(ValueError, match="crop -1 is out of range"):
        shards.tokens([1], [-1])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes(made, method):
    folder, tokens, labels = made
    shards = TokenShards.open(folder)
    shards.tokens(np.arange(12), np.zeros(12, int))  # its files are open
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        jobs = [pool.submit(shards.tokens, [11, i, 0], [1, 0, 1]) for i in range(6)]
        for i, job in enumerate(jobs):
            np.testing.assert_array_equal(job.result(), tokens[[11, i, 0], [1, 0, 1]])
        np.testing.assert_array_equal(pool.submit(shards.labels, [3, 11]).result(), labels[[3, 11]])
    assert pickle.loads(pickle.dumps(shards)).tokens([4], [0]).tolist() == [tokens[4, 0].tolist()]


def test_more_shards_than_open_files(made, monkeypatch):
    folder, tokens, _ = made
    monkeypatch.setattr("train.data.tokens._MAX_OPEN", 2)
    shards = TokenShards.open(folder)
    for image in (0, 6, 11, 1, 7, 10):
        np.testing.assert_array_equal(shards.tokens([image], [1])[0], tokens[image, 1])


def test_every_damaged_byte_is_noticed(made):
    """A flipped bit in any byte of any file, while reading and by `verify`."""
    folder, tokens, _ = made
    images, crops = np.arange(24) // 2, np.arange(24) % 2
    rows, name = tokens.reshape(24, 6), "shard-00001"
    for path in sorted(folder.glob("shard-00001.*")):
        original = path.read_bytes()
        for place in range(len(original)):
            flip(path, place)
            with pytest.raises(ValueError, match=name):
                TokenShards.open(folder).verify(progress=False)
            harmless = "tokens" in path.name and place < 128  # in NumPy's header
            wanted = contextlib.nullcontext() if harmless else pytest.raises(ValueError, match=name)
            with wanted:
                shards = TokenShards.open(folder)
                shards.labels(images)
                np.testing.assert_array_equal(shards.tokens(images, crops), rows)
            path.write_bytes(original)
    manifest = folder / "manifest.json"
    original = manifest.read_bytes()
    for place in range(1, len(original), 29):
        flip(manifest, place)
        with pytest.raises(ValueError, match="manifest.json"):
            TokenShards.open(folder)
        manifest.write_bytes(original)


def test_a_shard_of_another_set(made, tmp_path):
    folder, tokens, labels = made
    other = ShardWriter(tmp_path / "other", **SETTINGS | {"tokenizer": "1" * 64})
    other.write(0, (tokens[:5] + 1) % 100, labels[:5])
    other.finish(1)
    for part in ("tokens", "crcs"):
        data = (tmp_path / "other" / f"shard-00000.{part}.npy").read_bytes()
        (folder / f"shard-00000.{part}.npy").write_bytes(data)
    with pytest.raises(ValueError, match="shard-00000.crcs.npy: damaged, or of another set"):
        TokenShards.open(folder).tokens([0], [0])
    with pytest.raises(ValueError, match="tokenizer '000.*needed here: '111"):
        TokenShards.open(folder).require(tokenizer="1" * 64)


def test_files_that_are_missing_or_cut(made):
    folder, _, _ = made
    path = folder / "shard-00003.tokens.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    with pytest.raises(ValueError, match="shard-00003.tokens.npy: damaged: .* bytes instead of"):
        TokenShards.open(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="shard-00003.tokens.npy: missing"):
        TokenShards.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="no manifest.json there; accepted"):
        TokenShards.open(folder)
    ShardWriter(folder, **SETTINGS)
    with pytest.raises(FileNotFoundError, match="unfinished; run the same"):
        TokenShards.open(folder)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        TokenShards.open(folder / "nowhere")


def test_wrong_values_are_not_written(tmp_path):
    writer = ShardWriter(tmp_path, **SETTINGS)
    tokens, labels = np.zeros((2, 2, 6), int), np.zeros(2, int)
    with pytest.raises(ValueError, match="token 100 is out of range; accepted: 0 to 99"):
        writer.write(0, tokens + 100, labels)
    with pytest.raises(ValueError, match="token -1 is"):
        writer.write(0, tokens - 1, labels)
    with pytest.raises(ValueError, match="label 3 is out of range; accepted: 0 to 2"):
        writer.write(0, tokens, labels + 3)
    with pytest.raises(ValueError, match=r"shape \(2, 1, 6\); accepted: \(2, 2, 6\)"):
        writer.write(0, tokens[:, :1], labels)
    with pytest.raises(ValueError, match="shard 0 has not been written"):
        writer.finish(1)
    with pytest.raises(ValueError, match="codebook_size is 70000"):
        ShardWriter(tmp_path / "other", **SETTINGS | {"codebook_size": 70000})


@pytest.mark.parametrize("name, value, message", [
    ("tokenizer", "f" * 64, "tokenizer is '000"),
    ("image_size", 64, "image_size is 32 there and 64 now"),
    ("preprocessing", {"crop": "center", "seed": 1}, "preprocessing.crop is 'random' there and 'center'"),
    ("class_names", ["a", "b"], "class_names is"),
])  # fmt: skip
def test_other_settings_are_refused(made, name, value, message):
    folder, _, _ = made
    with pytest.raises(ValueError, match=message) as error:
        ShardWriter(folder, **SETTINGS | {name: value})
    assert "\n" not in str(error.value)


def test_full_disk(tmp_path, monkeypatch):
    """Finished shards stay; what failed is made by the next run."""
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, 100, (5, 2, 6)), rng.integers(0, 3, 5)
    writer = ShardWriter(tmp_path, **SETTINGS)
    writer.write(0, tokens, labels)
    write = shard_files.write_atomically

    def fail(path, data):
        if "labels" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(shard_files, "write_atomically", fail)
        with pytest.raises(
            OSError, match="shard-00001.labels.npy cannot be written: No space left"
        ):
            writer.write(1, tokens, labels)
    # As a killed process leaves it.
    (tmp_path / ".shard-00001.tokens.npy.x8k_2").write_bytes(b"half")
    writer = ShardWriter(tmp_path, **SETTINGS)
    assert writer.missing(2) == [1]
    writer.write(1, tokens, labels)
    writer.finish(2)
    assert TokenShards.open(tmp_path).num_images == 10
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json"] + 6 * [".npy"]


def test_damaged_shards_are_missing(made):
    folder, tokens, labels = made
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    flip(folder / "shard-00001.tokens.npy", 150)
    (folder / "shard-00003.labels.npy").unlink()
    writer = ShardWriter(folder, **SETTINGS)
    assert writer.missing(4) == [1, 3]
    writer.write(1, tokens[5:8], labels[5:8])
    writer.write(3, tokens[8:], labels[8:])
    writer.finish(4)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_fingerprint():
    """The same for a file of Google's, its conversion, and any dtype that holds the values."""
    model = load_tiny("tokenizer")
    expected = tokenizer_fingerprint(model)
    from maskgit_pt.nets.vqgan_tokenizer import VQVAE

    file = OFFICIAL / "tiny_tokenizer_checkpoint"
    assert tokenizer_fingerprint(load_any(file, [VQVAE])) == expected
    assert tokenizer_fingerprint(load_tiny("tokenizer").double()) == expected
    with torch.no_grad():
        model.quantizer.codebook[0, 0] += 1e-3
    assert tokenizer_fingerprint(model) != expected


def test_memory(tmp_path):
    """64,000 images x 2 crops of 256 tokens: the process does not grow with what it read."""
    rng = np.random.default_rng(0)
    settings = SETTINGS | {"grid": (16, 16), "codebook_size": 1024}
    writer = ShardWriter(tmp_path, **settings)
    for number in range(8):
        tokens = rng.integers(0, 1024, (8000, 2, 256), dtype=np.uint16)
        writer.write(number, tokens, rng.integers(0, 3, 8000))
    writer.finish(8)
    code = f"""
import numpy as np, resource
from train.data.tokens import TokenShards
shards = TokenShards.open({str(tmp_path)!r})
rng = np.random.default_rng(0)
def draw():
    return shards.tokens(rng.integers(0, 64000, 512), rng.integers(0, 2, 512))
draw(), shards.labels([0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(200):
    draw()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = fresh_python.run(code)
    assert done.returncode == 0, done.stderr
    grown_kb = float(done.stdout)
    assert grown_kb < 16_000  # of 65 MB
