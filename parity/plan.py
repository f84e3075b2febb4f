"""Which comparisons are made, and in which order."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from parity.bounds import FLOAT32
from parity.checks import (
    checkpoints,
    configs,
    controls,
    decoding,
    editing,
    losses,
    streams,
    tokenizer,
    transformer,
)
from parity.checks.near_ties import Settings
from parity.jax_code import JaxCode
from parity.stages import Finding, Stage
from parity.subjects import Subject
from parity.training import plan as training


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user can choose: seeds of the decoding runs, steps, batch."""

    seeds: tuple[int, ...] = (0, 1)
    steps: int = 8
    edit_steps: int = 12
    edit_start: int = 2
    batch_size: int = 2


def _stage(
    section: str, title: str, run: Callable[..., Iterable[Finding]], *arguments: Any
) -> Stage:
    return Stage(section, title, functools.partial(run, *arguments))


def code_stages(code: JaxCode) -> list[Stage]:
    """What needs no weights."""
    stage = functools.partial(_stage, "functions")
    stages = []
    if code.configs:
        stages.append(stage("configurations", configs.configurations, code.configs))
    for partitionable, layout in streams.LAYOUT_NAMES.items():
        stages.append(stage(f"random streams, {layout}", streams.streams, partitionable))
    stages += [
        stage("mask schedules and counts", streams.schedules, code),
        stage("loss functions", losses.loss_functions, code),
    ]
    title = "discriminator, R1, gradients"
    for blur, name in ((True, "blur"), (False, "average")):
        stages.append(stage(f"{title}, {name}, float32", losses.discriminator_losses, code, blur))
    stages.append(stage(f"{title}, average, float64", losses.discriminator_losses64, code))
    return stages


def subject_stages(subject: Subject, picture: np.ndarray, options: Options) -> list[Stage]:
    """The stages of one subject, in order.

    Args:
      subject: the models; small ones, of which both must be there, get more stages.
      picture: float32 [1, 3, H, W] for the tokenizer.
      options: the user's choices.
    """
    arguments = (subject.checkpoints, subject.folders)
    title = "checkpoint -> PyTorch -> checkpoint"
    stages = [_stage(subject.section, title, checkpoints.round_trip, *arguments)]
    if subject.transformer is not None:
        stages += _transformer_stages(subject, options)
    if subject.tokenizer is not None:
        stages += _tokenizer_stages(subject, picture)
    if subject.transformer is not None:
        runs = decoding.Runs(subject.transformer, options.seeds, options.batch_size)
        stages += _decoding_stages(subject, runs, options)
        if not subject.full_size:
            stages += _small_stages(subject, runs, picture)
    return stages


def _transformer_stages(subject: Subject, options: Options) -> list[Stage]:
    stage, pair, full = (
        functools.partial(_stage, subject.section),
        subject.transformer,
        subject.full_size,
    )
    ids, few = transformer.make_ids(pair, 4), transformer.make_ids(pair, 1 if full else 3)
    first = ids[: 1 if full else options.batch_size]
    activations = functools.partial(transformer.activations, rtol=FLOAT32.layers)
    # The bound of the logits is absolute, and weights whose logits are larger lose more.
    return [
        stage("transformer layer by layer, float32", activations, pair, first),
        stage("logits and argmax, float32", transformer.logits, pair, ids, FLOAT32.logits),
        stage(
            "loss and gradients of every parameter, float32",
            transformer.gradients,
            pair,
            few if full else transformer.make_training_ids(pair),
            FLOAT32,
        ),
        stage("faults in the transformer", controls.transformer_faults, pair, few),
    ]


def _tokenizer_stages(subject: Subject, picture: np.ndarray) -> list[Stage]:
    stage, pair = functools.partial(_stage, subject.section), subject.tokenizer
    activations = functools.partial(tokenizer.activations, rtol=FLOAT32.blocks)
    title = f"{subject.section}: picture, encoded and decoded"
    return [
        stage("tokenizer block by block, float32", activations, pair, picture),
        stage(
            "features, indices, images, float32", tokenizer.results, pair, picture, FLOAT32, title
        ),
    ]


def _decoding_stages(subject: Subject, runs: decoding.Runs, options: Options) -> list[Stage]:
    stage = functools.partial(_stage, subject.section)
    steps, edit_steps, start = options.steps, options.edit_steps, options.edit_start
    modes = {
        f"generation, {steps} steps": (steps, 0),
        f"editing, {edit_steps} steps from {start}": (edit_steps, start),
    }
    stages = []
    for mode, (count, first) in modes.items():
        for partitionable, layout in streams.LAYOUT_NAMES.items():
            title, settings = f"{mode}, {layout}", Settings(count, first, partitionable)
            stages.append(stage(title, runs.compare, title, settings))
    if subject.tokenizer is not None:
        arguments = (subject.tokenizer, subject.section)
        stages.append(stage("images of the decoded tokens", runs.images, *arguments))
    return stages


def _small_stages(subject: Subject, runs: decoding.Runs, picture: np.ndarray) -> list[Stage]:
    """The generator, training mode, float64, and the faults that only float64 shows."""
    stage, models = (
        functools.partial(_stage, subject.section),
        (subject.transformer, subject.tokenizer),
    )
    generator = "generator: editing masks, compositing, images"
    stages = [
        stage(generator, editing.generator, *models, subject.config, picture),
        stage("faults in decoding", controls.decoding_faults, runs),
    ]
    for quantizer in ("vq", "gumbel"):
        title, arguments = (
            f"quantizer {quantizer} in training, gradients",
            (models[1], picture, quantizer),
        )
        stages += [
            stage(f"{title}, float32", tokenizer.training32, *arguments),
            stage(f"{title}, float64", tokenizer.training64, *arguments),
        ]
    stages += [
        stage(
            "transformer in float64: layers, logits, gradients", transformer.in_float64, models[0]
        ),
        stage("tokenizer in float64: blocks, images", tokenizer.in_float64, models[1], picture),
        stage("faults that float64 shows", controls.epsilon_faults, *models, picture),
    ]
    shards = subject.folders["transformer"].with_name(f"{subject.section}_shards")
    return stages + training.TransformerTraining(subject.section, models[0], shards).stages()


# Listed in every report: what agreement does not cover, and why.
NOT_COMPARED = (
    ("dropout", "the random masks differ by design; all comparisons run without it"),
    ("fresh initial weights", "drawn from other streams; the distributions are tested by moments"),
    (
        "mask counts of the uniform, pow and exp schedules in a compiled loop",
        "XLA multiplies by 1 / T instead of dividing by T, which lowers some counts by one where "
        "tokens * rate is an integer; maskgit_pt counts as the code is written. Compared operation "
        "by operation instead; the cosine schedule, official in sampling, is compared compiled too",
    ),
    (
        "VQVAE.__call__",
        "hands a pair to the decoder and cannot run; encode and decode are compared",
    ),
    ("the discriminator's blur in float64", "its filter is float32; compared in float32"),
    (
        "losses of the quantizer and R1 in float64",
        "cast to float32 by the official code; compared to "
        "float32's rounding, their gradients to that of float64. Training of tokenizer and discriminator "
        "lifts the casts on the JAX side and compares in float64",
    ),
    (
        "the step that trains the tokenizer in Google's code",
        "not published; on the JAX side the official networks and losses are put together as VQGAN is "
        "trained. The perceptual loss is compared with a small layer in place of ResNet-50",
    ),
    (
        "weights after training steps in float32",
        "Adam divides a gradient by its own size, so that a weight whose gradient is nothing but rounding "
        "moves by the full rate in either direction; float64 compares every weight",
    ),
)
