"""Starting from trained weights, also for other classes, more tokens or another tokenizer (`init_from`).

What the weights know is copied: codes, mask, the classes that the run has too, and all that is no table.
Classes that they do not know begin as the mean of those that they know.
"""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt import imagenet
from maskgit_pt.classes import Classes
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.nets.mage import Mage
from maskgit_pt.nets.maskgit_transformer import Transformer
from maskgit_pt.pretrained import load_any
from train.tasks.token_source import Tokens

AS_INIT = "init_from"  # config.model: the network and sizes of the weights
NEW = "new"  # in config.init_classes
_NETWORKS = {cls.model_type: cls for cls in (Transformer, BesnierTransformer, Mage)}
# Parameters with a row for every position, in any network.
_POSITIONAL = ("embed.position_embeddings.weight", "pos_emb", "bias")
# Those with an entry for every id: the table of embeddings first; and along which axis.
_TABLES = {
    Transformer: {"embed.word_embeddings.weight": 0, "mlm_layer.mlm_bias.bias": 0},
    BesnierTransformer: {"tok_emb.weight": 0, "bias": 1},
    Mage: {"class_emb.weight": 0},
}
_SIZES = {
    "num_layers": "num_hidden_layers",
    "num_embeds": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_heads": "num_attention_heads",
}


@dataclasses.dataclass
class Start:
    """Trained weights to start from, and what of them a run takes.

    Attributes:
      path: where they come from.
      model: the trained network.
      num_codes: K of the run.
      trained_codes: K of `model`.
      class_names: those of the run.
      class_of: for each class of the run the class of `model` that it begins as; -1: a new one.
      data_classes: int64, for each class of the data the class of the run; None: the same.
      same_codes: whether codes mean what they meant when `model` was trained.
    """

    path: str
    model: nn.Module
    num_codes: int
    trained_codes: int
    class_names: list[str]
    class_of: list[int]
    data_classes: np.ndarray | None
    same_codes: bool = True

    @property
    def rows(self) -> Tensor:
        """For each id of the run's table the id of the trained one, int64 [V]; -1: new."""
        classes = torch.tensor(self.class_of, dtype=torch.int64)
        classes = torch.where(classes < 0, classes, classes + self.first_class)
        if isinstance(self.model, Mage):
            return classes
        codes = (
            torch.arange(self.num_codes) if self.same_codes else torch.full([self.num_codes], -1)
        )
        mask = torch.arange(self.trained_codes, self.first_class)  # if it stands before the classes
        last = torch.tensor([self.first_class + self.num_trained_classes])  # the mask, or no class
        return torch.cat([codes, mask, classes, last])

    @property
    def first_class(self) -> int:
        """The id of the first class in the table of `model`."""
        if isinstance(self.model, Mage):
            return 0
        return self.trained_codes + isinstance(self.model, BesnierTransformer)

    @property
    def num_trained_classes(self) -> int:
        """How many classes `model` has."""
        return self.model.num_classes_with(self.trained_codes)

    def describe(self) -> str:
        """Says in a line what is copied and what is new."""
        new = [name for name, old in zip(self.class_names, self.class_of, strict=True) if old < 0]
        listed = ", ".join(new[:8]) + (", ..." if len(new) > 8 else "")
        told = f"{self.path}: {len(self.class_of) - len(new)} classes go on"
        told += f", {len(new)} are new ({listed})" if new else ", none is new"
        return told + ("" if self.same_codes else "; the codes are another tokenizer's, and new")


def load(config: ml_collections.ConfigDict) -> tuple[nn.Module | None, ml_collections.ConfigDict]:
    """Loads `config.init_from`, if that is set.

    Returns:
      The trained network or None; and the settings, with its kind and sizes if `config.model` asks for them.

    Raises:
      FileNotFoundError, ValueError: see `load_any`; or `config.model` asks for weights that are not named.
    """
    if not config.init_from:
        if config.model == AS_INIT:
            raise ValueError(
                "config.model is 'init_from', and config.init_from is not set; accepted: trained weights, a "
                "folder, a file or a hub id"
            )
        return None, config
    if config.model != AS_INIT:
        return load_any(config.init_from, [_NETWORKS[config.model]]), config
    model = load_any(config.init_from, [Transformer, BesnierTransformer])
    config = copy.deepcopy(config)
    config.model = model.model_type
    sizes = model.to_config()
    config.transformer.update({ours: sizes[theirs] for ours, theirs in _SIZES.items()})
    return model, config


