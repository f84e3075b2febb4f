"""What every format is read into: tensors under their official names, and what model they make."""

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from convert import infer, rules
from convert.files import dtypes
from convert.files.tensors import rows_that_differ
from convert.rows import Outgoing

WEIGHTS = ("ema", "raw")
_MODULE = "self_guidance"  # begins the names of what is not frozen


@dataclass(frozen=True)
class Given:
    """What the user says about weights that do not tell it themselves.

    Attributes:
      num_heads: attention heads.
      num_codes: codes of the tokenizer that a transformer belongs to.
      weights: "ema" or "raw", where a file holds both.
    """

    num_heads: int | None = None
    num_codes: int | None = None
    weights: str | None = None

    def __post_init__(self):
        if self.weights not in (None, *WEIGHTS):
            raise ValueError(f"weights is {self.weights!r}; accepted: {', '.join(WEIGHTS)}")


class MissingWeights(ValueError):
    """A file does not hold the kind of weights that was asked for: the averaged ones, or the raw ones."""


@dataclass
class Checkpoint:
    """Weights in a file.

    Attributes:
      path: the file that holds the weights.
      model_type: a key of `rules.MODEL_CLASSES`.
      config: complete, for `rules.build`.
      tensors: official name -> tensor in official layout; a view of the mapped file where the file
        allows it. In official order: as in Google's file it once came from if that is known, else
        as published.
      chunks: elements per chunk of the arrays that the official file cuts up.
      notes: what had to be assumed or was left out; for the user to see.
      origin: what else a foreign file said, for writing it again: "format", "wrapper" (the key that the
        weights stood under, or None), "values" (its plain numbers and words: steps, versions),
        "companion" (the configuration that came with it).
      release: gives memory back that reading took.
      given: what the user said beside the file.
    """

    path: Path
    model_type: str
    config: dict
    tensors: dict[str, Tensor]
    chunks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    origin: dict = field(default_factory=dict)
    release: Callable[[], None] = lambda: None
    given: Given = Given()

    def frozen_part(self) -> "Checkpoint | None":
        """The model that this one holds, frozen, without what was trained on top of it; None for others."""
        part = rules.frozen_part(self.model_type, self.config)
        if part is None:
            return None
        kept = {n: t for n, t in self.tensors.items() if not n.startswith(f"{_MODULE}/")}
        head = self.tensors[f"{_MODULE}/head/weight"]
        embeddings = kept["params/Embed_0/word_embeddings/embedding"]
        note = (
            f"took the frozen {part[0]} alone, which Google's code runs with the tanh GELU; left out: "
            f"{len(self.tensors) - len(kept) - 1} tensors of the module and the head's copy of the embeddings"
        )
        alike = head.dtype == embeddings.dtype
        if differing := rows_that_differ(head, embeddings) if alike else len(head):
            note += f", which differs from them in {differing:,} rows: this predicts otherwise"
        return dataclasses.replace(
            self,
            model_type=part[0],
            config=part[1],
            tensors=kept,
            chunks={name: counts for name, counts in self.chunks.items() if name in kept},
            notes=[note for note in self.notes if note != infer.GELU_NOTE] + [note],
            origin={},
        )

    @property
    def parameters(self) -> int:
        """How many numbers there are that training sets; running statistics are not counted."""
        records = ("batch_stats/", "quantize.codebook_used")
        return sum(t.numel() for n, t in self.tensors.items() if not n.startswith(records))

    @property
    def step(self) -> int | None:
        """How long it was trained, in optimizer steps, if a file said so."""
        values = self.origin.get("values", {})
        found = [values.get(name) for name in ("iter", "global_step", "step")]
        return next((value for value in found if type(value) is int), None)

    def unused(self, used: Collection[str] = ()) -> list[str]:
        """What the user said beside the file that says nothing about this model.

        Args:
          used: fields of `Given` that whoever asks has a use for.
        """
        said = {"num_attention_heads": "num_heads", "num_codes": "num_codes"}
        return [
            f"--{flag}={getattr(self.given, flag)} says nothing about a {self.model_type}: not used"
            for name, flag in said.items()
            if getattr(self.given, flag) is not None
            and name not in self.config
            and flag not in used
        ]

    def size(self, dtype: str | None = None) -> int:
        """Bytes of all tensors, as stored or in another dtype."""
        return sum(
            tensor.numel() * (dtypes.itemsize(dtype) if dtype else tensor.itemsize)
            for tensor in self.tensors.values()
        )

    @property
    def dtype(self) -> str:
        """The dtype of the weights, or all of them: "float32", "bfloat16, float32"."""
        return ", ".join(sorted({dtypes.name_of_torch(t.dtype) for t in self.tensors.values()}))

    def state_dict(self) -> dict[str, Tensor]:
        """Copies all into a PyTorch state dict.

        Raises:
          ValueError: official tensors that become one have different dtypes.
        """
        rows = rules.model_rows(self.model_type, self.config)
        return Outgoing(self.tensors, rows, release=self.release).state_dict()
