"""Masked image generators of other designs, which are told by their tensors and named, not converted.

To add one, enter it into `RELATIVES`.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Relative:
    """A model that somebody may take for one of these.

    Attributes:
      name: what it is.
      tensors: names that its files have, all of them.
      why: what it differs in, and where it can be used; the end of a sentence that begins with "it".
    """

    name: str
    tensors: frozenset[str]
    why: str


RELATIVES = (
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
    for relative in RELATIVES:
        if relative.tensors <= names:
            return f"holds {relative.name}, which is not converted: it {relative.why}"
    return None
