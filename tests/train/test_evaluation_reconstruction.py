"""PSNR, SSIM, LPIPS and codebook use against independent code."""

import numpy as np
import pytest
import torch
from torch import nn

from train.evaluation.reconstruction import LPIPS, codebook_use, psnr, ssim
from train.evaluation.torchvision_import import import_torch_fidelity, import_torchvision


def image_pairs(seed: int, shape=(4, 3, 20, 24)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, shape, generator=generator)
    noise = torch.randint(-40, 40, shape, generator=generator)
    return (images + noise).clamp(0, 255).byte(), images.byte()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_psnr(seed):
    images, originals = image_pairs(seed)
    error = ((images.double() / 255 - originals.double() / 255) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(psnr(images, originals), -10 * error.log10(), rtol=1e-12, atol=0)
    assert torch.isinf(psnr(images, images)).all()
    off_by_one = (originals.int() + torch.where(originals > 127, -1, 1)).byte()
    np.testing.assert_allclose(psnr(off_by_one, originals), 20 * np.log10(255))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ssim_equals_scipys_gaussian_filter(seed):
    from scipy.ndimage import gaussian_filter

    images, originals = image_pairs(seed)

    def blur(x: np.ndarray) -> np.ndarray:
        # truncate=3.5 gives a radius of 5; beyond the border nothing is used.
        blurred = gaussian_filter(x, 1.5, truncate=3.5, axes=(2, 3))
        return blurred[:, :, 5:-5, 5:-5]

    x, y = images.double().numpy(), originals.double().numpy()
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = 2.55**2, 7.65**2
    maps = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    np.testing.assert_allclose(ssim(images, originals), maps.mean((1, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(ssim(images, images), 1, rtol=1e-12)
    assert (ssim(images, originals) < 0.99).all()


def test_ssim_of_small_images():
    with pytest.raises(ValueError, match=r"11 pixels or more; found \[10, 12\]"):
        ssim(*image_pairs(0, (1, 3, 10, 12)))


def test_codebook_use():
    assert codebook_use(np.array([[0, 1], [2, 3]]), 8) == (0.5, pytest.approx(4))
    assert codebook_use(np.full((5, 2, 2), 7), 8) == (0.125, pytest.approx(1))
    counts = np.array([5, 3, 2])
    entropy = -(counts / 10 * np.log(counts / 10)).sum()
    tokens = np.repeat([0, 1, 4], counts)
    assert codebook_use(tokens, 5) == (0.6, pytest.approx(np.exp(entropy)))


@pytest.fixture
def lpips_files(tmp_path):
    """Random weights in the files of torchvision and of LPIPS."""
    import_torchvision()
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    vgg = nn.Module()
    vgg.features = make_layers(cfgs["D"])
    for parameter in vgg.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
    state = vgg.state_dict() | {"classifier.0.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "vgg16.pth")
    widths = (64, 128, 256, 512, 512)
    linear = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in enumerate(widths)}
    torch.save(linear, tmp_path / "linear.pth")
    return vgg, linear, tmp_path


def test_lpips_equals_torch_fidelity(lpips_files, monkeypatch):
    vgg, linear, folder = lpips_files
    import_torch_fidelity()
    from torch_fidelity import sample_similarity_lpips as theirs

    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: linear)
    monkeypatch.setattr(theirs, "torchvision_load_pretrained_vgg16", lambda: vgg)
    expected = theirs.SampleSimilarityLPIPS("lpips-vgg16")
    ours = LPIPS.from_flag(f"{folder / 'vgg16.pth'},{folder / 'linear.pth'}")
    for seed in range(3):
        images, originals = image_pairs(seed, (2, 3, 32, 48))
        # Their image constants are float32 as well, combined in another order.
        torch.testing.assert_close(
            ours(images, originals), expected(images, originals), rtol=1e-4, atol=1e-6
        )
        assert ours(images, images).tolist() == [0, 0]


def test_wrong_lpips_files(lpips_files):
    folder = lpips_files[2]
    vgg, linear = folder / "vgg16.pth", folder / "linear.pth"
    with pytest.raises(ValueError, match="linear.pth: not torchvision's weights of VGG16"):
        LPIPS(linear, linear)
    with pytest.raises(ValueError, match="vgg16.pth: not the linear weights of LPIPS"):
        LPIPS(vgg, vgg)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        LPIPS(vgg, folder / "nowhere")
    with pytest.raises(ValueError, match="accepted: two files"):
        LPIPS.from_flag(str(vgg))
