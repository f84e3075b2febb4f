"""The sampling command line on the tiny models."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from recorded import GOLDEN, OFFICIAL, load_tiny

from maskgit_pt import MaskGIT, sample
from maskgit_pt import files as files_lib
from maskgit_pt.command_line import run
from maskgit_pt.inference import ImageNet_class_conditional_generator
from maskgit_pt.launch import Processes
from maskgit_pt.libml import jax_random
from maskgit_pt.sample_folder import Sample, SampleFolder

MODELS = [
    f"--model={OFFICIAL / 'tiny_transformer_checkpoint'}",
    f"--tokenizer={OFFICIAL / 'tiny_tokenizer_checkpoint'}",
]
PHOTO = f"--edit={GOLDEN / 'photo.jpg'}"


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def call(*args: str) -> int:
    args = [*MODELS, "--device=cpu", *args]
    return run(sample.main, sample.FLAGS, sample.PROGRAM, sample.USAGE, args)


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files(tmp_path, capsys):
    assert call("--labels=3,7", "--num_samples=5", "--steps=4", f"--output={tmp_path}") == 0
    samples = [(3, 0), (7, 1), (3, 2), (7, 3), (3, 4)]
    pictures = {f"class000{label}_00000{index}.png" for label, index in samples}
    extra = {"grid.png", "samples.npz", "tokens.npy", "settings.json"}
    assert set(files(tmp_path)) == pictures | extra
    assert Image.open(tmp_path / "grid.png").size == (3 * 98 - 2, 2 * 98 - 2)
    with np.load(tmp_path / "samples.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.shape == (5, 16, 16, 3) and images.dtype == np.uint8
    assert labels.tolist() == [label for label, _ in samples]
    picture = Image.open(tmp_path / "class0007_000003.png")
    np.testing.assert_array_equal(picture, images[3])
    tokens = np.load(tmp_path / "tokens.npy")
    assert tokens.shape == (5, 4, 4) and tokens.min() >= 0 and tokens.max() < 32
    assert "5 images" in capsys.readouterr().out


def test_grid_of_one_sample_a_class(tmp_path):
    assert call("--labels=all", "--num_samples=10", "--steps=1", f"--output={tmp_path}") == 0
    assert Image.open(tmp_path / "grid.png").size == (8 * 98 - 2, 2 * 98 - 2)


def test_a_sample_depends_on_its_index_alone(tmp_path):
    """Other batches, an interruption, a larger set, another number of processes: the same bytes."""
    options = ["--labels=1-3", "--steps=5", "--num_samples=7"]
    assert call(*options, "--batch_size=7", f"--output={tmp_path / 'a'}") == 0
    expected = files(tmp_path / "a")
    assert call(*options, "--batch_size=2", f"--output={tmp_path / 'b'}") == 0
    assert files(tmp_path / "b") == expected
    for name in ("class0002_000004.png", "class0001_000000.png", "samples.npz"):
        (tmp_path / "b" / name).unlink()
    assert call(*options, "--batch_size=3", f"--output={tmp_path / 'b'}") == 0
    assert files(tmp_path / "b") == expected
    smaller = ["--labels=1-3", "--steps=5", "--num_samples=2", f"--output={tmp_path / 'c'}"]
    assert call(*smaller) == 0
    assert call(*options, f"--output={tmp_path / 'c'}") == 0
    assert files(tmp_path / "c") == expected
    assert call(*options, "--seed=43", f"--output={tmp_path / 'd'}") == 0
    assert files(tmp_path / "d")["tokens.npy"] != expected["tokens.npy"]


def test_two_processes(tmp_path):
    options = ["--labels=1-3", "--steps=5", "--num_samples=7", "--device=cpu", "--threads=1"]
    assert call(*options, f"--output={tmp_path / 'one'}") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += ["-m", "maskgit_pt.sample", *MODELS, *options, f"--output={tmp_path / 'two'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_finished_samples_are_not_made_again(tmp_path):
    options = ["--labels=1", "--steps=3", "--num_samples=3", f"--output={tmp_path}"]
    assert call(*options) == 0
    path = tmp_path / "class0001_000001.png"
    before = path.stat().st_mtime_ns
    (tmp_path / "class0001_000002.png").unlink()
    assert call(*options) == 0
    assert path.stat().st_mtime_ns == before and (tmp_path / "class0001_000002.png").exists()


def test_what_a_killed_run_left_is_removed(tmp_path):
    options = ["--labels=1", "--steps=3", "--num_samples=2", f"--output={tmp_path}"]
    assert call(*options) == 0
    expected = files(tmp_path)
    for name in (
        ".class0001_000000.png.0123abcd.tmp",
        ".samples.npz.0123abcd.tmp",
        ".class0001_000001_steps.gif.0123abcd.tmp",
    ):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".mine.7.tmp").write_bytes(b"")
    assert call(*options) == 0
    assert files(tmp_path) == expected | {".mine.7.tmp": b""}
    assert (
        call("--labels=2", "--steps=3", "--num_samples=1", "--nonpz", "--overwrite", options[-1])
        == 0
    )
    assert set(files(tmp_path)) == {
        "class0002_000000.png", "grid.png", "tokens.npy", "settings.json", ".mine.7.tmp"
    }  # fmt: skip


def test_official_procedure(tmp_path):
    """PRNGKey(42), one split, batch 8, 16 steps: what the official notebook does."""
    assert call("--labels=5,2", "--rng=jax", f"--output={tmp_path}") == 0
    generator = ImageNet_class_conditional_generator(
        load_tiny("transformer"), load_tiny("tokenizer")
    )
    tokens = np.load(tmp_path / "tokens.npy").reshape(16, -1)
    key = jax_random.PRNGKey(42)
    for batch, label in enumerate((5, 2)):
        key, sample_key = jax_random.split(key)
        inputs = generator.create_input_tokens_normal(label)
        expected = generator.generate_tokens(inputs, sample_key)[:, -1, 1:]
        np.testing.assert_array_equal(tokens[8 * batch : 8 * batch + 8], expected)


def test_part_of_a_jax_batch(tmp_path):
    """Fewer samples than a batch are the first of the whole batch."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert call("--labels=5", "--rng=jax", "--num_samples=8", f"--output={whole}") == 0
    assert call("--labels=5", "--rng=jax", "--num_samples=3", f"--output={part}") == 0
    assert files(part).items() - files(whole).items() == {
        item for item in files(part).items() if not item[0].startswith("class")
    } - {item for item in files(whole).items()}
    np.testing.assert_array_equal(np.load(part / "tokens.npy"), np.load(whole / "tokens.npy")[:3])


