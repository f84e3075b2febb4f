"""Layers and discriminator against the vectors recorded from the official code."""

import json
import zlib

import numpy as np
import pytest
import torch
from recorded import OFFICIAL, assert_close, golden, nchw, nhwc

from convert import rules
from maskgit_pt.libml import losses
from maskgit_pt.nets import layers
from maskgit_pt.nets.discriminator import BlurPool2D, Discriminator


def test_recorded_layers():
    recorded = golden("layers")
    x = nchw(recorded["x"])
    assert_close(nhwc(layers.dsample(x)), recorded["dsample"], 1e-6)
    assert_close(nhwc(layers.upsample(x)), recorded["upsample"], 0)
    # Recorded over the channels, the last axis there.
    assert_close(nhwc(layers.l2_normalize(x, axis=1)), recorded["l2_normalize"], 1e-6)


def test_pooling_counts_real_cells_only():
    x = torch.ones(1, 1, 3, 3)
    assert (layers.dsample(x) == 1).all()  # Flax's own pooling gives 1/2 and 1/4 at the border
    assert layers.tensorflow_style_avg_pooling(x, (2, 2), (2, 2), "valid").shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="FULL"):
        layers.tensorflow_style_avg_pooling(x, (2, 2), (2, 2), "FULL")


@pytest.mark.parametrize(
    ("size", "window", "stride", "expected"),
    [(8, 4, 2, (1, 1)), (7, 4, 2, (1, 2)), (7, 2, 2, (0, 1)), (5, 3, 1, (1, 1)), (9, 2, 4, (0, 1))],
)
def test_same_padding(size, window, stride, expected):
    assert layers.same_padding(size, window, stride) == expected


def test_batch_norm_tracks_the_biased_variance():
    x = torch.randn(2, 4, 1, 1)
    norm = layers.BatchNorm(4)
    norm.train()(x)
    expected = 0.9 + 0.1 * x.var((0, 2, 3), correction=0)
    torch.testing.assert_close(norm.running_var, expected)


@pytest.mark.parametrize("blur", [True, False])
def test_discriminator(blur, tiny_config):
    recorded = golden(f"discriminator_blur_{blur}")
    shapes = json.loads((OFFICIAL / f"discriminator_params_blur_{blur}.json").read_text())
    flat = {
        path: np.random.default_rng(zlib.crc32(path.encode())).normal(0, 0.05, shape).astype("f4")
        for path, shape in shapes.items()
    }
    tiny_config.discriminator = {"channel_multiplier": 1, "blur_resample": blur}
    model = Discriminator(tiny_config)
    config = {"image_size": 16, "discriminator": tiny_config.discriminator.to_dict()}
    model.load_state_dict(rules.to_torch(flat, "maskgit_discriminator", config))
    images = nchw(recorded["image"])
    assert_close(model(images), recorded["logits"])
    logits, penalty = losses.r1_gradient_penalty(model, images, penalty_cost=10.0)
    assert_close(logits, recorded["logits"])
    assert_close(penalty, recorded["r1_penalty"])
    penalty.backward()  # R1 trains the discriminator: it must reach the weights
    assert model.conv_in.weight.grad.abs().max() > 0


@pytest.mark.parametrize("filter_size", [3, 4, 5, 6, 7])
def test_blur_pool_keeps_a_constant_inside(filter_size):
    out = BlurPool2D(filter_size)(torch.ones(1, 2, 17, 16))
    assert out.shape == (1, 2, 9, 8)
    torch.testing.assert_close(out[..., 3:-3, 3:-3], torch.ones(1, 2, 3, 2))


def test_blur_pool_refuses_other_sizes():
    with pytest.raises(ValueError, match="filter_size is 8"):
        BlurPool2D(8)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_group_norm_is_precise_on_large_maps(memory_format):
    """An error of 1e-5 here changes tokens at 512 pixels; PyTorch's channels-last kernel has 4e-5."""
    torch.manual_seed(0)
    x = torch.randn(1, 64, 256, 256) + 3 * torch.randn(1, 64, 1, 1)
    norm = layers.GroupNorm(64)
    exact = torch.nn.functional.group_norm(x.double(), 32, eps=layers.NORM_EPSILON)
    ours = norm(x.contiguous(memory_format=memory_format))
    assert (ours - exact).abs().max() < 3e-6


def test_activation_overwrites_only_without_gradients():
    x = torch.randn(2, 32, 4, 4)
    before, norm = x.clone(), layers.GroupNorm(32)
    with torch.no_grad():
        ours = layers.norm_and_activate(norm, torch.nn.functional.silu, x)
    assert torch.equal(x, before)
    recorded = layers.norm_and_activate(norm, torch.nn.functional.silu, x)
    torch.testing.assert_close(ours, recorded.detach())
    recorded.sum().backward()
