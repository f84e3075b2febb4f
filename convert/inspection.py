"""What `maskgit-convert --list` and `--inspect` print."""

import hashlib
import json
from pathlib import Path

import torch

from convert import formats, infer, rules
from convert.checkpoint import Checkpoint, Given
from convert.files import dtypes
from convert.files.tensors import Buffer, as_bytes, one_thread
from convert.formats.recognise import exporters, open_checkpoint, recognise, writers
from convert.verification import ledger
from convert.verification.ledger import Ranges
from maskgit_pt.files import path_sha256


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
            "Each but onnx is read as well. Whose weights a file holds is told from the names of the",
            "tensors in it, not from its own. PyTorch files (zip or the old layout) and safetensors files",
            "are read alike; --safetensors writes the latter in place of PyTorch's.",
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
    fingerprint, ranges, finite = look_through(checkpoint)
    least, most = min(low for low, _ in ranges.values()), max(top for _, top in ranges.values())
    rows = {
        "format": f"{found.format.NAME}: {found.format.DESCRIPTION}; {found.layout}",
        "model type": _model_type(checkpoint),
        "pixels": infer.resolution(checkpoint.model_type, config),
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
    rows["file sha256"] = path_sha256(checkpoint.path, found.container.files)
    rows["fingerprint"] = f"{fingerprint} (of the weights, the same in every format)"
    rows["published"] = ledger.describe(checkpoint.model_type, config, ranges, checkpoint.dtype)
    rows["can become"] = ", ".join(writers(checkpoint.model_type, config))
    if exports := exporters(checkpoint.model_type, config):
        rows["can run as"] = ", ".join(exports)
    if notes := [*checkpoint.notes, *checkpoint.unused()]:
        rows["notes"] = "; ".join(notes)
    if found.container.things:
        things = [f"{name} ({count})" for name, count in found.container.things.items()]
        rows["objects"] = f"left unread: {rules.abbreviate(things, 8)}"
    return rows


def fingerprint(path: str | Path) -> str:
    """Hex SHA-256 over names, shapes and values of the weights: the same in every format.

    Raises:
      ValueError, OSError: one line that begins with the path.
    """
    return look_through(open_checkpoint(path))[0]


def _classes(config: dict) -> dict[str, str]:
    """How many classes there are and what they are called, as far as the configuration tells."""
    names, count = config.get("class_names"), config.get("num_classes")
    if names is not None:
        return {"classes": f"{len(names)}: {rules.abbreviate(names, 20)}"}
    return {"classes": str(count)} if count is not None else {}


def _model_type(checkpoint: Checkpoint) -> str:
    weights = checkpoint.config.get("vqvae", {}).get("weights")
    return f"{checkpoint.model_type} ({weights})" if weights else checkpoint.model_type


def look_through(checkpoint: Checkpoint) -> tuple[str, Ranges, bool]:
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
