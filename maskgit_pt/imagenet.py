"""The 1000 ImageNet classes: their names and WordNet ids, and labels given as text.

`imagenet_classes.txt` holds the WordNet 3.0 synsets of ILSVRC 2012 (WordNet, copyright 2006 by
Princeton University), one a line, "WordNet id, tab, lemmas", sorted by id. Line n, counted from 0,
is class n; these are the class ids that MaskGIT was trained with.
"""

import difflib
import re
import warnings
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

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


def class_name(label: int) -> str:
    """One name for a class, unlike that of any other, from which `parse_labels` finds the class.

    It is the first lemma. Where two classes share that (crane, cardigan, maillot) it is the first
    lemma that names this class alone (264 "Cardigan Welsh corgi", 639 "tank suit"), or, without
    such a lemma, one with a word added: "crane (bird)" is 134 and "crane (machine)" 517.

    Raises:
      ValueError: label is not one of 0 to 999.
    """
    if not 0 <= label < NUM_CLASSES:
        raise ValueError(f"label {label} is no ImageNet class; accepted: 0 to {NUM_CLASSES - 1}")
    if label in _QUALIFIED_NAMES:
        return _QUALIFIED_NAMES[label]
    lemmas = class_names()[label]
    return next(lemma for lemma in lemmas if _labels_by_name()[_simplify(lemma)] == [label])


def parse_labels(text: str | Sequence[str | int], num_classes: int = NUM_CLASSES) -> list[int]:
    """Class ids from text such as "90", "0-9,207", "lorikeet,golden retriever" or "all".

    Items are separated by commas; a sequence is a list of such texts. An item is an id, a range
    with both ends included, "all", a WordNet id ("n01820546"), or any lemma of a class. Case does
    not matter in names; spaces, underscores and hyphens are alike, and apostrophes, full stops and
    brackets may be left out. A name that several classes have means the one whose first lemma it
    is ("harp" is 594, although 593, the harmonica, is a harp too); it is an error if none or
    several of them have it first ("panda", "crane").

    Args:
      text: the labels.
      num_classes: classes of the model; names and WordNet ids need the 1000 of ImageNet.

    Returns:
      ids in 0 ... num_classes - 1, in the order given. Each appears once, where it came first, so
      that a whole list of lemmas ("tench, Tinca tinca") is one class.

    Raises:
      ValueError: no or an empty item, an id or range outside the classes, a reversed range, an
        unknown or ambiguous name, or a name for a model without the classes of ImageNet.
    """
    texts = [text] if isinstance(text, str) else text
    items = [item.strip() for part in texts for item in str(part).split(",")]
    if not items or "" in items:
        found = "is empty" if not any(items) else "has an empty item"
        raise ValueError(f"the list of labels {found}; accepted: {_accepted(num_classes)}")
    labels = [label for item in items for label in _parse_item(item, num_classes)]
    return list(dict.fromkeys(labels))


def class_ids(labels: Any, num_classes: int = NUM_CLASSES) -> Tensor:
    """Checked class ids from whatever a caller gives as labels.

    Args:
      labels: one class or several: whole numbers (also as an array or tensor), or texts as in `parse_labels`,
        each of which may name several classes.
      num_classes: classes of the model; 0: it has none, and labels only say how many images there are. None
        is one image, and anything but 0 is told to be ignored.

    Returns:
      int64 [B] on the CPU, in the order given; a class may be there several times.

    Raises:
      ValueError: no labels, no whole numbers, a one-hot row, or no such class.
    """
    if num_classes == 0:
        return _without_classes(labels)
    if isinstance(labels, str):
        labels = parse_labels(labels, num_classes)
    elif isinstance(labels, Sequence) and any(isinstance(label, str) for label in labels):
        labels = [i for label in labels for i in parse_labels(str(label), num_classes)]
    try:
        found = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"labels are {labels!r}; accepted: {_accepted(num_classes)}") from None
    if found.numel() == 0:
        raise ValueError("no labels; accepted: one class id or several")
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ValueError(
            f"label is {found.reshape(-1)[0].item()}; accepted: whole numbers, 0 to {num_classes - 1}"
        )
    row = found.reshape(-1).long()
    one_hot = len(row) == num_classes > 2 and int(row.min()) == 0 and int(row.abs().sum()) == 1
    if one_hot or found.ndim > 2 or (found.ndim == 2 and found.shape[1] > 1):
        what = "are a one-hot row" if one_hot else f"have shape {list(found.shape)}"
        raise ValueError(
            f"labels {what}; accepted: class ids [B] (of one-hot rows: labels.argmax(-1))"
        )
    wrong = row[(row < 0) | (row >= num_classes)]
    if len(wrong):
        raise ValueError(f"label is {int(wrong[0])}; accepted: 0 to {num_classes - 1}")
    return row


