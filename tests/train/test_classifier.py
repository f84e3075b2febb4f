"""Classifiers as feature extractors: what is accepted, what is refused, and the numbers they give."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from train import classifier, evaluate
from train.demos.images import Part, write_tar
from train.evaluation import classifiers
from train.evaluation.classifiers import Classifier, ClassifierConfig, build_layers, save_classifier
from train.evaluation.context import Context
from train.evaluation.sources import ArraySource

NAMES = ("bars", "blobs", "stripes")
LAYERS = [
    ["Conv2d", {"in_channels": 3, "out_channels": 6, "kernel_size": 3, "stride": 2}],
    ["ReLU", {}],
    ["AdaptiveAvgPool2d", {"output_size": 2}],
    ["Flatten", {}],
    ["Linear", {"in_features": 24, "out_features": 3}],
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def images(seed: int, count: int, size: int = 12) -> Part:
    """Three kinds of gray images that are easy to tell apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = rng.integers(0, 60, (count, size, size))
    pixels[labels == 0, :, 2:5] += 150
    pixels[labels == 1, 4:9, 4:9] += 150
    pixels[labels == 2, 1::3] += 150
    return Part(pixels.astype(np.uint8), labels)


def colours(part: Part) -> np.ndarray:
    return np.repeat(part.images[..., None], 3, -1)


def config(**changes) -> ClassifierConfig:
    return ClassifierConfig(**{
        "network": LAYERS, "features": "3", "image_size": 12, "class_names": list(NAMES),
    } | changes)  # fmt: skip


def write(folder="net", **changes) -> nn.Sequential:
    torch.manual_seed(0)
    network = build_layers(LAYERS).eval()
    save_classifier(folder, network, config(**changes))
    return network


def change(**values) -> None:
    """Changes fields of net/config.json; None removes one."""
    with open("net/config.json") as file:
        known = json.load(file) | values
    with open("net/config.json", "w") as file:
        json.dump({k: v for k, v in known.items() if v is not None}, file)


def test_frechet_distance_is_that_of_an_independent_computation(capsys):
    """The whole command, against NumPy and SciPy on features that PyTorch gives directly."""
    linalg = pytest.importorskip("scipy.linalg")
    network = write(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    real, made = images(0, 90), images(1, 60)
    for name, part in (("real.tar", real), ("made.tar", made)):
        write_tar(name, part, NAMES)
    np.savez("made.npz", arr_0=colours(made), arr_1=made.labels)
    features = {}
    for name, part in (("real", real), ("made", made)):
        x = torch.from_numpy(colours(part)).permute(0, 3, 1, 2).double() / 255
        x = (x - torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1)) / torch.tensor(
            [0.2, 0.25, 0.3]
        ).reshape(3, 1, 1)
        with torch.inference_mode():
            features[name] = network.double()[:4](x).numpy()
            guesses = network(x).argmax(1).numpy()
    difference = features["real"].mean(0) - features["made"].mean(0)
    a, b = (np.cov(features[name], rowvar=False) for name in ("real", "made"))
    root = linalg.sqrtm(a @ b + 1e-14 * np.eye(24)).real
    expected = difference @ difference + np.trace(a + b - 2 * root)
    found = {}
    for samples in ("made.npz", "made.tar"):
        flags = [
            f"--samples={samples}",
            "--reference=real.tar",
            "--features=classifier:net",
            "--cache=",
        ]
        assert evaluate.command_line.run(
            evaluate.main, evaluate.FLAGS, "evaluate", "", [*flags, "--device=cpu", "--threads=1"]
        ) == 0, capsys.readouterr().err  # fmt: skip
        with open("evaluation/evaluation.json") as file:
            found[samples] = json.load(file)["metrics"]
    assert found["made.npz"] == found["made.tar"]
    metrics = found["made.npz"]
    assert abs(metrics["classifier_frechet_distance"] - expected) < 1e-6 * max(1, expected)
    assert metrics["classifier_recognised"] == (guesses == made.labels).mean()
    names = ("precision", "recall", "density", "coverage", "class_score")
    assert {f"classifier_{name}" for name in names} <= metrics.keys()


