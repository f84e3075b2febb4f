"""`MaskGIT`: generate, edit, reconstruct, load and save."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from recorded import GOLDEN, OFFICIAL, load_tiny

from maskgit_pt import VQVAE, MaskGIT, Transformer
from maskgit_pt.inference import ImageNet_class_conditional_generator
from maskgit_pt.libml import jax_random
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.samplers import SAMPLERS, HaltonSampler
from maskgit_pt.step_pictures import animation, strip
from maskgit_pt.utils import Bbox, read_image


@pytest.fixture
def model() -> MaskGIT:
    return MaskGIT(load_tiny("transformer"), load_tiny("tokenizer"))


def some_steps(sampler: str, steps: int) -> dict:
    """Settings with which a sampler does so many steps, if it can."""
    if sampler == "dimo":  # undisturbed, which any network can do
        return {"sampler": sampler, "embedding_noise": 0.0}
    plain = {"self_guidance": 0.0} if sampler == "self-guidance" else {}  # as before
    return {"sampler": sampler, "steps": steps} | plain


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_generate(model, sampler):
    options = some_steps(sampler, 5) | {"guidance": 1.5, "return_steps": True}
    result = model.generate([1, 2, 9], batch_size=2, **options)
    assert result.images.shape == (3, 3, 16, 16) and result.tokens.shape == (3, 4, 4)
    assert result.images.min() >= 0 and result.images.max() <= 1
    assert result.masks.shape[:1] + result.masks.shape[2:] == (3, 4, 4)
    assert not result.masks[:, -1].any()
    assert torch.equal(result.guesses[:, -1], result.tokens)
    alone = model.generate(2, first_index=1, **options)
    assert torch.equal(alone.tokens[0], result.tokens[1])
    assert torch.equal(alone.images[0], result.images[1])
    pictures = model.tokens_to_images(result.guesses[0])
    S = result.masks.shape[1]
    assert strip(result.masks[0], pictures).size == (98 * S - 2, 194)
    assert len(animation(result.masks[0], pictures)) == S


@pytest.mark.parametrize("partitionable", [False, True])
def test_generate_with_a_jax_key_is_official(model, partitionable):
    generator = ImageNet_class_conditional_generator(model.transformer, model.tokenizer)
    key = jax_random.PRNGKey(3, partitionable=partitionable)
    expected = generator.generate_tokens(generator.create_input_tokens_normal(4), key)[:, -1, 1:]
    tokens = model.generate([4] * 8, rng=key).tokens
    assert torch.equal(tokens.flatten(1), expected)
    other = jax_random.PRNGKey(3, partitionable=not partitionable)
    assert not torch.equal(model.generate([4] * 8, rng=other).tokens, tokens)


def test_edit_with_a_jax_key_is_official(model):
    """On a picture of the model's size everything is the official procedure."""
    generator = ImageNet_class_conditional_generator(model.transformer, model.tokenizer)
    image = read_image(GOLDEN / "photo.jpg", 16, 16)
    image = image.mul(255).round() / 255
    box, key = Bbox(4, 4, 4, 4), jax_random.PRNGKey(0)
    mask, tokens = generator.create_latent_mask_and_input_tokens_for_image_editing(image, box, 5)
    outputs = generator.generate_samples(tokens, key, start_iter=2, num_iterations=12)
    assert outputs.min() < 0 or outputs.max() > 1  # clipped after blending
    expected = generator.composite_outputs(image, mask, outputs).clamp(0, 1)
    result = model.edit(image, [5] * 8, box=box, rng=key)
    # One sample at a time here, the whole batch there.
    torch.testing.assert_close(result.images, expected, atol=1e-4, rtol=0)


def test_guidance_changes_tokens_and_unguided_steps_need_one_pass(model):
    calls = []
    inner = model._code_logits
    model._code_logits = lambda tokens, *args: calls.append(len(tokens)) or inner(tokens, *args)
    plain = model.generate([1], steps=4)
    assert calls == [1] * 4
    calls.clear()
    guided = model.generate([1], steps=4, guidance=5.0, choice_temperature=0)
    assert calls == [1, 2, 2, 2]
    assert not torch.equal(plain.tokens, guided.tokens)


def test_besnier_network_with_every_sampler():
    """Its mask id can be drawn; tokens are codes all the same."""
    tokenizer = load_tiny("tokenizer")
    transformer = BesnierTransformer(
        num_codes=32, num_classes=10, num_tokens=16, hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=64,
    )  # fmt: skip
    model = MaskGIT(transformer, tokenizer)
    for sampler in SAMPLERS:
        tokens = model.generate([0, 9], **some_steps(sampler, 4), guidance=2.0).tokens
        assert 0 <= tokens.min() and tokens.max() < 32


