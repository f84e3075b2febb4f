"""Records a pack: runs MaskGIT in JAX, in float32 and in float64, and keeps what it computed."""

import dataclasses
import importlib.metadata
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

import convert
from convert import inspection
from parity import pairs, weights
from parity.bounds import FLOAT32
from parity.checks import transformer as checks_transformer
from parity.jax_code import jit
from parity.layers import nhwc
from parity.packs import arrays, networks, pack, record_decoding, rounding
from parity.packs.arrays import Entry
from parity.pairs import TokenizerPair, TransformerPair
from parity.stages import progress
from parity.subjects import Subject

# Elements of the largest array that is stored whole, and most bytes of weights that a pack carries.
_LIMITS = {False: 4096, True: 1 << 16}
_MOST_WEIGHTS = 4 << 20
_LARGE = 64 << 20  # bytes of weights from which on arrays are thinned more
DARK = 0.01  # brightness of every second image: there GroupNorm's epsilon counts
BEST = 4  # how many of the nearest codes are kept
ABOUT = (
    "What MaskGIT in JAX computes, to check another implementation against: see docs/check_your_port.md "
    "of maskgit_pt. Every array stands in 'arrays' in the order of computation, with its axes (letters as in "
    "'axes'), shape and file. Maps and images are NHWC. An array with a 'stride' is stored in parts: "
    "NAME.strided holds every stride-th element of the flattened array, NAME.sums.A the sums over all "
    "axes but A, in float64. Integers must be equal, unless the best scores lie within bounds."
)
BOUNDS = (
    f"'rounding' is the largest difference between the recorded float32 values and the same computed in "
    f"float64. An implementation in float32 may differ by {arrays.FACTOR:g} times that (at least "
    f"{arrays.FACTOR:g} x 2^-23 of the array's largest magnitude). An implementation in bfloat16 may differ "
    f"by {arrays.FACTOR_BFLOAT16:g} times what PyTorch differed by with weights and activations in bfloat16. "
    "A sum of n elements may differ by the larger of sqrt(n) and n / 4 times the bound of one."
)
_ACTIVATIONS = {"relu": jax.nn.relu, "swish": jax.nn.swish}


@dataclasses.dataclass
class Recorder:
    """Collects arrays with their entries, in the order of computation."""

    file: str
    limit: int
    found: list[tuple[Entry, np.ndarray]] = dataclasses.field(default_factory=list)

    def exact(self, name: str, axes: str, values: Any, about: str, **options: Any) -> None:
        """Integers: words as uint32, everything else as int32."""
        values = np.asarray(values)
        values = values.astype(np.uint32 if values.dtype == np.uint32 else np.int32)
        self._keep(name, axes, values, about, **options)

    def floats(
        self,
        name: str,
        axes: str,
        values: Any,
        about: str,
        exact: Any = None,
        half: Any = None,
        **options: Any,
    ) -> None:
        """Floats with bounds from the same in float64 and bfloat16, or with given bounds."""
        values = np.asarray(values, np.float32)
        if exact is not None:
            off, bounds = arrays.bounds_of(values, np.asarray(exact), half)
            options |= {"rounding": off, "bounds": bounds}
        self._keep(name, axes, values, about, **options)

    def _keep(
        self,
        name: str,
        axes: str,
        values: np.ndarray,
        about: str,
        whole: bool = False,
        **facts: Any,
    ) -> None:
        stride = 0 if whole else arrays.stride_of(values.shape, self.limit)
        entry = Entry(
            name, axes, values.shape, str(values.dtype), about, self.file, stride, **facts
        )
        self.found.append((entry, values))


