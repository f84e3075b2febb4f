"""The sampler of the 2023 report (valeoai/Maskgit-pytorch at tag v1.0), to be timed by `sampling.py`."""

import importlib
import sys
import types
import warnings
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from maskgit_pt.configs import taming_vqgan_config


def sampler(checkout: Path, size: int, device: torch.device) -> object:
    """Its `MaskGIT`, on networks of the published sizes with random weights.

    Args:
      checkout: the clone.
      size: pixels along one side.
      device: of the networks.

    Raises:
      ValueError: it is no such clone.
    """
    code, tokenizer_code = _import(checkout)
    settings = taming_vqgan_config.get_config().model.params.to_dict() | {"lossconfig": None}
    codes, side = settings["n_embed"], size // 16
    result = object.__new__(code.MaskGIT)  # its constructor wants data and checkpoints
    result.args = types.SimpleNamespace(device=device, mask_value=codes)
    result.codebook_size, result.patch_size = codes, side
    network = code.MaskTransformer(  # its size "base"
        img_size=size, codebook_size=codes, f_factor=side, heads=16
    )
    result.vit = network.to(device)
    result.ae = tokenizer_code.VQModel(**settings).to(device).eval()
    return result


def _import(checkout: Path) -> tuple[types.ModuleType, types.ModuleType]:
    """Its modules Trainer.vit and Network.Taming.models.vqgan, without what sampling does not use."""
    if not (checkout / "Trainer" / "vit.py").is_file():
        raise ValueError(
            f"{checkout}: no checkout of valeoai/Maskgit-pytorch at v1.0: Trainer/vit.py is missing"
        )
    unused = ("omegaconf", "einops", "requests", "torchvision", "torchvision.utils")
    stubs = {name: mock.MagicMock() for name in unused}
    stubs["Trainer.trainer"] = types.SimpleNamespace(Trainer=object)
    stubs["pytorch_lightning"] = types.SimpleNamespace(LightningModule=nn.Module)
    # Its way of asking for autocast is an old one, which PyTorch remarks on.
    warnings.filterwarnings("ignore", message=".*(amp.autocast|GradScaler|CUDA is not available)")
    with mock.patch.dict(sys.modules, stubs):
        sys.path.insert(0, str(checkout))
        try:
            code = importlib.import_module("Trainer.vit")
            tokenizer_code = importlib.import_module("Network.Taming.models.vqgan")
        finally:
            sys.path.remove(str(checkout))
    code.tqdm = lambda steps, leave: steps  # no bars between the lines of the table
    return code, tokenizer_code
