"""Our own folders: `config.json` and `model.safetensors` under PyTorch names; or the bare file.

The metadata in the weights keep what PyTorch names do not show: the official order and chunks, so
that a Google file that went to PyTorch and back has the same bytes, and the configuration, so that
a bare file says how many heads it has.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from convert import infer, model_card, rules, signatures
from convert.checkpoint import Checkpoint, Given
from convert.files.tensors import Shape
from convert.formats.container import Container, read_small_config
from convert.formats.format import Format, own_rows
from convert.formats.state_dicts import StateDict
from convert.rows import Rows
from maskgit_pt.pretrained import CONFIG_NAME, WEIGHTS_NAME

# Metadata.
ORDER, CHUNKS, CONFIG = "official_order", "official_chunks", "maskgit_config"
ORIGIN = "maskgit_origin"


class Safetensors(Format):
    NAME = "safetensors"
    DESCRIPTION = f"folder with {CONFIG_NAME} and {WEIGHTS_NAME}, or a bare .safetensors file"
    HOLDS = "any of the models, with its configuration"
    MODEL_TYPES = tuple(rules.MODEL_CLASSES)
    IS_FOLDER = True
    PACKINGS = ("safetensors",)
    KEEPS_ORDER = True
    KEEPS_CONFIG = True
    WRAPPERS = (None, "state_dict")
    WEIGHTS_NAME = WEIGHTS_NAME

    def rows_of_file(self, shapes: Mapping[str, Shape], stated: dict) -> Rows:
        model_type = infer.infer_model_type(shapes, torch_names=True)
        return rules.table_rows(model_type, shapes, _norm_type(stated, shapes))

    def rows_of_model(self, model_type: str, config: dict) -> Rows:
        return own_rows(model_type, config)

    def likeness(self, state: StateDict, container: Container) -> float:
        """As the names show; and surely, if the configuration says so.

        Models that come from PyTorch have the same names in their projects.
        """
        if (
            container.packing in ("safetensors", "shards")
            and "model_type" in self.read_companion(container)[1]
        ):
            return 1.0
        names = list(state.tensors)
        model_types = [
            model_type for model_type in self.MODEL_TYPES if model_type not in rules.FROM_PYTORCH
        ]
        known = [
            sum(rules.has_rule(model_type, name) for name in names) for model_type in model_types
        ]
        return max(known) / max(len(names), 1)

    def read_companion(self, container: Container) -> tuple[str, dict]:
        """The configuration that stands beside the weights, else in their metadata, else {}."""
        beside = container.path.parent / CONFIG_NAME
        names = (WEIGHTS_NAME, f"{WEIGHTS_NAME}.index.json")
        if container.path.name in names and beside.is_file():
            return str(beside), read_small_config(beside)
        stated = _json(container.metadata.get(CONFIG, "{}"))
        if not isinstance(stated, dict):
            raise ValueError(f"its metadata {CONFIG} is no JSON object")
        return "its metadata", stated

    def stated_config(self, companion: dict) -> dict:
        return companion

    def heads(
        self, shapes: Mapping[str, Shape], stated: dict, given: Given
    ) -> tuple[int, list[str]]:
        model_type = infer.infer_model_type(shapes, torch_names=True)
        if signatures.SIGNATURES[model_type].width is None:
            return 1, []
        heads = stated.get("num_attention_heads", given.num_heads)
        if given.num_heads not in (None, heads):
            raise ValueError(
                f"its configuration says {heads} attention heads, not {given.num_heads}"
            )
        if "num_attention_heads" not in stated:
            return infer.heads_of(model_type, shapes, heads)
        if type(heads) is not int or heads < 1:
            raise ValueError(f"num_attention_heads is {heads!r}; accepted: a number from 1")
        return heads, []

    def official_layout(
        self, container: Container, tensors: Mapping[str, Tensor]
    ) -> tuple[list[str], dict[str, tuple[int, ...]]]:
        """What the metadata keep, or what is published."""
        order = _json(container.metadata.get(ORDER, "null"))
        chunks = _json(container.metadata.get(CHUNKS, "{}"))
        if not isinstance(order, list) or not _same_names(order, tensors):
            return rules.published_order(tensors), {}
        valid = {}
        for name, counts in chunks.items() if isinstance(chunks, dict) else ():
            whole = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
            if whole and counts and name in tensors:
                if sum(counts) == math.prod(tensors[name].shape):
                    valid[name] = tuple(counts)
        return order, valid

    def origin(self, container: Container, state: StateDict, companion: dict) -> dict:
        """What a foreign file said besides its weights, if they came from one and it makes sense."""
        origin = _json(container.metadata.get(ORIGIN, "{}"))
        if not isinstance(origin, dict):
            return {}
        wrapper, values = origin.get("wrapper"), origin.get("values", {})
        plain = (
            isinstance(values, dict)
            and isinstance(origin.get("companion", {}), dict)
            and all(isinstance(value, str | int | float) for value in values.values())
        )
        if not origin or not plain or not isinstance(wrapper, str | None):
            return {}
        return {"wrapper": None, "values": {}, "companion": {}} | origin

    def companions(self, source: Checkpoint) -> dict[str, bytes]:
        return {CONFIG_NAME: (json.dumps(_config(source), indent=2) + "\n").encode()}

    def card(self, checkpoint: Checkpoint, **about: Any) -> dict[str, bytes]:
        return {"README.md": model_card.model_card(checkpoint, **about).encode()}

    def metadata(self, source: Checkpoint) -> dict[str, str]:
        """What PyTorch names do not show: the official order and chunks, the configuration."""
        metadata = super().metadata(source)
        metadata |= {ORDER: json.dumps(list(source.tensors)), CONFIG: json.dumps(_config(source))}
        if source.chunks:
            metadata[CHUNKS] = json.dumps(source.chunks)
        if source.origin:
            metadata[ORIGIN] = json.dumps(source.origin)
        return metadata


def _config(source: Checkpoint) -> dict:
    complete = rules.target(source.model_type, source.config)[2]
    return {"model_type": source.model_type} | complete


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _norm_type(stated: dict, names: Iterable[str]) -> str:
    """As stated; else what the names show, which do not tell GroupNorm from LayerNorm."""
    vqvae = stated.get("vqvae")
    likely = "BN" if any(name.endswith(".running_mean") for name in names) else "GN"
    norm_type = vqvae.get("norm_type", likely) if isinstance(vqvae, dict) else likely
    if not isinstance(norm_type, str) or norm_type not in rules.NORM_NAMES:
        raise ValueError(f"norm_type is {norm_type!r}; accepted: {', '.join(rules.NORM_NAMES)}")
    return norm_type


def _same_names(order: list, tensors: Iterable[str]) -> bool:
    return all(isinstance(name, str) for name in order) and sorted(order) == sorted(tensors)


FORMAT = Safetensors()
