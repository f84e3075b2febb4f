"""The types of models: which names they are recognised by, and how shapes show their configuration."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from convert import rules
from convert.rules import Shape
from maskgit_pt.configs import vqgan_config
from maskgit_pt.nets import discriminator, mage
from maskgit_pt.nets.halton_transformer import PUBLISHED_HEADS
from maskgit_pt.nets.layers import GROUPNORM_GROUPS, group_count

DEFAULT_HEADS = 16  # of Google's and of Besnier & Chen's models
DEFAULT_CODES = 1024
_MAX_LEVELS = 8
MAGE_MIDDLE_BLOCKS = 2  # of its tokenizer, whatever the level
MAX_MODULES = 1000  # layers or blocks; Google's models have 24


class Shapes:
    """Looks shapes up by name; what is missing or unexpected is a ValueError that names it."""

    def __init__(self, shapes: dict[str, Shape]):
        self.shapes = shapes

    def get(self, name: str, dimensions: int) -> Shape:
        if name not in self.shapes:
            raise ValueError(f"tensor {name} is missing")
        shape = self.shapes[name]
        if len(shape) != dimensions or 0 in shape:
            raise ValueError(f"tensor {name} has shape {list(shape)}; expected {dimensions} sizes")
        return shape

    def count(self, prefix: str) -> int:
        """How many modules "prefix0", "prefix1", ... there are."""
        pattern = re.compile(re.escape(prefix) + r"(\d{1,9})[/.]")
        numbers = {int(m[1]) for name in self.shapes if (m := pattern.match(name))}
        if len(numbers) > MAX_MODULES:
            raise ValueError(f"{len(numbers):,} modules {prefix}*; at most {MAX_MODULES} accepted")
        # A number that is left out shows as missing tensors later; a wild one as unknown tensors.
        return max(numbers) + 1 if numbers and max(numbers) < MAX_MODULES else len(numbers)

    def multipliers(self, names: list[str], base: int, what: str, axis: int = 0) -> list[int]:
        """The widths of some convolutions over a base width.

        Args:
          names: one convolution a level.
          base: the width of which theirs are multiples.
          what: says in an error what `base` is.
          axis: of their output channels.
        """
        widths = [self.get(name, 4)[axis] for name in names]
        for name, width in zip(names, widths, strict=True):
            if width % base:
                raise ValueError(f"{name} gives {width} channels, no multiple of the {base}{what}")
        return [width // base for width in widths]


def _convolutional(shapes: Shapes, levels_in: str, blocks: str) -> dict:
    """What the two tokenizers have in common whose codes stand between two 1x1 convolutions.

    Args:
      shapes: of the model.
      levels_in: the levels of the encoder, numbered from full resolution on.
      blocks: the residual blocks in one of them.
    """
    codes, code_width = shapes.get("quantize.embedding.weight", 2)
    channels = shapes.get("encoder.conv_in.weight", 4)[0]
    levels = shapes.count(f"{levels_in}.")
    if not 1 <= levels <= _MAX_LEVELS:
        raise ValueError(f"{levels_in} has {levels:,} levels; accepted: 1 to {_MAX_LEVELS}")
    names = [f"{levels_in}.{level}.{blocks}.0.conv1.weight" for level in range(levels)]
    return {
        "num_codes": codes,
        "embed_dim": code_width,
        "z_channels": shapes.get("encoder.conv_out.weight", 4)[0],
        "channels": channels,
        "channel_multipliers": shapes.multipliers(names, channels, ""),
        "num_res_blocks": shapes.count(f"{levels_in}.0.{blocks}."),
    }


def _transformer(shapes: Shapes, *_: object) -> dict:
    vocabulary, width = shapes.get("params/Embed_0/word_embeddings/embedding", 2)
    layer = "params/TransformerLayer_0"
    query = shapes.get(f"{layer}/Attention_0/self_attention/query/kernel", 3)
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": shapes.count("params/TransformerLayer_"),
        "num_attention_heads": query[1],
        "intermediate_size": shapes.get(f"{layer}/Mlp_0/intermediate_output/kernel", 2)[1],
        "max_position_embeddings": shapes.get("params/Embed_0/position_embeddings/embedding", 2)[0],
    }


def _self_guided(shapes: Shapes, *_: object) -> dict:
    classes, factors = (
        shapes.get(f"self_guidance/class_anchor/{name}/weight", 2) for name in ("mlp_c", "mlp_f")
    )
    return _transformer(shapes) | {"num_classes": classes[0], "tg_factor": factors[1]}


def _tokenizer(shapes: Shapes, *_: object) -> dict:
    codes, code_width = shapes.get("params/quantizer/codebook", 2)
    filters = shapes.get("params/encoder/Conv_0/kernel", 4)[3]
    levels = shapes.count("params/decoder/Conv_") - 1  # in, one after each upsampling, out
    blocks = shapes.count("params/encoder/ResBlock_")  # of each level and once more in the middle
    if levels < 1 or not blocks or blocks % (levels + 1):
        raise ValueError(
            f"params/encoder has {blocks} residual blocks (ResBlock_*) for {levels} levels (one "
            "less than params/decoder/Conv_*); expected a multiple of the levels + 1"
        )
    per_level = blocks // (levels + 1)
    firsts = range(0, levels * per_level, per_level)
    names = [f"params/encoder/ResBlock_{block}/Conv_0/kernel" for block in firsts]
    multipliers = shapes.multipliers(names, filters, " filters", axis=3)
    config = vqgan_config.get_config().vqvae.to_dict()
    norm_type = _norm_type(shapes)
    if norm_type == "GN" and filters % GROUPNORM_GROUPS:
        config["norm_groups"] = group_count(filters)  # as `VQVAE` chooses them
    return {
        "vqvae": config
        | {
            "codebook_size": codes,
            "embedding_dim": code_width,
            "filters": filters,
            "num_res_blocks": per_level,
            "channel_multipliers": multipliers,
            "conv_downsample": shapes.count("params/encoder/Conv_") == levels + 1 > 2,
            "norm_type": norm_type,
        }
    }


def _norm_type(shapes: Shapes) -> str:
    found = {
        norm_type: sum(f"/{name}_" in tensor for tensor in shapes.shapes)
        for norm_type, name in rules.NORM_NAMES.items()
    }
    return max(found, key=found.get)


def _discriminator(shapes: Shapes, *_: object) -> dict:
    """Sizes between two powers of two can share all shapes; the largest of them is named."""
    rows, last = shapes.get("params/Dense_0/kernel", 2)
    side = min(max(math.isqrt(rows // last), 4), 7)
    image_size = side << min(shapes.count("params/ResBlock_"), 8)
    first = shapes.get("params/Conv_0/kernel", 4)[3]
    settings: dict[str, Any] = {"channel_multiplier": 1, "blur_resample": True}
    known = {rule: discriminator.widths(image_size, 1, rule) for rule in discriminator.WIDTH_RULES
             if rule != discriminator.OFFICIAL or side == 4}  # fmt: skip
    for rule, plain in known.items():
        multiplier = max(first // plain[0], 1)
        found = discriminator.widths(image_size, multiplier, rule)
        if (found[0], found[-1]) == (first, last):
            settings["channel_multiplier"] = multiplier
            if rule != discriminator.OFFICIAL:
                settings["width_rule"] = rule
            break
    return {"image_size": image_size, "discriminator": settings}


def last_of(shapes: Mapping[str, Shape], name: str) -> int:
    """The last size of a tensor; 0 where it is missing, or a single number."""
    return (shapes.get(name) or (0,))[-1]


def heads_or_default(width: int, num_heads: int | None) -> tuple[int, list[str]]:
    """The number of attention heads where a file does not tell, and a note if it had to be assumed.

    Raises:
      ValueError: it does not divide the width.
    """
    heads = num_heads or DEFAULT_HEADS
    if width % heads:
        raise ValueError(
            f"its width is {width}, no multiple of {heads} attention heads; --num_heads says how many "
            "it has"
        )
    note = (
        f"the number of attention heads is not in the file: took {heads}, as the published models "
        "have (--num_heads says otherwise)"
    )
    return heads, [] if num_heads else [note]


def _besnier(shapes: Shapes, num_heads: int, num_codes: int | None) -> dict:
    vocabulary, width = shapes.get("tok_emb.weight", 2)
    codes = num_codes or likely_codes(vocabulary)
    if codes > vocabulary - 3:
        raise ValueError(f"has {vocabulary} ids, too few for {codes} codes and the classes")
    heads_or_default(width, num_heads)
    latent = {}
    if any(name.startswith("latent_projection.") for name in shapes.shapes):
        latent = {"latent_features": shapes.get("latent_projection.0.weight", 2)[1]}
    return latent | {
        "num_codes": codes,
        "num_classes": vocabulary - codes - 2,
        "num_tokens": shapes.get("pos_emb", 3)[1] - 1,
        "hidden_size": width,
        "num_hidden_layers": shapes.count("transformer.layers."),
        "num_attention_heads": num_heads,
        "intermediate_size": shapes.get("transformer.layers.0.1.fn.net.0.weight", 2)[0],
    }


def _halton(shapes: Shapes, num_heads: int, num_codes: int | None) -> dict:
    ids, width = shapes.get("tok_emb.weight", 2)
    layer = "transformer.layers.0"
    inner = shapes.get(f"{layer}.attn.wq.weight", 2)[0]
    if num_heads > width or width // num_heads * num_heads != inner:
        raise ValueError(
            f"{num_heads} attention heads do not give the {inner} rows of {layer}.attn.wq.weight at width "
            f"{width}; --num_heads says how many it has"
        )
    registers = "reg_tokens.weight" in shapes.shapes
    return {
        "num_codes": ids - 1,
        "num_classes": shapes.get("cls_emb.weight", 2)[0] - 1,
        "num_tokens": shapes.get("pos_emb.weight", 2)[0],
        "hidden_size": width,
        "num_hidden_layers": shapes.count("transformer.layers."),
        "num_attention_heads": num_heads,
        "intermediate_size": shapes.get(f"{layer}.ff.w1.weight", 2)[0],
        "num_registers": shapes.get("reg_tokens.weight", 2)[0] if registers else 0,
    }


def _llamagen(shapes: Shapes, *_: object) -> dict:
    return _convolutional(shapes, "encoder.conv_blocks", "res")


def _mage(shapes: Shapes, num_heads: int, num_codes: int | None) -> dict:
    ids, width = shapes.get("token_emb.word_embeddings.weight", 2)
    decoder_width = shapes.get("decoder_embed.weight", 2)[0]
    if ids <= mage.EXTRA_IDS:
        raise ValueError(f"has {ids} ids; accepted: codes + {mage.EXTRA_IDS}")
    if width % num_heads:
        raise ValueError(f"its width is {width}, no multiple of {num_heads} attention heads")
    config = {
        "num_codes": ids - mage.EXTRA_IDS,
        "num_tokens": shapes.get("token_emb.position_embeddings.weight", 2)[0] - 1,
        "hidden_size": width,
        "num_hidden_layers": shapes.count("blocks."),
        "num_attention_heads": num_heads,
        "decoder_hidden_size": decoder_width,
        "decoder_num_layers": shapes.count("decoder_blocks."),
        "decoder_num_heads": math.gcd(mage.DECODER_HEADS, decoder_width),
        "mlp_ratio": shapes.get("blocks.0.mlp.fc1.weight", 2)[0] // width,
        "patch_size": shapes.get("patch_embed.proj.weight", 4)[2],
    }
    if "class_emb.weight" in shapes.shapes:
        config["num_classes"] = shapes.get("class_emb.weight", 2)[0]
    if any(name.startswith("vqgan.") for name in shapes.shapes):
        config["vqvae"] = _mage_tokenizer(shapes)
    return config


def _mage_tokenizer(shapes: Shapes) -> dict:
    """The settings of a `VQVAE` with two blocks in the middle, whatever the number of a level."""
    codes, code_width = shapes.get("vqgan.quantizer.codebook", 2)
    filters = shapes.get("vqgan.encoder.conv_in.weight", 4)[0]
    levels = shapes.count("vqgan.decoder.upsample_convs.") + 1
    blocks = shapes.count("vqgan.encoder.res_blocks.")
    middle = MAGE_MIDDLE_BLOCKS
    if levels > _MAX_LEVELS or blocks <= middle or (blocks - middle) % levels:
        raise ValueError(
            f"vqgan.encoder has {blocks} residual blocks for {levels} levels; expected {middle} more than a "
            f"multiple of the levels, of which at most {_MAX_LEVELS} are accepted"
        )
    per_level = (blocks - middle) // levels
    names = [f"vqgan.encoder.res_blocks.{i * per_level}.conv0.weight" for i in range(levels)]
    multipliers = shapes.multipliers(names, filters, " filters")
    config = vqgan_config.get_config().vqvae.to_dict() | {
        "codebook_size": codes,
        "embedding_dim": code_width,
        "filters": filters,
        "num_res_blocks": per_level,
        "channel_multipliers": multipliers,
    }
    if per_level != middle:
        config["middle_blocks"] = middle
    if filters % GROUPNORM_GROUPS:
        config["norm_groups"] = max(1, filters // 2)  # a guess: no published model is like this
    return config


def likely_codes(vocabulary: int) -> int:
    """1024 of the published 2026 ids; else the largest power of two that leaves room for a class.

    The ids are those of the codes, the mask, the classes and "no class"; the weights do not show
    where one ends and the next begins.
    """
    if vocabulary > DEFAULT_CODES + 2:
        return DEFAULT_CODES
    return 1 << max(vocabulary - 3, 1).bit_length() - 1


def _taming(shapes: Shapes, *_: object) -> dict:
    resolution = 256  # as published; only which levels have attention counts
    config = _convolutional(shapes, "encoder.down", "block")
    attention = [
        resolution >> level
        for level in range(len(config["channel_multipliers"]))
        if shapes.count(f"encoder.down.{level}.attn.")
    ]
    return config | {"resolution": resolution, "attention_resolutions": attention}


@dataclass(frozen=True)
class Signature:
    """How a type of model is recognised.

    Attributes:
      names: official names that only this type has.
      torch_names: our names that only this type has.
      config: from shapes, attention heads and codes (where shapes do not show them) to the configuration.
      width: our tensor whose last size is the width that attention heads share; None without attention
        heads that could be told apart.
      heads: width -> attention heads of the published models; None: `DEFAULT_HEADS`, whatever the width.
    """

    names: re.Pattern
    torch_names: re.Pattern
    config: Callable[[Shapes, int, int | None], dict]
    width: str | None = None
    heads: Mapping[int, int] | None = None


def _own(
    names: str,
    config: Callable[..., dict],
    width: str | None = None,
    heads: Mapping[int, int] | None = None,
) -> Signature:
    """A network that comes from PyTorch: its official names are ours."""
    return Signature(re.compile(names), re.compile(names), config, width, heads)


# Those that come from PyTorch first: of two with as many names, the first is taken.
SIGNATURES = {
    "besnier_transformer": _own(
        r"((tok_emb|first_layer|last_layer|latent_projection|transformer\.layers)\.|(pos_emb|bias)$)",
        _besnier,
        "tok_emb.weight",
    ),
    "taming_vqgan": _own(
        r"((encoder|decoder)\.(down|mid|up)\.|quantize\.|quant_conv\.|post_quant_conv\.)", _taming
    ),
    "halton_transformer": _own(
        r"((cls_emb|tok_emb|pos_emb|reg_tokens|head|last_norm)\."
        r"|transformer\.layers\.\d+\.(mlp|ln1|attn|ln2|ff)\.)",
        _halton,
        "tok_emb.weight",
        PUBLISHED_HEADS,
    ),
    "llamagen_vq": _own(
        r"((encoder|decoder)\.(conv_in|conv_blocks|mid|norm_out|conv_out)\.|quantize\.|quant_conv\."
        r"|post_quant_conv\.)",
        _llamagen,
    ),
    "mage": _own(
        r"((token_emb|blocks|decoder_blocks|decoder_embed|decoder_norm|decoder_pred|patch_embed|norm"
        r"|mlm_layer|class_emb|vqgan)\.|(cls_token|mask_token|pos_embed|decoder_pos_embed(_learned)?)$)",
        _mage,
        "token_emb.word_embeddings.weight",
        mage.PUBLISHED_HEADS,
    ),
    "maskgit_transformer": Signature(
        re.compile(r"params/(Embed_0|TransformerLayer_\d+|MlmLayer_0)/"),
        re.compile(r"(embed|layers|mlm_layer)\."),
        _transformer,
        "embed.word_embeddings.weight",
    ),
    "self_guided_transformer": Signature(
        re.compile(r"(params/(Embed_0|TransformerLayer_\d+|MlmLayer_0)|self_guidance)/"),
        re.compile(r"(embed|layers|mlm_layer|guidance|head)\."),
        _self_guided,
        "embed.word_embeddings.weight",
    ),
    "maskgit_vqvae": Signature(
        re.compile(r"(params|batch_stats)/(encoder|decoder|quantizer)/"),
        re.compile(
            r"((encoder|decoder)\.(conv_in|res_blocks|(down|up)sample_convs|norm_out|conv_out)"
            r"|quantizer)\."
        ),
        _tokenizer,
    ),
    "maskgit_discriminator": Signature(
        re.compile(r"params/(ResBlock_\d+/Conv_|Conv_[01]/|Dense_[01]/)"),
        re.compile(r"(conv_in|res_blocks|conv_out|dense[01])\."),
        _discriminator,
    ),
}
