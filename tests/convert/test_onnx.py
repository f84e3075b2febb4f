"""ONNX graphs: docs/onnx.md runs on small networks, and gives what PyTorch gives."""

import re
import shlex
from pathlib import Path

import ml_collections
import numpy as np
import pytest
import torch
from torch import nn

import convert
from convert import __main__ as command
from convert.formats import onnx_folder, onnx_graphs
from maskgit_pt import VQVAE, MaskGIT, Transformer
from maskgit_pt.configs import taming_vqgan_config, vqgan_config
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.samplers.official import OfficialSampler

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "onnx.md").read_text()
SIDE, CODES = 4, 1024


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def trained_like(network: nn.Module) -> nn.Module:
    """With weights that leave no layer out: norms that are not 1 and biases that are not 0."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.2 * noise if parameter.dim() == 1 else 0.1 * noise
    return network.eval()


@pytest.fixture(scope="module")
def networks() -> MaskGIT:
    torch.manual_seed(0)
    config = vqgan_config.get_config()
    config.vqvae.update(filters=32, num_res_blocks=1, channel_multipliers=[1, 1], embedding_dim=8)
    transformer = Transformer(2025, 32, 1, 2, 64, max_position_embeddings=SIDE**2 + 1)
    return MaskGIT(trained_like(transformer), trained_like(VQVAE(config)))


@pytest.fixture(scope="module")
def folder(networks, tmp_path_factory) -> Path:
    """The working folder of the page, after its first two commands."""
    folder = tmp_path_factory.mktemp("page")
    networks.transformer.save_pretrained(folder / "maskgit256")
    networks.tokenizer.save_pretrained(folder / "tokenizer256")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in blocks("sh")[0].splitlines():
            patch.setattr("sys.argv", shlex.split(line))
            assert command.cli() == 0
    return folder


def session(path: Path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def graph_of(networks: MaskGIT, name: str) -> onnx_graphs.Graph:
    graphs = [
        graph
        for network in (networks.transformer, networks.tokenizer)
        for graph in onnx_graphs.graphs_of(network, CODES)
    ]
    return next(graph for graph in graphs if graph.name == name)


def path_of(folder: Path, name: str) -> Path:
    return next(folder.glob(f"*_onnx/{name}.onnx"))


@pytest.mark.parametrize(
    "name, inputs, outputs",
    [
        (
            "transformer",
            {"tokens": ["batch", 16], "labels": ["batch"]},
            {"logits": ["batch", 16, CODES]},
        ),
        (
            "step",
            {
                "tokens": ["batch", "n"],
                "logits": ["batch", "n", "K"],
                "token_noise": ["batch", "n", "K"],
                "choice_noise": ["batch", "n"],
                "mask_len": ["batch"],
                "temperature": [],
            },
            {"guess": ["batch", "n"], "next_tokens": ["batch", "n"]},
        ),
        ("encoder", {"images": ["batch", 3, "2*h", "2*w"]}, {"tokens": ["batch", "h", "w"]}),
        ("decoder", {"tokens": ["batch", "h", "w"]}, {"images": ["batch", 3, "2*h", "2*w"]}),
    ],
)
def test_graphs(folder, networks, name, inputs, outputs):
    """Inputs and outputs as documented; valid; without traces of where they were made; as PyTorch."""
    import onnx

    path = path_of(folder, name)
    opened = session(path)
    assert {value.name: value.shape for value in opened.get_inputs()} == inputs
    assert {value.name: value.shape for value in opened.get_outputs()} == outputs
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert str(ROOT).encode() not in path.read_bytes() and b"site-packages" not in path.read_bytes()
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert "vocab_size" in metadata["maskgit_config"] or "vqvae" in metadata["maskgit_config"]
    drift = onnx_graphs.measure(graph_of(networks, name), path)
    assert onnx_folder.too_far(drift, "float32") is None
    assert drift.largest < 2e-4 and drift.equal == drift.tokens
    assert drift.size > 0.1 or drift.tokens


def test_eight_steps(folder, networks):
    """The whole decoding is token for token that of the official sampler, from the same noise."""
    transformer, step = (session(path_of(folder, name)) for name in ("transformer", "step"))
    rng = np.random.default_rng(0)
    labels, n = np.array([3, 700, -1]), SIDE**2
    sampler = OfficialSampler(steps=8)
    state = sampler.begin(torch.full((3, n), -1))
    tokens = state.tokens.numpy()
    lengths, temperatures = state.plan
    for number in range(8):
        token_noise = rng.gumbel(size=(3, n, CODES)).astype(np.float32)
        choice_noise = rng.gumbel(size=(3, n)).astype(np.float32)
        with torch.no_grad():
            logits = networks.transformer.code_logits(state.tokens, torch.from_numpy(labels), CODES)
        noise = onnx_graphs.GivenNoise(*map(torch.from_numpy, (token_noise, choice_noise)))
        state = sampler.step(state, logits, number, noise)
        (logits,) = transformer.run(None, {"tokens": tokens, "labels": labels})
        guess, tokens = step.run(
            None,
            {
                "tokens": tokens,
                "logits": logits,
                "token_noise": token_noise,
                "choice_noise": choice_noise,
                "mask_len": lengths[number].numpy(),
                "temperature": temperatures[number, 0].numpy(),
            },
        )
        assert np.array_equal(tokens, state.tokens.numpy())
    assert np.array_equal(guess, state.guess.numpy()) and (guess >= 0).all()


def test_the_page_samples(folder, monkeypatch):
    """The page's twenty lines run, without PyTorch, and make images."""
    (code,) = blocks("python")
    assert sum(map(bool, code.splitlines())) == 20 and "torch" not in code
    monkeypatch.chdir(folder)
    scope = {}
    exec(compile(code, "onnx.md", "exec"), scope)
    assert scope["images"].shape == (4, 3, 2 * SIDE, 2 * SIDE)
    assert (folder / "image_0.png").is_file()


