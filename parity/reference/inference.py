"""The class-conditional generator (official inference.py): generation and editing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageFilter

from parity.reference import parallel_decode


class ImageNet_class_conditional_generator:
    """Generates and edits images. Made by `parity.jax_code.JaxCode.generator`, which sets:

    `transformer_model`, `tokenizer_model` (Flax modules), `transformer_variables`,
    `tokenizer_variables`, `maskgit_cf` (ml_collections config), `transformer_latent_size` (h),
    `transformer_block_size` (N = 1 + h * w). The official constructor reads checkpoints instead.
    """

    transformer_model: Any
    tokenizer_model: Any
    transformer_variables: Any
    tokenizer_variables: Any
    maskgit_cf: Any
    transformer_latent_size: int
    transformer_block_size: int

    def generate_samples(
        self, input_tokens: jax.Array, rng: jax.Array, start_iter: int = 0, num_iterations: int = 16
    ) -> jax.Array:
        """Tokens [B, N] -> images [B, H, W, 3], not clipped."""
        codes = self.maskgit_cf.vqvae.codebook_size

        def tokens_to_logits(tokens: jax.Array) -> jax.Array:
            variables = self.transformer_variables
            return self.transformer_model.apply(variables, tokens, deterministic=True)[..., :codes]

        history = parallel_decode.decode(
            input_tokens,
            rng,
            tokens_to_logits,
            mask_token_id=self.maskgit_cf.transformer.mask_token_id,
            num_iter=num_iterations,
            start_iter=start_iter,
            choice_temperature=self.maskgit_cf.sample_choice_temperature,
        )
        side = self.transformer_latent_size
        return self.tokenizer_model.apply(
            self.tokenizer_variables,
            history[:, -1, 1:].reshape((-1, side, side)),
            method=self.tokenizer_model.decode_from_indices,
        )

    def _prepend_label(self, label: int, tokens: Any) -> jax.Array:
        """Class c is token codebook_size + c, in front of tokens [B, h*w]."""
        first = jnp.full((len(tokens), 1), self.maskgit_cf.vqvae.codebook_size + label)
        return jnp.concatenate([first, jnp.asarray(tokens)], axis=-1).astype(jnp.int32)

    def create_input_tokens_normal(self, label: int) -> jax.Array:
        """The class and nothing but masks: int32 [B, N]."""
        shape = (self.maskgit_cf.eval_batch_size, self.transformer_block_size - 1)
        return self._prepend_label(label, np.full(shape, self.maskgit_cf.transformer.mask_token_id))

    def rng_seed(self) -> int:
        """The configured seed."""
        return self.maskgit_cf.seed

    def eval_batch_size(self) -> int:
        """The configured batch size."""
        return self.maskgit_cf.eval_batch_size

    def _create_input_batch(self, image: np.ndarray) -> np.ndarray:
        return np.repeat(image[None], self.maskgit_cf.eval_batch_size, axis=0).astype(np.float32)

    def create_latent_mask_and_input_tokens_for_image_editing(
        self, image: np.ndarray, bbox: Any, target_label: int
    ) -> tuple[np.ndarray, jax.Array]:
        """Masks the tokens that the pixel box (top, left, height, width) touches, and a margin.

        Returns the mask [B, h, w] (1: to be made anew) and the tokens [B, N].
        """
        tokens = self.tokenizer_model.apply(
            self.tokenizer_variables,
            {"image": self._create_input_batch(image)},
            method=self.tokenizer_model.encode_to_indices,
        )
        side = self.maskgit_cf.image_size // 16

        def span(start: int, length: int) -> slice:
            return slice(max(0, start // 16 - 1), min(side, start // 16 + length // 16 + 1))

        mask = np.zeros((self.maskgit_cf.eval_batch_size, side, side))
        mask[:, span(bbox.top, bbox.height), span(bbox.left, bbox.width)] = 1
        masked = np.where(mask == 1, self.maskgit_cf.transformer.mask_token_id, tokens)
        return mask, self._prepend_label(target_label, masked.reshape((len(masked), -1)))

    def composite_outputs(
        self, input: np.ndarray, latent_mask: np.ndarray, outputs: Any
    ) -> jax.Array:
        """Blends outputs [B, H, W, 3] into the image [H, W, 3] along the blurred mask."""
        size = self.maskgit_cf.image_size
        blend = Image.fromarray(np.uint8(latent_mask[0] * 255.0)).resize((size, size))
        blend = blend.filter(ImageFilter.GaussianBlur(radius=size // 16 - 1))
        weight = np.float32(blend)[:, :, None] / 255.0
        return outputs * weight + (1 - weight) * self._create_input_batch(input)