@pytest.mark.parametrize(
    "options",
    [
        ["--sampler=confidence", "--schedule=square", "--choice=random", "--guidance=3"],
        ["--sampler=random", "--schedule=cosine"],
        ["--sampler=halton", "--shift", "--guidance=2", "--guidance_schedule=linear-r"],
        ["--sampler=remdm", "--remasking=cap", "--eta=0.1", "--softmax_temperature=0.8"],
        ["--sampler=halton", "--rng=jax", "--partitionable"],
        ["--dtype=bfloat16"],
        ["--noshow_steps", "--nonpz", "--guidance=1", "--guidance_schedule=power-cosine2"],
    ],
)
def test_settings(tmp_path, options):
    assert (
        call("--labels=all", "--num_samples=2", "--steps=6", *options, f"--output={tmp_path}") == 0
    )
    assert (tmp_path / "class0001_000001.png").exists() or "--rng=jax" in options
    assert (tmp_path / "samples.npz").exists() != ("--nonpz" in options)


def test_edit(tmp_path):
    options = ["--labels=4", "--box=450,440,40,60", "--num_samples=2", "--show_steps"]
    assert call(*options, PHOTO, f"--output={tmp_path}") == 0
    original = np.array(Image.open(GOLDEN / "photo.jpg").convert("RGB"))
    edited = np.array(Image.open(tmp_path / "class0004_000001.png"))
    changed = (edited != original).any(-1)
    assert edited.shape == original.shape and changed[450:490, 440:500].mean() > 0.9
    assert not changed[:, :100].any() and not changed[:100].any()
    with Image.open(tmp_path / "class0004_000001_steps.gif") as animation:
        assert 1 < animation.n_frames <= 10  # steps 2 to 11; equal frames are one
    assert Image.open(tmp_path / "class0004_000001_steps.png").size == (10 * 98 - 2, 2 * 98 - 2)