def test_reconstruct(model):
    images = torch.rand(3, 3, 16, 32)
    result = model.reconstruct(images, batch_size=2)
    assert torch.equal(result.tokens, model.tokenizer.encode_to_indices(images))
    assert result.images.shape == images.shape
    with pytest.raises(ValueError, match="multiples of 4"):
        model.reconstruct(torch.rand(1, 3, 16, 30))


def test_load_and_save(model, tmp_path):
    model.save_pretrained(tmp_path / "both")
    files = [OFFICIAL / f"tiny_{kind}_checkpoint" for kind in ("transformer", "tokenizer")]
    expected = model.generate([1], steps=3).images
    for paths in ([tmp_path / "both"], files):
        images = MaskGIT.from_pretrained(*paths).generate([1], steps=3).images
        assert torch.equal(images, expected)
    with pytest.raises(ValueError, match="model_type is 'maskgit_vqvae'; accepted here"):
        MaskGIT.from_pretrained(files[1], files[1])
    with pytest.raises(FileNotFoundError, match="holds no folders transformer and tokenizer"):
        MaskGIT.from_pretrained(tmp_path)


def test_pictures_of_all_kinds(model):
    array = np.array(Image.open(GOLDEN / "photo.jpg").convert("RGB"))[:100, :130]
    mask = np.zeros((100, 130), bool)
    mask[50:60, 50:60] = True
    kinds = [array, Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1) / 255]
    results = [model.edit(image, 1, mask=mask).images for image in kinds]
    assert results[0].shape == (1, 3, 100, 130)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": 10}, "label is 10; accepted: 0 to 9"),
        ({"labels": []}, "no labels"),
        ({"labels": 1.9}, "label is 1.8.*; accepted: whole numbers"),
        ({"labels": [1.0, 2.0]}, "accepted: whole numbers, 0 to 9"),
        ({"labels": torch.eye(10)[3]}, "accepted: whole numbers"),
        ({"labels": torch.eye(10).long()[3]}, "one-hot row; .*argmax"),
        ({"labels": torch.eye(10).long()[:4]}, "have shape .4, 10."),
        ({"labels": True}, "accepted: whole numbers"),
        ({"labels": "lorikeet"}, "label 'lorikeet' is no id, and this model has 10 classes"),
        ({"labels": ["3", "x"]}, "label 'x' is no id"),
        ({"labels": None}, "labels are None; accepted: ids 0 to 9"),
        ({"labels": {"a": 1}}, "labels are .*; accepted: ids"),
        ({"labels": -1}, "label is -1"),
        ({"labels": 1, "batch_size": 0}, "batch_size is 0; accepted: a whole number, 1 or more"),
        ({"labels": 1, "batch_size": 2.0}, "batch_size is 2.0"),
        ({"labels": 1, "batch_size": True}, "batch_size is True; accepted: a whole number"),
        ({"labels": 1, "first_index": -1}, "first_index is -1; accepted: a whole number, 0 to"),
        ({"labels": 1, "first_index": 2**32}, "first_index is 4294967296; accepted"),
        ({"labels": 1, "first_index": 1.0}, "first_index is 1.0; accepted: a whole number"),
        ({"labels": 1, "steps": 17}, "accepted: 1 to 16"),
        ({"labels": 1, "steps": 0}, "steps is 0"),
        ({"labels": 1, "sampler": "greedy"}, "known: official, confidence"),
        ({"labels": 1, "colour": 3}, "has no colour"),
        ({"labels": 1, "guidance": -1.0}, "guidance is -1.0"),
        ({"labels": 1, "steps": 4, "start_step": 4}, "start_step is 4"),
        ({"labels": 1, "sampler": HaltonSampler(4), "steps": 4}, "give it there"),
    ],
)
def test_errors(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**arguments)


def test_labels_of_all_kinds(model):
    expected = model.generate([1, 2, 2], steps=1).tokens
    for labels in (
        "1,2",
        ["1", 2],
        [1, "2"],
        np.array([1, 2]),
        np.array(["1", "2"]),
        np.array([1, 2], ">i8"),
        torch.tensor([[1], [2]]),
    ):
        assert torch.equal(model.generate(labels, steps=1).tokens, expected[:2])
    assert torch.equal(model.generate(["1-2", 2], steps=1).tokens, expected)


