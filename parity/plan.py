"""Which comparisons are made, in which order, and within which bounds."""

import dataclasses
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import torch

import convert
from parity.checks import controls
from parity.checks import decoding as checks_decoding
from parity.checks import editing as checks_editing
from parity.checks import losses as checks_training_losses
from parity.checks import random as checks_random
from parity.checks import tokenizer as checks_tokenizer
from parity.checks import transformer as checks_transformer
from parity.checks.near_ties import History, Settings
from parity.checks.random import LAYOUT_NAMES
from parity.compare import Record, compare, compare_exact
from parity.jax_code import JaxCode, jit
from parity.pairs import TokenizerPair, TransformerPair, nhwc
from parity.report_figures import Curve
from parity.stages import Stage
from parity.subjects import Subject
from parity.training import plan


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How far the two sides may differ; see `parity.compare.compare` for absolute and relative.

    In float32 each bound is a few times what rounding alone makes of the same network (24 layers,
    logits of standard deviation 10); in float64 nothing but rounding of 1e-16 is left, and a
    difference above 1e-9 is a difference of the computation.
    """

    logits: float  # absolute
    layers: float  # activations of the transformer, relative
    blocks: float  # activations of the tokenizer, relative
    images: float  # absolute
    loss: float  # absolute
    gradients: tuple[float, float]  # relative to all gradients' scale, and to the array's


FLOAT32 = Bounds(2e-4, 2e-5, 3e-5, 2e-4, 5e-5, (1e-5, 1e-4))
FLOAT64 = Bounds(1e-9, 1e-10, 1e-10, 1e-9, 1e-9, (1e-10, 1e-9))


@dataclasses.dataclass(frozen=True)
class Picture:
    """Images of both sides for the report: float [H, W, 3], unclipped."""

    title: str
    ours: np.ndarray
    theirs: np.ndarray
    original: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user can choose: seeds of the decoding runs, steps, batch."""

    seeds: tuple[int, ...] = (0, 1)
    steps: int = 8
    edit_steps: int = 12
    edit_start: int = 2
    batch_size: int = 2


def code_stages(code: JaxCode) -> list[Stage]:
    """What needs no weights."""
    section = "functions"
    losses = checks_training_losses
    tight = FLOAT64

    def discriminator64() -> Iterator[Record]:
        with code.float64():
            yield from losses.discriminator_losses(code, False, np.float64, tight.loss, 1e-7, 1e-7)

    return [
        *(
            Stage(section, f"random streams, {name}", lambda p=p: checks_random.streams(p))
            for p, name in LAYOUT_NAMES.items()
        ),
        Stage(section, "mask schedules and counts", lambda: checks_random.schedules(code)),
        Stage(section, "loss functions", lambda: losses.loss_functions(code)),
        *(
            Stage(
                section,
                f"discriminator, R1, gradients, {name}, float32",
                lambda blur=blur: losses.discriminator_losses(
                    code, blur, atol=FLOAT32.gradients[0], rtol=FLOAT32.gradients[1]
                ),
            )
            for blur, name in ((True, "blur"), (False, "average"))
        ),
        Stage(section, "discriminator, R1, gradients, average, float64", discriminator64),
    ]


