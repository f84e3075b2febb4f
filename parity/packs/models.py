"""The networks of a pack in PyTorch, from wherever their weights can be had."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from torch import nn

import convert
from convert import inspection, rules
from parity.packs.pack import Pack
from parity.seeded import MODEL_TYPES, draw


def load(pack: Pack, kind: str, file: str | None = None) -> nn.Module | None:
    """The network of `kind`, "transformer" or "tokenizer"; None if its weights are not at hand.

    They are read from `file` if given, else from the pack, else drawn again if they were drawn.

    Raises:
      ValueError, OSError: `file` holds other weights than those recorded.
    """
    config = pack.manifest["model"].get(kind)
    facts = pack.manifest["weights"].get(kind)
    if not isinstance(config, dict) or not isinstance(facts, dict):
        return None
    own = f"weights/{kind}.safetensors"
    if file:
        found = inspection.fingerprint(file)
        if found != facts.get("fingerprint"):
            raise ValueError(
                f"{file}: fingerprint {found[:12]}; recorded were weights of fingerprint "
                f"{str(facts.get('fingerprint'))[:12]} (--{kind})"
            )
        flat = convert.read_flat(file)
    elif own in pack.manifest["files"]:
        flat = load_file(pack.folder / own)
    elif facts.get("drawn"):
        flat = _drawn(kind, config, facts["drawn"])
    else:
        return None
    return build(kind, config, flat, pack.folder)


def _drawn(kind: str, config: dict, drawn: dict) -> dict[str, np.ndarray]:
    _, pieces, _ = rules.target(MODEL_TYPES[kind], config)
    shapes = {piece.official: piece.official_shape for piece in pieces}
    return draw(MODEL_TYPES[kind], shapes, int(drawn.get("seed", 0)))


def build(kind: str, config: dict, flat: dict[str, np.ndarray], where: Path) -> nn.Module:
    """The module of `kind` with weights under Google's names.

    Raises:
      ValueError: they do not fit.
    """
    try:
        model = rules.build(MODEL_TYPES[kind], config)
        model.load_state_dict(rules.to_torch(flat, MODEL_TYPES[kind], config))
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{where}: no {kind} of this configuration: {error}") from None
    return model.eval()
