"""MAGE's network, training pass and sampler against numbers recorded from the code of LTH14/mage."""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mage_files import (
    assert_gradients,
    choose_masked,
    full_size,
    masked_loss,
    model,
    near,
    recorded,
)

from maskgit_pt import MaskGIT
from maskgit_pt.nets.mage import Mage, masking_ratio, masking_ratio_at, sine_table
from maskgit_pt.networks import TRANSFORMERS
from maskgit_pt.pretrained import without_values
from maskgit_pt.samplers import MageSampler

LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "decoder_hidden_size": 1024
}  # fmt: skip
network = functools.cache(model)


# The network -------------------------------------------------------------------------------------------


@torch.no_grad()
def activations(net: Mage, ids: torch.Tensor, dropped=None) -> dict[str, torch.Tensor]:
    """Every stage of a forward pass, under the names of the vectors."""
    found = {}
    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: found.update({name: o}))
        for name, module in [
            *((f"enc_block{i}", block) for i, block in enumerate(net.blocks)),
            *((f"dec_block{i}", block) for i, block in enumerate(net.decoder_blocks)),
            ("enc_norm", net.norm), ("dec_embed", net.decoder_embed), ("dec_norm", net.decoder_norm),
            ("head_hidden", net.mlm_layer.ln), ("emb", net.token_emb),
        ]
    ]  # fmt: skip
    x = net.embed(ids)
    masked = F.pad(ids == net.mask_id, (1, 0))
    if dropped is not None:
        dropped = F.pad(dropped, (1, 0))
        x = x[~dropped].view(len(x), -1, x.shape[-1])
    found["latent"] = net.encode(x)
    found["dec_in"] = net.fill(found["latent"], masked, dropped)
    words = net.token_emb.word_embeddings.weight
    found["logits"] = net.mlm_layer(net.decode(found["dec_in"]), words)
    found["logits_codes"] = found["logits"][..., : net.num_codes]
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("f64", [False, True])
def test_forward(f64):
    net, vectors = network(torch.float64 if f64 else torch.float32), recorded("forward")
    ids = torch.from_numpy(vectors["ids"])
    found = activations(net, ids)
    found["logits_full_row1_pos0_pos7"] = found["logits"][1, [0, 7]]
    compared = 0
    for name, theirs in vectors.items():
        if name != "ids" and name.endswith("_f64") == f64:
            near(found[name.removesuffix("_f64")], theirs, f64)
            compared += 1
    assert compared == (6 if f64 else 8)
    with torch.no_grad():
        near(net(ids), vectors["logits_codes" + "_f64" * f64][:, 1:], f64)
        assert torch.equal(net(ids), net(torch.where(ids == net.mask_id, -1, ids)))


@pytest.mark.parametrize(
    "mistake", ["head epsilon", "block epsilon", "decoder heads", "mask token"]
)
def test_vectors_tell_mistakes_apart(mistake):
    net, vectors = copy.deepcopy(network(torch.float64)), recorded("forward")
    if mistake == "head epsilon":
        net.mlm_layer.ln.eps = 1e-6
    elif mistake == "block epsilon":
        net.blocks[0].norm1.eps = 1e-5
    elif mistake == "decoder heads":
        net.decoder_blocks[0].attn.num_heads = 3
    else:
        fill = lambda latent, masked, dropped=None: (  # noqa: E731
            torch.where(masked[..., None], net.mask_token, net.decoder_embed(latent))
            + net.decoder_pos_embed_learned
        )
        net.fill = fill
    logits = activations(net, torch.from_numpy(vectors["ids"]))["logits_codes"]
    assert np.abs(logits.numpy() - vectors["logits_codes_f64"]).max() > 1e-5


