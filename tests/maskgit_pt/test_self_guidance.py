"""Self-guidance against vectors recorded from the authors' code (tests/golden/unlockmgm)."""

import contextlib

import numpy as np
import pytest
import torch
from recorded import load_tiny
from self_guidance_files import model, recorded, text

from maskgit_pt import MaskGIT
from maskgit_pt.decoding import Decoding
from maskgit_pt.libml.rng import sample_noise
from maskgit_pt.nets import maskgit_transformer
from maskgit_pt.nets.self_guidance import SelfGuidedTransformer
from maskgit_pt.samplers.self_guidance import SelfGuidanceSampler
from maskgit_pt.utils import to_pil

RUNS = text("sampling")
BOUNDS = {"f64": 1e-12, "f32": 2e-5}
FIRST_CODE_OF_CLASSES = {"tiny": 32, "codes1024": 1024}


@contextlib.contextmanager
def watched(net, found, prefix):
    """Puts what goes through a network's parts into `found`."""
    hooks, values = [], []

    def keep(name, module):
        def hook(module, inputs, output):
            found.setdefault(f"{prefix}.{name}", output)

        hooks.append(module.register_forward_hook(hook))

    first = net.layers[0].attention
    keep("embed", net.embed)
    keep("attn0", first.self_attention)
    keep("attn_ln0", first.attention_output_ln)
    for number, layer in enumerate(net.layers):
        keep(f"layer{number}", layer)
    keep("mlm_dense", net.mlm_layer.mlm_dense)
    keep("mlm_ln", net.mlm_layer.mlm_ln)
    keep("anchor_ln", net.guidance.cls_anchor_gen.layer_norm)
    for number, decoder in enumerate(net.guidance.decoders):
        keep(f"decoder{number}", decoder)
    last = net.guidance.decoders[-1]
    hooks.append(
        last.register_forward_pre_hook(lambda module, inputs: found.update(chain_in=inputs[0]))
    )
    original = maskgit_transformer.F.scaled_dot_product_attention

    def attention(query, key, value, **options):
        values.append(value)
        return original(query, key, value, **options)

    maskgit_transformer.F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        maskgit_transformer.F.scaled_dot_product_attention = original
        for hook in hooks:
            hook.remove()
    found[f"{prefix}.value0"] = values[0]


@torch.no_grad()
def activations(net, ids):
    labels = ids[:, 0] - net.num_codes
    found, module = {}, net.guidance
    with watched(net, found, "base"):
        hidden = net.hidden(ids)
        base = net.mlm_layer(hidden, net.head_weight)
    with watched(net, found, "sg"):
        second = net.second_pass(hidden, labels)
    gate = module.gate(hidden, labels)
    found |= {
        "base.hidden": hidden,
        "base.logits": base,
        "sg.anchor_sum": module.cls_anchor_gen.factor_sum(labels),
        "sg.anchor": module.cls_anchor_gen(labels),
        "sg.cos": module.cosine(hidden, labels),
        "sg.gate": gate,
        "sg.gated": hidden * gate,
        "sg.chain_in": found["chain_in"],
        "sg.logits": second,
    }
    for number in range(len(net.layers)):
        found[f"sg.chain{number}"], found[f"sg.topdown{number}"] = found[f"sg.decoder{number}"]
    for scale in ("0.5", "1", "2"):
        guided = second + (1 + float(scale)) * (base - second)
        found[f"guided_{scale}"] = guided[..., : net.num_codes]
    return found


def errors(network, dtype, gelu="erf"):
    """Name -> largest difference, for every recorded array of a dtype."""
    arrays = recorded({"tiny": "activations"}.get(network, network))
    ids = torch.from_numpy(arrays["input_ids"]).long()
    net = model(dtype, gelu, network)
    kind = "f64" if dtype == torch.float64 else "f32"
    found = activations(net, ids.masked_fill(ids == ids.max(), -1))
    result = {}
    for key, expected in arrays.items():
        if key.startswith(f"{kind}/"):
            value = found[key.removeprefix(f"{kind}/")]
            if len(expected) < len(value):  # images 1 and 2, or image 0
                value = value[1:3] if len(expected) == 2 else value[:1]
            assert value.shape == expected.shape, key
            result[key] = float(np.abs(value.numpy() - expected).max())
    return kind, result


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("network, count", [("tiny", (12, 31)), ("codes1024", (4, 2))])
def test_every_array_is_as_recorded(network, count, dtype):
    kind, found = errors(network, dtype)
    assert len(found) == count[kind == "f32"]
    assert max(found.values()) < BOUNDS[kind], found


def test_the_tanh_gelu_is_another_function():
    assert errors("tiny", torch.float64, "tanh")[1]["f64/base.logits"] > 1e-3


class Recorded:
    """The noise of a run."""

    def __init__(self, exponential, uniform):
        self.exponentials, self.uniforms = iter(exponential), iter(uniform)

    def categorical(self, logits, probs):
        return (probs / torch.from_numpy(next(self.exponentials))).argmax(-1)

    def uniform(self, shape, device):
        return torch.from_numpy(next(self.uniforms))

    def gumbel(self, shape, dtype, device):
        raise AssertionError("their Gumbel noise is made of uniform noise")


