"""Classes of a model's own: names in its configuration, labels given by them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from maskgit_pt import MaskGIT, Transformer, sample
from maskgit_pt.command_line import run
from maskgit_pt.imagenet import classes_of, stored_names, wordnet_ids
from maskgit_pt.utils import for_screen, screen_factor

CLOTHES = ["Ankle boot", "Bag", "Sandal", "T-shirt/top", "0-9"]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("Sandal", [2]),
        ("sandal, t shirt top,BAG", [2, 3, 1]),
        ("ankle_boot,0", [0]),
        ("0-2,Sandal", [0, 1, 2]),
        ("all", [0, 1, 2, 3, 4]),
    ],
)
def test_names_find_their_class(text, labels):
    assert classes_of(5, CLOTHES).parse(text) == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sandals", "is no class of this model (near it: sandal); accepted: ids 0 to 4, ranges"),
        # An id is an id, whatever classes are called.
        ("0-9", "label '0-9' is outside the classes"),
        ("lorikeet", "names: Ankle boot, Bag, Sandal, T-shirt/top, 0-9"),
        ("n01820546", "is no class of this model"),
    ],
)
def test_errors_name_what_there_is(text, message):
    with pytest.raises(ValueError) as error:
        classes_of(5, CLOTHES).parse(text)
    assert message in str(error.value)


def test_numbers_in_front_of_folder_names_may_be_left_out():
    classes = classes_of(3, ["0_shirt", "1_bag", "2 shirt"])
    assert classes.parse("bag,1_bag,2 shirt") == [1, 2]
    assert [classes.title(i) for i in range(3)] == ["0 0_shirt", "1 bag", "2 2 shirt"]
    with pytest.raises(ValueError, match="names several classes"):
        classes.parse("shirt")


def test_names_that_differ_in_case_alone():
    letters = classes_of(4, ["A", "a", "b", "cat, big"])
    assert letters.parse("a,B") == [1, 2] and letters.parse("A") == [0]
    assert letters.parse("Cat, big") == [3]


def test_some_classes_of_imagenet_keep_their_names():
    classes = classes_of(2, ["n01820546", "n02099601"])
    assert classes.parse("golden retriever,lorikeet,n01820546") == [1, 0]
    assert classes.choices()[0] == "0 · lorikeet · n01820546"


def test_what_a_configuration_keeps():
    assert stored_names(wordnet_ids()) is None
    assert stored_names(["0", "1", "2"]) is None
    assert stored_names(["1", "0"]) == ["1", "0"]
    assert stored_names(["caf\udce9"]) == ["caf\ufffd"]


def test_another_number_of_names():
    with pytest.raises(ValueError, match="class_names are 5; accepted: 4, one for each class"):
        classes_of(4, CLOTHES)


@pytest.fixture
def named(tiny_transformer, tiny_tokenizer):
    """A model of five classes that have names."""
    codes = len(tiny_tokenizer.get_codebook_funct())
    classes = tiny_transformer.num_classes_with(codes)
    tiny_transformer.class_names = (CLOTHES + [str(i) for i in range(5, classes)])[:classes]
    return MaskGIT(tiny_transformer, tiny_tokenizer)


def test_a_saved_model_knows_its_classes(named, tmp_path):
    named.transformer.image_size = named.image_size
    named.save_pretrained(tmp_path)
    back = MaskGIT.from_pretrained(tmp_path)
    assert back.transformer.class_names == named.transformer.class_names
    assert back.transformer.to_config() == named.transformer.to_config()
    result = back.generate("Sandal", steps=1)
    assert result.tokens.equal(named.generate([2], steps=1).tokens)


def test_a_tokenizer_of_another_size_is_refused(named, tmp_path):
    named.transformer.image_size = 2 * named.image_size
    named.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="that it was trained on images of"):
        MaskGIT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("class_names", "Sandal", "class_names holds str; accepted: a list"),
        ("class_names", ["two\nlines"], "holds 'two\\nlines'; accepted: printable text"),
        ("class_names", [3], "class_names holds 3"),
        ("class_names", ["x" * 201], "at most 200 letters"),
        ("image_size", "28", "image_size is '28'; accepted: pixels"),
        ("image_size", True, "image_size is True"),
    ],
)
def test_hostile_configurations(tiny_transformer, tmp_path, name, value, message):
    tiny_transformer.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ValueError) as error:
        Transformer.from_pretrained(tmp_path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_samples_by_name_and_the_names_in_the_grid(named, tmp_path, capsys):
    named.save_pretrained(tmp_path / "model")
    output = tmp_path / "samples"
    args = [f"--model={tmp_path / 'model'}", "--labels=Sandal,bag", "--num_samples=4", "--steps=1"]
    args += ["--device=cpu", "--threads=1", "--nonpz", f"--output={output}"]
    assert run(sample.main, sample.FLAGS, sample.PROGRAM, sample.USAGE, args) == 0
    with Image.open(output / "class0002_000000.png") as picture:
        assert picture.size == (16, 16) and picture.info["class"] == "Sandal"
    with Image.open(output / "grid.png") as grid:
        titles = grid.width - (2 * 98 - 2)
        assert 40 < titles < 150 and grid.height == 2 * 98 - 2
        text = np.asarray(grid.convert("L"))[:, :titles]
        assert (text[:96] < 100).any() and (text[98:] < 100).any()  # both rows say something
    args[1] = "--labels=sandels"
    assert run(sample.main, sample.FLAGS, sample.PROGRAM, sample.USAGE, args) == 1
    assert "--labels: label 'sandels' is no class of this model (near it: sandal)" in (
        capsys.readouterr().err
    )


def test_tiny_images_are_enlarged_by_whole_factors():
    assert [screen_factor(side) for side in (8, 28, 64, 96, 256)] == [12, 4, 2, 1, 1]
    image = torch.rand(1, 3, 28, 28)
    assert for_screen(image).shape == (1, 3, 112, 112)
    assert for_screen(image)[..., ::4, ::4].equal(image)
