"""The only place that imports torchvision: beside a CPU build of torch its wheel needs help.

torchvision of the package index is built for CUDA. Beside a torch without CUDA its compiled operators cannot
be loaded, and importing it fails with "operator torchvision::nms does not exist", although nothing that we
use of it (networks, torch-fidelity's extractors) needs one. Declaring the two operators is enough.
"""

import importlib
import sys
import types

import torch

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # operators live as long as this object


def import_torchvision() -> types.ModuleType:
    """Imports torchvision, declaring missing operators if that is what it takes.

    Raises:
      ImportError: it is not installed, or fails for another reason.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise _not_installed(error) from None
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise ImportError(f"torchvision cannot be imported: {error}") from None
    _declare_operators()
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        raise ImportError(f"torchvision does not fit torch {torch.__version__}: {error}") from None


def import_torch_fidelity() -> types.ModuleType:
    """Imports torch-fidelity, which imports torchvision.

    Raises:
      ImportError: one of them is not installed, or fails to import.
    """
    import_torchvision()
    try:
        return importlib.import_module("torch_fidelity")
    except ModuleNotFoundError as error:
        raise _not_installed(error) from None


def _not_installed(error: ModuleNotFoundError) -> ImportError:
    return ImportError(
        f"{error.name} is not installed; it comes with the extra 'eval': pip install 'maskgit_pt[eval]'"
    )


def _declare_operators() -> None:
    global _library
    if _library is None:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _OPERATORS:
            _library.define(schema)
