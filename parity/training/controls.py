"""Negative controls of training: faults in the trainer, each of which a comparison must notice.

Chosen among what goes wrong in ports of optimizers and losses. Each is held to the
bounds of the sound trainer.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt.nets import maskgit_transformer
from parity.bounds import RUN64, TOKENIZER_RUN32
from parity.compare import Record, compare, control
from parity.training import tokenizer
from parity.training.compare_runs import compare_runs
from parity.training.run import Run
from parity.training.transformer import Ours
from train.tasks import autoencoding, masked_tokens, optimizers


def transformer_faults(ours: Ours, theirs: Run) -> Iterator[Record]:
    """Faults that the loss curve, the weights or their averages must show.

    Args:
      ours: a float64 run with decay of all weights.
      theirs: the same in JAX, without any fault.
    """
    faults: dict[str, tuple[str, Callable[[], Any]]] = {
        "GELU in its erf form": (
            "loss",
            lambda: mock.patch.object(maskgit_transformer, "gelu", F.gelu),
        ),
        "loss averaged over all masked tokens instead of per sample": (
            "loss",
            lambda: mock.patch.object(masked_tokens.MaskedTokens, "loss_class", _MeanOverTokens),
        ),
        "weight decay coupled with the gradient (L2) instead of decoupled": (
            "weights",
            lambda: mock.patch.object(optimizers, "make_adamw", _coupled),
        ),
        "no decay of biases, norms and embeddings": (
            "weights",
            lambda: _changed(ours, **{"optimizer.decay": "matrices"}),
        ),
        "Adam's epsilon inside the square root": (
            "weights",
            lambda: mock.patch.object(optimizers, "make_adamw", _EpsilonInside.make),
        ),
        "each parameter's gradient clipped on its own": (
            "weights",
            lambda: mock.patch.object(optimizers, "clip_gradients", _clip_each),
        ),
        "warm-up that starts from rate 0": (
            "weights",
            lambda: mock.patch.object(optimizers, "learning_rate", _late_warm_up),
        ),
        "moving average with its final decay from the start": (
            "averages",
            lambda: mock.patch.object(optimizers, "Average", _ConstantAverage),
        ),
    }
    for fault, (shown_by, make) in faults.items():
        with make():
            yield control(_largest(shown_by, ours.run(), theirs), fault)


def tokenizer_faults(case: tokenizer.Case, keys: list[Any], theirs: Run) -> Iterator[Record]:
    """Faults in the steps of tokenizer and discriminator.

    Args:
      case: a float32 setting with nearest codes and R1.
      keys: of its noise.
      theirs: its run in JAX.
    """
    faults: dict[str, Callable[[], Any]] = {
        "Adam with PyTorch's betas (.9, .999) instead of (0, .99)": lambda: mock.patch.object(
            optimizers, "make_adamw", _default_betas
        ),
        "R1 penalty without its gradient": lambda: mock.patch.object(
            autoencoding.losses, "r1_gradient_penalty", _constant_penalty
        ),
        "discriminator shown what the updated tokenizer reconstructs": lambda: mock.patch.object(
            tokenizer, "Task", _LateReconstructions
        ),
    }
    for fault, make in faults.items():
        with make():
            ours = tokenizer.run_ours(case, keys)
        records = compare_runs(ours, theirs, TOKENIZER_RUN32)
        yield control(max(records, key=lambda record: record.strain), fault)


def _largest(what: str, ours: Run, theirs: Run) -> Record:
    """The comparison of that name with the largest difference."""
    if what == "loss":
        return compare("loss", ours.curves["loss"], theirs.curves["loss"], RUN64.loss)
    attribute = {"weights": "parameters", "averages": "averages"}[what]
    mine, expected = getattr(ours, attribute), getattr(theirs, attribute)
    records = [
        compare(f"{what}, {name}", mine[network][name], value, RUN64.weights)
        for network, values in expected.items()
        for name, value in values.items()
    ]
    return max(records, key=lambda record: record.strain)


@contextlib.contextmanager
def _changed(ours: Ours, **changes: Any) -> Iterator[None]:
    """Other settings for a while."""
    before = ours.config.copy_and_resolve_references()
    ours.config.update_from_flattened_dict(changes)
    try:
        yield
    finally:
        ours.config.update(before)


class _MeanOverTokens(masked_tokens.MaskedLoss):
    """Samples count by how many tokens they hide."""

    def forward(self, codes: Tensor, masked: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, correct = super().forward(codes, masked, labels)
        counts = masked.sum(-1)
        return loss * counts * (len(counts) / counts.sum()), correct


def _coupled(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        model.parameters(),
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )


def _default_betas(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), eps=config.epsilon)


_R1 = autoencoding.losses.r1_gradient_penalty


def _constant_penalty(*arguments: Any) -> tuple[Tensor, Tensor]:
    logits, penalty = _R1(*arguments)
    return logits, penalty.detach()


class _LateReconstructions(tokenizer.Task):
    """Runs the tokenizer again after its update."""

    def update_tokenizer(self, images: Tensor, step: int) -> tuple[dict[str, Tensor], Tensor]:
        metrics, _ = super().update_tokenizer(images, step)
        with torch.no_grad():
            quantized, _ = self.tokenizer.quantizer.forward(self.tokenizer.encoder(images))
            return metrics, self.tokenizer.decode(quantized)


class _EpsilonInside(torch.optim.Optimizer):
    """AdamW that divides by sqrt(v + epsilon) instead of sqrt(v) + epsilon."""

    @classmethod
    def make(cls, model: nn.Module, config: Any) -> "_EpsilonInside":
        return cls(model.parameters(), {"lr": 0.0, "config": config})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            config, lr = group["config"], group["lr"]
            for p in group["params"]:
                state = self.state[p]
                t = state["t"] = state.get("t", 0) + 1
                m, v = state.get("m", torch.zeros_like(p)), state.get("v", torch.zeros_like(p))
                state["m"] = m = config.beta1 * m + (1 - config.beta1) * p.grad
                state["v"] = v = config.beta2 * v + (1 - config.beta2) * p.grad**2
                corrected = (v / (1 - config.beta2**t) + config.epsilon).sqrt()
                p.mul_(1 - lr * config.weight_decay)
                p.sub_(lr * m / (1 - config.beta1**t) / corrected)


def _clip_each(parameters: Any, max_norm: float) -> Tensor:
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    for p in parameters:
        p.grad.mul_(torch.clamp(max_norm / p.grad.norm(), max=1.0))
    return norm


def _late_warm_up(config: Any, step: int, num_steps: int, lr: float | None = None) -> float:
    rate = _LEARNING_RATE(config, step, num_steps, lr)
    return config.lr * step / config.warmup_steps if step < config.warmup_steps else rate


_LEARNING_RATE = optimizers.learning_rate


class _ConstantAverage(optimizers.Average):
    """Without the smaller decay of the first steps."""

    def update(self, model: nn.Module, step: int) -> None:
        super().update(model, 10**9)