def test_training_mode_is_refused(model):
    for network in (model.transformer, model.tokenizer):
        network.train()
        with pytest.raises(ValueError, match="is in training mode; accepted: evaluation mode"):
            model.generate(1, steps=1)
        network.eval()


def test_results_can_be_trained_on(model):
    """They are no inference tensors; with `differentiable` gradients reach weights and images."""
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    weight = model.tokenizer.decoder.conv_out.weight
    for result in (model.reconstruct(images), model.generate([1, 2], steps=2)):
        assert not result.images.is_inference() and not result.images.requires_grad
        (result.images * torch.ones(1, requires_grad=True)).sum().backward()
    assert weight.grad is None and images.grad is None
    plain = model.reconstruct(images)
    rebuilt = model.reconstruct(images, batch_size=1, differentiable=True)
    assert torch.equal(rebuilt.tokens, plain.tokens)
    torch.testing.assert_close(rebuilt.images, plain.images)
    rebuilt.images.sum().backward()
    assert images.grad.abs().sum() > 0 and weight.grad.abs().sum() > 0
    weight.grad = None
    made = model.generate([1, 2], steps=2, differentiable=True)
    assert torch.equal(made.images, model.generate([1, 2], steps=2).images)
    model.tokens_to_images(made.tokens, differentiable=True).sum().backward()
    once = weight.grad.clone()
    made.images.sum().backward()
    torch.testing.assert_close(weight.grad, 2 * once)


@pytest.mark.parametrize("arguments", [{"mask": "nowhere.png"}, {"mask": 3}, {"box": (0, 0, 3)}])
def test_wrong_edits(model, arguments):
    with pytest.raises((ValueError, OSError)) as error:
        model.edit(np.zeros((20, 20, 3), np.uint8), 1, **arguments)
    assert len(str(error.value)) > 10


def test_networks_that_do_not_fit(tiny_tokenizer):
    with pytest.raises(ValueError, match="does not fit"):
        MaskGIT(Transformer(43, 32, 1, 2, 64, max_position_embeddings=16), tiny_tokenizer)
    with pytest.raises(ValueError, match="does not fit"):
        MaskGIT(Transformer(32, 32, 1, 2, 64, max_position_embeddings=17), tiny_tokenizer)


def test_compiled(monkeypatch):
    """To C++; as few loops as can be, since each takes seconds: small, without guidance, without vectors."""
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", False)
    config = load_tiny("tokenizer").config
    config.image_size = 4
    config.vqvae.update(channel_multipliers=(1,), embedding_dim=32, num_res_blocks=0)
    torch.manual_seed(0)
    model = MaskGIT(Transformer(43, 32, 1, 4, 64, max_position_embeddings=17), VQVAE(config))
    expected = model.generate([1, 2], steps=3, guidance=0.0, batch_size=2)
    found = model.compile().generate([1, 2], steps=3, guidance=0.0)
    torch.testing.assert_close(found.tokens, expected.tokens)
    torch.testing.assert_close(found.images, expected.images)


def test_compiled_once(model, monkeypatch):
    traced = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced)
    expected = model.generate([1, 2], steps=3, batch_size=2).tokens
    torch.testing.assert_close(model.compile().generate([1, 2], steps=3).tokens, expected)
    model.generate([1], steps=3, guidance=1.0)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for count in range(1, 11):  # more than the eight shapes for which torch compiles
        model.generate([1] * count, steps=2, guidance=1.0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_bfloat16_on_a_cpu_without_units_for_it(model, tmp_path, monkeypatch):
    """The same rounded weights, computed with in float32."""
    model.save_pretrained(tmp_path)
    loaded = {}
    for units in (False, True):
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda units=units: units
        )
        loaded[units] = MaskGIT.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for network in ("transformer", "tokenizer"):
        emulated = getattr(loaded[False], network).state_dict()
        for name, value in getattr(loaded[True], network).state_dict().items():
            assert value.dtype == torch.bfloat16 and emulated[name].dtype == torch.float32
            assert torch.equal(emulated[name], value.float())
    assert loaded[False].generate(1, steps=2).images.dtype == torch.float32


def test_a_photo_stands_as_viewers_show_it(model, tmp_path):
    picture = Image.new("RGB", (60, 40))
    picture.paste("red", (0, 0, 10, 40))
    exif = picture.getexif()
    exif[274] = 6  # turned to the right to be shown
    picture.save(tmp_path / "turned.png", exif=exif)
    shown = model.prepare_edit(tmp_path / "turned.png", box=(0, 0, 5, 5)).picture
    assert shown.shape == (60, 40, 3)
    assert (shown[:10] == (255, 0, 0)).all() and not shown[10:].any()


