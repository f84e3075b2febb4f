"""The networks of a run: built from its settings, and the work they take."""

import copy
import dataclasses
import math
from collections.abc import Sequence

import ml_collections
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from maskgit_pt import imagenet
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.nets.mage import Mage
from maskgit_pt.nets.maskgit_transformer import Transformer
from train.tasks.flops import count_saved_bytes

MODELS = ("maskgit_transformer", "besnier_transformer")


def make_model(
    config: ml_collections.ConfigDict, num_codes: int, num_tokens: int, vqvae: dict | None = None
) -> Transformer | BesnierTransformer | Mage:
    """The untrained network of the settings.

    Args:
      config: of the run.
      num_codes: K.
      num_tokens: n.
      vqvae: settings of the tokenizer that becomes part of a `Mage`; None: none does.
    """
    sizes = config.transformer
    if config.model == "mage":
        return Mage(
            num_codes=num_codes,
            num_tokens=num_tokens,
            hidden_size=sizes.num_embeds,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            decoder_hidden_size=config.decoder.num_embeds,
            decoder_num_layers=config.decoder.num_layers,
            decoder_num_heads=config.decoder.num_heads,
            mlp_ratio=sizes.intermediate_size // sizes.num_embeds,
            num_classes=config.num_class,
            dropout=sizes.dropout_rate,
            vqvae=vqvae,
        )
    if config.model == "besnier_transformer":
        return BesnierTransformer(
            num_codes=num_codes,
            num_classes=config.num_class,
            num_tokens=num_tokens,
            hidden_size=sizes.num_embeds,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            intermediate_size=sizes.intermediate_size,
            dropout=sizes.dropout_rate,
        )
    return Transformer(
        vocab_size=num_codes + config.num_class + 1,
        hidden_size=sizes.num_embeds,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.intermediate_size,
        hidden_dropout_prob=sizes.dropout_rate,
        attention_probs_dropout_prob=sizes.dropout_rate,
        max_position_embeddings=num_tokens + 1,
        broadcast_dropout=sizes.broadcast_dropout,
    )


def class_names(config: ml_collections.ConfigDict, found: Sequence[str]) -> list[str] | None:
    """What a model keeps of its data's class names; classes without data are called by their number.

    None if there is nothing to keep: no classes, mere numbers, or ImageNet's.
    """
    if config.num_class == 0:
        return None
    return imagenet.stored_names([*found, *map(str, range(len(found), config.num_class))])


def describe_classes(config: ml_collections.ConfigDict, found: Sequence[str]) -> str:
    """How many classes there are, and what they are called."""
    names = class_names(config, found)
    if names is None:
        return f"{config.num_class}"
    return f"{config.num_class}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def work_per_image(config: ml_collections.ConfigDict, num_codes: int, num_tokens: int) -> float:
    """Floating-point operations of training on one image, a multiply-add counted as two.

    Matrix products of the forward pass (dense layers, attention, the head over the codes), three times:
    the backward pass has two for each. 278.7 GFLOP for the published network at 256 px.
    """
    sizes = config.transformer
    N, D, wide = num_tokens + 1, sizes.num_embeds, sizes.intermediate_size
    head = 2 * N * D * num_codes
    if config.model == "mage":
        E, seen = config.decoder.num_embeds, _seen_by_encoder(config, num_tokens)
        encoder = sizes.num_layers * _work_of_layer(seen, D, wide) + 2 * seen * D * E
        decoder = config.decoder.num_layers * _work_of_layer(N, E, wide // D * E) + 2 * N * E * D
        return 3.0 * (encoder + decoder + head)
    outer = 2 * N * D * D * (3 if config.model == "besnier_transformer" else 1)
    return 3.0 * (sizes.num_layers * _work_of_layer(N, D, wide) + outer + head)


def _work_of_layer(N: int, D: int, wide: int) -> int:
    return 2 * N * (4 * D * D + 2 * D * wide) + 4 * N * N * D


def _seen_by_encoder(config: ml_collections.ConfigDict, num_tokens: int) -> int:
    """Places of MAGE's encoder in training."""
    return num_tokens + 1 - math.ceil(config.min_masking_rate * num_tokens)


@dataclasses.dataclass(frozen=True)
class Memory:
    """A model of what training holds, in bytes; not a measurement.

    Attributes:
      fixed: parameters, gradients, two moments and the average in float32, and the copies of the parameters
        in half precision.
      an_image: what the forward pass keeps for the backward pass. Compiled layers keep less.
    """

    fixed: int
    an_image: int


def memory_of_training(
    config: ml_collections.ConfigDict, num_codes: int, num_tokens: int
) -> Memory:
    """Counts the memory of training on tensors without data, for attention that keeps no probabilities."""
    one, two = (_kept(config, num_codes, num_tokens, layers) for layers in (1, 2))
    layer = two[1] - one[1]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in make_model(config, num_codes, num_tokens).parameters())
    copies = 4 + (config.polyak_decay > 0)
    half = 2 if config.precision == "bfloat16" else 0
    return Memory(
        (4 * copies + half) * parameters, one[1] + (config.transformer.num_layers - 1) * layer
    )


def _kept(
    config: ml_collections.ConfigDict, num_codes: int, num_tokens: int, layers: int
) -> tuple[int, int]:
    """Bytes kept whatever the batch, and for each image, with so many layers."""
    small = copy.deepcopy(config)
    small.transformer.num_layers = layers
    with torch.device("meta"):
        model = make_model(small, num_codes, num_tokens).train()
    for (
        module
    ) in model.modules():  # fused kernels keep no probabilities; the CPU's fall back with dropout
        for name in ("dropout_rate", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    counts = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        if isinstance(model, Mage):  # which places are left out is not known here, only how many
            seen = _seen_by_encoder(config, num_tokens)
            model.leave_out = lambda x, dropped: x[:, :seen]
        for batch in (1, 2):
            tokens = torch.zeros(batch, num_tokens, dtype=torch.int64)
            labels = torch.zeros(batch, dtype=torch.int64)

            def forward(tokens: Tensor = tokens, labels: Tensor = labels) -> None:
                with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
                    if isinstance(model, Mage):
                        logits = model(tokens, labels, tokens.bool())
                    else:
                        logits = model.code_logits(tokens, labels, num_codes)
                F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())

            counts.append(count_saved_bytes(forward, model.parameters()))
    return 2 * counts[0] - counts[1], counts[1] - counts[0]
