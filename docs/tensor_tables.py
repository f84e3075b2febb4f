"""Writes `tensor_tables.md` from the conversion tables, so that the page cannot differ from the code."""

import re
from pathlib import Path

import torch

from convert.formats import FORMATS
from convert.formats.format import own_rows
from convert.rows import Rows
from maskgit_pt import VQVAE, Transformer
from maskgit_pt.configs import vqgan_config
from maskgit_pt.nets.self_guidance import SelfGuidedTransformer

_LATER = re.compile(
    r"(?:^|\.)(res_blocks|layers|transformer_layers|blocks?|upsample_convs|down|up|mid)\.[1-9]\d*\b"
    r"|TransformerLayer_[1-9]"
)


def table(rows: Rows, title: str) -> str:
    """One table; of numbered parts only the first is shown."""
    lines = [f"| {title} | official tensors | transform |", "|---|---|---|"]
    for name, row in rows.items():
        if not _LATER.search(name):
            officials = " + ".join(f"`{official}`" for official in row.officials) or "none"
            lines.append(f"| `{name}` | {officials} | {row.transform.name} |")
    return "\n".join(lines)


def published() -> dict[str, tuple[str, dict]]:
    """Google's models, and one on top of them: heading -> model type and configuration."""
    with torch.device("meta"):
        transformer = Transformer(2025, 768, 24, 16, max_position_embeddings=257)
        self_guided = SelfGuidedTransformer(
            2025, num_hidden_layers=24, num_attention_heads=16, max_position_embeddings=257
        )
        tokenizer = VQVAE(vqgan_config.get_config())
    return {
        "Google's transformer": ("maskgit_transformer", transformer.to_config()),
        "Google's tokenizer": ("maskgit_vqvae", tokenizer.to_config()),
        "UnlockMGM's transformer": ("self_guided_transformer", self_guided.to_config()),
    }


def write(path: Path) -> None:
    """Writes the page."""
    parts = []
    for heading, (model_type, config) in published().items():
        parts.append(f"## {heading}\n\n{table(own_rows(model_type, config), 'PyTorch, here')}\n")
        for form in FORMATS:
            if (
                model_type in form.MODEL_TYPES
                and form.NAME not in ("safetensors", "flax")
                and form.READS
            ):
                try:
                    rows = form.rows_of_model(model_type, config)
                except (ValueError, NotImplementedError):
                    continue
                parts.append(f"### {form.NAME}: {form.DESCRIPTION}\n\n{table(rows, form.NAME)}\n")
    path.write_text("\n".join(parts), encoding="utf-8")