class _Weightless:
    """A tokenizer's codebook that claims to be on another device."""

    def __init__(self, codebook, device):
        self.codebook, self.device, self.dtype = codebook, torch.device(device), codebook.dtype

    def __len__(self):
        return len(self.codebook)


def test_waiting_is_for_the_stream_of_the_models_device(model, monkeypatch):
    """Not for that of the current device, which has nothing to do."""
    log = []

    class Event:
        def record(self, stream=None):
            log.append(("record", stream))

        def synchronize(self):
            log.append(("wait", None))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    result = model.generate([1], steps=2)
    codebook = model.tokenizer.get_codebook_funct()
    monkeypatch.setattr(
        model.tokenizer, "get_codebook_funct", lambda: _Weightless(codebook, "cuda:1")
    )
    model._to_host(result).wait().wait()
    assert log == [("record", "stream of cuda:1"), ("wait", None)]


def test_padding_to_a_batch_changes_nothing(model, monkeypatch):
    """On a GPU every batch is filled up to one shape; images and tokens are those of the alone ones."""
    expected = model.generate([1, 2, 3], steps=3, guidance=1.0, return_steps=True)
    shapes = []
    sample = model.sample

    def seen(labels, *others, **more):
        shapes.append(len(labels))
        return sample(labels, *others, **more)

    monkeypatch.setattr(MaskGIT, "device", property(lambda self: torch.device("meta")))
    monkeypatch.setattr(model, "sample", seen)
    labels, options = torch.tensor([1, 2, 3]), model.decoding(steps=3, guidance=1.0)
    with monkeypatch.context() as on_cpu:
        inner = model.sample

        def run_on_cpu(*args, **more):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(MaskGIT, "device", property(lambda self: torch.device("cpu")))
                return inner(*args, **more)

        on_cpu.setattr(model, "sample", run_on_cpu)
        found = model.sample_indices(labels, range(3), 42, options, 8, return_steps=True)
    assert shapes == [8]
    for name in ("images", "tokens", "masks", "guesses"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("counts", "shapes"),
    [(range(1, 17), [1, 2, 4, 4] + [8] * 4 + [16] * 8), ((16, 4, 1), [16] * 3), ((3, 1), [4, 4])],
)
def test_the_compiled_decoder_meets_few_shapes(model, counts, shapes):
    model._static = True
    found = []
    for count in counts:
        tokens = torch.randint(0, 32, (count, 4, 4))
        filled = model._filled(tokens, 16)
        found.append(len(filled))
        assert torch.equal(filled[:count], tokens)
    assert found == shapes


@pytest.mark.parametrize("side", [0, 17])
def test_images_of_wrong_shapes(model, side):
    for images in (torch.rand(1, 3, side, 16), torch.rand(1, 1, 16, 16), torch.rand(3, 16, 16)):
        for read in (model.reconstruct, model.encode, model.tokenizer.encode_to_indices):
            with pytest.raises(ValueError, match=r"shape .*; accepted: \[B, 3, H, W\], .* of 4"):
                read(images)


def test_an_empty_batch(model):
    assert model.encode(torch.rand(0, 3, 16, 16)).shape == (0, 4, 4)
    assert model.reconstruct(torch.rand(0, 3, 16, 16)).images.shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.full((1, 4, 4), -1), ValueError, "holds -1; accepted: 0 to 31"),
        (torch.full((1, 4, 4), 32), ValueError, "holds 32; accepted: 0 to 31"),
        (torch.zeros(1, 16, dtype=torch.long), ValueError, r"shape .*; accepted: \[B, h, w\]"),
        (torch.zeros(1, 4, 4), TypeError, "torch.float32; accepted: a tensor, int64 or int32"),
        (np.zeros((1, 4, 4), int), TypeError, "ndarray; accepted: a tensor"),
    ],
)
def test_wrong_tokens(model, ids, error, message):
    for read in (model.tokens_to_images, model.tokenizer.decode_from_indices):
        with pytest.raises(error, match=message):
            read(ids)


def test_wrong_ids(model):
    rows = torch.zeros(1, 17, dtype=torch.long)
    for ids, error, message in (
        (rows + 43, ValueError, "input_ids holds 43; accepted: -43 to 42"),
        (rows[0], ValueError, r"input_ids has shape \[17\]; accepted: \[B, N\]"),
        (rows.float(), TypeError, "input_ids is of type torch.float32"),
    ):
        with pytest.raises(error, match=message):
            model.transformer(ids)
