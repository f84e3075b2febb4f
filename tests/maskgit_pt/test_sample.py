"""The sampling command line on the tiny models."""

import numpy as np
import pytest
from PIL import Image
from recorded import load_tiny

from maskgit_pt import sample
from maskgit_pt.command_line import run
from maskgit_pt.inference import ImageNet_class_conditional_generator
from maskgit_pt.libml import jax_random
from maskgit_pt.utils import to_pil


@pytest.fixture
def models(tmp_path):
    load_tiny("transformer").save_pretrained(tmp_path / "model")
    load_tiny("tokenizer").save_pretrained(tmp_path / "tokenizer")
    return [f"--model={tmp_path / 'model'}", f"--tokenizer={tmp_path / 'tokenizer'}"]


def call(*args: str) -> int:
    return run(sample.main, sample.FLAGS, sample.PROGRAM, sample.USAGE, args)


@pytest.mark.parametrize("rng", ["jax", "torch"])
def test_pictures(models, tmp_path, rng, capsys):
    out = tmp_path / "out"
    options = ["--labels=3,7", "--num_samples=2", "--steps=4", f"--rng={rng}", f"--output={out}"]
    assert call(*models, *options, "--device=cpu") == 0
    names = sorted(p.name for p in out.iterdir())
    assert names == [f"class000{c}_0000{i}.png" for c in (3, 7) for i in (0, 1)] + ["grid.png"]
    assert Image.open(out / "class0003_00000.png").size == (16, 16)
    assert Image.open(out / "grid.png").size == (34, 34)
    assert "4 images of 16 px" in capsys.readouterr().out


def test_official_procedure(models, tmp_path):
    """The first class is decoded with the second half of split(PRNGKey(seed)), as in the notebook."""
    out = tmp_path / "out"
    assert call(*models, "--labels=5", "--device=cpu", f"--output={out}") == 0
    generator = ImageNet_class_conditional_generator(
        load_tiny("transformer"), load_tiny("tokenizer")
    )
    _, key = jax_random.split(jax_random.PRNGKey(42))
    images = generator.generate_samples(generator.create_input_tokens_normal(5), key)
    saved = Image.open(out / "class0005_00007.png")
    np.testing.assert_array_equal(saved, to_pil(images[7]))


def test_errors(models, capsys):
    assert call(*models, "--labels=10") == 1
    assert "--labels: '10' is no class; accepted: 0 to 9" in capsys.readouterr().err
    assert call("--model=x") == 2
    assert call(*models, "stray") == 2
    assert call(*models, "--steps=0") == 2
    assert call(models[1].replace("tokenizer", "model", 1), models[1]) == 1
    error = capsys.readouterr().err
    assert "model_type is 'maskgit_vqvae'" in error and "Traceback" not in error
    assert call("--help") == 0
    assert "--choice_temperature" in capsys.readouterr().out


def test_bfloat16(models, tmp_path):
    options = ["--dtype=bfloat16", "--num_samples=1", "--steps=2", f"--output={tmp_path / 'out'}"]
    assert call(*models, "--labels=1", "--device=cpu", *options) == 0
