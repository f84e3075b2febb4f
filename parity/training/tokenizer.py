"""Some training steps of tokenizer and discriminator on both sides: `train.autoencoding`, Flax with optax."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import torch
from PIL import Image
from torch import Tensor, nn

from convert import rules
from convert.files.tensors import one_thread
from maskgit_pt.launch import Processes
from maskgit_pt.libml.jax_random import Key
from parity import weights
from parity.jax_code import JaxCode, jit
from parity.layers import nhwc
from parity.training import optax_side
from parity.training.run import Run, arrays, curves, gradients
from train.configs import tokenizer_defaults
from train.data import batches as data
from train.tasks import perceptual
from train.tasks.autoencoding import DISCRIMINATOR, TOKENIZER, Autoencoding, temperature

STEPS = 5
_IMAGES = 12
_FEATURES = (16, 4)  # of the stand-in for ResNet-50: patch in pixels, channels
_NOISE_SEED = 5
NETWORKS = {TOKENIZER: "maskgit_vqvae", DISCRIMINATOR: "maskgit_discriminator"}  # -> model type


def write_images(folder: Path, side: int = 8) -> None:
    """Smooth random pictures, in the layout that `train.data.images` reads."""
    rng = np.random.default_rng(0)
    (folder / "a class").mkdir(parents=True)
    for number in range(_IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (side // 2, side // 2, 3), np.uint8))
        path = folder / "a class" / f"{number:02d}.png"
        coarse.resize((side, side), Image.BICUBIC).save(path)


def settings(images: Path, **changes: Any) -> ml_collections.ConfigDict:
    """The settings of a run: the published losses and optimizers around a small tokenizer.

    8 x 8 pixels, 4 x 4 tokens of 32 codes. The discriminator has its official 512 channels.
    """
    config = tokenizer_defaults.get_config()
    config.update(
        batch_size=2,
        num_train_steps=STEPS,
        image_size=8,
        precision="float32",  # no autocast: the weights' own precision
        compile=False,
        perceptual_weights="off",  # a stand-in takes its place, see `Ours`
        polyak_decay=0.9,
    )
    config.vqvae.update(
        codebook_size=32, filters=32, num_res_blocks=1, channel_multipliers=(1, 2), embedding_dim=16
    )
    config.discriminator.width_rule = "official"
    config.tau_anneal.update(tau_warmup_steps=1, tau_decay_steps=4)
    config.data.update(images=str(images), crop="center", num_workers=0)
    config.update_from_flattened_dict(changes)
    return config


@functools.cache
def _stand_in_weights() -> tuple[np.ndarray, np.ndarray]:
    """Kernel [patch, patch, 3, channels] and bias of the one layer that stands in for ResNet-50."""
    patch, channels = _FEATURES
    rng = np.random.default_rng(1)
    kernel = rng.normal(0, 1 / patch, (patch, patch, 3, channels))
    return kernel.astype(np.float32), rng.normal(0, 0.1, channels).astype(np.float32)


class _StandIn(nn.Module):
    """Patches through a dense layer and tanh: [B, 3, H, W] -> [B, features]."""

    def __init__(self):
        super().__init__()
        patch, channels = _FEATURES
        self.conv = nn.Conv2d(3, channels, patch, patch)
        kernel, bias = map(torch.from_numpy, _stand_in_weights())
        with torch.no_grad():
            self.conv.weight.copy_(kernel.permute(3, 2, 0, 1))
            self.conv.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).tanh().mean((-2, -1))


class Task(Autoencoding):
    """The task with JAX's noise in place of PyTorch's."""

    keys: list[Key]

    def noise(self, step: int) -> Key | None:
        return self.keys[step] if self.config.vqvae.quantizer == "gumbel" else None


@dataclasses.dataclass(frozen=True)
class Case:
    """One setting of stage 1, with seeded weights for either side.

    Attributes:
      code: the JAX side.
      config: from `settings`.
      dtype: numpy's float32 or float64; float64 within `code.float64(lift_casts=True)`.
    """

    code: JaxCode
    config: ml_collections.ConfigDict
    dtype: Any = np.float32

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """{network: {"params": ...}}, of trained-like magnitude."""
        drawn = {
            TOKENIZER: weights.tokenizer_variables(self.code, self.config),
            DISCRIMINATOR: weights.discriminator_variables(self.code, self.config),
        }
        return jax.tree_util.tree_map(lambda value: value.astype(self.dtype), drawn)

    def to_torch(self, trees: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
        """Flax trees by network -> tensors by network and PyTorch name."""
        config = self.config.to_dict()
        return {
            name: rules.to_torch(weights.flatten(tree), NETWORKS[name], config)
            for name, tree in trees.items()
        }

    @functools.cached_property
    def images(self) -> list[np.ndarray]:
        """Every step's batch as the trainer draws it, [B, 3, H, W] in [0, 1]."""
        batches = data.open_images(self.config, Processes("cpu", alone=True))
        steps = range(self.config.num_train_steps)
        return [batches[step]["pixels"].numpy().astype(self.dtype) / 255 for step in steps]


