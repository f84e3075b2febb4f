"""LTH14/mage: `mage-vitb-1600.pth` and `mage-vitl-1600.pth`, transformer and tokenizer in one file.

A model of its own, see `nets/mage.py`. Its tensors have the names of the file, but for those of the
tokenizer (`vqgan.`), which are named as in `mage` and become those of a `VQVAE`. The attention heads are not
in the file; they follow from the published widths. `token_emb.position_ids`, the integers from 0 on, is left
out and written again.

RCG's class-conditional MAGE (LTH14/rcg) has `class_emb`, and with it an encoder and a vector that its network
does not use; they are left out.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor

from convert import infer, rules, signatures
from convert.checkpoint import Checkpoint, Given
from convert.files.tensors import Shape
from convert.formats import mage
from convert.formats.container import Container
from convert.formats.format import Format, numbers, own_rows
from convert.formats.state_dicts import StateDict
from convert.rows import Row, Rows
from maskgit_pt.configs import vqgan_config
from maskgit_pt.nets.mage import DECODER_HEADS

_MODEL_TYPE = "mage"
_TOKENIZER = "vqgan."
_POSITIONS = "token_emb.position_ids"
_LAYER = re.compile(r"blocks\.(\d{1,4})\.")
_DECODER_LAYER = re.compile(r"decoder_blocks\.(\d{1,4})\.")


class MageTransformer(Format):
    NAME = "mage-vit"
    DESCRIPTION = "LTH14/mage, mage-vit{b,l}-1600.pth; LTH14/rcg, with classes"
    HOLDS = "MAGE: an image generator without classes, and its tokenizer"
    MODEL_TYPES = (_MODEL_TYPE,)
    WRAPPERS = ("model", None)
    IGNORED = re.compile(rf"({re.escape(_POSITIONS)}|fake_latent)$|pretrained_encoder\.")

    def rows_of_file(self, shapes: Mapping[str, Shape], stated: dict) -> Rows:
        (layers,) = numbers(_LAYER, shapes)
        (decoder_layers,) = numbers(_DECODER_LAYER, shapes)
        config = {"num_hidden_layers": layers, "decoder_num_layers": decoder_layers}
        config["num_classes"] = int("class_emb.weight" in shapes)
        rows = own_rows(_MODEL_TYPE, config)
        tokenizer = {
            name.removeprefix(_TOKENIZER): shape
            for name, shape in shapes.items()
            if name.startswith(_TOKENIZER)
        }
        return rows | _tokenizer_rows(*mage.FORMAT.NAMES.sizes(tokenizer)) if tokenizer else rows

    def rows_of_model(self, model_type: str, config: dict) -> Rows:
        rows = own_rows(model_type, config)
        if not (vqvae := config.get("vqvae")):
            return rows
        rows = {name: row for name, row in rows.items() if not name.startswith(_TOKENIZER)}
        first = {name: row for name, row in rows.items() if "." not in name}
        sizes = len(vqvae["channel_multipliers"]), vqvae["num_res_blocks"]
        return first | _tokenizer_rows(*sizes) | rows

    def heads(
        self, shapes: Mapping[str, Shape], stated: dict, given: Given
    ) -> tuple[int, list[str]]:
        heads, notes = infer.heads_of(_MODEL_TYPE, shapes, given.num_heads)
        width = next(iter(shapes.get("decoder_embed.weight", ())), 0)
        if width and width not in (768, 1024, 1280):
            notes = [
                *notes,
                f"the decoder's width is {width}: took what suits it of the published {DECODER_HEADS} heads "
                "(decoder_num_heads in config.json) and, for narrow tokenizers, half as many groups of the "
                "norms as filters (norm_groups)",
            ]
        return heads, notes

    def open(self, container: Container, state: StateDict, given: Given) -> Checkpoint:
        ids = state.tensors.get(_POSITIONS)
        if ids is not None and not torch.equal(
            ids.flatten(), torch.arange(ids.numel(), dtype=ids.dtype)
        ):
            raise ValueError(f"tensor {_POSITIONS} is not 0, 1, 2, ...")
        return super().open(container, state, given)

    def marks(self, source: Checkpoint) -> list[str]:
        return []

    def wrap(self, state: dict[str, Tensor], wrapper: str | None, values: dict) -> dict:
        whole = OrderedDict()
        for name, tensor in state.items():
            if name == "token_emb.word_embeddings.weight":
                positions = state["token_emb.position_embeddings.weight"].shape[0]
                whole[_POSITIONS] = torch.arange(positions)[None]
            whole[name] = tensor
        return super().wrap(whole, wrapper, values)


def _tokenizer_rows(levels: int, blocks: int) -> Rows:
    """Names of the file -> tensors of a `VQVAE`; both are convolutions of PyTorch, nothing is transformed."""
    theirs = mage.FORMAT.NAMES.rows(levels, blocks, signatures.MAGE_MIDDLE_BLOCKS)
    sizes = {"num_res_blocks": blocks, "channel_multipliers": [1] * levels}
    ours = {
        row.officials: name
        for name, row in rules.model_rows("maskgit_vqvae", _settings(sizes)).items()
    }
    rows = {}
    for name, row in theirs.items():
        # A shortcut, of which these sizes have none, stands beside the block's other convolutions.
        found = ours.get(row.officials) or _shortcut(row, ours)
        rows[_TOKENIZER + name] = Row((_TOKENIZER + found,), optional=row.optional)
    return rows


def _shortcut(row: Row, ours: dict[tuple[str, ...], str]) -> str:
    second = (row.officials[0].replace("/Conv_2/", "/Conv_1/"),)
    return ours[second].replace(".conv1.", ".conv_shortcut.")


def _settings(sizes: dict) -> dict:
    middle = {"middle_blocks": signatures.MAGE_MIDDLE_BLOCKS}
    return {"vqvae": vqgan_config.get_config().vqvae.to_dict() | middle | sizes}


FORMAT = MageTransformer()
