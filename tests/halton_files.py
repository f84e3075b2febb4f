"""The vectors in `tests/golden/halton`, recorded from valeoai/Halton-MaskGIT, and their tiny networks."""

import functools
import io
import json
import lzma

import numpy as np
import torch
from recorded import GOLDEN

from maskgit_pt.nets.halton_transformer import HaltonTransformer
from maskgit_pt.nets.llamagen_vq import LlamaGenVQ

FOLDER = GOLDEN / "halton"
CONFIG = json.loads((FOLDER / "config.json").read_text())
MASK = CONFIG["mask_value"]


def recorded(name: str) -> dict[str, np.ndarray]:
    """Loads `tests/golden/halton/NAME.npz`."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def published_bytes(name: str) -> bytes:
    """A file as its authors publish it: transformer_A.pth, transformer_B.pth or vq_tiny.pt."""
    return lzma.decompress((FOLDER / f"{name}.xz").read_bytes())


@functools.cache
def _published(name: str) -> dict:
    return torch.load(io.BytesIO(published_bytes(name)), weights_only=True)


def transformer(network: str) -> HaltonTransformer:
    """The tiny transformer "A" or "B", in evaluation mode."""
    theirs = CONFIG[f"transformer_{network}"]
    model = HaltonTransformer(
        num_codes=theirs["codebook_size"],
        num_classes=theirs["nclass"],
        num_tokens=theirs["input_size"] ** 2,
        hidden_size=theirs["hidden_dim"],
        num_hidden_layers=theirs["depth"],
        num_attention_heads=theirs["heads"],
        num_registers=theirs["register"],
        dropout=theirs["dropout"],
    )
    state = dict(_published(f"transformer_{network}.pth")["model_state_dict"])
    assert torch.equal(state.pop("head.weight"), state["tok_emb.weight"])
    model.load_state_dict(state)
    return model.eval()


def tokenizer() -> LlamaGenVQ:
    """The tiny tokenizer, in evaluation mode."""
    theirs = CONFIG["vq"]
    model = LlamaGenVQ(
        num_codes=theirs["codebook_size"],
        embed_dim=theirs["codebook_embed_dim"],
        z_channels=theirs["z_channels"],
        channels=theirs["ch"],
        channel_multipliers=theirs["ch_mult"],
        num_res_blocks=theirs["num_res_blocks"],
    )
    model.load_state_dict(_published("vq_tiny.pt")["model"])
    return model.eval()