@one_thread()
def run_ours(case: Case, keys: list[Key]) -> Run:
    """The updates of `train.autoencoding` themselves.

    Args:
      case: the setting.
      keys: of the Gumbel noise, one a step (see `Theirs.keys`).
    """
    task = Task(case.config, Processes("cpu", alone=True))
    task.keys = keys
    state = task.state
    dtype = torch.from_numpy(np.zeros(0, case.dtype)).dtype
    loaded = case.to_torch(case.variables)
    for name, model in [*state.models.items(), *state.averages.items()]:
        model.to(dtype).load_state_dict(loaded[name])  # in place: the optimizers hold these
    if case.config.perceptual_loss_weight:
        task.perceptual = perceptual.PerceptualLoss(_StandIn(), on_logit=True).to(dtype)
    first: dict[str, dict[str, np.ndarray]] = {}
    for name, optimizer in state.optimizers.items():
        optimizer.register_step_pre_hook(_keep_first(first, name, state.models[name]))
    start = {name: arrays(model) for name, model in state.models.items()}
    steps, indices, gaps = [], [], []
    with _watch(task.tokenizer.quantizer, indices, gaps):
        for step, images in enumerate(map(torch.from_numpy, case.images)):
            metrics, fake = task.update_tokenizer(images, step)
            steps.append(metrics | task.update_discriminator(images, fake, step))
    return Run(
        curves(steps),
        first,
        start,
        {name: arrays(model) for name, model in state.models.items()},
        {name: arrays(model) for name, model in state.averages.items()},
        np.stack(indices),
        min(gaps),
    )


def _keep_first(kept: dict[str, Any], name: str, model: nn.Module) -> Callable[..., None]:
    """A hook before an optimizer's step that keeps the gradients of the first."""

    def hook(*_: Any) -> None:
        if name not in kept:
            kept[name] = gradients(model)

    return hook


