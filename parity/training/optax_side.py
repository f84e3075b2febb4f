"""The optimizers of training in optax, after the settings that `train.optimizers` reads."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import traverse_util

from parity import weights


def adamw(config: ml_collections.ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW with the schedule.

    Args:
      config: `config.optimizer` of a training run; with decay "matrices" kernels alone decay.
      num_steps: of the run.
    """
    steps = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    steps.append(
        optax.adamw(
            schedule(config, num_steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=_kernels if config.decay == "matrices" else None,
        )
    )
    return optax.chain(*steps)


def _kernels(tree: Any) -> Any:
    """True for the kernels of dense layers and convolutions."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", tree)


class Packing:
    """Lays the arrays of a tree out as two long vectors, of the kernels and of all others.

    To an optimizer that treats every number alike it is the same, and XLA compiles it in a moment.
    """

    def __init__(self, tree: Any):
        shapes = {name: array.shape for name, array in weights.flatten(tree).items()}
        kernels = {name: shape for name, shape in shapes.items() if name.endswith("/kernel")}
        others = {name: shape for name, shape in shapes.items() if name not in kernels}
        self._parts = {"kernel": kernels, "other": others}

    def pack(self, tree: Any) -> dict[str, np.ndarray]:
        """Tree -> {"kernel": [n], "other": [m]}."""
        flat = weights.flatten(tree)
        return {
            part: np.concatenate([flat[name].ravel() for name in shapes])
            for part, shapes in self._parts.items()
        }

    def unpack(self, packed: dict[str, Any]) -> Any:
        """The inverse of `pack`."""
        flat = {}
        for part, shapes in self._parts.items():
            ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
            pieces = np.split(np.asarray(packed[part]), ends[:-1])
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True):
                flat[name] = piece.reshape(shape)
        return traverse_util.unflatten_dict(flat, sep="/")


def schedule(config: ml_collections.ConfigDict, num_steps: int) -> Callable[[Any], Any]:
    """Linear warm-up to `lr`, reached in its last step, then constant, cosine or linear to `lr_min`."""
    lr, warmup = config.lr, config.warmup_steps
    rest = num_steps - 1 - warmup
    after = {
        "constant": lambda: optax.constant_schedule(lr),
        "cosine": lambda: optax.cosine_decay_schedule(lr, rest, alpha=config.lr_min / lr),
        "linear": lambda: optax.linear_schedule(lr, config.lr_min, rest),
    }[config.lr_schedule]()
    if not warmup:
        return after
    rise = optax.linear_schedule(lr / warmup, lr, warmup - 1)
    return optax.join_schedules([rise, after], [warmup])


def init(optimizer: optax.GradientTransformation, parameters: Any) -> Any:
    """The state to start from; where JAX computes in float64, counts are int64.

    optax counts in int32, from which JAX makes float32 rates and bias corrections even then.
    """

    def widen(leaf: Any) -> Any:
        is_count = jnp.issubdtype(leaf.dtype, jnp.integer) and jax.config.jax_enable_x64
        return leaf.astype(jnp.int64) if is_count else leaf

    return jax.tree_util.tree_map(widen, optimizer.init(parameters))


def average(average: Any, parameters: Any, step: Any, decay: float) -> Any:
    """The moving average after a step, counted from 0, whose decay grows from 1/10 to `decay`."""
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree_util.tree_map(
        lambda old, new: decay.astype(old.dtype) * old + (1 - decay).astype(old.dtype) * new,
        average,
        parameters,
    )


def global_norm(tree: Any) -> jax.Array:
    """The length of all arrays as one vector; optax has it under different names."""
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree_util.tree_leaves(tree)))
