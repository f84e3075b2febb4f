"""markweberdev/maskbit: `maskgit_tokenizer.bin` (markweber/maskgit_tokenizer), Google's tokenizer.

These are the names of the decoder that the project calls legacy: `up` counts from full resolution.
(Its current decoder counts in the order of use; no known file has Google's weights that way.)
"""

from convert.formats._tokenizer_names import TokenizerFormat, TokenizerNames


class MaskBit(TokenizerFormat):
    NAME = "maskbit"
    DESCRIPTION = "markweberdev/maskbit, maskgit_tokenizer.bin"
    HOLDS = "Google's tokenizer"
    WRAPPERS = (None, "state_dict")
    NAMES = TokenizerNames(
        encoder_block="encoder.down.{i}.res_blocks.{j}",
        encoder_middle="encoder.mid.res_blocks.{j}",
        decoder_middle="decoder.mid.res_blocks.{j}",
        decoder_block="decoder.up.{i}.res_blocks.{j}",
        upsample="decoder.up.{i}.upsample_conv",
        parts=("norm1", "conv1", "norm2", "conv2", "nin_shortcut"),
        codebook="quantize.embedding.weight",
    )


FORMAT = MaskBit()
