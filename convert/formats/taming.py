"""The tokenizer of Besnier & Chen 2023: `last.ckpt` and `model.yaml` (CompVis/taming-transformers).

A model of its own, see `nets/taming_vqgan.py`, whose names are those of the file. A Lightning
checkpoint: with it come the loss' networks (`loss.*`), in some projects' files a moving average under
squeezed names (`model_ema.*`), optimizers and callbacks, all left out.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import yaml
from torch import Tensor

from convert import infer, rules
from convert.checkpoint import Checkpoint
from convert.files.tensors import Shape
from convert.formats.container import Container
from convert.formats.folders import entries
from convert.formats.format import Format
from convert.rows import Row, Rows
from maskgit_pt.configs import taming_vqgan_config

_MAX_YAML_BYTES = 2**16  # published: 645
_YAML_NAME = "model.yaml"


class Taming(Format):
    NAME = "taming"
    DESCRIPTION = "CompVis/taming-transformers, VQGAN last.ckpt and model.yaml"
    HOLDS = "the VQGAN f16-1024 that Besnier & Chen's transformer goes with"
    IS_FOLDER = True
    MODEL_TYPES = ("taming_vqgan",)
    WRAPPERS = ("state_dict", None)
    WEIGHTS_NAME = "last.ckpt"
    IGNORED = re.compile(r"(loss|model_ema)\.")

    def rows_of_file(self, shapes: Mapping[str, Shape], stated: dict) -> Rows:
        try:
            model_type, config = infer.infer_config(shapes)
        except ValueError:
            model_type, config = "taming_vqgan", {}
        if model_type != "taming_vqgan":
            return {}
        return _rows(config)

    def rows_of_model(self, model_type: str, config: dict) -> Rows:
        return _rows(config)

    def read_companion(self, container: Container) -> tuple[str, dict]:
        for path in _yaml_files(container):
            tree = _read_yaml(path)
            if "model" in tree:
                return path.name, tree
        return "", {}

    def stated_config(self, companion: dict) -> dict:
        return taming_vqgan_config.arguments(companion) if companion else {}

    def wrap(self, state: dict[str, Tensor], wrapper: str | None, values: dict) -> dict:
        return state if wrapper is None else values | {wrapper: state}

    def companions(self, source: Checkpoint) -> dict[str, bytes]:
        same = source.origin.get("format") == self.NAME
        tree = taming_vqgan_config.tree(source.config)
        if same and source.origin["companion"]:
            tree = source.origin["companion"]
        return {_YAML_NAME: yaml.safe_dump(tree, sort_keys=False).encode()}


def _rows(config: dict) -> Rows:
    return {name: Row((name,)) for name in rules.target("taming_vqgan", config)[0]}


def _yaml_files(container: Container) -> list[Path]:
    """Of the folder that was named; of a bare file, the one beside it."""
    if container.folder is None:
        paths = [container.path.with_name(_YAML_NAME)]
    else:
        paths = [path for path in entries(container.folder) if path.suffix in (".yaml", ".yml")]
        paths.sort(key=lambda path: path.name != _YAML_NAME)  # it first
    return [path for path in paths if path.is_file() and path.stat().st_size <= _MAX_YAML_BYTES]


def _read_yaml(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8")
        # An alias stands for what was said before: ten in ten in ten ... fill any memory.
        problem = any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)) and "aliases"
        tree = {} if problem else yaml.safe_load(text)
        json.dumps(tree)  # no dates
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        problem = type(error).__name__
    if problem:
        raise ValueError(f"{path.name}: not plain YAML: {problem}")
    return tree if isinstance(tree, dict) else {}


FORMAT = Taming()
