import os
import subprocess
import sys

import pytest
import torch

from maskgit_pt.launch import Processes, pick_device


def test_importing_the_package_changes_nothing():
    code = """
import os, sys
before = dict(os.environ)
import maskgit_pt
assert dict(os.environ) == before and "torch" not in sys.modules
assert maskgit_pt.VQVAE.__name__ == "VQVAE" and maskgit_pt.Transformer.__name__ == "Transformer"
assert dict(os.environ) == before
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_a_process_alone():
    with Processes() as alone:
        assert (alone.rank, alone.world_size, alone.is_main, alone.control) == (0, 1, True, None)
        assert alone.any(True) and not alone.any(False)
        assert alone.each("x") == ["x"] and alone.on_first(lambda: 3) == 3
        assert torch.equal(alone.sum(torch.ones(2)), torch.ones(2))
        alone.barrier()
        assert alone.patient().control is None
        with pytest.raises(ValueError, match="of this"):
            alone.on_first(lambda: (_ for _ in ()).throw(ValueError("of this")))
    assert not torch.distributed.is_initialized()


def test_a_group_of_one_for_training():
    with Processes("cpu") as one:
        assert torch.distributed.is_initialized() and one.control is not None
        with Processes() as inner:  # finds the group that is there, and leaves it
            assert inner.world_size == 1
        assert torch.distributed.is_initialized()
    assert not torch.distributed.is_initialized()


def test_threads():
    before = torch.get_num_threads()
    try:
        assert pick_device("cpu", 0).type == "cpu" and torch.get_num_threads() == before
        pick_device("cpu", 1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match="--device=tpu cannot be used here"):
        pick_device("tpu")
