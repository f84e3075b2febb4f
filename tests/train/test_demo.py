"""The demo: its images, its plan, and all of its steps in short."""

import gzip
import importlib
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from training import ROOT

from train import demo, digits, loop, sweep
from train.data.images import open_images
from train.demos import images, pace, scores, stages
from train.demos.images import FASHION_CLASSES, Part, read_idx, write_tar
from train.sweeps.findings import FAILS, HOLDS, UNDECIDED


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def clothes(seed: int, count: int) -> Part:
    """Things that only a machine would wear, 28 x 28."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(count) % 10
    pixels = rng.integers(0, 40, (count, 28, 28))
    for image, label in zip(pixels, labels, strict=True):
        image[2 * label : 2 * label + 8, 4:20] += 150
    return Part(pixels.astype(np.uint8), labels)


def write_idx(path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_fashion(folder, train: int = 120, test: int = 40, end: str = ".gz") -> None:
    folder.mkdir()
    for start, part in (("train", clothes(0, train)), ("t10k", clothes(1, test))):
        write_idx(folder / f"{start}-images-idx3-ubyte{end}", part.images)
        write_idx(folder / f"{start}-labels-idx1-ubyte{end}", part.labels)


def run_here(command: list[str]) -> int:
    """A command of the demo in this process, without torchrun."""
    own = stages._own(command)
    name = stages.MODULES[own[0]]
    module = importlib.import_module("train.__main__" if name == "train" else name)
    before, sys.argv = sys.argv, own
    try:
        return module.cli()
    finally:
        sys.argv = before


SHORT = "num_train_steps=3,eval_every_steps=3,eval_show_num=2,data.num_workers=0"
TOY = [
    f"--tokenizer_config={SHORT},vqvae.embedding_dim=8,batch_size=8",
    f"--config={SHORT},transformer.num_layers=1,batch_size=8",
    "--num_samples=20", "--classifier_steps=40", "--processes=1",
]  # fmt: skip


def test_all_steps_in_short(tmp_path, monkeypatch, capsys):
    """A few steps of everything: the commands fit together; nothing is learned. Then a study on top."""
    monkeypatch.setattr(stages, "run", run_here)
    # Measuring it takes longer than the steps.
    monkeypatch.setattr(loop, "matrix_rate", lambda *_: 1e11)
    write_fashion(tmp_path / "files")
    folder = tmp_path / "fashion"
    command = [f"--output={folder}", f"--files={tmp_path / 'files'}", "--minutes=1", *TOY]
    assert demo.cli(command) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "steps of the" not in out and "times the recipe's" in out
    report = json.loads((folder / "report.json").read_text())
    assert report["images"] == {"train": 120, "test": 40}
    assert report["generated_images"] == 20 and len(report["recognised_by_class"]) == 10
    assert report["recognised_as_asked"] < 0.9  # the score can tell
    assert report["frechet_distance"] > 2 * report["frechet_distance_of_training_images"]
    assert report["trained_in"] in ("float32", "bfloat16") and 0 <= report["precision"] <= 1
    page = (folder / "index.html").read_text()
    for part in (
        "maskgit-train --config=fashion",
        "ankle-boot",
        "Are they copies?",
        "data:image/png",
    ):
        assert part in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    assert open_images(folder / "images" / "train.tar").class_names == sorted(FASHION_CLASSES)
    a_study(folder, tmp_path / "studies")
    # The same command again: nothing is left to do but the page.
    monkeypatch.setattr(stages, "run", lambda command: pytest.fail(f"run again: {command}"))
    assert demo.cli(command) == 0
    assert demo.cli([*command, "--seed=1"]) == 1
    assert "seed 0, now it is 1" in capsys.readouterr().err


def a_study(folder, output) -> None:
    """A study of the report on the demo's models, by its classifier, over two seeds."""
    networks = [f"--model={folder / 'transformer'}", f"--tokenizer={folder / 'tokenizer'}"]
    networks += [f"--features=classifier:{folder / 'classifier'}", "--device=cpu", "--threads=1"]
    reference = [f"--reference={folder / 'images' / 'test.tar'}", "--num_samples=20", "--cache="]
    grid = ["--grid=guidance=0,3,9", "--grid=seed=0,1", "--steps=2", f"--output={output}"]
    assert sweep.cli(["--study=guidance", *networks, *reference, *grid]) == 0
    found = json.loads((output / "guidance.json").read_text())
    assert len(found["cells"]) == 6 and len(found["findings"]) == 3
    assert {f["verdict"] for f in found["findings"]} <= {HOLDS, FAILS, UNDECIDED}
    assert "classifier_recognised" in found["cells"][0]["metrics"]
    assert "What Besnier & Chen found" in (output / "guidance.md").read_text()
    assert (output / "guidance.png").stat().st_size > 10_000


@pytest.mark.slow
def test_digits_are_learned(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "train.digits", f"--output={tmp_path / 'digits'}"],
        cwd=ROOT, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "digits" / "report.json").read_text())
    assert report["classifier_accuracy_on_test_images"] >= 0.97
    assert report["generated_images"] == 1000
    assert report["recognised_as_asked"] >= 0.95
    assert report["tokenizer_psnr_on_test_images"] >= 22
    assert report["codebook_usage"] >= 0.5
    assert report["nearest_training_image_median"] > 0.5 * report["same_for_test_images_median"]
    assert report["different_generated_images"] > 900


def test_digits_is_a_short_name(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="needs the extra 'train'")
    assert digits.cli(["--help"]) == 0
    told = capsys.readouterr().out
    assert "maskgit-demo --data=digits" in told and "(default: 'fashion')" not in told
    assert digits.cli([f"--output={tmp_path}", "--files=here"]) == 1
    assert "--files and --download belong to --data=fashion" in capsys.readouterr().err


