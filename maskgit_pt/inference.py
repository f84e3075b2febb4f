"""Class-conditional generation and editing (official `inference.py`); images are NCHW in [0, 1]."""

import functools
import os
from collections.abc import Callable

import ml_collections
import torch
from torch import Tensor

from maskgit_pt import editing
from maskgit_pt.configs import maskgit_class_cond_config
from maskgit_pt.images import as_unit_range
from maskgit_pt.libml import jax_random, parallel_decode
from maskgit_pt.libml.rng import Rng
from maskgit_pt.nets.maskgit_transformer import Transformer
from maskgit_pt.nets.vqgan_tokenizer import VQVAE
from maskgit_pt.utils import Bbox


class ImageNet_class_conditional_generator:  # noqa: N801, the official name
    """Both nets and the official procedure around them.

    Args:
      transformer, tokenizer: the nets; any sizes that fit each other.
      config: read are `sample_choice_temperature`, `eval_batch_size`, `seed` and
        `transformer.mask_token_id`. Default: the published configuration.

    Raises:
      ValueError: the nets do not fit each other.
    """

    def __init__(
        self,
        transformer: Transformer,
        tokenizer: VQVAE,
        config: ml_collections.ConfigDict | None = None,
    ):
        self.transformer_model = transformer.eval()
        self.tokenizer_model = tokenizer.eval()
        self.maskgit_cf = config or maskgit_class_cond_config.get_config()
        self.codebook_size = tokenizer.config.vqvae.codebook_size
        self.transformer_codebook_size = transformer.to_config()["vocab_size"]
        self.transformer_block_size = transformer.to_config()["max_position_embeddings"]
        self.transformer_latent_size = int((self.transformer_block_size - 1) ** 0.5)
        self.num_class = self.transformer_codebook_size - self.codebook_size - 1
        self.image_size = self.transformer_latent_size * tokenizer.downsampling
        if self.num_class < 1 or self.transformer_latent_size**2 + 1 != self.transformer_block_size:
            raise ValueError(
                f"a transformer with {self.transformer_codebook_size} ids and "
                f"{self.transformer_block_size} positions does not fit a tokenizer of "
                f"{self.codebook_size} codes; accepted: codes + classes + 1 ids, "
                "side**2 + 1 positions"
            )

    @classmethod
    def from_pretrained(
        cls,
        transformer: str | os.PathLike,
        tokenizer: str | os.PathLike,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> "ImageNet_class_conditional_generator":
        """Loads both nets from folders or hub ids; see `PretrainedMixin.from_pretrained`."""
        return cls(
            Transformer.from_pretrained(transformer, device=device, dtype=dtype),
            VQVAE.from_pretrained(tokenizer, device=device, dtype=dtype),
        )

    @staticmethod
    def checkpoint_canonical_path(maskgit_or_tokenizer: str, image_size: int) -> str:
        """Where the official notebook puts Google's files."""
        return f"./checkpoints/{maskgit_or_tokenizer}_imagenet{image_size}_checkpoint"

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.tokenizer_model.quantizer.codebook.device

    @torch.no_grad()
    def generate_tokens(
        self, input_tokens: Tensor, rng: Rng, start_iter: int = 0, num_iterations: int = 16
    ) -> Tensor:
        """Decodes; int64 [B, N] -> int64 [B, num_iterations, N], the guess of every step."""
        return parallel_decode.decode(
            input_tokens.to(self.device),
            rng,
            # The logits of classes and mask are never sampled: not computed either.
            functools.partial(self.transformer_model, num_logits=self.codebook_size),
            mask_token_id=self.maskgit_cf.transformer.mask_token_id,
            num_iter=num_iterations,
            start_iter=start_iter,
            choice_temperature=self.maskgit_cf.sample_choice_temperature,
        )

    @torch.no_grad()
    def generate_samples(
        self, input_tokens: Tensor, rng: Rng, start_iter: int = 0, num_iterations: int = 16
    ) -> Tensor:
        """Generates images.

        Args:
          input_tokens: int64 [B, N], from `create_input_tokens_normal` or
            `create_latent_mask_and_input_tokens_for_image_editing`.
          rng: a JAX key for JAX's images, or a `torch.Generator`.
          start_iter: 0 to generate; 2 of 12 is the official choice for editing.
          num_iterations: steps of the schedule.

        Returns:
          Images [B, 3, H, W], not clipped.
        """
        tokens = self.generate_tokens(input_tokens, rng, start_iter, num_iterations)
        side = self.transformer_latent_size
        return self.tokenizer_model.decode_from_indices(tokens[:, -1, 1:].view(-1, side, side))

    def create_input_tokens_normal(self, label: int | Tensor) -> Tensor:
        """Everything masked, for one class or one class per sample.

        Args:
          label: class id in 0 ... num_class - 1 (`eval_batch_size` samples of it), or ids [B].

        Returns:
          int64 [B, N], class token first (its id is the class plus the number of codes).

        Raises:
          ValueError: no such class.
        """
        labels = torch.as_tensor(label, device=self.device)
        if labels.ndim == 0:
            labels = labels.expand(self.maskgit_cf.eval_batch_size)
        if labels.numel() and not (0 <= int(labels.min()) <= int(labels.max()) < self.num_class):
            raise ValueError(f"label is {label}; accepted: 0 to {self.num_class - 1}")
        shape = (labels.shape[0], self.transformer_block_size - 1)
        masked = torch.full(shape, self.maskgit_cf.transformer.mask_token_id, device=self.device)
        return torch.cat([labels[:, None].long() + self.codebook_size, masked], dim=1)

    def p_generate_samples(
        self, start_iter: int = 0, num_iterations: int = 16
    ) -> Callable[[Tensor, jax_random.Key], Tensor]:
        """The function that the official code runs under `pmap`: one batch and one key a device.

        The result takes tokens [devices, B, N] (`pmap_input_tokens`) and keys [devices]
        (`jax_random.split`) and returns [devices, B, 3, H, W]: the images that as many JAX devices
        would give, made here one batch after the other.
        """

        def generate(input_tokens: Tensor, rngs: jax_random.Key) -> Tensor:
            images = [
                self.generate_samples(tokens, rng, start_iter, num_iterations)
                for tokens, rng in zip(input_tokens, rngs, strict=True)
            ]
            return torch.stack(images)

        return generate

    def p_edit_samples(
        self, start_iter: int = 2, num_iterations: int = 12
    ) -> Callable[[Tensor, jax_random.Key], Tensor]:
        """`p_generate_samples` with the official settings for editing."""
        return self.p_generate_samples(start_iter, num_iterations)

    def pmap_input_tokens(self, input_tokens: Tensor, device_count: int = 1) -> Tensor:
        """Cuts [B, N] into [device_count, B / device_count, N]."""
        return input_tokens.unflatten(0, (device_count, -1))

    def rng_seed(self) -> int:
        """The configured seed, 42."""
        return self.maskgit_cf.seed

    def eval_batch_size(self) -> int:
        """The configured batch size, 8."""
        return self.maskgit_cf.eval_batch_size

    def _create_input_batch(self, image: Tensor) -> Tensor:
        return (
            as_unit_range(image, "image")
            .to(self.device)[None]
            .repeat(self.maskgit_cf.eval_batch_size, 1, 1, 1)
        )

    @torch.no_grad()
    def create_latent_mask_and_input_tokens_for_image_editing(
        self, image: Tensor, bbox: Bbox, target_label: int
    ) -> tuple[Tensor, Tensor]:
        """Encodes an image and masks the tokens of a box.

        Args:
          image: [3, image_size, image_size], floating-point in [0, 1] or uint8.
          bbox: what to regenerate, in pixels; one more token is masked on each side.
          target_label: class of the new content.

        Returns:
          latent_mask float [B, h, w], 1 where masked, and input tokens int64 [B, N], B being
          `eval_batch_size`.

        Raises:
          ValueError: an image of another size, dtype or range, or no such class.
        """
        if tuple(image.shape) != (3, self.image_size, self.image_size):
            raise ValueError(
                f"image has shape {list(image.shape)}; accepted: {[3] + 2 * [self.image_size]}"
            )
        images = self._create_input_batch(image).to(self.tokenizer_model.quantizer.codebook.dtype)
        image_tokens = self.tokenizer_model.encode_to_indices(images)  # [B, h, w]
        latent_mask = torch.zeros(image_tokens.shape, device=self.device)
        rows = self._tokens(bbox.top, bbox.height)
        latent_mask[:, rows, self._tokens(bbox.left, bbox.width)] = 1
        tokens = self.create_input_tokens_normal(target_label)  # class, then all masked
        tokens[:, 1:] = torch.where(
            latent_mask == 1, tokens[:, 1:].view_as(image_tokens), image_tokens
        ).flatten(1)
        return latent_mask, tokens

    def composite_outputs(self, input: Tensor, latent_mask: Tensor, outputs: Tensor) -> Tensor:
        """Blends the generated images into the input along the blurred mask.

        Args:
          input: the image that was edited, [3, H, W] in [0, 1].
          latent_mask: [B, h, w] as returned above; the first one counts for all.
          outputs: generated images [B, 3, H, W].

        Returns:
          Images [B, 3, H, W].
        """
        mask = self.composite_mask(latent_mask[0]).to(outputs)
        return outputs * mask + (1 - mask) * self._create_input_batch(input).to(outputs)

    def composite_mask(self, latent_mask: Tensor) -> Tensor:
        """Token mask [h, w] -> blending weights float32 [image_size, image_size] in [0, 1]."""
        return editing.composite_mask(latent_mask, self.image_size)

    def _tokens(self, start: int, length: int) -> slice:
        patch = self.tokenizer_model.downsampling
        return editing.box_tokens(start, length, patch, self.transformer_latent_size)
