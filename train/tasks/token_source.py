"""Where the tokens come from that a run learns to fill in, and those that it is tested on."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import ml_collections
import torch
from torch import nn

from maskgit_pt import pipeline
from maskgit_pt.launch import Processes
from maskgit_pt.pretrained import load_any
from train.data import batches as data
from train.data.tokens import tokenizer_fingerprint
from train.tasks import token_metrics


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Where the tokens of a run come from.

    Attributes:
      batches: with masks; from token shards, or of images that are still to be tokenized.
      tokenizer: None if the run has none: then there are no pictures.
      num_codes: K.
      num_tokens: n, of an image.
      data_classes: names of the classes in the data.
      fingerprint: of the tokenizer that made them.
      class_names: of the run's classes, which may be more than those of the data.
    """

    batches: data.Batches
    tokenizer: nn.Module | None
    num_codes: int
    num_tokens: int
    data_classes: list[str]
    fingerprint: str
    class_names: Sequence[str] = ()

    @classmethod
    def open(cls, config: ml_collections.ConfigDict, processes: Processes) -> Self:
        """Opens what the settings name; errors as `Task`."""
        tokenizer = _load_tokenizer(config, processes.device)
        if config.data.images:
            num_tokens = (config.image_size // tokenizer.downsampling) ** 2
            batches = data.open_images(config, processes, num_tokens)
            num_codes, names = len(tokenizer.get_codebook_funct()), batches.collection.class_names
            known = tokenizer_fingerprint(tokenizer)
            return cls(batches, tokenizer, num_codes, num_tokens, names, known)
        batches = data.open_tokens(config, processes)
        shards = batches.shards
        if tokenizer is not None:
            shards.require(tokenizer=tokenizer_fingerprint(tokenizer))
        num_codes, names = shards.codebook_size, shards.class_names
        return cls(batches, tokenizer, num_codes, shards.num_tokens, names, shards.tokenizer)

    def open_held_out(
        self, config: ml_collections.ConfigDict, processes: Processes
    ) -> token_metrics.HeldOut | None:
        """Opens the tokens that are not trained on; None if there are none."""
        like: dict[str, object] = {"num_tokens": self.num_tokens, "codebook_size": self.num_codes}
        like |= {"tokenizer": self.fingerprint, "class_names": self.data_classes}
        batches = data.open_held_out(config, processes, self.batches, like)
        if batches is not None:
            batches.classes = self.batches.classes
        return batches and token_metrics.HeldOut(batches, processes)


def _load_tokenizer(config: ml_collections.ConfigDict, device: torch.device) -> nn.Module | None:
    if bool(config.data.tokens) == bool(config.data.images):
        raise ValueError(
            "config.data: name either tokens (a folder of maskgit-tokenize) or images; found "
            f"tokens={config.data.tokens!r}, images={config.data.images!r}"
        )
    if config.tokenizer:
        tokenizer = load_any(config.tokenizer, pipeline.TOKENIZERS, device=device)
        return tokenizer.requires_grad_(False)
    if config.data.images:
        raise ValueError("config.data.images needs config.tokenizer to make tokens of them")
    return None
