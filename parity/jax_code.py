"""The JAX side of every comparison: the Flax reference or the official code, one interface."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

try:
    import flax  # noqa: F401
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise ImportError(
        f"parity compares with JAX, which is not installed ({error}); pip install 'maskgit_pt[jax]'"
    ) from error

MODULES = (
    "nets.maskgit_transformer",
    "nets.vqgan_tokenizer",
    "nets.discriminator",
    "nets.layers",
    "libml.losses",
    "libml.mask_schedule",
    "libml.parallel_decode",
    "inference",
)


@dataclasses.dataclass(frozen=True)
class JaxCode:
    """The modules of MaskGIT in JAX, by their official names.

    Attributes:
      title: what it is, for the report.
      official: whether it is Google's own code.
      notes: what had to be changed to run it on today's JAX; empty for the reference.
      configs: the official config modules by name; empty for the reference.
    """

    title: str
    official: bool
    notes: tuple[str, ...]
    configs: dict[str, ModuleType]
    maskgit_transformer: ModuleType
    vqgan_tokenizer: ModuleType
    discriminator: ModuleType
    layers: ModuleType
    losses: ModuleType
    mask_schedule: ModuleType
    parallel_decode: ModuleType
    inference: ModuleType

    def transformer(self, config: dict[str, Any]) -> Any:
        """A Flax Transformer from the PyTorch one's constructor arguments (its `to_config`)."""
        fields = {field.name for field in dataclasses.fields(self.maskgit_transformer.Transformer)}
        arguments = {name: value for name, value in config.items() if name in fields}
        return self.maskgit_transformer.Transformer(**arguments)

    def tokenizer(self, config: Any, train: bool = False, dtype: Any = jnp.float32) -> Any:
        """A Flax VQVAE from a config with `config.vqvae`."""
        return self.vqgan_tokenizer.VQVAE(config=config, train=train, dtype=dtype)

    def generator(self, config: Any, transformer: Any, tokenizer: Any, variables: Any) -> Any:
        """An `ImageNet_class_conditional_generator`; the official constructor would open files.

        Args:
          config: with image_size, eval_batch_size, vqvae, transformer, sample_choice_temperature.
          transformer, tokenizer: Flax modules.
          variables: theirs, as a pair.
        """
        generator = object.__new__(self.inference.ImageNet_class_conditional_generator)
        generator.maskgit_cf = config
        generator.transformer_model = transformer
        generator.tokenizer_model = _Compiled(tokenizer)
        generator.transformer_variables, generator.tokenizer_variables = variables
        generator.transformer_latent_size = config.image_size // config.transformer.patch_size
        generator.transformer_block_size = generator.transformer_latent_size**2 + 1
        return generator

    @contextlib.contextmanager
    def float64(self, lift_casts: bool = False) -> Iterator[None]:
        """JAX in float64, the transformer's last addition included.

        `Bias` casts to its `dtype`, float32 unless told otherwise, and nothing official tells it.
        Within this context the name stands for the class with dtype float64.

        Args:
          lift_casts: let also the tokenizer's and the discriminator's losses stay in float64, which the
            official code casts to float32: in their modules `jnp.float32` then stands for float64.
        """
        module = self.maskgit_transformer
        bias = module.Bias
        module.Bias = functools.partial(bias, dtype=jnp.float64)
        casting = (self.losses, self.vqgan_tokenizer, self.discriminator) if lift_casts else ()
        for other in casting:
            other.jnp = _DoubleNumpy()
        try:
            with jax_options(x64=True):
                yield
        finally:
            module.Bias = bias
            for other in casting:
                other.jnp = jnp


class _Compiled:
    """A Flax module whose `apply` is compiled, once for each method."""

    def __init__(self, module: Any):
        self._module, self._compiled = module, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def apply(self, variables: Any, *inputs: Any, method: Any, **options: Any) -> Any:
        name = method.__name__
        if name not in self._compiled:
            apply = functools.partial(self._module.apply, method=name, **options)
            self._compiled[name] = jit(apply, quick=True)
        return self._compiled[name](variables, *inputs)


class _DoubleNumpy:
    """`jax.numpy` with float64 in place of float32."""

    float32 = jnp.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)


@contextlib.contextmanager
def jax_options(x64: bool | None = None, partitionable: bool | None = None) -> Iterator[None]:
    """Sets JAX's precision and the layout of its random streams, and sets them back afterwards."""
    wanted = {"jax_enable_x64": x64, "jax_threefry_partitionable": partitionable}
    before = {name: getattr(jax.config, name) for name in wanted if wanted[name] is not None}
    try:
        for name in before:
            jax.config.update(name, wanted[name])
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def jit(function: Callable[..., Any], quick: bool = False, **options: Any) -> Callable[..., Any]:
    """`jax.jit` without constant folding.

    The tokenizer's average pooling divides by a pooled array of ones, which XLA would evaluate while
    compiling: at 512 pixels that takes minutes.

    Args:
      function: what to compile.
      quick: compile in half the time, to slower machine code: for small networks that run a few times.
        XLA's own rewriting of the program is the same; only LLVM optimizes less.
      **options: of `jax.jit`.
    """
    if "compiler_options" in inspect.signature(jax.jit).parameters:
        options["compiler_options"] = {"xla_disable_hlo_passes": "constant_folding"}
        if quick:
            options["compiler_options"]["xla_backend_optimization_level"] = 0
    return jax.jit(function, **options)


def load_reference() -> JaxCode:
    """The reference in `parity/reference`."""
    modules = {}
    for path in MODULES:
        name = path.rpartition(".")[2]
        modules[name] = importlib.import_module(f"parity.reference.{name}")
    return JaxCode(
        title="Flax reference (parity/reference)", official=False, notes=(), configs={}, **modules
    )
