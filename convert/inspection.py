"""What `python -m convert --list` and `--inspect` print."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from convert import formats, infer, rules
from convert.api import sha256
from convert.checkpoint import Checkpoint
from convert.foreign import ForeignFormat
from convert.tensors import Buffer, as_bytes, one_thread
from maskgit_pt.configs import vqgan_config

_GOOGLE_TRANSFORMER = {
    "vocab_size": 2025,
    "hidden_size": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 3072,
}


@dataclass(frozen=True)
class Published:
    """Files that were published with the same shapes; no checksums of them are public.

    Attributes:
      kind, config: of the model; what the config leaves out is the default.
      files: their names.
    """

    kind: str
    config: dict
    files: str


PUBLISHED = (
    Published(
        "transformer",
        _GOOGLE_TRANSFORMER | {"max_position_embeddings": 257},
        "Google maskgit_imagenet256_checkpoint, hmorimitsu maskgit_imagenet256.ckpt",
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
    Published("besnier_transformer", {}, "Besnier & Chen MaskGIT_ImageNet_256.pth"),
    Published(
        "besnier_transformer", {"num_tokens": 1024}, "Besnier & Chen MaskGIT_ImageNet_512.pth"
    ),
    Published(
        "taming_vqgan", {}, "Besnier & Chen's copy of taming's vqgan_imagenet_f16_1024 last.ckpt"
    ),
)


def list_formats() -> str:
    """A table: name, what can be done with it, what it holds, which files these are."""
    rows = [("--to", "read/write", "makes", "holds", "files")]
    for form in formats.FORMATS:
        makes = "folder" if form.IS_FOLDER else "file"
        rows.append((form.NAME, "yes/yes", makes, form.HOLDS, form.DESCRIPTION))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(
        [
            *lines,
            "",
            "Whose weights a file holds is told from the names in it, not from its own. PyTorch files (zip",
            "or the old layout) and safetensors files are read alike; --safetensors writes the latter.",
        ]
    )


def inspect(
    path: str | Path, num_heads: int | None = None, num_codes: int | None = None
) -> dict[str, str]:
    """What is to be said about a file or folder, by heading.

    Raises:
      ValueError, OSError: one line that begins with the path.
    """
    found = formats.recognise(path)
    with formats.open_recognised(found, num_heads, num_codes) as checkpoint:
        config = checkpoint.config
        fingerprint, least, most, finite = _look_through(checkpoint)
        rows = {
            "format": _format(found),
            "kind": _kind(checkpoint),
            "pixels": infer.resolution(checkpoint.kind, config),
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
        rows["file sha256"] = sha256(checkpoint.path)
        rows["fingerprint"] = f"{fingerprint} (of the weights, the same in every format)"
        rows["published"] = _published(checkpoint)
        rows["can become"] = ", ".join(formats.writers(checkpoint.kind, config))
        for note in checkpoint.notes:
            rows.setdefault("notes", "")
            rows["notes"] += ("; " if rows["notes"] else "") + note
        if found.container is not None and found.container.things:
            things = [f"{name} ({count})" for name, count in found.container.things.items()]
            rows["objects"] = f"left unread: {rules.abbreviate(things, 8)}"
        return rows


def _format(found: formats.Recognised) -> str:
    name = f"{found.format.NAME} ({found.format.DESCRIPTION})"
    if not isinstance(found.format, ForeignFormat):
        return name
    under = f", under {found.state.wrapper!r}" if found.state.wrapper else ""
    return f"{name}; {found.container.layout} layout{under}"


def _kind(checkpoint: Checkpoint) -> str:
    weights = checkpoint.config.get("vqvae", {}).get("weights")
    return f"{checkpoint.kind} ({weights})" if weights else checkpoint.kind


def _published(checkpoint: Checkpoint) -> str:
    """Which published files have these shapes."""
    shown = infer.visible(checkpoint.config)
    for known in PUBLISHED:
        if known.kind == checkpoint.kind:
            complete = rules.target(known.kind, known.config)[2]
            if infer.visible(complete) == shown:
                return f"has the shapes of: {known.files}"
    return "no published file is known to have these shapes"


def _look_through(checkpoint: Checkpoint) -> tuple[str, float, float, bool]:
    """Fingerprint, least and largest value, and whether all are finite."""
    digest = hashlib.sha256()
    least, most, finite = float("inf"), float("-inf"), True
    stored, rows = Buffer(), Buffer()
    with one_thread():
        for name in sorted(checkpoint.tensors):
            tensor = checkpoint.tensors[name]
            values = rows.copy(tensor.read(stored), tensor.dtype)
            digest.update(json.dumps([name, list(tensor.shape), tensor.dtype]).encode())
            digest.update(as_bytes(values))
            if values.numel():
                low, high = torch.aminmax(values)
                finite &= bool(torch.isfinite(low) and torch.isfinite(high))
                least, most = min(least, float(low)), max(most, float(high))
    return digest.hexdigest(), least, most, finite
