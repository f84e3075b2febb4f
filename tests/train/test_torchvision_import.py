"""torchvision beside a CPU build of torch."""

import sys

import fresh_python
import pytest

from train.evaluation.torchvision_import import import_torch_fidelity, import_torchvision


def test_in_a_fresh_process():
    """Networks can be made, also if somebody tried to import torchvision before."""
    code = """
try:
    import torchvision
except RuntimeError:
    pass
from train.evaluation.torchvision_import import import_torch_fidelity, import_torchvision
import torch
network = import_torchvision().models.resnet18(weights=None)
assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
assert import_torch_fidelity().__version__
assert import_torchvision() is import_torchvision()
"""
    assert fresh_python.run(code).returncode == 0


@pytest.mark.parametrize("missing", ["torchvision", "torch_fidelity"])
def test_missing_says_which_extra(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    function = {"torchvision": import_torchvision, "torch_fidelity": import_torch_fidelity}[missing]
    with pytest.raises(ImportError, match=rf"{missing} is not installed; .*maskgit_pt\[eval\]"):
        function()