def test_edit_with_mask_and_extension(tmp_path):
    mask = np.zeros((512, 512), np.uint8)
    mask[100:140, 200:220] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    options = ["--labels=4", "--num_samples=1", PHOTO]
    out = tmp_path / "masked"
    assert call(*options, f"--mask={tmp_path / 'mask.png'}", f"--output={out}") == 0
    assert Image.open(out / "class0004_000000.png").size == (512, 512)
    out = tmp_path / "extended"
    assert call(*options, "--extend=0,64,0,32", f"--output={out}") == 1  # wider than the square
    assert call(*options, "--extend=0,64,0,0", f"--output={out}") == 0
    assert Image.open(out / "class0004_000000.png").size == (576, 512)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--labels=10"], 1, "--labels: label '10' is outside the classes; accepted: ids 0 to 9"),
        (["--labels=lorikeet"], 1, "10 classes"),
        (["--labels="], 1, "--labels: the list of labels is empty"),
        (["--steps=0"], 2, "--steps"),
        (["--steps=17"], 1, "steps is 17; accepted: 1 to 16, the number of tokens"),
        (["--schedule=sine"], 1, "'sine'"),
        (["--sampler=halton", "--choice_temperature=1"], 1, "has no choice_temperature"),
        (["--guidance=1", "--guidance_schedule=rising"], 1, "guidance schedule is 'rising'"),
        (["--softmax_temperature=0"], 1, "softmax_temperature is 0.0; accepted: above 0"),
        (["--softmax_temperature=inf"], 1, "softmax_temperature is inf"),
        (["--guidance=nan"], 1, "guidance is nan; accepted: 0 or more"),
        (["--choice_temperature=nan"], 1, "choice_temperature is nan; accepted: 0 or more"),
        (["--schedule=pow-1"], 1, "mask schedule is 'pow-1'"),
        (["--device=cuda:99"], 1, "--device=cuda:99 cannot be used here"),
        (["--device=abacus"], 1, "--device=abacus cannot be used here"),
        (["--device=meta"], 1, "--device=meta cannot be used here"),
        (["--threads=100000"], 1, "threads is 100000; accepted: a whole number, 1 to 1024"),
        (["--output="], 1, "--output is empty; accepted: a folder"),
        (["--model="], 1, "the name of a model is empty"),
        (["--num_codes=5"], 1, "num_codes is 5, but the tokenizer has 32 codes"),
        ([PHOTO, "--labels=1", "--box=--5,0,1,1"], 1, "box is '--5,0,1,1'; accepted: top,left"),
        ([PHOTO, "--labels=1", "--box=\u00b2,0,1,1"], 1, "; accepted: top,left,height,width"),
        ([PHOTO, "--labels=1", "--extend=\u00b2,0,1,1"], 1, "; accepted: top,right,bottom,left"),
        ([PHOTO, "--labels=1", f"--extend={'9' * 30},0,0,0"], 1, "; accepted: top,right,bottom"),
        ([PHOTO, "--labels=1", "--extend=999999999,0,0,0"], 1, "; accepted: at most 178,"),
        ([PHOTO, "--labels=1", "--extend=-1,0,0,0"], 1, "a margin is -1; accepted: a whole number"),
        (["--box=1,2,3,4"], 2, "belong to --edit"),
        ([PHOTO, "--labels=1"], 2, "--edit needs one of"),
        ([PHOTO, "--box=1,2,3,4"], 2, "--edit needs --labels"),
        ([PHOTO, "--labels=1", "--box=0,0,513,10"], 1, "outside the picture of 512 x 512"),
        ([PHOTO, "--labels=1", "--box=0,0,5"], 1, "top,left,height,width"),
        ([PHOTO, "--labels=1", "--extend=1,2"], 1, "--extend is '1,2'"),
        ([PHOTO, "--labels=1", "--extend=0,0,0,0"], 1, "0 or more, not all 0"),
        (["--edit=no.png", "--labels=1", "--box=0,0,5,5"], 1, "no.png"),
        (["--partitionable"], 2, "--rng=jax"),
        (["--model=/no/such"], 1, "/no/such: no such folder"),
        (["--output=/dev/null/x"], 1, "--output=/dev/null/x: Not a directory"),
        (["stray"], 2, "stray"),
    ],
)
def test_errors(tmp_path, monkeypatch, capsys, options, code, message):
    monkeypatch.chdir(tmp_path)
    assert call(*options) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


