"""`maskgit-tokenize` on the tiny tokenizer."""

import json
import time

import fresh_python
import numpy as np
import processes
import pytest
import torch
from PIL import Image
from recorded import OFFICIAL, load_tiny

from maskgit_pt import VQVAE
from maskgit_pt.command_line import run
from train import tokenize
from train.configs import fashion_tokenizer
from train.data import images as images_lib
from train.data import shard_files
from train.data.encoding import Encoder, cpu_rows
from train.data.tokens import TokenShards, tokenizer_fingerprint
from train.randomness import generator

FIXED = [f"--tokenizer={OFFICIAL / 'tiny_tokenizer_checkpoint'}", "--image_size=16", "--device=cpu"]
DAMAGED = {2: "a/2.jpg", 12: "b/2.jpg", 13: "b/3.jpg"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """30 images of 3 classes, three of them damaged."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in "abc":
        (root / name).mkdir()
        for i in range(10):
            pixels = rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)
            size = tuple(map(int, rng.integers(18, 40, 2)))
            Image.fromarray(pixels).resize(size).save(root / name / f"{i}.jpg")
    cut = (root / "a/2.jpg").read_bytes()
    (root / "a/2.jpg").write_bytes(cut[: len(cut) // 2])
    (root / "b/2.jpg").write_bytes(b"")
    (root / "b/3.jpg").write_text("no picture")
    return root


def call(pictures, output, *args: str) -> int:
    args = [*FIXED, f"--images={pictures}", f"--output={output}", "--shard_size=4", *args]
    if not any(arg.startswith("--workers") for arg in args):
        args.append("--workers=0")
    return run(tokenize.main, tokenize.FLAGS, tokenize.PROGRAM, tokenize.USAGE, args)


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def expected(pictures, tmp_path_factory):
    """The files of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("expected") / "set"
    assert call(pictures, folder) == 0
    return files(folder)


def test_content(pictures, tmp_path, capsys):
    assert call(pictures, tmp_path, "--crops=3", "--crop=random_resized+flip", "--seed=5") == 0
    output = capsys.readouterr()
    assert (
        "27 images of 3 classes, 3 damaged ones left out, 3 crops of 16 tokens each" in output.out
    )
    for name in DAMAGED.values():
        assert f"damaged, left out: {name}: " in output.err
    assert "img/s" in output.err
    shards, tokenizer = TokenShards.open(tmp_path), load_tiny("tokenizer")
    assert (shards.num_images, shards.crops, shards.grid, shards.image_size) == (27, 3, (4, 4), 16)
    assert shards.class_names == ["a", "b", "c"] and shards.codebook_size == 32
    assert shards.tokenizer == tokenizer_fingerprint(tokenizer)
    assert {image["image"]: image["name"] for image in shards.damaged} == DAMAGED
    assert all(image["reason"] for image in shards.damaged)
    assert (
        shards.preprocessing["crop"] == "random_resized+flip" and shards.preprocessing["seed"] == 5
    )
    images = images_lib.open_images(pictures)
    kept = [image for image in range(30) if image not in DAMAGED]
    np.testing.assert_array_equal(shards.labels(np.arange(27)), images.labels[kept])
    for row in range(0, 27, 5):
        for number in range(3):
            rng = generator(5, "crop", kept[row], number)
            pixels = images_lib.crop(images.read(kept[row]), 16, "random_resized+flip", rng)
            batch = torch.from_numpy(pixels).movedim(-1, 0)[None] / 255
            with torch.inference_mode():
                tokens = tokenizer.encode_to_indices(batch).flatten(1)
            np.testing.assert_array_equal(shards.tokens([row], [number]), tokens)
    picture = Image.open(tmp_path / "preview.png")
    assert picture.size == (8 * 98 - 2, 4 * 98 - 2)  # 16 pairs, of 16 px and enlarged
    assert call(pictures, tmp_path / "plain", "--crops=1", "--crop=center", "--preview=0") == 0
    assert "preview.png" not in files(tmp_path / "plain")


@pytest.mark.parametrize("args", [
    ["--batch_size=1", "--threads=1"],
    ["--batch_size=7", "--threads=3"],
    ["--batch_size=64", "--workers=2"],
])  # fmt: skip
def test_same_bytes(pictures, expected, tmp_path, args):
    assert call(pictures, tmp_path, *args) == 0
    assert files(tmp_path) == expected


def test_two_processes(pictures, expected, tmp_path):
    arguments = [*FIXED, f"--images={pictures}", f"--output={tmp_path / 'set'}", "--shard_size=4"]
    processes.run(tokenize.cli, [*arguments, "--workers=1"], logs=tmp_path / "logs", count=2)
    assert files(tmp_path / "set") == expected


class Killed(BaseException):
    """Nothing handles it, as nothing handles a SIGKILL."""


def test_stopped_at_every_write(pictures, expected, tmp_path, monkeypatch):
    """Each run writes one file more and dies, before or after the renaming; the last one ends the set."""
    write, runs, last = shard_files.write_atomically, 0, False
    while not last:
        left = [2]

        def dying(path, data, left=left, runs=runs):
            left[0] -= 1
            if left[0] == 0 and runs % 2:
                (path.parent / f".{path.name}.abc").write_bytes(data[:9])
                raise Killed
            write(path, data)
            if left[0] == 0:
                raise Killed

        before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("shard-*") if _finished(p)}
        with monkeypatch.context() as patch:
            patch.setattr(shard_files, "write_atomically", dying if runs < 40 else write)
            try:
                last = call(pictures, tmp_path) == 0
            except Killed:
                pass
        changed = [p.name for p, t in before.items() if p.exists() and p.stat().st_mtime_ns != t]
        assert not changed or runs > 38
        runs += 1
        assert runs < 45
    assert files(tmp_path) == expected