@pytest.mark.parametrize("dtype, least", [("float16", 1e-5), ("int8", 1e-4)])
def test_fewer_bits(folder, networks, tmp_path, dtype, least):
    """They are smaller, differ, and by less than the bound."""
    for name in ("transformer", "decoder") if dtype == "float16" else ("transformer",):
        original = path_of(folder, name)
        path = tmp_path / original.name
        path.write_bytes(original.read_bytes())
        onnx_graphs.reduce(path, dtype)
        assert path.stat().st_size < 0.95 * original.stat().st_size
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        assert [value.type for value in session(path).get_inputs()] == [
            value.type for value in session(original).get_inputs()
        ]
        drift = onnx_graphs.measure(graph_of(networks, name), path)
        assert least < drift.relative and onnx_folder.too_far(drift, dtype) is None
        path.unlink()


def test_other_weights_are_noticed(folder, networks):
    """A scale that is lost in one norm is farther than any bound."""
    graph = graph_of(networks, "transformer")
    gain = networks.transformer.mlm_layer.mlm_ln.weight
    before = gain.data.clone()
    gain.data[0] *= 2
    drift = onnx_graphs.measure(graph, path_of(folder, "transformer"))
    gain.data = before
    assert "accepted" in onnx_folder.too_far(drift, "float32")
    assert "accepted" in onnx_folder.too_far(onnx_graphs.Drift(equal=998, tokens=1000), "float32")
    assert "accepted" in onnx_folder.too_far(onnx_graphs.Drift(float("nan"), 1.0), "float32")
    assert "accepted" in onnx_folder.too_far(onnx_graphs.Drift(1.0, 1.0, 0.6), "int8")


def test_a_wrong_graph_is_not_left_behind(folder, monkeypatch, tmp_path):
    """What onnxruntime computes otherwise is not written."""

    def other_weights(graph, path, config):
        path.write_bytes(path_of(folder, graph.name).read_bytes())

    monkeypatch.setattr(onnx_graphs, "write", other_weights)
    torch.manual_seed(1)
    Transformer(2025, 32, 1, 2, 64, max_position_embeddings=17).save_pretrained(tmp_path / "model")
    output = tmp_path / "graphs"
    with pytest.raises(
        ValueError, match="transformer.onnx in float32 is not what PyTorch"
    ) as caught:
        convert.convert(tmp_path / "model", output, to="onnx")
    assert str(caught.value).startswith(f"{output}: verification failed, nothing was written")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    summary = convert.convert(tmp_path / "model", output, to="onnx", verify=False)
    assert not summary.verified and summary.dtype == "float32"
    assert sorted(p.name for p in output.iterdir()) == [
        "README.md",
        "step.onnx",
        "transformer.onnx",
    ]
    with pytest.raises(FileExistsError):
        convert.convert(tmp_path / "model", output, to="onnx", overwrite=True)


