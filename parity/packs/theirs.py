"""What somebody else's implementation computes: read from files, or by calling their Python file.

Names and layouts become those of the pack. A Python file is executed: give only files that you trust.
"""

import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from convert.files import safetensors_file
from parity.compare import to_numpy
from parity.packs import inner_layers
from parity.packs.decoding import MASK, Run
from parity.packs.pack import Pack

LAYOUTS = ("NHWC", "NCHW")
FUNCTIONS = ("logits", "encode", "decode", "sample", "step")


@dataclasses.dataclass
class Theirs:
    """What was given.

    Attributes:
      arrays: by the pack's names, in its layout.
      guesses: of whole decoding runs, by the run's name.
      notes: for the user: files and submodules that were not used.
      troubles: what could not be run: function -> why.
    """

    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    guesses: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    troubles: dict[str, str] = dataclasses.field(default_factory=dict)


def read_dump(folder: Path, pack: Pack, layout: str) -> Theirs:
    """Reads all safetensors and npy files of a folder.

    In a safetensors file the tensors bear the pack's names; an npy file is named NAME.npy, with "/" in
    the name written "__".

    Raises:
      ValueError, OSError: the folder or a file cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder (--dump)")
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors":
            found |= _read_safetensors(path)
        elif path.suffix == ".npy":
            name = str(path.relative_to(folder)).removesuffix(".npy").replace("__", "/")
            try:
                found[name] = np.load(path, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise ValueError(f"{path}: no NumPy array: {error}") from None
    theirs, unknown = Theirs(), []
    runs = {f"decoding.{row['name']}.guesses": row["name"] for row in pack.manifest["decoding"]}
    for name, values in found.items():
        entry = pack.entries.get(name)
        if name in runs:
            theirs.guesses[runs[name]] = values
        elif entry is None:
            unknown.append(name)
        elif entry.given:
            theirs.notes.append(f"{name} is an input of the pack: not compared")
        else:
            theirs.arrays[name] = to_pack_layout(values, entry.axes, layout)
    if unknown:
        theirs.notes.append(f"not known in this pack: {', '.join(unknown[:8])}")
    return theirs


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        safetensors_file.read_header(path)
        tensors = safetensors.torch.load_file(path)
    except (ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from None
    return {name: to_numpy(tensor) for name, tensor in tensors.items()}


def to_pack_layout(values: np.ndarray, axes: str, layout: str) -> np.ndarray:
    """NCHW -> NHWC for maps and images, everything else as it is."""
    is_map = axes.endswith("C") and values.ndim == 4
    return np.moveaxis(values, 1, -1) if is_map and layout == "NCHW" else values


def load_code(path: Path) -> ModuleType:
    """Executes a Python file, with its folder on the path of imports.

    Raises:
      ValueError: there is none, it fails, or it defines nothing that can be called.
    """
    spec = importlib.util.spec_from_file_location("theirs", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: no such Python file (--code)")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever their file raises
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not any(hasattr(module, name) for name in (*FUNCTIONS, "load")):
        raise ValueError(f"{path}: defines none of {', '.join(FUNCTIONS)}")
    return module


class Caller:
    """Calls the functions of their file with the inputs of a pack."""

    def __init__(self, module: Any, pack: Pack, layout: str):
        self.module, self.pack, self.layout = module, pack, layout
        self.theirs = Theirs()

    def collect(self) -> Theirs:
        """Everything that their functions compute; what they raise is a finding."""
        if hasattr(self.module, "load"):
            self._try("load", lambda: self.module.load(str(self.pack.folder)))
        calls = {
            "logits": ("ids", self._logits),
            "encode": ("images", self._encode),
            "decode": ("tokenizer.indices", self._decode),
            "sample": ("transformer.logits", self._sample),
            "step": ("transformer.logits", self._step),
        }
        for name, (needs, call) in calls.items():
            if getattr(self.module, name, None) is None:
                continue
            if needs in self.pack.entries:
                self._try(name, call)
            else:
                self.theirs.notes.append(f"{name}: this pack records nothing to compare it with")
        return self.theirs

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever their code raises
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self.theirs.troubles[name] = text[:300]

    def _logits(self) -> None:
        ids, function = self.pack.whole("ids").astype(np.int64), self.module.logits
        network = getattr(self.module, "transformer", function)
        outputs: list[Any] = []

        def call() -> None:
            outputs.append(_call(function, ids))

        if isinstance(network, torch.nn.Module):
            network.eval()
            captured = inner_layers.capture(network, call)
            wanted = getattr(self.module, "LAYERS", {})
            found = inner_layers.match(self.pack, captured, wanted, self.theirs.notes)
            self.theirs.arrays |= found
        else:
            call()
        self.theirs.arrays["transformer.logits"] = to_numpy(outputs[0])

    def _encode(self) -> None:
        images = self.pack.whole("images")
        if self.layout == "NCHW":
            images = np.moveaxis(images, -1, 1)
        found = _call(self.module.encode, np.array(images, order="C"))
        found = found if isinstance(found, tuple) else (found,)
        names = ("tokenizer.indices", "tokenizer.encoder.conv_out")
        for name, values in zip(names, found, strict=False):
            self._keep(name, values)

    def _decode(self) -> None:
        indices = self.pack.whole("tokenizer.indices").astype(np.int64)
        self._keep("tokenizer.images", _call(self.module.decode, indices))

    def _keep(self, name: str, values: Any) -> None:
        entry = self.pack.entries[name]
        values = to_pack_layout(to_numpy(values), entry.axes, self.layout)
        if name == "tokenizer.indices" and values.size == entry.size:
            values = values.reshape(entry.shape)  # a grid row by row serves as well
        self.theirs.arrays[name] = values

    def _sample(self) -> None:
        for row in self.pack.manifest["decoding"]:
            run = run_of(row)
            tokens = self.pack.whole(f"{run.prefix}state")[0].astype(np.int64)
            guesses = _call_named(
                self.module.sample, tokens=tokens, key=run.key, num_iter=run.num_iter,
                start_iter=run.start_iter, temperature=run.temperature,
                partitionable=run.partitionable,
            )  # fmt: skip
            self.theirs.guesses[run.name] = to_numpy(guesses)

    def _step(self) -> None:
        """Every step from our state and our logits."""
        for row in self.pack.manifest["decoding"]:
            run = run_of(row)
            if self.pack.entries[f"{run.prefix}logits"].stride:
                self.theirs.notes.append(f"step: the pack does not hold all logits of {run.name}")
                continue
            states, logits, keys = (
                self.pack.whole(run.prefix + name) for name in ("state", "logits", "key")
            )
            masked_at_start = (states[0] == MASK).sum(-1)
            pairs = []
            for index, step in enumerate(range(run.start_iter, run.num_iter)):
                key = tuple(int(word) for word in keys[index])
                found = _call_named(
                    self.module.step, tokens=states[index].astype(np.int64),
                    logits=logits[index].copy(), key=key, step=step, num_iter=run.num_iter,
                    masked_at_start=masked_at_start, temperature=run.temperature,
                    partitionable=run.partitionable,
                )  # fmt: skip
                pairs.append([to_numpy(values) for values in found])
            for name, values in zip(("sampled", "next"), zip(*pairs, strict=True), strict=True):
                self.theirs.arrays[run.prefix + name] = np.stack(values)


def run_of(row: dict[str, Any]) -> Run:
    """A decoding run from its row in the manifest."""
    fields = [field.name for field in dataclasses.fields(Run)]
    return Run(**{name: row[name] for name in fields} | {"key": tuple(row["key"])})


def _call(function: Callable[..., Any], values: np.ndarray) -> Any:
    """Torch modules are given tensors, everything else NumPy arrays."""
    if isinstance(function, torch.nn.Module):
        with torch.no_grad():
            return function(torch.from_numpy(values))
    return function(values)


def _call_named(function: Callable[..., Any], **arguments: Any) -> Any:
    """Passes those of the arguments that the function names."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return function(**arguments)
    return function(**{name: arguments[name] for name in parameters if name in arguments})
