"""The cells of a sweep: which there are, what identifies each, and the file that remembers its result."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from maskgit_pt.decoding import Settings, resolve
from maskgit_pt.files import write_atomically
from maskgit_pt.model_settings import ModelSettings
from maskgit_pt.pipeline import MaskGIT
from maskgit_pt.pretrained import WEIGHTS_NAME, weights_fingerprint
from train import export
from train.evaluation.npz import Npz
from train.evaluation.sources import open_source
from train.run import checkpoints

FORMAT = 1  # of a cell's file; raise it when what is computed changes
CASE = "case"  # the axis of named settings


# Loads networks: (settings of which only the model is still missing, device) -> both.
Load = Callable[[ModelSettings, torch.device], MaskGIT]


@dataclasses.dataclass(frozen=True)
class Model:
    """A transformer to sample from.

    Attributes:
      label: on its axis: the training step if that is known of all models, else the name.
      name: for the protocol.
      load: loads it.
      fingerprint: gives a hash of its weights; may read all of them.
    """

    label: int | str
    name: str
    load: Load
    fingerprint: Callable[[], str]


@dataclasses.dataclass
class Cell:
    """One set of settings.

    Attributes:
      labels: axis -> value, what tells this cell from the others.
      settings: of `MaskGIT.decoding`.
      model: index into the models.
      seed: of the noise.
      resolved: all settings with defaults filled in.
    """

    labels: dict[str, Any]
    settings: Settings
    model: int
    seed: int
    resolved: Settings = dataclasses.field(init=False)

    def __post_init__(self):
        try:
            self.resolved = resolve(self.settings)
        except ValueError as error:
            raise ValueError(f"{self}: {error}") from None

    def __str__(self) -> str:
        return describe(self.labels) or "the only cell"


def plan(
    fixed: Settings,
    grid: dict[str, Sequence[Any]],
    cases: dict[str, Settings],
    models: Sequence[Model],
    model_axis: str,
    seed: int,
    models_first: bool = False,
    seeds: Sequence[int] = (),
) -> tuple[dict[str, list[Any]], list[Cell]]:
    """All combinations.

    Args:
      fixed: settings of all cells; they win over those of cases.
      grid: setting (or "seed") -> values.
      cases: name -> settings; {} for none.
      models: the models; an axis of the sweep if there are several. With `seeds` those of the first seed,
        and a cell's `model` counts on through those of the others.
      model_axis: its name.
      seed: of the noise, unless it is swept.
      models_first: whether the plot runs along the models.
      seeds: those that have models of their own; () if all seeds share them.

    Returns:
      axis -> values, the first one along the plot; the cells, the last axis fastest.

    Raises:
      ValueError: settings that cannot be.
    """
    axes: dict[str, list[Any]] = {CASE: list(cases)} if len(cases) > 1 else {}
    axes |= {name: list(values) for name, values in grid.items()}
    if len(models) > 1:
        along = {model_axis: [model.label for model in models]}
        axes = along | axes if models_first else axes | along
    only = next(iter(cases.values()), {})
    cells = []
    for values in itertools.product(*axes.values()):
        labels = dict(zip(axes, values, strict=True))
        chosen = {name: labels[name] for name in grid}
        settings = cases.get(labels.get(CASE), only) | fixed | chosen
        own_seed = settings.pop("seed", seed)
        index = axes[model_axis].index(labels[model_axis]) if len(models) > 1 else 0
        index += seeds.index(own_seed) * len(models) if seeds else 0
        cells.append(Cell(labels, settings, index, own_seed))
    return axes, cells


def describe(settings: dict[str, Any]) -> str:
    """In words: "steps 8, guidance 3"."""
    return ", ".join(f"{title(name)} {value_text(value)}" for name, value in settings.items())


def title(name: str) -> str:
    """Of a setting."""
    return name.replace("_", " ")


def value_text(value: Any) -> str:
    """A value of a setting."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def exported_models(names: Sequence[str]) -> tuple[str, list[Model]]:
    """Models from folders, files or hub ids; the axis is "step" if all of them know theirs."""
    steps = [_stored_step(Path(name)) for name in names]
    known = None not in steps and len(set(steps)) == len(steps)
    if known:
        names = [name for _, name in sorted(zip(steps, names, strict=True))]
    labels: list[Any] = sorted(steps) if known else [_short(name, names) for name in names]

    def model(label: Any, name: str) -> Model:
        def load(settings: ModelSettings, device: torch.device) -> MaskGIT:
            return dataclasses.replace(settings, model=name).load(device)

        return Model(label, _short(name, names), load, lambda: weights_fingerprint(name))

    return ("step" if known else "model"), list(map(model, labels, names))


