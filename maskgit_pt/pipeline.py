"""`MaskGIT`: both networks as one object that generates, edits and reconstructs."""

import copy
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskgit_pt import editing, samplers
from maskgit_pt.decoding import Decoding
from maskgit_pt.files import check_destination
from maskgit_pt.graphs import to_device
from maskgit_pt.hub import HubMixin, locate
from maskgit_pt.images import as_image_batch
from maskgit_pt.libml.rng import Rng, sample_noise
from maskgit_pt.nets.layers import check_ids
from maskgit_pt.network_pair import NetworkPair, check_resolution
from maskgit_pt.networks import TOKENIZERS, TRANSFORMERS
from maskgit_pt.pretrained import load_any
from maskgit_pt.progress import Progress
from maskgit_pt.result import Result, join_results
from maskgit_pt.settings import whole_number
from maskgit_pt.utils import Bbox
from maskgit_pt.whole_decoding import WholeDecoding


class MaskGIT(NetworkPair, HubMixin):
    """Generates, edits and reconstructs images.

    Google's networks, or those of Besnier & Chen; images are in [0, 1] with either.

    Arguments, attributes and errors are those of `NetworkPair`.
    """

    _whole: WholeDecoding | None = None  # see `compile`

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
        if num_codes not in (None, both.num_codes):
            raise ValueError(
                f"num_codes is {num_codes}, but the tokenizer has {both.num_codes} codes"
            )
        check_resolution(both, model, tokenizer)
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

    def compile(self) -> Self:
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

    def _save_pretrained(
        self, save_directory: Path, metadata: dict[str, str] | None = None
    ) -> None:
        """Writes both networks into the folders `transformer` and `tokenizer`."""
        check_destination(save_directory, "maskgit")
        self.transformer.save_pretrained(save_directory / "transformer", metadata=metadata)
        self.tokenizer.save_pretrained(save_directory / "tokenizer", metadata=metadata)

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
        batch_size = whole_number("batch_size", batch_size, 1)
        first_index = _first_index(first_index, len(labels))
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
        return join_results(results)

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
        first_index = _first_index(first_index, len(labels))
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
        images = as_image_batch(images, self.tokenizer.downsampling)
        batch_size = whole_number("batch_size", batch_size, 1)
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

        Raises:
          TypeError, ValueError: no such codes, see `layers.check_ids`.
        """
        check_ids("tokens", tokens, "B, h, w", 0, self.num_codes - 1)
        with torch.set_grad_enabled(differentiable):
            return self._decode_in_chunks(tokens).cpu()

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

        Raises:
          ValueError: a network in training mode, or known tokens for a sampler that cannot keep them.
        """
        self.check_mode()
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

    @torch.no_grad()
    def prepare_edit(self, image: Any, **what: Any) -> editing.Edit:
        """What `edit` works out of its arguments before anything is generated; see `editing.prepare`."""
        return editing.prepare(self, image, **what)


def _first_index(value: Any, count: int) -> int:
    """The checked index of the first of `count` images."""
    return whole_number("first_index", value, 0, 2**32 - count)
