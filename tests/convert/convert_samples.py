"""Small checkpoints to convert."""

from pathlib import Path

import numpy as np

from convert import flax_msgpack, rules

OFFICIAL = Path(__file__).parents[1] / "golden" / "official"
ROLES = {"maskgit_transformer": "transformer", "maskgit_vqvae": "tokenizer"}  # in names of files

# As small as a transformer gets: most of the file is structure, not numbers.
MINIATURE = {
    "vocab_size": 5,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 3,
    "max_position_embeddings": 3,
}


def seeded_flat(model_type: str, config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Official arrays for a configuration, float32, no two numbers alike."""
    rng = np.random.default_rng(seed)
    shapes = {piece.official: piece.official_shape for piece in rules.target(model_type, config)[1]}
    return {
        name: rng.standard_normal(shapes[name]).astype(np.float32)
        for name in rules.published_order(shapes)
    }


def write_flax(path: Path, flat: dict) -> Path:
    path.write_bytes(flax_msgpack.dumps(flax_msgpack.nest(flat)))
    return path
