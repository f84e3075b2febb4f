"""Conversion as functions: `convert`, and reading without writing."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convert import formats, infer, rules
from convert.checkpoint import Checkpoint, Given
from convert.files import dtypes
from convert.files.output import check_output
from convert.files.tensors import Buffer, as_bytes, one_thread
from convert.formats.format import Format
from convert.formats.recognise import open_checkpoint, recognise, reopen, writers
from maskgit_pt.files import path_sha256, printable, replacing, synchronise


@dataclass(frozen=True)
class Summary:
    """What a conversion did.

    Attributes:
      model_type: a key of `rules.MODEL_CLASSES`.
      config: of the model.
      resolution: in pixels: "256 x 256", "any multiple of 16".
      parameters: how many numbers.
      dtype: of the output.
      input_format, output_format: names of formats.
      input_layout: how the input is packed, and the key that its weights stand under.
      input_sha256, output_sha256: of the files that hold the weights.
      check: how the output was checked.
      verified: whether it was.
      warnings: for the user: what was assumed or left out; tensors that are not finite.
      seconds: it took.
    """

    model_type: str
    config: dict
    resolution: str
    parameters: int
    dtype: str
    input_format: str
    input_layout: str
    output_format: str
    input_sha256: str
    output_sha256: str
    check: str
    verified: bool
    warnings: tuple[str, ...]
    seconds: float


def read_flat(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads weights of any format as official name -> array, in official order and layout.

    bfloat16 arrays have the dtype `dtypes.BFLOAT16`.

    Raises:
      ValueError, OSError: one line that begins with the path.
    """
    tensors = open_checkpoint(path).tensors
    return {name: dtypes.to_numpy(tensor.clone().contiguous()) for name, tensor in tensors.items()}


def load_checkpoint(
    path: str | os.PathLike,
    num_heads: int | None = None,
    num_codes: int | None = None,
    weights: str | None = None,
) -> tuple[str, dict, dict[str, Tensor]]:
    """Reads weights of any format as (model_type, config, PyTorch state dict).

    `rules.build(model_type, config).load_state_dict(state_dict)` makes the model. `num_heads` and
    `num_codes` are for files that do not tell, `weights` for those that hold two sets.

    Raises:
      ValueError, OSError: one line that begins with the path.
    """
    checkpoint = open_checkpoint(path, num_heads, num_codes, weights)
    return checkpoint.model_type, checkpoint.config, checkpoint.state_dict()


def read_model(
    path: str | os.PathLike,
    num_heads: int | None = None,
    num_codes: int | None = None,
    weights: str | None = None,
) -> tuple[str, dict, dict[str, Tensor], list[str]]:
    """Reads weights of any format as (model type of `config.json`, config, state dict, notes).

    Announced to `maskgit_pt` as an entry point, so that it loads files without knowing this package.

    Args:
      path: file or folder.
      num_heads, num_codes, weights: as `convert`.
    """
    found = open_checkpoint(path, num_heads, num_codes, weights)
    return found.model_type, found.config, found.state_dict(), found.notes