def _watch(quantizer: nn.Module, indices: list[np.ndarray], gaps: list[float]) -> Any:
    """Notes each call's indices, and by how much the nearest code is nearer than the next."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        nearest = module.distances(inputs[0].detach()).detach().topk(2, largest=False).values
        indices.append(output[1]["encoding_indices"].numpy().copy())
        gaps.append(float((nearest[..., 1] - nearest[..., 0]).min()))

    return quantizer.register_forward_hook(hook)


class Theirs:
    """The same in JAX: official networks and losses, put together as VQGAN is trained, and optax.

    Args:
      case: the setting.
    """

    def __init__(self, case: Case):
        self.case, self.config = case, case.config
        self.tokenizer = case.code.tokenizer(case.config, train=True, dtype=case.dtype)
        self.discriminator = functools.partial(
            case.code.discriminator.Discriminator, config=case.config
        )
        self._tokenizer_gradient = jit(jax.value_and_grad(self._tokenizer_loss, has_aux=True))
        self._judge_gradient = jit(jax.value_and_grad(self._judge_loss, has_aux=True))

    def keys(self) -> list[Key]:
        """The keys from which Flax draws each step's noise: with the quantizer's place folded in.

        None for a quantizer without noise.
        """
        if self.config.vqvae.quantizer != "gumbel":
            return []
        layout = bool(jax.config.jax_threefry_partitionable)
        keys = []
        for rng in self._rngs():
            bound = self.tokenizer.bind(self.case.variables[TOKENIZER], rngs={"rng": rng})
            words = np.asarray(bound.quantizer.make_rng("rng"))
            keys.append(Key.from_words([int(word) for word in words], partitionable=layout))
        return keys

    def _rngs(self) -> Iterator[jax.Array]:
        for step in range(self.config.num_train_steps):
            yield jax.random.PRNGKey(_NOISE_SEED + step)

    def _tokenizer_loss(
        self, variables: Any, judge: Any, images: jax.Array, tau: Any, rng: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Reconstruction, quantizer, perceptual and adversarial loss."""
        config, losses = self.config, self.case.code.losses

        def both(module: Any) -> Any:
            quantized, found = module.encode({"image": images, "tau": tau})
            return module.decode(quantized), found

        fake, found = self.tokenizer.apply(variables, method=both, rngs={"rng": rng})
        distance = {"l1": losses.l1_loss, "l2": losses.l2_loss}[config.reconstruction_loss]
        logit = self.discriminator(train=True).apply(judge, fake)
        parts = {
            "reconstruction_loss": distance(images, fake),
            "quantizer_loss": found["quantizer_loss"],
            "adversarial_loss": losses.generator_loss(
                fake_logit=logit, loss_type=config.vqgan.loss_type
            ),
        }
        loss = parts["reconstruction_loss"] + parts["quantizer_loss"]
        loss += config.vqgan.g_adversarial_loss_weight * parts["adversarial_loss"]
        if config.perceptual_loss_weight:
            parts["perceptual_loss"] = jnp.mean((_features(fake) - _features(images)) ** 2)
            loss += config.perceptual_loss_weight * parts["perceptual_loss"]
        return loss, (fake, found["encoding_indices"], parts)

    def _judge_loss(self, judge: Any, real: jax.Array, fake: jax.Array) -> tuple[jax.Array, Any]:
        """Adversarial loss and gradient penalty."""
        config, losses = self.config.vqgan, self.case.code.losses
        if config.gradient_penalty == "r1":
            real_logit, penalty = losses.r1_gradient_penalty(
                self.discriminator, judge, real, config.grad_penalty_cost
            )
        else:
            real_logit, penalty = self.discriminator(train=True).apply(judge, real), 0.0
        loss = losses.discriminator_loss(
            real_logit=real_logit,
            fake_logit=self.discriminator(train=True).apply(judge, fake),
            loss_type=config.loss_type,
        )
        return loss + penalty, {"discriminator_loss": loss, "gradient_penalty": penalty}

    def run(self) -> Run:
        """All steps: the tokenizer's, then the discriminator's on the reconstructions from before it."""
        config = self.config
        optimizers = {
            TOKENIZER: self._adam(config.optimizer.g_lr),
            DISCRIMINATOR: self._adam(config.optimizer.d_lr),
        }
        networks = dict(self.case.variables)
        packings = {name: optax_side.Packing(tree) for name, tree in networks.items()}
        packed = {name: packings[name].pack(tree) for name, tree in networks.items()}
        states = {name: optax_side.init(optimizers[name], packed[name]) for name in networks}
        updates = {name: jit(functools.partial(_update, o)) for name, o in optimizers.items()}
        follow = jit(functools.partial(optax_side.average, decay=config.polyak_decay))
        average, first, steps, all_indices = packed[TOKENIZER], {}, [], []

        def update(name: str, gradient: Any) -> None:
            first.setdefault(name, gradient)
            gradient = packings[name].pack(gradient)
            packed[name], states[name] = updates[name](packed[name], states[name], gradient)
            networks[name] = packings[name].unpack(packed[name])

        for step, (images, rng) in enumerate(zip(self.case.images, self._rngs(), strict=True)):
            real, tau = nhwc(images), self.case.dtype(temperature(config.tau_anneal, step))
            (loss, (fake, indices, parts)), gradient = self._tokenizer_gradient(
                networks[TOKENIZER], networks[DISCRIMINATOR], real, tau, rng
            )
            update(TOKENIZER, gradient)
            average = follow(average, packed[TOKENIZER], step)
            (_, judged), gradient = self._judge_gradient(networks[DISCRIMINATOR], real, fake)
            update(DISCRIMINATOR, gradient)
            steps.append({"loss": loss} | parts | judged)
            all_indices.append(np.asarray(indices))
        return Run(
            curves(steps),
            self._arrays(first),
            self._arrays(self.case.variables),
            self._arrays(networks),
            self._arrays({TOKENIZER: packings[TOKENIZER].unpack(average)}),
            np.stack(all_indices),
        )

    def _adam(self, rate: float) -> optax.GradientTransformation:
        config = self.config.optimizer
        return optax.adam(rate, b1=config.beta1, b2=config.beta2, eps=config.epsilon)

    def _arrays(self, trees: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
        return {
            name: {parameter: value.numpy() for parameter, value in tensors.items()}
            for name, tensors in self.case.to_torch(trees).items()
        }


def _update(optimizer: Any, variables: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
    change, state = optimizer.update(gradient, state)
    return optax.apply_updates(variables, change), state


def _features(images: jax.Array) -> jax.Array:
    """What `train.perceptual` compares, by the stand-in: [B, H, W, 3] -> [B, features]."""
    # Rounded to float32 first: in float64 as well PyTorch's module keeps them as float32 made them.
    mean, std = np.float32([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).astype(images.dtype)
    large = jax.image.resize(images, (len(images), 224, 224, 3), "linear", antialias=True)
    large = (large - mean) / std
    kernel, bias = (jnp.asarray(value, images.dtype) for value in _stand_in_weights())
    patch = (_FEATURES[0], _FEATURES[0])
    found = jax.lax.conv_general_dilated(
        large, kernel, patch, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(found + bias).mean((1, 2))
