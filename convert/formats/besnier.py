"""Besnier & Chen 2023 (valeoai/Maskgit-pytorch v1): `MaskGIT_ImageNet_{256,512}.pth`.

A model of its own, see `nets/besnier_transformer.py`, whose names are those of the file. Two descendants have
the same layout: the one-step generators of Di[M]O (bare, `pytorch_model.bin`), which nothing in the file
tells from it, and the students of Di4C, which have a `latent_projection` more. With it
come the iteration, the epoch and the optimizer's state; the latter is left out. Neither the number
of attention heads nor the size of the codebook is in the file.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

from convert import rules, signatures
from convert.checkpoint import Given
from convert.files.tensors import Shape
from convert.formats.format import Format, numbers
from convert.rows import Row, Rows

_LAYER = re.compile(r"transformer\.layers\.(\d{1,4})\.")


class Besnier(Format):
    NAME = "besnier"
    DESCRIPTION = "valeoai/Maskgit-pytorch v1, MaskGIT_ImageNet_{256,512}.pth; Di[M]O, Di4C"
    HOLDS = "the transformer of Besnier & Chen 2023; not the number of attention heads"
    MODEL_TYPES = ("besnier_transformer",)
    WRAPPERS = ("model_state_dict", None)

    def rows_of_file(self, shapes: Mapping[str, Shape], stated: dict) -> Rows:
        (layers,) = numbers(_LAYER, shapes)
        latent = int(any(name.startswith("latent_projection.") for name in shapes))
        return _rows(layers, latent)

    def rows_of_model(self, model_type: str, config: dict) -> Rows:
        return _rows(config["num_hidden_layers"], config.get("latent_features", 0))

    def heads(
        self, shapes: Mapping[str, Shape], stated: dict, given: Given
    ) -> tuple[int, list[str]]:
        return signatures.heads_or_default(
            signatures.last_of(shapes, "tok_emb.weight"), given.num_heads
        )

    def wrap(self, state: dict[str, Tensor], wrapper: str | None, values: dict) -> dict:
        state = OrderedDict(state)
        if wrapper is None:
            return state
        return {"iter": 0, "global_epoch": 0} | values | {wrapper: state}


def _rows(layers: int, latent_features: int) -> Rows:
    config = {"num_hidden_layers": layers, "latent_features": latent_features}
    names = rules.target("besnier_transformer", config)[0]
    return {name: Row((name,)) for name in names}


FORMAT = Besnier()
