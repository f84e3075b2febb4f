"""FoundationVision/LlamaGen: `vq_ds16_c2i.pt`, the tokenizer that Halton-MaskGIT works on.

A model of its own, see `nets/llamagen_vq.py`, whose names are those of the file. Files from training have a
moving average, a discriminator and an optimizer beside it, all left out.
"""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

from convert import infer
from convert.files.tensors import Shape
from convert.formats.format import Format, own_rows
from convert.rows import Rows

_MODEL_TYPE = "llamagen_vq"


class LlamaGen(Format):
    NAME = "llamagen"
    DESCRIPTION = "FoundationVision/LlamaGen, vq_ds16_c2i.pt and vq_ds8_c2i.pt"
    HOLDS = "LlamaGen's VQ tokenizer, which Halton-MaskGIT's transformers go with"
    MODEL_TYPES = (_MODEL_TYPE,)
    WRAPPERS = ("model", None)

    def rows_of_file(self, shapes: Mapping[str, Shape], stated: dict) -> Rows:
        try:
            model_type, config = infer.infer_config(shapes)
        except ValueError:  # as published, so that what is missing can be named
            model_type, config = _MODEL_TYPE, {}
        return own_rows(model_type, config) if model_type == _MODEL_TYPE else {}

    def rows_of_model(self, model_type: str, config: dict) -> Rows:
        return own_rows(model_type, config)

    def wrap(self, state: dict[str, Tensor], wrapper: str | None, values: dict) -> dict:
        state = OrderedDict(state)
        return state if wrapper is None else values | {wrapper: state}


FORMAT = LlamaGen()
