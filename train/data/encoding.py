"""Images to tokens and back, many at a time, so that no result depends on its neighbours.

A row's rounding depends on the kernel that computes it, and that on the size of the batch: PyTorch convolves
a single image by other code than a batch. So every call of the network gets as many rows as any other, the
last one filled up. Which rows they are then changes nothing.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

_CPU_PIXELS = 2**15  # in one call on a CPU: 32 images of 28 px, 8 of 64 px, one of 256 px
_CPU_MOST = 64  # images in one call


def cpu_rows(pixels: int) -> int:
    """How many images of so many pixels one call takes on a CPU, whatever the batch: a power of two."""
    return 1 << max(0, min(_CPU_MOST, _CPU_PIXELS // pixels).bit_length() - 1)


def filled_parts(batch: Tensor, rows: int) -> Iterator[tuple[Tensor, int]]:
    """Cuts a batch [B, ...] into parts [rows, ...] and says how many rows of each are the batch's own."""
    for part in batch.split(rows):
        filling = part[-1:].expand(rows - len(part), *part.shape[1:])
        yield torch.cat([part, filling]), len(part)


class Encoder:
    """Runs a tokenizer.

    On a CPU one thread computes each call of `cpu_rows` images, several calls at a time: the last bits depend
    neither on the batch nor on the number of threads. On a GPU the size of a call is `batch_size`; rounding
    there may depend on it, and now and then a token with it.

    Args:
      tokenizer: one of `networks.TOKENIZERS`, in evaluation mode, on its device and in its dtype.
      batch_size: images in one call of the network, on a GPU.
      threads: calls at a time on a CPU.
    """

    def __init__(self, tokenizer: nn.Module, batch_size: int = 64, threads: int = 1):
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.device = tokenizer.get_codebook_funct().device
        self.dtype = tokenizer.get_codebook_funct().dtype
        self._on_cpu = self.device.type == "cpu"
        # Set inside the threads, the number of threads for one operation is theirs alone.
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def start(self, images: Tensor) -> Callable[[], np.ndarray]:
        """Starts on a batch.

        Args:
          images: uint8 [B, S, S, 3] on the CPU.

        Returns:
          A function that waits for the result: tokens uint16 [B, h*w].
        """
        if not len(images):
            side = images.shape[1] // self.tokenizer.downsampling
            return lambda: np.empty((0, side * side), np.uint16)
        parts = self._run(self._encode, images, images.shape[1] * images.shape[2])
        return lambda: np.concatenate(
            [part().cpu().flatten(1).numpy().astype(np.uint16) for part in parts]
        )

    def decode(self, tokens: Tensor) -> Tensor:
        """int64 [B, h, w] -> images float32 [B, 3, S, S] in [0, 1], on the CPU."""
        pixels = tokens[0].numel() * self.tokenizer.downsampling**2
        return torch.cat([part().cpu() for part in self._run(self._decode, tokens, pixels)])

    def _run(
        self, network: Callable[[Tensor], Tensor], batch: Tensor, pixels: int
    ) -> list[Callable]:
        """Functions that give the parts of the result, in order; `pixels` are those of one image."""
        if self._on_cpu:
            return [
                functools.partial(_first, self._pool.submit(network, part), count)
                for part, count in filled_parts(batch, cpu_rows(pixels))
            ]
        parts = []
        for part, count in filled_parts(batch, self.batch_size):
            result = network(part)[:count]
            parts.append(lambda result=result: result)
        return parts

    @torch.inference_mode()
    def _encode(self, images: Tensor) -> Tensor:
        images = images.to(self.device).movedim(-1, 1).float() / 255  # [B, 3, S, S]
        return self.tokenizer.encode_to_indices(images.to(self.dtype))

    @torch.inference_mode()
    def _decode(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.decode_from_indices(tokens.to(self.device)).float().clamp(0, 1)


def _first(result: Future, count: int) -> Tensor:
    """Waits; the first `count` rows."""
    return result.result()[:count]
