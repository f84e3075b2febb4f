"""Where images come from: npz files as streams, folders, tar files."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from recorded import load_tiny

from maskgit_pt import MaskGIT
from maskgit_pt.files import atomic_file
from maskgit_pt.launch import Processes
from maskgit_pt.pretrained import weights_fingerprint
from train.evaluation.extraction import Cache
from train.evaluation.generated import ModelSource
from train.evaluation.npz import Npz
from train.evaluation.sources import (
    ArraySource,
    FirstImages,
    check_same_size,
    open_source,
)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (23, 6, 5, 3), np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_in_any_order(save, images, tmp_path):
    save(tmp_path / "a.npz", arr_0=images, arr_1=np.arange(23), text=np.array("words"))
    source = open_source(tmp_path / "a.npz")
    assert len(source) == 23 and source.size == (6, 5)
    for start, stop in ((0, 4), (4, 9), (15, 23), (3, 5), (22, 40), (0, 23)):
        np.testing.assert_array_equal(source.read(start, stop), images[start:stop])
    npz = Npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(npz.array("arr_1"), np.arange(23))
    assert str(npz.array("text")) == "words"
    with pytest.raises(ValueError, match="arr_1 has shape .*, more than 22 numbers"):
        npz.array("arr_1", max_numbers=22)


def write_member(path, header: dict, data: bytes, name: str = "arr_0.npy") -> None:
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, member.getvalue() + data)


def test_hostile_npz(tmp_path):
    """Claims that the data does not keep, and formats that would run code."""
    path = tmp_path / "bad.npz"
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**12, 16, 16, 3)}
    write_member(path, header, b"123")
    with pytest.raises(ValueError, match="has 3 bytes; its shape .* needs 768000000000000"):
        open_source(path)
    write_member(path, header | {"shape": (2, 2, 2, 3), "fortran_order": True}, bytes(24))
    with pytest.raises(ValueError, match="Fortran order"):
        open_source(path)
    write_member(path, header | {"shape": (0, 2, 2, 3)}, b"")
    with pytest.raises(ValueError, match=r"shape \[0, 2, 2, 3\]"):
        open_source(path)
    write_member(path, header | {"descr": "|O", "shape": (2,)}, bytes(16))
    with pytest.raises(ValueError, match="dtype object"):
        open_source(path)
    for content in (b"", b"\x93NUMPY\x01\x00\x05\x00{1:1}", b"\x93NUMPY\x09\x00", b"cos\nsystem\n"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("arr_0.npy", content)
        with pytest.raises(ValueError, match="bad.npz: arr_0 cannot be read"):
            open_source(path)
    np.savez(path, np.zeros((3, 4, 4, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="bad.npz: not an npz file"):
        open_source(path)


def test_fingerprints_follow_the_content(images, tmp_path):
    np.savez(tmp_path / "a.npz", images)
    np.savez(tmp_path / "b.npz", images)
    first = open_source(tmp_path / "a.npz").fingerprint
    assert open_source(tmp_path / "b.npz").fingerprint == first
    images[7, 3, 2, 1] ^= 1
    np.savez(tmp_path / "b.npz", images)
    assert open_source(tmp_path / "b.npz").fingerprint != first
    assert ArraySource(images).fingerprint != ArraySource(images[:-1]).fingerprint
    source = ArraySource(images)
    subsets = [FirstImages(source, 5), FirstImages(source, 5, spread=True), FirstImages(source, 6)]
    assert len({source.fingerprint, *(subset.fingerprint for subset in subsets)}) == 4


@pytest.mark.parametrize("suffix", ["bmp", "png", "tar"])
def test_fingerprints_notice_a_pixel_in_the_middle(suffix, tmp_path):
    """Also of files that are large and keep their size."""
    image = np.zeros((256, 256, 3), np.uint8)
    found = set()
    for value in (0, 1, 2):
        image[128, 128] = value
        kind = "bmp" if suffix == "tar" else suffix
        path = tmp_path / f"0.{kind}"
        Image.fromarray(image).save(path, compress_level=0)
        if suffix == "tar":
            (tmp_path / "0.cls").write_text("0")
            with tarfile.open(tmp_path / "a.tar", "w") as tar:
                tar.add(path, "0.bmp")
                tar.add(tmp_path / "0.cls", "0.cls")
            path = tmp_path / "a.tar"
        found.add(open_source(path if suffix == "tar" else tmp_path).fingerprint)
    assert len(found) == 3


def test_fingerprints_of_networks(tmp_path):
    load_tiny("transformer").save_pretrained(tmp_path)
    first = weights_fingerprint(tmp_path)
    assert weights_fingerprint(tmp_path) == first
    config = tmp_path / "config.json"  # holds the number of heads, which the weights do not
    config.write_text(config.read_text() + " ")
    second = weights_fingerprint(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert len({first, second, weights_fingerprint(tmp_path)}) == 3


def test_subsets(images):
    source = ArraySource(images)
    np.testing.assert_array_equal(FirstImages(source, 5).read(2, 9), images[2:5])
    spread = FirstImages(source, 4, spread=True)
    np.testing.assert_array_equal(spread.read(0, 4), images[[0, 5, 11, 17]])
    with pytest.raises(ValueError, match="has 23 images; 24 were asked for"):
        FirstImages(source, 24)
    with pytest.raises(ValueError, match="accepted: uint8 "):
        ArraySource(images / 255)
    with pytest.raises(ValueError, match="are 6 x 5, those of array 5 x 6"):
        check_same_size(source, ArraySource(images.transpose(0, 2, 1, 3)))


def test_folder_of_samples(images, tmp_path):
    """In the order of their indices, without the grid and the pictures of steps."""
    for i, label in ((0, 9), (1, 2), (2, 9)):
        Image.fromarray(images[i]).save(tmp_path / f"class{label:04d}_{i:06d}.png")
        Image.new("RGB", (50, 50)).save(tmp_path / f"class{label:04d}_{i:06d}_steps.png")
    Image.new("RGB", (60, 60)).save(tmp_path / "grid.png")
    source = open_source(tmp_path)
    np.testing.assert_array_equal(source.read(0, 3), images[:3])


def test_classes_and_tars(images, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(4):
            folder = tmp_path / "classes" / f"c{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i]).save(folder / f"{i}.png")
            for suffix, data in (("png", (folder / f"{i}.png").read_bytes()), ("cls", b"1")):
                info = tarfile.TarInfo(f"{i}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    np.testing.assert_array_equal(
        open_source(tmp_path / "classes").read(0, 4), images[[0, 2, 1, 3]]
    )
    tar = open_source(tmp_path / "a.tar")
    np.testing.assert_array_equal(tar.read(0, 4), images[:4])
    assert tar.fingerprint
    assert open_source(tmp_path / "a.tar", 4).read(1, 3).shape == (2, 4, 4, 3)


def test_kinds_of_files(tmp_path):
    """Greys, palettes, transparency and CMYK become RGB."""
    for i, mode in enumerate(("L", "P", "RGBA", "RGB", "1")):
        Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / f"{i}.png")
    Image.new("CMYK", (8, 8)).save(tmp_path / "9.jpg")
    source = open_source(tmp_path)
    assert (source.read(0, 6) == 255).all() and source.protocol["format"] == "JPEG and PNG"


def test_model_source():
    model = MaskGIT(load_tiny("transformer"), load_tiny("tokenizer"))
    source = ModelSource(model, 7, [3, 5], seed=1, settings={"steps": 2}, weights="w")
    whole = source.read(0, 7)
    assert whole.dtype == np.uint8 and whole.shape == (7, 16, 16, 3)
    np.testing.assert_array_equal(source.read(4, 9), whole[4:])  # whatever the batch
    images = model.generate([3, 5, 3], seed=1, steps=2).images
    expected = (images * 255).round().byte().permute(0, 2, 3, 1)
    np.testing.assert_array_equal(whole[:3], expected)
    others = [
        ModelSource(model, 7, [3, 5], seed=2, settings={"steps": 2}, weights="w"),
        ModelSource(model, 7, [3, 5], seed=1, settings={"steps": 3}, weights="w"),
        ModelSource(model, 7, [3, 6], seed=1, settings={"steps": 2}, weights="w"),
        ModelSource(model, 7, [3, 5], seed=1, settings={"steps": 2}, weights="v"),
        ModelSource(
            model, 7, [3, 5], 1, {"steps": 2, "choice_temperature": 2.0}, weights="w"
        ),
        ModelSource(model, 7, [3, 5], 1, {"steps": 2, "schedule": "uniform"}, weights="w"),
        ModelSource(model, 7, [3, 5], 1, {"steps": 2, "sampler": "random"}, weights="w"),
    ]  # fmt: skip
    assert len({source.fingerprint, *(other.fingerprint for other in others)}) == 8
    assert ModelSource(model, 7).fingerprint is None
    with pytest.raises(ValueError, match="accepted: 0 to 9"):
        ModelSource(model, 7, [10])


def test_batches_are_whole_for_any_number_of_workers():
    workers = Processes()
    everything = workers.batches(103, 10)
    assert everything[-1] == (100, 103)
    for count in (2, 3, 8, 20):
        workers.world_size, parts = count, []
        for rank in range(count):
            workers.rank = rank
            parts += workers.batches(103, 10)
        assert parts == everything


def test_atomic_file(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(KeyError), atomic_file(path) as file:
        file.write(b"half")
        raise KeyError
    assert not list(tmp_path.iterdir())
    cache = Cache(tmp_path / "cache")
    cache.store("key", {"x": np.arange(3)})
    assert cache.load("key", ["x"])["x"].tolist() == [0, 1, 2]
    assert cache.load("key", ["x", "y"]) is None and cache.load("other", ["x"]) is None


def test_samples_are_rounded_like_pngs():
    from maskgit_pt.utils import to_pil
    from train.evaluation.sources import to_bytes

    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    for image, found in zip(images, to_bytes(images), strict=True):
        np.testing.assert_array_equal(np.asarray(to_pil(image)), found)