def test_wrong_mask_and_other_settings(tmp_path, capsys):
    Image.new("L", (10, 20)).save(tmp_path / "small.png")
    Image.new("L", (512, 512)).save(tmp_path / "black.png")
    for name, message in (("small", "20 x 10 pixels"), ("black", "selects nothing")):
        assert (
            call(PHOTO, "--labels=1", f"--mask={tmp_path / name}.png", f"--output={tmp_path}") == 1
        )
        assert message in capsys.readouterr().err
    out = [f"--output={tmp_path / 'out'}", "--num_samples=1", "--labels=1"]
    assert call(*out, "--steps=3") == 0
    capsys.readouterr()
    assert call(*out, "--steps=4") == 1
    assert "steps is 3 there and 4 now" in capsys.readouterr().err
    assert call(*out, "--steps=4", "--overwrite") == 0
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["steps"] == 4


def test_model_and_tokenizer_of_different_resolution(tiny_tokenizer):
    """Told from the configuration, not from the name of a file."""
    from maskgit_pt.network_pair import check_resolution

    def check(size, name, trained=None):
        both = SimpleNamespace(image_size=size, tokenizer=tiny_tokenizer)
        both.transformer = SimpleNamespace(image_size=trained)
        check_resolution(both, "model", name)

    check(256, "tokenizer512_from_256")
    with pytest.raises(ValueError, match="model: .* trained on images of 512 px"):
        check(256, "tok", trained=512)
    tiny_tokenizer.to_config = lambda: {"vqvae": {"pixels": 512}}
    with pytest.raises(ValueError, match="tok: its configuration says .* for 512 px"):
        check(256, "tok")
    check(512, "tok")


def test_help(capsys):
    assert call("--help") == 0
    assert "--guidance_schedule" in capsys.readouterr().out


def test_out_of_memory(tmp_path, monkeypatch, capsys):
    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

    monkeypatch.setattr("maskgit_pt.pipeline.MaskGIT.sample", exhausted)
    assert call("--labels=1", f"--output={tmp_path}") == 1
    assert "--batch_size=8: cpu is out of memory" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["settings.json"]


def test_on_a_cpu_images_appear_one_by_one(tmp_path, monkeypatch):
    """Each is there before the next is begun, and the bar has moved with every step."""
    found, steps = [], []
    sample_one = MaskGIT.sample

    def watched(self, labels, *others, on_step, **more):
        found.append(len(list(tmp_path.glob("class*.png"))))
        counted = lambda state: steps.append(len(state.guess)) or on_step(state)  # noqa: E731
        return sample_one(self, labels, *others, on_step=counted, **more)

    monkeypatch.setattr(MaskGIT, "sample", watched)
    assert call("--labels=1", "--num_samples=4", "--steps=3", f"--output={tmp_path}") == 0
    assert len(found) == 4 and found[-1] >= 2  # written beside the computation
    assert steps == [1] * 12


def test_a_second_equal_command_waits_or_is_refused(tmp_path, capsys, monkeypatch):
    """While one makes samples in a folder no other one does."""
    monkeypatch.setattr(sample, "PATIENCE", 0.2)
    options = ["--labels=1", "--steps=2", "--num_samples=1", f"--output={tmp_path}"]
    with files_lib.hold_folder(tmp_path, "making samples"):
        assert call(*options) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}: another process is making samples there" in error and "--output" in error
    assert not os.listdir(tmp_path)
    assert call(*options) == 0


def test_a_smaller_number_keeps_the_set_whole(tmp_path, capsys):
    """The count in the folder and in the files about all of them agree."""
    options = ["--labels=1-3", "--steps=2", f"--output={tmp_path}"]
    assert call(*options, "--num_samples=5") == 0
    expected = files(tmp_path)
    capsys.readouterr()
    (tmp_path / "class0002_000001.png").unlink()
    assert call(*options, "--num_samples=2") == 0
    assert "holds 5 images already" in capsys.readouterr().out
    assert files(tmp_path) == expected