def convert(
    input: str | os.PathLike,
    output: str | os.PathLike,
    to: str = "safetensors",
    dtype: str | None = None,
    verify: bool = True,
    overwrite: bool = False,
    num_heads: int | None = None,
    num_codes: int | None = None,
    weights: str | None = None,
    pixels: int | None = None,
    gelu: str | None = None,
    safetensors: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Summary:
    """Converts weights; the output appears whole or not at all.

    Args:
      input: file or folder of any format.
      output: a folder for formats with `IS_FOLDER` ("safetensors": config.json, model.safetensors,
        README.md), a file for the others.
      to: a name of `formats.BY_NAME`.
      dtype: one of the format's `DTYPES`; None keeps what is stored ("onnx": float32).
      verify: read the output back and compare it with the input, bit for bit ("onnx": run it).
      overwrite: replace what exists.
      num_heads: attention heads, for input that does not tell.
      num_codes: codes of the tokenizer, for transformers that do not tell.
      weights: "ema" or "raw", for input that holds both.
      pixels: side of the images that a tokenizer was trained on, for its configuration; None: as its
        published file is named.
      gelu: "erf" or "tanh": with which form a network with a self-guidance module runs, for its
        configuration; None: as its authors run it, erf.
      safetensors: write another project's format as a safetensors file instead of PyTorch's.
      progress: called with the bytes written or verified since the last call, and with all.

    Raises:
      ValueError, OSError: one line that names the file, and the tensor where it is about one.
    """
    started = time.perf_counter()
    input, output = Path(input), Path(output)
    writer = _writer(to, dtype, safetensors)
    found = recognise(input, weights)
    source = _told(
        found.open(Given(num_heads, num_codes, weights)), writer, input.name, pixels, gelu
    )
    packing = "safetensors" if safetensors else None
    check_output(output, writer.IS_FOLDER, overwrite, writer.weights_name(packing))
    if not writer.READS:
        writer.rows_to_write(source.model_type, source.config)
    total = (1 + (verify and writer.READS)) * source.size(dtype if writer.READS else None)
    observer = _Observer(lambda done: progress(done, total))
    # Hashing goes on beside the conversion; hashlib and file reading release the lock.
    with (
        replacing(output, durable=True) as temporary,
        ThreadPoolExecutor(2) as threads,
        one_thread(),
    ):
        input_sha256 = threads.submit(path_sha256, source.path, found.container.files)
        try:
            weights = writer.write(source, temporary, dtype, observer, packing)
        except ValueError as error:
            raise ValueError(f"{input}: {error}") from None
        output_sha256 = threads.submit(path_sha256, weights)
        on_disk = threads.submit(synchronise, weights)
        written_dtype = writer.written_dtype(source, dtype)
        check = "not read back (--noverify)"
        if verify and writer.READS:
            _verify(writer, source, temporary, dtype, (input, output), observer.progress)
            check = "read back, equal bit for bit"
        elif verify:
            check = _try_out(writer, source, temporary, dtype, output)
        about = {
            "source": printable(input.name),
            "dtype": written_dtype,
            "sha256": input_sha256.result(),
        }
        about["writers"] = writers(source.model_type, source.config)
        for name, data in writer.card(source, **about).items():
            (temporary / name).write_bytes(data)
        on_disk.result()
    return Summary(
        model_type=source.model_type,
        config=source.config,
        resolution=infer.resolution(source.model_type, source.config),
        parameters=source.parameters,
        dtype=written_dtype,
        input_format=found.format.NAME,
        input_layout=found.layout,
        output_format=to,
        input_sha256=input_sha256.result(),
        output_sha256=output_sha256.result(),
        check=check,
        verified=verify,
        warnings=(
            *source.notes,
            *source.unused(writer.uses(source)),
            *writer.marks(source),
            *observer.warnings(),
        ),
        seconds=time.perf_counter() - started,
    )


def _writer(to: str, dtype: str | None, safetensors: bool) -> Format:
    """The format to write; ValueError: it is unknown, or cannot be written so."""
    if to not in formats.BY_NAME:
        raise ValueError(f"cannot write {to!r}; accepted: {', '.join(formats.BY_NAME)}")
    writer = formats.BY_NAME[to]
    if dtype is not None and dtype not in writer.DTYPES:
        accepted = ", ".join(writer.DTYPES)
        raise ValueError(f"cannot convert to {dtype!r}; accepted: {accepted}")
    if safetensors and "safetensors" not in writer.PACKINGS[1:]:
        raise ValueError(f"{to} has one layout; --safetensors is for other projects' formats")
    return writer


def _told(
    source: Checkpoint, writer: Format, name: str, pixels: int | None, gelu: str | None
) -> Checkpoint:
    """What is written of a file: the part that the format can hold, with what the caller knows of it."""
    if pixels is not None:
        infer.note_pixels(source.model_type, source.config, name, pixels)
    if source.model_type not in writer.MODEL_TYPES:
        source = source.frozen_part() or source
    if gelu is not None:
        infer.note_gelu(source.model_type, source.config, gelu)
        source.notes = [note for note in source.notes if note != infer.GELU_NOTE]
    return source


class _Observer:
    """Looks at every tensor on its way out."""

    def __init__(self, progress: Callable[[int], object]):
        self.progress = progress
        self.not_finite: list[str] = []

    def __call__(self, name: str, tensor: Tensor) -> None:
        # The extremes of a tensor with a NaN are NaN; unlike isfinite, aminmax needs no memory.
        if tensor.numel() and not all(torch.isfinite(value) for value in torch.aminmax(tensor)):
            self.not_finite.append(name)
        self.progress(tensor.nbytes)

    def warnings(self) -> tuple[str, ...]:
        if not self.not_finite:
            return ()
        names = rules.abbreviate(self.not_finite)
        return (f"{len(self.not_finite)} tensors hold NaN or infinity: {names}",)


_FAILED = "verification failed, nothing was written:"


def _verify(
    writer: Format,
    source: Checkpoint,
    written: Path,
    dtype: str | None,
    names: tuple[Path, Path],
    progress: Callable[[int], object],
) -> None:
    """Reads the output back and compares it with the input, bit for bit.

    Args:
      writer, source, dtype: what was written.
      written: the output, under its temporary name.
      names: of input and output, for errors.
      progress: called with the bytes of each tensor.

    Raises:
      ValueError: it differs; names the tensor.
    """
    unstated = [source.config.get(name) for name in ("num_attention_heads", "num_codes")]
    input, output = names
    try:
        back = reopen(writer, written, Given(*unstated))
    except ValueError as error:
        raise ValueError(f"{output}: {_FAILED} {error}") from None
    tensors, tensors_back = list(source.tensors), list(back.tensors)
    config, config_back = source.config, back.config
    if not writer.KEEPS_ORDER:
        tensors, tensors_back = sorted(tensors), sorted(tensors_back)
    if not writer.KEEPS_CONFIG:
        config, config_back = infer.visible(config), infer.visible(config_back)
    if tensors != tensors_back or config != config_back:
        raise ValueError(f"{output}: {_FAILED} names, order or configuration differ from {input}")
    buffers = Buffer(), Buffer()
    for name, tensor in source.tensors.items():
        kept = dtype or dtypes.name_of_torch(tensor.dtype)
        expected, found = buffers[0].copy(tensor, kept), back.tensors[name]
        same = found.shape == expected.shape and dtypes.name_of_torch(found.dtype) == kept
        # As whole numbers: NaN equals itself, and 0 is not -0.
        if not same or not np.array_equal(_bits(buffers[1].copy(found, kept)), _bits(expected)):
            raise ValueError(f"{output}: {_FAILED} tensor {name} differs from {input}")
        progress(expected.nbytes)
        source.release()
        back.release()


def _try_out(
    writer: Format, source: Checkpoint, written: Path, dtype: str | None, output: Path
) -> str:
    try:
        return writer.try_out(source, written, dtype)
    except ValueError as error:
        raise ValueError(f"{output}: {_FAILED} {error}") from None


def _bits(tensor: Tensor) -> np.ndarray:
    return np.frombuffer(as_bytes(tensor), f"u{tensor.element_size()}")
