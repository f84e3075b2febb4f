"""The published metrics end to end against torch-fidelity, with Inception weights from a seed."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import train.evaluation as evaluation
from maskgit_pt.command_line import run
from train import evaluate
from train.evaluation.features import Inception
from train.evaluation.reference import load_reference, save_reference
from train.evaluation.torchvision_import import import_torch_fidelity

torch_fidelity = import_torch_fidelity()
from torch_fidelity import feature_extractor_inceptionv3 as theirs  # noqa: E402


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file like torch-fidelity's, with random numbers."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        patch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **kwargs: tensor)
        network = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    generator = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for value in state.values():
        if value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
    # Rows that sum to 0: the logits then depend on the picture, not on how bright features are.
    state["fc.weight"] -= state["fc.weight"].mean(1, keepdim=True)
    state["fc.weight"] *= 100
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """10 and 8 pictures of 64 px."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, count, top in (("samples", 10, 255), ("reference", 8, 180)):
        (root / name).mkdir()
        for i in range(count):
            coarse = rng.integers(0, top, (5, 5, 3), np.uint8)
            Image.fromarray(coarse).resize((64, 64)).save(root / name / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Features are computed once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def features(weights, folders):
    """Of both folders, float64 [N, 2048]."""
    extractor = Inception(weights)
    sources = [evaluation.open_source(folders / name) for name in ("samples", "reference")]
    images = [torch.from_numpy(source.read(0, len(source))) for source in sources]
    return [extractor(i.permute(0, 3, 1, 2))["features"].double().numpy() for i in images]


@pytest.mark.parametrize("fid", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_equals_torch_fidelity(fid, weights, folders, cache, tmp_path, capsys):
    """The command, and torch-fidelity's own on the same folders: all of it in common."""
    args = [
        f"--samples={folders / 'samples'}", f"--reference={folders / 'reference'}", "--device=cpu",
        f"--inception_weights={weights}", f"--output={tmp_path}", "--splits=2", "--threads=1",
        f"--cache={cache}", "--name=seeded",
    ]  # fmt: skip
    assert run(evaluate.main, evaluate.FLAGS, evaluate.PROGRAM, evaluate.USAGE, args) == 0
    document = json.loads((tmp_path / "evaluation.json").read_text())
    expected = torch_fidelity.calculate_metrics(
        input1=str(folders / "samples"), input2=str(folders / "reference"), cuda=False, cache=False,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights),
        fid=fid, isc=True, prc=True, isc_splits=2, batch_size=10, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    found = document["metrics"]
    if fid:  # half a minute of eigenvalues of a matrix that is not symmetric
        assert found["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert found["inception_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-5)
    assert found["inception_score_std"] == pytest.approx(expected["inception_score_std"], rel=1e-4)
    assert found["inception_score"] > 1.1
    for name in ("precision", "recall"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)
    row = capsys.readouterr().out
    assert "| FID | IS | precision | recall | density | coverage |" in row
    assert document["protocol"]["features"]["weights"][:12] in row
    assert "TF-Inception" in row and "seeded" in row


def test_adm_reference_batch(weights, folders, features, cache, tmp_path):
    """FID from mu and sigma of the file, the neighbours from its images."""
    samples, reference = features
    batch = evaluation.open_source(folders / "reference").read(0, 8)
    mu, sigma = reference.mean(0) + 0.01, np.cov(reference, rowvar=False) * 1.1
    path = tmp_path / "batch.npz"
    np.savez(path, arr_0=batch, mu=mu, sigma=sigma, mu_s=np.zeros(7), sigma_s=np.eye(7))
    settings = {"inception_weights": weights, "cache": cache}

    def call(metrics: list[str] | None = None) -> evaluation.Evaluation:
        return evaluation.evaluate(folders / "samples", path, metrics=metrics, splits=2, **settings)

    found = call(["fid", "precision", "coverage"])
    a = evaluation.fit(samples)
    product = (samples - a.mean) @ (reference - reference.mean(0)).T
    trace = np.linalg.norm(product, "nuc") * np.sqrt(1.1 / (9 * 7))
    expected = np.square(a.mean - mu).sum() + np.trace(a.covariance + sigma) - 2 * trace
    assert found.metrics["fid"] == pytest.approx(expected, rel=1e-5)
    neighbours = evaluation.manifold_metrics(samples, reference)
    assert found.metrics["precision"] == neighbours["precision"]
    assert found.metrics["coverage"] == neighbours["coverage"]
    assert found.protocol["reference"]["statistics"] == "mu and sigma of the file"
    assert found.protocol["reference"]["count"] == 8
    np.savez(path, mu=mu, sigma=sigma)  # statistics alone
    alone = call()
    assert set(alone.metrics) == {"fid", "inception_score", "inception_score_std"}
    assert alone.metrics["fid"] == pytest.approx(found.metrics["fid"], rel=1e-6)
    with pytest.raises(
        ValueError, match="precision needs the reference's features; batch.npz holds"
    ):
        call(["precision"])
    for mu_, sigma_, message in (
        (mu[:9], sigma[:9, :9], "batch.npz: mu has 9 numbers; accepted: Inception's 2048"),
        (mu, sigma[0], "batch.npz: statistics have a mean"),
        (mu, np.array([None]), "batch.npz: sigma has dtype object"),
        (mu[:9] + np.nan, sigma[:9, :9], "batch.npz: statistics hold infinite numbers or NaN"),
    ):
        np.savez(path, arr_0=batch, mu=mu_, sigma=sigma_)
        with pytest.raises(ValueError, match=message):
            call(["fid"])


def spatial_features(weights, images: np.ndarray) -> np.ndarray:
    """float64 [N, 2023], by a network that ends with the layer."""
    network = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["768"], str(weights))
    network.Mixed_6e, network.Mixed_6d = network.Mixed_6d.branch1x1, torch.nn.Identity()
    outputs = []
    network.Mixed_6e.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    network(torch.from_numpy(images).permute(0, 3, 1, 2))
    places = [(c, y, x) for y in range(17) for x in range(17) for c in range(7)]
    return np.array([[image[place] for place in places] for image in outputs[0].double().numpy()])


def test_spatial_distance(weights, folders, tmp_path):
    """sFID by hand; the reference's side from images, ADM's mu_s and sigma_s, and a file of ours."""
    images = [
        evaluation.open_source(folders / name).read(0, n)
        for name, n in (("samples", 3), ("reference", 2))
    ]
    context = evaluation.Context.make(inception_weights=weights)
    computed = load_reference(images[1], context, None, with_spatial=True)
    found = evaluation.evaluate(images[0], computed, metrics=["sfid"], context=context)
    features = spatial_features(weights, np.concatenate(images))
    a, b = features[:3], features[3:]
    difference = a.mean(0) - b.mean(0)
    a, b = a - a.mean(0), b - b.mean(0)
    trace = np.linalg.norm(a @ b.T, "nuc") / np.sqrt(2 * 1)
    expected = difference @ difference + np.square(a).sum() / 2 + np.square(b).sum() - 2 * trace
    assert found.metrics == {"sfid": pytest.approx(expected, rel=1e-5)}
    assert "| sFID |" in found.to_markdown()

    own, adm = tmp_path / "own.npz", tmp_path / "adm.npz"
    save_reference(computed, context.extractor, own)
    mean, covariance = features[3:].mean(0), np.cov(features[3:], rowvar=False)
    rest = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    np.savez(adm, mu_s=mean, sigma_s=covariance, **rest)
    for path in (own, adm):
        spatial = load_reference(path, context, None, with_spatial=True).spatial
        np.testing.assert_allclose(spatial.mean, mean, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(spatial.covariance, covariance, rtol=1e-5, atol=1e-9)
    assert load_reference(adm, context, None).spatial is None  # not asked for
    np.savez(adm, **rest)
    with pytest.raises(ValueError, match="sfid needs the reference's mu_s and sigma_s, or images"):
        evaluation.evaluate(images[0], adm, metrics=["fid", "sfid"], context=context)
    np.savez(adm, mu_s=np.zeros(7), sigma_s=np.eye(7), **rest)
    with pytest.raises(ValueError, match="mu_s has 7 numbers; accepted: Inception's 2023"):
        evaluation.evaluate(images[0], adm, metrics=["sfid"], context=context)