class SubjectPlan:
    """The stages of one subject, and the pictures that they leave."""

    def __init__(self, subject: Subject, picture: np.ndarray, options: Options):
        """Plans.

        Args:
          subject: the models.
          picture: float32 [1, 3, H, W] for the tokenizer.
          options: the user's choices.
        """
        self.subject, self.picture, self.options = subject, picture, options
        self.pictures: list[Picture] = []
        self.curves: list[Curve] = []
        self._histories: dict[tuple[str, int], tuple[History, History]] = {}
        if subject.transformer is not None:
            self._decoder = checks_decoding.TheirDecoder(subject.transformer)

    def stages(self) -> list[Stage]:
        """In order; the float64 stages for a small subject alone, whose fields must be both there."""
        stages = [self._stage("checkpoint -> PyTorch -> checkpoint", self._round_trip())]
        stages += self._transformer_stages() if self.subject.transformer else []
        stages += self._tokenizer_stages() if self.subject.tokenizer else []
        stages += self._decoding_stages() if self.subject.transformer else []
        if not self.subject.full_size:
            stages += self._small_stages()
        return stages

    def _stage(self, title: str, records: Iterable[Record]) -> Stage:
        return Stage(self.subject.section, title, lambda: records)

    def _round_trip(self) -> Iterator[Record]:
        """The file, converted and exported again, has the same bytes."""
        for kind, file in self.subject.checkpoints.items():
            back = self.subject.folders[kind].with_suffix(".exported")
            convert.convert(self.subject.folders[kind], back, to="flax")
            ours, theirs = (np.fromfile(path, np.uint8) for path in (back, file))
            yield compare_exact(f"{kind}: bytes of the file exported again", ours, theirs)
            Path(back).unlink()

    def _ids(self, batch: int) -> np.ndarray:
        return checks_transformer.make_ids(self.subject.transformer, batch)

    def _transformer_stages(self) -> list[Stage]:
        pair, bounds, batch = self.subject.transformer, FLOAT32, self.options.batch_size
        full = self.subject.full_size
        ids, few = self._ids(4), self._ids(1 if full else 3)
        check = checks_transformer
        # The bound of the logits is absolute, and weights whose logits are larger lose more.
        stages = [
            self._stage(
                "transformer layer by layer, float32",
                check.activations(pair, ids[: 1 if full else batch], rtol=bounds.layers),
            ),
            self._stage("logits and argmax, float32", check.logits(pair, ids, bounds.logits)),
            self._stage(
                "loss and gradients of every parameter, float32",
                check.gradients(pair, few, bounds.loss, *bounds.gradients),
            ),
            self._stage(
                "faults in the transformer",
                controls.transformer_faults(pair, few, bounds.logits),
            ),
        ]
        return stages

    def _tokenizer_stages(self) -> list[Stage]:
        pair, check = self.subject.tokenizer, checks_tokenizer
        return [
            self._stage(
                "tokenizer block by block, float32",
                check.activations(pair, self.picture, rtol=FLOAT32.blocks),
            ),
            self._stage("features, indices, images, float32", self._tokenizer_results(pair)),
        ]

    def _tokenizer_results(self, pair: TokenizerPair) -> Iterator[Record]:
        ours = checks_tokenizer.our_results(pair, self.picture)
        theirs = checks_tokenizer.their_results(pair, self.picture)
        yield from checks_tokenizer.compare_results(ours, theirs, FLOAT32.blocks, FLOAT32.images)
        original = nhwc(self.picture)[0]
        title = f"{self.subject.section}: picture, encoded and decoded"
        self.pictures.append(Picture(title, ours["images"][0], theirs["images"][0], original))

    def _decoding_stages(self) -> list[Stage]:
        options = self.options
        modes = {
            f"generation, {options.steps} steps": (options.steps, 0),
            f"editing, {options.edit_steps} steps from {options.edit_start}": (
                options.edit_steps,
                options.edit_start,
            ),
        }
        stages = []
        for mode, (steps, start) in modes.items():
            for partitionable, layout in LAYOUT_NAMES.items():
                title = f"{mode}, {layout}"
                settings = Settings(steps, start, partitionable)
                stages.append(self._stage(title, self._decode(title, settings)))
        if self.subject.tokenizer is not None:
            stages.append(self._stage("images of the decoded tokens", self._decoded_images()))
        return stages

    def _decode(self, title: str, settings: Settings) -> Iterator[Record]:
        pair = self.subject.transformer
        for seed in self.options.seeds:
            tokens = checks_decoding.make_tokens(
                pair, self.options.batch_size, edit=settings.start_iter > 0, seed=seed
            )
            ours = checks_decoding.decode_ours(pair, tokens, seed, settings)
            theirs = self._decoder(tokens, seed, settings)
            self._histories[title, seed] = ours, theirs
            yield from checks_decoding.compare_histories(
                f"seed {seed}", pair, ours, theirs, seed, settings
            )

    def _decoded_images(self) -> Iterator[Record]:
        """Each side's tokens of the last step through its own decoder, one image for each run."""
        pair = self.subject.tokenizer
        side = int(round((self.subject.transformer.length - 1) ** 0.5))
        decode = jit(
            lambda variables, ids: pair.theirs.apply(
                variables, ids, method=lambda module, ids: module.decode_from_indices(ids)
            )
        )
        for (title, seed), histories in self._histories.items():
            ids = [history.guesses[:1, -1, 1:].reshape(1, side, side) for history in histories]
            with torch.inference_mode():
                ours = nhwc(pair.ours.decode_from_indices(torch.from_numpy(ids[0])))
            theirs = np.asarray(decode(pair.variables, jnp.asarray(ids[1])))
            name = f"{title}, seed {seed}"
            yield compare(name, ours, theirs, atol=FLOAT32.images)
            self.pictures.append(Picture(f"{self.subject.section}: {name}", ours[0], theirs[0]))

    def _small_stages(self) -> list[Stage]:
        """Training mode, the generator, float64, and the faults that only float64 shows."""
        subject, bounds, tight = self.subject, FLOAT32, FLOAT64
        transformer, tokenizer = subject.transformer, subject.tokenizer
        stages = [
            self._stage(
                "generator: editing masks, compositing, images",
                checks_editing.generator(
                    transformer.code,
                    transformer,
                    tokenizer,
                    subject.config,
                    self.picture,
                    bounds.images,
                ),
            ),
            self._stage(
                "faults in decoding",
                controls.decoding_faults(transformer, self._decoder, self.options.batch_size),
            ),
        ]
        for quantizer in ("vq", "gumbel"):
            title = f"quantizer {quantizer} in training, gradients"
            for name, make, limits in (
                ("float32", self._training32, bounds),
                ("float64", self._training64, tight),
            ):
                stages.append(self._stage(f"{title}, {name}", make(quantizer, limits)))
        stages += [
            self._stage("transformer in float64: layers, logits, gradients", self._transformer64()),
            self._stage("tokenizer in float64: blocks, images", self._tokenizer64()),
            self._stage("faults that float64 shows", self._epsilon_faults()),
        ]
        shards = subject.folders["transformer"].with_name(f"{subject.section}_shards")
        training = plan.TransformerTraining(subject.section, transformer, shards)
        self.curves = training.curves
        return stages + training.stages()

    def _training32(self, quantizer: str, limits: Bounds) -> Iterator[Record]:
        yield from checks_tokenizer.training(
            self.subject.tokenizer, self.picture, quantizer, limits.loss, *limits.gradients
        )

    def _training64(self, quantizer: str, limits: Bounds) -> Iterator[Record]:
        with self.subject.tokenizer.code.float64():
            yield from checks_tokenizer.training(
                self.subject.tokenizer.double(),
                self.picture.astype(np.float64),
                quantizer,
                limits.loss,
                *limits.gradients,
            )

    def _transformer64(self) -> Iterator[Record]:
        check, tight = checks_transformer, FLOAT64
        with self.subject.transformer.code.float64():
            pair: TransformerPair = self.subject.transformer.double()
            yield from check.activations(pair, self._ids(2), rtol=tight.layers)
            yield from check.logits(pair, self._ids(4), tight.logits)
            yield from check.gradients(pair, self._ids(3), tight.loss, *tight.gradients)

    def _tokenizer64(self) -> Iterator[Record]:
        check, tight = checks_tokenizer, FLOAT64
        with self.subject.tokenizer.code.float64():
            pair, picture = self.subject.tokenizer.double(), self.picture.astype(np.float64)
            yield from check.activations(pair, picture, rtol=tight.blocks)
            ours, theirs = check.our_results(pair, picture), check.their_results(pair, picture)
            yield from check.compare_results(ours, theirs, tight.blocks, tight.images)

    def _epsilon_faults(self) -> Iterator[Record]:
        with self.subject.transformer.code.float64():
            yield from controls.epsilon_faults(
                self.subject.transformer.double(),
                self.subject.tokenizer.double(),
                self._ids(2),
                self.picture.astype(np.float64),
            )


def config_stage(configs: dict[str, ModuleType]) -> Stage:
    """The official configurations, field by field, against those of `maskgit_pt.configs`."""

    def records() -> Iterator[Record]:
        for name, theirs in configs.items():
            ours = importlib.import_module(f"maskgit_pt.configs.{name}").get_config().to_dict()
            expected = theirs.get_config().to_dict()
            fields = set(ours) | set(expected)
            different = sorted(key for key in fields if ours.get(key) != expected.get(key))
            message = f"fields that differ: {different}" if different else f"{len(fields)} fields"
            yield Record(name, not different, tolerance="equal", message=message)

    return Stage("functions", "configurations", records)


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
