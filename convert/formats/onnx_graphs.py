"""Networks as ONNX graphs, which onnxruntime runs without PyTorch (the extra "onnx").

A transformer becomes two graphs and a tokenizer two:

- `transformer`: tokens int64 [batch, n], -1 where masked, and labels int64 [batch], -1 for no class, to
  logits float32 [batch, n, K];
- `step`: one step of the official decoding, with the noise as an input;
- `encoder`: images float32 [batch, 3, 16 h, 16 w] in [0, 1] to tokens int64 [batch, h, w];
- `decoder`: tokens to images, not clipped.

The size of the batch is free, and so is the size of a tokenizer's images. MAGE gives all four.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskgit_pt.libml import parallel_decode

OPSET = 20  # the first with Gelu
ONE_FILE = 2**31 - 2**20  # bytes: what protobuf can hold, and some room
CONFIG_KEY = "maskgit_config"  # metadata of a graph: the model's configuration
_BATCH = 2  # of the example that is traced; another one is checked
_CHECKED_BATCH = 3
_GRID = (4, 5)  # tokens of the images that a tokenizer is traced with
_CHECKED_GRID = (10, 8)

Draw = Callable[[int, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Graph:
    """A network on its way to ONNX.

    Attributes:
      name: of the file, without ".onnx".
      module: takes the inputs by name.
      draw: inputs of a batch size, from a generator.
      axes: input -> free axis -> its name, or the torch.export.Dim that it is.
      outputs: output -> names of its axes; free where the exporter found them free.
    """

    name: str
    module: nn.Module
    draw: Draw
    axes: dict[str, dict[int, Any]]
    outputs: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Drift:
    """How far onnxruntime is from PyTorch in float32 on the same weights, over all outputs of a graph.

    Attributes:
      largest: difference of two numbers.
      size: the largest number of PyTorch's.
      relative: root mean square of the differences as a part of that of PyTorch's numbers.
      equal, tokens: how many tokens are equal, of how many; 0 of 0 without such outputs.
    """

    largest: float = 0.0
    size: float = 0.0
    relative: float = 0.0
    equal: int = 0
    tokens: int = 0

    def __str__(self) -> str:
        parts = []
        if self.size:
            parts.append(
                f"differs by at most {self.largest:.2g} at numbers up to {self.size:.3g}"
                f" ({100 * self.relative:.2g} % root mean square)"
            )
        if self.tokens:
            parts.append(f"{self.equal} of {self.tokens} tokens equal")
        return ", ".join(parts)


class _Logits(nn.Module):
    def __init__(self, network: nn.Module, num_codes: int):
        super().__init__()
        self.network, self.num_codes = network, num_codes

    def forward(
        self, tokens: Tensor, labels: Tensor | None = None, latent: Tensor | None = None
    ) -> Tensor:
        drawn = {} if latent is None else {"latent": latent}
        return self.network.code_logits(tokens, labels, self.num_codes, **drawn)


class Step(nn.Module):
    def forward(
        self,
        tokens: Tensor,
        logits: Tensor,
        token_noise: Tensor,
        choice_noise: Tensor,
        mask_len: Tensor,
        temperature: Tensor,
    ) -> tuple[Tensor, Tensor]:
        noise = GivenNoise(token_noise, choice_noise)
        return parallel_decode.decide(tokens, tokens < 0, logits, mask_len, temperature, noise)


@dataclass(frozen=True)
class GivenNoise:
    """A `libml.rng.Noise` of draws that were made before."""

    tokens: Tensor
    choice: Tensor

    def categorical(self, logits: Tensor, probs: Tensor) -> Tensor:
        return (logits + self.tokens).argmax(-1)

    def gumbel(self, *_: object) -> Tensor:
        return self.choice


class _Encoder(nn.Module):
    def __init__(self, tokenizer: nn.Module):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode_to_indices(images)


class _Decoder(nn.Module):
    def __init__(self, tokenizer: nn.Module):
        super().__init__()
        self.tokenizer = tokenizer
        self.last = len(tokenizer.get_codebook_funct()) - 1

    def forward(self, tokens: Tensor) -> Tensor:
        # Besnier's networks can draw the id of the mask, which is none of the tokenizer's.
        return self.tokenizer.decode_from_indices(tokens.clamp(0, self.last))


def transformer_graphs(network: nn.Module, num_codes: int) -> list[Graph]:
    """The graphs of a transformer with `code_logits`: `transformer` and `step`."""
    n, classes = network.num_tokens, network.num_classes_with(num_codes)
    latent = getattr(network, "latent_features", 0)

    def draw(batch: int, rng: torch.Generator) -> dict[str, Tensor]:
        inputs = {"tokens": torch.randint(-1, num_codes, (batch, n), generator=rng)}
        # Half of the tokens are masked, as in the middle of decoding.
        inputs["tokens"][torch.rand(batch, n, generator=rng) < 0.5] = -1
        if classes:
            lowest = -1 if getattr(network, "takes_guidance", True) else 0
            inputs["labels"] = torch.randint(lowest, classes, (batch,), generator=rng)
        if latent:
            inputs["latent"] = torch.rand(batch, generator=rng)
        return inputs

    free = {name: {0: "batch"} for name in draw(1, torch.Generator().manual_seed(0))}
    logits = {"logits": ("batch", "n", "K")}
    return [
        Graph("transformer", _Logits(network, num_codes), draw, free, logits),
        _step_graph(n, num_codes),
    ]


def _step_graph(n: int, num_codes: int) -> Graph:
    """One step of `parallel_decode.decide`; it holds no weights and fits every network."""

    def gumbel(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        return -torch.log(torch.empty(shape).exponential_(generator=rng))

    def draw(batch: int, rng: torch.Generator) -> dict[str, Tensor]:
        tokens = torch.randint(0, num_codes, (batch, n), generator=rng)
        tokens[torch.rand(batch, n, generator=rng) < 0.5] = -1
        return {
            "tokens": tokens,
            "logits": 3 * torch.randn(batch, n, num_codes, generator=rng),
            "token_noise": gumbel((batch, n, num_codes), rng),
            "choice_noise": gumbel((batch, n), rng),
            "mask_len": torch.randint(0, n, (batch,), generator=rng).float(),
            "temperature": torch.tensor(4.5),
        }

    places, entries = torch.export.Dim("n", min=2), torch.export.Dim("K", min=2)
    sequence = {0: "batch", 1: places}
    free = {
        "tokens": sequence,
        "logits": sequence | {2: entries},
        "token_noise": sequence | {2: entries},
        "choice_noise": sequence,
        "mask_len": {0: "batch"},
        "temperature": {},
    }
    outputs = {name: ("batch", "n") for name in ("guess", "next_tokens")}
    return Graph("step", Step(), draw, free, outputs)


def tokenizer_graphs(tokenizer: nn.Module) -> list[Graph]:
    """The graphs of a tokenizer: `encoder` and `decoder`."""
    codes, patch = len(tokenizer.get_codebook_funct()), tokenizer.downsampling
    height, width = torch.export.Dim("h"), torch.export.Dim("w")

    def grid(batch: int) -> tuple[int, int]:
        return _GRID if batch == _BATCH else _CHECKED_GRID

    def images(batch: int, rng: torch.Generator) -> dict[str, Tensor]:
        h, w = grid(batch)
        return {"images": torch.rand(batch, 3, patch * h, patch * w, generator=rng)}

    def tokens(batch: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {"tokens": torch.randint(0, codes, (batch, *grid(batch)), generator=rng)}

    sides = {0: "batch", 2: patch * height, 3: patch * width}
    places = {0: "batch", 1: height, 2: width}
    pixels = ("batch", "3", f"{patch}*h", f"{patch}*w")
    return [
        Graph(
            "encoder",
            _Encoder(tokenizer),
            images,
            {"images": sides},
            {"tokens": ("batch", "h", "w")},
        ),
        Graph("decoder", _Decoder(tokenizer), tokens, {"tokens": places}, {"images": pixels}),
    ]


def graphs_of(model: nn.Module, num_codes: int | None) -> list[Graph]:
    """All graphs of a model in evaluation mode and float32.

    Args:
      model: one of `maskgit_pt.networks`.
      num_codes: codes of the tokenizer that a transformer belongs to; not used for tokenizers.
    """
    if not hasattr(model, "code_logits"):
        return tokenizer_graphs(model)
    graphs = transformer_graphs(model, num_codes)
    own = getattr(model, "vqgan", None)
    return graphs + (tokenizer_graphs(own) if own is not None else [])


def write(graph: Graph, path: Path, config: dict) -> None:
    """Writes a graph in float32: one file, or a second one with the weights beside it from 2 GB on.

    Args:
      graph: what to write.
      path: ends in ".onnx".
      config: of the model, noted in the file's metadata.

    Raises:
      ValueError: the extra "onnx" is missing.
    """
    require()
    rng = torch.Generator().manual_seed(0)
    batch = torch.export.Dim("batch")
    axes = {
        name: {axis: batch if dim == "batch" else dim for axis, dim in free.items()}
        for name, free in graph.axes.items()
    }
    with _quietly(), torch.no_grad():
        program = torch.onnx.export(
            graph.module.eval(),
            kwargs=graph.draw(_BATCH, rng),
            dynamo=True,
            dynamic_shapes=axes,
            output_names=list(graph.outputs),
            opset_version=OPSET,
            verbose=False,
        )
        _tidy(program.model, graph)
        program.model.metadata_props[CONFIG_KEY] = json.dumps(config)
        save(program.model, path, sum(x.nbytes for x in graph.module.state_dict().values()))


def save(model: Any, path: Path, size: int) -> None:
    """Writes an `onnx_ir.Model` with so many bytes of weights: beside it, if one file cannot hold them."""
    import onnx_ir

    onnx_ir.save(model, path, external_data=_data_of(path).name if size > ONE_FILE else None)


def _tidy(model: Any, graph: Graph) -> None:
    """Names the free axes of the outputs, and takes out what the exporter noted of its own work."""
    import onnx_ir

    for value, names in zip(model.graph.outputs, graph.outputs.values(), strict=True):
        axes = zip(value.shape, names, strict=True)
        value.shape = onnx_ir.Shape([dim if type(dim) is int else name for dim, name in axes])
    for node in model.graph.all_nodes():  # among it stack traces with paths of this machine
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()


def reduce(path: Path, dtype: str) -> None:
    """Rewrites a graph of float32 in fewer bits, by the tools of onnxruntime.

    Args:
      path: of the graph.
      dtype: "float16" for weights and arithmetic, inputs and outputs stay float32; or "int8" for the
        matrices of dense layers, whose inputs are rounded to 8 bits as they come.
    """
    import onnx

    temporary = path.with_suffix(".reduced")
    with _quietly():
        if dtype == "int8":
            from onnxruntime import quantization

            quantization.quantize_dynamic(
                path,
                temporary,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=True,  # 7 bits: 8 overflow in the sums of processors without VNNI
                weight_type=quantization.QuantType.QInt8,
            )
        else:
            from onnxruntime.transformers import float16

            model = float16.convert_float_to_float16(onnx.load(path), keep_io_types=True)
            onnx.save(model, temporary)
    _data_of(path).unlink(missing_ok=True)
    os.replace(temporary, path)


def _data_of(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def measure(graph: Graph, path: Path, seed: int = 1) -> Drift:
    """Runs a file with onnxruntime, on a batch and images of another size than it was traced with."""
    import onnxruntime

    inputs = graph.draw(_CHECKED_BATCH, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = graph.module.eval()(**inputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of every constant that it cannot fold
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    expected = expected if isinstance(expected, tuple) else (expected,)
    return drift_of(expected, [torch.from_numpy(array) for array in found])


def drift_of(expected: tuple[Tensor, ...] | list[Tensor], found: list[Tensor]) -> Drift:
    """Compares outputs: tokens are counted, numbers subtracted; other shapes are a ValueError."""
    for ours, theirs in zip(expected, found, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(
                f"onnxruntime gives shape {list(theirs.shape)}, PyTorch {list(ours.shape)}"
            )
    pairs = [(ours, theirs) for ours, theirs in zip(expected, found, strict=True)]
    whole = [(a, b) for a, b in pairs if not a.is_floating_point()]
    real = [(a.double(), b.double()) for a, b in pairs if a.is_floating_point()]
    counted = sum(int((a == b).sum()) for a, b in whole), sum(a.numel() for a, _ in whole)
    if not real:
        return Drift(equal=counted[0], tokens=counted[1])
    ours, theirs = (torch.cat([pair[side].flatten() for pair in real]) for side in (0, 1))
    difference = (ours - theirs).abs()
    relative = difference.square().mean().sqrt() / ours.square().mean().sqrt()
    return Drift(
        float(difference.max()), float(ours.abs().max()), float(relative), counted[0], counted[1]
    )


def require() -> None:
    """Raises ValueError if the extra is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"ONNX needs onnx, onnxruntime and onnxscript ({error}): pip install 'maskgit_pt[onnx]'"
        ) from None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The tools below talk about their own work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