@torch.no_grad()
def sampled(net, sampler, classes, noise):
    """The states after every step, and the guided logits before."""
    labels, logits = torch.tensor(classes), []

    def predict(tokens, step):
        logits.append(net.code_logits(tokens, labels, net.num_codes, sampler.scales()[step]))
        return logits[-1]

    start = torch.full((len(classes), net.num_tokens), -1)
    return list(sampler.run(start, predict, noise)), logits


def assert_run(states, logits, arrays, name):
    mask = int(arrays[f"{name}/state"].max())
    assert len(states) == len(arrays[f"{name}/guess"])
    for step, state in enumerate(states):
        assert np.array_equal(state.guess, arrays[f"{name}/guess"][step])
        assert np.array_equal(state.unknown, arrays[f"{name}/remask"][step])
        tokens = arrays[f"{name}/state"][step].astype(np.int64)
        assert np.array_equal(state.tokens.masked_fill(state.tokens < 0, mask), tokens)
        probs = logits[step].softmax(-1).gather(-1, state.guess[..., None])[..., 0]
        confidence = arrays[f"{name}/confidence"][step]
        drawn = confidence < 1e38  # the others were known
        assert np.allclose(probs.numpy()[drawn], confidence[drawn], atol=1e-5)
        if f"{name}/guided_logits" in arrays:
            guided = arrays[f"{name}/guided_logits"][step]
            assert np.abs(logits[step].numpy() - guided).max() < 1e-4


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_sampling_gives_the_recorded_tokens(run):
    arrays, name, bank = recorded("sampling"), run["name"], run["noise_bank"]
    sampler = SelfGuidanceSampler(
        run["steps"], run["schedule"], run["temperature"], run["temperature2"],
        run["guidance_scale"],
    )  # fmt: skip
    noise = Recorded(arrays[f"bank{bank}/exponential"], arrays[f"bank{bank}/uniform"])
    states, logits = sampled(model(), sampler, run["classes"], noise)
    assert_run(states, logits, arrays, name)
    assert np.allclose(sampler.temperatures(), arrays[f"{name}/temperature"])
    given_up = [(a.tokens >= 0) & b.unknown for a, b in zip(states, states[1:], strict=False)]
    assert sum(int(x.sum()) for x in given_up) == run["known_positions_masked_again"]


def test_sampling_with_1024_codes():
    arrays = recorded("codes1024")
    sampler = SelfGuidanceSampler(3, choice_temperature=10.0)
    noise = Recorded(arrays["run/exponential"], arrays["run/uniform"])
    states, logits = sampled(model(network="codes1024"), sampler, [2], noise)
    assert_run(states, logits, arrays, "run")
    assert np.allclose(sampler.temperatures(), arrays["run/temperature"])


def test_schedules():
    counts = text("schedules")["unclamped_mask_count_cosine_float32"]
    for key, expected in counts.items():
        tokens, steps = map(int, key.split("_"))
        assert SelfGuidanceSampler(steps).counts(tokens) == expected
    for key, expected in text("schedules")["gumbel_temperature_by_step"].items():
        temperature, steps = key.split("_")
        sampler = SelfGuidanceSampler(int(steps), choice_temperature=float(temperature))
        assert np.allclose(sampler.temperatures(), expected, rtol=1e-12)


def test_pixels():
    """They round down, which ours can; as everywhere here, files are rounded to the nearest."""
    image, pixels = torch.from_numpy(recorded("pixels")["image"]), recorded("pixels")["pixels"]
    assert np.array_equal(np.asarray(to_pil(image, truncate=True)), pixels)
    ours = np.asarray(to_pil(image)).astype(int)
    assert set(np.unique(ours - pixels)) == {0, 1}


def test_training_is_as_recorded():
    arrays = {name: torch.from_numpy(value) for name, value in recorded("training").items()}
    net = model(torch.float64)
    masked, noise = arrays["masked_input"].long(), arrays["exponential"].double()
    sequence, targets = net.substitute(masked, noise, arrays["uniform"])
    assert torch.equal(sequence, arrays["second_input"].long())
    assert torch.equal(targets, arrays["labels"].long())
    assert torch.equal((targets != -100).sum(-1), arrays["num_substitute"].long())
    logits, loss, reconstruction = net.training_losses(sequence, targets)
    torch.testing.assert_close(logits, arrays["f64/logits"], atol=1e-12, rtol=0)
    torch.testing.assert_close(loss, arrays["f64/loss"], atol=1e-12, rtol=0)
    torch.testing.assert_close(reconstruction, arrays["f64/loss_variational"], atol=1e-12, rtol=0)
    (loss + reconstruction).backward()
    for name, parameter in net.guidance.named_parameters():
        norm = parameter.grad.norm()
        torch.testing.assert_close(norm, arrays[f"f64/gradnorm/{name}"], atol=1e-9, rtol=0)
        if f"f64/grad/{name}" in arrays:
            whole = arrays[f"f64/grad/{name}"]
            torch.testing.assert_close(parameter.grad, whole, atol=1e-9, rtol=0)
    single = model().training_losses(sequence, targets)
    for value, name in zip(single, ("logits", "loss", "loss_variational"), strict=True):
        expected = arrays[f"f32/{name}"].to(value.dtype)
        torch.testing.assert_close(value, expected, atol=2e-5, rtol=0)


