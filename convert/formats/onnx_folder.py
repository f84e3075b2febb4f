"""ONNX graphs in a folder, for onnxruntime: written, and never read back as weights; see `onnx_graphs`."""

from pathlib import Path
from typing import Any

from convert import rules, signatures
from convert.checkpoint import Checkpoint
from convert.formats import onnx_graphs
from convert.formats.format import Format
from convert.rows import Observe, Rows
from maskgit_pt.nets.discriminator import Discriminator
from maskgit_pt.nets.self_guidance import SelfGuidedTransformer

# Why a model is not written.
_REFUSED = {
    Discriminator: "it judges images and is no part of sampling",
    # Of it the frozen part is written: `Checkpoint.frozen_part`.
    SelfGuidedTransformer: "its second pass is fed by its sampler, step by step",
}
# Models that do not know how many codes their tokenizer has.
_WHERE_CODES = ("maskgit_transformer",)
_BOUND = 2e-5  # of the numbers' size, but of 10 at least: float32
_BOUNDS_REDUCED = {
    "float16": 0.05,
    "int8": 0.5,
}  # root mean square, as a part of that of the numbers
_TOKENS_EQUAL = {"float32": 0.999, "float16": 0.9, "int8": 0.5}

_CARD = """\
# ONNX graphs

{model_type}, converted from `{source}` (sha256 `{sha256}`), in {dtype}. onnxruntime runs it without PyTorch;
the documentation of maskgit_pt, page "ONNX", samples with it in twenty lines.

{graphs}

The weights keep the licence of their source.
"""


class Onnx(Format):
    NAME = "onnx"
    DESCRIPTION = "ONNX graphs for onnxruntime (needs the extra 'onnx'); never read back"
    HOLDS = "transformer and decoding step, or tokenizer encoder and decoder"
    MODEL_TYPES = tuple(
        model_type for model_type, cls in rules.MODEL_CLASSES.items() if cls not in _REFUSED
    )
    DTYPES = ("float32", "float16", "int8")
    IS_FOLDER = True
    WHOLE_FOLDER = True
    PACKINGS = ("ONNX",)
    READS = False

    def rows_to_write(self, model_type: str, config: dict) -> Rows:
        if reason := _REFUSED.get(rules.MODEL_CLASSES[model_type]):
            raise ValueError(f"a {model_type} is not written as ONNX: {reason}")
        return rules.model_rows(model_type, config)

    def written_dtype(self, source: Checkpoint, dtype: str | None) -> str:
        return dtype or "float32"

    def uses(self, source: Checkpoint) -> tuple[str, ...]:
        return ("num_codes",) if source.model_type in _WHERE_CODES else ()

    def marks(self, source: Checkpoint) -> list[str]:
        if not self.uses(source) or source.given.num_codes:
            return []
        return [
            f"the number of codes is not in the file: took {_codes(source)}, as the published models have "
            "(--num_codes says otherwise)"
        ]

    def write(
        self,
        source: Checkpoint,
        output: Path,
        dtype: str | None,
        observe: Observe,
        packing: str | None = None,
    ) -> Path:
        self.rows_to_write(source.model_type, source.config)
        if dtype == "int8" and not _is_transformer(source):
            raise ValueError(
                "int8 is for transformers, whose dense layers it rounds; accepted for a tokenizer: "
                "float32, float16"
            )
        onnx_graphs.require()
        for name, tensor in source.tensors.items():
            observe(name, tensor)
        graphs = self._graphs(source)
        output.mkdir()
        for graph in graphs:
            path = output / f"{graph.name}.onnx"
            onnx_graphs.write(graph, path, source.config)
            if (kept := self._kept(graph, dtype)) != "float32":
                onnx_graphs.reduce(path, kept)
        return output

    def try_out(self, source: Checkpoint, written: Path, dtype: str | None) -> str:
        """Runs every graph with onnxruntime and says how far it is from PyTorch in float32.

        Raises:
          ValueError: farther than the bound of its dtype.
        """
        lines = []
        for graph in self._graphs(source):
            drift = onnx_graphs.measure(graph, written / f"{graph.name}.onnx")
            kept = self._kept(graph, dtype)
            if reason := too_far(drift, kept):
                raise ValueError(
                    f"{graph.name}.onnx in {kept} is not what PyTorch computes: {reason}"
                )
            lines.append(f"{graph.name}.onnx {drift}")
        return f"run with onnxruntime: {'; '.join(lines)}"

    def card(self, checkpoint: Checkpoint, **about: Any) -> dict[str, bytes]:
        names = ["transformer", "step"] if _is_transformer(checkpoint) else []
        if not names or "vqvae" in checkpoint.config:
            names += ["encoder", "decoder"]
        text = _CARD.format(
            model_type=checkpoint.model_type,
            source=about["source"].replace("`", "'"),
            sha256=about["sha256"],
            dtype=about["dtype"],
            graphs="\n".join(f"- `{name}.onnx`" for name in names),
        )
        return {"README.md": text.encode()}

    def _kept(self, graph: onnx_graphs.Graph, dtype: str | None) -> str:
        """In what a graph is written: int8 is for transformers alone, and a step holds no weights."""
        if graph.name == "step" or dtype == "int8" and graph.name != "transformer":
            return "float32"
        return dtype or "float32"

    def _graphs(self, source: Checkpoint) -> list[onnx_graphs.Graph]:
        model = rules.build(source.model_type, source.config)
        model.load_state_dict(source.state_dict())
        return onnx_graphs.graphs_of(model.float().eval(), _codes(source))


def _is_transformer(source: Checkpoint) -> bool:
    return hasattr(rules.MODEL_CLASSES[source.model_type], "code_logits")


def _codes(source: Checkpoint) -> int:
    """The codes of the tokenizer that a transformer belongs to."""
    if (known := source.config.get("num_codes")) is not None:
        return known
    return source.given.num_codes or signatures.likely_codes(source.config.get("vocab_size", 0))


def too_far(drift: onnx_graphs.Drift, dtype: str) -> str | None:
    """Says what is beyond the bound of a dtype; None if nothing is."""
    allowed = _BOUND * max(10.0, drift.size)
    if dtype == "float32" and not drift.largest <= allowed:
        return f"{drift}, {allowed:.2g} accepted"
    if dtype != "float32" and not drift.relative <= _BOUNDS_REDUCED[dtype]:
        return f"{drift}, {100 * _BOUNDS_REDUCED[dtype]:.0f} % accepted"
    least = _TOKENS_EQUAL[dtype]
    if drift.equal < least * drift.tokens:
        return f"{drift}, {100 * least:.4g} % accepted"
    return None


FORMAT = Onnx()