def test_split_and_shifts():
    pytest.importorskip("sklearn", reason="needs the extra 'train'")
    parts = images.load_digits(None, False, 0)
    assert [len(parts[name].labels) for name in ("train", "test", "shifted")] == [1437, 360, 7185]
    assert (
        set(np.unique(parts["train"].labels))
        == set(np.unique(parts["test"].labels))
        == set(range(10))
    )
    train = parts["train"].images
    moved = images.shift(train[:1], 1, 0)
    np.testing.assert_array_equal(moved[0, 1:], train[0, :-1])
    assert (moved[0, 0] == 0).all()
    moved = images.shift(train[:1], 0, -1)
    np.testing.assert_array_equal(moved[0, :, :-1], train[0, :, 1:])


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files_are_read_and_written_as_tars(tmp_path, end):
    write_fashion(tmp_path / "files", end=end)
    parts = images.load_fashion(str(tmp_path / "files"), False, 0)
    expected = clothes(0, 120)
    np.testing.assert_array_equal(parts["train"].images, expected.images)
    write_tar(tmp_path / "train.tar", parts["train"], FASHION_CLASSES)
    opened = open_images(tmp_path / "train.tar")
    for i in (0, 57, 119):
        np.testing.assert_array_equal(np.asarray(opened.read(i))[..., 1], expected.images[i])
        assert opened.class_names[opened.labels[i]] == FASHION_CLASSES[expected.labels[i]]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[: len(data) // 2], "packed badly or cut off"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-5]), "cut off or damaged"),
        (lambda data: gzip.compress(gzip.decompress(data) + b"more"), "cut off or damaged"),
        (lambda data: gzip.compress(b"\0\0\x0d\3" + bytes(12)), "not an IDX file of bytes"),
        (lambda data: b"", "not an IDX file"),
        (
            lambda data: gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31)),
            "cut off",
        ),
        (lambda data: b"<html>not here</html>", "not an IDX file"),
    ],
)
def test_damaged_idx_files_are_told(tmp_path, spoil, said, capsys):
    write_fashion(tmp_path / "files")
    path = tmp_path / "files" / "train-images-idx3-ubyte.gz"
    path.write_bytes(spoil(path.read_bytes()))
    assert demo.cli([f"--output={tmp_path / 'out'}", f"--files={tmp_path / 'files'}"]) == 1
    error = capsys.readouterr().err
    assert said in error and str(path) in error and error.count("\n") == 1
    with pytest.raises(ValueError, match="IDX|cut off"):
        read_idx(path)


def test_missing_files_say_where_they_were_looked_for(tmp_path, capsys):
    assert demo.cli([f"--output={tmp_path / 'out'}", f"--files={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert f"looked in {tmp_path}" in error and "--download" in error
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    assert demo.cli([f"--output={tmp_path / 'mine'}"]) == 1
    assert "something else than a demo" in capsys.readouterr().err


def test_steps_follow_from_time_and_rate():
    """Twice the time gives more than twice the steps: the rest of the demo costs the same."""
    sizes = pace.Sizes(train_images=60_000, test_images=10_000, num_samples=2000, passes=16)
    rates = pace.Rates(tokenizer=300.0, transformer=600.0)
    rest = sizes.seconds(rates)
    assert 150 < rest < 400
    work = {"tokenizer": 3000 * 32 / 300, "transformer": 2600 * 64 / 600}
    by = [pace.stretch(60 * minutes - rest, work) for minutes in (15, 30)]
    assert 0.5 < by[0] < 2 and by[1] > 2 * by[0]
    assert pace.stretch(-5, work) == 0
    recipe = pace.recipe("fashion")
    assert pace.shortened(recipe, 1000) == [
        "--config.num_train_steps=1000", "--config.optimizer.warmup_steps=100",
        "--config.eval_every_steps=500",
    ]  # fmt: skip
    assert not [flag for flag in pace.shortened(recipe, 5000) if "warmup" in flag]
    assert pace.processes_for((32, 64), 4) in (1, 2, 4) and pace.processes_for((3, 5), 4) == 1


def test_an_interrupted_stage_is_taken_up(tmp_path, monkeypatch):
    """Times add up over attempts; what is done is not done again."""
    ran = []
    now = iter(range(100))
    monkeypatch.setattr(stages, "run", lambda command: ran.append(command) or len(ran) == 1)
    first = stages.Stages(tmp_path / "demo", {"seed": 0}, lambda: next(now))
    with pytest.raises(ValueError, match="the command above failed"):
        first.commands("tokens", ["maskgit-tokenize", "--a"])
    second = stages.Stages(tmp_path / "demo", {"seed": 0}, lambda: next(now))
    second.commands("tokens", ["maskgit-tokenize", "--a"])
    second.commands("tokens", ["maskgit-tokenize", "--a"])
    assert len(ran) == 2 and second.seconds == 2 and second.whole("tokens")
    assert stages.spread(["maskgit-train"], 2)[:2] == ["torchrun", "--nproc_per_node=2"]


def test_copies_would_be_noticed():
    part = clothes(0, 300).images
    distances, places = scores.nearest(part[:20], part, 3)
    assert (distances == 0).all() and (places[:, 0] == np.arange(20)).all()
    distances, places = scores.nearest(clothes(1, 20).images, part, 1)
    a, b = clothes(1, 20).images[:, None] / 255, part[None] / 255
    np.testing.assert_allclose(distances, np.sqrt(((a - b) ** 2).sum((2, 3))).min(1), rtol=1e-4)


def test_the_page_shows_images_as_they_are():
    import base64
    import io

    from train import pages

    image = clothes(0, 1).images[0][..., None].repeat(3, -1)
    url = pages.image_url(image)
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
