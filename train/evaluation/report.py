"""Results with the protocol they were made by, as JSON and Markdown."""

import dataclasses
import json
import math
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_COLUMNS = {
    "fid": "FID", "rfid": "rFID", "inception_score": "IS", "psnr": "PSNR (dB)", "ssim": "SSIM",
    "lpips": "LPIPS", "kid": "KID", "sfid": "sFID",
}  # fmt: skip
_NOT_INCEPTION = {
    "fid": "frechet_distance",
    "rfid": "reconstruction_frechet_distance",
    "kid": "kernel_distance",
    "kid_std": "kernel_distance_std",
    "inception_score": "class_score",
    "inception_score_std": "class_score_std",
}
_HASH_DIGITS = 12  # of long hashes, in Markdown


@dataclasses.dataclass
class Evaluation:
    """Numbers and how they came about.

    Attributes:
      metrics: name -> value.
      protocol: samples, reference, features, settings and versions; JSON.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any]

    def to_json(self, name: str = "") -> str:
        """One JSON object; infinite numbers (the PSNR of a perfect copy) become text."""
        metrics = {
            key: value if math.isfinite(value) else str(value)
            for key, value in self.metrics.items()
        }
        document = {"name": name} | {"metrics": metrics, "protocol": self.protocol}
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self, name: str = "", header: bool = True) -> str:
        """A row of a table whose last column is the whole protocol; by default with the table's head."""
        shown = [key for key in self.metrics if not key.endswith("_std")]
        values = [value_text(key, self.metrics) for key in shown]
        titles = ["", *map(column_title, shown), "protocol"]
        row = [name, *values, protocol_text(self.protocol)]
        lines = [titles, ["---"] * len(titles), row] if header else [row]
        return markdown(lines)


def is_evaluation(path: Path) -> bool:
    """Whether a file was written from `Evaluation.to_json`."""
    try:
        return {"metrics", "protocol"} <= set(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of a Markdown table."""
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def column_title(metric: str) -> str:
    """What a metric is called above a column."""
    return _COLUMNS.get(metric, metric.replace("_", " "))


def check_metrics(metrics: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Those of `known` that are wanted (None: all), in its order; ValueError for an unknown one."""
    for name in metrics or []:
        if name not in known:
            raise ValueError(f"metric {name!r} is unknown; accepted: {', '.join(known)}")
    if metrics is not None and not metrics:
        raise ValueError(f"no metrics; accepted: {', '.join(known)}")
    return [name for name in known if metrics is None or name in metrics]


def metric_name(metric: str, extractor: str) -> str:
    """Published names are for Inception's features alone: "fid", but "pixels_frechet_distance"."""
    if extractor == "inception":
        return metric
    return f"{extractor}_{_NOT_INCEPTION.get(metric, metric)}"


def versions() -> dict[str, str]:
    """Of everything that the numbers pass through."""
    names = ("torch", "numpy", "Pillow")
    return {"maskgit_pt": _own_version()} | {name: metadata.version(name) for name in names}


def protocol_text(protocol: dict[str, Any]) -> str:
    """The protocol in one line."""
    return "; ".join(f"{part}: {_phrase(value)}" for part, value in protocol.items())


def _own_version() -> str:
    from maskgit_pt import __version__

    return __version__


def _phrase(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_phrase(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " and ".join(map(_phrase, value))
    if isinstance(value, str) and len(value) == 64 and value.isalnum():
        return value[:_HASH_DIGITS]
    return str(value)


def value_text(key: str, metrics: dict[str, float]) -> str:
    """A metric with its deviation, if it has one."""
    text = f"{metrics[key]:.4g}" if metrics[key] < 1000 else f"{metrics[key]:.1f}"
    deviation = metrics.get(f"{key}_std")
    return text if deviation is None else f"{text} ± {deviation:.2g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
