"""Files of every kind that Pillow reads, and what the public doors of the networks accept."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from recorded import load_tiny

from maskgit_pt import MaskGIT, editing, images
from maskgit_pt.images import DamagedImage, as_unit_range, decode_rgb, read_rgb
from maskgit_pt.inference import ImageNet_class_conditional_generator
from maskgit_pt.utils import Bbox, read_image

RAMP = np.linspace(0, 255, 12, dtype=np.uint8).reshape(3, 4)
ROTATED = 6  # EXIF: a quarter turn to the right to be shown


def in_mode(mode: str) -> Image.Image:
    """A grey ramp of 3 x 4 pixels, as a file of this mode would hold it."""
    grey = Image.fromarray(RAMP)
    if mode.startswith("I;16"):
        values = (RAMP.astype(np.uint16) * 257).astype(">u2" if mode == "I;16B" else "<u2")
        return Image.frombytes(mode, RAMP.shape[::-1], values.tobytes())
    if mode == "I":
        return Image.fromarray(RAMP.astype(np.int32) * 257)
    if mode == "P":
        return grey.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    return grey.convert("RGB").convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I", "TIFF"), ("P", "PNG"),
     ("P", "GIF"), ("RGBA", "PNG"), ("LA", "PNG"), ("CMYK", "TIFF"), ("RGB", "BMP"), ("RGBA", "WEBP")],
)  # fmt: skip
@pytest.mark.parametrize("as_shown", [False, True])
def test_modes(tmp_path, mode, kind, as_shown):
    """All hold the same picture; the reader of training, of editing and of the notebook agree."""
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(in_mode(mode), kind, **options)
    found = np.asarray(decode_rgb(data, "x", as_shown))
    assert np.abs(found.astype(int) - RAMP[..., None]).max() <= 1
    (tmp_path / "file").write_bytes(data)
    np.testing.assert_array_equal(read_rgb(tmp_path / "file", as_shown), found)
    np.testing.assert_array_equal(editing.as_picture(tmp_path / "file"), found)
    assert (
        read_image(tmp_path / "file")
        .mul(255)
        .round()
        .byte()
        .permute(1, 2, 0)
        .equal(torch.tensor(found))
    )


def test_cmyk_jpeg_animation_and_transparency():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert decode_rgb(encoded(red, "JPEG"), "x").getpixel((3, 3)) > (240, 0, 0)
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_rgb(data, "x").getpixel((0, 0)) == (255, 0, 0)
    clear = encoded(Image.new("RGBA", (4, 4), (0, 0, 255, 0)), "PNG")
    assert decode_rgb(clear, "x").getpixel((0, 0)) == (0, 0, 255)  # as torchvision
    assert decode_rgb(clear, "x", as_shown=True).getpixel((0, 0)) == (255, 255, 255)


def test_orientation(tmp_path):
    image = Image.fromarray(np.repeat(RAMP[..., None], 3, -1))
    exif = image.getexif()
    exif[274] = ROTATED
    image.save(tmp_path / "turned.png", exif=exif)
    assert read_rgb(tmp_path / "turned.png", as_shown=False).size == (4, 3)
    shown = read_rgb(tmp_path / "turned.png")
    np.testing.assert_array_equal(shown, np.rot90(np.asarray(image), -1))
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(editing.as_picture(opened), shown)


def test_damaged_files_are_named(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    small = encoded(Image.new("L", (50, 50)), "PNG")
    cases = {
        "cut.jpg": (whole[: len(whole) // 2], "truncated"),
        "huge.png": (encoded(Image.new("L", (100, 100)), "PNG"), "at most 6,000 pixels"),
        "none.png": (b"", "empty file"),
        "text.png": (b"hello", "not an image"),
        "float.tif": (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
        "half.png": (small[: len(small) // 2], "truncated|broken"),
    }
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    for name, (data, reason) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        for read in (read_rgb, read_image, editing.as_picture):
            with pytest.raises(DamagedImage, match=reason) as error:
                read(path)
            assert name in str(error.value) and "\n" not in str(error.value)
        with pytest.raises(DamagedImage, match=name):
            editing._mask_pixels(images.read(path)) if name != "float.tif" else read_rgb(path)
    with pytest.raises(FileNotFoundError):
        read_rgb(tmp_path / "nowhere.png")


SHAPE = (6, 8)
WANTED = np.zeros(SHAPE, bool)
WANTED[1:3, 2:7] = True
GREY = Image.fromarray(np.uint8(WANTED * 255))


def painted(colour: int, ground: int = 0) -> Image.Image:
    """Opaque paint on a transparent ground."""
    grey = np.where(WANTED, colour, ground).astype(np.uint8)
    return Image.fromarray(np.stack([grey, np.uint8(WANTED * 255)], -1), "LA")


@pytest.mark.parametrize(
    "mask",
    [GREY, GREY.convert("RGB"), GREY.convert("1"), GREY.convert("P"), GREY.convert("RGBA"),
     Image.fromarray(np.uint8(WANTED)), Image.fromarray(np.uint16(WANTED) * 65535),
     Image.fromarray(np.uint16(WANTED) * 255), painted(255), painted(255, 255), painted(255).convert("RGBA"),
     WANTED, np.uint8(WANTED), np.uint8(WANTED) * 255, np.int64(WANTED), WANTED.astype(np.float32),
     WANTED[None], WANTED[..., None], torch.from_numpy(WANTED), torch.from_numpy(WANTED).float()[None]],
)  # fmt: skip
def test_masks(mask):
    np.testing.assert_array_equal(editing.as_mask(mask, SHAPE), WANTED)


@pytest.mark.parametrize(
    ("mask", "message"),
    [(painted(0), "transparent in part"), (painted(90), "transparent in part"),
     (WANTED * np.nan, "values from nan"), (WANTED * 300, "values from 0 to 300"), (-1 * WANTED, "from -1"),
     (WANTED * 2.0, "from 0.0 to 2.0"), (np.full(SHAPE, "x"), "no numbers"), (WANTED.T, "8 x 6 pixels")],
)  # fmt: skip
def test_masks_that_are_not_clear(mask, message):
    with pytest.raises(ValueError, match=message):
        editing.as_mask(mask, SHAPE)


def test_a_mask_turns_with_its_photo(tmp_path):
    """Whether it was drawn on the photo as shown or as stored, and whether it says so itself."""
    exif = Image.Exif()
    exif[274] = ROTATED
    photo = tmp_path / "photo.png"
    Image.new("RGB", SHAPE[::-1]).save(photo, exif=exif)
    shown = editing.as_picture(photo).shape[:2]
    assert shown == SHAPE[::-1]
    GREY.save(tmp_path / "with.png", exif=exif)
    GREY.save(tmp_path / "stored.png")
    ImageOps.exif_transpose(Image.open(tmp_path / "with.png")).save(tmp_path / "shown.png")
    for name in ("with", "stored", "shown"):
        found = editing.as_mask(tmp_path / f"{name}.png", shown, photo)
        np.testing.assert_array_equal(found, np.rot90(WANTED, -1), err_msg=name)


@pytest.fixture(scope="module")
def model() -> MaskGIT:
    return MaskGIT(load_tiny("transformer"), load_tiny("tokenizer"))


@pytest.fixture(scope="module")
def doors(model) -> dict:
    """Every public way of giving images to the networks: images [1, 3, 16, 16] -> tokens."""
    generator = ImageNet_class_conditional_generator(model.transformer, model.tokenizer)
    box = Bbox(0, 0, 4, 4)
    return {
        "encode_to_indices": model.tokenizer.encode_to_indices,
        "reconstruct": lambda images: model.reconstruct(images).tokens,
        "edit": lambda images: model.prepare_edit(images[0], box=box).tokens,
        "official": lambda images: generator.create_latent_mask_and_input_tokens_for_image_editing(
            images[0], box, 1
        )[1],
    }


DOORS = ("encode_to_indices", "reconstruct", "edit", "official")
BYTES = torch.arange(768, dtype=torch.int64).remainder(256).byte().view(1, 3, 16, 16)


@pytest.mark.parametrize("door", DOORS)
def test_bytes_are_images(doors, door):
    expected = doors[door](BYTES / 255)
    assert torch.equal(doors[door](BYTES), expected)
    assert torch.equal(doors[door]((BYTES / 255).double()), expected)


REFUSED = {
    "0 to 255": (
        BYTES.float(),
        "values from 0 to 255; accepted: values in .0, 1.; .* images / 255",
    ),
    "-1 to 1": (BYTES / 127.5 - 1, r"values from -1 to 1; .* \(images \+ 1\) / 2"),
    "NaN": (BYTES / 255 * torch.nan, "NaN or infinite"),
    "infinite": (BYTES / 0.0, "NaN or infinite"),
    "normalised": ((BYTES / 255 - 0.45) / 0.22, "values from -2.0"),
    "int64": (BYTES.long(), "dtype int64"),
    "bool": (BYTES > 9, "dtype bool"),
}


@pytest.mark.parametrize(("door", "kind"), list(itertools.product(DOORS, REFUSED)))
def test_other_ranges_are_refused(doors, door, kind):
    value, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        doors[door](value)


def test_arrays_and_traced_code(model):
    with pytest.raises(ValueError, match="type ndarray; accepted: a tensor"):
        model.reconstruct(np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"accepted: \[3, H, W\]"):
        model.edit(torch.zeros(16, 16, 3), 1, box=(0, 0, 4, 4))
    inside = torch.tensor([-0.0005, 1.0005])  # rounding
    assert as_unit_range(inside) is inside
    assert as_unit_range(torch.empty(2, 3, device="meta")).is_meta
    exported = torch.export.export(as_unit_range_module(), (torch.rand(2, 3),))
    assert exported.module()(torch.full((2, 3), 7.0)).max() == 7


def as_unit_range_module() -> torch.nn.Module:
    class Check(torch.nn.Module):
        def forward(self, images):
            return as_unit_range(images) * 1

    return Check()