def test_large_weights_stand_beside(folder, networks, monkeypatch, tmp_path):
    """What one file cannot hold has its weights in a second one, which the first names."""
    import onnx_ir

    monkeypatch.setattr(onnx_graphs, "ONE_FILE", 1000)
    model = onnx_ir.load(path_of(folder, "transformer"))
    path = tmp_path / "transformer.onnx"
    onnx_graphs.save(model, path, 1001)
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, f"{path.name}.data"]
    drift = onnx_graphs.measure(graph_of(networks, "transformer"), path)
    assert drift.largest < 2e-4


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (
            ["--to=onnx", "--dtype=bfloat16"],
            "cannot convert to 'bfloat16'; accepted: float32, float16, int8",
        ),
        (["--to=onnx", "--safetensors"], "onnx has one layout"),
    ],
)
def test_refusals(folder, tmp_path, monkeypatch, capsys, arguments, reason):
    output = tmp_path / "out"
    arguments = [f"--input={folder / 'maskgit256'}", f"--output={output}", *arguments]
    monkeypatch.setattr("sys.argv", ["maskgit-convert", *arguments])
    assert command.cli() == 1
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1 and not output.exists()


def test_models_that_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="int8 is for transformers"):
        convert.convert(folder / "tokenizer256", tmp_path / "out", to="onnx", dtype="int8")
    assert "onnx" not in convert.formats.recognise.writers("maskgit_discriminator", {})
    with pytest.raises(
        ValueError, match="a maskgit_discriminator is not written as ONNX: it judges"
    ):
        onnx_folder.FORMAT.rows_to_write("maskgit_discriminator", {})
    assert not list(tmp_path.iterdir())


def test_codes_are_told_or_assumed(folder, networks):
    found = convert.formats.recognise.open_checkpoint(folder / "maskgit256")
    assert onnx_folder._codes(found) == 1024 and "1024" in onnx_folder.FORMAT.marks(found)[0]
    told = convert.formats.recognise.open_checkpoint(folder / "maskgit256", num_codes=512)
    assert onnx_folder._codes(told) == 512 and onnx_folder.FORMAT.marks(told) == []
    # Graphs know it, and nothing else does.
    assert told.unused(onnx_folder.FORMAT.uses(told)) == [] and "num_codes=512" in told.unused()[0]
    tokenizer = convert.formats.recognise.open_checkpoint(folder / "tokenizer256", 7, 512)
    assert len(tokenizer.unused(onnx_folder.FORMAT.uses(tokenizer))) == 2


def test_onnx_is_named_when_read(folder):
    with pytest.raises(ValueError, match="ONNX graphs.*convert the weights they were made from"):
        convert.load_checkpoint(folder / "maskgit256_onnx")
    with pytest.raises(ValueError, match="an ONNX graph.*convert the weights it was made from"):
        convert.load_checkpoint(folder / "maskgit256_onnx" / "transformer.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["besnier", "di4c", "halton", "taming", "llamagen", "mage"])
def test_other_networks(kind, tmp_path):
    """All other networks too."""
    import halton_files
    import mage_files

    torch.manual_seed(0)
    tree = taming_vqgan_config.get_config().to_dict()
    params = tree["model"]["params"]
    params["ddconfig"] |= {"ch": 32, "ch_mult": [1] * 5, "num_res_blocks": 1, "z_channels": 8}
    params["embed_dim"] = 8
    network = {
        "besnier": lambda: trained_like(BesnierTransformer(64, 10, 16, 32, 1, 2, 64)),
        "di4c": lambda: trained_like(BesnierTransformer(64, 10, 16, 32, 1, 2, 64, 0.0, 8)),
        "halton": lambda: halton_files.transformer("A"),
        "taming": lambda: taming_vqgan_config.build(ml_collections.ConfigDict(tree)),
        "llamagen": halton_files.tokenizer,
        "mage": mage_files.model,
    }[kind]()
    network.save_pretrained(tmp_path / "model")
    for dtype in (None, "float16"):
        output = tmp_path / f"graphs_{dtype}"
        summary = convert.convert(tmp_path / "model", output, to="onnx", dtype=dtype)
        assert summary.check.startswith("run with onnxruntime")
        graphs = {path.stem for path in output.glob("*.onnx")}
        expected = {"encoder", "decoder"} if kind in ("taming", "llamagen", "mage") else set()
        expected |= {"transformer", "step"} if kind not in ("taming", "llamagen") else set()
        assert graphs == expected
