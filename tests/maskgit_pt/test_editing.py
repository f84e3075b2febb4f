"""Crops, masks and compositing of pictures of any size."""

import numpy as np
import pytest
import torch

from maskgit_pt import editing
from maskgit_pt.editing import Crop
from maskgit_pt.utils import Bbox


def test_default_settings(tmp_path):
    """What a strategy or a list says of the steps holds for editing as well."""
    assert editing.with_defaults({}) == {"start_step": 2, "steps": 12}
    assert editing.with_defaults({"steps": 2}) == {"start_step": 1, "steps": 2}
    listed = {"guidance": [1.0, 2.0, 3.0, 4.0]}
    assert editing.with_defaults(listed) == listed | {"start_step": 2, "steps": 4}
    file = tmp_path / "strategy.yaml"
    for text, found in (
        ("steps: 4", {"start_step": 2, "steps": 4}),
        ("sampler: halton\nsteps: 4", {"sampler": "halton", "steps": 4}),
    ):
        file.write_text(text)
        assert editing.with_defaults({"strategy": str(file)}) == found
    for steps in (0, "4"):
        with pytest.raises(ValueError, match="steps is .*; accepted: a whole number, 1 or more"):
            editing.with_defaults({"steps": steps})


def test_crop_is_the_largest_square_around_the_mask():
    for shape, box in [((300, 500), Bbox(10, 400, 50, 60)), ((500, 300), Bbox(0, 0, 1, 1))]:
        mask = editing.box_mask(box, shape)
        crop = editing.choose_crop(shape, mask)
        assert crop.size == 300 and crop.top + 300 <= shape[0] and crop.left + 300 <= shape[1]
        assert crop.of(mask).sum() == mask.sum()
    assert (
        editing.choose_crop((300, 500), editing.box_mask(Bbox(0, 240, 9, 20), (300, 500))).left
        == 100
    )


def test_mask_larger_than_any_square():
    mask = editing.box_mask(Bbox(0, 9, 30, 31), (30, 100))
    with pytest.raises(
        ValueError, match="spans 30 x 31 .* the largest square in a picture of 30 x 100"
    ):
        editing.choose_crop((30, 100), mask)
    with pytest.raises(ValueError, match="reaches outside the picture of 30 x 100"):
        editing.box_mask(Bbox(0, 70, 30, 31), (30, 100))


def test_pixel_mask_to_tokens():
    mask = np.zeros((64, 64), bool)
    mask[20, 35] = True  # token (1, 2) of 4 x 4
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0:3, 1:4] = True
    assert torch.equal(editing.pixel_token_mask(mask, Crop(0, 0, 64), 4), expected)


def test_box_tokens_at_the_models_size_are_official():
    """And at another scale those of the scaled box."""
    box = Bbox(64, 32, 128, 144)
    official = torch.zeros(16, 16, dtype=torch.bool)
    official[editing.box_tokens(64, 128, 16, 16), editing.box_tokens(32, 144, 16, 16)] = True
    assert torch.equal(editing.box_token_mask(box, Crop(0, 0, 256), 256, 16), official)
    double = Bbox(128 + 10, 64 + 20, 256, 288)
    assert torch.equal(editing.box_token_mask(double, Crop(10, 20, 512), 256, 16), official)


@pytest.mark.parametrize("size", [7, 100, 255, 300, 512])
def test_box_tokens_at_other_sizes_cover_the_box(size):
    rng = np.random.default_rng(size)
    for _ in range(50):
        top, left = rng.integers(0, size, 2)
        height, width = rng.integers(1, size - top + 1), rng.integers(1, size - left + 1)
        box = Bbox(int(top), int(left), int(height), int(width))
        pixels = editing.box_mask(box, (size, size))
        tokens = editing.box_token_mask(box, Crop(0, 0, size), 256, 16)
        covering = editing.pixel_token_mask(pixels, Crop(0, 0, size), 16)
        assert (tokens | ~covering).all()
    whole = editing.box_token_mask(Bbox(0, 0, size, size), Crop(0, 0, size), 256, 16)
    assert whole.all()


@pytest.mark.parametrize("size", [64, 200])
def test_paste_keeps_what_is_not_blended(size):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (size + 10, size + 30, 3), dtype=np.uint8)
    token_mask = torch.zeros(4, 4, dtype=torch.bool)
    token_mask[:2, :2] = True
    weights = editing.composite_mask(token_mask, 64)
    crop = Crop(7, 20, size)
    pasted = editing.paste(picture, crop, torch.rand(3, 64, 64) * 3 - 1, weights)
    pasted = pasted.mul(255).round().byte().permute(1, 2, 0).numpy()
    changed = (pasted != picture).any(-1)
    inside = crop.of(changed)
    assert inside[: size // 4, : size // 4].mean() > 0.9
    assert not inside[-size // 4 :].any() and changed.sum() == inside.sum()


def test_extend():
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    larger, new = editing.add_margins(picture, (1, 2, 0, 0))
    assert larger.shape == (3, 5, 3) and new.sum() == 15 - 6
    np.testing.assert_array_equal(larger[1:, :3], picture)
    np.testing.assert_array_equal(larger[0, :3], picture[0])


@pytest.mark.parametrize(
    ("shape", "margins", "fits"),
    [((512, 512), (0, 64, 0, 0), True), ((512, 512), (0, 400, 0, 0), True),
     ((512, 512), (0, 500, 0, 0), False), ((512, 512), (0, 511, 0, 0), False),
     ((512, 512), (0, 600, 0, 0), False),
     ((300, 300), (100, 100, 100, 100), True), ((300, 300), (900, 900, 900, 900), False),
     ((200, 600), (0, 0, 150, 0), False), ((600, 200), (0, 150, 0, 0), False)],
)  # fmt: skip
def test_extensions_of_which_the_model_sees_nothing(shape, margins, fits):
    """They are refused with margins that work."""
    if fits:
        editing.check_extension(shape, margins, 16)
        return
    with pytest.raises(ValueError, match="less than an eighth") as error:
        editing.check_extension(shape, margins, 16)
    advice = str(error.value).partition("for example ")[2]
    if advice != "fewer sides at once":
        smaller = tuple(map(int, advice.partition(", in")[0].split(",")))
        assert 0 < max(smaller) < max(margins)
        editing.check_extension(shape, smaller, 16)