def _finished(path) -> bool:
    return (path.parent / f"{path.name.partition('.')[0]}.json").exists()


def test_killed(pictures, expected, tmp_path):
    arguments = [*FIXED, f"--images={pictures}", f"--output={tmp_path / 'set'}", "--shard_size=4"]
    group = processes.start(tokenize.cli, [*arguments, "--workers=1"], logs=tmp_path / "logs")
    deadline = time.monotonic() + 60
    while not (tmp_path / "set" / "shard-00001.json").exists() and time.monotonic() < deadline:
        if not group.alive:
            break
        time.sleep(0.001)
    group.processes[0].kill()
    group.wait()
    assert call(pictures, tmp_path / "set") == 0
    assert files(tmp_path / "set") == expected


def test_a_finished_set_stays_and_a_damaged_shard_is_made_anew(
    pictures, expected, tmp_path, capsys
):
    for name, data in expected.items():
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "shard-00002.tokens.npy"
    before = path.stat().st_mtime_ns
    assert call(pictures, tmp_path) == 0
    assert path.stat().st_mtime_ns == before
    assert "8 of 8 shards are there already" in capsys.readouterr().err
    assert call(pictures, tmp_path, f"--verify={tmp_path}") == 0
    assert "every checksum is right" in capsys.readouterr().out
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert call(pictures, tmp_path, f"--verify={tmp_path}") == 1
    assert "shard-00002.tokens.npy: damaged" in capsys.readouterr().err
    assert call(pictures, tmp_path) == 0
    assert files(tmp_path) == expected


def test_other_tokenizer_settings_or_images_are_refused(pictures, expected, tmp_path, capsys):
    for name, data in expected.items():
        (tmp_path / name).write_bytes(data)
    model = load_tiny("tokenizer")
    with torch.no_grad():
        model.quantizer.codebook += 0.1
    model.save_pretrained(tmp_path / "other_tokenizer")
    for args, message in [
        ([f"--tokenizer={tmp_path / 'other_tokenizer'}"], "tokenizer is "),
        (["--crops=3"], "crops is 2 there and 3 now"),
        (["--seed=1"], "preprocessing.seed is 0 there and 1 now"),
        (
            ["--image_size=32"],
            "image_size is 16 there and 32 now, grid is [4, 4] there and [8, 8] now",
        ),
        ([f"--images={pictures.parent}/one"], "source.images is 30 there and 1 now"),
    ]:
        if "one" in args[0]:
            for name in "abc":
                (pictures.parent / "one" / name).mkdir(parents=True)
            (pictures.parent / "one/a/1.jpg").write_bytes((pictures / "a/1.jpg").read_bytes())
            for name in "bc":
                (pictures.parent / "one" / name).rmdir()
        assert call(pictures, tmp_path, *args) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "holds shards made otherwise: " in error and message in error
    assert {k: v for k, v in files_only(tmp_path).items()} == expected


