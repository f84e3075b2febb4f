"""The networks that every part of the project can load: a new one is entered here, and nowhere else.

A transformer has `code_logits(tokens, labels, num_codes)`, `num_tokens`, `num_classes_with(num_codes)`
and `blocks`; a tokenizer `encode_to_indices`, `decode_from_indices`, `get_codebook_funct` and
`downsampling`. A transformer without classes has 0 of them; one that brings its tokenizer has it as
`vqgan`; `takes_guidance = False` says that it never saw dropped labels. Each is a
`pretrained.PretrainedMixin`.
"""

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