def run_models(run: Path, wanted: Sequence[int] | None, average: bool) -> list[Model]:
    """The checkpoints of a training run.

    Args:
      run: its folder.
      wanted: some of its steps; None: all.
      average: see `export.load`.

    Raises:
      FileNotFoundError: no run, or no such checkpoint.
    """
    found = checkpoints.steps(run)
    missing = sorted(set(wanted or []) - set(found))
    if missing or not found:
        listed = ", ".join(map(str, found)) or "none"
        which = f" of step {missing[0]}" if missing else ""
        raise FileNotFoundError(f"{run}: no checkpoint{which}; found: {listed}")

    def model(step: int) -> Model:
        def fingerprint() -> str:
            folder = checkpoints.folder_of(run, step)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            return f"{weights_fingerprint(*files)} {'average' if average else 'last'}"

        def load(settings: ModelSettings, device: torch.device) -> MaskGIT:
            decoder = settings.load_tokenizer(device)
            transformer = export.load(run, step, average)[0]
            transformer = transformer.to(device=device, dtype=settings.torch_dtype)
            return MaskGIT(transformer, decoder).arrange()

        return Model(step, f"{run.name} at step {step}", load, fingerprint)

    return [model(step) for step in found if wanted is None or step in wanted]


def reference_fingerprint(path: str, image_size: int, count: int | None) -> str:
    """Changes with a reference; images are not read.

    Raises:
      FileNotFoundError, ValueError: nothing there, or not a reference.
    """
    if Path(path).suffix == ".npz":
        npz = Npz(path)
        return f"{npz.fingerprint(*npz.names)} {count}"
    return f"{open_source(path, image_size).fingerprint} {count}"


class CellFiles:
    """Results of cells, each in a file named by all that it depends on.

    Args:
      folder: where they lie.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @staticmethod
    def key(parts: dict[str, Any]) -> str:
        """Of what a result depends on, as JSON."""
        text = json.dumps({"format": FORMAT} | parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def path(self, key: str) -> Path:
        """Where the result of `key` lies."""
        return self.folder / f"{key}.json"

    def load(self, key: str) -> tuple[dict[str, Any] | None, bool]:
        """The result, or None; and whether there is a file that is damaged."""
        path = self.path(key)
        if not path.exists():
            return None, False
        try:
            stored = json.loads(path.read_text("utf-8"))
            whole = stored["checksum"] == _checksum(stored["result"], key)
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        return (stored["result"], False) if whole else (None, True)

    def store(self, key: str, result: dict[str, Any]) -> None:
        """Writes it, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        document = {"checksum": _checksum(result, key), "result": result}
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.path(key), text.encode("utf-8", "surrogateescape"))


def _checksum(result: Any, key: str) -> str:
    return hashlib.sha256(f"{key} {json.dumps(result, sort_keys=True)}".encode()).hexdigest()


def _stored_step(folder: Path) -> int | None:
    """The training step that `train.export` notes in a folder's weights."""
    file = folder / WEIGHTS_NAME
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as weights:
            return int((weights.metadata() or {})["step"])
    except (SafetensorError, OSError, KeyError, ValueError):
        return None  # loading says what is wrong, if anything is


def _short(name: str, among: Sequence[str]) -> str:
    """The last part of a path, or all of it where two end alike."""
    last = Path(name).name
    return last if [Path(other).name for other in among].count(last) == 1 else name