def test_features_are_the_mean_over_space_and_images_are_resized():
    network = write(features="1")
    extractor = Classifier("net")
    part = torch.from_numpy(colours(images(2, 5))).permute(0, 3, 1, 2)
    found = extractor(part)
    with torch.inference_mode():
        expected = network[:2]((part.float() / 255 - 0.5) / 0.5).mean((2, 3))
    torch.testing.assert_close(found["features"], expected)
    large = part.repeat_interleave(3, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(extractor(large)["features"], expected, atol=0.2, rtol=0.2)
    assert not torch.equal(extractor(large)["features"], expected)


def test_a_torchvision_model():
    try:
        classifiers.import_torchvision()
    except ImportError as error:
        pytest.skip(str(error))
    from torchvision import models

    torch.manual_seed(0)
    model = models.squeezenet1_1(num_classes=3).eval()
    described = config(
        network="torchvision:squeezenet1_1", arguments={"num_classes": 3}, image_size=32,
        features="features",
    )  # fmt: skip
    save_classifier("net", model, described)
    extractor = Classifier("net")
    part = torch.from_numpy(colours(images(0, 4, 32))).permute(0, 3, 1, 2)
    with torch.inference_mode():
        x = (part.float() / 255 - 0.5) / 0.5
        torch.testing.assert_close(extractor(part)["logits"], model(x))
        expected = model.features(x).mean((2, 3))
        torch.testing.assert_close(extractor(part)["features"], expected)


def test_a_network_of_ones_own(tmp_path):
    """The code comes from the command line, never from the folder."""
    source = """
from torch import nn
class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body, self.head = nn.Linear(432, width), nn.Linear(width, 3)
    def forward(self, images):
        return self.head(self.body(images.flatten(1)).relu())
"""
    (tmp_path / "mine.py").write_text(source)
    scope = {}
    exec(source, scope)
    save_classifier(
        "net", scope["Net"](7), config(network="Net", features="body", arguments={"width": 7})
    )
    with pytest.raises(ValueError, match="classifier_network=FILE.py:CLASS"):
        Classifier("net")
    assert Classifier("net", network="mine.py:Net")(
        torch.zeros(2, 3, 12, 12, dtype=torch.uint8)
    )["features"].shape == (2, 7)  # fmt: skip
    with pytest.raises(ValueError, match="defines no Other"):
        Classifier("net", network="mine.py:Other")
    context = Context.make("classifier:net", classifier_network="mine.py:Net")
    assert context.features(ArraySource(colours(images(0, 4))), "")["features"].shape == (4, 7)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "vqvae"}, "model_type is 'vqvae'"),
        ({"surprise": 1}, "'surprise' is unknown"),
        ({"features": None}, "'features' is missing"),
        ({"features": "9"}, "no module"),
        ({"network": "os:system", "arguments": {"command": "touch hacked"}}, "code of its own"),
        ({"network": "torchvision:no_such_net"}, "no classification model"),
        ({"network": "torchvision:squeezenet1_1", "arguments": {"weights": "DEFAULT"}}, "weights"),
        ({"network": [["Module", {}]]}, "layer 0 is 'Module'"),
        (
            {
                "network": [["Linear", {"in_features": 10**9, "out_features": 10**9}]],
                "features": "0",
            },
            "does not run",
        ),
        ({"network": [["ZeroPad2d", {"padding": 10**6}]], "features": "0"}, "numbers of one image"),
        ({"network": [["Conv2d", {"in_channels": 3, "no": 1}]]}, "layer 0, Conv2d"),
        ({"network": [["ReLU", {"device": "cuda"}]]}, "device and dtype"),
        ({"network": [["ReLU", {}]] * 2000}, "network is"),
        ({"network": 3}, "network is '3'"),
        ({"class_names": ["a", "b"]}, "class_names has 2"),
        ({"image_size": 10**9}, "1 to 4096"),
        ({"std": [0, 1, 1]}, "above 0"),
    ],
)
def test_hostile_configurations_are_refused(values, said, tmp_path):
    """Each gives one line, and nothing of them is executed."""
    write()
    change(**values)
    with pytest.raises(ValueError, match=said) as caught:
        Classifier("net")
    assert str(caught.value).startswith("net/config.json") and "\n" not in str(caught.value)
    assert not (tmp_path / "hacked").exists()


