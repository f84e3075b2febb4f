"""Finds the recorded layers of the transformer among the submodules of somebody's torch module."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from parity.compare import to_numpy
from parity.packs.arrays import STRIDED
from parity.packs.pack import Pack

# A submodule's output is taken for a layer's if the root mean square of their difference is less than
# this part of the layer's.
_RESEMBLES = 0.5
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def capture(network: torch.nn.Module, call: Callable[[], None]) -> dict[str, np.ndarray]:
    """What all submodules that return one tensor of three axes return while `call` runs."""
    captured: dict[str, np.ndarray] = {}
    hooks = []
    for name, module in network.named_modules():

        def keep(_: Any, __: Any, output: Any, name: str = name) -> None:
            output = output[0] if isinstance(output, tuple) and output else output
            if name and isinstance(output, torch.Tensor) and output.ndim == 3:
                captured[name] = to_numpy(output).copy()

        hooks.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return captured


def match(
    pack: Pack, captured: Mapping[str, np.ndarray], wanted: Mapping[str, str], notes: list[str]
) -> dict[str, np.ndarray]:
    """Recorded name -> output of their submodule.

    Args:
      pack: what was recorded.
      captured: outputs by the path of the submodule.
      wanted: what their file says, e.g. {"layers.{i}.mlp": "blocks.{i}"}. Otherwise a submodule of the same
        name counts, or if there is none at all, the one that resembles most; what is found for one layer is
        then looked for in all, with its number replaced.
      notes: what was not found is added.
    """
    parts = ("transformer.embed", "transformer.layers.", "transformer.mlm_layer.")
    names = [name for name in pack.entries if name.startswith(parts)]
    paths = {name: _named(name, wanted) for name in names}
    if not any(path in captured for path in paths.values()):
        paths = _alike(pack, names, captured)
    found = {
        name: captured[path]
        for name, path in paths.items()
        if path in captured and captured[path].shape == pack.entries[name].shape
    }
    missing = [name for name in names if name not in found]
    if missing:
        notes.append(
            f"{len(missing)} of {len(names)} inner layers not found among the submodules, {missing[0]} "
            "first; a dictionary LAYERS in the file can name them"
        )
    return found


def _named(name: str, wanted: Mapping[str, str]) -> str:
    short = name.removeprefix("transformer.")
    number = _NUMBER.search(short)
    path = wanted.get(_NUMBER.sub("{i}", short, count=1), short)
    return path.replace("{i}", number[0]) if number else path


def _alike(pack: Pack, names: list[str], captured: Mapping[str, np.ndarray]) -> dict[str, str]:
    """By likeness; a path that serves in one layer serves, with another number, in all."""
    best: dict[str, str] = {}
    patterns: dict[str, str] = {}
    for name in names:
        shape = pack.entries[name].shape
        far = {p: _distance(pack, name, v) for p, v in captured.items() if v.shape == shape}
        path = min(far, key=far.__getitem__, default=None)
        if path is None or far[path] >= _RESEMBLES:
            continue
        best[name] = path
        number = _NUMBER.search(name)
        if number and number[0] in _NUMBER.findall(path):
            general = re.sub(rf"(?<![^.]){number[0]}(?![^.])", "{i}", path, count=1)
            patterns.setdefault(_NUMBER.sub("{i}", name, count=1), general)
    for name in names:
        number = _NUMBER.search(name)
        general = patterns.get(_NUMBER.sub("{i}", name, count=1)) if number else None
        if general and general.replace("{i}", number[0]) in captured:
            best[name] = general.replace("{i}", number[0])
    return best


def _distance(pack: Pack, name: str, values: np.ndarray) -> float:
    entry = pack.entries[name]
    ours = pack.part(entry, name + (STRIDED if entry.stride else ""))
    values = values.reshape(-1)[:: entry.stride] if entry.stride else values
    return float(np.sqrt(np.square(values - ours).mean() / max(np.square(ours).mean(), 1e-30)))
