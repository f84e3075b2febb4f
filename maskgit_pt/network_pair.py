"""`NetworkPair`: transformer and tokenizer as one, called on batches of any size, compiled or not."""

import os
from typing import Any, Self

import torch
from torch import Tensor

from maskgit_pt import samplers
from maskgit_pt.decoding import Decoding
from maskgit_pt.imagenet import classes_of
from maskgit_pt.images import as_image_batch
from maskgit_pt.libml import guidance as guidance_lib
from maskgit_pt.libml.rng import Noise, normal
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.nets.maskgit_transformer import Transformer
from maskgit_pt.nets.self_guidance import SelfGuidedTransformer
from maskgit_pt.nets.taming_vqgan import TamingVQGAN
from maskgit_pt.nets.vqgan_tokenizer import VQVAE

_DECODED_PIXELS = 2**20  # in one call of the tokenizer, on a GPU: 16 images of 256 px


class NetworkPair:
    """A transformer and its tokenizer.

    Args:
      transformer, tokenizer: the networks; put into evaluation mode.

    Attributes:
      classes: how many there are, and what they are called.
      num_codes, num_tokens, num_classes, side, image_size: codes; tokens of an image; classes; tokens and
        pixels along one side.

    Raises:
      ValueError: they do not fit each other.
    """

    def __init__(
        self, transformer: Transformer | BesnierTransformer, tokenizer: VQVAE | TamingVQGAN
    ):
        self.transformer = transformer.eval()
        self.tokenizer = tokenizer.eval()
        self.num_codes = len(tokenizer.get_codebook_funct())
        self.num_tokens = transformer.num_tokens
        self.num_classes = transformer.num_classes_with(self.num_codes)
        self.side = int(self.num_tokens**0.5)
        self.image_size = self.side * tokenizer.downsampling
        without_classes = getattr(transformer, "num_classes", None) == 0
        if (self.num_classes < 1 and not without_classes) or self.side**2 != self.num_tokens:
            raise ValueError(
                f"a transformer for {self.num_tokens} tokens with {transformer.to_config()} does not fit "
                f"a tokenizer of {self.num_codes} codes; accepted: codes + classes + 1 ids, "
                "side**2 tokens"
            )
        self.classes = classes_of(self.num_classes, transformer.class_names)
        self._code_logits = transformer.code_logits
        self._decode = tokenizer.decode_from_indices
        self._encode_to_indices = tokenizer.encode_to_indices
        self._static = False
        self._decoded_rows = 0  # of the tokenizer's compiled calls that were not full

    def decoding(self, sampler: str | samplers.Sampler | None = None, **settings: Any) -> Decoding:
        """Returns checked settings; the arguments are those of `Decoding.create`.

        Raises:
          ValueError: an unknown or wrong setting; more steps than tokens.
        """
        options = Decoding.create(sampler, **settings)
        sampler = options.sampler
        if sampler.steps > self.num_tokens and not sampler.more_steps_than_tokens:
            raise ValueError(
                f"steps is {sampler.steps}; accepted: 1 to {self.num_tokens}, the number of tokens"
            )
        weights = options.guidance_weights(self.num_tokens)  # complains about an unknown schedule
        if any(weights) and not getattr(self.transformer, "takes_guidance", True):
            raise ValueError(
                f"guidance is {options.guidance}; accepted with a {type(self.transformer).__name__}, "
                "which was trained without dropped labels: 0"
            )
        noise = getattr(sampler, "embedding_noise", 0.0)
        if noise and not getattr(self.transformer, "takes_embedding_noise", False):
            raise ValueError(
                f"embedding_noise is {noise}; accepted with a {type(self.transformer).__name__}: 0"
            )
        self_guided = any(_self_guidance(sampler))
        if self_guided and not isinstance(self.transformer, SelfGuidedTransformer):
            raise ValueError(
                f"self_guidance is {sampler.self_guidance}; accepted with a "
                f"{type(self.transformer).__name__}, which has no module for it: 0"
            )
        if self_guided and any(weights):
            raise ValueError("guidance and self_guidance exclude each other: one of them must be 0")
        return options

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.tokenizer.get_codebook_funct().device

    def check_mode(self) -> None:
        """Raises ValueError if a network was put into training mode, where dropout changes what it gives."""
        for name in ("transformer", "tokenizer"):
            if getattr(self, name).training:
                raise ValueError(
                    f"the {name} is in training mode; accepted: evaluation mode, after {name}.eval()"
                )

    def arrange(self) -> Self:
        """Gives half-precision networks the form that is fastest on their device; returns itself.

        On a GPU the tokenizer's weights go into channels-last order. A CPU without bfloat16 units (x86 needs
        AVX-512) emulates them at a tenth of its float32 speed: there the arithmetic is in float32, on
        weights rounded to half precision.
        """
        if self.tokenizer.get_codebook_funct().dtype in (torch.bfloat16, torch.float16):
            if self.device.type == "cuda":
                self.tokenizer.to(memory_format=torch.channels_last)
            elif self.device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                self.transformer.float()
                self.tokenizer.float()
        return self

    def _compile(self, mode: str) -> Self:
        options = {"mode": mode, "dynamic": False}
        self._code_logits = torch.compile(self.transformer.code_logits, **options)
        self._decode = torch.compile(self.tokenizer.decode_from_indices, **options)
        # Only on a GPU do norms and activations leave the convolutions' memory order.
        if self.device.type == "cuda":
            self._encode_to_indices = torch.compile(self.tokenizer.encode_to_indices, **options)
        self._static = True
        return self

    def finish(self, guess: Tensor, clip: bool = True) -> tuple[Tensor, Tensor]:
        """Tokens [B, h*w] as a sampler leaves them -> codes [B, h, w] and images [B, 3, H, W]."""
        guess = guess.clamp(0, self.num_codes - 1)  # Besnier's network can draw its mask id
        guess = guess.unflatten(1, (self.side, self.side))
        return guess, self._decode_in_chunks(guess, clip)

    def _predict(
        self, labels: Tensor, options: Decoding, noise: Noise, tokens: Tensor, step: int
    ) -> Tensor:
        """Logits [B, n, K] of one step, guided, scaled and divided by the temperature."""
        weight = options.guidance_weights(self.num_tokens)[step]
        drawn = self._drawn_inputs(options, noise, tokens, step)
        # On a CPU one sample at a time: as fast, and a sample's last bits do not hang on its neighbours.
        size = 1 if self.device.type == "cpu" else len(tokens)
        logits = [
            self._guided(
                tokens[i : i + size],
                labels[i : i + size],
                weight,
                {name: value[i : i + size] for name, value in drawn.items()},
            )
            for i in range(0, len(tokens), size)
        ]
        logits = torch.cat(logits) if len(logits) > 1 else logits[0]
        scale, temperature = options.logit_scales()[step], options.softmax_temperatures()[step]
        logits = logits if scale == 1.0 else logits * scale
        return logits if temperature == 1.0 else logits / temperature

    def _drawn_inputs(
        self, options: Decoding, noise: Noise, tokens: Tensor, step: int
    ) -> dict[str, Tensor]:
        """What a network takes beside tokens and labels in a step, one row a sample."""
        drawn = {}
        if getattr(self.transformer, "latent_features", 0):
            drawn["latent"] = noise.uniform((len(tokens), 1), self.device)[:, 0]
        if scale := _self_guidance(options.sampler)[step]:
            drawn["self_guidance"] = torch.full((len(tokens),), scale, device=self.device)
        if level := getattr(options.sampler, "embedding_noise", 0.0):
            shape = (*tokens.shape, self.transformer.to_config()["hidden_size"])
            drawn["embedding_noise"] = normal(noise, shape, self.device)
            drawn["noise_level"] = torch.full((len(tokens),), level, device=self.device)
        return drawn

    def _guided(
        self, tokens: Tensor, labels: Tensor, weight: float, drawn: dict[str, Tensor]
    ) -> Tensor:
        if self._static and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        if weight == 0:
            return self._code_logits(tokens, labels, self.num_codes, **drawn)
        both = torch.cat([tokens, tokens]), torch.cat([labels, torch.full_like(labels, -1)])
        drawn = {name: torch.cat([value, value]) for name, value in drawn.items()}
        logits = self._code_logits(*both, self.num_codes, **drawn)
        return guidance_lib.guide(*logits.chunk(2), weight)

    def _decode_in_chunks(self, tokens: Tensor, clip: bool = True) -> Tensor:
        """int64 [B, h, w] -> float32 [B, 3, H, W], in [0, 1] if clipped, a few images at a time."""
        pixels = tokens[0].numel() * self.tokenizer.downsampling**2 if len(tokens) else 1
        size = 1 if self.device.type == "cpu" else max(1, _DECODED_PIXELS // pixels)
        images = []
        for chunk in tokens.to(self.device).split(size):
            if self._static and self.device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            image = self._decode(self._filled(chunk, size)).float()[: len(chunk)]
            # A copy in any case: CUDA graphs use their memory again.
            images.append(image.clamp(0, 1) if clip else image.clone())
        return torch.cat(images)

    def _filled(self, tokens: Tensor, most: int) -> Tensor:
        """Tokens [B, h, w], for compiled code filled up to a number of rows that it has met, if possible."""
        if not self._static:
            return tokens
        # Powers of two, and never fewer than before: a handful of shapes, whatever the sizes of batches.
        rows = min(most, 1 << (len(tokens) - 1).bit_length())
        self._decoded_rows = rows = max(rows, self._decoded_rows)
        return torch.cat([tokens, tokens[-1:].expand(rows - len(tokens), -1, -1)])

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] or uint8 -> int64 [B, h, w], on the device of the weights."""
        images = as_image_batch(images, self.tokenizer.downsampling).to(
            self.tokenizer.get_codebook_funct()
        )
        return self._encode_to_indices(images)


def _self_guidance(sampler: samplers.Sampler) -> list[float]:
    """The scale of self-guidance in every step; 0 for samplers without it."""
    self_guided = isinstance(sampler, samplers.SelfGuidanceSampler)
    return sampler.scales() if self_guided else [0.0] * sampler.steps


def check_resolution(
    both: NetworkPair, model: str | os.PathLike, tokenizer: str | os.PathLike
) -> None:
    """Tokenizers of several resolutions have the same shapes; only configurations may tell."""
    size = both.image_size
    trained = both.transformer.image_size
    if trained is not None and trained != size:
        raise ValueError(
            f"{model}: its configuration says that it was trained on images of {trained} px; with the "
            f"tokenizer {tokenizer} it would make {size} px; give the tokenizer of its tokens"
        )
    pixels = both.tokenizer.to_config().get("vqvae", {}).get("pixels")
    if pixels is not None and size in (256, 512) and pixels != size:
        raise ValueError(
            f"{tokenizer}: its configuration says that the tokenizer is for {pixels} px, while the model "
            f"makes images of {size} px; give the one for {size} px"
        )
