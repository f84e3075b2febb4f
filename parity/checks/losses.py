"""What else training needs: every loss function, and the discriminator with its R1 penalty."""

import functools
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import torch

from convert import rules
from maskgit_pt.libml import losses
from maskgit_pt.nets import discriminator
from parity import weights
from parity.bounds import FLOAT32, FLOAT64, R1_FLOAT64
from parity.compare import Record, compare, compare_trees
from parity.jax_code import JaxCode, jit
from parity.layers import nhwc

R1_COST = 10.0


def loss_functions(code: JaxCode, rtol: float = 1e-5) -> Iterator[Record]:
    """Every function of libml/losses.py on random inputs, and on ties and zeros."""
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 2, shape).astype(np.float32)

    real, fake = normal(9, 1), normal(9, 1)
    real[0], fake[1] = 0.0, 0.0
    labels = rng.integers(0, 7, (3, 11))
    mask = (rng.random((3, 11)) < 0.5).astype(np.float32)
    mask[:, 0] = 1
    points = (normal(6, 8), normal(5, 8))
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "squared_euclidean_distance": (points, {}),
        "apply_label_smoothing": ((np.eye(5, dtype=np.float32), 0.1), {}),
        "l1_loss": ((real, fake), {}),
        "l2_loss": ((real, fake), {}),
        "sigmoid_cross_entropy_with_logits": ((), {"labels": (real > 0) * real, "logits": fake}),
        "sequence_cross_entropy_loss": ((), {"labels": labels, "logits": normal(3, 11, 7)}),
        "weighted_sequence_cross_entropy_loss": (
            (),
            {"labels": labels, "logits": normal(3, 11, 7), "weights": mask, "label_smoothing": 0.1},
        ),
    }
    for name, (arguments, keywords) in calls.items():
        yield _compare_call(code, name, name, arguments, keywords, rtol)
    for kind in ("hinge", "non-saturating"):
        both = {"real_logit": real, "fake_logit": fake, "loss_type": kind}
        one = {"fake_logit": fake, "loss_type": kind}
        yield _compare_call(
            code, f"discriminator_loss {kind}", "discriminator_loss", (), both, rtol
        )
        yield _compare_call(code, f"generator_loss {kind}", "generator_loss", (), one, rtol)
    for kind in ("softmax", "argmax"):
        for temperature in (1.0, 0.01):
            title = f"entropy_loss {kind}, temperature {temperature}"
            arguments = (normal(4, 6, 10), kind, temperature)
            yield _compare_call(code, title, "entropy_loss", arguments, {}, rtol)


def _compare_call(
    code: JaxCode,
    title: str,
    name: str,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    rtol: float,
) -> Record:
    def tensor(value: Any) -> Any:
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    ours = getattr(losses, name)(
        *map(tensor, arguments), **{key: tensor(value) for key, value in keywords.items()}
    )
    theirs = getattr(code.losses, name)(*arguments, **keywords)
    return compare(title, ours, theirs, rtol=rtol)


def discriminator_losses64(code: JaxCode) -> Iterator[Record]:
    """`discriminator_losses` in float64, without blur: the blur's filter is float32."""
    with code.float64():
        yield from discriminator_losses(code, False, np.float64)


def discriminator_losses(
    code: JaxCode, blur_resample: bool, dtype: Any = np.float32, side: int = 8
) -> Iterator[Record]:
    """Logits, R1 penalty, and the gradients of non-saturating loss plus penalty.

    In float64 the official code still rounds the penalty to float32.
    """
    bounds, loss_rtol = (FLOAT32, 1e-5) if dtype is np.float32 else (R1_FLOAT64, FLOAT64.loss)
    config = ml_collections.ConfigDict(
        {
            "image_size": side,
            "discriminator": {"channel_multiplier": 1, "blur_resample": blur_resample},
        }
    )
    rng = np.random.default_rng(zlib.crc32(b"discriminator"))
    real, fake = rng.random((2, 2, 3, side, side)).astype(dtype)
    variables = weights.discriminator_variables(code, config)
    variables = jax.tree_util.tree_map(lambda value: value.astype(dtype), variables)

    ours = discriminator.Discriminator(config)
    state = rules.to_torch(weights.flatten(variables), "maskgit_discriminator", config.to_dict())
    ours = ours.to(torch.from_numpy(np.zeros(0, dtype)).dtype)
    ours.load_state_dict(state)
    net = functools.partial(code.discriminator.Discriminator, config=config)

    def their_loss(variables: dict[str, Any]) -> tuple[jax.Array, Any]:
        logits, penalty = code.losses.r1_gradient_penalty(net, variables, nhwc(real), R1_COST)
        fake_logits = net(train=True).apply(variables, nhwc(fake))
        loss = code.losses.discriminator_loss(
            real_logit=logits, fake_logit=fake_logits, loss_type="non-saturating"
        )
        return loss + penalty, (logits, penalty)

    variables = jax.tree_util.tree_map(jnp.asarray, variables)
    (_, (logits, penalty)), gradients = jit(jax.value_and_grad(their_loss, has_aux=True))(variables)
    our_logits, our_penalty = losses.r1_gradient_penalty(
        ours, torch.from_numpy(real), penalty_cost=R1_COST
    )
    our_loss = our_penalty + losses.discriminator_loss(
        real_logit=our_logits, fake_logit=ours(torch.from_numpy(fake)), loss_type="non-saturating"
    )
    parameters = dict(ours.named_parameters())
    our_gradients = torch.autograd.grad(our_loss, list(parameters.values()))

    yield compare("logits", our_logits, logits, rtol=loss_rtol)
    our_penalty = our_penalty.detach().numpy().astype(np.float32)  # official casts to float32
    yield compare("R1 penalty", our_penalty, penalty, rtol=max(loss_rtol, 1e-6))
    yield from compare_trees(
        "gradient of",
        dict(zip(parameters, our_gradients, strict=True)),
        rules.to_torch(weights.flatten(gradients), "maskgit_discriminator", config.to_dict()),
        *bounds.gradients,
    )
