"""Which training runs are compared: stage 2 with the weights of a subject, stage 1 with its own."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maskgit_pt.libml.jax_random import Key
from parity.bounds import RUN64, TOKENIZER_RUN32, TRANSFORMER_RUN32, RunBounds
from parity.compare import Record
from parity.jax_code import JaxCode
from parity.pairs import TransformerPair
from parity.stages import Curve, Finding, Stage
from parity.training import controls, tokenizer, transformer
from parity.training.compare_runs import compare_runs
from parity.training.run import Run

# Another setting of nearly everything than in `transformer.settings`.
OTHER_OPTIMIZER = {
    "optimizer.decay": "matrices",
    "optimizer.lr_schedule": "linear",
    "optimizer.weight_decay": 0.2,
    "accumulation_steps": 2,
}
# Changes to `tokenizer.settings`. XLA takes minutes for the blur's convolution in float64.
NO_BLUR = {"discriminator.blur_resample": False}
OTHER_LOSSES = NO_BLUR | {
    "vqvae.quantizer": "gumbel",
    "vqgan.loss_type": "hinge",
    "reconstruction_loss": "l1",
}


class TransformerTraining:
    """The stages of the transformer's training.

    Args:
      section: heading of the stages.
      pair: the transformer, in float32.
      shards: a folder to be made, for the training data.
    """

    def __init__(self, section: str, pair: TransformerPair, shards: Path):
        self.section, self.pair, self.shards = section, pair, shards

    def stages(self) -> list[Stage]:
        """In order: later ones use what the first one of float64 computed in JAX."""
        title = f"{transformer.STEPS} AdamW steps of the transformer"
        runs = {
            f"{title}, float32": self._float32,
            f"{title}, float64": self._float64,
            f"{title}, other settings, float64": self._other,
            "faults in training": self._faults,
        }
        return [Stage(self.section, name, run) for name, run in runs.items()]

    def _settings(self, **changes: Any) -> Any:
        if not self.shards.exists():
            transformer.write_shards(self.pair, self.shards)
        return transformer.settings(self.pair, self.shards, **changes)

    def _float32(self) -> Iterator[Finding]:
        ours = transformer.Ours(self.pair, self._settings())
        theirs = transformer.Theirs(self.pair, ours.config).run(ours.config, ours.batches())
        yield from self._compare(ours.run(), theirs, TRANSFORMER_RUN32, "float32")

    def _float64(self) -> Iterator[Finding]:
        with self.pair.code.float64():
            ours, theirs = self._ours64, self._run64
            yield from self._compare(ours.run(), theirs, RUN64, "float64")

    def _other(self) -> Iterator[Record]:
        with self.pair.code.float64():
            ours = transformer.Ours(self._ours64.pair, self._settings(**OTHER_OPTIMIZER))
            theirs = self._trainer64.run(ours.config, ours.batches())
            yield from compare_runs(ours.run(), theirs, RUN64)

    def _faults(self) -> Iterator[Record]:
        with self.pair.code.float64():
            yield from controls.transformer_faults(self._ours64, self._run64)

    @functools.cached_property
    def _ours64(self) -> transformer.Ours:
        return transformer.Ours(self.pair.double, self._settings())

    @functools.cached_property
    def _trainer64(self) -> transformer.Theirs:
        return transformer.Theirs(self._ours64.pair, self._ours64.config)

    @functools.cached_property
    def _run64(self) -> Run:
        return self._trainer64.run(self._ours64.config, self._ours64.batches())

    def _compare(
        self, ours: Run, theirs: Run, bounds: RunBounds, precision: str
    ) -> Iterator[Finding]:
        title = f"{self.section}: loss of the transformer, {precision}"
        yield Curve(title, ours.curves["loss"], theirs.curves["loss"])
        yield from compare_runs(ours, theirs, bounds)


class TokenizerTraining:
    """The stages of the tokenizer's training against the discriminator; weights are drawn here.

    Args:
      code: the JAX side.
      images: a folder to be made, for the training data.
    """

    def __init__(self, code: JaxCode, images: Path):
        self.code, self.images = code, images

    def stages(self) -> list[Stage]:
        """In order: the faults use what the first one computed in JAX.

        With the official code also the other losses, in which the tests compare the reference.
        """
        title = f"{tokenizer.STEPS} steps of tokenizer, discriminator"
        runs = {f"{title}, float32": self.float32, f"{title}, float64": self.float64}
        if self.code.official:
            runs[f"{title}, Gumbel, hinge, float32"] = self.other32
            runs[f"{title}, Gumbel, hinge, float64"] = self.other64
        runs["faults in training tokenizer and discriminator"] = self.faults
        return [Stage("functions", name, run) for name, run in runs.items()]

    def float32(self) -> Iterator[Finding]:
        """As published: nearest codes, non-saturating loss, R1, blur."""
        yield from self._compare("as published, float32", *self._run32)

    def faults(self) -> Iterator[Record]:
        """Faults in the same run."""
        yield from controls.tokenizer_faults(*self._run32)

    def float64(self) -> Iterator[Finding]:
        """As published but for the blur."""
        with self.code.float64(lift_casts=True):
            yield from self._compare("without blur, float64", *self._run(NO_BLUR, np.float64))

    def other32(self) -> Iterator[Finding]:
        """Gumbel quantizer, hinge loss, L1 reconstruction.

        With 4 samples, not 2: there rounding decides so many directions of Adam's first steps that the
        gradient penalty ends 3e-4 apart, where float64 agrees to 1e-13.
        """
        run = self._run(OTHER_LOSSES | {"batch_size": 4}, np.float32)
        yield from self._compare("Gumbel and hinge, float32", *run)

    def other64(self) -> Iterator[Finding]:
        """The same in float64."""
        with self.code.float64(lift_casts=True):
            run = self._run(OTHER_LOSSES, np.float64)
            yield from self._compare("Gumbel and hinge, float64", *run)

    @functools.cached_property
    def _run32(self) -> tuple[tokenizer.Case, list[Key], Run]:
        return self._run({}, np.float32)

    def _run(
        self, changes: dict[str, Any], dtype: type[np.floating]
    ) -> tuple[tokenizer.Case, list[Key], Run]:
        """A setting, the keys of its noise, and its run in JAX."""
        if not self.images.exists():
            tokenizer.write_images(self.images)
        settings = tokenizer.settings(self.images, **changes)
        case = tokenizer.Case(self.code, settings, dtype)
        trainer = tokenizer.Theirs(case)
        return case, trainer.keys(), trainer.run()

    def _compare(
        self, name: str, case: tokenizer.Case, keys: list[Key], theirs: Run
    ) -> Iterator[Finding]:
        ours = tokenizer.run_ours(case, keys)
        for loss, network in (("loss", "tokenizer"), ("discriminator_loss", "discriminator")):
            title = f"loss of the {network}, {name}"
            yield Curve(title, ours.curves[loss], theirs.curves[loss])
        single = case.dtype is np.float32
        bounds = TOKENIZER_RUN32 if single else RUN64
        yield from compare_runs(ours, theirs, bounds)
