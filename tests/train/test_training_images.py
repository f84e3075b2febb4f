"""Image collections and crops."""

import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from maskgit_pt import imagenet
from train.data import image_folders, image_tars, index_cache
from train.data.images import CROPS, DamagedImage, crop, open_images
from train.randomness import generator


def jpeg(seed: int = 0, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> bytes:
    rng = np.random.default_rng(seed)
    picture = (
        Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize(size).convert(mode)
    )
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    return buffer.getvalue()


def put(path, data: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg() if data is None else data)


def put_tar(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def names(images) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def test_class_folders(tmp_path):
    for name in (
        "b/2.JPEG",
        "b/10.jpg",
        "a/x/deep.png",
        "a/z.webp",
        "B/ü.jpg",
        ".hidden/x.jpg",
        "a/.y.jpg",
    ):
        put(tmp_path / name)
    put(tmp_path / "a" / "notes.txt")
    put(tmp_path / "readme.md")
    images = open_images(tmp_path)
    assert images.class_names == ["B", "a", "b"]
    assert names(images) == ["B/ü.jpg", "a/x/deep.png", "a/z.webp", "b/10.jpg", "b/2.JPEG"]
    assert images.labels.tolist() == [0, 1, 1, 2, 2] and images.labels.dtype == np.int64
    assert str(images.left_out) == (
        "left out: 2 hidden files (.hidden, a/.y.jpg); 1 files outside class folders (readme.md); "
        "1 files that are not images by their names (a/notes.txt)"
    )
    assert images.read(0).mode == "RGB" and images.read(0).size == (24, 20)
    again = pickle.loads(pickle.dumps(images))
    assert names(again) == names(images) and again.fingerprint() == images.fingerprint()
    put(tmp_path / "b" / "new.jpg")
    assert open_images(tmp_path).fingerprint() != images.fingerprint()


def test_links_are_followed_once(tmp_path):
    put(tmp_path / "set" / "a" / "1.jpg")
    put(tmp_path / "elsewhere" / "2.jpg")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set" / "a")
    assert names(open_images(tmp_path / "set")) == ["a/1.jpg", "b/2.jpg"]


def test_a_link_to_a_folder_above_brings_no_images_of_other_classes(tmp_path):
    put(tmp_path / "set" / "a" / "1.jpg")
    put(tmp_path / "set" / "b" / "2.jpg")
    for name, target in (("up", "."), ("far", ".."), ("b/up", "..")):
        (tmp_path / "set" / name).symlink_to((tmp_path / "set" / name).parent / target)
    images = open_images(tmp_path / "set")
    assert names(images) == ["a/1.jpg", "b/2.jpg"]
    assert "3 links to a folder that is read already, or above (b/up, far, up)" in str(
        images.left_out
    )


def test_a_pipe_among_images_keeps_nobody_waiting(tmp_path):
    put(tmp_path / "a" / "1.jpg")
    os.mkfifo(tmp_path / "a" / "2.jpg")
    images = open_images(tmp_path)
    assert names(images) == ["a/1.jpg"]
    assert "1 pipes and other special files (a/2.jpg)" in str(images.left_out)


def test_names_with_control_characters_are_escaped(tmp_path):
    put(tmp_path / "a" / "1.jpg")
    put(tmp_path / "a" / "\x1b[31m\nred.jpg", b"none")
    put(tmp_path / "a" / "\x1b[31m\nred.txt", b"none")
    images = open_images(tmp_path)
    with pytest.raises(DamagedImage) as error:
        images.read(0)
    assert str(error.value).isprintable() and "a/\\x1b[31m\\nred.jpg" in str(error.value)
    assert str(images.left_out).isprintable() and "a/\\x1b[31m\\nred.txt" in str(images.left_out)


def test_splits(tmp_path):
    put(tmp_path / "train" / "a" / "1.jpg")
    put(tmp_path / "val" / "a" / "2.jpg")
    assert names(open_images(tmp_path, "val")) == ["a/2.jpg"]
    with pytest.raises(ValueError, match="choose one: --split=train"):
        open_images(tmp_path)
    with pytest.raises(ValueError, match="no 'test' in it; found 2 folders"):
        open_images(tmp_path, "test")
    with pytest.raises(ValueError, match="1 classes; expected: 1000"):
        open_images(tmp_path, "train", num_classes=1000)


@pytest.mark.parametrize("files, found", [
    ([], "found no folders and no files"),
    (["1.jpg", "2.jpg"], r"found no folders and 2 files \(1.jpg, 2.jpg\)"),
    (["a/readme.txt", "b/readme.txt"], r"the 2 class folders hold no images \(a, b\)"),
])  # fmt: skip
def test_wrong_layouts(tmp_path, files, found):
    for name in files:
        put(tmp_path / name)
    with pytest.raises(ValueError, match=f"{found}.*; accepted: ") as error:
        open_images(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such folder; accepted"):
        open_images(tmp_path / "nowhere")


def kaggle(root, classes: list[str], val: dict[str, str]) -> None:
    for wordnet_id in classes:
        put(root / "ILSVRC/Data/CLS-LOC/train" / wordnet_id / f"{wordnet_id}_7.JPEG")
    rows = ["ImageId,PredictionString"]
    for name, wordnet_id in val.items():
        put(root / "ILSVRC/Data/CLS-LOC/val" / f"{name}.JPEG")
        rows.append(f"{name},{wordnet_id} 1 2 3 4 {wordnet_id} 5 6 7 8 ")
    (root / "LOC_val_solution.csv").write_text("\n".join(reversed(rows[1:])) + "\n")


def test_kaggle(tmp_path):
    kaggle(
        tmp_path, ["n03", "n01", "n02"], {"ILSVRC2012_val_01": "n03", "ILSVRC2012_val_02": "n01"}
    )
    train = open_images(tmp_path, "train")
    assert train.class_names == ["n01", "n02", "n03"] and train.labels.tolist() == [0, 1, 2]
    for images in (
        open_images(tmp_path, "val"),
        open_images(tmp_path / "ILSVRC/Data/CLS-LOC", "val"),
        open_images(tmp_path / "ILSVRC/Data/CLS-LOC/val"),
    ):
        assert images.class_names == train.class_names and images.labels.tolist() == [2, 0]
        assert images.read(1).size == (24, 20)
    with pytest.raises(ValueError, match="choose one: --split=train or --split=val"):
        open_images(tmp_path)
    put(tmp_path / "ILSVRC/Data/CLS-LOC/val/extra.JPEG")
    with pytest.raises(ValueError, match="LOC_val_solution.csv: no label for extra.JPEG"):
        open_images(tmp_path, "val")
    (tmp_path / "LOC_val_solution.csv").write_text("x,n99 1 2 3 4\n")
    with pytest.raises(ValueError, match="class n99 is not among the folders"):
        open_images(tmp_path, "val")


def test_imagenet_folders_have_the_official_numbers(tmp_path):
    for wordnet_id in imagenet.wordnet_ids():
        put(tmp_path / wordnet_id / "1.jpg", b"x")
    assert open_images(tmp_path).class_names == imagenet.wordnet_ids()


def test_tars(tmp_path):
    put_tar(tmp_path / "set-1.tar", {"b.jpg": jpeg(1), "b.cls": b"2\n", "b.txt": b"any"})
    long = "d/" * 80 + "long"  # needs an extended header
    put_tar(tmp_path / "set-0.tar", {
        "x/a.json": json.dumps({"label": 1, "caption": "c"}).encode(), "x/a.jpg": jpeg(2),
        f"{long}.png": jpeg(3), f"{long}.cls": b"0",
    })  # fmt: skip
    for path in (
        tmp_path,
        tmp_path / "set-{0..1}.tar",
        tmp_path / "*.tar",
        tmp_path / "set-{0,1}.tar",
    ):
        images = open_images(path)
        assert names(images) == ["set-0.tar/x/a.jpg", f"set-0.tar/{long}.png", "set-1.tar/b.jpg"]
        assert images.labels.tolist() == [1, 0, 2] and images.class_names == ["0", "1", "2"]
    for i, seed in enumerate((2, 3, 1)):
        np.testing.assert_array_equal(images.read(i), Image.open(io.BytesIO(jpeg(seed))))
    assert len(open_images(tmp_path / "set-1.tar")) == 1
    assert open_images(tmp_path, num_classes=1000).class_names == imagenet.wordnet_ids()
    with pytest.raises(ValueError, match="set-1.tar/b.jpg: label is 2; accepted: 0 to 1"):
        open_images(tmp_path, num_classes=2)
    with pytest.raises(FileNotFoundError, match="set-2.tar: no such tar file"):
        open_images(tmp_path / "set-{0..2}.tar")


def test_names_with_dots_in_tars(tmp_path):
    """The base name up to the known extension; what is part of another sample is counted and named."""
    put_tar(tmp_path / "a.tar", {
        "photo.v2.jpg": jpeg(), "photo.v2.cls": b"0", "22.05.jpg": jpeg(), "22.05.json": b"1",
        "x/22.05.JPG": jpeg(), "x/22.05.cls": b"2",
        "s.jpg": jpeg(), "s.seg.png": jpeg(), "s.cls": b"3", "s.txt": b"a caption",
        "only.input.png": jpeg(), "only.cls": b"4", "._s.jpg": b"mac", "._s.cls": b"mac",
    })  # fmt: skip
    images = open_images(tmp_path / "a.tar")
    found = {images.name(i)[6:]: images.labels[i] for i in range(len(images))}
    assert found == {
        "photo.v2.jpg": 0, "22.05.jpg": 1, "x/22.05.JPG": 2, "s.jpg": 3, "only.input.png": 4,
    }  # fmt: skip
    assert str(images.left_out) == (
        "left out: 1 files that are neither image nor label (a.tar/s.txt); 2 hidden files (a.tar/._s.jpg, "
        "a.tar/._s.cls); 1 further images of a sample (a.tar/s.seg.png)"
    )


def test_class_names_in_tars(tmp_path):
    put_tar(tmp_path / "a.tar", {
        "1.jpg": jpeg(), "1.cls": b"dog\n", "2.jpg": jpeg(), "2.json": b'{"label": "cat"}',
    })  # fmt: skip
    images = open_images(tmp_path / "a.tar")
    assert images.class_names == ["cat", "dog"] and images.labels.tolist() == [1, 0]
    ids = imagenet.wordnet_ids()
    put_tar(tmp_path / "b.tar", {"1.jpg": jpeg(), "1.cls": ids[7].encode()})
    images = open_images(tmp_path / "b.tar")
    assert images.class_names == ids and images.labels.tolist() == [7]


def test_what_servers_and_archives_add_to_folders(tmp_path):
    put(tmp_path / "a" / "1.jpg")
    put(tmp_path / "c" / "2.jpg")
    (tmp_path / "b").mkdir()
    for junk in ("@eaDir", "lost+found", "__MACOSX", "a/@eaDir"):
        put(tmp_path / junk / "1.jpg")
    (tmp_path / "a" / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "a" / "round.jpg").symlink_to("round.jpg")
    images = open_images(tmp_path)
    assert names(images) == ["a/1.jpg", "c/2.jpg"] and images.labels.tolist() == [0, 2]
    assert images.class_names == ["a", "b", "c"]
    told = str(images.left_out)
    for what in ("4 files or folders of a system (", "2 dead links (a/gone.jpg, a/round.jpg)",
                 "1 class folders without images, which keep their numbers (b)"):  # fmt: skip
        assert what in told


def kept(monkeypatch, tmp_path):
    """The cache of lists, for sets of any size; returns its folder."""
    monkeypatch.setattr(index_cache, "SMALLEST", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "maskgit_pt" / "indexes"


def age(*paths):
    for path in paths:
        os.utime(path, ns=(10**18, 10**18))


def fail(*_):
    raise AssertionError("listed again")


def same(a, b):
    for i in range(len(b)):
        np.testing.assert_array_equal(a.read(i), b.read(i))
    assert str(a.left_out) == str(b.left_out) and a.class_names == b.class_names
    return names(a) == names(b) and a.fingerprint() == b.fingerprint()


def test_a_list_of_folders_is_made_once(tmp_path, monkeypatch):
    cache, root = kept(monkeypatch, tmp_path), tmp_path / "set"
    for name in ("a/1.jpg", "a/x/ü.jpg", "b/2.jpg", "b/notes.txt"):
        put(root / name)
    first = open_images(root)
    assert not cache.exists()  # changed a moment ago: it may change again unseen
    age(root, root / "a", root / "a/x", root / "b")
    assert same(open_images(root), first) and len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(image_folders, "_list_classes", fail)
        assert same(open_images(root), first)
    put(root / "a" / "x" / "3.jpg")
    assert len(open_images(root)) == 4
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:99])
    assert len(open_images(root)) == 4


def test_an_index_of_tars_is_made_once(tmp_path, monkeypatch):
    cache, path = kept(monkeypatch, tmp_path), tmp_path / "a.tar"
    put_tar(path, {"1.jpg": jpeg(), "1.cls": b"1", "2.jpg": jpeg(2), "2.cls": b"0", "x.txt": b""})
    age(path)
    first = open_images(path)
    with monkeypatch.context() as patch:
        patch.setattr(image_tars, "_index", fail)
        assert same(open_images(path), first)
        assert same(pickle.loads(pickle.dumps(open_images(path))), first)
    put_tar(path, {"1.jpg": jpeg(), "1.cls": b"1"})
    assert len(open_images(path)) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(image_tars.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
    assert len(open_images(path)) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    age(path)
    assert len(open_images(path)) == 1 and len(list(cache.iterdir())) == 1


def test_tars_of_splits(tmp_path):
    put_tar(tmp_path / "train-0.tar", {"a.jpg": jpeg(), "a.cls": b"0"})
    put_tar(tmp_path / "val-0.tar", {"b.jpg": jpeg(), "b.cls": b"0"})
    assert names(open_images(tmp_path, "val")) == ["val-0.tar/b.jpg"]
    with pytest.raises(ValueError, match="choose one: --split=train or --split=val"):
        open_images(tmp_path)


@pytest.mark.parametrize("members, message", [
    ({"a.jpg": b"x"}, "'a' is an image without a label"),
    ({"a.cls": b"1"}, "'a' is a label without an image"),
    ({"a.txt": b"1"}, "no images in it"),
    ({"a.jpg": b"x", "a.cls": b"-1"}, "accepted: a number from 0 to 65535, or the name of a class"),
    ({"a.jpg": b"x", "a.cls": b"1.9"}, "label 'a.cls' is '1.9'"),
    ({"a.jpg": b"x", "a.cls": b""}, "label 'a.cls' is ''"),
    ({"a.jpg": b"x", "a.cls": b"cat", "b.jpg": b"x", "b.cls": b"7"}, "label is 7, others are names such as"),
    ({"a.1.jpg": b"x", "a.2.jpg": b"x", "a.cls": b"7"}, "'a.1' is an image without a label"),
    ({"a.jpg": b"x", "a.cls": b"9" * 9000}, "label 'a.cls'"),
    ({"a.jpg": b"x", "a.json": b"[" * 100_000}, "label 'a.json'"),
    ({"a.jpg": b"x", "a.json": b'{"class": 1}'}, "label 'a.json' is 'None'"),
    ({"a.jpg": b"x", "a.json": b"true"}, "label 'a.json' is 'True'"),
    ({"a.jpg": b"x", "a.png": b"x", "a.cls": b"1"}, "have one key"),
])  # fmt: skip
def test_wrong_tars(tmp_path, members, message):
    put_tar(tmp_path / "x.tar", members)
    with pytest.raises(ValueError, match=f"x.tar.*: .*{message}") as error:
        open_images(tmp_path / "x.tar")
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_damaged_and_compressed_tars(tmp_path):
    path = tmp_path / "x.tar"
    put_tar(path, {"a.jpg": jpeg(), "a.cls": b"0", "b.jpg": jpeg(), "b.cls": b"0"})
    data = path.read_bytes()
    cut = data.index(b"b.jpg") + 600
    garbled = bytearray(data)
    garbled[data.index(b"b.jpg") + 150] ^= 0xFF  # in the header's checksum
    for wrong in (
        data[:cut],
        data[: cut - 300],
        bytes(garbled),
        b"",
        b"no tar" * 200,
        b"\x1f\x8b" + data,
    ):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="x.tar: "):
            open_images(path)
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(ValueError, match="not an uncompressed tar"):
        open_images(path)


def test_hostile_tar(tmp_path):
    """Links are left out, names that lead elsewhere are only names."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in {"../../etc/a.jpg": jpeg(), "../../etc/a.cls": b"0"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    images = open_images(tmp_path / "x.tar")
    assert names(images) == ["x.tar/../../etc/a.jpg"] and images.read(0).size == (24, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_braces():
    assert image_tars._expand_braces("a-{08..10}.{x,y}") == [
        f"a-{n}.{end}" for n in ("08", "09", "10") for end in "xy"
    ]


def test_kinds_of_pictures(tmp_path):
    grey = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    rgba = np.random.default_rng(0).integers(0, 255, (32, 32, 4), dtype=np.uint8)
    pictures = {
        "16bit.png": Image.fromarray(grey), "alpha.png": Image.fromarray(rgba),
        "palette.png": Image.fromarray(rgba).convert("RGB").quantize(16),
        "grey.png": Image.fromarray(rgba[..., 0]), "bit.png": Image.fromarray(rgba[..., 0] > 99),
        "cmyk.jpg": Image.fromarray(rgba).convert("RGB").convert("CMYK"),
    }  # fmt: skip
    (tmp_path / "a").mkdir()
    for name, picture in pictures.items():
        picture.save(tmp_path / "a" / name)
    images = open_images(tmp_path)
    found = {images.name(i)[2:]: images.read(i) for i in range(len(images))}
    assert all(p.mode == "RGB" and p.size == (32, 32) for p in found.values())
    np.testing.assert_allclose(np.asarray(found["16bit.png"])[..., 1], grey / 257, atol=0.51)
    np.testing.assert_array_equal(found["alpha.png"], rgba[..., :3])


def test_damaged_pictures(tmp_path):
    damaged = {
        "cut.jpg": jpeg()[:-200], "empty.jpg": b"", "text.jpg": b"hello", "zeros.png": bytes(999),
        "header.jpg": jpeg()[:20], "bomb.ppm": b"P6 60000 60000 255\n1",
    }  # fmt: skip
    for name, data in damaged.items():
        put(tmp_path / "a" / name, data)
    images = open_images(tmp_path)
    for i in range(len(images)):
        with pytest.raises(DamagedImage, match=f"^a/{images.name(i)[2:]}: ") as error:
            images.read(i)
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    (tmp_path / "a" / "cut.jpg").unlink()
    with pytest.raises(FileNotFoundError):  # not a damaged image: something is wrong with the disk
        images.read(names(images).index("a/cut.jpg"))


def ramp(width: int, height: int) -> Image.Image:
    """Red is the column, green the row."""
    red, green = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([red, green, 0 * red], -1).astype(np.uint8))


def test_center_crop():
    rng = generator(0, "test")
    for width, height in ((200, 64), (64, 200), (64, 64), (201, 64)):
        pixels = crop(ramp(width, height), 64, "center", rng)
        left, top = (width - 64) // 2, (height - 64) // 2
        expected = np.asarray(ramp(width, height))[top : top + 64, left : left + 64]
        np.testing.assert_array_equal(pixels, expected)  # nothing to resample
    pixels = crop(ramp(240, 120), 60, "center", rng)
    assert pixels.shape == (60, 60, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert abs(pixels[30, 30].astype(int) - [120, 60, 0]).max() <= 2


def test_random_crops():
    lefts = {
        int(crop(ramp(70, 64), 64, "random", generator(0, "x", i))[0, 0, 0]) for i in range(60)
    }
    assert lefts == set(range(7))
    flips = [
        crop(ramp(64, 64), 64, "center+flip", generator(0, "x", i))[0, 0, 0] for i in range(60)
    ]
    assert set(map(int, flips)) == {0, 63} and 15 < sum(flip > 0 for flip in flips) < 45
    areas = []
    for i in range(300):
        pixels = crop(ramp(250, 250), 32, "random_resized", generator(1, "x", i)).astype(float)
        width = (pixels[16, -2, 0] - pixels[16, 1, 0]) / 29 * 32
        height = (pixels[-2, 16, 1] - pixels[1, 16, 1]) / 29 * 32
        assert 0.7 < width / height < 1.45
        areas.append(width * height / 250**2)
    assert 0.06 < min(areas) < 0.12 and max(areas) > 0.9 and 0.45 < np.mean(areas) < 0.6


@pytest.mark.parametrize("kind", CROPS)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (301, 2), (7, 5), (1000, 333), (333, 1000)])
def test_any_size(kind, size):
    picture = ramp(*size)
    for i in range(5):
        pixels = crop(picture, 48, kind, generator(0, "crop", i))
        assert pixels.shape == (48, 48, 3)
        np.testing.assert_array_equal(pixels, crop(picture, 48, kind, generator(0, "crop", i)))


def test_unknown_crop():
    with pytest.raises(ValueError, match="crop is 'middle'; accepted: center, center.flip, random"):
        crop(ramp(9, 9), 4, "middle", generator(0, "x"))


def test_generators():
    draws = {
        tuple(generator(*key).integers(0, 2**62, 2))
        for key in [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", 1, 2), (0, "a", 12)]
    }
    assert len(draws) == 6
    assert generator(7, "crop", 3, 1).integers(0, 2**32, 3).tolist() == [
        2468792504,
        6662254,
        1805863388,
    ]