def plan(model: nn.Module, config: ml_collections.ConfigDict, tokens: Tokens) -> Start:
    """Decides which classes and codes of trained weights a run takes.

    Args:
      model: the trained network.
      config: of the run.
      tokens: of the run.

    Raises:
      ValueError: other classes than `config` says, or tokens of another tokenizer without its word.
    """
    path = config.init_from
    codes = _num_codes(model, tokens.num_codes)
    same_codes = _check_tokenizer(model, codes, config, tokens)
    old = imagenet.classes_of(_num_classes(model, codes, path), model.class_names)
    without_classes = config.task == "mage" and not config.num_class
    names = [] if without_classes else list(tokens.data_classes)
    new = imagenet.classes_of(len(names), names)
    class_of = _asked_for(old, config.init_classes, new.count)
    class_of = class_of or [_same_class(old, new, label) for label in range(new.count)]
    data_classes = None
    if config.keep_classes:
        kept = [old.name(label) if old.names else str(label) for label in range(old.count)]
        added = [label for label in range(new.count) if class_of[label] < 0]
        data_classes = np.array(class_of, np.int64)
        data_classes[added] = old.count + np.arange(len(added))
        names = kept + [names[label] for label in added]
        class_of = [*range(old.count), *[-1] * len(added)]
    if config.num_class and config.num_class < len(names):
        raise ValueError(
            f"config.num_class is {config.num_class}; the run has {len(names)} classes; accepted: as many, "
            "more, or 0 for as many"
        )
    spare = range(len(names), config.num_class)
    names, class_of = [*names, *map(str, spare)], class_of + [-1] * len(spare)
    if model.class_names is None and len(names) == old.count and max(class_of, default=0) < 0:
        # Nothing has a name in common: they are taken by their numbers.
        class_of = list(range(old.count))
    return Start(path, model, tokens.num_codes, codes, names, class_of, data_classes, same_codes)


def _check_tokenizer(
    model: nn.Module, codes: int, config: ml_collections.ConfigDict, tokens: Tokens
) -> bool:
    """Whether the codes are those of the run; ValueError if not, and not told to be others."""
    told, known = config.init_other_tokenizer, model.tokenizer_fingerprint
    same = not told and codes == tokens.num_codes and known in (None, tokens.fingerprint)
    if not same and not told:
        what = f"{codes} codes" if codes != tokens.num_codes else "the codes of another tokenizer"
        raise ValueError(
            f"config.init_from: {config.init_from} was trained on {what}, this run has {tokens.num_codes} of "
            "its own; accepted: tokens of the same tokenizer, or --config.init_other_tokenizer, with which "
            "the codes learn anew"
        )
    return same


def _num_classes(model: nn.Module, codes: int, path: str) -> int:
    count = model.num_classes_with(codes)
    if count < 0 or (count == 0 and not isinstance(model, Mage)):
        raise ValueError(
            f"config.init_from: {path} has {codes + count + 1} ids; accepted: more than this run's {codes} "
            "codes and a mask"
        )
    return count


def with_classes(
    config: ml_collections.ConfigDict, names: Sequence[str]
) -> ml_collections.ConfigDict:
    """The settings with the number of classes, where they leave it to the data and the weights."""
    if config.num_class or config.task == "mage":
        return config
    config = copy.deepcopy(config)
    config.num_class = len(names)
    return config


def _num_codes(model: nn.Module, num_codes: int) -> int:
    """K of a trained network; the official one only knows codes and classes together."""
    if not isinstance(model, Transformer):
        return model.num_codes
    if model.class_names is None:
        return num_codes  # as many as the run's, and the rest are classes
    return model.to_config()["vocab_size"] - len(model.class_names) - 1


def _asked_for(old: Classes, text: str, count: int) -> list[int]:
    """`config.init_classes` as classes of the trained network, -1 for new ones; empty if it is."""
    if not text:
        return []
    entries = [entry.strip() for entry in text.split(",")]
    try:
        found = [[-1] if entry == NEW else old.parse(entry) for entry in entries]
    except ValueError as error:
        raise ValueError(f"config.init_classes: {error}; or {NEW!r}") from None
    if len(found) != count or any(len(one) != 1 for one in found):
        raise ValueError(
            f"config.init_classes is {text!r}; accepted: {count} entries, one for each class of the data: an "
            f"id or a name of a class of config.init_from, or {NEW!r}"
        )
    return [one[0] for one in found]


