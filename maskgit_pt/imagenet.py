"""The 1000 ImageNet classes, their names and WordNet ids; and the classes of a model, which may be others.

`imagenet_classes.txt` holds the WordNet 3.0 synsets of ILSVRC 2012 (WordNet, copyright 2006 by
Princeton University), one a line, "WordNet id, tab, lemmas", sorted by id. Line n, counted from 0,
is class n; these are the class ids that MaskGIT was trained with.
"""

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from torch import Tensor

from maskgit_pt.classes import Classes

NUM_CLASSES = 1000
# Every lemma of these four also belongs to another class; the word added follows WordNet's gloss.
_QUALIFIED_NAMES = {
    134: "crane (bird)",
    474: "cardigan (jacket)",
    517: "crane (machine)",
    638: "maillot (tights)",
}


@cache
def _classes() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(WordNet id, lemmas) of each class, in the order of the class ids."""
    text = resources.files("maskgit_pt").joinpath("imagenet_classes.txt").read_text("utf-8")
    rows = (line.split("\t") for line in text.splitlines())
    return tuple((wordnet_id, tuple(lemmas.split(", "))) for wordnet_id, lemmas in rows)


def class_names() -> list[tuple[str, ...]]:
    """The lemmas of each class: class_names()[0] is ("tench", "Tinca tinca")."""
    return [lemmas for _, lemmas in _classes()]


def wordnet_ids() -> list[str]:
    """The WordNet id of each class, ascending: "n01440764" is class 0."""
    return [wordnet_id for wordnet_id, _ in _classes()]


@cache
def imagenet() -> Classes:
    """ImageNet's classes; each may also be called by its WordNet id."""
    wordnet = wordnet_ids()
    aliases = [
        (_QUALIFIED_NAMES[label], wordnet_id) if label in _QUALIFIED_NAMES else (wordnet_id,)
        for label, wordnet_id in enumerate(wordnet)
    ]
    listing = "ImageNet names, WordNet ids"
    return Classes(NUM_CLASSES, class_names(), aliases, "ImageNet", listing, case_counts=False)


def class_name(label: int) -> str:
    """One name for a class, unlike that of any other, from which `parse_labels` finds the class.

    It is the first lemma. Where two classes share that (crane, cardigan, maillot) it is the first
    lemma that names this class alone (264 "Cardigan Welsh corgi", 639 "tank suit"), or, without
    such a lemma, one with a word added: "crane (bird)" is 134 and "crane (machine)" 517.

    Raises:
      ValueError: label is not one of 0 to 999.
    """
    return imagenet().name(label)


def classes_of(num_classes: int, names: Sequence[str] | None = None) -> Classes:
    """The classes of a model.

    Args:
      num_classes: how many; 0: it has none.
      names: what its configuration calls them, one for each. None: they are ImageNet's if there are 1000,
        and have ids alone if not. A WordNet id stands for the names of that class. A number in front that
        is the class's own ("5_sandal" of class 5) may be left out.

    Raises:
      ValueError: another number of names.
    """
    if names is None:
        return imagenet() if num_classes == NUM_CLASSES else Classes(num_classes)
    if len(names) != num_classes:
        raise ValueError(
            f"class_names are {len(names)}; accepted: {num_classes}, one for each class"
        )
    known = {wordnet_id: lemmas for wordnet_id, lemmas in _classes()}
    lemmas, aliases = [], []
    for label, name in enumerate(names):
        without_number = re.sub(rf"^0*{label}[\s._-]+(?=\S)", "", name)
        lemmas.append(known.get(name, (without_number,)))
        aliases.append((name,) if lemmas[-1] != (name,) else ())
    return Classes(num_classes, lemmas, aliases)


def stored_names(names: Sequence[str]) -> list[str] | None:
    """The names that a model's configuration keeps of its training data's classes.

    None if they tell nothing: ImageNet's 1000 in their order, or mere numbers. Bytes of a file's name that
    are no text are replaced.
    """
    names = list(names)
    if names in (wordnet_ids(), [str(label) for label in range(len(names))]):
        return None
    return [name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in names]


def parse_labels(text: str | Sequence[str | int], num_classes: int = NUM_CLASSES) -> list[int]:
    """`Classes.parse` for a model of so many classes; names and WordNet ids need the 1000 of ImageNet.

    "harp" is 594, although 593, the harmonica, is a harp too; "panda" and "crane" are ambiguous.
    """
    return classes_of(num_classes).parse(text)


def class_ids(labels: Any, num_classes: int = NUM_CLASSES) -> Tensor:
    """`Classes.ids` for a model of so many classes."""
    return classes_of(num_classes).ids(labels)
