"""LlamaGen's tokenizer against numbers recorded from the code of Halton-MaskGIT."""

import json

import numpy as np
import pytest
import torch
from halton_files import FOLDER, recorded, tokenizer
from recorded import assert_close

from maskgit_pt.nets.llamagen_vq import LlamaGenVQ
from maskgit_pt.pretrained import without_values

FLOAT32 = 2e-5


@pytest.fixture(scope="module")
def vectors():
    return recorded("vq")


@pytest.fixture(scope="module")
def images(vectors):
    """[-1, 1], as recorded, -> [0, 1], as every method takes and returns."""
    return (torch.from_numpy(vectors["image"]) + 1) / 2


@torch.inference_mode()
def test_float32(vectors, images):
    model = tokenizer()
    codes = torch.from_numpy(vectors["decode.codes"]).long()
    quantized, result = model.encode(images)
    assert_close(result["raw"], vectors["encode.prequant_f32"], FLOAT32)
    assert np.array_equal(result["encoding_indices"].numpy(), vectors["encode.indices"])
    assert torch.equal(model.encode_to_indices(images), result["encoding_indices"])
    assert_close(2 * model.decode_from_indices(codes) - 1, vectors["decode.image_f32"], FLOAT32)
    assert_close(model(images), model.decode(quantized).numpy(), 0)


@torch.inference_mode()
def test_float64(vectors, images):
    model, images = tokenizer().double(), (torch.from_numpy(vectors["image"]).double() + 1) / 2
    quantized, result = model.encode(images)
    assert_close(result["raw"], vectors["encode.prequant_f64"], 1e-12)
    assert_close(quantized, vectors["encode.quant_f64"], 1e-12)
    assert_close(2 * model(images[:1]) - 1, vectors["reconstruct_f64"], 1e-12)
    codes = torch.from_numpy(vectors["decode.codes"]).long()
    rows = model.quantize.decode_ids(codes[:1])
    assert_close(rows, vectors["decode.codebook_entries_f64"], 1e-12)
    assert_close(2 * model.decode_from_indices(codes) - 1, vectors["decode.image_f64"], 1e-12)


@torch.inference_mode()
def test_activations(vectors):
    model, seen = tokenizer().double(), {}

    def keep(module, name):
        module.register_forward_hook(lambda _, args, output: seen.update({name: output}))

    for side, network in (("enc", model.encoder), ("dec", model.decoder)):
        keep(network.conv_in, f"{side}.conv_in")
        for i, level in enumerate(network.conv_blocks):
            for j, block in enumerate(level.res):
                keep(block, f"{side}.res{i}.{j}")
            for j, block in enumerate(level.attn):
                keep(block, f"{side}.attn{i}.{j}")
            for kind in ("down", "up"):
                if hasattr(level, f"{kind}sample"):
                    keep(getattr(level, f"{kind}sample"), f"{side}.{kind}{i}")
        for j, block in enumerate(network.mid):
            keep(block, f"{side}.mid{j}")
    model.encode((torch.from_numpy(vectors["image"]).double() + 1) / 2)
    model.decode_from_indices(torch.from_numpy(vectors["decode.codes"]).long())
    names = {name.removeprefix("act.") for name in vectors if name.startswith("act.")}
    assert len(names) > 20 and names <= seen.keys()
    for name in sorted(names):
        stride = seen[name].shape[-1] // 4
        ours = seen[name][0, ::4, ::stride, ::stride]
        assert_close(ours, vectors[f"act.{name}"], 1e-12, name)


def test_full_size():
    shapes = json.loads((FOLDER / "manifest_vq16.json").read_text())["model"]
    with without_values():
        model = LlamaGenVQ()
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert list(ours.items()) == list(shapes.items()) and len(ours) == 344
    assert sum(parameter.numel() for parameter in model.parameters()) == 71_883_403
    assert model.downsampling == 16


def test_codes_are_compared_by_direction(vectors, images):
    model = tokenizer()
    before = model.encode_to_indices(images)
    image = model.decode_from_indices(before)
    with torch.no_grad():
        model.quantize.embedding.weight *= torch.linspace(0.5, 2, 32)[:, None]
    assert torch.equal(model.encode_to_indices(images), before)
    assert_close(model.decode_from_indices(before), image.detach().numpy(), 1e-5)


def test_training_mode(images):
    model = tokenizer().train()
    images = images[:1].clone().requires_grad_()
    _, result = model.encode(images)
    loss = result["quantizer_loss"]
    assert_close(loss, (result["q_latent_loss"] * 1.25).detach().numpy(), 1e-6)
    (model(images).sum() + loss).backward()
    assert images.grad.abs().max() > 0 and model.quantize.embedding.weight.grad.abs().max() > 0


def test_folder_there_and_back(tmp_path):
    model = tokenizer()
    model.save_pretrained(tmp_path)
    again = LlamaGenVQ.from_pretrained(tmp_path)
    assert again.to_config() == model.to_config()
    state = again.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="GroupNorm of 33 channels cannot have 32 groups"):
        LlamaGenVQ(channels=33)
