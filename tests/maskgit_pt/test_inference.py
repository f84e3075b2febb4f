"""The class-conditional generator: editing helpers as recorded, generation end to end."""

import numpy as np
import pytest
import torch
from recorded import golden, load_tiny

from maskgit_pt import VQVAE, Transformer
from maskgit_pt.configs import maskgit_class_cond_config, vqgan_config
from maskgit_pt.inference import ImageNet_class_conditional_generator as Generator
from maskgit_pt.libml import jax_random
from maskgit_pt.utils import Bbox

CASES = [name[12:] for name in golden("inference") if name.startswith("latent_mask_")]


class _Fixed(VQVAE):
    """A tokenizer that gives token i the index i modulo 1024, as when the vectors were recorded."""

    def encode_to_indices(self, images):
        side = images.shape[-1] // 16
        return torch.arange(side * side).view(1, side, side).expand(len(images), -1, -1) % 1024


def full_size_generator(image_size: int) -> Generator:
    """The published sizes, with one narrow layer: editing depends on none of the weights."""
    config = maskgit_class_cond_config.get_config()
    config.eval_batch_size = 3
    transformer = Transformer(2025, 8, 1, 1, 8, max_position_embeddings=(image_size // 16) ** 2 + 1)
    tokenizer_config = vqgan_config.get_config()
    tokenizer_config.vqvae.filters = 32
    return Generator(transformer, _Fixed(tokenizer_config), config)


@pytest.mark.parametrize("case", CASES)
def test_recorded_editing(case):
    recorded = golden("inference")
    image_size, top, left, height, width = map(int, case.split("_"))
    generator = full_size_generator(image_size)
    image = torch.zeros(3, image_size, image_size)
    expected_tokens = torch.from_numpy(recorded[f"input_tokens_{case}"]).long()
    label = int(expected_tokens[0]) - 1024
    latent_mask, tokens = generator.create_latent_mask_and_input_tokens_for_image_editing(
        image, Bbox(top, left, height, width), label
    )
    side = image_size // 16
    expected_mask = np.unpackbits(recorded[f"latent_mask_{case}"])[: side * side]
    assert (latent_mask == torch.from_numpy(expected_mask).view(side, side)).all()
    assert torch.equal(tokens == -1, (expected_tokens == -1).expand(3, -1))
    assert (tokens[:, 0] == expected_tokens[0]).all()
    blend = generator.composite_mask(latent_mask[0])
    expected = recorded[f"one_minus_blend_{case}"]
    np.testing.assert_allclose(1 - blend[::8, ::8], expected, atol=1e-6)


def test_recorded_input_tokens():
    recorded = golden("inference")["input_tokens_normal_label90"]
    ours = full_size_generator(256).create_input_tokens_normal(90)
    np.testing.assert_array_equal(ours, recorded)


@pytest.fixture
def tiny_generator(tiny_config):
    return Generator(load_tiny("transformer"), load_tiny("tokenizer"), tiny_config)


def test_generation(tiny_generator):
    tokens = tiny_generator.create_input_tokens_normal(3)
    key = jax_random.PRNGKey(0)
    images = tiny_generator.generate_samples(tokens, key, num_iterations=8)
    assert images.shape == (8, 3, 16, 16)
    again = tiny_generator.generate_samples(tokens, key, num_iterations=8)
    assert torch.equal(images, again)


def test_pmap_interface(tiny_generator):
    """Two virtual devices give what two single batches with their keys give."""
    tokens = tiny_generator.pmap_input_tokens(tiny_generator.create_input_tokens_normal(3), 2)
    keys = jax_random.split(jax_random.PRNGKey(0), 2)
    images = tiny_generator.p_generate_samples(num_iterations=4)(tokens, keys)
    assert images.shape == (2, 4, 3, 16, 16)
    alone = tiny_generator.generate_samples(tokens[1], keys[1], num_iterations=4)
    assert torch.equal(images[1], alone)


def test_editing_keeps_what_is_outside(tiny_generator):
    image = torch.rand(3, 16, 16)
    latent_mask, tokens = tiny_generator.create_latent_mask_and_input_tokens_for_image_editing(
        image, Bbox(0, 0, 4, 4), 5
    )
    assert latent_mask[0].sum() == 4  # one token and its margin of one, cut at the border
    out = tiny_generator.generate_tokens(tokens, jax_random.PRNGKey(0), 2, 12)
    assert torch.equal(out[:, -1][tokens != -1], tokens[tokens != -1])
    outputs = torch.rand(8, 3, 16, 16)
    blended = tiny_generator.composite_outputs(image, torch.zeros_like(latent_mask), outputs)
    assert torch.equal(blended, image.expand(8, -1, -1, -1))


def test_labels_per_sample(tiny_generator):
    tokens = tiny_generator.create_input_tokens_normal(torch.tensor([0, 9]))
    assert tokens[:, 0].tolist() == [32, 41]
    assert (tokens[:, 1:] == -1).all()


def test_errors(tiny_generator):
    with pytest.raises(ValueError, match="label is 10; accepted: 0 to 9"):
        tiny_generator.create_input_tokens_normal(10)
    with pytest.raises(ValueError, match=r"\[3, 8, 8\]; accepted: \[3, 16, 16\]"):
        tiny_generator.create_latent_mask_and_input_tokens_for_image_editing(
            torch.zeros(3, 8, 8), Bbox(0, 0, 4, 4), 1
        )
    with pytest.raises(ValueError, match="does not fit a tokenizer of 32 codes"):
        Generator(Transformer(20, 64, 1, 4, max_position_embeddings=17), load_tiny("tokenizer"))


def test_bbox():
    assert Bbox.parse("128_64_256_288") == Bbox.parse("128, 64,256,288") == Bbox(128, 64, 256, 288)
    for text in ("1,2,3", "a,2,3,4", "-1,2,3,4", "1,2,0,4"):
        with pytest.raises(ValueError, match="box|Bbox"):
            Bbox.parse(text)
