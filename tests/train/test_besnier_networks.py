"""The networks of Besnier & Chen go through every program that Google's go through."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from recorded import GOLDEN

import convert
from convert import rules
from maskgit_pt import command_line
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.nets.taming_vqgan import TamingVQGAN
from maskgit_pt.pretrained import weights_fingerprint
from train import evaluate, sweep, tokenize
from train.data import masking
from train.data.tokens import TokenShards
from train.tasks.masked_tokens import MaskedLoss

RECORDED = GOLDEN / "besnier"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both networks, small, and pictures of two classes."""
    folder, rng = tmp_path_factory.mktemp("besnier"), np.random.default_rng(0)
    torch.manual_seed(0)
    TamingVQGAN(
        32, embed_dim=8, z_channels=8, resolution=16, channels=32, channel_multipliers=(1, 1, 1),
        attention_resolutions=(4,),
    ).save_pretrained(folder / "vqgan")  # fmt: skip
    BesnierTransformer(
        32, num_classes=2, num_tokens=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64,
    ).save_pretrained(folder / "model")  # fmt: skip
    for name in "ab":
        (folder / "images" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    return folder


def call(program, *args: str) -> int:
    args = ["--device=cpu", "--threads=1", *args]
    return command_line.run(program.main, program.FLAGS, program.PROGRAM, program.USAGE, args)


def test_tokenize(folder, tmp_path):
    args = [f"--images={folder / 'images'}", f"--tokenizer={folder / 'vqgan'}", "--image_size=16"]
    assert call(tokenize, *args, f"--output={tmp_path / 'tokens'}", "--workers=0") == 0
    shards = TokenShards.open(tmp_path / "tokens")
    assert (shards.num_images, shards.codebook_size, shards.grid) == (20, 32, (4, 4))


def test_evaluate_and_sweep(folder, tmp_path):
    shared = [f"--tokenizer={folder / 'vqgan'}", "--features=pixels", "--cache="]
    images = f"{folder / 'images'}"
    assert call(evaluate, *shared, f"--images={images}", "--image_size=16",
                f"--output={tmp_path / 'tokenizer'}") == 0  # fmt: skip
    model = [*shared, f"--model={folder / 'model'}", f"--reference={images}", "--num_samples=20"]
    one = ["--sampler=confidence", "--steps=8", "--guidance=3", f"--output={tmp_path / 'one'}"]
    assert call(evaluate, *model, *one) == 0
    assert call(sweep, *model, "--study=best", f"--output={tmp_path / 'sweep'}") == 0
    alone = json.loads((tmp_path / "one" / "evaluation.json").read_text())
    swept = json.loads((tmp_path / "sweep" / "best.json").read_text())
    assert swept["cells"][0]["metrics"] == alone["metrics"]


def test_fingerprint_of_folders_that_are_not_ours(tmp_path):
    """taming's last.ckpt and the like: every file counts."""
    found = set()
    for content in (b"1", b"2"):
        (tmp_path / "last.ckpt").write_bytes(content)
        (tmp_path / "model.yaml").write_text("model:")
        found |= {weights_fingerprint(tmp_path), weights_fingerprint(tmp_path / "last.ckpt")}
    assert len(found) == 4


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(RECORDED / name) as file:
        return dict(file)


def test_recorded_loss_and_gradients():
    """Over all tokens and with the mask among the classes, as their trainer has it; dropout off."""
    model_type, config, state = convert.load_checkpoint(RECORDED / "tiny_maskgit.pth", num_heads=4)
    model = rules.build(model_type, config)
    model.load_state_dict(state)
    inputs, expected = load("transformer_logits.npz"), load("transformer_training.npz")
    code, mask, labels, drop = (
        torch.from_numpy(inputs[name]) for name in ("code", "mask", "labels", "drop_label")
    )
    args = code.flatten(1), mask.flatten(1), torch.where(drop, -1, labels)
    loss = MaskedLoss(model.eval(), 32, label_smoothing=0.1, all_tokens=True)(*args)[0].mean()
    assert abs(loss.item() - expected["loss"]) < 1e-5
    loss.backward()
    for name, parameter in model.named_parameters():
        gradient = expected[f"grad:{name}"]
        error = np.abs(parameter.grad.numpy() - gradient).max() / np.abs(gradient).max()
        assert error < 1e-4, (name, error)
    masked_only = MaskedLoss(model, 32, label_smoothing=0.1, all_tokens=False)(*args)[0]
    assert abs(masked_only.nanmean().item() - expected["loss"]) > 1e-2


@pytest.mark.parametrize("mode", ["linear", "square", "cosine", "arccos"])
def test_recorded_masks(mode):
    """Each token by its own coin; the official cosine is kept from 0 by 1e-6."""
    recorded = load("mask_code.npz")
    ratios = masking.mask_ratios(recorded["r"].astype(np.float64), 16, mode)
    np.testing.assert_allclose(ratios, recorded[f"{mode}/value_to_mask"], atol=2e-6)
    masked = recorded["uniform"] < ratios[:, None, None]
    np.testing.assert_array_equal(masked, recorded[f"{mode}/mask"])