def _without_classes(labels: Any) -> Tensor:
    """One 0 for each label; a warning if any asks for something."""
    if labels is None:
        return torch.zeros(1, dtype=torch.long)
    if isinstance(labels, np.ndarray | Tensor):
        labels = labels.tolist()
    labels = (
        list(labels) if isinstance(labels, Sequence) and not isinstance(labels, str) else [labels]
    )
    if not labels:
        raise ValueError("no labels; accepted for a model without classes: None, or one 0 an image")
    if any(str(label) != "0" for label in labels):
        warnings.warn("the model has no classes: labels are ignored", stacklevel=3)
    return torch.zeros(len(labels), dtype=torch.long)


def _parse_item(item: str, num_classes: int) -> Sequence[int]:
    if item.lower() == "all":
        return range(num_classes)
    # Ten digits are plenty for an id, and keep clear of Python's limit on the length of integers.
    match = re.fullmatch(r"([0-9]{1,10})(?:\s*-\s*([0-9]{1,10}))?", item)
    if not match:
        return [_find_name(item, num_classes)]
    first, last = int(match[1]), int(match[2] or match[1])
    if max(first, last) >= num_classes:
        _fail(item, "is outside the classes", _accepted(num_classes))
    if first > last:
        _fail(item, "is a reversed range", f"{last}-{first}")
    return range(first, last + 1)


def _find_name(item: str, num_classes: int) -> int:
    """The class of a name or WordNet id; see `parse_labels` for the rules and errors."""
    if num_classes != NUM_CLASSES:
        _fail(
            item,
            f"is no id, and this model has {num_classes} classes and takes ids alone",
            _accepted(num_classes),
        )
    name = _simplify(item)
    labels = _labels_by_name().get(name, [])
    if len(labels) == 1:
        return labels[0]
    if labels:
        choices = ", ".join(f"{label} {class_name(label)}" for label in labels)
        _fail(item, "names several classes", f"one of these ids or names: {choices}")
    # A word of a name ("corgi") is too far from the name in letters for difflib.
    known = _labels_by_name()
    near = [other for other in known if f" {name} " in f" {other} "]
    near = (near or difflib.get_close_matches(name, known, cutoff=0.7))[:3]
    hint = f" (near it: {', '.join(near)})" if near else ""
    _fail(item, f"is no class of ImageNet{hint}", _accepted(num_classes))


@cache
def _labels_by_name() -> dict[str, list[int]]:
    """Simplified name or WordNet id -> the classes it can mean, ascending."""
    by_name: dict[str, list[int]] = {}
    by_first: dict[str, list[int]] = {}
    for label, (wordnet_id, lemmas) in enumerate(_classes()):
        names = [_simplify(lemma) for lemma in lemmas]
        by_first.setdefault(names[0], []).append(label)
        names += [wordnet_id, _simplify(_QUALIFIED_NAMES.get(label, wordnet_id))]
        for name in dict.fromkeys(names):
            by_name.setdefault(name, []).append(label)
    return by_name | by_first


def _simplify(name: str) -> str:
    """The form in which names are compared: lower case, single spaces, letters and digits."""
    return " ".join(re.sub(r"[\s_-]+", " ", re.sub(r"['’.()]", "", name)).lower().split())


def _accepted(num_classes: int) -> str:
    ids = f"ids 0 to {num_classes - 1}, ranges of them such as 0-{min(9, num_classes - 1)}, all"
    return f"{ids}, ImageNet names, WordNet ids" if num_classes == NUM_CLASSES else ids


def _fail(item: str, found: str, accepted: str) -> NoReturn:
    raise ValueError(f"label {item!r} {found}; accepted: {accepted}")
