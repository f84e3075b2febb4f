"""bytedance/1d-tokenizer (TiTok): `maskgit-vqgan-imagenet-f16-256.bin`, Google's tokenizer.

The tensors of `open_muse.py` without a configuration: its class has the sizes as constants.
"""

from convert.formats._tokenizer_names import TokenizerFormat, TokenizerNames

NAMES = TokenizerNames(
    encoder_block="encoder.down.{i}.block.{j}",
    encoder_middle="encoder.mid.{j}",
    decoder_middle="decoder.mid.{j}",
    decoder_block="decoder.up.{i}.block.{j}",
    upsample="decoder.up.{i}.upsample_conv",
    parts=("norm1", "conv1", "norm2", "conv2", "nin_shortcut"),
    codebook="quantize.embedding.weight",
)


class TiTok(TokenizerFormat):
    NAME = "titok"
    DESCRIPTION = "bytedance/1d-tokenizer, maskgit-vqgan-imagenet-f16-256.bin"
    HOLDS = "Google's tokenizer"
    WRAPPERS = (None, "state_dict")
    NAMES = NAMES


FORMAT = TiTok()
