"""Images to tokens and back, many at a time, so that no result depends on its neighbours."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn


class Encoder:
    """Runs a tokenizer.

    On a CPU every image is computed by one thread, on its own, several at a time: the last bits depend
    neither on the batch nor on the number of threads. On a GPU every batch is filled up to one size;
    rounding there may depend on that size, and now and then a token with it.

    Args:
      tokenizer: one of `networks.TOKENIZERS`, in evaluation mode, on its device and in its dtype.
      batch_size: images in one call of the network, on a GPU.
      threads: images at a time on a CPU.
    """

    def __init__(self, tokenizer: nn.Module, batch_size: int = 64, threads: int = 1):
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.device = tokenizer.get_codebook_funct().device
        self.dtype = tokenizer.get_codebook_funct().dtype
        self._one_by_one = self.device.type == "cpu"
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
        parts = self._run(self._encode, images)
        return lambda: np.concatenate(
            [part().cpu().flatten(1).numpy().astype(np.uint16) for part in parts]
        )

    def decode(self, tokens: Tensor) -> Tensor:
        """int64 [B, h, w] -> images float32 [B, 3, S, S] in [0, 1], on the CPU."""
        return torch.cat([part().cpu() for part in self._run(self._decode, tokens)])

    def _run(self, network: Callable[[Tensor], Tensor], batch: Tensor) -> list[Callable]:
        """Functions that give the parts of the result, in order."""
        if self._one_by_one:
            return [self._pool.submit(network, part).result for part in batch.split(1)]
        parts = []
        for part in batch.split(self.batch_size):
            count = len(part)
            filling = part[-1:].expand(self.batch_size - count, *part.shape[1:])
            result = network(torch.cat([part, filling]))[:count]
            parts.append(lambda result=result: result)
        return parts

    @torch.inference_mode()
    def _encode(self, images: Tensor) -> Tensor:
        images = images.to(self.device).movedim(-1, 1).float() / 255  # [B, 3, S, S]
        return self.tokenizer.encode_to_indices(images.to(self.dtype))

    @torch.inference_mode()
    def _decode(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.decode_from_indices(tokens.to(self.device)).float().clamp(0, 1)