def files_only(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("args, code, message", [
    (["--crops=2", "--crop=center"], 2, "accepted: --crops=1"),
    (["--crop=middle"], 2, "--crop=middle"),
    (["--image_size=18"], 1, "accepted: multiples of 4"),
    (["--images=/nowhere"], 1, "/nowhere: no such folder; accepted: "),
    (["--num_classes=4"], 1, "3 classes; expected: 4"),
    (["--dtype=tfloat32"], 1, "accepted on cpu: float32, bfloat16"),
    (["--tokenizer=/nowhere"], 1, "/nowhere: no such folder"),
    (["--output=/proc/nothing/set"], 1, "/proc/nothing"),
    (["--images="], 2, "--images is missing"),
    (["--verify=/nowhere"], 1, "/nowhere: no such folder; accepted: what maskgit-tokenize wrote"),
])  # fmt: skip
def test_errors_are_one_line(pictures, tmp_path, capsys, args, code, message):
    assert call(pictures, tmp_path, *args) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert lines[0].startswith("maskgit-tokenize: error: ")


def test_output_among_other_things(pictures, tmp_path, capsys):
    """Images would get a class more, and a model other files."""
    before = sorted(pictures.iterdir())
    for output in (pictures, pictures / "tokens"):
        assert call(pictures, output) == 1
        assert "is in the folder of images" in capsys.readouterr().err
    assert sorted(pictures.iterdir()) == before
    (tmp_path / "model.safetensors").touch()
    assert call(pictures, tmp_path) == 1
    assert "holds a model (model.safetensors)" in capsys.readouterr().err


def test_a_first_attempt_binds_nothing(pictures, expected, tmp_path, monkeypatch):
    """Only shards that are there decide with which settings a folder goes on."""

    def fail(*arguments):
        raise ValueError("a wrong flag")

    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "_make_shards", fail)
        assert call(pictures, tmp_path, "--seed=1") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished.json"]
    assert call(pictures, tmp_path) == 0 and files(tmp_path) == expected