def _same_class(old: Classes, new: Classes, label: int) -> int:
    """The trained class that a class of the data is called like; -1: none."""
    for name in (*new.names[label], *new.aliases[label]):
        with contextlib.suppress(ValueError):
            found = old.parse(name) if old.names and not name.strip().isdigit() else []
            if len(found) == 1:
                return found[0]
    return -1


def fill(model: nn.Module, start: Start) -> None:
    """Copies trained weights into the network of a run.

    A table for fewer positions grows by bilinear interpolation over the image grid; the class's own position
    is copied.

    Raises:
      ValueError: the weights are of another size.
    """
    expected, trained = model.state_dict(), start.model.state_dict()
    own = {name for name in expected if name.startswith("vqgan.")}  # MAGE's tokenizer is the run's
    trained = {name: value for name, value in trained.items() if not name.startswith("vqgan.")}
    for name, axis in _TABLES[type(model)].items():
        if name in expected and name in trained:
            trained[name] = _pick_rows(trained[name], expected[name], axis, start)
        elif name in expected:
            trained[name] = expected[name]  # a network without classes learns some
    for name, value in trained.items():
        if name in expected and value.shape != expected[name].shape:
            trained[name] = _grow(name, value, expected[name].shape, model, start.path)
    try:
        model.load_state_dict(trained | {name: expected[name] for name in own})
    except RuntimeError as error:
        raise ValueError(f"config.init_from: {start.path} does not fit: {error}") from None


def _pick_rows(trained: Tensor, fresh: Tensor, axis: int, start: Start) -> Tensor:
    """A table with an entry for each id along `axis`, for the run's ids."""
    rows = start.rows
    picked = trained.index_select(axis, rows.clamp(min=0))
    classes = trained.narrow(axis, start.first_class, start.num_trained_classes)
    new = classes.mean(axis, keepdim=True).expand_as(picked)
    shape = [-1 if i == axis else 1 for i in range(picked.dim())]
    if not start.same_codes and fresh.shape == picked.shape:
        is_code = torch.arange(len(rows)) < start.num_codes
        new = torch.where(is_code.view(shape), fresh, new)
    return torch.where((rows < 0).view(shape), new, picked)


def _grow(name: str, value: Tensor, shape: torch.Size, model: nn.Module, path: str) -> Tensor:
    """A table [positions, D], or [1, positions, D], for a larger grid."""
    old, new = _side(value.shape), _side(shape)
    if name not in _POSITIONAL or value.shape[-1] != shape[-1] or not 0 < old < new:
        larger = ", or a smaller square grid" if name in _POSITIONAL else ""
        raise ValueError(
            f"config.init_from: {path} does not fit: {name} has shape {list(value.shape)}; accepted: "
            f"{list(shape)}{larger}"
        )
    table = value.view(-1, shape[-1])
    class_is_last = isinstance(model, BesnierTransformer)
    label, grid = (table[-1:], table[:-1]) if class_is_last else (table[:1], table[1:])
    grid = grid.T.reshape(1, -1, old, old)  # [1, D, side, side]
    grid = F.interpolate(grid, size=(new, new), mode="bilinear", align_corners=False)
    grid = grid.flatten(2)[0].T  # [new * new, D]
    return torch.cat([grid, label] if class_is_last else [label, grid]).reshape(shape)


def _side(shape: torch.Size) -> int:
    """Of the square grid behind a table with a row for each place and one for the class; 0: none."""
    places = shape[-2] - 1 if len(shape) > 1 else 0
    side = math.isqrt(max(places, 0))
    return side if side**2 == places else 0


class LearningRates:
    """Lets what was trained before learn more slowly than new rows of the table of ids.

    Args:
      model: the network in training.
      optimizer: over its parameters; its groups change.
      config: `config.optimizer`, with the scale of the rate of what was trained before; 0: it stays as it is.
      start: what the run starts from.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: ml_collections.ConfigDict,
        start: Start,
    ):
        self.scale, self.table = config.init_lr_scale, None
        self.old = start.rows >= 0
        if not self.old.all():
            name = next(iter(_TABLES[type(model)]))
            self.table = dict(model.named_parameters())[name]
            self.old = self.old.to(self.table.device)
        for group in list(optimizer.param_groups):
            rest = [p for p in group["params"] if p is not self.table]
            if len(rest) < len(group["params"]):
                group["params"] = rest
                optimizer.add_param_group(group | {"params": [self.table], "lr_scale": 1.0})
            group["lr_scale"] = self.scale

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Surrounds a step of the optimizer."""
        if self.table is None:
            yield
            return
        table = self.table.detach()
        before = table[self.old]
        yield
        table[self.old] = before + self.scale * (table[self.old] - before)
