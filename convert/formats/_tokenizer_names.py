"""The official tokenizer under the names of projects that ported it.

They differ in what they call a block and in how they count; one `TokenizerNames` says it all.
Google numbers modules by order of use within either half: with L levels (level 0 is full
resolution) and R blocks a level, the encoder's block j of level i is number i*R + j and those of
the middle follow; the decoder starts with the middle and then goes from the coarsest level up.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from convert.files.tensors import Shape
from convert.formats.format import Format, numbers
from convert.rows import Row, Rows, conv, norm
from convert.tables import IDENTITY

PUBLISHED_SIZES = 5, 2  # levels, blocks


@dataclass(frozen=True)
class TokenizerNames:
    """How a project counts.

    Attributes (placeholders: i level, j block, k = j + 1, u = L - i, a = R + 1):
      encoder_block, encoder_middle, decoder_middle, decoder_block: names of residual blocks.
      upsample: the convolution after the upsampling that leaves level i.
      parts: in a block: first norm and convolution, second ones, shortcut.
      codebook: the codebook.
      middle_counts: whether the encoder's middle looks like one level more.
    """

    encoder_block: str
    encoder_middle: str
    decoder_middle: str
    decoder_block: str
    upsample: str
    parts: tuple[str, str, str, str, str]
    codebook: str
    middle_counts: bool = False

    def sizes(self, names: dict[str, Shape]) -> tuple[int, int]:
        """Levels and blocks a level, by the encoder's names."""
        pattern = re.escape(self.encoder_block)
        for field in ("i", "j"):
            pattern = pattern.replace(rf"\{{{field}\}}", r"(\d{1,4})")
        levels, blocks = numbers(re.compile(pattern + r"\."), names)
        return levels - self.middle_counts, blocks

    @functools.lru_cache(maxsize=8)  # noqa: B019 - there are five of these
    def rows(self, levels: int, blocks: int, middle: int | None = None) -> Rows:
        """All rows, in the order of the projects' classes; as many blocks in the middle unless told."""
        middle = blocks if middle is None else middle
        if not 1 <= levels <= 16 or not 1 <= blocks <= 64:
            raise ValueError(f"{levels} levels of {blocks} blocks; accepted: 1 to 16 of 1 to 64")

        def block(half: str, template: str, i: int, j: int, number: int) -> Rows:
            name = template.format(i=i, j=j, k=j + 1, u=levels - i, a=blocks + 1)
            official = f"{half}/ResBlock_{number}"
            norm0, conv0, norm1, conv1, shortcut = (f"{name}.{part}" for part in self.parts)
            return (
                norm(norm0, f"{official}/GroupNorm_0")
                | conv(conv0, f"{official}/Conv_0", bias=False)
                | norm(norm1, f"{official}/GroupNorm_1")
                | conv(conv1, f"{official}/Conv_1", bias=False)
                | conv(shortcut, f"{official}/Conv_2", bias=False, optional=True)
            )

        rows = conv("encoder.conv_in", "encoder/Conv_0", bias=False)
        for i in range(levels):
            for j in range(blocks):
                rows |= block("encoder", self.encoder_block, i, j, i * blocks + j)
        for j in range(middle):
            rows |= block("encoder", self.encoder_middle, levels, j, levels * blocks + j)
        rows |= norm("encoder.norm_out", "encoder/GroupNorm_0")
        rows |= conv("encoder.conv_out", "encoder/Conv_1")
        rows |= conv("decoder.conv_in", "decoder/Conv_0")
        for j in range(middle):
            rows |= block("decoder", self.decoder_middle, levels, j, j)
        for i in range(levels):
            for j in range(blocks):
                number = middle + (levels - 1 - i) * blocks + j
                rows |= block("decoder", self.decoder_block, i, j, number)
            if i > 0:
                name = self.upsample.format(i=i, u=levels - i, a=blocks + 1)
                rows |= conv(name, f"decoder/Conv_{levels - i}")
        rows |= norm("decoder.norm_out", "decoder/GroupNorm_0")
        rows |= conv("decoder.conv_out", f"decoder/Conv_{levels}")
        return rows | {self.codebook: Row(("params/quantizer/codebook",), IDENTITY)}


class TokenizerFormat(Format):
    """A format that holds the official tokenizer alone."""

    NAMES: TokenizerNames

    def rows_of_file(self, shapes: Mapping[str, Shape], stated: dict) -> Rows:
        return self.NAMES.rows(*self.NAMES.sizes(shapes))

    def published_rows(self) -> Rows:
        return self.NAMES.rows(*PUBLISHED_SIZES)

    def rows_of_model(self, model_type: str, config: dict) -> Rows:
        vqvae = config["vqvae"]
        return self.NAMES.rows(len(vqvae["channel_multipliers"]), vqvae["num_res_blocks"])
