"""Besnier et al. 2025 (valeoai/Halton-MaskGIT): `ImageNet_{256,384}_{tiny,small,base,large}.pth`.

A model of its own, see `nets/halton_transformer.py`, whose names are those of the file, except that the file
has the embedding of the tokens twice: as `tok_emb.weight` and, tied to it, as `head.weight`. With it come
the iteration, the epoch and the optimizer's state (in the published files possibly none); the latter is left
out. The number of attention heads is not in the file; it follows from the published widths.
"""

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

from convert import infer
from convert.checkpoint import Checkpoint, Given
from convert.files.tensors import Shape, rows_that_differ
from convert.formats.container import Container
from convert.formats.format import Format, numbers, own_rows
from convert.formats.state_dicts import StateDict
from convert.rows import Rows

_MODEL_TYPE = "halton_transformer"
_EMBEDDING, _HEAD = "tok_emb.weight", "head.weight"
_LAYER = re.compile(r"transformer\.layers\.(\d{1,4})\.")
_MARKS = re.compile(r"module\.|_orig_mod\.")  # of DistributedDataParallel and torch.compile
_WRAPPER = "model_state_dict"


class Halton(Format):
    NAME = "halton"
    DESCRIPTION = "valeoai/Halton-MaskGIT, ImageNet_{256,384}_{tiny,small,base,large}.pth"
    HOLDS = "the transformer of Halton-MaskGIT (2025); heads by the published widths"
    MODEL_TYPES = (_MODEL_TYPE,)
    WRAPPERS = (_WRAPPER, None)

    def rows_of_file(self, shapes: Mapping[str, Shape], stated: dict) -> Rows:
        (layers,) = numbers(_LAYER, shapes)
        return own_rows(_MODEL_TYPE, {"num_hidden_layers": layers})

    def rows_of_model(self, model_type: str, config: dict) -> Rows:
        if not config["num_registers"]:
            raise ValueError(f"{self.NAME} holds models with registers; this one has none")
        return own_rows(model_type, config)

    def heads(
        self, shapes: Mapping[str, Shape], stated: dict, given: Given
    ) -> tuple[int, list[str]]:
        return infer.heads_of(_MODEL_TYPE, shapes, given.num_heads)

    def likeness(self, state: StateDict, container: Container) -> float:
        tensors = {_MARKS.sub("", name): tensor for name, tensor in state.tensors.items()}
        return super().likeness(
            dataclasses.replace(state, tensors=_without_head(tensors)), container
        )

    def open(self, container: Container, state: StateDict, given: Given) -> Checkpoint:
        tensors = {_MARKS.sub("", name): tensor for name, tensor in state.tensors.items()}
        if len(tensors) < len(state.tensors):
            raise ValueError(
                "holds tensors twice, with and without the marks module. and _orig_mod."
            )
        # A safetensors file cannot hold one tensor under two names.
        missing = {_HEAD, "reg_tokens.weight"} - tensors.keys()
        if container.packing == "safetensors":
            missing.discard(_HEAD)
        if missing:
            raise ValueError(f"{len(missing)} missing: {', '.join(sorted(missing))}")
        if _HEAD in tensors and _EMBEDDING in tensors:
            head, embedding = tensors[_HEAD], tensors[_EMBEDDING]
            alike = head.shape == embedding.shape and head.dtype == embedding.dtype
            if not alike or rows_that_differ(head, embedding):
                raise ValueError(
                    f"tensor {_HEAD} differs from {_EMBEDDING}; in this model both are the same"
                )
        plain = dataclasses.replace(state, tensors=_without_head(tensors))
        container.candidates = [plain if s is state else s for s in container.candidates]
        return super().open(container, plain, given)

    def wrap(self, state: dict[str, Tensor], wrapper: str | None, values: dict) -> dict:
        tied = OrderedDict()
        for name, tensor in state.items():
            if name == "head.bias":  # where the file has it
                tied[_HEAD] = state[_EMBEDDING]
            tied[name] = tensor
        if wrapper is None:
            return tied
        end = {"optimizer_state_dict": None} if wrapper == _WRAPPER else {}
        return {"iter": 0, "global_epoch": 0} | values | {wrapper: tied} | end


def _without_head(of: Mapping) -> dict:
    return {name: value for name, value in of.items() if name != _HEAD}


FORMAT = Halton()
