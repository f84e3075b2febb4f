"""The evaluation command line, whole, with feature extractors that need no weights."""

import io
import json
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from PIL import Image
from recorded import OFFICIAL, load_tiny

import train.evaluation as evaluation
from maskgit_pt import MaskGIT, sample
from maskgit_pt.command_line import run
from train import evaluate
from train.evaluation import extraction, reconstruction
from train.evaluation.kernel_distance import kernel_distance

TRANSFORMER = f"--model={OFFICIAL / 'tiny_transformer_checkpoint'}"
TOKENIZER = f"--tokenizer={OFFICIAL / 'tiny_tokenizer_checkpoint'}"


@pytest.fixture(autouse=True)
def same_threads(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def call(*args: str) -> int:
    args = ["--device=cpu", "--threads=1", *args]
    return run(evaluate.main, evaluate.FLAGS, evaluate.PROGRAM, evaluate.USAGE, args)


def result() -> dict:
    with open("evaluation/evaluation.json") as file:
        return json.load(file)


def pictures(seed: int, count: int, size: int = 16, tint: int = 0) -> np.ndarray:
    """Smooth random pictures, uint8 [N, size, size, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(tint, 200 + tint, (count, 4, 4, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((size, size))) for c in coarse])


def write_folder(folder, images: np.ndarray, suffix: str = "png") -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:04d}.{suffix}")


@pytest.fixture
def sets(tmp_path) -> tuple[np.ndarray, np.ndarray]:
    """Samples and reference, in memory, in folders and as npz."""
    samples, reference = pictures(0, 50, tint=20), pictures(1, 60)
    write_folder(tmp_path / "samples", samples)
    write_folder(tmp_path / "reference", reference)
    np.savez(tmp_path / "samples.npz", samples)
    np.savez_compressed(tmp_path / "reference.npz", reference)
    return samples, reference


def test_formats_agree(sets, capsys):
    """Folder, npz, compressed npz and arrays give the same numbers; JSON and Markdown state them."""
    assert call("--samples=samples", "--reference=reference", "--features=random") == 0
    whole = result()
    assert set(whole["metrics"]) == {
        "random_frechet_distance", "random_class_score", "random_class_score_std",
        "random_precision", "random_recall", "random_density", "random_coverage",
    }  # fmt: skip
    for name in ("samples", "reference", "features", "neighbours", "splits", "versions"):
        assert name in whole["protocol"]
    assert whole["protocol"]["samples"] == {
        "name": "samples", "count": 50, "size": "16 x 16", "format": "PNG",
    }  # fmt: skip
    assert "center crop, shorter side to 16" in whole["protocol"]["reference"]["resize"]
    text = open("evaluation/evaluation.md").read()
    assert text == capsys.readouterr().out and text.count("\n") == 3
    for part in ("| samples |", "50", "PNG", "60", "center crop", "not Inception", "neighbours: 3"):
        assert part in text
    assert "| FID |" not in text
    assert call("--samples=samples.npz", "--reference=reference.npz", "--features=random") == 0
    assert result()["metrics"] == whole["metrics"]
    direct = evaluation.evaluate(*sets, features="random")
    assert direct.metrics == whole["metrics"]


def test_values_are_those_of_the_functions(sets):
    assert call("--samples=samples", "--reference=reference.npz", "--features=pixels") == 0
    features = [
        np.stack([np.asarray(Image.fromarray(image).reduce(2)) for image in images])
        for images in sets
    ]
    features = [f.transpose(0, 3, 1, 2).reshape(len(f), -1) / 255.0 for f in features]
    fitted = [evaluation.fit(f) for f in features]
    found = result()["metrics"]
    # Pillow rounds the means to 8 bits.
    expected = evaluation.frechet_distance(*fitted)
    assert found["pixels_frechet_distance"] == pytest.approx(expected, rel=0.02)
    swapped = evaluation.evaluate(*sets[::-1], features="pixels").metrics
    assert swapped["pixels_precision"] == found["pixels_recall"]
    assert swapped["pixels_density"] != found["pixels_density"]


def test_metrics_and_settings(sets):
    args = ["--samples=samples.npz", "--reference=reference.npz", "--features=random"]
    assert call(*args) == 0
    before = result()["metrics"]
    assert call(*args, "--metrics=precision,fid", "--neighbours=4") == 0
    found = result()
    assert set(found["metrics"]) == {"random_frechet_distance", "random_precision"}
    assert found["protocol"]["neighbours"] == 4 and "splits" not in found["protocol"]
    assert found["metrics"]["random_precision"] != before["random_precision"]
    assert call(*args, "--splits=5", "--noshuffle", "--metrics=inception_score") == 0
    assert result()["metrics"]["random_class_score"] != before["random_class_score"]
    assert "in the given order" in result()["protocol"]["splits"]
    assert call(*args, "--num_samples=20", "--num_reference=30") == 0
    assert result()["protocol"]["samples"]["subset"] == "the first 20 of 50"
    assert result()["protocol"]["reference"]["subset"] == "evenly spread 30 of 60"


def test_kernel_distance(sets):
    """By hand on all images: where a subset holds them all, every one gives the same."""
    assert call("--samples=samples", "--reference=reference.npz", "--features=pixels",
                "--metrics=kid") == 0  # fmt: skip
    found = result()["metrics"]
    assert set(found) == {"pixels_kernel_distance", "pixels_kernel_distance_std"}
    assert "100 subsets" in result()["protocol"]["kid"]
    x, y = (np.random.default_rng(seed).normal(seed, 1, (40, 5)) for seed in (0, 1))

    def kernel(a, b):
        return (a @ b.T / 5 + 1) ** 3

    xx, yy = kernel(x, x), kernel(y, y)
    expected = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (40 * 39) - 2 * kernel(x, y).mean()
    mean, deviation = kernel_distance(x, y)
    assert mean == pytest.approx(expected, rel=1e-9) and deviation < 1e-9
    with pytest.raises(ValueError, match="of one length"):
        kernel_distance(x, y[:, :3])


def test_foreign_files_stay_without_overwrite(sets, capsys):
    """What is no result of this program is kept, and told before the work; `--overwrite` replaces it."""
    args = ["--samples=samples", "--reference=reference", "--features=pixels", "--metrics=fid"]
    args.append("--save_statistics=made.npz")
    for name, text in (("evaluation.json", "{}"), ("evaluation.md", "mine"), ("made.npz", "mine")):
        path = Path(name if name == "made.npz" else f"evaluation/{name}")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        assert call(*args) == 1
        assert f"{path} is there and is no" in capsys.readouterr().err
        assert path.read_text() == text and len(list(Path("evaluation").iterdir())) <= 1
        assert call(*args, "--overwrite") == 0
        assert path.read_bytes() != text.encode()
        assert call(*args) == 0  # its own results it replaces
        for made in ("evaluation/evaluation.json", "evaluation/evaluation.md", "made.npz"):
            Path(made).unlink()


def test_user_without_a_home(sets, monkeypatch, capsys):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert call("--samples=samples", "--reference=reference", "--features=pixels") == 0
    assert "features are not remembered: this user has no home" in capsys.readouterr().err


def test_what_is_said_about_weights_reaches_the_tokenizer(sets, capsys):
    args = ["--images=samples", "--image_size=16", "--features=pixels"]
    assert call(TOKENIZER, *args, "--weights=ema") == 1
    assert "--weights=ema" in capsys.readouterr().err


def test_reference_is_cropped_and_jpegs_are_named(tmp_path, sets):
    write_folder(tmp_path / "big" / "a", pictures(3, 20, size=40), "jpg")
    write_folder(tmp_path / "big" / "b", pictures(4, 20, size=32))
    assert call("--samples=samples", "--reference=big", "--features=pixels") == 0
    reference = result()["protocol"]["reference"]
    assert reference["count"] == 40 and reference["format"] == "JPEG and PNG"


def test_statistics(sets, capsys):
    """Written once, used again; they know what they were made with."""
    args = ["--features=random", "--cache="]
    assert call("--samples=samples", "--reference=reference", *args) == 0
    direct = result()["metrics"]
    save = ["--reference=reference", "--image_size=16", "--save_statistics=made/statistics.npz"]
    assert call(*save, *args) == 0
    assert call("--samples=samples", "--reference=made/statistics.npz", *args) == 0
    assert result()["metrics"] == direct
    assert "center crop" in result()["protocol"]["reference"]["resize"]
    capsys.readouterr()
    assert call("--samples=samples", "--reference=made/statistics.npz", "--features=pixels") == 1
    assert "use the same --features" in capsys.readouterr().err


def test_model_without_touching_the_disk(tmp_path, capsys):
    """The same numbers as from the files that maskgit_pt.sample writes."""
    settings = ["--num_samples=24", "--steps=3", "--seed=5", "--labels=0-9"]
    args = [TRANSFORMER, TOKENIZER, *settings, "--device=cpu", "--threads=1", "--output=written"]
    assert run(sample.main, sample.FLAGS, sample.PROGRAM, sample.USAGE, args) == 0
    write_folder(tmp_path / "reference", pictures(1, 30))
    common = ["--reference=reference", "--features=random", "--batch_size=7"]
    found = []
    for source in (["--samples=written"], ["--samples=written/samples.npz"],
                   [TRANSFORMER, TOKENIZER, *settings]):  # fmt: skip
        assert call(*source, *common) == 0
        found.append(result())
    assert found[0]["metrics"] == found[1]["metrics"] == found[2]["metrics"]
    assert found[0]["protocol"]["samples"]["count"] == 24  # without the grid
    written = found[0]["protocol"]["samples"]
    assert written["labels"] == "classes 0-9 in turn" and written["seed"] == 5
    assert found[1]["protocol"]["samples"] == written | {"name": "samples.npz", "format": "npz"}
    made = found[2]["protocol"]["samples"]
    assert made["labels"] == "classes 0-9 in turn (all)" and made["seed"] == 5
    assert made["settings"]["steps"] == 3
    (tmp_path / "written" / "samples.npz").rename(tmp_path / "alone.npz")
    alone = evaluation.open_source("alone.npz").protocol
    assert alone["labels"] == "classes 0-9" and "seed" not in alone
    model = MaskGIT(load_tiny("transformer"), load_tiny("tokenizer"))
    source = evaluation.ModelSource(model, 24, seed=5, settings={"steps": 3})
    images = Image.open(tmp_path / "written" / "class0003_000013.png")
    np.testing.assert_array_equal(source.read(13, 14)[0], images)


def test_a_tokenizer_is_evaluated_at_its_own_size(tmp_path, capsys):
    write_folder(tmp_path / "images", pictures(2, 12, size=16))
    tokenizer = load_tiny("tokenizer")
    tokenizer.image_size = 16
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    args = ["--tokenizer=tokenizer", "--images=images", "--metrics=psnr"]
    assert call(*args) == 0
    output, own = capsys.readouterr(), result()
    assert own["protocol"]["images"]["size"] == "16 x 16" and "enlarged" not in output.err
    assert call(*args, "--image_size=16") == 0 and result()["metrics"] == own["metrics"]
    capsys.readouterr()
    assert call(*args, "--image_size=32") == 0
    told = "images: the first image is 16 x 16; images are enlarged to 32 px"
    assert told in capsys.readouterr().err
    tokenizer.image_size = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert call(*args) == 1
    assert "--image_size says it" in capsys.readouterr().err


def test_tokenizer(tmp_path):
    images = pictures(2, 12, size=24)
    write_folder(tmp_path / "images", images)
    args = [TOKENIZER, "--images=images", "--features=random", "--batch_size=5"]
    assert call(*args, "--image_size=16") == 0
    found = result()["metrics"]
    assert list(found) == [
        "random_reconstruction_frechet_distance", "psnr", "ssim", "codebook_usage", "perplexity",
    ]  # fmt: skip
    cropped = evaluation.open_source("images", 16).read(0, 12)
    tokenizer = load_tiny("tokenizer")
    originals = torch.from_numpy(cropped).permute(0, 3, 1, 2)
    tokens = tokenizer.encode_to_indices(originals / 255)
    with torch.no_grad():
        rebuilt = tokenizer.decode_from_indices(tokens).clamp(0, 1)
    rebuilt = (rebuilt * 255).round().byte()
    psnr = reconstruction.psnr(rebuilt, originals).mean().item()
    assert found["psnr"] == pytest.approx(psnr, rel=1e-4)
    counts = np.bincount(tokens.flatten(), minlength=32)
    assert found["codebook_usage"] == (counts > 0).mean()
    direct = evaluation.evaluate(
        rebuilt.permute(0, 2, 3, 1).numpy(), cropped, features="random", metrics=["fid"]
    )
    assert direct.metrics["random_frechet_distance"] == pytest.approx(
        found["random_reconstruction_frechet_distance"], rel=1e-3
    )
    assert call(*args, "--image_size=16", "--metrics=psnr,codebook_usage", "--num_samples=6") == 0
    assert set(result()["metrics"]) == {"psnr", "codebook_usage"}
    assert result()["protocol"]["images"]["count"] == 6


def test_tokenizer_in_training_stays_so():
    tokenizer = load_tiny("tokenizer").train()
    found = evaluation.evaluate_tokenizer(tokenizer, pictures(2, 8), features="pixels")
    assert tokenizer.training and "pixels_reconstruction_frechet_distance" in found.metrics


def test_cache_is_used_and_noticed(sets, tmp_path, monkeypatch):
    calls = []
    original = extraction.extract
    monkeypatch.setattr(
        "train.evaluation.context.extract", lambda *a, **k: calls.append(a) or original(*a, **k)
    )
    args = ["--samples=samples", "--reference=reference", "--features=random", "--cache=remembered"]
    assert call(*args) == 0
    first = result()
    assert len(calls) == 2
    assert call(*args) == 0
    assert result() == first and len(calls) == 2
    os.rename("samples", "moved")  # the content counts
    assert call("--samples=moved", *args[1:]) == 0 and len(calls) == 2
    Image.fromarray(255 - sets[0][7]).save("moved/0007.png")
    assert call("--samples=moved", *args[1:]) == 0 and len(calls) == 3
    assert result()["metrics"] != first["metrics"]
    assert call("--samples=moved", *args[1:-2], "--features=pixels", args[-1]) == 0
    assert len(calls) == 5
    for path in (tmp_path / "remembered").iterdir():
        path.write_bytes(path.read_bytes()[:50])  # damaged: made again
    assert call("--samples=moved", *args[1:]) == 0 and len(calls) == 7
    assert not [p for p in (tmp_path / "remembered").iterdir() if p.suffix != ".npy"]


def test_three_processes(sets, tmp_path):
    """Three processes give the numbers of one; NumPy's own threads may change a last digit."""
    args = ["--samples=samples.npz", "--reference=reference", "--features=random", "--threads=1"]
    args += ["--device=cpu", "--batch_size=8", "--cache="]
    assert call(*args, "--output=one") == 0
    argv = [*args, "--output=three"]
    group = processes.run(evaluate.cli, argv, logs=tmp_path / "logs", count=3)
    three, one = (json.load(open(f"{name}/evaluation.json")) for name in ("three", "one"))
    assert three.pop("metrics") == pytest.approx(one.pop("metrics"), rel=1e-9)
    assert three == one
    assert group.text().count("| samples.npz |") == 1


def test_bad_input(sets, tmp_path, capsys):
    """One line on standard error that names the file and says what is accepted."""

    def error(*args: str, code: int = 1) -> str:
        capsys.readouterr()
        assert call("--features=random", *args) == code
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("maskgit-evaluate: error: ")
        return lines[0]

    good = ["--samples=samples", "--reference=reference"]
    assert "unknown; accepted: fid, inception_score" in error(*good, "--metrics=kad")
    assert "missing" in error("--reference=reference", code=2)
    assert "--steps belongs to --model" in error(*good, "--steps=3", code=2)
    assert "--splits does not go with --images" in error(
        TOKENIZER, "--images=samples", "--splits=3", code=2
    )
    assert "needs --tokenizer" in error("--images=samples", code=2)
    assert "exclude each other" in error(*good, TRANSFORMER, code=2)
    assert "nowhere: no such" in error("--samples=nowhere", good[1])
    assert "nowhere.npz: no such file" in error(good[0], "--reference=nowhere.npz")
    assert "100 were asked for" in error(*good, "--num_samples=100")
    assert "3 nearest neighbours need more samples than that; found 3" in error(
        *good, "--num_samples=3", "--metrics=recall"
    )
    assert "10 splits needs as many images; found 9" in error(*good, "--num_samples=9")
    assert "needs a reference" in error(good[0], "--metrics=fid")
    (tmp_path / "empty").mkdir()
    assert "empty: no images; accepted: PNG or JPEG files" in error("--samples=empty", good[1])
    Image.fromarray(pictures(0, 1, size=20)[0]).save("samples/9999.png")
    assert "9999.png is 20 x 20, the first image 16 x 16" in error(*good)
    (tmp_path / "samples" / "9999.png").write_bytes(b"no picture")
    assert "9999.png: not an image" in error(*good)

    npz = ["--samples=bad.npz", good[1]]
    np.savez("bad.npz", np.array([{}, []], dtype=object))
    assert "arr_0 has dtype object" in error(*npz)
    np.savez("bad.npz", np.zeros((9, 16, 16, 3)))
    assert "accepted: uint8 [N, H, W, 3]" in error(*npz)
    np.savez("bad.npz", np.zeros((9, 3, 16, 16), np.uint8))
    assert "accepted: uint8 [N, H, W, 3]" in error(*npz)
    np.savez("bad.npz", other=np.zeros(3))
    assert "no array arr_0 in it; found other" in error(*npz)
    assert "found other; accepted: an ADM reference batch" in error(good[0], "--reference=bad.npz")
    np.savez("bad.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert "go with --features=inception" in error(good[0], "--reference=bad.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK no zip")
    assert "bad.npz: not an npz file" in error(*npz)
    data = io.BytesIO()
    np.savez_compressed(data, pictures(0, 50))
    broken = bytearray(data.getvalue())
    broken[len(broken) // 2] ^= 255
    (tmp_path / "bad.npz").write_bytes(broken)
    assert "bad.npz: arr_0 is damaged" in error(*npz)
    np.savez("bad.npz", pictures(0, 20, size=8))
    os.remove("samples/9999.png")
    assert "those of bad.npz 8 x 8" in error(good[0], "--reference=bad.npz")
    assert "multiples of 4" in error(TOKENIZER, "--images=samples", "--image_size=14")
    assert "--lpips_weights is 'x'" in error(
        TOKENIZER, "--images=samples", "--image_size=16", "--lpips_weights=x"
    )


def test_missing_weights_say_where_they_come_from(sets, capsys, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", "hub")
    args = ["--samples=samples", "--reference=reference"]
    assert call(*args) == 1
    text = capsys.readouterr().err
    assert "https://github.com/toshas/torch-fidelity/releases" in text
    assert "--inception_weights=FILE" in text
    torch.save({"a": torch.zeros(1)}, "other.pth")
    assert call(*args, "--inception_weights=other.pth") == 1
    assert "other.pth: not the weights of Inception v3" in capsys.readouterr().err
    with open("code.pth", "wb") as file:
        pickle.dump(print, file)
    assert call(*args, "--inception_weights=code.pth") == 1
    assert "code.pth: not a PyTorch state dict" in capsys.readouterr().err


def test_help(capsys):
    assert call("--help") == 0
    text = capsys.readouterr().out
    for name in evaluate.FLAGS:
        assert f"--{name}" in text


def test_tokenizer_of_small_pictures():
    """What cannot be had is left out, unless it is asked for."""
    tokenizer = load_tiny("tokenizer")
    images = pictures(2, 8, size=8)
    found = evaluation.evaluate_tokenizer(tokenizer, images, features="pixels").metrics
    assert "psnr" in found and "ssim" not in found
    with pytest.raises(ValueError, match=r"SSIM needs images of 11 pixels or more; found \[8, 8\]"):
        evaluation.evaluate_tokenizer(tokenizer, images, metrics=["ssim"])


def test_few_samples_are_told(sets, capsys):
    """50 samples of 192 features: the distance is too large, and that is said; 250 samples are enough."""
    samples, reference = sets
    with pytest.warns(
        UserWarning, match="of 50 samples, fewer than their 192 features, is too large"
    ):
        evaluation.evaluate(samples, reference, features="pixels")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation.evaluate(np.tile(samples, (5, 1, 1, 1)), reference, features="pixels")
