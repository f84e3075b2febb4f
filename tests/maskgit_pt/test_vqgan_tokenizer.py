"""The tokenizer against the vectors recorded from the official code, and its own promises."""

import copy
import hashlib

import pytest
import torch
from recorded import assert_close, golden, load_tiny, nchw, nhwc

from maskgit_pt import VQVAE
from maskgit_pt.configs import vqgan_config
from maskgit_pt.libml import jax_random
from maskgit_pt.nets import layers


def flax_rng(key: jax_random.Key, *path: str | int) -> jax_random.Key:
    """The key that Flax's `make_rng` hands out at `path`: module names, then the count of the call."""
    parts = (
        part.encode() if isinstance(part, str) else part.to_bytes((part.bit_length() + 7) // 8)
        for part in path
    )
    return jax_random.fold_in(key, int.from_bytes(hashlib.sha1(b"".join(parts)).digest()[:4]))


@pytest.mark.parametrize("quantizer", ["vq", "gumbel"])
def test_evaluation(quantizer):
    recorded = golden(f"tokenizer_{quantizer}")
    model = load_tiny("tokenizer", quantizer=quantizer)
    images = nchw(recorded["image"])
    indices = torch.from_numpy(recorded["indices"]).long()
    assert torch.equal(model.encode_to_indices(images), indices)
    assert_close(nhwc(model.encoder(images)), recorded["features"])
    quantized, result = model.encode(images)
    assert_close(nhwc(quantized), recorded["quantized"])
    assert torch.equal(result["encoding_indices"], indices)
    assert torch.equal(result["encodings"].argmax(-1), indices)
    assert_close(nhwc(model.decode_from_indices(indices)), recorded["reconstruction"])
    assert_close(nhwc(model(images)), recorded["reconstruction"])


def test_vq_training():
    recorded = golden("tokenizer_vq_train")
    images = nchw(golden("tokenizer_vq")["image"])
    model = load_tiny("tokenizer").train()
    quantized, result = model.encode(images)
    result |= {"quantized": quantized.permute(0, 2, 3, 1), "raw": result["raw"].permute(0, 2, 3, 1)}
    for name, expected in recorded.items():
        assert_close(result[name], expected, name=name)


def test_vq_training_is_straight_through():
    """The decoder's gradient reaches the encoder as if nothing had been quantized."""
    model = load_tiny("tokenizer").train()
    features = torch.randn(2, 8, 4, 4, requires_grad=True)
    quantized, result = model.quantizer(features)
    weight = torch.randn_like(quantized)
    (gradient,) = torch.autograd.grad((quantized * weight).sum(), features, retain_graph=True)
    assert torch.equal(gradient, weight)
    (gradient,) = torch.autograd.grad(result["q_latent_loss"], model.quantizer.codebook)
    assert gradient.abs().max() > 0


def test_gumbel_training():
    recorded = golden("tokenizer_gumbel_train")
    images = nchw(golden("tokenizer_gumbel")["image"])
    model = load_tiny("tokenizer", quantizer="gumbel").train()
    key = flax_rng(jax_random.PRNGKey(5, partitionable=True), "quantizer", 1)
    quantized, result = model.encode(images, tau=0.7, rng=key)
    result["quantized"] = quantized.permute(0, 2, 3, 1)
    for name, expected in recorded.items():
        assert_close(result[name], expected, name=name)


def test_gumbel_training_takes_a_generator():
    images = nchw(golden("tokenizer_gumbel")["image"])
    model = load_tiny("tokenizer", quantizer="gumbel").train()
    first, second = (model.encode(images, rng=torch.Generator().manual_seed(1))[0] for _ in "ab")
    assert torch.equal(first, second)


def test_first_code_wins_ties(tiny_tokenizer):
    codebook = tiny_tokenizer.quantizer.codebook.data
    codebook[7] = codebook[3]
    features = codebook[[7, 3, 5]].T.reshape(1, 8, 1, 3)
    assert tiny_tokenizer.quantizer.encode_ids(features).tolist() == [[[3, 3, 5]]]


def test_control_groupnorm_epsilon_is_noticed(tiny_tokenizer):
    """1e-5 instead of 1e-6 hides in float32 (5e-5) and shows in float64."""
    images = nchw(golden("tokenizer_vq")["image"]).double()
    right_model = tiny_tokenizer.double()
    wrong_model = copy.deepcopy(right_model)
    for module in wrong_model.modules():
        if isinstance(module, layers.GroupNorm):
            module.eps = 1e-5
    difference = (wrong_model.encoder(images) - right_model.encoder(images)).abs().max()
    assert difference > 1e-6


def test_control_plain_shortcut_is_noticed(tiny_tokenizer):
    """A textbook ResNet shortcut, of the block's input, gives other features."""

    def textbook(block, x):
        y = block.conv0(block.activation_fn(block.norm0(x)))
        y = block.conv1(block.activation_fn(block.norm1(y)))
        return y + torch.nn.functional.conv2d(x, block.conv_shortcut.weight[:, : x.shape[1]])

    images = nchw(golden("tokenizer_vq")["image"])
    right = tiny_tokenizer.encoder(images)
    block = next(b for b in tiny_tokenizer.encoder.res_blocks if b.conv_shortcut is not None)
    block.forward = lambda x: textbook(block, x)
    assert (tiny_tokenizer.encoder(images) - right).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(tiny_tokenizer, dtype):
    recorded = golden("tokenizer_vq")
    model = tiny_tokenizer.to(dtype)
    indices = torch.from_numpy(recorded["indices"]).long()
    tolerance = {torch.float64: 1e-5, torch.bfloat16: 0.1}[dtype]
    reconstruction = model.decode_from_indices(indices)
    assert reconstruction.dtype == dtype
    assert_close(nhwc(reconstruction.float()), recorded["reconstruction"], tolerance)
    found = model.encode_to_indices(nchw(recorded["image"]).to(dtype))
    assert (found == indices).float().mean() > (0.99 if dtype == torch.float64 else 0.5)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_export(tiny_tokenizer, part):
    x = torch.rand(2, 3, 16, 16) if part == "encoder" else torch.randn(2, 8, 4, 4)
    module = getattr(tiny_tokenizer, part)
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), module(x))