def test_the_published_size():
    manifest = text("full_size_manifest")
    config = manifest["expected_config_256"]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = {name: config[name] for name in names} | {"num_classes": config["num_classes"]}
    for pixels, positions in {"256": 257, "512": 1025}.items():
        with torch.device("meta"):
            net = SelfGuidedTransformer(
                config["vocab_size"], max_position_embeddings=positions, **sizes
            )
        expected = manifest["parameters"]
        assert sum(p.numel() for p in net.parameters()) == expected[pixels]
        module = list(net.guidance.parameters())
        assert sum(p.numel() for p in module) == expected["guidance_module"]
        assert len(module) == expected["guidance_tensors"]


# The sampler's oddities, and what it shares with the others ---------------------------------------------


def test_known_tokens_can_be_masked_again():
    """At a high temperature; a given one as well. An image that is all known stays."""
    tokens = torch.randint(0, 32, (40, 64))
    tokens[:20, ::2] = -1
    logits = torch.zeros(40, 64, 32)

    def given_up(temperature):
        sampler = SelfGuidanceSampler(8, choice_temperature=temperature)
        state = next(sampler.run(tokens, lambda ids, step: logits, sample_noise(0, range(40))))
        again = state.unknown & (tokens >= 0)
        assert not again[20:].any()
        assert torch.equal(state.guess[tokens >= 0], tokens[tokens >= 0])
        return int(again.sum())

    assert given_up(1.0) == 0 < given_up(200.0)


def test_settings_of_every_step():
    ratios = [0.9, 0.5, 0.25, 0.0]
    sampler = SelfGuidanceSampler(4, ratios, [3.0, 2.0, 1.0, 0.0], 0.0, [0.0, 1.0, 2.0, 0.5])
    assert sampler.counts(16) == [14, 8, 4, 0] and sampler.temperatures() == [3.0, 2.0, 1.0, 0.0]
    options = Decoding.create(
        "self-guidance", mask_ratio=None, schedule=ratios, self_guidance=[0.0, 1.0, 2.0, 0.5]
    )
    assert options.sampler.steps == 4 and options.sampler.scales() == [0.0, 1.0, 2.0, 0.5]


@pytest.fixture(scope="module")
def both():
    return MaskGIT(model(), load_tiny("tokenizer"))


def test_scales_of_every_step_reach_the_network(both):
    seen = []
    inner = both.transformer.code_logits
    both._code_logits = lambda *args, self_guidance=None: (
        seen.append(None if self_guidance is None else float(self_guidance[0]))
        or inner(*args, self_guidance=self_guidance)
    )
    try:
        options = {"sampler": "self-guidance", "choice_temperature": 4.5}
        varied = both.generate([3], self_guidance=[0.0, 1.0, 2.0, 0.0], **options)
        assert seen == [None, 1.0, 2.0, None]
        plain = both.generate([3], steps=4, self_guidance=0.0, **options)
        assert not torch.equal(varied.tokens, plain.tokens)
    finally:
        both._code_logits = inner


def test_other_samplers_see_the_first_pass(both):
    """Google's network alone."""
    both.generate([3, 8], steps=2)
    result = both.generate([3, 8], sampler="self-guidance", steps=6, return_steps=True)
    assert result.tokens.min() >= 0 and result.tokens.max() < 32
    alone = both.generate(8, first_index=1, sampler="self-guidance", steps=6)
    assert torch.equal(alone.tokens[0], result.tokens[1])
    # 18 steps, as theirs have, of 16 tokens.
    assert both.generate(8, sampler="self-guidance").tokens.shape == (1, 4, 4)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"guidance": 1.0}, "guidance and self_guidance exclude each other"),
        ({"self_guidance": [1.0, 2.0], "steps": 3}, "self_guidance has 2 values"),
    ],
)
def test_errors(both, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        both.generate(1, sampler="self-guidance", **settings)
    assert "\n" not in str(error.value)


def test_a_network_without_the_module_is_told():
    plain = MaskGIT(load_tiny("transformer"), load_tiny("tokenizer"))
    message = "self_guidance is 1.0; accepted with a Transformer, which has no module for it: 0"
    with pytest.raises(ValueError, match=message):
        plain.generate(1, sampler="self-guidance", steps=4)
    tokens = plain.generate(1, sampler="self-guidance", steps=4, self_guidance=0.0).tokens
    assert 0 <= tokens.min() and tokens.max() < 32
