"""The VQGAN of Besnier & Chen against vectors from their code; and both their networks as `MaskGIT`."""

import numpy as np
import pytest
import torch
from recorded import GOLDEN, assert_close

import convert
from convert import rules
from maskgit_pt import MaskGIT
from maskgit_pt.configs import taming_vqgan_config
from maskgit_pt.nets.taming_vqgan import TamingVQGAN

PTH = GOLDEN / "besnier" / "tiny_maskgit.pth"
FLOAT32 = 2e-5  # the order of additions, which threads and CPUs change, moves images by 5e-6


@pytest.fixture
def vqgan(foreign_files) -> TamingVQGAN:
    model_type, config, state = convert.load_checkpoint(foreign_files / "besnier" / "vqgan")
    model = rules.build(model_type, config)
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture
def recorded() -> dict:
    with np.load(GOLDEN / "besnier" / "vqgan_vectors.npz") as file:
        return dict(file)


def in_unit_range(images: np.ndarray) -> torch.Tensor:
    """[-1, 1], as recorded, -> [0, 1], as every method takes and returns."""
    return (torch.from_numpy(images) + 1) / 2


@pytest.mark.parametrize("size", ["", "large_"])
def test_recorded_vectors(vqgan, recorded, size):
    images = in_unit_range(recorded[size + "image"])
    with torch.no_grad():
        outer = vqgan.encoder(2 * images - 1)
        quantized, result = vqgan.encode(images)
        indices = vqgan.encode_to_indices(images)
        decoded = vqgan.decode_from_indices(indices)
        assert_close(outer, recorded[size + "encoder_output"], FLOAT32, "encoder")
    assert_close(
        result["raw"], recorded[size + "before_quantizer"], FLOAT32, "before the quantizer"
    )
    assert np.array_equal(indices.flatten().numpy(), recorded[size + "indices"])
    assert torch.equal(indices, result["encoding_indices"])
    assert_close(quantized, recorded[size + "codebook_rows"], 0, "codes")
    assert_close(2 * decoded - 1, recorded[size + "decoded_from_indices"], FLOAT32, "image")
    assert_close(
        2 * vqgan.decode(quantized) - 1, recorded[size + "decoded_from_quantized"], FLOAT32
    )
    assert torch.equal(vqgan(images), vqgan.decode(quantized))
    vqgan.train()
    loss = vqgan.encode(images)[1]["quantizer_loss"]
    assert_close(loss, recorded[size + "quantizer_loss"], 1e-6, "loss")


def test_images_of_the_recorded_sampling_runs(vqgan):
    """Whole runs of their sampler end in these images; `test_samplers_besnier` has the codes."""
    runs = sorted((GOLDEN / "besnier").glob("sample_*.npz"))
    assert len(runs) == 18
    for run in runs:
        with np.load(run) as file:
            code, image = torch.from_numpy(file["final_code"]).long(), file["image"]
        with torch.inference_mode():
            ours = 2 * vqgan.decode_from_indices(code.clamp(0, 31)) - 1
        assert_close(ours, image, FLOAT32, run.name)


@pytest.mark.parametrize("size", ["", "large_"])
def test_float64(vqgan, recorded, size):
    """Without rounding to speak of: what float32 leaves open is seen here."""
    model = vqgan.double()
    images = (torch.from_numpy(recorded[size + "image"]).double() + 1) / 2
    with torch.inference_mode():
        features, decoded = model.encoder(2 * images - 1), 2 * model(images) - 1
    assert_close(features, recorded[size + "encoder_output_float64_compute"], 1e-12)
    assert_close(decoded, recorded[size + "decoded_from_indices_float64_compute"], 1e-12)


def test_gradient_passes_straight_through(vqgan, recorded):
    vqgan.train()
    images = in_unit_range(recorded["image"][:1]).requires_grad_()
    vqgan(images).sum().backward()
    assert images.grad.abs().max() > 0


def test_attention_is_where_the_nominal_side_says():
    model = TamingVQGAN(
        num_codes=8, embed_dim=4, z_channels=4, resolution=64, channels=32,
        channel_multipliers=(1, 1, 1), num_res_blocks=1, attention_resolutions=(16, 32),
    )  # fmt: skip
    assert [len(level.attn) for level in model.encoder.down] == [0, 1, 1]
    assert [len(level.attn) for level in model.decoder.up] == [0, 2, 2]
    assert model.downsampling == 4
    assert model(torch.rand(1, 3, 8, 16)).shape == (1, 3, 8, 16)
    with pytest.raises(ValueError, match="33 channels cannot have 32 groups"):
        TamingVQGAN(channels=33)