def record(
    subject: Subject,
    folder: Path,
    picture: np.ndarray,
    options: record_decoding.Options,
    facts: dict[str, Any],
    with_weights: bool = True,
) -> None:
    """Writes a pack.

    Args:
      subject: the models on both sides; one of the two networks may be missing.
      folder: for the pack, empty.
      picture: float32 [1, 3, H, W] in [0, 1].
      options: batch, steps and seeds.
      facts: for the manifest: where the weights came from.
      with_weights: put them into the pack if they are small.
    """
    limit = _LIMITS[is_large(subject)]
    found: list[tuple[Entry, np.ndarray]] = []
    if subject.transformer is not None:
        progress("transformer: layers, logits, gradients in float32 and float64")
        ids = checks_transformer.make_ids(subject.transformer, options.batch_size, options.seed)
        recorder = Recorder("transformer.safetensors", limit)
        record_transformer(recorder, subject.transformer, ids, is_large(subject))
        found += recorder.found
    if subject.tokenizer is not None:
        progress("tokenizer: maps, indices, images in float32 and float64")
        recorder = Recorder("tokenizer.safetensors", limit)
        record_tokenizer(recorder, subject.tokenizer, make_images(picture, options.batch_size))
        found += recorder.found
    runs: list[dict[str, Any]] = []
    if subject.transformer is not None:
        recorder = Recorder("decoding.safetensors", limit)
        bounds = {entry.name: entry.bounds for entry, _ in found}["transformer.logits"]
        for run in record_decoding.record(recorder, subject.transformer, bounds, options):
            runs.append(run)
        found += recorder.found
    manifest = describe(subject, facts, options)
    manifest["decoding"] = runs
    manifest["files"] = _keep_weights(subject, folder) if with_weights else {}
    pack.write(folder, manifest, found)


def record_transformer(
    recorder: Recorder, pair: TransformerPair, ids: np.ndarray, full_size: bool
) -> None:
    """Inputs, every layer's output, logits, loss and gradients."""
    recorder.exact("ids", "B N", ids, "input of the transformer: codes, classes from K on, -1 masked",
                   given=True, whole=True)  # fmt: skip
    names = networks.stage_names(pair.ours)
    values = _transformer_values(pair, names, ids)
    exact = _exactly(pair, lambda double: _transformer_values(double, names, ids))
    with rounding.in_bfloat16(pair.ours):
        half = networks.transformer_arrays(pair.ours, ids)
    for name in values:
        last = "V" if name.endswith("logits") else "F" if "intermediate" in name else "D"
        about = "logits of codes, classes and mask" if last == "V" else "output of this layer"
        recorder.floats(name, f"B N {last}", values[name], about, exact[name], half[name],
                        whole=last == "V")  # fmt: skip
    _record_gradients(recorder, pair, ids, full_size)


def _exactly(pair: Any, compute: Callable[[Any], Any]) -> Any:
    """`compute` of the pair with its JAX side in float64; the PyTorch side, just sizes, stays."""
    with pair.code.float64():
        changes = {"variables": weights.to_float64(pair.variables)}
        if isinstance(pair, TokenizerPair):
            changes["dtype"] = jnp.float64
        return compute(dataclasses.replace(pair, **changes))


def _transformer_values(
    pair: TransformerPair, names: dict[str, tuple[str, str]], ids: np.ndarray
) -> dict[str, np.ndarray]:
    head = "MlmLayer_0/mlm_bias"
    paths = [theirs for _, theirs in names.values()] + [head]
    found = pairs.capture_flax(pair.theirs, paths, pair.variables, jnp.asarray(ids))
    values = {name: found[theirs] for name, (_, theirs) in names.items()}
    return values | {"transformer.logits": found[head]}


def _record_gradients(
    recorder: Recorder, pair: TransformerPair, ids: np.ndarray, full_size: bool
) -> None:
    """Loss and gradients; at full size without float64, which would take 10 GB: bounds as in parity."""
    labels = np.random.default_rng(2).integers(0, pair.codes, ids.shape).astype(np.int32)
    recorder.exact("labels", "B N", labels, "tokens that the loss asks for; masked positions count",
                   given=True, whole=True)  # fmt: skip
    loss, gradients = _gradients(pair, ids, labels)
    scale = max(float(np.abs(value).max()) for value in gradients.values())
    exact: dict[str, Any] = {}
    bounds: dict[str, Any] = {"bounds": {"float32": FLOAT32.loss}}
    if not full_size:
        exact_loss, exact = _exactly(pair, lambda double: _gradients(double, ids, labels))
        bounds = {"exact": exact_loss}
    about = (
        "cross entropy of the code logits, label smoothing .1, mean over masked tokens and samples"
    )
    recorder.floats("transformer.loss", "", loss, about, whole=True, **bounds)
    for name, value in gradients.items():
        facts: dict[str, Any] = {}
        # A gradient that is zero in exact arithmetic is rounding of the others' scale.
        if name in exact:
            facts["rounding"] = arrays.largest(value, exact[name])
            bound = arrays.FACTOR * max(facts["rounding"], 2e-8 * scale)
        else:
            of_all, of_own = FLOAT32.gradients
            bound = of_all * scale + of_own * float(np.abs(value).max())
        recorder.floats(
            f"transformer.gradients.{name}", " ".join("P" * value.ndim), value,
            "gradient of the loss", bounds={"float32": bound}, **facts,
        )  # fmt: skip