def test_compile(tiny_tokenizer):
    indices = torch.randint(32, (2, 4, 4))
    compiled = torch.compile(
        tiny_tokenizer.decode_from_indices, backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(indices), tiny_tokenizer.decode_from_indices(indices))


def test_any_multiple_of_the_patch(tiny_tokenizer):
    assert tiny_tokenizer.encode_to_indices(torch.rand(1, 3, 32, 20)).shape == (1, 8, 5)


def test_parameter_count():
    with torch.device("meta"):
        model = VQVAE(vqgan_config.get_config())
    assert sum(p.numel() for p in model.parameters()) == 54_515_587
    assert model.downsampling == 16


def test_initialisation():
    torch.manual_seed(0)
    model = VQVAE(vqgan_config.get_config())
    weight = model.encoder.res_blocks[5].conv1.weight  # [256, 256, 3, 3]
    assert float(weight.detach().std()) == pytest.approx((256 * 9) ** -0.5, rel=0.01)
    assert weight.abs().max() <= 2.01 * (256 * 9) ** -0.5 / 0.87962566
    codebook = model.quantizer.codebook
    limit = (3 / 1024) ** 0.5  # fan in is the number of codes
    assert codebook.abs().max() <= limit
    assert float(codebook.detach().std()) == pytest.approx(limit / 3**0.5, rel=0.01)


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("quantizer", "fsq", "vq, gumbel"),
        ("norm_type", "IN", "BN, LN, GN"),
        ("activation_fn", "gelu", "relu"),
    ],
)
def test_unknown_choice(field, value, accepted):
    config = vqgan_config.get_config()
    config.vqvae[field] = value
    with pytest.raises(ValueError, match=f"{value}.*{accepted}"):
        VQVAE(config)
