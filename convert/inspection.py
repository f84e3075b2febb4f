"""What `maskgit-convert --list` and `--inspect` print; among it, whose published weights a file may hold.

No checksums of the published files are public. Their shapes are; and of Google's 256-pixel
transformer the least and largest value of every tensor, which a notebook of hmorimitsu/maskgit-torch
prints (`convert_transformer_weights.ipynb`, commit 40c45116).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from convert import formats, infer, rules
from convert.checkpoint import Checkpoint, Given
from convert.files import dtypes
from convert.files.tensors import Buffer, as_bytes, one_thread
from convert.formats.recognise import open_checkpoint, recognise, writers
from maskgit_pt.configs import vqgan_config
from maskgit_pt.files import path_sha256

Ranges = Mapping[str, tuple[float, float]]

_PRINTED = 5e-5  # the notebook rounds to 4 decimals
_HALF = 2**-8  # bfloat16 rounds by up to this part

_GOOGLE_TRANSFORMER = {
    "vocab_size": 2025,
    "hidden_size": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 3072,
}
# Some of the 393 tensors, from the first to the last layer.
_GOOGLE_TRANSFORMER_256 = {
    "Embed_0/embeddings_ln/bias": (-0.7091, 0.6671),
    "Embed_0/embeddings_ln/scale": (0.4073, 1.9009),
    "Embed_0/position_embeddings/embedding": (-0.2600, 0.4943),
    "Embed_0/word_embeddings/embedding": (-1.3872, 0.9978),
    "TransformerLayer_0/Attention_0/attention_output_ln/bias": (-2.9947, 2.4949),
    "TransformerLayer_0/Attention_0/self_attention/out/kernel": (-0.4847, 0.3539),
    "TransformerLayer_5/Mlp_0/intermediate_output/kernel": (-0.2232, 0.1464),
    "TransformerLayer_10/Mlp_0/layer_output/kernel": (-0.3760, 0.3738),
    "TransformerLayer_15/Mlp_0/layer_output_ln/scale": (0.6154, 1.5874),
    "TransformerLayer_23/Mlp_0/intermediate_output/bias": (-0.9301, 0.4103),
    "MlmLayer_0/mlm_dense/kernel": (-0.2173, 0.2725),
    "MlmLayer_0/mlm_ln/scale": (0.0220, 2.5473),
    "MlmLayer_0/mlm_bias/bias": (-0.7683, 0.8542),
}


@dataclass(frozen=True)
class Published:
    """Files that were published with the same shapes.

    Attributes:
      kind, config: of the model; what the config leaves out is the default.
      files: their names.
      ranges: official name -> least and largest value, where that is public.
    """

    kind: str
    config: dict
    files: str
    ranges: Ranges = field(default_factory=dict)


def _halton(width: int, layers: int, heads: int, tokens: int) -> dict:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_tokens": tokens,
    }


_MAGE_TOKENIZER = vqgan_config.get_config().vqvae.to_dict()

PUBLISHED = (
    Published(
        "transformer",
        _GOOGLE_TRANSFORMER | {"max_position_embeddings": 257},
        "Google maskgit_imagenet256_checkpoint, hmorimitsu maskgit_imagenet256.ckpt",
        {f"params/{name}": values for name, values in _GOOGLE_TRANSFORMER_256.items()},
    ),
    Published(
        "transformer",
        _GOOGLE_TRANSFORMER | {"max_position_embeddings": 1025},
        "Google maskgit_imagenet512_checkpoint, hmorimitsu maskgit_imagenet512.ckpt",
    ),
    Published(
        "tokenizer",
        {"vqvae": vqgan_config.get_config().vqvae.to_dict()},
        "Google tokenizer_imagenet{256,512}_checkpoint (alike in shape), hmorimitsu "
        "tokenizer_imagenet{256,512}.ckpt, open-muse, TiTok, MaskBit (256), MAGE (other weights)",
    ),
    Published("besnier_transformer", {}, "Besnier & Chen MaskGIT_ImageNet_256.pth, Di[M]O"),
    Published(
        "besnier_transformer", {"num_tokens": 1024}, "Besnier & Chen MaskGIT_ImageNet_512.pth"
    ),
    Published(
        "taming_vqgan", {}, "Besnier & Chen's copy of taming's vqgan_imagenet_f16_1024 last.ckpt"
    ),
    *(
        Published("halton_transformer", config, f"Halton-MaskGIT {file}.pth")
        for file, config in {
            "ImageNet_256_tiny": _halton(384, 6, 6, 256),
            "ImageNet_256_small": _halton(512, 12, 6, 256),
            "ImageNet_256_base": _halton(768, 12, 12, 256),
            "ImageNet_384_small": _halton(512, 12, 6, 576),
            "ImageNet_384_base": _halton(768, 12, 12, 576),
            "ImageNet_384_large": _halton(1024, 24, 16, 576),
        }.items()
    ),
    Published("mage", {"vqvae": _MAGE_TOKENIZER}, "MAGE mage-vitb-1600.pth"),
    Published(
        "mage",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
        | {"decoder_hidden_size": 1024, "vqvae": _MAGE_TOKENIZER},
        "MAGE mage-vitl-1600.pth",
    ),
    *(
        Published(
            "self_guided_transformer",
            _GOOGLE_TRANSFORMER | {"max_position_embeddings": positions, "num_classes": 1000},
            f"UnlockMGM_imagenet_{pixels}.zip",
        )
        for pixels, positions in {256: 257, 512: 1025}.items()
    ),
    Published("llamagen_vq", {}, "LlamaGen vq_ds16_c2i.pt"),
    Published("llamagen_vq", {"channel_multipliers": [1, 2, 2, 4]}, "LlamaGen vq_ds8_c2i.pt"),
    Published(
        "besnier_transformer", {"latent_features": 128}, "students of Di4C (sony/di4c), 256 px"
    ),
)


def list_formats() -> str:
    """For each format its name, what `--to` makes, what it holds, and which files these are."""
    lines = []
    for form in formats.FORMATS:
        makes = "a folder" if form.IS_FOLDER else "a file"
        lines += [f"{form.NAME:12}  {makes:9} {form.HOLDS}", f"{'':24}{form.DESCRIPTION}"]
    return "\n".join(
        [
            f"{'--to':12}  {'makes':9} what it holds, and which files these are",
            *lines,
            "",
            "Each is read as well. Whose weights a file holds is told from the names of the tensors in it,",
            "not from its own. PyTorch files (zip or the old layout) and safetensors files are read alike;",
            "--safetensors writes the latter in place of PyTorch's.",
        ]
    )


def inspect(
    path: str | Path,
    num_heads: int | None = None,
    num_codes: int | None = None,
    weights: str | None = None,
) -> dict[str, str]:
    """What is to be said about a file or folder, by heading; arguments as `open_checkpoint`.

    Raises:
      ValueError, OSError: one line that begins with the path.
    """
    found = recognise(path, weights)
    checkpoint = found.open(Given(num_heads, num_codes))
    config = checkpoint.config
    fingerprint, ranges, finite = _look_through(checkpoint)
    least, most = min(low for low, _ in ranges.values()), max(top for _, top in ranges.values())
    rows = {
        "format": f"{found.format.NAME}: {found.format.DESCRIPTION}; {found.layout}",
        "kind": _kind(checkpoint),
        "pixels": infer.resolution(checkpoint.kind, config),
        **_classes(checkpoint.config),
        "parameters": f"{checkpoint.parameters:,}",
        "dtype": checkpoint.dtype,
        "values": f"{least:.4g} to {most:.4g}" + ("" if finite else ", NOT ALL FINITE"),
    }
    if "num_attention_heads" in config:
        rows["heads"] = str(config["num_attention_heads"])
    if checkpoint.step is not None:
        rows["step"] = f"{checkpoint.step:,}"
    values = checkpoint.origin.get("values", {})
    if values:
        rows["says"] = ", ".join(f"{key} {value}" for key, value in values.items())
    rows["file sha256"] = path_sha256(checkpoint.path)
    rows["fingerprint"] = f"{fingerprint} (of the weights, the same in every format)"
    rows["published"] = published(checkpoint.kind, config, ranges, checkpoint.dtype)
    rows["can become"] = ", ".join(writers(checkpoint.kind, config))
    if checkpoint.notes:
        rows["notes"] = "; ".join(checkpoint.notes)
    if found.container.things:
        things = [f"{name} ({count})" for name, count in found.container.things.items()]
        rows["objects"] = f"left unread: {rules.abbreviate(things, 8)}"
    return rows


def fingerprint(path: str | Path) -> str:
    """Hex SHA-256 over names, shapes and values of the weights: the same in every format.

    Raises:
      ValueError, OSError: one line that begins with the path.
    """
    return _look_through(open_checkpoint(path))[0]


def _classes(config: dict) -> dict[str, str]:
    """How many classes there are and what they are called, as far as the configuration tells."""
    names, count = config.get("class_names"), config.get("num_classes")
    if names is not None:
        return {"classes": f"{len(names)}: {rules.abbreviate(names, 20)}"}
    return {"classes": str(count)} if count is not None else {}


def _kind(checkpoint: Checkpoint) -> str:
    weights = checkpoint.config.get("vqvae", {}).get("weights")
    return f"{checkpoint.kind} ({weights})" if weights else checkpoint.kind


def _look_through(checkpoint: Checkpoint) -> tuple[str, Ranges, bool]:
    """Fingerprint, least and largest value of every tensor, and whether all are finite."""
    digest = hashlib.sha256()
    ranges, finite = {}, True
    buffer = Buffer()
    with one_thread():
        for name in sorted(checkpoint.tensors):
            tensor = checkpoint.tensors[name]
            dtype = dtypes.name_of_torch(tensor.dtype)
            values = buffer.copy(tensor, dtype)
            digest.update(json.dumps([name, list(tensor.shape), dtype]).encode())
            digest.update(as_bytes(values))
            if values.numel():
                low, high = torch.aminmax(values)
                finite &= bool(torch.isfinite(low) and torch.isfinite(high))
                ranges[name] = float(low), float(high)
            checkpoint.release()
    return digest.hexdigest(), ranges, finite


def published(kind: str, config: dict, ranges: Ranges, dtype: str) -> str:
    """Which published files have these shapes, and whether the values may be theirs.

    Args:
      kind, config: of the model.
      ranges: official name -> its least and largest value.
      dtype: of the weights.
    """
    rounding = 0.0 if dtype in ("float32", "float64") else _HALF
    for known in PUBLISHED:
        if known.kind != kind or infer.visible(_complete(known)) != infer.visible(config):
            continue
        text = f"has the shapes of: {known.files}"
        if not known.ranges:
            return text
        total = len(known.ranges)
        differing = [
            name
            for name, printed in known.ranges.items()
            if not _same(ranges[name], printed, rounding)
        ]
        if differing:
            return (
                f"{text}; but not their values: {len(differing)} of {total} tensors have another range "
                f"({rules.abbreviate(differing, 2)})"
            )
        return f"{text}; and their range of values in each of {total} tensors"
    return "no published file is known to have these shapes"


def _complete(known: Published) -> dict:
    return rules.target(known.kind, known.config)[2]


def _same(found: tuple[float, float], printed: tuple[float, float], rounding: float) -> bool:
    """Equal but for rounding: of what was printed, and of weights converted to 16 bits."""
    return all(
        abs(a - b) <= 1.01 * (_PRINTED + rounding * abs(b))
        for a, b in zip(found, printed, strict=True)
    )
