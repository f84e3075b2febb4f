"""What a card is asked: one function a part, each with the device as an argument.

`test_gpu.py` runs all of them at full size on a GPU, `test_gpu_parts.py` at toy size on the CPU. A part
returns a `Report`: figures, and what is wrong. It goes on after something wrong, so that one run tells all.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import gpu_inference
import gpu_official
import gpu_training
import torch
from gpu_tools import Figures, Report, Size


@dataclasses.dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
      function: takes a device, a size and an empty folder.
      seconds: how long it may take at full size.
    """

    function: Callable[[torch.device, Size, Path], Report]
    seconds: float


# In the order in which they are wanted if time runs out.
PARTS = {
    "versions, rates, attention": Part(gpu_inference.versions_and_rates, 60),
    "noise": Part(gpu_inference.noise, 60),
    "networks against the CPU": Part(gpu_inference.networks, 120),
    "loops without waiting": Part(gpu_inference.loops_without_waiting, 60),
    "training steps": Part(gpu_training.transformer_steps, 150),
    "sampling speed": Part(gpu_inference.sampling_speed, 200),
    "compiled sampling": Part(gpu_inference.compiled, 150),
    "tokenizer steps": Part(gpu_training.tokenizer_steps, 90),
    "torchrun": Part(gpu_training.torchrun, 120),
    "memory at 512 px": Part(gpu_inference.memory_at_512_px, 60),
    "official JAX": Part(gpu_official.official_jax, 120),
}


def run_part(name: str, device: str, size: Size, notes: Path | None = None) -> Report:
    """Answers one part; notes its figures in a file as they come."""
    Figures.file = notes
    with tempfile.TemporaryDirectory() as folder:
        return PARTS[name].function(torch.device(device), size, Path(folder))
