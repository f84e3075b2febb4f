"""The perceptual loss: distance between features of a pretrained image classifier."""

import ml_collections
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What torchvision's ImageNet classifiers take.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIDE = 224
_WHERE = (
    "a file as torchvision's ResNet-50 publishes them, e.g. "
    "https://download.pytorch.org/models/resnet50-11ad3fa6.pth; or 'off' to train without it"
)


class PerceptualLoss(nn.Module):
    """Mean squared distance between ResNet-50's features of two images, as the authors use it.

    Args:
      network: torchvision's ResNet-50 with trained weights.
      on_logit: compare the class logits instead of the pooled features.
    """

    def __init__(self, network: nn.Module, on_logit: bool = False):
        super().__init__()
        self.network = network
        if not on_logit:
            self.network.fc = nn.Identity()
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> [B, 2048], or logits [B, 1000]."""
        if images.shape[-2:] != (_SIDE, _SIDE):
            images = F.interpolate(
                images, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False, antialias=True
            )
        return self.network((images - self.mean) / self.std)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The loss, a scalar; gradients flow to `fake` alone."""
        with torch.no_grad():
            wanted = self.features(real)
        dtype = torch.promote_types(wanted.dtype, torch.float32)
        return F.mse_loss(self.features(fake).to(dtype), wanted.to(dtype))


def load(config: ml_collections.ConfigDict, device: torch.device) -> PerceptualLoss | None:
    """The loss that the settings want; None if its weight is 0 or `perceptual_weights` is "off".

    Raises:
      ValueError: no file named, or not a ResNet-50's.
      FileNotFoundError: no such file.
    """
    path = config.perceptual_weights
    if config.perceptual_loss_weight == 0 or path == "off":
        return None
    if not path:
        raise ValueError(f"config.perceptual_weights is not set; accepted: {_WHERE}")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"config.perceptual_weights: no file {path}; accepted: {_WHERE}"
        ) from None
    except Exception as error:
        raise ValueError(
            f"config.perceptual_weights: {path} is not a PyTorch state file ({type(error).__name__})"
        ) from None
    from train.evaluation.torchvision_import import import_torchvision

    with torch.device("meta"):
        network = import_torchvision().models.resnet50(weights=None)
    expected = network.state_dict()
    if isinstance(weights, dict):  # torchvision's first files lack the counters, which nobody reads
        counters = [name for name in expected if name.endswith("num_batches_tracked")]
        weights = dict.fromkeys(counters, torch.tensor(0)) | weights
    fits = isinstance(weights, dict) and weights.keys() == expected.keys()
    if not fits or any(weights[name].shape != v.shape for name, v in expected.items()):
        raise ValueError(
            f"config.perceptual_weights: {path} does not hold a ResNet-50; accepted: {_WHERE}"
        )
    network.load_state_dict(weights, assign=True)
    return PerceptualLoss(network.float(), config.perceptual_loss_on_logit).to(device)
