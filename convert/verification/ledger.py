"""The ledger of published weights, `ledger.json`: where each file is, what is in it, and its fingerprint.

Hardly any checksum of these files is public. What is, is shapes, and of Google's 256-pixel transformer the
least and largest value of some tensors. Fingerprints are entered as people send them (docs/ledger.md).
"""

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from convert import infer, rules

Ranges = Mapping[str, tuple[float, float]]

FILE = "ledger.json"
_PRINTED = 5e-5  # the ranges are rounded to 4 decimals
_HALF = 2**-8  # bfloat16 rounds by up to this part


@dataclass(frozen=True)
class Model:
    """What files of the same shapes hold.

    Attributes:
      name: in the ledger.
      model_type, config: what the model is; what the config leaves out is the default.
      tensors, parameters: how many tensors there are, under the official names, and numbers in them.
      ranges: official name -> least and largest value of some tensors, where that is public.
    """

    name: str
    model_type: str
    config: dict
    tensors: int
    parameters: int
    ranges: Ranges = field(default_factory=dict)

    def complete(self) -> dict:
        """The whole configuration."""
        return rules.target(self.model_type, self.config)[2]


@dataclass(frozen=True)
class Entry:
    """A published file.

    Attributes:
      name: whose it is, and its name there.
      model: what it holds.
      file: its name, without a folder.
      format: a name of `formats.BY_NAME`.
      where: the address, or "hub: " and an id.
      licence: as stated there.
      copy_of: the name of the entry that it has the weights of, by what its authors say.
      remark: for a person.
      sha256: of the file that holds the weights; None: nobody has measured it yet.
      fingerprint: of the weights (`inspection.fingerprint`); None likewise.
      measured_by: who sent them.
    """

    name: str
    model: Model
    file: str
    format: str
    where: str
    licence: str
    copy_of: str | None = None
    remark: str | None = None
    sha256: str | None = None
    fingerprint: str | None = None
    measured_by: str | None = None


@functools.cache
def _read() -> dict:
    text = importlib.resources.files("convert").joinpath(FILE).read_text(encoding="utf-8")
    return json.loads(text)


def models() -> dict[str, Model]:
    """All models by name."""
    return {name: Model(name, **fields) for name, fields in _read()["models"].items()}


def entries() -> dict[str, Entry]:
    """All published files by name."""
    known = models()
    return {
        name: Entry(name, **fields | {"model": known[fields["model"]]})
        for name, fields in _read()["files"].items()
    }


def model_of(model_type: str, config: dict) -> Model | None:
    """The model that has these shapes; None if no published file is known to have them."""
    visible = infer.visible(config)
    same_type = (known for known in models().values() if known.model_type == model_type)
    return next((known for known in same_type if infer.visible(known.complete()) == visible), None)


def entries_of(model: Model | None) -> list[Entry]:
    """The files of a model."""
    return [entry for entry in entries().values() if model and entry.model.name == model.name]


def nearest(model_type: str, config: dict) -> str:
    """Says in what a model differs from the published one that is most like it."""
    mine = _flat(infer.visible(config))
    candidates = []
    for known in models().values():
        if known.model_type == model_type:
            theirs = _flat(infer.visible(known.complete()))
            keys = sorted(mine.keys() | theirs.keys())
            differing = [key for key in keys if mine.get(key) != theirs.get(key)]
            told = [f"{key} {mine.get(key)}, not {theirs.get(key)}" for key in differing]
            candidates.append((len(differing), known.name, told))
    if not candidates:
        return f"no published file holds a {model_type}"
    _, name, told = min(candidates)
    return f"nearest is {name}, but for {rules.abbreviate(told)}"


def describe(model_type: str, config: dict, ranges: Ranges, dtype: str) -> str:
    """Which published files have these shapes, and whether the values may be theirs.

    Args:
      model_type, config: of the model.
      ranges: official name -> its least and largest value.
      dtype: of the weights.
    """
    model = model_of(model_type, config)
    if model is None:
        return "no published file is known to have these shapes"
    text = f"has the shapes of: {', '.join(map(_named, entries_of(model)))}"
    if not model.ranges:
        return text
    total = len(model.ranges)
    if differing := out_of_range(model, ranges, dtype):
        return (
            f"{text}; but not their values: {len(differing)} of {total} tensors have another range "
            f"({rules.abbreviate(differing, 2)})"
        )
    return f"{text}; and their range of values in each of {total} tensors"


def out_of_range(model: Model, ranges: Ranges, dtype: str) -> list[str]:
    """The tensors of which the published range is known and is another one; arguments as `describe`."""
    rounding = 0.0 if dtype in ("float32", "float64") else _HALF
    return [
        name for name, printed in model.ranges.items() if not _same(ranges[name], printed, rounding)
    ]


def _named(entry: Entry) -> str:
    return f"{entry.name} ({entry.remark})" if entry.remark else entry.name


def _flat(config: dict) -> dict:
    """A nested configuration with one level: "vqvae.filters"."""
    flat = {}
    for key, value in config.items():
        inner = _flat(value) if isinstance(value, dict) else None
        flat |= {f"{key}.{k}": v for k, v in inner.items()} if inner is not None else {key: value}
    return flat


def _same(found: tuple[float, float], printed: tuple[float, float], rounding: float) -> bool:
    """Equal but for rounding: of what was printed, and of weights converted to 16 bits."""
    return all(
        abs(a - b) <= 1.01 * (_PRINTED + rounding * abs(b))
        for a, b in zip(found, printed, strict=True)
    )