@pytest.mark.parametrize("size, config", [("vitb", {}), ("vitl", LARGE)])
def test_full_size(size, config):
    from maskgit_pt.configs import vqgan_config

    with without_values():
        net = Mage(**config, vqvae=vqgan_config.get_config().vqvae.to_dict())
    total = {"vitb": 200_989_804, "vitl": 464_407_148}[size]
    assert sum(p.numel() for p in net.parameters()) == total
    trained = {"vitb": 146_079_465, "vitl": 409_365_225}[size]
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trained
    names = [n for n in full_size()[size] if n != "token_emb.position_ids"]
    ours = {n: list(t.shape) for n, t in net.state_dict().items() if not n.startswith("vqgan.")}
    assert sorted(ours) == sorted(n for n in names if not n.startswith("vqgan."))
    assert all(list(full_size()[size][name]) == shape for name, shape in ours.items())


# Training ----------------------------------------------------------------------------------------------


def test_masking_ratio():
    vectors = recorded("training")
    for centre in (0.55, 0.75):
        near(
            masking_ratio_at(vectors["truncnorm_u"], centre),
            vectors[f"truncnorm_ppf_mu{centre}"],
            True,
        )
    ratios = [masking_ratio(np.random.RandomState(seed)) for seed in range(50)]
    assert 0.5 <= min(ratios) < max(ratios) <= 1


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("f64", [False, True])
def test_training_pass(case, f64):
    net, vectors = network(torch.float64 if f64 else torch.float32), recorded("training")
    images = torch.from_numpy(vectors["images"]).to(net.norm.weight.dtype)
    with torch.no_grad():
        features = net.vqgan.encoder(images)
        codes = net.vqgan.encode_to_indices(images).flatten(1)
        near(features, vectors["vq_encoder_out" + "_f64" * f64], f64)
        near(net.vqgan.decode_from_indices(codes.view(4, 4, 4)), vectors["vq_decoded"], False)
    assert np.array_equal(codes, vectors["vq_indices"])
    of = {name.removeprefix(f"case{case}_"): value for name, value in vectors.items()}
    assert np.array_equal(codes, of["gt"])
    masked, dropped = choose_masked(torch.from_numpy(of["noise"]), of["mu_ratio"][1])
    assert np.array_equal(masked, of["mask"][:, 1:]) and np.array_equal(dropped, of["drop"][:, 1:])
    ids = torch.where(masked, net.mask_id, codes)
    assert np.array_equal(ids, of["ids_in"][:, 1:])
    logits = net(ids, dropped=dropped)
    loss, losses = masked_loss(logits, codes, masked)
    near(loss, of["loss" + "_f64" * f64], f64)
    if f64:
        near(losses, of["per_token_loss_f64"], True)
    if case == 0:
        found = activations(net, ids, dropped)
        if f64:
            near(found["latent"], of["latent_f64"], True)
        else:
            for name in ("enc_block0", "latent", "dec_in"):
                near(found[name], of[name], False)
        near(found["logits_codes"], of["logits_codes" + "_f64" * f64], f64)


@pytest.mark.parametrize("case", range(2))
def test_gradients(case):
    net, vectors = copy.deepcopy(network(torch.float64)), recorded("training")
    codes = torch.from_numpy(vectors[f"case{case}_gt"])
    noise, ratio = vectors[f"case{case}_noise"], vectors[f"case{case}_mu_ratio"][1]
    masked, dropped = choose_masked(torch.from_numpy(noise), ratio)
    masked_loss(net(torch.where(masked, -1, codes), dropped=dropped), codes, masked)[0].backward()
    assert_gradients(net, case)


def test_initial_values():
    torch.manual_seed(0)
    net = Mage(num_codes=8, num_tokens=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
               decoder_hidden_size=16, decoder_num_layers=1, decoder_num_heads=2)  # fmt: skip
    assert 0.015 < net.token_emb.word_embeddings.weight.std() < 0.025
    assert torch.equal(net.pos_embed, sine_table(16, 16)) and not net.pos_embed[0, 0].any()
    torch.testing.assert_close(net.pos_embed[0, 2, :4], torch.tensor([1.0, 0.1, 0.01, 0.001]).sin())
    with pytest.raises(ValueError, match="width 16 is not a multiple of 3"):
        Mage(hidden_size=16, num_attention_heads=3)


