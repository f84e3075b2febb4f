"""huggingface/open-muse: the folder `maskgit-vqgan-imagenet-f16-256`, Google's tokenizer.

`config.json` (class MaskGitVQGAN) and `pytorch_model.bin`. Of the configuration, `attn_resolutions`
and `resample_with_conv` mean nothing: there is no attention, and downsampling is a 2x2 mean.
"""

import json

from convert.checkpoint import Checkpoint
from convert.formats import titok
from convert.formats._tokenizer_names import TokenizerFormat
from convert.formats.container import Container, config_beside
from convert.formats.state_dicts import StateDict
from maskgit_pt.pretrained import CONFIG_NAME

_CLASS = "MaskGitVQGAN"
# theirs -> ours
_FIELDS = {
    "hidden_channels": "filters",
    "channel_mult": "channel_multipliers",
    "num_res_blocks": "num_res_blocks",
    "z_channels": "embedding_dim",
    "quantized_embed_dim": "embedding_dim",
    "num_embeddings": "codebook_size",
    "commitment_cost": "commitment_cost",
}
_REST = {
    "_class_name": _CLASS,
    "_version": "0.0.1",
    "attn_resolutions": [16],
    "dropout": 0.0,
    "num_channels": 3,
    "resample_with_conv": True,
    "resolution": 256,
}


class OpenMuse(TokenizerFormat):
    NAME = "open-muse"
    DESCRIPTION = "huggingface/open-muse, folder maskgit-vqgan-imagenet-f16-256"
    HOLDS = "Google's tokenizer and its configuration"
    IS_FOLDER = True
    WEIGHTS_NAME = "pytorch_model.bin"
    NAMES = titok.NAMES

    def likeness(self, state: StateDict, container: Container) -> float:
        """As TiTok's, a little more with the configuration, less without."""
        bonus = 0.01 if config_beside(container).get("_class_name") == _CLASS else -0.01
        return max(super().likeness(state, container) + bonus, 0.0)

    def read_companion(self, container: Container) -> tuple[str, dict]:
        return CONFIG_NAME, config_beside(container)

    def stated_config(self, companion: dict) -> dict:
        stated: dict = {}
        for theirs, ours in _FIELDS.items():
            if (
                theirs in companion
                and stated.setdefault(ours, companion[theirs]) != companion[theirs]
            ):
                raise ValueError(
                    f"{CONFIG_NAME} says {theirs} {companion[theirs]!r}, elsewhere {stated[ours]!r}"
                )
        return {"vqvae": stated}

    def companions(self, source: Checkpoint) -> dict[str, bytes]:
        vqvae = source.config["vqvae"]
        same = source.origin.get("format") == self.NAME
        config = _REST | (source.origin["companion"] if same else {})
        config |= {theirs: vqvae[ours] for theirs, ours in _FIELDS.items()}
        text = json.dumps(dict(sorted(config.items())), indent=2) + "\n"
        return {CONFIG_NAME: text.encode()}


FORMAT = OpenMuse()
