"""Google's own JAX code beside ours on the same device; see `gpu_parts`."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_tools import Report, Size, make_model, milliseconds, on
from torch import Tensor

from convert import rules
from maskgit_pt.libml import jax_random
from maskgit_pt.pipeline import MaskGIT

CHECKOUT = "MASKGIT_OFFICIAL_CHECKOUT"
STEPS, SEED = 8, 11


def official_jax(device: torch.device, size: Size, _: Path) -> Report:
    """Tokens of 8 steps against JAX's on the CPU, and the time of both on this device, without guidance."""
    report = Report()
    if missing := what_is_missing():
        report.figures["official JAX"] = f"not run: {missing}"
        return report
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both share the card
    from parity import official

    compare_with(report, official.load(os.environ[CHECKOUT]), device, size)
    return report


def what_is_missing() -> str | None:
    """What the official code would need."""
    if importlib.util.find_spec("jax") is None or importlib.util.find_spec("flax") is None:
        return "no JAX"
    if not os.environ.get(CHECKOUT):
        return f"{CHECKOUT} names no checkout of google-research/maskgit"
    return None


def compare_with(report: Report, code: Any, device: torch.device, size: Size) -> None:
    """Asks `parity.jax_code.JaxCode`, official or not."""
    import jax

    whole = make_model(size)
    labels = torch.arange(size.images) * 37 % size.classes
    with jax.default_device(jax.devices("cpu")[0]):
        theirs = np.asarray(_their_sampling(code, whole)(labels)[0])
    report.figures["jax"] = f"{jax.__version__}, {jax.default_backend()}"
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        key = jax_random.PRNGKey(SEED)
        ours = on(whole, device).generate(labels, rng=key, steps=STEPS).tokens.flatten(1).numpy()
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    same = int((ours == theirs).all(1).sum())
    report.figures["images whose tokens are JAX's on the CPU"] = f"{same} of {len(labels)}"
    report.check(same == len(labels), f"tokens of {len(labels) - same} images are not JAX's")
    if jax.default_backend() != {"cuda": "gpu"}.get(device.type, device.type):
        report.figures["time beside ours"] = "not run: JAX finds no such device"
        return
    decode = _their_sampling(code, whole)
    for batch in (1, size.batch) if size.is_full else (1,):
        _time(report, decode, whole, device, size, batch)


def _time(
    report: Report, decode: Callable, whole: MaskGIT, device: torch.device, size: Size, batch: int
) -> None:
    """Milliseconds from labels to images on the host; JAX in its default precision, as its users have it."""
    import jax

    labels = torch.arange(batch) % size.classes
    found = {
        "JAX float32": milliseconds(lambda: jax.device_get(decode(labels)), device, size.repeats)
    }
    for dtype in (torch.float32, torch.bfloat16):
        model = on(whole, device, dtype)

        def call(model: MaskGIT = model) -> Any:
            return model.generate(labels, batch_size=batch, steps=STEPS)

        found[f"ours {str(dtype).removeprefix('torch.')}"] = milliseconds(
            call, device, size.repeats
        )
    for name, taken in found.items():
        report.figures[f"batch {batch}, {name}: ms"] = taken
        report.figures[f"batch {batch}, {name}: of JAX's time"] = taken / found["JAX float32"]


def _their_sampling(code: Any, model: MaskGIT) -> Callable[[Tensor], Any]:
    """Labels [B] -> tokens [B, n] and images of the JAX code with the same weights, compiled."""
    import jax
    import ml_collections
    from flax import traverse_util

    from parity.jax_code import jax_options, jit

    transformer = code.transformer(model.transformer.to_config())
    tokenizer = code.tokenizer(ml_collections.ConfigDict(model.tokenizer.to_config()))
    weights = [
        traverse_util.unflatten_dict(
            rules.to_official(network.state_dict(), network.model_type, network.to_config()),
            sep="/",
        )
        for network in (model.transformer, model.tokenizer)
    ]

    def sample(weights: list, tokens: Any, key: Any) -> Any:
        def tokens_to_logits(ids: Any) -> Any:
            logits = transformer.apply(weights[0], ids, deterministic=True)
            return logits[..., : model.num_codes]

        steps = code.parallel_decode.decode(
            tokens, key, tokens_to_logits, num_iter=STEPS, choice_temperature=4.5
        )
        found = steps[:, -1, 1:]
        grid = found.reshape(-1, model.side, model.side)
        return found, tokenizer.apply(weights[1], grid, method="decode_from_indices")

    weights = jax.device_put(weights)
    compiled = jit(sample, quick=sum(p.numel() for p in model.transformer.parameters()) < 5e6)

    def call(labels: Tensor) -> Any:
        tokens = np.full((len(labels), model.num_tokens + 1), -1, np.int32)
        tokens[:, 0] = labels.numpy() + model.num_codes
        with jax_options(partitionable=False):
            return jax.block_until_ready(compiled(weights, tokens, jax.random.PRNGKey(SEED)))

    return call
