"""The known mistakes of ports, each of which can be put into our networks or into decoding.

A mistake changes the network while a context lasts, what it is given, or what it returns.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt import Transformer
from maskgit_pt.nets import maskgit_transformer
from parity.packs import rounding
from parity.packs.decoding import Rules

Context = Callable[[nn.Module], contextlib.AbstractContextManager]


def _same(values: np.ndarray) -> np.ndarray:
    return values


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
      name: what is done, and what should be.
      patch: puts it into the network.
      given, returned: change what the network is given, and what its last stage returns.
      rules: for a mistake in decoding.
      rounds: computes less exactly; such a mistake is recognised, not reproduced bit by bit.
    """

    name: str
    patch: Context = lambda model: contextlib.nullcontext()
    given: Callable[[np.ndarray], np.ndarray] = _same
    returned: Callable[[np.ndarray], np.ndarray] = _same
    rules: Rules | None = None
    rounds: bool = False


# Transformer ----------------------------------------------------------------------------------


def of_transformer(model: Transformer, codes: int, layers: list[int]) -> list[Mistake]:
    """Everything known to go wrong in the transformer.

    Args:
      model: the sound network.
      codes: K.
      layers: of which single matrices are tried as well.
    """
    config = model.to_config()
    heads, width = config["num_attention_heads"], config["hidden_size"]
    found = [
        Mistake("GELU in its erf form instead of the tanh approximation", _erf_gelu),
        *(epsilon("LayerNorm", nn.LayerNorm, value, "1e-12") for value in (1e-5, 1e-6, 1e-3)),
        *(
            Mistake(f"{n} attention heads instead of {heads}", lambda model, n=n: _heads(model, n))
            for n in range(1, width + 1)
            if width % n == 0 and n != heads and n <= 4 * heads
        ),
        Mistake(
            "word embeddings multiplied by the square root of the width",
            lambda model: _scaled_words(model, width**0.5),
        ),
    ]
    d = width // heads
    scales = {
        "attention scores not divided by the square root of a head's width": d**0.5,
        "attention scores divided by the square root of the whole width": (d / width) ** 0.5,
        "attention scores divided by a head's width instead of its square root": d**-0.5,
    }
    for where, which in [("", None), *((f", layer {i} alone", i) for i in layers)]:
        for name, scale in scales.items():
            patch = changed(lambda m, i=which, s=scale: _scale_query(m, i, s))
            found.append(Mistake(name + where, patch))
        for part in ("query", "key", "value", "out"):
            patch = changed(lambda m, i=which, p=part: _transpose_attention(m, i, p))
            found.append(Mistake(f"matrix of the {part} projection transposed{where}", patch))
        patch = changed(lambda m, i=which: _permute_projections(m, i))
        found.append(Mistake(f"projections in the order value, query, key{where}", patch))
    found.append(Mistake("matrix mlm_dense of the head transposed", changed(_transpose_head)))
    found += [
        Mistake(name, given=lambda ids, f=change: _with_class(ids, f))
        for name, change in (
            ("class token without the offset of the codes", lambda c: c - codes),
            ("class token one too large", lambda c: c + 1),
            ("class token one too small", lambda c: c - 1),
        )
    ]
    found += [
        Mistake(
            f"mask token looked up as id {row} instead of the last, {config['vocab_size'] - 1}",
            given=lambda ids, row=row: np.where(ids == -1, row, ids),
        )
        for row in sorted({0, codes - 1, codes, config["vocab_size"] - 2})
    ]
    return found + roundings()


def roundings() -> list[Mistake]:
    """Arithmetic of fewer bits."""
    return [
        Mistake("bfloat16 instead of float32 (weights and activations)", rounding.in_bfloat16,
                rounds=True),
        Mistake("float16 instead of float32 (weights and activations)", rounding.in_float16,
                rounds=True),
        Mistake("bfloat16 products (autocast)", rounding.autocast, rounds=True),
        Mistake("weights rounded to bfloat16", rounding.rounded_weights(torch.bfloat16), rounds=True),
        Mistake("weights rounded to float16", rounding.rounded_weights(torch.float16), rounds=True),
        *(Mistake("TF32 products" + ("" if attention else " in linear layers and convolutions")
                  + (", bits dropped instead of rounded" if truncate else ""),
                  rounding.tf32(attention, truncate), rounds=True)
          for attention in (True, False) for truncate in (False, True)),
    ]  # fmt: skip


def _erf_gelu(model: nn.Module) -> contextlib.AbstractContextManager:
    return mock.patch.object(maskgit_transformer, "gelu", F.gelu)