def _gradients(
    pair: TransformerPair, ids: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    mask = (ids == -1).astype(np.float64 if jax.config.jax_enable_x64 else np.float32)

    def loss(variables: dict[str, Any]) -> jax.Array:
        return pair.code.losses.weighted_sequence_cross_entropy_loss(
            labels=jnp.asarray(labels),
            logits=pair.theirs.apply(variables, jnp.asarray(ids))[..., : pair.codes],
            weights=jnp.asarray(mask),
            label_smoothing=checks_transformer.LABEL_SMOOTHING,
        )

    value, gradients = jit(jax.value_and_grad(loss))(pair.variables)
    return np.asarray(value), weights.flatten(gradients)


def is_large(subject: Subject) -> bool:
    """Whether the models are of about the published size."""
    return sum(path.stat().st_size for path in subject.checkpoints.values()) > _LARGE


def make_images(picture: np.ndarray, batch: int) -> np.ndarray:
    """At least two images [B, 3, H, W] from one: as it is, dark, and then shifted by some rows."""
    rows = [np.roll(picture, 3 * (i // 2), axis=-2) for i in range(max(2, batch))]
    return np.concatenate([row * np.float32(DARK if i % 2 else 1) for i, row in enumerate(rows)])


def record_tokenizer(recorder: Recorder, pair: TokenizerPair, picture: np.ndarray) -> None:
    """Images, every map, features, indices with their runners-up, and decoded images."""
    images = nhwc(picture)
    about = "input of the tokenizer in [0, 1]; every second one is a hundred times darker"
    recorder.floats("images", "B H W C", images, about, given=True, whole=True)
    values = _tokenizer_values(pair, images, None)
    indices = values["tokenizer.indices"]
    exact = _exactly(
        pair, lambda double: _tokenizer_values(double, images.astype(np.float64), indices)
    )
    with rounding.in_bfloat16(pair.ours):
        half = networks.encoder_arrays(pair.ours, images)
        half |= networks.decoder_arrays(pair.ours, indices)
    for name, value in values.items():
        if name == "tokenizer.indices":
            recorder.exact(name, "B h w", value, "number of the nearest code", whole=True)
            _record_nearest(recorder, pair, values, exact, half)
        elif name == "tokenizer.quantized":
            about = "the nearest code itself"
            # In bfloat16 another code may be as near: the indices, which know near ties, are compared.
            recorder.floats(name, "B h w C", value, about, rounding=0.0, bounds={"float32": 1e-6})
        else:
            about = "images, not clipped" if name.endswith("images") else "output of this layer"
            recorder.floats(name, "B H W C", value, about, exact[name], half[name])


def _tokenizer_values(
    pair: TokenizerPair, images: np.ndarray, indices: np.ndarray | None
) -> dict[str, np.ndarray]:
    """In the order of computation; decodes `indices` if given, else those found."""
    names = networks.stage_names(pair.ours)
    activate = _ACTIVATIONS[pair.config.vqvae.activation_fn]

    def half(which: str, inputs: Any, method: Any) -> dict[str, np.ndarray]:
        paths = {n: theirs for n, (ours, theirs) in names.items() if ours.startswith(which)}
        found = pairs.capture_flax(
            pair.theirs, paths.values(), pair.variables, inputs, method=method
        )
        # The last norm and its activation are one operation here, two in Flax.
        return {
            name: np.asarray(activate(found[path])) if name.endswith("norm_out") else found[path]
            for name, path in paths.items()
        }

    values = half("encoder", jnp.asarray(images), lambda module, x: module.encoder(x))
    features = jnp.asarray(values["tokenizer.encoder.conv_out"])
    quantized, found = pair.theirs.apply(
        pair.variables, features, method=lambda module, x: module.quantizer(x)
    )
    values["tokenizer.indices"] = np.asarray(found["encoding_indices"])
    values["tokenizer.quantized"] = np.asarray(quantized)
    if indices is None:
        indices = values["tokenizer.indices"]
    decoded = half("decoder", jnp.asarray(indices), lambda module, x: module.decode_from_indices(x))
    decoded["tokenizer.images"] = decoded.pop("tokenizer.decoder.conv_out")
    return values | decoded


def _record_nearest(
    recorder: Recorder,
    pair: TokenizerPair,
    values: dict[str, np.ndarray],
    exact: dict[str, np.ndarray],
    half: dict[str, np.ndarray],
) -> None:
    """The codes that come next, by which a close decision is told from a mistake."""
    codebook = np.asarray(pair.ours.quantizer.codebook.detach(), np.float64)

    def distances(found: dict[str, np.ndarray]) -> np.ndarray:
        x = np.asarray(found["tokenizer.encoder.conv_out"], np.float64)
        squares = (x**2).sum(-1)[..., None] + (codebook**2).sum(-1)
        return squares - 2 * x @ codebook.T

    best = distances(exact)
    order = np.argsort(best, -1, kind="stable")[..., :BEST]
    recorder.exact("tokenizer.nearest_codes", "B h w T", order, "the nearest codes", whole=True)
    three = [np.take_along_axis(distances(x), order, -1) for x in (values, exact, half)]
    recorder.floats(
        "tokenizer.nearest_distances", "B h w T", three[0], "their squared distances",
        three[1], three[2], whole=True,
    )  # fmt: skip


def describe(
    subject: Subject, facts: dict[str, Any], options: record_decoding.Options
) -> dict[str, Any]:
    """The manifest without what is read off the arrays."""
    pairs_of = {"transformer": subject.transformer, "tokenizer": subject.tokenizer}
    given = {kind: pair for kind, pair in pairs_of.items() if pair is not None}
    code = next(iter(given.values())).code
    model = {kind: pair.ours.to_config() for kind, pair in given.items()}
    transformer = subject.transformer
    if transformer is not None:
        model |= {"codes": transformer.codes, "classes": transformer.classes, "mask_token_id": -1}
    names = ("maskgit_pt", "torch", "jax", "jaxlib", "flax", "numpy")
    weights_facts = {}
    for kind, pair in given.items():
        parameters = sum(p.numel() for p in pair.ours.parameters())
        digest = inspection.fingerprint(subject.checkpoints[kind])
        weights_facts[kind] = {"fingerprint": digest, "parameters": parameters} | facts
    return {
        "about": ABOUT,
        "recorded_from": {
            "code": code.title,
            "official": code.official,
            "changed_to_run_today": list(code.notes),
            "versions": {name: _version(name) for name in names},
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {platform.system()}",
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        },
        "bounds": BOUNDS,
        "seed": options.seed,
        "model": model,
        "weights": weights_facts,
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def _keep_weights(subject: Subject, folder: Path) -> dict[str, Any]:
    """Puts small weights into the pack, in Google's format and as safetensors; describes the files."""
    if sum(path.stat().st_size for path in subject.checkpoints.values()) > _MOST_WEIGHTS:
        return {}
    files = {}
    (folder / "weights").mkdir()
    for kind, path in subject.checkpoints.items():
        plain = f"weights/{kind}.safetensors"
        safetensors.numpy.save_file(convert.read_flat(path), folder / plain)
        google = f"weights/{kind}_checkpoint"
        shutil.copyfile(path, folder / google)
        files |= {name: pack.describe_file(folder / name) for name in (plain, google)}
    return files