def test_configuration():
    with torch.device("meta"):
        model = taming_vqgan_config.build(taming_vqgan_config.get_config())
        assert TamingVQGAN.from_config(model.to_config()).to_config() == model.to_config()
    assert sum(parameter.numel() for parameter in model.parameters()) == 72_141_699
    assert taming_vqgan_config.tree(model.to_config()) == taming_vqgan_config.get_config().to_dict()
    with pytest.raises(ValueError, match="no model.params.ddconfig of a VQGAN: KeyError 'model'"):
        taming_vqgan_config.arguments({})


def test_folder_there_and_back(vqgan, tmp_path):
    vqgan.save_pretrained(tmp_path / "a")
    again = TamingVQGAN.from_pretrained(tmp_path / "a")
    assert again.to_config() == vqgan.to_config()
    state = again.state_dict()
    assert all(torch.equal(state[key], value) for key, value in vqgan.state_dict().items())


@pytest.fixture
def folders(tmp_path, foreign_files):
    """Both networks, converted."""
    convert.convert(PTH, tmp_path / "transformer", num_heads=4)
    convert.convert(foreign_files / "besnier" / "vqgan", tmp_path / "tokenizer")
    return tmp_path


def test_maskgit_of_besnier_and_chen(folders, recorded, foreign_files):
    model = MaskGIT.from_pretrained(folders / "transformer", folders / "tokenizer")
    assert (model.num_codes, model.num_classes, model.image_size) == (32, 10, 16)
    settings = {"sampler": "confidence", "steps": 4, "guidance": 3.0, "softmax_temperature": 1.0}
    result = model.generate([1, 2, 9], **settings)
    assert result.images.shape == (3, 3, 16, 16) and result.tokens.shape == (3, 4, 4)
    assert result.images.min() >= 0 and result.images.max() <= 1 and result.images.std() > 0.05
    with torch.inference_mode():
        again = model.tokenizer.decode_from_indices(result.tokens).clamp(0, 1)
    assert torch.allclose(result.images, again, atol=1e-5)
    # Both in one folder, as `save_pretrained` makes it, and Google's sampler.
    assert torch.equal(
        MaskGIT.from_pretrained(folders).generate([1, 2, 9], **settings).tokens, result.tokens
    )
    assert model.generate([0], steps=4).tokens.shape == (1, 4, 4)
    # The files as they are: of the transformer's heads they say nothing.
    as_is = MaskGIT.from_pretrained(PTH, foreign_files / "besnier" / "vqgan")
    assert as_is.transformer.to_config()["num_attention_heads"] == 16
    # The recorded images lie in [-1, 1]; ours in [0, 1].
    images = in_unit_range(recorded["image"])
    rebuilt = model.reconstruct(images)
    assert np.array_equal(rebuilt.tokens.flatten().numpy(), recorded["indices"])
    expected = in_unit_range(recorded["decoded_from_indices"]).clamp(0, 1)
    assert_close(rebuilt.images, expected.numpy(), 1e-5)
    picture = (np.random.default_rng(0).random((20, 40, 3)) * 255).astype(np.uint8)
    edited = model.edit(picture, [3], box=(4, 4, 8, 8))
    assert edited.images.shape == (1, 3, 20, 40)
    outside = torch.from_numpy(picture[:, -8:]).permute(2, 0, 1) / 255
    assert torch.equal(edited.images[0, :, :, -8:], outside)


def test_networks_that_do_not_fit(folders):
    with pytest.raises(ValueError, match="the transformer has 32 codes, the tokenizer 64"):
        transformer = MaskGIT.from_pretrained(folders).transformer
        MaskGIT(transformer, TamingVQGAN(64, 4, 4, 16, 32, (1,), 1, ()))


def test_command_line(folders, monkeypatch, capsys):
    from maskgit_pt import sample

    arguments = [
        f"--model={folders / 'transformer'}", f"--tokenizer={folders / 'tokenizer'}", "--labels=1,2",
        "--num_samples=2", "--sampler=confidence", "--steps=4", "--guidance=3", "--threads=1",
        f"--output={folders / 'samples'}",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["sample", *arguments])
    threads = torch.get_num_threads()
    try:
        assert sample.cli() == 0
    finally:
        torch.set_num_threads(threads)
    assert "2 images" in capsys.readouterr().out
    assert np.load(folders / "samples" / "tokens.npy").shape == (2, 4, 4)
