"""`Result`: images, and the tokens that they were made of."""

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass
class Result:
    """Pictures and what they were made of, on the CPU.

    Attributes:
      images: float32 [B, 3, H, W] in [0, 1].
      tokens: int64 [B, h, w].
      masks: bool [B, S, h, w], what was still unknown after each step; None unless asked for.
      guesses: int64 [B, S, h, w], the whole guess of each step; None unless asked for.
    """

    images: Tensor
    tokens: Tensor
    masks: Tensor | None = None
    guesses: Tensor | None = None
    _copied: torch.cuda.Event | None = None

    def wait(self) -> "Result":
        """Waits until a GPU has copied everything; only what `MaskGIT.sample` returns needs it."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return self

    def first(self, count: int) -> "Result":
        """Returns the first `count` images alone."""
        parts = (self.images, self.tokens, self.masks, self.guesses)
        return Result(*(None if part is None else part[:count] for part in parts), self._copied)


def join_results(results: list[Result]) -> Result:
    """The images of several batches as one result."""

    def join(name: str) -> Tensor | None:
        parts = [getattr(result, name) for result in results]
        return None if parts[0] is None else torch.cat(parts)

    return Result(*(join(name) for name in ("images", "tokens", "masks", "guesses")))
