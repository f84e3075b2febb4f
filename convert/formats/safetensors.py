"""Our own folders: `config.json` and `model.safetensors` under PyTorch names; or the bare file.

The metadata in the weights keep what PyTorch names do not show: the official order and chunks, so
that a Google file that went to PyTorch and back has the same bytes, and the configuration, so that
a bare file says how many heads it has.
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from convert import infer, rules
from convert.checkpoint import Checkpoint, check_dtypes
from convert.files import dtypes, safetensors_file
from convert.files.tensors import Buffer, FileTensor, OpenFile, as_bytes
from maskgit_pt.pretrained import CONFIG_NAME, WEIGHTS_NAME, read_config

NAME = "safetensors"
DESCRIPTION = f"folder with {CONFIG_NAME} and {WEIGHTS_NAME}, or a bare .safetensors file"
HOLDS = "any of the models, with its configuration"
IS_FOLDER = True
KEEPS_ORDER = True
KINDS = tuple(rules.MODEL_CLASSES)

MAX_CONFIG_BYTES = 2**20
# The tensor whose last size is the width that the heads share.
_WIDTHS = {"transformer": "embed.word_embeddings.weight", "besnier_transformer": "tok_emb.weight"}
# Metadata.
ORDER, CHUNKS, CONFIG = "official_order", "official_chunks", "maskgit_config"
ORIGIN = "maskgit_origin"


def can_write(kind: str, config: dict) -> bool:
    """Whether it is a model of ours."""
    return kind in KINDS


def likeness(names: Iterable[str]) -> float:
    """Which part of the tensors has names of one of our models, 0 to 1."""
    names = list(names)
    try:
        kind = infer.infer_kind(names, torch_names=True)
    except ValueError:
        return 0.0
    if kind in rules.FROM_PYTORCH:  # our names are theirs: their formats tell
        return 0.0
    return sum(rules.has_rule(kind, name) for name in names) / len(names)


def open_checkpoint(
    path: Path, num_heads: int | None = None, num_codes: int | None = None
) -> Checkpoint:
    """Opens a folder or a file.

    Args:
      path: the folder, or the weights in it, or weights alone.
      num_heads, num_codes: attention heads, codes, where neither configuration nor metadata tell.

    Raises:
      ValueError: not such a file, or not the weights of one of our models; one line.
    """
    weights = path / WEIGHTS_NAME if path.is_dir() else path
    stored, metadata = safetensors_file.read_header(weights)
    check_dtypes({name: leaf[0] for name, leaf in stored.items()})
    stated, stated_in = _stated_config(weights, metadata)
    shapes = {name: leaf[1] for name, leaf in stored.items()}
    kind = infer.infer_kind(shapes, torch_names=True)
    heads, notes = _heads(kind, stated, shapes, num_heads)
    pieces = rules.pieces_of(kind, shapes, heads, _norm_type(stated, shapes))
    official_shapes = {piece.official: piece.official_shape for piece in pieces}
    _, config = infer.infer_config(official_shapes, heads, num_codes)
    config = infer.merge_config(kind, config, stated, stated_in)
    expected, pieces, config = rules.target(kind, config)
    rules.close_books(expected, shapes, f"a {kind}")
    opened = OpenFile(weights)
    tensors = {p.official: _file_tensor(opened, p, *stored[p.torch]) for p in pieces}
    order, chunks = _official_layout(tensors, metadata)
    ordered = {name: tensors[name] for name in order}
    origin = _origin(metadata)
    return Checkpoint(weights, opened, kind, config, ordered, chunks, notes, origin)


def _origin(metadata: dict[str, str]) -> dict:
    """What a foreign file said besides its weights, if they came from one and it still makes sense."""
    try:
        origin = json.loads(metadata.get(ORIGIN, "{}"))
        wrapper, values = origin.get("wrapper"), origin.get("values", {})
    except (ValueError, RecursionError, AttributeError):
        return {}
    plain = (
        isinstance(values, dict)
        and isinstance(origin.get("companion", {}), dict)
        and all(isinstance(value, str | int | float) for value in values.values())
    )
    if not plain or not isinstance(wrapper, str | None):
        return {}
    return {"wrapper": None, "values": {}, "companion": {}} | origin


def _file_tensor(
    file: OpenFile, piece: rules.Piece, dtype: str, _: rules.Shape, start: int
) -> FileTensor:
    size = math.prod(piece.rows_shape) * dtypes.itemsize(dtype)
    return FileTensor(
        file,
        dtype,
        piece.official_shape,
        piece.rows_shape,
        ((start + piece.index * size, size),),
        lambda rows: piece.transform.to_official(rows, piece.heads),
    )


def _stated_config(weights: Path, metadata: dict[str, str]) -> tuple[dict, str]:
    """The configuration that stands beside the weights, else in their metadata, else {}."""
    beside = weights.parent / CONFIG_NAME
    if weights.name == WEIGHTS_NAME and beside.is_file():
        if (size := beside.stat().st_size) > MAX_CONFIG_BYTES:
            raise ValueError(f"{beside}: {size:,} bytes; accepted: {MAX_CONFIG_BYTES:,}")
        return read_config(beside), str(beside)
    try:
        stated = json.loads(metadata.get(CONFIG, "{}"))
    except (ValueError, RecursionError):
        stated = None
    if not isinstance(stated, dict):
        raise ValueError(f"its metadata {CONFIG} is no JSON object")
    return stated, "its metadata"


def _heads(
    kind: str, stated: dict, shapes: dict[str, rules.Shape], num_heads: int | None
) -> tuple[int, list[str]]:
    if kind not in _WIDTHS:
        return 1, []
    heads = stated.get("num_attention_heads", num_heads)
    if num_heads not in (None, heads):
        raise ValueError(f"its configuration says {heads} attention heads, not {num_heads}")
    if heads is None:
        return infer.heads_or_default(shapes.get(_WIDTHS[kind], (0,))[-1], None)
    if type(heads) is not int or heads < 1:
        raise ValueError(f"num_attention_heads is {heads!r}; accepted: a number from 1")
    return heads, []


def _norm_type(stated: dict, names: Iterable[str]) -> str:
    """As stated; else what the names show, which do not tell GroupNorm from LayerNorm."""
    vqvae = stated.get("vqvae")
    likely = "BN" if any(name.endswith(".running_mean") for name in names) else "GN"
    norm_type = vqvae.get("norm_type", likely) if isinstance(vqvae, dict) else likely
    if norm_type not in rules.NORM_NAMES:
        raise ValueError(f"norm_type is {norm_type!r}; accepted: {', '.join(rules.NORM_NAMES)}")
    return norm_type


def _official_layout(
    tensors: dict[str, FileTensor], metadata: dict[str, str]
) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """The official order and chunks that the metadata keep, or the published ones."""
    try:
        order = json.loads(metadata.get(ORDER, "null"))
        chunks = json.loads(metadata.get(CHUNKS, "{}"))
    except (ValueError, RecursionError):
        order = chunks = None
    if not isinstance(order, list) or not _same_names(order, tensors):
        return rules.published_order(tensors), {}
    valid = {}
    for name, counts in chunks.items() if isinstance(chunks, dict) else ():
        whole = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
        if whole and counts and name in tensors and sum(counts) == math.prod(tensors[name].shape):
            valid[name] = tuple(counts)
    return order, valid


def _same_names(order: list, tensors: Iterable[str]) -> bool:
    return all(isinstance(name, str) for name in order) and sorted(order) == sorted(tensors)


def write(
    source: Checkpoint,
    output: Path,
    dtype: str | None,
    observe: Callable[[str, Tensor], None],
) -> Path:
    """Writes a folder: `config.json` and `model.safetensors`.

    Args:
      source: what to write.
      output: the folder, not yet there.
      dtype: convert to this; None: as stored.
      observe: called with the official name and the converted tensor, for each.

    Returns:
      The file that holds the weights.

    Raises:
      ValueError: tensors that become one have different dtypes.
    """
    shapes, pieces, config = rules.target(source.kind, source.config)
    config = {"model_type": rules.model_type(source.kind)} | config
    tensor_dtypes = rules.stacked_dtypes(
        pieces, {name: dtype or tensor.dtype for name, tensor in source.tensors.items()}
    )
    output.mkdir()
    (output / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    metadata = {
        "format": "pt",
        ORDER: json.dumps(list(source.tensors)),
        CONFIG: json.dumps(config),
    }
    if source.chunks:
        metadata[CHUNKS] = json.dumps(source.chunks)
    if source.origin:
        metadata[ORIGIN] = json.dumps(source.origin)
    by_torch: dict[str, list[rules.Piece]] = {name: [] for name in shapes}
    for piece in pieces:
        by_torch[piece.torch].append(piece)
    layout = {name: (tensor_dtypes.get(name, "int64"), shape) for name, shape in shapes.items()}
    stored, converted = Buffer(), Buffer()
    with open(output / WEIGHTS_NAME, "xb") as file:
        file.write(safetensors_file.header(layout, metadata))
        for name, stacked in by_torch.items():
            for piece in stacked:
                official = source.tensors[piece.official].read(stored)
                rows = piece.transform.to_torch(official)
                rows = converted.copy(rows, tensor_dtypes[name])
                observe(piece.official, rows)
                file.write(as_bytes(rows))
            if not stacked:  # a BatchNorm's count of batches
                file.write(bytes(8))
    return output / WEIGHTS_NAME
