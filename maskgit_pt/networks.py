"""The networks that every part of the project can load: a new one is entered here, and nowhere else.

A transformer has `code_logits(tokens, labels, num_codes)`, `num_tokens`, `num_classes_with(num_codes)`
and `blocks`; a tokenizer `encode_to_indices`, `decode_from_indices`, `get_codebook_funct` and
`downsampling`. A transformer without classes has 0 of them; one that brings its tokenizer has it as
`vqgan`; `takes_guidance = False` says that it never saw dropped labels. Each is a
`pretrained.PretrainedMixin`.
"""

import warnings

from torch import nn

from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.nets.halton_transformer import HaltonTransformer
from maskgit_pt.nets.llamagen_vq import LlamaGenVQ
from maskgit_pt.nets.mage import Mage
from maskgit_pt.nets.maskgit_transformer import Transformer
from maskgit_pt.nets.self_guidance import SelfGuidedTransformer
from maskgit_pt.nets.taming_vqgan import TamingVQGAN
from maskgit_pt.nets.vqgan_tokenizer import VQVAE

TRANSFORMERS = [Transformer, BesnierTransformer, HaltonTransformer, Mage, SelfGuidedTransformer]
TOKENIZERS = [VQVAE, TamingVQGAN, LlamaGenVQ]

_PUBLISHED_PATCH, _PUBLISHED_SIZE = 16, 256  # pixels of a token and of an image


def trained_size(network: nn.Module) -> int | None:
    """The side in pixels of the images that a network was trained on; None where nothing tells."""
    return network.image_size or network.to_config().get("vqvae", {}).get("pixels")


def size_for(tokenizer: nn.Module, name: str, asked: int | None = None) -> int:
    """The side in pixels of the images to give to a tokenizer: what was asked for, or its own.

    Args:
      tokenizer: the network.
      name: of it, for messages.
      asked: None: the size that its configuration tells. If that tells none, a tokenizer with the published
        16 pixels a token gets 256 px, with a warning.

    Raises:
      ValueError: nobody says it.
    """
    size = asked or trained_size(tokenizer)
    if size is None and tokenizer.downsampling == _PUBLISHED_PATCH:
        size = _PUBLISHED_SIZE
        warnings.warn(
            f"{name} does not say for which images it is: took {size} px (--image_size says otherwise)",
            stacklevel=2,
        )
    if size is None:
        raise ValueError(f"{name} does not say for which images it is; --image_size says it")
    return size
