"""What `maskgit-convert --list` and `--inspect` print."""

import hashlib
import json
from pathlib import Path

import torch

from convert import formats, infer, published, rules
from convert.checkpoint import Checkpoint
from convert.files.tensors import Buffer, as_bytes, one_thread
from convert.formats.foreign import ForeignFormat
from maskgit_pt.files import file_sha256


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
    path: str | Path, num_heads: int | None = None, num_codes: int | None = None
) -> dict[str, str]:
    """What is to be said about a file or folder, by heading.

    Raises:
      ValueError, OSError: one line that begins with the path.
    """
    found = formats.recognise(path)
    with formats.open_recognised(found, num_heads, num_codes) as checkpoint:
        config = checkpoint.config
        fingerprint, ranges, finite = _look_through(checkpoint)
        least, most = min(low for low, _ in ranges.values()), max(top for _, top in ranges.values())
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
        rows["file sha256"] = file_sha256(checkpoint.path)
        rows["fingerprint"] = f"{fingerprint} (of the weights, the same in every format)"
        rows["published"] = published.describe(checkpoint.kind, config, ranges, checkpoint.dtype)
        rows["can become"] = ", ".join(formats.writers(checkpoint.kind, config))
        for note in checkpoint.notes:
            rows.setdefault("notes", "")
            rows["notes"] += ("; " if rows["notes"] else "") + note
        if found.container is not None and found.container.things:
            things = [f"{name} ({count})" for name, count in found.container.things.items()]
            rows["objects"] = f"left unread: {rules.abbreviate(things, 8)}"
        return rows


def _format(found: formats.Recognised) -> str:
    name = f"{found.format.NAME}: {found.format.DESCRIPTION}"
    if not isinstance(found.format, ForeignFormat):
        return name
    under = f", under {found.state.wrapper!r}" if found.state.wrapper else ""
    return f"{name}; {found.container.layout} layout{under}"


def _kind(checkpoint: Checkpoint) -> str:
    weights = checkpoint.config.get("vqvae", {}).get("weights")
    return f"{checkpoint.kind} ({weights})" if weights else checkpoint.kind


def _look_through(checkpoint: Checkpoint) -> tuple[str, published.Ranges, bool]:
    """Fingerprint, least and largest value of every tensor, and whether all are finite."""
    digest = hashlib.sha256()
    ranges, finite = {}, True
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
                ranges[name] = float(low), float(high)
    return digest.hexdigest(), ranges, finite
