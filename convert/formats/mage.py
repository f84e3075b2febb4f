"""LTH14/mage: `vqgan_jax_strongaug.ckpt`, a tokenizer of the official architecture.

Its weights are not Google's: it was trained anew, with stronger augmentation. The names alone tell
(no other file is known to have them), so that the configuration says so from then on.
"""

from convert.checkpoint import Checkpoint
from convert.formats._tokenizer_names import TokenizerFormat, TokenizerNames
from convert.rows import Rows

WEIGHTS = "MAGE vqgan_jax_strongaug: not Google's weights, trained with stronger augmentation"
_BLOCKS = 2  # in the middle, whatever the level


class Mage(TokenizerFormat):
    NAME = "mage"
    DESCRIPTION = "LTH14/mage, vqgan_jax_strongaug.ckpt"
    HOLDS = "a tokenizer like Google's with OTHER weights (strong augmentation)"
    WRAPPERS = (None, "state_dict")
    NAMES = TokenizerNames(
        encoder_block="encoder.down.{i}.block.{j}",
        encoder_middle="encoder.mid.block_{k}",
        decoder_middle="decoder.mid.block_{k}",
        decoder_block="decoder.up.{i}.block.{j}",
        upsample="decoder.up.{i}.upsample.conv",
        parts=("norm1", "conv1", "norm2", "conv2", "nin_shortcut"),
        codebook="quantize.embedding.weight",
    )

    def rows_of_model(self, model_type: str, config: dict) -> Rows:
        if (blocks := config["vqvae"]["num_res_blocks"]) != _BLOCKS:
            raise ValueError(
                f"{self.NAME} holds {_BLOCKS} blocks a level, this tokenizer has {blocks}"
            )
        return super().rows_of_model(model_type, config)

    def stated_config(self, companion: dict) -> dict:
        return {"vqvae": {"weights": WEIGHTS}}

    def marks(self, source: Checkpoint) -> list[str]:
        if source.config["vqvae"].get("weights") == WEIGHTS:
            return []
        return [f"by its names the output will be taken for {WEIGHTS}"]


FORMAT = Mage()