def test_hostile_weights_are_refused():
    write()
    state = safetensors.torch.load_file("net/model.safetensors")
    safetensors.torch.save_file(state | {"extra": torch.zeros(1)}, "net/model.safetensors")
    with pytest.raises(ValueError, match="extra"):
        Classifier("net")
    torch.save(state, "net/model.safetensors")  # a pickle under the name
    with pytest.raises(ValueError, match="safetensors"):
        Classifier("net")


def test_a_classifier_learns_and_says_how_well(capsys):
    """The command on easy images; without labels that it could learn it does not do well."""
    write_tar("train.tar", images(0, 120), NAMES)
    write_tar("test.tar", images(1, 30), NAMES)
    flags = [
        "--test=test.tar",
        "--num_train_steps=30",
        "--batch_size=32",
        "--device=cpu",
        "--threads=1",
    ]
    assert classifier.cli(["--images=train.tar", *flags]) == 0
    out = capsys.readouterr().out
    assert "of 30 test images are recognised" in out and "step 30 of 30" in out
    stored = ClassifierConfig.read("classifier")
    assert stored.about["test_accuracy"] >= 0.95 and stored.class_names == list(NAMES)
    part = torch.from_numpy(colours(images(1, 30))).permute(0, 3, 1, 2)
    guesses = Classifier("classifier")(part)["logits"].argmax(1)
    assert (guesses.numpy() == images(1, 30).labels).mean() == stored.about["test_accuracy"]
    seen = torch.from_numpy(colours(images(0, 120))).permute(0, 3, 1, 2)
    variances = Classifier("classifier")(seen)["features"].var(0)
    assert variances.mean().item() == pytest.approx(1, abs=1e-4)
    assert len(variances.unique()) > 10  # one scale for all, not one for each
    assert classifier.cli(["--images=train.tar", *flags]) == 1
    assert "--overwrite" in capsys.readouterr().err
    mixed = Part(images(0, 120).images, np.random.default_rng(0).integers(3, size=120))
    write_tar("mixed.tar", mixed, NAMES)
    assert classifier.cli(["--images=mixed.tar", *flags, "--overwrite"]) == 0
    assert ClassifierConfig.read("classifier").about["test_accuracy"] < 0.8
    write_tar("other.tar", images(1, 30), ("a", "b", "c"))
    flags[0] = "--test=other.tar"
    assert classifier.cli(["--images=train.tar", *flags, "--overwrite"]) == 1
    assert "classes are not those" in capsys.readouterr().err


def test_recognised_needs_labels_and_the_same_classes(capsys):
    write()
    Image.fromarray(colours(images(0, 1))[0]).save("one.png")
    write_tar("real.tar", images(0, 30), NAMES)
    write_tar("other.tar", images(0, 30), ("a", "b", "c"))
    np.savez("none.npz", arr_0=colours(images(0, 30)))

    def call(samples: str, *flags: str) -> int:
        flags = [f"--samples={samples}", "--metrics=recognised", "--cache=", "--device=cpu", *flags]
        return evaluate.command_line.run(evaluate.main, evaluate.FLAGS, "evaluate", "", flags)

    assert call("real.tar", "--features=classifier:net") == 0
    assert call("other.tar", "--features=classifier:net") == 1
    assert "the images have a, b, c" in capsys.readouterr().err
    assert call("none.npz", "--features=classifier:net") == 1
    assert "labels, which none.npz does not have" in capsys.readouterr().err
    assert call("real.tar", "--features=random") == 1
    assert "'random' is not" in capsys.readouterr().err
    assert call("real.tar", "--features=classifier:") == 2
    assert "classifier:FOLDER" in capsys.readouterr().err
