"""The discriminator's widths: official ones, and those that follow the image's size."""

import ml_collections
import pytest
import torch

from convert import infer, rules
from maskgit_pt.libml import losses
from maskgit_pt.nets.discriminator import Discriminator, widths


def make(image_size: int, multiplier: int = 1, rule: str | None = "image") -> Discriminator:
    settings = {"channel_multiplier": multiplier, "blur_resample": True}
    settings |= {"width_rule": rule} if rule else {}
    config = ml_collections.ConfigDict({"image_size": image_size, "discriminator": settings})
    torch.manual_seed(0)
    return Discriminator(config)


@pytest.mark.parametrize("size", [4, 8, 32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_official_widths(size, multiplier):
    table = {4: 512, 8: 512, 16: 512, 32: 512} | {
        side: 16384 // side * multiplier for side in (64, 128, 256, 512, 1024)
    }
    wanted = [table[size >> i] for i in range(size.bit_length() - 2)]
    assert widths(size, multiplier) == wanted
    assert (widths(size, multiplier, "image") == wanted) == (size >= 256)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (4, [32]),
        (8, [64, 64]),
        (12, [64, 96]),
        (28, [64, 128, 224]),
        (64, [64, 128, 256, 512, 512]),
    ],
)
def test_widths_follow_the_image(size, wanted):
    assert widths(size, 1, "image") == wanted
    assert widths(size, 3, "image") == [3 * width for width in wanted]


@pytest.mark.parametrize(
    ("size", "rule", "message"),
    [
        (30, "image", "the discriminator: image_size is 30; accepted: multiples of 4, 4 to 1024"),
        (1028, "image", "the discriminator: image_size is 1028"),
        (
            28,
            "official",
            "the discriminator with official widths: image_size is 28; accepted: 4, 8",
        ),
    ],
)
def test_other_sizes_are_refused(size, rule, message):
    with pytest.raises(ValueError, match=message):
        widths(size, 1, rule)


@pytest.mark.parametrize("size", [28, 36])
def test_r1_of_any_multiple_of_four(size):
    """The penalty is that of the plain gradient, and every weight gets a gradient of it."""
    model = make(size).double()
    assert sum(p.numel() for p in model.parameters()) < 7e6  # 21.5 million with official widths
    images = torch.rand(2, 3, size, size, dtype=torch.float64)
    logits, penalty = losses.r1_gradient_penalty(model, images, 10.0)
    assert logits.shape == (2, 1)
    images.requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(images).sum(), images)
    norms = gradient.square().sum((1, 2, 3))
    assert penalty.item() == pytest.approx(10.0 * norms.mean().item(), rel=1e-6)
    penalty.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n != "dense1.bias")


@pytest.mark.parametrize(("size", "multiplier"), [(28, 1), (8, 2), (32, 1)])
def test_conversion_knows_the_widths(size, multiplier):
    model = make(size, multiplier)
    config = {
        "image_size": size,
        "discriminator": {"channel_multiplier": multiplier, "blur_resample": True, "width_rule": "image"},
    }  # fmt: skip
    flat = rules.to_official(model.state_dict(), "maskgit_discriminator", config)
    model_type, found = infer.infer_config(flat)
    assert (model_type, found) == ("maskgit_discriminator", config)
    back = rules.to_torch(flat, model_type, found)
    assert all(torch.equal(value, back[name]) for name, value in model.state_dict().items())
