"""How large a share of the tokens stays masked (official libml/mask_schedule.py)."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def schedule(ratio: Any, total_unknown: Any, method: str = "cosine") -> jax.Array:
    """Mask rate in [1e-6, 1] at `ratio` of the way, 0 <= ratio <= 1.

    Args:
      ratio: scalar or array; decoding: (step + 1) / steps; training: drawn uniformly.
      total_unknown: number of tokens that can be masked; used by "log" and "exp" alone.
      method: "uniform", "cosine", "log", "exp" or "pow<x>", e.g. "pow2.5".
    """
    if method == "uniform":
        rate = 1.0 - ratio
    elif method == "cosine":
        rate = jax.lax.cos(math.pi / 2.0 * ratio)
    elif method == "log":
        rate = -jnp.log2(ratio) / jnp.log2(total_unknown)
    elif method == "exp":
        rate = 1 - jnp.exp2(-jnp.log2(total_unknown) * (1 - ratio))
    elif method.startswith("pow"):
        rate = 1.0 - ratio ** float(method.removeprefix("pow"))
    else:
        raise ValueError(f"mask schedule {method!r}: uniform, cosine, log, exp or pow<x>")
    return jnp.clip(rate, 1e-6, 1.0)
