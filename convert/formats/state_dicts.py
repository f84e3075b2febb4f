"""The dictionaries of tensors in a file: found, freed of prefixes, raw or averaged, for every packing."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from convert import infer, signatures
from convert.files.pickle_names import Thing
from convert.flax_msgpack import flatten
from maskgit_pt.files import printable

_MAX_CANDIDATES = 16
_MAX_DEPTH = 3  # of dictionaries around the tensors
_MAX_VALUES = 64
_MAX_WORD = 256
# What DistributedDataParallel, torch.compile, Lightning modules and trainers put before every name.
_PREFIX = re.compile(r"((module|_orig_mod|model|net)\.)+")
_AVERAGED = re.compile(r"(^|[._])(ema|shadow|averaged?|polyak)([._]|$)|ema$|^ema", re.IGNORECASE)
# What stands before the first dot, where a file without dictionaries holds several sets of tensors.
_GROUP = re.compile(r"(?P<group>\w*ema\w*|model|module|net|state_dict|params|optimizer|opt)\.")
_OPTIMIZER = {"state", "param_groups"}
_TRAIN_STATE = {"opt_state", "step", "tx", "apply_fn"}  # fields of flax.training.TrainState


@dataclass
class StateDict:
    """One of the dictionaries of tensors in a file.

    Attributes:
      wrapper: the keys it stands under, joined by dots; None for the file itself.
      tensors: name -> tensor, mapped where the file allows it.
      left_out: what else stands between the tensors.
    """

    wrapper: str | None
    tensors: dict[str, Tensor]
    left_out: list[str] = field(default_factory=list)

    @property
    def averaged(self) -> bool:
        """Whether it is a moving average of the weights, by its key."""
        return is_averaged(self.wrapper or "")


def is_averaged(name: str) -> bool:
    """Whether a key or a folder is called after a moving average."""
    return bool(_AVERAGED.search(name))


@dataclass
class Contents:
    """What is in a file.

    Attributes:
      candidates: its dictionaries of tensors.
      values: plain numbers and words beside them: steps, versions.
      left_out: what else there is, by key.
    """

    candidates: list[StateDict] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def key_of(self, key: Any) -> str:
        """A key of the file, fit for messages."""
        return printable(str(key)[:_MAX_WORD])


def contents(tree: Mapping[Any, Any]) -> Contents:
    """Looks through what a file holds by name."""
    found = Contents()
    _collect(tree, None, found, 0)
    return found


def flax_contents(tree: dict[str, Any]) -> tuple[str, Contents]:
    """Looks through a Flax tree: variables ({"params": ...}), a train state, or bare parameters.

    Returns:
      Which of these it is, and what is in it, under official names.

    Raises:
      ValueError: variables with anything but tensors among them.
    """
    found = Contents()
    averages = [k for k, value in tree.items() if isinstance(value, dict) and _AVERAGED.search(k)]
    if not averages and not _TRAIN_STATE & tree.keys():
        bare = {} if "params" in tree else dict(flatten({"params": tree}))
        if (
            bare
            and infer.likeness(bare, signatures.SIGNATURES) > 0.5
            and all(map(is_tensor, bare.values()))
        ):
            found.candidates.append(StateDict(None, bare))
            return "bare Flax parameters", found
        tensors = dict(flatten(tree))
        for name, leaf in tensors.items():
            if not is_tensor(leaf):
                raise ValueError(f"{name} is a {type(leaf).__name__}, not a tensor")
        found.candidates.append(StateDict(None, tensors))
        return "Flax", found
    for key, value in tree.items():
        if isinstance(value, dict) and (key in averages or key == "params"):
            variables = value if "params" in value else {"params": value}
            if key == "params" and "batch_stats" in tree:
                variables = variables | {"batch_stats": tree["batch_stats"]}
            tensors = {n: leaf for n, leaf in flatten(variables) if is_tensor(leaf)}
            found.candidates.append(StateDict(found.key_of(key), tensors))
        elif is_tensor(value) and value.numel() == 1 and not value.is_complex():
            found.values[found.key_of(key)] = value.item()
        elif _is_plain(value):
            found.values[found.key_of(key)] = value
        elif key != "batch_stats":
            found.left_out[found.key_of(key)] = describe(value)
    return "Flax train state", found


def _collect(tree: Mapping[Any, Any], wrapper: str | None, found: Contents, depth: int) -> bool:
    """Adds the dictionaries in `tree`; says whether there are any."""
    before = len(found.candidates)
    own = {
        name: value for name, value in tree.items() if isinstance(name, str) and is_tensor(value)
    }
    others = [key for key in tree if key not in own]
    for group, tensors in _groups(own).items():
        key = ".".join(filter(None, (wrapper, group))) or None
        if len(found.candidates) < _MAX_CANDIDATES:
            found.candidates.append(_without_prefix(StateDict(key, tensors)))
    if own and wrapper is not None:  # what stands between them
        found.candidates[before].left_out += [found.key_of(key) for key in others]
        return True
    for key in others:
        value = tree[key]
        inner = ".".join(filter(None, (wrapper, found.key_of(key))))
        nested = isinstance(value, dict) and depth < _MAX_DEPTH and _OPTIMIZER - value.keys()
        if nested and isinstance(key, str) and _collect(value, inner, found, depth + 1):
            continue
        if wrapper is not None:
            continue  # told as a whole, by its own key
        if _is_plain(value) and isinstance(key, str) and len(found.values) < _MAX_VALUES:
            found.values[found.key_of(key)] = value
        elif value is not None:  # None is nothing that could be left out
            found.left_out[found.key_of(key)] = describe(value)
    return len(found.candidates) > before


def _groups(tensors: dict[str, Tensor]) -> dict[str | None, dict[str, Tensor]]:
    """By what stands before the first dot, if that sets apart several sets; else all under None."""
    if not tensors:
        return {}
    groups: dict[str | None, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _GROUP.match(name)
        if not match:
            return {None: tensors}
        groups.setdefault(match["group"], {})[name[match.end() :]] = tensor
    return groups if len(groups) > 1 else {None: tensors}


def _without_prefix(state: StateDict) -> StateDict:
    prefix = _PREFIX.match(next(iter(state.tensors), ""))
    if prefix and all(name.startswith(prefix[0]) for name in state.tensors):
        state.tensors = {n.removeprefix(prefix[0]): t for n, t in state.tensors.items()}
        state.left_out.append(f"the names' prefix {prefix[0]}")
    state.tensors = {printable(name): tensor.detach() for name, tensor in state.tensors.items()}
    return state


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of numbers in memory that is addressed by strides."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, str) and len(value) < _MAX_WORD and value.isprintable() or isinstance(
        value, bool | float
    )  # fmt: skip


def describe(value: Any) -> str:
    """What something in a file is, in a few words."""
    if isinstance(value, Thing):
        return f"an object of {value.kind}"
    if isinstance(value, type) and issubclass(value, Thing):
        return f"the name of {value.kind}"
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    size = f" of {len(value):,}" if isinstance(value, dict | list | tuple) else ""
    return f"{'an' if isinstance(value, int) else 'a'} {type(value).__name__}{size}"
