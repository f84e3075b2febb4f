"""The two networks, each as a pair: the PyTorch module and the JAX one with the same weights."""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

import maskgit_pt
from parity import weights
from parity.jax_code import JaxCode, jit


@dataclasses.dataclass(frozen=True)
class TransformerPair:
    """A transformer on both sides.

    Attributes:
      ours: the PyTorch module, in evaluation mode.
      code: the JAX side.
      variables: the same weights as Flax read them, {"params": ...}.
      codes: how many logits belong to codes; the rest to classes and the mask.
    """

    ours: maskgit_pt.Transformer
    code: JaxCode
    variables: dict[str, Any]
    codes: int

    @functools.cached_property
    def theirs(self) -> Any:
        """The Flax module."""
        return self.code.transformer(self.ours.to_config())

    @functools.cached_property
    def apply(self) -> Callable[..., Any]:
        """Compiled (variables, ids [B, N]) -> logits [B, N, V]."""
        return jit(lambda variables, ids: self.theirs.apply(variables, ids, deterministic=True))

    @property
    def length(self) -> int:
        """N, class token included."""
        return self.ours.to_config()["max_position_embeddings"]

    @property
    def classes(self) -> int:
        return self.ours.to_config()["vocab_size"] - self.codes - 1

    @property
    def side(self) -> int:
        """Tokens along one side of the grid."""
        return int(round((self.length - 1) ** 0.5))

    @contextlib.contextmanager
    def in_float64(self) -> "Iterator[TransformerPair]":
        """The pair in float64, with JAX computing in float64 as long as the context lasts."""
        with self.code.float64():
            yield self.double()

    def double(self) -> "TransformerPair":
        """The pair in float64; use it within `code.float64()`."""
        ours = copy.deepcopy(self.ours).double()
        return TransformerPair(ours, self.code, weights.to_float64(self.variables), self.codes)


@dataclasses.dataclass(frozen=True)
class TokenizerPair:
    """A tokenizer on both sides; attributes as in `TransformerPair`."""

    ours: maskgit_pt.VQVAE
    code: JaxCode
    variables: dict[str, Any]
    dtype: Any = jnp.float32

    @property
    def config(self) -> ml_collections.ConfigDict:
        """With `config.vqvae`, for either side's constructor."""
        config = copy.deepcopy(self.ours.to_config())
        return ml_collections.ConfigDict({"vqvae": config["vqvae"]})

    @functools.cached_property
    def theirs(self) -> Any:
        """The Flax module, in evaluation mode."""
        return self.code.tokenizer(self.config, dtype=self.dtype)

    @contextlib.contextmanager
    def in_float64(self) -> "Iterator[TokenizerPair]":
        """The pair in float64, with JAX computing in float64 as long as the context lasts."""
        with self.code.float64():
            ours = copy.deepcopy(self.ours).double()
            variables = weights.to_float64(self.variables)
            yield TokenizerPair(ours, self.code, variables, jnp.float64)

    def in_training(self, quantizer: str) -> tuple[maskgit_pt.VQVAE, Any]:
        """Both modules in training mode, with the quantizer "vq" or "gumbel"."""
        config = self.config
        config.vqvae.quantizer = quantizer
        ours = maskgit_pt.VQVAE(config)
        ours.load_state_dict(self.ours.state_dict())
        ours = ours.to(next(self.ours.parameters()).dtype).train()
        return ours, self.code.tokenizer(config, train=True, dtype=self.dtype)


def capture_flax(
    module: Any, paths: Iterable[str], variables: dict[str, Any], *inputs: Any, method: Any = None
) -> dict[str, np.ndarray]:
    """What the Flax submodules at `paths` ("encoder/Conv_0") return; compiled."""
    wanted = set(paths)

    def is_wanted(submodule: Any, name: str) -> bool:
        return name == "__call__" and "/".join(submodule.path) in wanted

    def run(variables: dict[str, Any], *inputs: Any) -> Any:
        return module.apply(
            variables,
            *inputs,
            method=method,
            capture_intermediates=is_wanted,
            mutable=["intermediates"],
        )[1]["intermediates"]

    captured = weights.flatten_intermediates(jit(run)(variables, *inputs))
    return {path.removesuffix("/__call__"): value for path, value in captured.items()}