# Sampling ----------------------------------------------------------------------------------------------


class RecordedNoise:
    """The noise of a recorded run; a code is argmax(p / e)."""

    def __init__(self, number: int):
        vectors = recorded("sampling")
        self.exponentials = iter(vectors[f"run{number}_exp_noise"])
        self.gumbels = iter(vectors[f"run{number}_gumbel"])
        self.drawn = []

    def uniform(self, shape, device):
        raise AssertionError("nothing uniform is drawn")

    def gumbel(self, shape, dtype, device):
        assert dtype == torch.float64
        return torch.from_numpy(next(self.gumbels))

    def categorical(self, logits, probs):
        self.drawn.append((probs / torch.from_numpy(next(self.exponentials))).argmax(-1))
        return self.drawn[-1]


@pytest.mark.parametrize("run", range(5))
def test_recorded_runs(run):
    vectors = recorded("sampling")
    of = {name.removeprefix(f"run{run}_"): value for name, value in vectors.items()}
    steps, temperature, _ = vectors["runs_steps_temperature_seed"][run]
    net, noise = network(), RecordedNoise(run)
    both = MaskGIT(net, net.vqgan)
    options = both.decoding(sampler="mage", steps=int(steps), choice_temperature=float(temperature))
    states = []
    result = both.sample(torch.zeros(2).long(), noise, options, on_step=states.append, clip=False)
    assert len(states) == steps
    for step, state in enumerate(states):
        tokens = torch.where(state.tokens < 0, net.mask_id, state.tokens)
        assert np.array_equal(tokens, of["tokens_out"][step])
        assert np.array_equal(state.guess, of["filled"][step])
        assert np.array_equal(noise.drawn[step], of["drawn"][step])
        assert options.sampler.noise_scale(step) == pytest.approx(
            of["noise_scale"][step], abs=1e-12
        )
    assert options.sampler.masked_after(16) == of["mask_len"].tolist()
    assert np.array_equal(result.tokens.flatten(1), of["final_tokens"])
    near(result.images, of["image"], False)


@pytest.mark.parametrize("steps", [1, 6, 8, 12, 16, 20, 50])
def test_full_size_counts(steps):
    recorded_counts = recorded("sampling")[f"full_size_mask_len_T{steps}"].tolist()
    assert MageSampler(steps).masked_after(256) == recorded_counts


# Without classes ---------------------------------------------------------------------------------------


def test_images_without_labels():
    both = MaskGIT(network(), network().vqgan)
    assert (both.num_classes, both.image_size) == (0, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = both.generate(sampler="mage", steps=3, seed=1)
        three = both.generate([0, 0, 0], sampler="mage", steps=3, seed=1, batch_size=2)
    assert one.images.shape == (1, 3, 8, 8) and torch.equal(one.tokens, three.tokens[:1])
    with pytest.warns(UserWarning, match="no classes: labels are ignored"):
        named = both.generate(["lorikeet"], sampler="mage", steps=3, seed=1)
    assert torch.equal(named.tokens, one.tokens)
    for sampler in ("official", "confidence", "halton"):
        assert both.generate(sampler=sampler, steps=2).tokens.max() < 32
    edited = both.edit(one.images[0], box=(0, 0, 4, 4), sampler="mage", steps=3)
    assert edited.images.shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="guidance is 2.0; accepted with a Mage"):
        both.generate(sampler="mage", guidance=2.0)


def test_classes_of_rcg():
    torch.manual_seed(0)
    net = Mage(**network().to_config() | {"num_classes": 5}).eval()
    tokens = torch.full((2, 16), -1)
    with torch.no_grad():
        a, b = net(tokens, torch.tensor([0, 3]))
        assert not torch.equal(a, b)
        x = net.embed(tokens, torch.tensor([0, 3]))
    assert torch.equal(x[:, 0], net.class_emb.weight[[0, 3]])  # neither position nor LayerNorm
    with pytest.raises(ValueError, match="labels is None; this model has 5 classes"):
        net(tokens)
    assert Mage in TRANSFORMERS
