"""Masked image generators of other designs, which are told by their tensors and named, not converted.

To add one, enter it into `RELATIVES`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from convert.formats.container import read_small_config
from maskgit_pt.layouts import CONFIG_NAME

_INDEX_NAME = "model_index.json"  # of diffusers, in a folder of folders


@dataclass(frozen=True)
class Relative:
    """A model that somebody may take for one of these.

    Attributes:
      name: what it is.
      tensors: names that its files have, all of them.
      why: what it differs in, and where it can be used; the end of a sentence that begins with "it".
      classes: what its configurations say under `_class_name`.
    """

    name: str
    tensors: frozenset[str]
    why: str
    classes: frozenset[str] = frozenset()


_AMUSED = (
    "makes images from texts, with CLIP's encoder and a U-ViT on 8192 codes; AmusedPipeline of "
    "huggingface/diffusers runs it"
)

RELATIVES = (
    Relative(
        "MAR (Li et al. 2024)",
        frozenset(
            (
                "z_proj.weight",
                "encoder_blocks.0.attn.qkv.weight",
                "diffusion_pos_embed_learned",
                "diffloss.net.input_proj.weight",
            )
        ),
        "has no tokens but continuous values, which a small diffusion network draws; the code of LTH14/mar "
        "runs it",
    ),
    Relative(
        "aMUSEd (Patil et al. 2024)",
        frozenset(
            (
                "encoder_proj.weight",
                "embed.conv.weight",
                "cond_embed.linear_1.weight",
                "down_block.res_blocks.0.depthwise.weight",
                "project_to_hidden.weight",
                "mlm_layer.conv2.weight",
            )
        ),
        _AMUSED,
        frozenset(
            ("UVit2DModel", "AmusedPipeline", "AmusedImg2ImgPipeline", "AmusedInpaintPipeline")
        ),
    ),
    Relative(
        "aMUSEd's transformer under the names of open-muse (Patil et al. 2024)",
        frozenset(
            (
                "encoder_proj.weight",
                "embed.conv.weight",
                "cond_embed.0.weight",
                "down_blocks.0.res_blocks.0.depthwise.weight",
                "mlm_layer.conv2.weight",
            )
        ),
        _AMUSED,
        frozenset(("MaskGiTUViT",)),
    ),
    Relative(
        "a VQModel of diffusers, such as aMUSEd's tokenizer",
        frozenset(
            (
                "encoder.down_blocks.0.resnets.0.conv1.weight",
                "quant_conv.weight",
                "quantize.embedding.weight",
                "post_quant_conv.weight",
                "decoder.up_blocks.0.resnets.0.conv1.weight",
            )
        ),
        "belongs to other transformers than those here; VQModel of huggingface/diffusers runs it",
        frozenset(("VQModel",)),
    ),
    Relative(
        "MAGE conditioned on a representation, of RCG (Li et al. 2024)",
        frozenset(
            (
                "latent_prior_proj.weight",
                "fake_latent",
                "token_emb.word_embeddings.weight",
                "mlm_layer.fc.weight",
            )
        ),
        "makes images from the output of a self-supervised encoder, which a second model draws; both belong "
        "to LTH14/rcg, whose code runs it; RCG's MAGE with classes (class_emb) is read here",
    ),
    Relative(
        "AutoNAT (Ni et al. 2024)",
        frozenset(
            (
                "token_emb.word_embeddings.weight",
                "context_embed.word_embeddings.weight",
                "in_blocks.0.attn.qkv.weight",
                "mid_block.attn.qkv.weight",
                "mlm_layer.fc.weight",
            )
        ),
        "is a U-ViT with skip connections, which the code of LeapLabTHU/ImprovedNAT runs; its tokenizer "
        "(MAGE's vqgan_jax_strongaug.ckpt) is read here, and so is its strategy (--strategy)",
    ),
    Relative(
        "ENAT (Ni et al. 2024)",
        frozenset(
            (
                "x_embedder.word_embeddings.weight",
                "y_embedder.embedding_table.weight",
                "prev_proj.norm.weight",
                "blocks.0.adaLN_modulation.1.weight",
                "mlm_layer.fc.weight",
            )
        ),
        "sees visible and masked tokens through different weights and reuses features between steps, which "
        "the code of LeapLabTHU/ENAT runs; its tokenizer (MAGE's vqgan_jax_strongaug.ckpt) is read here",
    ),
)


def describe_relative(names: Iterable[str]) -> str | None:
    """Says which relative the tensors of these names are of, and where it can be used; None for none."""
    names = set(names)
    return next((_refusal(r) for r in RELATIVES if r.tensors <= names), None)


def describe_relative_folder(folder: Path) -> str | None:
    """The same of a folder, by its configuration; None for none, or one that cannot be read."""
    for path in (folder / _INDEX_NAME, folder / CONFIG_NAME):
        try:
            stated = read_small_config(path).get("_class_name")
        except (OSError, ValueError):
            continue
        for relative in RELATIVES:
            if isinstance(stated, str) and stated in relative.classes:
                return _refusal(relative)
    return None


def _refusal(relative: Relative) -> str:
    return f"holds {relative.name}, which is not converted: it {relative.why}"
