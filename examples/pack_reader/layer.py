"""One transformer layer and the head in NumPy, compared with what a pack recorded.

  python examples/pack_reader/layer.py PACK

Needs NumPy alone. Each stage starts from the recorded output of the one before, so that an error shows where
it is made. Exit code 1 if a stage differs. The pack must hold its weights, as a small one does.
"""

import json
import math
import struct
import sys
from pathlib import Path

import numpy as np

DTYPES = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "U32": np.uint32}
LAYERNORM_EPSILON = 1e-12  # not 1e-5
Tensors = dict[str, np.ndarray]


def read_safetensors(path: Path) -> Tensors:
    """8 bytes, the length of the header; the header, JSON; the data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            values = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
            tensors[name] = values.reshape(entry["shape"])
    return tensors


def layer_norm(x: np.ndarray, weights: Tensors, name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    normal = centred / np.sqrt(variance + LAYERNORM_EPSILON)
    return normal * weights[f"{name}/scale"] + weights[f"{name}/bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form, not the one with the error function."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def dense(x: np.ndarray, weights: Tensors, name: str) -> np.ndarray:
    return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]


def embed(ids: np.ndarray, weights: Tensors) -> np.ndarray:
    """[B, N] -> [B, N, D]; id -1, the mask, wraps around to the last row."""
    words = weights["params/Embed_0/word_embeddings/embedding"][ids]
    positions = weights["params/Embed_0/position_embeddings/embedding"][: ids.shape[1]]
    return layer_norm(words + positions, weights, "params/Embed_0/embeddings_ln")


def self_attention(x: np.ndarray, weights: Tensors, name: str) -> np.ndarray:
    """[B, N, D] -> [B, N, D]; kernels are [D, heads, D / heads], and back for the output."""
    query, key, value = (
        np.einsum("bnd,dhe->bhne", x, weights[f"{name}/{part}/kernel"])
        + weights[f"{name}/{part}/bias"][:, None]
        for part in ("query", "key", "value")
    )
    scores = np.einsum("bhne,bhme->bhnm", query / math.sqrt(query.shape[-1]), key)
    mixed = np.einsum("bhnm,bhme->bnhe", softmax(scores), value)
    return (
        np.einsum("bnhe,hed->bnd", mixed, weights[f"{name}/out/kernel"])
        + weights[f"{name}/out/bias"]
    )


def stages(pack: Tensors, weights: Tensors) -> dict[str, np.ndarray]:
    """Our side of every stage, by the pack's names, from the recorded output of the stage before."""
    layer, head = "params/TransformerLayer_0", "params/MlmLayer_0"
    embedded = pack["transformer.embed"]
    attended = pack["transformer.layers.0.attention.self_attention"]
    normal = pack["transformer.layers.0.attention"]
    last = max(
        (name for name in pack if name.startswith("transformer.layers.") and name.endswith(".mlp")),
        key=lambda name: int(name.split(".")[2]),
    )
    hidden = dense(normal, weights, f"{layer}/Mlp_0/intermediate_output")
    output = dense(gelu(hidden), weights, f"{layer}/Mlp_0/layer_output")
    words = weights["params/Embed_0/word_embeddings/embedding"]
    return {
        "transformer.embed": embed(pack["ids"], weights),
        "transformer.layers.0.attention.self_attention": self_attention(
            embedded, weights, f"{layer}/Attention_0/self_attention"
        ),
        "transformer.layers.0.attention": layer_norm(
            attended + embedded, weights, f"{layer}/Attention_0/attention_output_ln"
        ),
        "transformer.layers.0.mlp.intermediate_output": hidden,
        "transformer.layers.0.mlp": layer_norm(
            output + normal, weights, f"{layer}/Mlp_0/layer_output_ln"
        ),
        "transformer.mlm_layer.mlm_dense": dense(pack[last], weights, f"{head}/mlm_dense"),
        "transformer.mlm_layer.mlm_ln": layer_norm(
            gelu(pack["transformer.mlm_layer.mlm_dense"]), weights, f"{head}/mlm_ln"
        ),
        "transformer.logits": pack["transformer.mlm_layer.mlm_ln"] @ words.T
        + weights[f"{head}/mlm_bias/bias"],
    }


def main() -> int:
    """Prints a line for each stage; 1 if one differs."""
    folder = Path(sys.argv[1])
    manifest = json.loads((folder / "manifest.json").read_text())
    entries = {entry["name"]: entry for entry in manifest["arrays"]}
    pack = read_safetensors(folder / "transformer.safetensors")
    weights = read_safetensors(folder / "weights" / "transformer.safetensors")
    failed = 0
    for name, ours in stages(pack, weights).items():
        entry = entries[name]
        theirs = pack.get(name)
        if "stride" in entry:  # every stride-th element of the flattened array
            ours, theirs = ours.reshape(-1)[:: entry["stride"]], pack[f"{name}.strided"]
        off, bound = float(np.abs(ours - theirs).max()), entry["bounds"]["float32"]
        print(f"{'ok  ' if off <= bound else 'FAIL'} {name}: off by {off:.1e}, bound {bound:.1e}")
        failed += off > bound
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