def epsilon(kind: str, norm: type[nn.Module], value: float, right: str) -> Mistake:
    @contextlib.contextmanager
    def patch(model: nn.Module) -> Iterator[None]:
        norms = [module for module in model.modules() if isinstance(module, norm)]
        before = [module.eps for module in norms]
        for module in norms:
            module.eps = value
        try:
            yield
        finally:
            for module, eps in zip(norms, before, strict=True):
                module.eps = eps

    return Mistake(f"{kind} epsilon {value:.0e} instead of {right}".replace("e-0", "e-"), patch)


@contextlib.contextmanager
def _heads(model: nn.Module, heads: int) -> Iterator[None]:
    attention = [m for m in model.modules() if isinstance(m, maskgit_transformer.SelfAttention)]
    before = attention[0].num_heads
    for module in attention:
        module.num_heads = heads
    try:
        yield
    finally:
        for module in attention:
            module.num_heads = before


@contextlib.contextmanager
def _scaled_words(model: Transformer, scale: float) -> Iterator[None]:
    hook = model.embed.word_embeddings.register_forward_hook(lambda _, __, output: output * scale)
    try:
        yield
    finally:
        hook.remove()


def changed(change: Callable[[nn.Module], list[tuple[nn.Parameter, Tensor]]]) -> Context:
    """A context in which some parameters hold other values."""

    @contextlib.contextmanager
    def patch(model: nn.Module) -> Iterator[None]:
        pairs = [(p, value, p.data) for p, value in change(model)]
        for parameter, value, _ in pairs:
            parameter.data = value.contiguous()
        try:
            yield
        finally:
            for parameter, _, before in pairs:
                parameter.data = before

    return patch


def _attentions(model: Transformer, layer: int | None) -> list[nn.Module]:
    chosen = model.layers if layer is None else [model.layers[layer]]
    return [one.attention.self_attention for one in chosen]


def _scale_query(model: Transformer, layer: int | None, scale: float) -> list:
    pairs = []
    for attention in _attentions(model, layer):
        for parameter in (attention.qkv.weight, attention.qkv.bias):
            query, key, value = parameter.data.chunk(3)
            pairs.append((parameter, torch.cat([query * scale, key, value])))
    return pairs


def _transpose_attention(model: Transformer, layer: int | None, part: str) -> list:
    pairs = []
    for attention in _attentions(model, layer):
        if part == "out":
            pairs.append((attention.out.weight, attention.out.weight.data.mT))
            continue
        rows = list(attention.qkv.weight.data.chunk(3))
        place = ("query", "key", "value").index(part)
        rows[place] = rows[place].mT
        pairs.append((attention.qkv.weight, torch.cat(rows)))
    return pairs


def _permute_projections(model: Transformer, layer: int | None) -> list:
    pairs = []
    for attention in _attentions(model, layer):
        for parameter in (attention.qkv.weight, attention.qkv.bias):
            query, key, value = parameter.data.chunk(3)
            pairs.append((parameter, torch.cat([value, query, key])))
    return pairs


def _transpose_head(model: Transformer) -> list:
    return [(model.mlm_layer.mlm_dense.weight, model.mlm_layer.mlm_dense.weight.data.mT)]


def _with_class(ids: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    ids = ids.copy()
    ids[:, 0] = change(ids[:, 0])
    return ids


# Decoding -------------------------------------------------------------------------------------

OF_DECODING = [
    Mistake("the other layout of JAX's random streams (noise layout)", rules=Rules(other_layout=True)),
    Mistake("mask counts computed in float64 instead of float32",
            rules=Rules(count_dtype=torch.float64)),
    Mistake("mask counts rounded up instead of down (schedule rounding)", rules=Rules(rounding="ceil")),
    Mistake("mask counts rounded to the nearest instead of down (schedule rounding)",
            rules=Rules(rounding="round")),
    Mistake("ratio s / T instead of (s + 1) / T in the schedule", rules=Rules(first_ratio=0)),
    Mistake("scores up to the threshold masked (<=) instead of those below (<)",
            rules=Rules(inclusive=True)),
    Mistake("sampled from all logits, the rows of classes and mask too", rules=Rules(all_logits=True)),
    Mistake("Gumbel noise on the confidence of known positions too, which can be masked again",
            rules=Rules(known="own")),
    Mistake("known positions sampled again", rules=Rules(known="resampled")),
    Mistake("Gumbel noise drawn for unknown positions alone instead of for all",
            rules=Rules(noise="unknown")),
]  # fmt: skip
