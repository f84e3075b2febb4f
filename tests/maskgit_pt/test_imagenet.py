"""Classes of ImageNet and labels given as text."""

import pytest

from maskgit_pt.imagenet import class_name, class_names, parse_labels, wordnet_ids


def test_classes_are_in_the_standard_order():
    ids = wordnet_ids()
    assert len(set(ids)) == len(class_names()) == 1000
    assert ids == sorted(ids)
    assert (ids[0], ids[90], ids[999]) == ("n01440764", "n01820546", "n15075141")
    assert all(lemma == lemma.strip() != "" for lemmas in class_names() for lemma in lemmas)


@pytest.mark.parametrize(
    ("label", "name"),
    [(0, "tench"), (90, "lorikeet"), (207, "golden retriever"), (388, "giant panda")]
    + [(594, "harp"), (607, "jack-o'-lantern"), (933, "cheeseburger"), (999, "toilet tissue")],
)
def test_known_classes(label, name):
    assert class_names()[label][0] == class_name(label) == name


def test_names_and_wordnet_ids_find_their_class():
    names = [class_name(label) for label in range(1000)]
    assert len(set(names)) == 1000
    assert parse_labels(names) == parse_labels(wordnet_ids()) == list(range(1000))
    assert [n for n, lemmas in zip(names, class_names(), strict=True) if n != lemmas[0]] == [
        "crane (bird)",
        "Cardigan Welsh corgi",
        "cardigan (jacket)",
        "crane (machine)",
        "maillot (tights)",
        "tank suit",
    ]


@pytest.mark.parametrize("label", [-1, 1000])
def test_class_name_outside(label):
    with pytest.raises(ValueError, match=f"label {label} is no ImageNet class; accepted: 0 to 999"):
        class_name(label)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("90", [90]),
        (" 5 , 3-4 ", [5, 3, 4]),
        ("0 - 2", [0, 1, 2]),
        ("7-7", [7]),
        ("all", list(range(1000))),
        ("lorikeet,golden retriever", [90, 207]),
        ("Golden_Retriever,PSITTACUS-erithacus", [207, 87]),
        ("jack o lantern,judge’s robe,St Bernard,rv", [607, 400, 247, 757]),
        ("N01820546", [90]),
        ("crane bird,crane (machine)", [134, 517]),
        ("harp,crayfish,missile", [594, 124, 657]),
        ("tench, Tinca tinca", [0]),
        ("3,1,0-3,1", [3, 1, 0, 2]),
        ([90, "lorikeet", "1-2,0"], [90, 1, 2, 0]),
    ],
)
def test_parse(text, labels):
    assert parse_labels(text) == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list of labels is empty; accepted: ids 0 to 999, "),
        ([], "the list of labels is empty; accepted: ids 0 to 999, "),
        ("1,,2", "the list of labels has an empty item; accepted: ids 0 to 999, "),
        ("1000", "label '1000' is outside the classes; accepted: ids 0 to 999, "),
        ("990-1000", "label '990-1000' is outside the classes; accepted: ids 0 to 999, "),
        ([-1], "label '-1' is no class of ImageNet; accepted: ids 0 to 999, "),
        ("9" * 5000, "is no class of ImageNet; accepted: ids 0 to 999, "),
        ("9-0", "label '9-0' is a reversed range; accepted: 0-9"),
        ("Crane", "label 'Crane' names several classes; accepted: one of these ids or names: "),
        ("crane", "134 crane (bird), 517 crane (machine)"),
        ("panda", "387 lesser panda, 388 giant panda"),
        ("cardigan", "264 Cardigan Welsh corgi, 474 cardigan (jacket)"),
        ("lorikete", "label 'lorikete' is no class of ImageNet (near it: lorikeet)"),
        ("retriever", "(near it: flat coated retriever, curly coated retriever, golden retriever)"),
        ("xyzzy", "ranges of them such as 0-9, all, ImageNet names, WordNet ids"),
        ("two\nlines", r"label 'two\nlines' is no class of ImageNet"),
    ],
)
def test_errors(text, message):
    with pytest.raises(ValueError) as error:
        parse_labels(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_models_without_the_imagenet_classes_take_ids_alone():
    assert parse_labels("all", 3) == parse_labels("0-2", 3) == [0, 1, 2]
    with pytest.raises(ValueError) as outside:
        parse_labels("3", 3)
    accepted = "ids 0 to 2, ranges of them such as 0-2, all"
    assert str(outside.value) == f"label '3' is outside the classes; accepted: {accepted}"
    for name in ("lorikeet", "n01820546"):
        with pytest.raises(ValueError) as named:
            parse_labels(name, 3)
        found = "is no id, and this model has 3 classes and takes ids alone"
        assert str(named.value) == f"label '{name}' {found}; accepted: {accepted}"
