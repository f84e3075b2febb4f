"""The classes of a model: how many there are, what they are called, and labels given as text.

`imagenet.classes_of` makes them for a model: ImageNet's 1000, or those whose names its configuration holds.
"""

import difflib
import re
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

_MOST_LISTED = 12  # names in an error message


class Classes:
    """Classes 0 ... count - 1.

    Args:
      count: 0: a model without classes.
      names: for each class what it is called, the preferred name first; none: classes have ids alone.
      aliases: for each class more texts that mean it.
      owner: whose classes they are, for errors.
      listing: what errors say of the names; default: the names.
      case_counts: whether a name that several classes have means the one that spells it with the same case.
    """

    def __init__(
        self,
        count: int,
        names: Sequence[Sequence[str]] = (),
        aliases: Sequence[Sequence[str]] = (),
        owner: str = "this model",
        listing: str | None = None,
        case_counts: bool = True,
    ):
        self.count, self.owner = count, owner
        self.names = [tuple(of_one) for of_one in names]
        self.aliases = [tuple(of_one) for of_one in aliases] or [()] * count
        self.case_counts = case_counts
        self._by_name = self._index()
        self._listing = listing if listing is not None or not self.names else self._list_names()

    def _index(self) -> dict[str, list[int]]:
        """Simplified name -> the classes it can mean, ascending; the preferred name counts most."""
        by_name: dict[str, list[int]] = {}
        by_first: dict[str, list[int]] = {}
        for label, names in enumerate(self.names):
            known = [simplify(name) for name in (*names, *self.aliases[label])]
            by_first.setdefault(known[0], []).append(label)
            for name in dict.fromkeys(known):
                by_name.setdefault(name, []).append(label)
        found = by_name | by_first
        found.pop("", None)
        return found

    def name(self, label: int) -> str:
        """One name for a class, if there is one unlike that of any other class; else "class 3".

        Raises:
          ValueError: label is not one of the classes.
        """
        if not 0 <= label < self.count:
            whose = "ImageNet class" if self.owner == "ImageNet" else f"class of {self.owner}"
            raise ValueError(f"label {label} is no {whose}; accepted: 0 to {self.count - 1}")
        if not self.names:
            return f"class {label}"
        known = (*self.names[label], *self.aliases[label])
        return next((name for name in known if self._meanings(name) == [label]), known[0])

    def title(self, label: int) -> str:
        """The class for people: "90 lorikeet", "class 3", or "without a class"."""
        if not self.count:
            return "without a class"
        return f"{label} {self.name(label)}" if self.names else self.name(label)

    def choices(self) -> list[str]:
        """A line for each class with all that it is called, for searching."""
        if not self.names:
            return [f"class {label}" for label in range(self.count)]
        lines = []
        for label in range(self.count):
            parts = [str(label), ", ".join(self.names[label]), ", ".join(self.aliases[label])]
            lines.append(" · ".join(filter(None, parts)))
        return lines

    def parse(self, text: str | Sequence[str | int]) -> list[int]:
        """Class ids from text such as "90", "0-9,207", "lorikeet,golden retriever" or "all".

        Items are separated by commas; a sequence is a list of such texts. An item is an id, a range with both
        ends included, "all", or any name of a class. What reads as an id or a range is one, even if a class
        is called like it. Case does not matter in names; spaces, underscores, hyphens and slashes are alike,
        and apostrophes, full stops and brackets may be left out. A name that several classes have means the
        one whose preferred name it is; it is an error if none or several of them have it first.

        Returns:
          ids in 0 ... count - 1, in the order given. Each appears once, where it came first, so that a whole
          list of names ("tench, Tinca tinca") is one class.

        Raises:
          ValueError: no or an empty item, an id or range outside the classes, a reversed range, an unknown or
            ambiguous name.
        """
        texts = [text] if isinstance(text, str) else text
        items = [item for part in texts for item in self._split(str(part))]
        if not items or "" in items:
            found = "is empty" if not any(items) else "has an empty item"
            raise ValueError(f"the list of labels {found}; accepted: {self._accepted()}")
        labels = [label for item in items for label in self._parse_item(item)]
        return list(dict.fromkeys(labels))

    def ids(self, labels: Any) -> Tensor:
        """Checked class ids from whatever a caller gives as labels.

        Args:
          labels: one class or several: whole numbers (also as an array or tensor), or texts as in `parse`,
            each of which may name several classes. For a model without classes they only say how many images
            there are: None is one image, and anything but 0 is told to be ignored.

        Returns:
          int64 [B] on the CPU, in the order given; a class may be there several times.

        Raises:
          ValueError: no labels, no whole numbers, a one-hot row, or no such class.
        """
        if self.count == 0:
            return _without_classes(labels)
        if isinstance(labels, np.ndarray):  # of texts or of whole numbers in any order of bytes
            labels = labels.tolist()
        if isinstance(labels, str):
            labels = self.parse(labels)
        elif isinstance(labels, Sequence) and any(isinstance(label, str) for label in labels):
            labels = [i for label in labels for i in self.parse(str(label))]
        try:
            found = torch.as_tensor(labels).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"labels are {labels!r}; accepted: {self._accepted()}") from None
        if found.numel() == 0:
            raise ValueError("no labels; accepted: one class id or several")
        most = self.count - 1
        if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
            raise ValueError(
                f"label is {found.reshape(-1)[0].item()}; accepted: whole numbers, 0 to {most}"
            )
        row = found.reshape(-1).long()
        one_hot = len(row) == self.count > 2 and int(row.min()) == 0 and int(row.abs().sum()) == 1
        if one_hot or found.ndim > 2 or (found.ndim == 2 and found.shape[1] > 1):
            what = "are a one-hot row" if one_hot else f"have shape {list(found.shape)}"
            raise ValueError(
                f"labels {what}; accepted: class ids [B] (of one-hot rows: labels.argmax(-1))"
            )
        wrong = row[(row < 0) | (row >= self.count)]
        if len(wrong):
            raise ValueError(f"label is {int(wrong[0])}; accepted: 0 to {most}")
        return row

    def _split(self, text: str) -> list[str]:
        """The items of a text; one that is a name as a whole is not cut at its commas."""
        if "," in text and len(self._meanings(text)) == 1:
            return [text.strip()]
        return [item.strip() for item in text.split(",")]

    def _parse_item(self, item: str) -> Sequence[int]:
        if item.lower() == "all":
            return range(self.count)
        # Ten digits are plenty for an id, and keep clear of Python's limit on the length of integers.
        match = re.fullmatch(r"([0-9]{1,10})(?:\s*-\s*([0-9]{1,10}))?", item)
        if not match:
            return [self._find(item)]
        first, last = int(match[1]), int(match[2] or match[1])
        if max(first, last) >= self.count:
            _fail(item, "is outside the classes", self._accepted())
        if first > last:
            _fail(item, "is a reversed range", f"{last}-{first}")
        return range(first, last + 1)

    def _find(self, item: str) -> int:
        """The class of a name; see `parse` for the rules and errors."""
        if not self.names:
            found = f"is no id, and this model has {self.count} classes and takes ids alone"
            _fail(item, found, self._accepted())
        labels = self._meanings(item)
        if len(labels) == 1:
            return labels[0]
        if labels:
            choices = ", ".join(f"{label} {self.name(label)}" for label in labels)
            _fail(item, "names several classes", f"one of these ids or names: {choices}")
        # A word of a name ("corgi") is too far from the name in letters for difflib.
        name = simplify(item)
        near = [other for other in self._by_name if f" {name} " in f" {other} "]
        near = (near or difflib.get_close_matches(name, self._by_name, cutoff=0.7))[:3]
        hint = f" (near it: {', '.join(near)})" if near else ""
        _fail(item, f"is no class of {self.owner}{hint}", self._accepted())

    def _meanings(self, name: str) -> list[int]:
        """The classes that a name can mean."""
        labels = self._by_name.get(simplify(name), [])
        if len(labels) > 1 and self.case_counts:
            known = [(*self.names[label], *self.aliases[label]) for label in labels]
            same = [label for label, of_one in zip(labels, known, strict=True) if name in of_one]
            return same if len(same) == 1 else labels
        return labels

    def _list_names(self) -> str:
        names = [self.name(label) for label in range(min(self.count, _MOST_LISTED))]
        more = f" and {self.count - _MOST_LISTED} more" if self.count > _MOST_LISTED else ""
        return f"names: {', '.join(names)}{more}"

    def _accepted(self) -> str:
        most = self.count - 1
        ids = f"ids 0 to {most}, ranges of them such as 0-{min(9, most)}, all"
        return f"{ids}, {self._listing}" if self._listing else ids


def simplify(name: str) -> str:
    """The form in which names are compared: lower case, single spaces, letters and digits."""
    return " ".join(re.sub(r"[\s_/-]+", " ", re.sub(r"['’.()]", "", name)).lower().split())


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


def _fail(item: str, found: str, accepted: str) -> NoReturn:
    raise ValueError(f"label {item!r} {found}; accepted: {accepted}")