def test_full_disk(pictures, expected, tmp_path, capsys, monkeypatch):
    def fail(path, data, write=shard_files.write_atomically):
        if path.name == "shard-00003.tokens.npy":
            raise OSError(28, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(shard_files, "write_atomically", fail)
        assert call(pictures, tmp_path) == 1
    error = capsys.readouterr().err
    assert "shard-00003.tokens.npy cannot be written: No space left on device; finished" in error
    assert len(list(tmp_path.glob("shard-*.json"))) == 3
    assert call(pictures, tmp_path) == 0
    assert files(tmp_path) == expected


def test_nothing_but_damaged_images(tmp_path, capsys):
    (tmp_path / "in" / "a").mkdir(parents=True)
    for i in range(5):
        (tmp_path / "in" / "a" / f"{i}.jpg").write_bytes(b"")
    assert call(tmp_path / "in", tmp_path / "out") == 1
    assert "not one image could be read (a/0.jpg: empty file)" in capsys.readouterr().err


def test_an_image_that_disappears_is_an_error(pictures, tmp_path, capsys, monkeypatch):
    def fail(self, index):
        raise PermissionError(13, "Permission denied", "c/9.jpg")

    monkeypatch.setattr("train.data.image_folders.FolderImages._read_bytes", fail)
    assert call(pictures, tmp_path, "--workers=1") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("error: c/9.jpg: Permission denied")


def test_rows_of_a_call_on_a_cpu():
    sides = (8, 16, 28, 32, 64, 128, 256, 512)
    assert [cpu_rows(side**2) for side in sides] == [64, 64, 32, 32, 8, 2, 1, 1]


def test_tokens_do_not_hang_on_companions():
    """28 px, as the recipe `fashion_tokenizer`: the same bits beside any others, at any place."""
    config = fashion_tokenizer.get_config()
    config.vqvae.filters = 32
    torch.manual_seed(0)
    tokenizer = VQVAE(config).eval()
    images = torch.randint(0, 256, (40, 28, 28, 3), dtype=torch.uint8)
    features = []
    tokenizer.encoder.register_forward_hook(lambda *args: features.append(args[2]))
    encoder = Encoder(tokenizer, threads=1)
    tokens, alone = encoder.start(images)(), encoder.start(images[33:34])()
    assert [len(part) for part in features] == [32, 32, 32]
    assert torch.equal(features[2][0], features[1][1])  # image 33, the second of the second call
    np.testing.assert_array_equal(alone, tokens[33:34])
    order = torch.randperm(40)
    np.testing.assert_array_equal(encoder.start(images[order])(), tokens[order])
    with torch.inference_mode():  # PyTorch rounds a single image otherwise; no code is that near
        pixels = images.movedim(-1, 1) / 255
        single = torch.cat([tokenizer.encode_to_indices(image[None]) for image in pixels])
    torch.testing.assert_close(features[-40][0], features[0][0], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(single.flatten(1), tokens)


def test_the_size_is_the_tokenizers_own(pictures, tmp_path, capsys):
    load_tiny("tokenizer").save_pretrained(tmp_path / "unknown")
    tokenizer = load_tiny("tokenizer")
    tokenizer.image_size = 64
    tokenizer.save_pretrained(tmp_path / "known")
    command = [f"--images={pictures}", "--crops=1", "--workers=0", "--device=cpu", "--preview=0"]

    def tokens(name: str) -> int:
        args = [*command, f"--tokenizer={tmp_path / name}", f"--output={tmp_path / 'tokens'}"]
        return run(tokenize.main, tokenize.FLAGS, tokenize.PROGRAM, tokenize.USAGE, args)

    assert tokens("unknown") == 1
    assert "unknown does not say for which images it is; --image_size" in capsys.readouterr().err
    assert tokens("known") == 0
    assert "images are enlarged to 64 px" in capsys.readouterr().err
    assert TokenShards.open(tmp_path / "tokens").image_size == 64


def test_encoder():
    """It leaves the caller's threads alone; whole batches, as on a GPU, give the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    encoder = Encoder(load_tiny("tokenizer"), batch_size=3, threads=2)
    images = torch.randint(0, 256, (7, 16, 16, 3), dtype=torch.uint8)
    tokens = encoder.start(images)()
    assert tokens.shape == (7, 16) and tokens.dtype == np.uint16
    assert torch.get_num_threads() == 2
    grids = torch.from_numpy(tokens.astype(np.int64)).unflatten(1, (4, 4))
    decoded = encoder.decode(grids)
    assert decoded.shape == (7, 3, 16, 16) and 0 <= decoded.min() <= decoded.max() <= 1
    encoder._on_cpu = False
    np.testing.assert_array_equal(encoder.start(images)(), tokens)
    # Batches are summed in another order; the range is 1.
    torch.testing.assert_close(encoder.decode(grids), decoded, rtol=0, atol=1e-4)
    assert encoder.start(images[:0])().shape == (0, 16)
    torch.set_num_threads(threads)


def test_nothing_imports_torchvision():
    code = "import sys, train.tokenize; assert 'torchvision' not in sys.modules"
    assert fresh_python.run(code).returncode == 0


def test_manifest_is_json(expected):
    manifest = json.loads(expected["manifest.json"])
    assert manifest["num_images"] == 27 and len(manifest["shards"]) == 8
    assert [image["image"] for image in manifest["damaged"]] == list(DAMAGED)
