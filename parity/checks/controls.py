"""Negative controls: faults put into the PyTorch port, each of which its comparison must notice."""

import contextlib
import copy
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from maskgit_pt import Transformer
from maskgit_pt.nets import maskgit_transformer
from parity.checks import decoding
from parity.checks import random as checks_random
from parity.checks import tokenizer as checks_tokenizer
from parity.checks import transformer as checks_transformer
from parity.checks.near_ties import Settings
from parity.compare import Record, compare, compare_exact, control
from parity.pairs import TokenizerPair, TransformerPair


def transformer_faults(pair: TransformerPair, ids: np.ndarray, atol: float) -> Iterator[Record]:
    """Faults that the logits must show at the bound that the sound port is held to."""
    theirs = checks_transformer.their_logits(pair, ids)

    def noticed(model: nn.Module, fault: str) -> Record:
        ours = checks_transformer.our_logits(model, ids)
        return control(compare("logits", ours, theirs, atol), fault)

    with _erf_gelu():
        yield noticed(pair.ours, "GELU in its erf form")
    transposed = copy.deepcopy(pair.ours)
    out = transposed.layers[0].attention.self_attention.out
    out.weight.data = out.weight.data.mT.contiguous()
    yield noticed(transposed, "one matrix transposed (attention output, layer 0)")
    del transposed
    heads = pair.ours.to_config()["num_attention_heads"]
    halved = Transformer.from_config(pair.ours.to_config() | {"num_attention_heads": heads // 2})
    halved.load_state_dict(pair.ours.state_dict())
    yield noticed(halved.eval(), f"{heads // 2} heads instead of {heads}")


def epsilon_faults(
    transformer: TransformerPair, tokenizer: TokenizerPair, ids: np.ndarray, images: np.ndarray
) -> Iterator[Record]:
    """PyTorch's default epsilon, 1e-5, in place of Flax's; float64 pairs, since float32 hides it."""
    ours = _with_epsilon(transformer.ours, nn.LayerNorm)
    theirs = checks_transformer.their_logits(transformer, ids)
    record = compare("logits", checks_transformer.our_logits(ours, ids), theirs, atol=1e-9)
    yield control(record, "LayerNorm epsilon 1e-5 instead of 1e-12")

    broken = TokenizerPair(
        _with_epsilon(tokenizer.ours, nn.GroupNorm), tokenizer.code, tokenizer.variables
    )
    ours = checks_tokenizer.our_results(broken, images)["features"]
    theirs = checks_tokenizer.their_results(tokenizer, images)["features"]
    record = compare("features", ours, theirs, rtol=1e-9)
    yield control(record, "GroupNorm epsilon 1e-5 instead of 1e-6")


def decoding_faults(
    pair: TransformerPair, decoder: decoding.TheirDecoder, batch: int
) -> Iterator[Record]:
    """The other layout of the random streams, and mask counts in float64."""
    tokens = decoding.make_tokens(pair, batch, edit=False)
    for partitionable in (False, True):
        theirs = decoder(tokens, 0, Settings(partitionable=partitionable))
        ours = decoding.decode_ours(pair, tokens, 0, Settings(partitionable=not partitionable))
        layout = checks_random.LAYOUT_NAMES[partitionable]
        record = compare_exact(f"tokens, {layout}", ours.guesses, theirs.guesses)
        yield control(record, f"the other stream layout than JAX's {layout}")
    ours = checks_random.our_counts("cosine", 256, torch.float64)
    record = compare_exact("counts", ours, checks_random.their_counts(pair.code, "cosine", 256))
    yield control(record, "cosine mask counts of 256 tokens in float64")


@contextlib.contextmanager
def _erf_gelu() -> Iterator[None]:
    with mock.patch.object(maskgit_transformer, "gelu", F.gelu):
        yield


def _with_epsilon(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, kind):
            module.eps = 1e-5
    return model
