"""`MaskGIT`: both networks as one object that generates, edits and reconstructs."""

import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskgit_pt import editing, samplers
from maskgit_pt.decoding import Decoding
from maskgit_pt.files import check_destination
from maskgit_pt.graphs import to_device
from maskgit_pt.hub import HubMixin, locate
from maskgit_pt.imagenet import classes_of
from maskgit_pt.images import as_unit_range
from maskgit_pt.libml import guidance as guidance_lib
from maskgit_pt.libml.rng import Noise, Rng, normal, sample_noise
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.nets.maskgit_transformer import Transformer
from maskgit_pt.nets.self_guidance import SelfGuidedTransformer
from maskgit_pt.nets.taming_vqgan import TamingVQGAN
from maskgit_pt.nets.vqgan_tokenizer import VQVAE
from maskgit_pt.networks import TOKENIZERS, TRANSFORMERS
from maskgit_pt.pretrained import load_any
from maskgit_pt.progress import Progress
from maskgit_pt.utils import Bbox
from maskgit_pt.whole_decoding import WholeDecoding

_DECODED_PIXELS = 2**20  # in one call of the tokenizer, on a GPU: 16 images of 256 px


@dataclasses.dataclass
class Result:
    """Pictures and what they were made of, on the CPU.

    Attributes:
      images: float32 [B, 3, H, W] in [0, 1].
      tokens: int64 [B, h, w].
      masks: bool [B, S, h, w], what was still unknown after each step; None unless asked for.
      guesses: int64 [B, S, h, w], the whole guess of each step; None unless asked for.
    """

    images: Tensor
    tokens: Tensor
    masks: Tensor | None = None
    guesses: Tensor | None = None
    _copied: torch.cuda.Event | None = None

    def wait(self) -> "Result":
        """Waits until a GPU has copied everything; only what `MaskGIT.sample` returns needs it."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return self

    def first(self, count: int) -> "Result":
        """Returns the first `count` images alone."""
        parts = (self.images, self.tokens, self.masks, self.guesses)
        return Result(*(None if part is None else part[:count] for part in parts), self._copied)


class MaskGIT(HubMixin):
    """Generates, edits and reconstructs images.

    Google's networks, or those of Besnier & Chen; images are in [0, 1] with either.

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
        self._whole: WholeDecoding | None = None  # see `compile`
        self._decoded_rows = 0  # of the tokenizer's compiled calls that were not full

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike,
        tokenizer: str | os.PathLike | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        num_heads: int | None = None,
        num_codes: int | None = None,
        weights: str | None = None,
        **hub: Any,
    ) -> "MaskGIT":
        """Loads both networks.

        Args:
          model: the transformer: a folder, a checkpoint file of Google's or of any format that `convert`
            reads, or a Hugging Face hub id; or a folder from `save_pretrained`, which holds both.
          tokenizer: likewise; not needed where the transformer brings its own (MAGE).
          device: where to.
          dtype: default: as stored. bfloat16 on a CPU without units for it: see `arrange`.
          num_heads, num_codes, weights: of the transformer, for files that do not tell; see
            `pretrained.load_any`.
          **hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
          FileNotFoundError, ValueError: see `pretrained.load_any`; or the two do not fit.
        """
        given = {"num_heads": num_heads, "num_codes": num_codes, "weights": weights}
        options = {"device": device, "dtype": dtype, **hub}
        if tokenizer is None:
            folder = locate(model, **hub)
            if not (folder / "transformer").is_dir() or not (folder / "tokenizer").is_dir():
                return cls._with_own_tokenizer(folder, **given, device=device, dtype=dtype)
            model, tokenizer = folder / "transformer", folder / "tokenizer"
        transformer = load_any(model, TRANSFORMERS, **given, **options)
        both = cls(transformer, load_any(tokenizer, TOKENIZERS, **options))
        _check_resolution(both, model, tokenizer)
        return both.arrange()

    @classmethod
    def _with_own_tokenizer(cls, path: Path, **options: Any) -> "MaskGIT":
        """From weights of a transformer that hold its tokenizer as well."""
        transformer = None
        if path.is_file() or any(file.is_file() for file in path.iterdir()):
            transformer = load_any(path, TRANSFORMERS, **options)
        if getattr(transformer, "vqgan", None) is None:
            raise FileNotFoundError(
                f"{path}: holds no folders transformer and tokenizer; name the tokenizer too"
            )
        return cls(transformer, transformer.vqgan).arrange()

    def arrange(self) -> "MaskGIT":
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

    def _save_pretrained(
        self, save_directory: Path, metadata: dict[str, str] | None = None
    ) -> None:
        """Writes both networks into the folders `transformer` and `tokenizer`."""
        check_destination(save_directory, "maskgit")
        self.transformer.save_pretrained(save_directory / "transformer", metadata=metadata)
        self.tokenizer.save_pretrained(save_directory / "tokenizer", metadata=metadata)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.tokenizer.get_codebook_funct().device

    def compile(self) -> "MaskGIT":
        """Compiles both networks with `torch.compile`, with CUDA graphs on a GPU; returns itself.

        The first batch of each size then takes a minute or more. On a GPU it is decoded in both ways that
        there are, a CUDA graph for each call of a network and one for the whole decoding, and the faster
        way stays.
        """
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            self._whole = WholeDecoding(
                copy.copy(self)._compile("default"), self._compile("reduce-overhead")
            )
        else:
            self._compile("default")
        return self

    def _compile(self, mode: str) -> "MaskGIT":
        options = {"mode": mode, "dynamic": False}
        self._code_logits = torch.compile(self.transformer.code_logits, **options)
        self._decode = torch.compile(self.tokenizer.decode_from_indices, **options)
        if (
            self.device.type == "cuda"
        ):  # there norms and activations leave the convolutions' memory order
            self._encode_to_indices = torch.compile(self.tokenizer.encode_to_indices, **options)
        self._static = True
        return self

    def generate(
        self,
        labels: int | str | Sequence[int | str] | Tensor | None = None,
        *,
        seed: int = 42,
        rng: Rng = None,
        batch_size: int = 8,
        first_index: int = 0,
        return_steps: bool = False,
        progress: bool = False,
        differentiable: bool = False,
        **decoding: Any,
    ) -> Result:
        """Generates one image a label.

        Args:
          labels: class ids in 0 ... num_classes - 1, or their names, see `classes.Classes.ids`. A model
            without classes makes one image without them, and B images for B zeros.
          seed: with `first_index` it determines every image: image i of seed s is the same in any batch.
          rng: other noise: a JAX key (all labels in one batch: the images of JAX for this key and batch)
            or a `torch.Generator`.
          batch_size: images at a time.
          first_index: index of the first image; raise it to go on with other images of the same seed.
          return_steps: also return masks and guesses of every step.
          progress: show a bar.
          differentiable: keep the graph of the images, for gradients of the decoder; tokens have none.
          **decoding: `sampler` (a name or a `samplers.Sampler`; default "official"), the settings of that
            sampler (`steps`, `schedule`, `choice_temperature`, ...), and the fields of `Decoding`.

        Raises:
          ValueError: no such class, or a setting out of range.
        """
        labels = self.classes.ids(labels)
        _check_batch_size(batch_size)
        options = self.decoding(**decoding)
        batches = [labels] if rng is not None else labels.split(batch_size)
        size = batch_size if self._static else min(batch_size, len(labels))
        results = []
        by_step = self.device.type == "cpu" and self._whole is None
        with Progress(len(labels), options.sampler.steps, by_step=by_step, shown=progress) as bar:
            for number, batch in enumerate(batches):
                steps = {
                    "return_steps": return_steps, "on_step": bar.on_step, "differentiable": differentiable,
                }  # fmt: skip
                if rng is not None:
                    result = self.sample(batch, rng, options, **steps)
                else:
                    first = first_index + number * batch_size
                    indices = range(first, first + len(batch))
                    result = self.sample_indices(batch, indices, seed, options, size, **steps)
                results.append(result.wait())
                bar.finish(len(batch))
        return _join(results)

    def edit(
        self,
        image: Image.Image | np.ndarray | Tensor | str | os.PathLike,
        labels: int | str | Sequence[int | str] | Tensor | None = None,
        *,
        box: Bbox | Sequence[int] | None = None,
        mask: Image.Image | np.ndarray | Tensor | str | os.PathLike | None = None,
        extend: Sequence[int] | None = None,
        seed: int = 42,
        rng: Rng = None,
        first_index: int = 0,
        return_steps: bool = False,
        **decoding: Any,
    ) -> Result:
        """Regenerates part of a picture, once a label.

        The largest square around that part is what the model sees, at its own size; the result is blended
        into the picture by the official compositing. Outside the blend the picture stays as it is.

        Args:
          image: a picture of any size, see `editing.as_picture`: a path, a Pillow image, an array uint8
            [H, W, 3], or a tensor [3, H, W] (floating-point in [0, 1], or uint8).
          labels: class of the new content; as in `generate`.
          box: top, left, height, width in pixels: what to regenerate; or
          mask: of the picture's size, white (or True) where to regenerate, see `editing.as_mask`: a path, a
            Pillow image, an array or a tensor [H, W]; or
          extend: pixels to add at the top, right, bottom and left, to be filled in (outpainting).
          seed, rng, first_index, return_steps, decoding: as in `generate`; the default is official, 12
            steps from step 2 on.

        Returns:
          images of the picture's size (extended, if asked for); tokens of the square.

        Raises:
          ValueError: not one of box, mask and extend; a box outside the picture; a mask of another size.
        """
        edit = self.prepare_edit(image, box=box, mask=mask, extend=extend)
        labels = self.classes.ids(labels)
        options = self.decoding(**editing.with_defaults(decoding))
        noise = rng or sample_noise(seed, range(first_index, first_index + len(labels)))
        tokens = edit.tokens.expand(len(labels), -1)
        steps = {"return_steps": return_steps}
        result = self.sample(labels, noise, options, tokens=tokens, clip=False, **steps)
        result.wait().images = torch.stack([edit.finish(generated) for generated in result.images])
        return result

    def reconstruct(
        self, images: Tensor, batch_size: int = 8, *, differentiable: bool = False
    ) -> Result:
        """Through the tokenizer and back.

        Args:
          images: [B, 3, H, W], floating-point in [0, 1] or uint8, sides a multiple of the tokenizer's 16
            pixels.
          batch_size: at a time.
          differentiable: keep the graph of the result's images: gradients reach the decoder, and past the
            quantizer ("straight through") the encoder and the given images. A Gumbel quantizer lets none
            past.

        Raises:
          ValueError: another shape, dtype or range.
        """
        images = as_unit_range(images)
        _check_batch_size(batch_size)
        patch = self.tokenizer.downsampling
        if images.ndim != 4 or images.shape[1] != 3 or any(s % patch for s in images.shape[2:]):
            raise ValueError(
                f"images have shape {list(images.shape)}; accepted: [B, 3, H, W], H and W multiples of "
                f"{patch}"
            )
        if differentiable:
            parts = [self._straight_through(batch) for batch in images.split(batch_size)]
            rebuilt, tokens = (torch.cat(part) for part in zip(*parts, strict=True))
            return Result(rebuilt.float().clamp(0, 1).cpu(), tokens.cpu())
        with torch.no_grad():
            tokens = torch.cat([self.encode(batch) for batch in images.split(batch_size)])
        return Result(self.tokens_to_images(tokens), tokens.cpu())

    def _straight_through(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> reconstructions, with the gradient of the encoder, and tokens [B, h, w]."""
        codes, found = self.tokenizer.encode(images.to(self.tokenizer.get_codebook_funct()))
        raw = found.get("raw", codes)
        return self.tokenizer.decode(raw + (codes - raw).detach()), found["encoding_indices"]

    def tokens_to_images(self, tokens: Tensor, *, differentiable: bool = False) -> Tensor:
        """Decodes tokens.

        Args:
          tokens: int64 [B, h, w].
          differentiable: keep the graph, for gradients of the decoder and the codebook.

        Returns:
          Images float32 [B, 3, H, W] in [0, 1], on the CPU.
        """
        with torch.set_grad_enabled(differentiable):
            return self._decode_in_chunks(tokens).cpu()

    def decoding(self, sampler: str | samplers.Sampler = "official", **settings: Any) -> Decoding:
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

    def sample_indices(
        self,
        labels: Tensor,
        indices: Sequence[int],
        seed: int,
        options: Decoding,
        size: int,
        **others: Any,
    ) -> Result:
        """One batch of numbered images, each with the noise of its index; see `sample`.

        Args:
          labels: int64 [B].
          indices: B numbers; image i of a seed is the same in any batch.
          seed: of the noise.
          options: from `decoding`.
          size: of a whole batch, B or more. On a GPU a smaller one is filled up to it, so that compiled code
            meets one shape, and rounding is the same.
          **others: further arguments of `sample`, with B rows.
        """
        count = len(labels)
        missing = max(0, size - count) if self.device.type != "cpu" else 0
        indices = [*indices, *[indices[-1]] * missing]
        labels = torch.cat([labels, labels[-1:].expand(missing)])
        if others.get("tokens") is not None:
            tokens = others["tokens"]
            others["tokens"] = torch.cat([tokens, tokens[-1:].expand(missing, -1)])
        result = self.sample(labels, sample_noise(seed, indices), options, **others)
        return result.first(count) if missing else result

    @torch.inference_mode(False)  # a caller's inference mode would make networks compile once more
    @torch.no_grad()
    def sample(
        self,
        labels: Tensor,
        rng: Rng,
        options: Decoding,
        *,
        tokens: Tensor | None = None,
        return_steps: bool = False,
        clip: bool = True,
        on_step: Callable[[samplers.State], None] | None = None,
        differentiable: bool = False,
    ) -> Result:
        """One batch; see `generate`.

        Args:
          labels: int64 [B].
          rng: the noise of this batch.
          options: from `decoding`.
          tokens: int64 [B, h*w] to start from, -1 where unknown; default: all unknown.
          return_steps: as in `generate`.
          clip: images to [0, 1]; False for `editing.Edit.finish`, which clips after blending.
          on_step: called with the sampler's state after every step.
          differentiable: as in `generate`.

        Returns:
          As `generate`; on a GPU still being copied: call `wait()` before reading.
        """
        if tokens is None:
            tokens = torch.full((len(labels), self.num_tokens), samplers.base.MASK)
        elif not options.sampler.can_edit:
            raise ValueError(f"the sampler {options.sampler.name!r} cannot keep known tokens")
        whole = self._whole is not None and not (return_steps or on_step or differentiable)
        if whole and self._whole.takes(rng, options):
            guess, images = self._whole.decode(labels, tokens, rng, options, clip)
            return self._to_host(Result(images, guess))
        labels = to_device(labels, self.device).clone()
        noise = options.noise(rng)
        predict = functools.partial(self._predict, labels, options, noise)
        guess = to_device(tokens, self.device)
        masks, guesses = [], []
        run = options.sampler.run(
            tokens, predict, noise, options.start_step, self.num_codes, self.device
        )
        for state in run:
            guess = state.guess
            if on_step is not None:
                on_step(state)
            if return_steps:
                masks.append(state.unknown)
                guesses.append(guess)
        grid = (self.side, self.side)
        with torch.set_grad_enabled(differentiable):
            guess, images = self.finish(guess, clip)
        result = Result(images, guess)
        if return_steps:
            masks, guesses = masks or [tokens < 0], guesses or [guess.flatten(1)]  # none unknown
            # The official loop leaves one token masked in its last state, yet its last guess is whole.
            masks[-1:] = [torch.zeros_like(mask) for mask in masks[-1:]]
            result.masks = torch.stack(masks, 1).unflatten(2, grid)
            guesses = torch.stack(guesses, 1).unflatten(2, grid)
            result.guesses = guesses.clamp(0, self.num_codes - 1)
        return self._to_host(result)

    def finish(self, guess: Tensor, clip: bool = True) -> tuple[Tensor, Tensor]:
        """Tokens [B, h*w] as a sampler leaves them -> codes [B, h, w] and images [B, 3, H, W]."""
        guess = guess.clamp(0, self.num_codes - 1)  # Besnier's network can draw its mask id
        guess = guess.unflatten(1, (self.side, self.side))
        return guess, self._decode_in_chunks(guess, clip)

    def _to_host(self, result: Result) -> Result:
        """Starts copying; a GPU meanwhile goes on with the next batch."""
        for name in ("images", "tokens", "masks", "guesses"):
            value = getattr(result, name)
            if value is not None:
                setattr(result, name, value.to("cpu", non_blocking=True))
        if self.device.type == "cuda":
            result._copied = torch.cuda.Event()
            # The stream of the model's device, which need not be the current one.
            result._copied.record(torch.cuda.current_stream(self.device))
        return result

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
        images = as_unit_range(images).to(self.tokenizer.get_codebook_funct())
        return self._encode_to_indices(images)

    @torch.no_grad()
    def prepare_edit(self, image: Any, **what: Any) -> editing.Edit:
        """What `edit` works out of its arguments before anything is generated; see `editing.prepare`."""
        return editing.prepare(self, image, **what)


def _self_guidance(sampler: samplers.Sampler) -> list[float]:
    """The scale of self-guidance in every step; 0 for samplers without it."""
    self_guided = isinstance(sampler, samplers.SelfGuidanceSampler)
    return sampler.scales() if self_guided else [0.0] * sampler.steps


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; accepted: a whole number, 1 or more")


def _check_resolution(
    both: MaskGIT, model: str | os.PathLike, tokenizer: str | os.PathLike
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


def _join(results: list[Result]) -> Result:
    def join(name: str) -> Tensor | None:
        parts = [getattr(result, name) for result in results]
        return None if parts[0] is None else torch.cat(parts)

    return Result(*(join(name) for name in ("images", "tokens", "masks", "guesses")))
