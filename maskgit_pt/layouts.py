"""Folders that are no models: what they are, and what makes a model of one."""

import re
from pathlib import Path

CONFIG_NAME = "config.json"
_STEP = re.compile(r"step_(\d+)")


def describe(path: Path) -> str | None:
    """Says "is ..., ..." of a path that is surely no model; None if it may be one."""
    for matches, what in _LAYOUTS:
        if matches(path):
            return what(path)
    return None


def _is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir() and (path / CONFIG_NAME).is_file()


def _is_checkpoint(path: Path) -> bool:
    folder = path if path.is_dir() else path.parent
    parts = path.suffix == ".distcp" or path.is_dir() and any(path.glob("*.distcp"))
    return parts or bool(_STEP.fullmatch(folder.name)) and folder.parent.name == "checkpoints"


def _describe_checkpoint(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    run, step = folder.parent.parent, _STEP.fullmatch(folder.name)
    if step and _is_run(run):
        return (
            f"is a checkpoint of the training run {run}; maskgit-export {run} --step={int(step[1])} "
            "--output=FOLDER makes a model folder of it"
        )
    return "is a checkpoint in PyTorch's distributed layout; maskgit-export makes a model folder of a run"


def _is_samples(path: Path) -> bool:
    if not (path / "settings.json").is_file():
        return False
    return (path / "samples.npz").is_file() or any(path.glob("class????_??????.png"))


_LAYOUTS = (
    (
        _is_run,
        lambda path: (
            f"is a training run; maskgit-export {path} --output=FOLDER makes a model folder of it"
        ),
    ),
    (_is_checkpoint, _describe_checkpoint),
    (_is_samples, lambda path: "holds samples, no model"),
)
