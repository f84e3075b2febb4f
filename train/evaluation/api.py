"""The whole evaluation: `evaluate` for samples, `evaluate_tokenizer` for reconstructions."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskgit_pt.nets.vqgan_tokenizer import VQVAE
from train.evaluation import manifold, reconstruction
from train.evaluation.extraction import Arrays, Cache, Workers, extract, remembered
from train.evaluation.features import Extractor, make_extractor
from train.evaluation.frechet import fit, frechet_distance
from train.evaluation.inception_score import inception_score
from train.evaluation.reference import Context, Reference, load_reference
from train.evaluation.report import Evaluation, metric_name, versions
from train.evaluation.sources import ArraySource, Source, open_source

METRICS = ("fid", "inception_score", *manifold.METRICS)
TOKENIZER_METRICS = ("rfid", "psnr", "ssim", "lpips", "codebook_usage", "perplexity")
Images = Source | np.ndarray | str | os.PathLike


def evaluate(
    samples: Images,
    reference: Images | Reference | None = None,
    *,
    features: str | Extractor = "inception",
    inception_weights: str | os.PathLike | None = None,
    metrics: Sequence[str] | None = None,
    neighbours: int = 3,
    splits: int = 10,
    shuffle: bool = True,
    image_size: int | None = None,
    reference_count: int | None = None,
    cache: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 50,
    progress: bool = False,
    workers: Workers | None = None,
) -> Evaluation:
    """Compares samples with a reference.

    Within an initialised process group all processes call this together, with the same arguments; they
    share the images, and all return the same.

    Args:
      samples: a source, uint8 [N, H, W, 3], or a path (see `sources.open_source`).
      reference: likewise, or a path to statistics (see `reference.load_reference`); None: only the
        Inception Score.
      features: "inception", "pixels", "random", or an extractor of your own (`features.Extractor`).
      inception_weights: torch-fidelity's file; default: downloaded.
      metrics: some of `METRICS`; default: all for which samples and reference have what it takes.
      neighbours: which neighbour makes a radius.
      splits, shuffle: of the Inception Score.
      image_size: crop a reference folder to this; default: to the samples' size.
      reference_count: of the reference's images, use this many, spread evenly.
      cache: a folder that remembers features and statistics; None: none does.
      device: of the extractor, and of distances.
      batch_size: images at a time.
      progress: show bars on a terminal.
      workers: processes; default: those of the default group.

    Returns:
      Metrics (published names for Inception's features only, see `report.metric_name`) and protocol.

    Raises:
      ImportError: the extra 'eval' is not installed.
      OSError, ValueError: bad input; one line says what was found and what is accepted.
    """
    wanted = _check_metrics(metrics, METRICS)
    samples = _as_source(samples, "samples")
    extractor = _as_extractor(features, inception_weights, device)
    workers = workers or Workers()
    context = Context(extractor, workers, Cache(cache), device, batch_size, progress)
    _check_possible(metrics, wanted, extractor, reference, len(samples), neighbours, splits)
    compared = None
    if reference is not None:
        with_features = any(name in wanted for name in manifold.METRICS)
        compared = load_reference(
            reference, context, samples, image_size=image_size, count=reference_count,
            with_features=with_features,
        )  # fmt: skip
    possible = workers.on_first(lambda: _possible(wanted, extractor, compared))
    missing = [name for name in wanted if name not in possible]
    if missing and metrics is not None:
        raise ValueError(
            f"{missing[0]} needs the reference's features; "
            f"{compared.protocol.get('name')} holds statistics alone"
        )
    found = context.features(samples, "samples", logits="inception_score" in possible)

    def compute() -> dict[str, float]:
        statistics = context.fit(samples, found["features"]) if "fid" in possible else None
        return _compute(found, statistics, compared, possible, context, neighbours, splits, shuffle)

    values = workers.on_first(compute)
    protocol = {"samples": samples.protocol}
    if compared is not None:
        protocol["reference"] = compared.protocol
    protocol["features"] = extractor.protocol
    if any(name in possible for name in manifold.METRICS):
        protocol["neighbours"] = neighbours
    if "inception_score" in possible:
        protocol["splits"] = f"{splits}, {'shuffled' if shuffle else 'in the given order'}"
    return Evaluation(
        {metric_name(name, extractor.name): value for name, value in values.items()},
        protocol | {"versions": versions()},
    )


def evaluate_tokenizer(
    tokenizer: VQVAE,
    images: Images,
    reference: Images | Reference | None = None,
    *,
    features: str | Extractor = "inception",
    inception_weights: str | os.PathLike | None = None,
    lpips: reconstruction.LPIPS | None = None,
    metrics: Sequence[str] | None = None,
    image_size: int | None = None,
    weights: str | None = None,
    name: str = "tokenizer",
    cache: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 50,
    progress: bool = False,
    workers: Workers | None = None,
) -> Evaluation:
    """Compares images with their reconstructions, which are clipped and rounded to 8 bits.

    Args:
      tokenizer: on `device`; it is evaluated in evaluation mode, and left in the mode it was in.
      images: as `samples` of `evaluate`.
      reference: what reconstructions are compared with in rFID; default: the images themselves.
      lpips: None: without.
      metrics: some of `TOKENIZER_METRICS`; default: all, LPIPS if given.
      weights: fingerprint of the tokenizer; without it the reconstructions are not remembered.
      name: of the tokenizer, for the report.
      Others as in `evaluate`.

    Returns:
      Metrics and protocol. PSNR, SSIM and LPIPS are means over the images; codebook usage is the share of
      codes that occur in the tokens of all images, perplexity the exponential of their entropy.

    Raises:
      As `evaluate`.
    """
    wanted = _check_metrics(metrics, TOKENIZER_METRICS)
    if lpips is None and metrics is not None and "lpips" in wanted:
        raise ValueError("lpips needs its weights (--lpips_weights)")
    wanted = [metric for metric in wanted if metric != "lpips" or lpips is not None]
    images = _as_source(images, "images", image_size)
    patch = tokenizer.downsampling
    if images.size[0] % patch or images.size[1] % patch:
        raise ValueError(
            f"images of {images.protocol['name']} are {images.protocol['size']}; accepted: multiples of "
            f"{patch}, the tokenizer's patches (crop with --image_size)"
        )
    workers = workers or Workers()
    extractor, compared, context = None, None, None
    if "rfid" in wanted:
        extractor = _as_extractor(features, inception_weights, device)
        context = Context(extractor, workers, Cache(cache), device, batch_size, progress)
        compared = load_reference(
            images if reference is None else reference, context, images, image_size=image_size,
            with_features=False,
        )  # fmt: skip
    rebuild = _Rebuild(tokenizer, [m for m in ("psnr", "ssim", "lpips") if m in wanted], lpips)
    if extractor is not None:
        rebuild.extractor = extractor
    names = rebuild.names()
    dtype = str(tokenizer.quantizer.codebook.dtype).removeprefix("torch.")
    with rebuild:
        found = remembered(
            Cache(cache),
            lambda: [
                images.fingerprint, weights, dtype, extractor.fingerprint if extractor else "",
                lpips.fingerprint if lpips else "",
            ],
            names,
            workers,
            lambda: extract(
                images, rebuild, names, workers, device=device, batch_size=batch_size,
                progress=progress, description="reconstructions",
            ),
        )  # fmt: skip
    K = tokenizer.config.vqvae.codebook_size
    values = workers.on_first(lambda: _compute_tokenizer(found, compared, wanted, K))
    protocol: dict[str, Any] = {"tokenizer": {"name": name, "dtype": dtype, "weights": weights}}
    protocol |= {"images": images.protocol}
    if compared is not None:
        protocol |= {"reference": compared.protocol, "features": extractor.protocol}
    if lpips is not None:
        protocol["lpips"] = f"0.1, VGG16, weights {lpips.fingerprint}"
    renamed = {
        metric_name(key, extractor.name) if key == "rfid" else key: value
        for key, value in values.items()
    }
    return Evaluation(renamed, protocol | {"versions": versions()})


class _Rebuild:
    """uint8 images -> per-image numbers of their reconstructions."""

    def __init__(self, tokenizer: VQVAE, metrics: list[str], lpips: reconstruction.LPIPS | None):
        self.tokenizer, self.metrics = tokenizer, metrics
        self.functions = {"psnr": reconstruction.psnr, "ssim": reconstruction.ssim, "lpips": lpips}
        self.extractor: Extractor | None = None
        self.training = tokenizer.training

    def __enter__(self) -> None:
        self.tokenizer.eval()

    def __exit__(self, *error) -> None:
        self.tokenizer.train(self.training)

    def names(self) -> list[str]:
        return ["tokens", *self.metrics] + ["features"] * (self.extractor is not None)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        dtype = self.tokenizer.quantizer.codebook.dtype
        tokens = self.tokenizer.encode_to_indices((images.float() / 255).to(dtype))
        decoded = self.tokenizer.decode_from_indices(tokens).float().clamp(0, 1)
        rebuilt = decoded.mul(255).round().byte()
        found = {name: self.functions[name](rebuilt, images) for name in self.metrics}
        if self.extractor is not None:
            found["features"] = self.extractor(rebuilt)["features"]
        return found | {"tokens": tokens.int()}


def _compute_tokenizer(
    found: Arrays, compared: Reference | None, wanted: list[str], codebook_size: int
) -> dict[str, float]:
    values = {}
    if compared is not None:
        values["rfid"] = frechet_distance(fit(found["features"]), compared.statistics)
    for name in ("psnr", "ssim", "lpips"):
        if name in wanted:
            values[name] = float(np.mean(found[name], dtype=np.float64))
    usage, perplexity = reconstruction.codebook_use(found["tokens"], codebook_size)
    both = {"codebook_usage": usage, "perplexity": perplexity}
    return values | {name: value for name, value in both.items() if name in wanted}


def _compute(
    found: Arrays,
    statistics: Any,
    compared: Reference | None,
    wanted: list[str],
    context: Context,
    neighbours: int,
    splits: int,
    shuffle: bool,
) -> dict[str, float]:
    values = {}
    if "fid" in wanted:
        values["fid"] = frechet_distance(statistics, compared.statistics)
    if "inception_score" in wanted:
        mean, deviation = inception_score(found["logits"], splits, shuffle)
        values |= {"inception_score": mean, "inception_score_std": deviation}
    chosen = [name for name in manifold.METRICS if name in wanted]
    if chosen:
        all_four = manifold.manifold_metrics(
            found["features"], compared.features, neighbours, device=context.device,
            progress=context.progress,
        )  # fmt: skip
        values |= {name: all_four[name] for name in chosen}
    return values


def _check_metrics(metrics: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    for name in metrics or []:
        if name not in known:
            raise ValueError(f"metric {name!r} is unknown; accepted: {', '.join(known)}")
    if metrics is not None and not metrics:
        raise ValueError(f"no metrics; accepted: {', '.join(known)}")
    return [name for name in known if metrics is None or name in metrics]


def _check_possible(metrics, wanted, extractor, reference, count, neighbours, splits) -> None:
    """Complains about what cannot work before hours are spent on it."""
    asked = wanted if metrics is not None else []
    if reference is None and any(name != "inception_score" for name in asked):
        raise ValueError(f"{asked[0]} needs a reference")
    if "inception_score" in asked and not extractor.has_logits:
        raise ValueError(f"inception_score needs classes, which {extractor.name!r} does not give")
    if reference is None and not extractor.has_logits:
        raise ValueError("nothing to compute: no reference, and features without classes")
    if "inception_score" in wanted and extractor.has_logits and not 1 <= splits <= count:
        raise ValueError(
            f"the Inception Score of {splits} splits needs as many images; found {count}"
        )
    needs_neighbours = reference is not None and any(name in wanted for name in manifold.METRICS)
    if needs_neighbours and not 1 <= neighbours < count:
        raise ValueError(
            f"{neighbours} nearest neighbours need more samples than that; found {count}"
        )
    if "fid" in wanted and reference is not None and count < 2:
        raise ValueError(f"a covariance needs 2 samples or more; found {count}")


def _possible(wanted: list[str], extractor: Extractor, compared: Reference | None) -> list[str]:
    """The metrics for which there is what it takes."""
    possible = [name for name in wanted if name == "inception_score" and extractor.has_logits]
    if compared is not None:
        possible += [name for name in wanted if name == "fid"]
        if compared.features is not None:
            possible += [name for name in wanted if name in manifold.METRICS]
    return possible


def _as_source(images: Images, name: str, image_size: int | None = None) -> Source:
    if isinstance(images, np.ndarray):
        return ArraySource(images, name)
    return images if isinstance(images, Source) else open_source(images, image_size)


def _as_extractor(
    features: str | Extractor, weights: str | os.PathLike | None, device: str | torch.device
) -> Extractor:
    return make_extractor(features, weights, device) if isinstance(features, str) else features
