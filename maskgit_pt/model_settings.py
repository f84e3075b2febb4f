"""Which model makes the images, on which device, and of which classes: what `sample`, `evaluate` and
`sweep` ask alike."""

import dataclasses
from typing import TYPE_CHECKING

import torch

from maskgit_pt import launch
from maskgit_pt.classes import Classes
from maskgit_pt.networks import TOKENIZERS
from maskgit_pt.pretrained import PretrainedMixin, load_any, weights_fingerprint
from maskgit_pt.settings import setting

if TYPE_CHECKING:
    from maskgit_pt.pipeline import MaskGIT

WHAT = "a folder, a file of any format in 'maskgit-convert --list', or a Hugging Face hub id"


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Each field is the value of the flag of its name."""

    model: str | None = setting(None, f"Transformer: {WHAT}; or a folder with both networks.")
    tokenizer: str | None = setting(None, f"Tokenizer: {WHAT}.")
    num_heads: int | None = setting(
        None, "Attention heads, for weights that do not tell. Default: 16, as published.", least=1
    )
    num_codes: int | None = setting(
        None, "Codes of the tokenizer, for transformers that do not tell. Default: 1024.", least=1
    )
    weights: str | None = setting(
        None,
        "Which weights of the transformer to take from a file that holds both: averaged or raw.",
        choices=("ema", "raw"),
    )
    labels: str | None = setting(
        None,
        "Class ids, ranges, names, or all: 90,200-205,golden retriever. They take turns.",
    )
    seed: int = setting(42, "Seed of the noise.", least=0)
    dtype: str = setting(
        "float32",
        "Dtype of both networks. On a CPU without bfloat16 units they compute in float32, with weights "
        "rounded to bfloat16.",
        choices=("float32", "bfloat16"),
    )
    device: str | None = setting(None, "cpu, cuda, cuda:1, ... Default: cuda if there is one.")
    threads: int | None = setting(
        None, "On a CPU; the last bits depend on it. Default: all cores.", least=1
    )
    compile: bool = setting(
        False, "torch.compile, with CUDA graphs on a GPU: slow to start, then faster."
    )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of both networks."""
        return getattr(torch, self.dtype)

    def pick_device(self, threads: int | None = None) -> torch.device:
        """Returns the device, made current; `threads` is their number on a CPU if none was given."""
        return launch.pick_device(self.device, self.threads or threads)

    def load(self, device: torch.device) -> "MaskGIT":
        """Loads both networks; errors as `MaskGIT.from_pretrained`. Compiling is left to the caller."""
        from maskgit_pt.pipeline import MaskGIT

        return MaskGIT.from_pretrained(
            self.model, self.tokenizer, device=device, dtype=self.torch_dtype, **self.given
        )

    def load_tokenizer(self, device: torch.device) -> PretrainedMixin:
        """Loads the tokenizer alone; errors as `pretrained.load_any`."""
        return load_any(
            self.tokenizer, TOKENIZERS, device=device, dtype=self.torch_dtype, **self.given
        )

    @property
    def given(self) -> dict[str, int | str | None]:
        """What is said about weights that do not tell it themselves; see `pretrained.load_any`."""
        return {
            "num_heads": self.num_heads,
            "num_codes": self.num_codes,
            "weights": self.weights,
        }

    def fingerprint(self) -> str:
        """Returns a hash of the weights and settings of the networks, and what is said about them."""
        given = [f" {name}={value}" for name, value in self.given.items() if value is not None]
        return weights_fingerprint(*filter(None, (self.model, self.tokenizer))) + "".join(given)

    def class_ids(self, classes: Classes, default: str = "all") -> list[int]:
        """Returns the classes that `labels` names, of those of a model; 0 alone if it has none.

        Raises:
          ValueError: see `Classes.parse`.
        """
        if classes.count == 0:
            classes.ids("0" if self.labels is None else self.labels)  # warns
            return [0]
        try:
            return classes.parse(default if self.labels is None else self.labels)
        except ValueError as error:
            raise ValueError(f"--labels: {error}") from None
