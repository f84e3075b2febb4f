"""`evaluate_tokenizer`: images against what a tokenizer makes of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskgit_pt.nets.vqgan_tokenizer import VQVAE
from train.data.encoding import cpu_rows, filled_parts
from train.evaluation import reconstruction
from train.evaluation.context import Context
from train.evaluation.extraction import Arrays, remembered
from train.evaluation.frechet import fit, frechet_distance
from train.evaluation.reference import Reference, load_reference
from train.evaluation.report import Evaluation, check_metrics, metric_name, versions
from train.evaluation.samples import Images, as_source
from train.evaluation.sources import Source

_PIXELS = 2**20  # through the tokenizer at once, on a GPU: 16 images of 256 px
PER_IMAGE = ("psnr", "ssim", "lpips")
TOKENIZER_METRICS = ("rfid", *PER_IMAGE, "codebook_usage", "perplexity")


def evaluate_tokenizer(
    tokenizer: VQVAE,
    images: Images,
    reference: Images | Reference | None = None,
    *,
    metrics: Sequence[str] | None = None,
    lpips: reconstruction.LPIPS | None = None,
    image_size: int | None = None,
    name: str = "tokenizer",
    weights: str | None = None,
    **how: Any,
) -> Evaluation:
    """Compares images with their reconstructions, which are clipped and rounded to 8 bits.

    Args:
      tokenizer: on the device of `how`; evaluated in evaluation mode, and left in the mode it was in.
      images: as `samples` of `evaluate`.
      reference: what reconstructions are compared with in rFID; default: the images themselves.
      metrics: some of `TOKENIZER_METRICS`; default: all that can be had (LPIPS if given, SSIM of images as
        large as its window).
      lpips: None: without.
      image_size: crop folders to this.
      name: of the tokenizer, for the report.
      weights: fingerprint of the tokenizer; without it reconstructions are not remembered.
      **how: the arguments of `Context.make`: features, inception_weights, cache, device, ...

    Returns:
      Metrics and protocol. PSNR, SSIM and LPIPS are means over the images; codebook usage is the share of
      codes that occur in the tokens of all images, perplexity the exponential of their entropy.

    Raises:
      As `evaluate`.
    """
    wanted = check_metrics(metrics, TOKENIZER_METRICS)
    if lpips is None and "lpips" in wanted:
        if metrics is not None:
            raise ValueError("lpips needs its weights (--lpips_weights)")
        wanted.remove("lpips")
    images = as_source(images, "images", image_size)
    if metrics is None and min(images.size) < reconstruction.SSIM_WINDOW:
        wanted.remove("ssim")
    _check_size(images, tokenizer.downsampling)
    context = Context.make(**how if "rfid" in wanted else how | {"features": None})
    compared = None
    if "rfid" in wanted:
        compared = load_reference(
            images if reference is None else reference, context, images, image_size=image_size,
            with_features=False,
        )  # fmt: skip
    rebuild = _Rebuild(tokenizer, [m for m in PER_IMAGE if m in wanted], lpips, context.extractor)
    found = rebuild.all(images, context, weights)
    codes = len(tokenizer.get_codebook_funct())
    values = context.workers.on_first(lambda: _compute(found, compared, wanted, codes))
    protocol: dict[str, Any] = {
        "tokenizer": {"name": name, "dtype": rebuild.dtype, "weights": weights},
        "images": images.protocol,
    }
    if compared is not None:
        protocol |= {"reference": compared.protocol, "features": context.extractor.protocol}
        values = {metric_name("rfid", context.extractor.name): values.pop("rfid")} | values
    if lpips is not None:
        protocol["lpips"] = {"network": "LPIPS 0.1, VGG16", "weights": lpips.fingerprint}
    return Evaluation(values, protocol | {"versions": versions()})


class _Rebuild:
    """Makes tokens and reconstructions, and computes what belongs to single images."""

    def __init__(self, tokenizer: VQVAE, metrics: list[str], lpips, extractor):
        self.tokenizer, self.metrics, self.extractor = tokenizer, metrics, extractor
        self.functions = {"psnr": reconstruction.psnr, "ssim": reconstruction.ssim, "lpips": lpips}
        self.dtype = str(tokenizer.get_codebook_funct().dtype).removeprefix("torch.")
        self.names = ["tokens", *metrics] + ["features"] * (extractor is not None)

    def all(self, images: Source, context: Context, weights: str | None) -> Arrays:
        """name -> [N, ...] of all images, on rank 0."""

        def parts() -> list[str | None]:
            lpips, extractor = self.functions["lpips"], self.extractor
            networks = [weights, lpips and lpips.fingerprint, extractor and extractor.fingerprint]
            known = weights is not None
            return [images.fingerprint, self.dtype, repr(networks) if known else None]

        def make() -> Arrays:
            return context.extract(images, self, self.names, "reconstructions")

        training = self.tokenizer.training
        self.tokenizer.eval()
        try:
            return remembered(context.cache, parts, self.names, context.workers, make)
        finally:
            self.tokenizer.train(training)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 3, H, W] -> name -> [B, ...]."""
        # A few at a time, since full-size feature maps are large: 32 MiB an image of 256 px and layer.
        pixels = images.shape[2] * images.shape[3]
        on_cpu = images.device.type == "cpu"
        size = cpu_rows(pixels) if on_cpu else max(1, _PIXELS // pixels)
        chunks = filled_parts(images, size) if on_cpu else ((c, len(c)) for c in images.split(size))
        parts = [[x[:count] for x in self._rebuild(chunk)] for chunk, count in chunks]
        tokens, rebuilt = (torch.cat(part) for part in zip(*parts, strict=True))
        found = {name: self.functions[name](rebuilt, images) for name in self.metrics}
        if self.extractor is not None:
            found["features"] = self.extractor(rebuilt)["features"]
        return found | {"tokens": tokens.int()}

    def _rebuild(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] -> tokens int64 [B, h, w], reconstructions uint8 [B, 3, H, W]."""
        values = (images.float() / 255).to(self.tokenizer.get_codebook_funct().dtype)
        tokens = self.tokenizer.encode_to_indices(values)
        decoded = self.tokenizer.decode_from_indices(tokens).float().clamp(0, 1)
        return tokens, decoded.mul(255).round().byte()


def _compute(
    found: Arrays, compared: Reference | None, wanted: list[str], codes: int
) -> dict[str, float]:
    values = {}
    if compared is not None:
        values["rfid"] = frechet_distance(fit(found["features"]), compared.statistics)
    for name in PER_IMAGE:
        if name in wanted:
            values[name] = float(np.mean(found[name], dtype=np.float64))
    usage, perplexity = reconstruction.codebook_use(found["tokens"], codes)
    both = {"codebook_usage": usage, "perplexity": perplexity}
    return values | {name: value for name, value in both.items() if name in wanted}


def _check_size(images: Source, patch: int) -> None:
    if images.size[0] % patch or images.size[1] % patch:
        raise ValueError(
            f"images of {images.protocol['name']} are {images.protocol['size']}; accepted: multiples of "
            f"{patch}, the tokenizer's patches (crop with --image_size)"
        )