def test_nothing_of_others_is_replaced(tmp_path, capsys):
    """Not a model, a run, settings of another program, or images that this program did not make."""
    model, run_, foreign = tmp_path / "model", tmp_path / "run", tmp_path / "foreign"
    load_tiny("transformer").save_pretrained(model / "transformer")
    (run_ / "checkpoints").mkdir(parents=True)
    foreign.mkdir()
    cases = [
        (model, "transformer/model.safetensors", "a model"),
        (run_, "checkpoints", "a training run"),
    ]
    options = ["--labels=1", "--steps=2", "--num_samples=1"]
    for folder, name, what in cases:
        before = sorted(folder.rglob("*"))
        for more in ([], ["--overwrite"]):
            assert call(*options, f"--output={folder}", *more) == 1
            assert f"holds {what} ({name})" in capsys.readouterr().err
        assert sorted(folder.rglob("*")) == before
    for name in ("grid.png", "samples.npz", "class0001_000000.png", "settings.json"):
        (foreign / name).write_text('{"theme": "dark"}')
        assert call(*options, f"--output={foreign}") == 1
        error = capsys.readouterr().err
        assert f"holds {name}" in error and "--overwrite" in error
        assert files(foreign) == {name: b'{"theme": "dark"}'}
        (foreign / name).unlink()


def test_a_killed_run_without_an_image_binds_nothing(tmp_path):
    options = ["--labels=1", "--steps=2", "--num_samples=1", f"--output={tmp_path}"]
    assert call(*options, "--dtype=bfloat16") == 0
    for path in tmp_path.glob("*"):
        if path.name != "settings.json":
            path.unlink()
    assert call(*options, "--dtype=float32") == 0


def test_finishing_decodes_each_image_once(tmp_path, monkeypatch):
    """Tokens are read without decoding any, and three processes share the images."""
    options = ["--labels=1-3", "--steps=2", "--num_samples=7", f"--output={tmp_path}"]
    assert call(*options) == 0
    expected = files(tmp_path)
    folder = SampleFolder.__new__(SampleFolder)
    folder.folder, folder.processes = tmp_path, Processes()
    samples = [Sample(i, 1 + i % 3) for i in range(7)]
    loaded = []
    decode = PngImagePlugin.PngImageFile.load

    def counted(self):
        loaded.append(self.filename if hasattr(self, "filename") else None)
        return decode(self)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", counted)
    for sample_ in samples:
        folder.header(sample_)
    assert loaded == []
    monkeypatch.setattr(SampleFolder, "_save_grid", lambda self, samples: None)
    once = []
    load = SampleFolder.load
    monkeypatch.setattr(SampleFolder, "load", lambda self, s: once.append(s.index) or load(self, s))
    folder.finish(samples)
    assert sorted(once) == [0, *range(7)]  # the first one also for the shape
    monkeypatch.undo()
    assert files(tmp_path) == expected


def test_a_sample_of_another_size(tmp_path, capsys):
    options = ["--labels=1", "--steps=2", "--num_samples=2", f"--output={tmp_path}"]
    assert call(*options) == 0
    path = tmp_path / "class0001_000001.png"
    info = PngImagePlugin.PngInfo()
    for name, text in Image.open(path).text.items():
        info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    assert call(*options) == 1
    error = capsys.readouterr().err
    assert f"{path}: not of this set, remove it: 8 x 8 pixels, where class0001_000000.png" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"threads": "x"}', "threads is 'x'; accepted: a whole number"),
        ('{"threads": -1}', "threads is -1; accepted: a whole number"),
        ("[" * 100000, "settings.json: damaged"),
    ],
)
def test_damaged_settings(tmp_path, capsys, text, message):
    (tmp_path / "settings.json").write_text(text)
    models = [*MODELS, "--device=cpu", f"--output={tmp_path}"]
    assert run(sample.main, sample.FLAGS, sample.PROGRAM, sample.USAGE, models) == 1
    assert message in capsys.readouterr().err


def test_damaged_sample(tmp_path, capsys):
    options = ["--labels=1", "--steps=2", "--num_samples=2", f"--output={tmp_path}"]
    assert call(*options) == 0
    path = tmp_path / "class0001_000001.png"
    for data in (path.read_bytes()[:200], b"", b"text"):
        path.write_bytes(data)
        capsys.readouterr()
        assert call(*options) == 1
        error = capsys.readouterr().err
        assert (
            f"{path}: not a sample of this program, remove it" in error and error.count("\n") == 1
        )
