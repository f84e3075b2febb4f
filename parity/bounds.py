"""How far the two sides may differ; `parity.compare.compare` says what absolute and relative mean.

In float32 each bound is a few times what rounding alone makes of the same network (24 layers, logits
of standard deviation 10). In float64 nothing but rounding of 1e-16 is left, and a difference above
1e-9 is a difference of the computation.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Bounds of networks, losses and gradients.

    Attributes:
      logits: absolute.
      layers: of the transformer's activations, relative.
      blocks: of the tokenizer's activations, relative.
      images: absolute.
      loss: absolute.
      gradients: relative to all gradients' scale, and to the array's own.
    """

    logits: float
    layers: float
    blocks: float
    images: float
    loss: float
    gradients: tuple[float, float]


FLOAT32 = Bounds(2e-4, 2e-5, 3e-5, 2e-4, 5e-5, (1e-5, 1e-4))
FLOAT64 = Bounds(1e-9, 1e-10, 1e-10, 1e-9, 1e-9, (1e-10, 1e-9))
# The official code rounds the R1 penalty to float32, in float64 as well.
R1_FLOAT64 = dataclasses.replace(FLOAT64, gradients=(1e-7, 1e-7))


@dataclasses.dataclass(frozen=True)
class RunBounds:
    """Bounds of some steps of training.

    Attributes:
      first_loss: of every loss before the first update, absolute.
      loss: the same at every step.
      norm: of the gradient's norm at every step, relative.
      gradients: at the first step, times their largest magnitude where that is above 1.
      weights: at the end, and of their moving averages, absolute; None: not compared.
      stray_share: the share of weights that may differ by more. Adam divides a gradient by its own
        size: where that is nothing but rounding, as happens in float32, the weight moves by the full
        rate, in either direction. The accuracy, which rounding decides as well, is compared only if 0.
    """

    first_loss: float
    loss: float
    norm: float
    gradients: float
    weights: float | None
    stray_share: float = 0.0


TRANSFORMER_RUN32 = RunBounds(1e-5, 1e-4, 1e-4, 1e-5, None, stray_share=1e-5)
TOKENIZER_RUN32 = RunBounds(1e-5, 1e-4, 1e-4, 1e-5, 1e-4, stray_share=1e-5)
RUN64 = RunBounds(1e-10, 1e-9, 1e-9, 1e-10, 1e-8)
