"""The two networks, each as a pair: the PyTorch module and the JAX one with the same weights."""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util
from torch import nn

import maskgit_pt
from parity import weights
from parity.jax_code import JaxCode, jit
from parity.layers import tokenizer_layers, transformer_layers


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
        return self._jit(
            lambda variables, ids: self.theirs.apply(variables, ids, deterministic=True)
        )

    @functools.cached_property
    def forward(self) -> Callable[..., Any]:
        """Compiled (variables, ids [1, N]) -> logits, and what the submodules in `paths` return."""
        return self._jit(_capturing(self.theirs, self.paths.values(), None))

    @functools.cached_property
    def loss_and_gradients(self) -> Callable[..., Any]:
        """Compiled (variables, ids, labels, weights, label_smoothing) -> (loss, logits), gradients.

        The loss is that of training on the logits of the codes, without dropout.
        """

        def loss(
            variables: Any, ids: Any, labels: Any, weights: Any, label_smoothing: float
        ) -> tuple[Any, Any]:
            logits = self.theirs.apply(variables, ids)[..., : self.codes]
            value = self.code.losses.weighted_sequence_cross_entropy_loss(
                labels=labels, logits=logits, weights=weights, label_smoothing=label_smoothing
            )
            return value, logits

        return self._jit(jax.value_and_grad(loss, has_aux=True), static_argnums=4)

    @functools.cached_property
    def paths(self) -> dict[str, str]:
        """PyTorch submodule -> Flax submodule."""
        return transformer_layers(len(self.ours.layers))

    @property
    def is_small(self) -> bool:
        """Whether compiling takes longer than running."""
        return _is_small(self.ours)

    def _jit(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return jit(function, quick=self.is_small, **options)

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
            yield self.double

    @functools.cached_property
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

    @functools.cached_property
    def encode(self) -> Callable[..., Any]:
        """Compiled (variables, images [B, H, W, 3]) -> what was found, and the encoder's blocks.

        Found are "features", "indices" and "quantized"; the blocks are those of `paths("encoder")`.
        """

        def run(module: Any, pixels: Any) -> dict[str, Any]:
            quantized, found = module.encode({"image": pixels})
            indices = module.encode_to_indices({"image": pixels})
            features = found.get("raw", quantized)
            return {"features": features, "indices": indices, "quantized": quantized}

        return self._jit(_capturing(self.theirs, self.paths("encoder").values(), run))

    @functools.cached_property
    def decode(self) -> Callable[..., Any]:
        """Compiled (variables, indices int32 [B, h, w]) -> images, and the decoder's blocks."""

        def run(module: Any, indices: Any) -> Any:
            return module.decode_from_indices(indices)

        return self._jit(_capturing(self.theirs, self.paths("decoder").values(), run))

    def paths(self, name: str) -> dict[str, str]:
        """PyTorch submodule -> Flax submodule of "encoder" or "decoder"."""
        return tokenizer_layers(name, getattr(self.ours, name))

    @property
    def is_small(self) -> bool:
        """Whether compiling takes longer than running."""
        return _is_small(self.ours)

    def _jit(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return jit(function, quick=self.is_small, **options)

    @contextlib.contextmanager
    def in_float64(self) -> "Iterator[TokenizerPair]":
        """The pair in float64, with JAX computing in float64 as long as the context lasts."""
        with self.code.float64():
            yield self._double

    @functools.cached_property
    def _double(self) -> "TokenizerPair":
        variables = weights.to_float64(self.variables)
        return TokenizerPair(copy.deepcopy(self.ours).double(), self.code, variables, jnp.float64)

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
    _, captured = jit(_capturing(module, paths, method))(variables, *inputs)
    return {path: np.asarray(value) for path, value in captured.items()}


def _capturing(module: Any, paths: Iterable[str], method: Any) -> Callable[..., Any]:
    """(variables, *inputs) -> what `method` returns, and what the submodules at `paths` return."""
    wanted = set(paths)

    def is_wanted(submodule: Any, name: str) -> bool:
        return name == "__call__" and "/".join(submodule.path) in wanted

    def run(variables: dict[str, Any], *inputs: Any) -> tuple[Any, dict[str, Any]]:
        output, captured = module.apply(
            variables,
            *inputs,
            method=method,
            capture_intermediates=is_wanted,
            mutable=["intermediates"],
        )
        flat = traverse_util.flatten_dict(captured["intermediates"], sep="/")
        # A tuple with one entry for each call.
        return output, {name.removesuffix("/__call__"): calls[0] for name, calls in flat.items()}

    return run


def _is_small(model: nn.Module) -> bool:
    return sum(p.numel() for p in model.parameters()) < 5e6
