"""Forty implementations with one mistake each, written without the code that looks for causes.

Each is told apart by the first array that must differ, and by words of the cause that must be named; None
where the mistake is of a kind that nobody knows, and "unknown" must be the answer.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from maskgit_pt.libml import jax_random, mask_schedule, parallel_decode
from maskgit_pt.nets import layers, maskgit_transformer, vqgan_tokenizer
from parity.packs import networks
from parity.packs.decoding import Run
from parity.packs.pack import Pack
from parity.packs.theirs import Theirs, run_of


@dataclasses.dataclass(frozen=True)
class Case:
    """One mistaken implementation.

    Attributes:
      name: for people.
      part: "transformer", "encoder", "decoder" or "decoding".
      first: the array that must be named as the first to differ; in decoding its last word.
      cause: words that the cause must contain; None: it must be unknown.
      context: puts the mistake into our modules.
      given: changes the input.
      returned: changes the output.
      only: give these names alone.
    """

    name: str
    part: str
    first: str
    cause: tuple[str, ...] | None
    context: Callable[[nn.Module], contextlib.AbstractContextManager] = lambda model: (
        contextlib.nullcontext()
    )
    given: Callable[[np.ndarray], np.ndarray] = lambda values: values
    returned: Callable[[np.ndarray], np.ndarray] = lambda values: values
    only: tuple[str, ...] = ()


def theirs(case: Case, pack: Pack, transformer: nn.Module, tokenizer: nn.Module) -> Theirs:
    """What the mistaken implementation computes for the inputs of a pack."""
    if case.part == "decoding":
        return _decoded(case, pack, transformer)
    compute, model, inputs, last = {
        "transformer": (networks.transformer_arrays, transformer, "ids", "transformer.logits"),
        "encoder": (networks.encoder_arrays, tokenizer, "images", "tokenizer.indices"),
        "decoder": (networks.decoder_arrays, tokenizer, "tokenizer.indices", "tokenizer.images"),
    }[case.part]
    with case.context(model):
        arrays = compute(model, case.given(pack.whole(inputs).copy()))
    arrays[last] = case.returned(arrays[last])
    chosen = case.only or tuple(arrays)
    return Theirs(arrays={name: arrays[name] for name in chosen if name in pack.entries})


def _decoded(case: Case, pack: Pack, model: nn.Module) -> Theirs:
    found = Theirs()
    with case.context(model), torch.inference_mode():
        for row in pack.manifest["decoding"]:
            run = run_of(row)
            tokens = torch.tensor(pack.whole(f"{run.prefix}state")[0]).long()
            found.guesses[run.name] = _decode(run, tokens, model).numpy()
    return found


NUM_LOGITS: list[int | None] = []  # holds one entry while a case samples from all logits
SWAP_LAYOUT: list[bool] = []


def _decode(run: Run, tokens: torch.Tensor, model: nn.Module) -> torch.Tensor:
    key = jax_random.Key.from_words(list(run.key), run.partitionable != bool(SWAP_LAYOUT))
    cut = None if NUM_LOGITS else run.codes
    return parallel_decode.decode(
        tokens, key, lambda ids: model(ids, cut), num_iter=run.num_iter,
        start_iter=run.start_iter, choice_temperature=run.temperature,
    )  # fmt: skip


# How mistakes are put in ----------------------------------------------------------------------


def patched(owner: object, name: str, value: object) -> Callable:
    return lambda model: mock.patch.object(owner, name, value)


def with_attributes(kind: type, **values: object) -> Callable:
    """Sets attributes of all submodules of a kind."""

    @contextlib.contextmanager
    def context(model: nn.Module) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, kind):
                    for name, value in values.items():
                        stack.enter_context(mock.patch.object(module, name, value))
            yield

    return context


def with_weights(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable:
    """Loads other weights for a while."""

    @contextlib.contextmanager
    def context(model: nn.Module) -> Iterator[None]:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict({name: change(name, value) for name, value in before.items()})
        try:
            yield
        finally:
            model.load_state_dict(before)

    return context


def both(*contexts: Callable) -> Callable:
    @contextlib.contextmanager
    def context(model: nn.Module) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for one in contexts:
                stack.enter_context(one(model))
            yield

    return context


@contextlib.contextmanager
def holding(marks: list, value: object) -> Iterator[None]:
    marks.append(value)
    try:
        yield
    finally:
        marks.clear()


@contextlib.contextmanager
def _bfloat16(model: nn.Module) -> Iterator[None]:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.bfloat16()
    try:
        yield
    finally:
        model.float().load_state_dict(before)


def _tf32(values: torch.Tensor) -> torch.Tensor:
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp(torch.round(mantissa * 2048) / 2048, exponent)


def _tf32_linear(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return _tf32(x) @ _tf32(self.weight).T + self.bias


def _attention(scale: Callable[[int, int], float], softmax_axis: int = -1) -> Callable:
    """Self-attention written out, with another scale."""

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        probs = (q @ k.mT * scale(q.shape[-1], D)).softmax(softmax_axis)
        return self.out((probs @ v).transpose(1, 2).reshape(B, N, D))

    return patched(maskgit_transformer.SelfAttention, "forward", forward)


def _transposed(*names: str) -> Callable:
    return with_weights(lambda name, value: value.T.contiguous() if name in names else value)


def _query_transposed(name: str, value: torch.Tensor) -> torch.Tensor:
    if not name.endswith("qkv.weight"):
        return value
    q, k, v = value.chunk(3)
    return torch.cat([q.T, k, v])


def _block(source: Callable) -> Callable:
    """The residual block written out; `source` gives what the shortcut's convolution sees."""

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        y = self.conv1(F.silu(self.norm1(h)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(source(x, h, y)))

    return patched(vqgan_tokenizer.ResBlock, "forward", forward)


def _input_of_width(x: torch.Tensor, h: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if x.shape[1] > y.shape[1]:
        return x[:, : y.shape[1]]
    return torch.cat([x, x.new_zeros(x.shape[0], y.shape[1] - x.shape[1], *x.shape[2:])], 1)


def _flat_distances(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    B, D, h, w = x.shape
    flat = x.reshape(-1, D)  # without moving the channels last
    return torch.cdist(flat, self.codebook).square().view(B, h, w, -1)


def _flat_lookup(self: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    B, h, w = ids.shape
    return self.codebook[ids].reshape(B, -1, h, w)


def _shifted_positions(name: str, value: torch.Tensor) -> torch.Tensor:
    return value.roll(1, 0) if name.endswith("position_embeddings.weight") else value


def _with_mlp(forward: Callable) -> Callable:
    return patched(maskgit_transformer.Mlp, "forward", forward)


def _mlp_without_residual(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return self.layer_output_ln(
        self.layer_output(maskgit_transformer.gelu(self.intermediate_output(x)))
    )


def _mlp_before_norm(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    normal = self.layer_output_ln(x)
    return x + self.layer_output(maskgit_transformer.gelu(self.intermediate_output(normal)))


# Decoding -------------------------------------------------------------------------------------


def _inclusive(mask_len: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
    ordered = confidence.sort(-1).values
    return confidence <= ordered.gather(-1, mask_len.long())


def _plan(dtype: torch.dtype, rounding: Callable, annealed: bool = True) -> Callable:
    """Mask counts in another dtype or with another rounding; temperatures that fall, or do not."""

    def plan(unknown: torch.Tensor, num_iter: int, temperature: float, method: str = "cosine"):
        ratio = torch.arange(1, num_iter + 1, dtype=dtype)[:, None] / num_iter
        counts = rounding(unknown * mask_schedule.schedule(ratio, unknown, method))
        falling = (1 - ratio) if annealed else torch.ones_like(ratio)
        return counts.float(), (temperature * falling).float()

    return patched(parallel_decode, "plan", plan)


def _decide_with_noise_on_known(cur, unknown, logits, mask_len, temperature, noise, mask_id=-1):
    probs = logits.softmax(-1)
    sampled = torch.where(unknown, noise.categorical(logits, probs), cur)
    chosen = probs.gather(-1, sampled.clamp(0, logits.shape[-1] - 1)[..., None])[..., 0]
    most = unknown.sum(-1, keepdim=True) - 1
    count = torch.minimum(most, mask_len[:, None]).clamp(min=1)
    scores = chosen.log() + temperature * noise.gumbel(chosen.shape, chosen.dtype, chosen.device)
    return sampled, sampled.masked_fill(parallel_decode._lowest(count, scores), mask_id)


def _decide_by_probability(cur, unknown, logits, mask_len, temperature, noise, mask_id=-1):
    """Adds noise to the probability instead of its logarithm."""
    probs = logits.softmax(-1)
    sampled = torch.where(unknown, noise.categorical(logits, probs), cur)
    chosen = probs.gather(-1, sampled.clamp(0, logits.shape[-1] - 1)[..., None])[..., 0]
    chosen = chosen.masked_fill(~unknown, torch.inf)
    count = torch.minimum(unknown.sum(-1, keepdim=True) - 1, mask_len[:, None]).clamp(min=1)
    scores = chosen + temperature * noise.gumbel(chosen.shape, chosen.dtype, chosen.device)
    return sampled, sampled.masked_fill(parallel_decode._lowest(count, scores), mask_id)


def cases(codes: int, classes: int) -> list[Case]:
    """All forty, for a pack of that many codes and classes."""
    attention = "transformer.layers.0.attention.self_attention"
    logits = ("transformer.logits",)
    norm, group = nn.LayerNorm, nn.GroupNorm

    def T(name, first, cause, context=None, **more):
        return Case(name, "transformer", f"transformer.{first}", cause, **_given(context, more))

    def E(name, first, cause, context=None, **more):
        return Case(name, "encoder", f"tokenizer.{first}", cause, **_given(context, more))

    def D(name, first, cause, context=None, **more):
        return Case(name, "decoder", f"tokenizer.{first}", cause, **_given(context, more))

    def S(name, first, cause, context):
        return Case(name, "decoding", first, cause, context)

    erf = patched(maskgit_transformer, "gelu", F.gelu)
    known = [
        T("erf GELU", "layers.0.mlp", ("erf",), erf),
        T("erf GELU, logits alone", "logits", ("erf",), erf, only=logits),
        T("LayerNorm 1e-5", "embed", ("LayerNorm epsilon 1e-5",), with_attributes(norm, eps=1e-5)),
        T("LayerNorm 1e-3", "embed", ("LayerNorm epsilon 1e-3",), with_attributes(norm, eps=1e-3)),
        T("erf GELU and LayerNorm 1e-5, logits alone", "logits", ("erf", "LayerNorm epsilon 1e-5"),
          both(erf, with_attributes(norm, eps=1e-5)), only=logits),
        T("output matrix of layer 1 transposed", "layers.1.attention.self_attention",
          ("out projection transposed", "layer 1"),
          _transposed("layers.1.attention.self_attention.out.weight")),
        T("query matrices transposed", "layers.0.attention.self_attention",
          ("query projection transposed",), with_weights(_query_transposed)),
        T("mlm_dense transposed", "mlm_layer.mlm_dense", ("mlm_dense", "transposed"),
          _transposed("mlm_layer.mlm_dense.weight")),
        T("scores not scaled", attention[12:], ("not divided",), _attention(lambda d, D: 1.0)),
        T("scores scaled by the whole width", attention[12:], ("whole width",),
          _attention(lambda d, D: D**-0.5)),
        T("half the heads", attention[12:], ("2 attention heads",),
          with_attributes(maskgit_transformer.SelfAttention, num_heads=2)),
        T("twice the heads, logits alone", "logits", ("8 attention heads",),
          with_attributes(maskgit_transformer.SelfAttention, num_heads=8), only=logits),
        T("class offset missing", "embed", ("without the offset",),
          given=lambda ids: np.concatenate([ids[:, :1] - codes, ids[:, 1:]], 1)),
        T("class one too large", "embed", ("one too large",),
          given=lambda ids: np.concatenate([ids[:, :1] + 1, ids[:, 1:]], 1)),
        T("mask id is the number of codes", "embed", (f"mask token looked up as id {codes}",),
          given=lambda ids: np.where(ids < 0, codes, ids)),
        T("bfloat16, not declared", "embed", ("bfloat16",), _bfloat16),
        T("TF32", "layers.0.attention.self_attention", ("TF32",),
          patched(nn.Linear, "forward", _tf32_linear)),
        E("GroupNorm 1e-5", "encoder.res_blocks.0", ("GroupNorm epsilon 1e-5",),
          with_attributes(group, eps=1e-5)),
        E("pixels in [-1, 1]", "encoder.conv_in", ("[-1, 1]",), given=lambda x: (x - 0.5) / 0.5),
        E("max pooling", "encoder.res_blocks.1", ("maximum",),
          patched(layers, "dsample", lambda x: F.max_pool2d(x, 2))),
        E("replicated edges", "encoder.conv_in", ("replicate padding",),
          with_attributes(nn.Conv2d, padding_mode="replicate")),
        E("shortcut of the block's input", "encoder.res_blocks.2", ("shortcut of the block's input",),
          _block(_input_of_width)),
        E("features not moved to NHWC", "indices", ("NHWC order",),
          patched(vqgan_tokenizer.VectorQuantizer, "distances", _flat_distances)),
        D("GroupNorm 1e-5 in the decoder", "decoder.res_blocks.0", ("GroupNorm epsilon 1e-5",),
          with_attributes(group, eps=1e-5)),
        D("images in [-1, 1]", "images", ("pixel range",), returned=lambda x: x * 2 - 1),
        D("shortcut after the first convolution", "decoder.res_blocks.2", ("shortcut",),
          _block(lambda x, h, y: h)),
        D("codes not moved to NCHW", "decoder.conv_in", ("NHWC order",),
          patched(vqgan_tokenizer.VectorQuantizer, "decode_ids", _flat_lookup)),
        S("noise in the other layout", "sampled", ("layout",), lambda m: holding(SWAP_LAYOUT, True)),
        S("counts in float64", "next", ("float64",), _plan(torch.float64, torch.floor)),
        S("counts rounded up", "next", ("rounded up",), _plan(torch.float32, torch.ceil)),
        S("<= in masking", "next", ("<=",), patched(parallel_decode, "_lowest", _inclusive)),
        S("all logits sampled", "sampled", ("all logits",), lambda m: holding(NUM_LOGITS, None)),
        S("noise on known positions", "next", ("known positions",),
          patched(parallel_decode, "decide", _decide_with_noise_on_known)),
    ]  # fmt: skip
    unknown = [
        T("ReLU", "layers.0.mlp", None, patched(maskgit_transformer, "gelu", F.relu)),
        T("quick GELU, logits alone", "logits", None,
          patched(maskgit_transformer, "gelu", lambda x: x * torch.sigmoid(1.702 * x)), only=logits),
        T("positions shifted by one", "embed", None, with_weights(_shifted_positions)),
        T("no residual in the MLP", "layers.0.mlp", None, _with_mlp(_mlp_without_residual)),
        T("norm before the MLP", "layers.0.mlp.intermediate_output", None, _with_mlp(_mlp_before_norm)),
        T("no bias of the logits", "logits", None,
          with_weights(lambda n, v: torch.zeros_like(v) if n.endswith("mlm_bias.bias") else v)),
        T("softmax over the queries", attention[12:], None, _attention(lambda d, D: d**-0.5, -2)),
        E("ReLU instead of swish", "encoder.res_blocks.0", None,
          with_attributes(vqgan_tokenizer.ResBlock, activation_fn=F.relu)),
        D("16 groups", "decoder.res_blocks.0", None, with_attributes(group, num_groups=16)),
        S("noise added to the probability", "next", None,
          patched(parallel_decode, "decide", _decide_by_probability)),
    ]  # fmt: skip
    return known + unknown


def _given(context: Callable | None, more: dict) -> dict:
    return more | ({"context": context} if context is not None else {})
