"""Negative controls: faults put into the PyTorch port, each of which its comparison must notice."""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from maskgit_pt import Transformer
from maskgit_pt.nets import maskgit_transformer
from parity.bounds import FLOAT32, FLOAT64
from parity.checks import decoding, streams
from parity.checks.near_ties import Settings
from parity.checks.tokenizer import our_results, their_results
from parity.checks.transformer import make_ids, our_logits, their_logits
from parity.compare import Record, compare, compare_exact, control
from parity.pairs import TokenizerPair, TransformerPair


def transformer_faults(pair: TransformerPair, ids: np.ndarray) -> Iterator[Record]:
    """Faults that the logits must show at the bound that the sound port is held to."""
    theirs = their_logits(pair, ids)

    def noticed(model: nn.Module, fault: str) -> Record:
        ours = our_logits(model, ids)
        return control(compare("logits", ours, theirs, FLOAT32.logits), fault)

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
    transformer: TransformerPair, tokenizer: TokenizerPair, images: np.ndarray
) -> Iterator[Record]:
    """PyTorch's default epsilon, 1e-5, in place of Flax's; in float64, since float32 hides it."""
    ids = make_ids(transformer, 2)
    with transformer.in_float64() as pair:
        ours = our_logits(_with_epsilon(pair.ours, nn.LayerNorm), ids)
        record = compare("logits", ours, their_logits(pair, ids), FLOAT64.logits)
        yield control(record, "LayerNorm epsilon 1e-5 instead of 1e-12")

    images = images.astype(np.float64)
    with tokenizer.in_float64() as pair:
        broken = dataclasses.replace(pair, ours=_with_epsilon(pair.ours, nn.GroupNorm))
        ours, theirs = our_results(broken, images), their_results(pair, images)
        record = compare("features", ours["features"], theirs["features"], rtol=FLOAT64.blocks)
        yield control(record, "GroupNorm epsilon 1e-5 instead of 1e-6")


def decoding_faults(runs: decoding.Runs) -> Iterator[Record]:
    """The other layout of the random streams, and mask counts in float64."""
    pair = runs.pair
    tokens = decoding.make_tokens(pair, runs.batch, edit=False)
    for partitionable in (False, True):
        theirs = runs.theirs(tokens, 0, Settings(partitionable=partitionable))
        ours = decoding.decode_ours(pair, tokens, 0, Settings(partitionable=not partitionable))
        layout = streams.LAYOUT_NAMES[partitionable]
        record = compare_exact(f"tokens, {layout}", ours.guesses, theirs.guesses)
        yield control(record, f"the other stream layout than JAX's {layout}")
    ours = streams.our_counts("cosine", 256, torch.float64)
    record = compare_exact("counts", ours, streams.their_counts(pair.code, "cosine", 256))
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
