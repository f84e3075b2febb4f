"""Published rates of GPUs: what a share of the peak is a share of."""

import re

import torch

_TERA = 1e12
# Dense matrix products with sums in float32, in TFLOP/s as the makers' data sheets give them (their figures
# with sparsity halved): bfloat16 on tensor cores, TensorFloat-32 on them, float32 without. The first pattern
# that a card's name contains counts.
_CARDS = {
    r"\bH100 PCIe\b": (756, 378, 51.2),
    r"\bH100 NVL\b": (835, 417.5, 60),
    r"\b(H100|H200|GH200)\b": (989.4, 494.7, 66.9),
    r"\bB200\b": (2250, 1125, 75),
    r"\bA100\b": (312, 156, 19.5),
    r"\bA10\b": (125, 62.5, 31.2),
    r"\bL40S\b": (362, 183, 91.6),
    r"\bL4\b": (121, 60, 30.3),
    r"\bRTX 4090\b": (165.2, 82.6, 82.6),
    r"\bRTX 3090\b": (71, 35.6, 35.6),
}


def published_peak(card: str, dtype: torch.dtype, tf32: bool = False) -> float | None:
    """The published rate of matrix products on a card, in operations a second.

    Args:
      card: as `torch.cuda.get_device_name` gives it.
      dtype: of the products: bfloat16, float16 or float32.
      tf32: whether float32 products are made in TensorFloat-32.

    Returns:
      None for an unknown card or dtype.
    """
    column = {torch.bfloat16: 0, torch.float16: 0, torch.float32: 1 if tf32 else 2}.get(dtype)
    if column is None:
        return None
    for pattern, rates in _CARDS.items():
        if re.search(pattern, card):
            return rates[column] * _TERA
    return None


def peak_of(device: torch.device, dtype: torch.dtype) -> float | None:
    """The published rate of a device under the precision set now; None where none is known."""
    if device.type != "cuda":
        return None
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return published_peak(torch.cuda.get_device_name(device), dtype, tf32)
